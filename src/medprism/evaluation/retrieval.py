"""Retrieval both ways: the texts of an image, the images of a text, and the images of a query.

- `precision_at_k` by class: share of the first k that have the query's class; its own counterpart is among them.
- `recall_at_k` for pairs: whether a text that belongs to the image (or an image that belongs to the text) is among the
  first k; `median_rank` and `reciprocal_rank` of the first such one.

Texts that read the same are one text of several samples: each of these samples counts as found. How ties are treated
is said in `medprism.evaluation.ranking`. What a random order reaches, `chance`, stands beside every number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medprism.cohort import UNKNOWN, Cohort
from medprism.evaluation.averages import Means, Median, numbers, plain
from medprism.evaluation.predictions import Array
from medprism.evaluation.ranking import DEPTHS, QueryPrecision, Ranks, precision, ranks
from medprism.evaluation.weighted import Path, subject_codes


@dataclass(frozen=True)
class Pairs:
    """Images and the texts that belong to them, for n samples.

    Attributes:
        ids: n names.
        subjects: n names of people.
        keys: for each sample its text in short: alike where texts are alike, empty where there is none.
        image: `(n, d)` float32 vectors.
        text: `(n, d)` float32 vectors, of no meaning where there is no text.
    """

    ids: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    image: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    text: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """All samples of several parts."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls()
        return cls(
            [name for part in parts for name in part.ids],
            [name for part in parts for name in part.subjects],
            [key for part in parts for key in part.keys],
            np.concatenate([part.image for part in parts]),
            np.concatenate([part.text for part in parts]),
        )

    def take(self, rows: Sequence[int] | Array) -> Pairs:
        """The samples at some positions."""
        index = np.asarray(rows, dtype=np.int64)
        ids, subjects, keys = ([each[row] for row in index] for each in (self.ids, self.subjects, self.keys))
        return Pairs(ids, subjects, keys, self.image[index], self.text[index])

    def with_text(self) -> Pairs:
        """The samples that have a text."""
        return self.take([row for row, key in enumerate(self.keys) if key])


def retrieval(
    pairs: Pairs,
    cohort: Cohort,
    target: Array | None,
    queries: Mapping[str, Array] | None = None,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Retrieval both ways, with intervals over the subjects of the queries, or of the images for queries by class.

    Args:
        pairs: n samples.
        cohort: names the classes.
        target: `(n,)` class codes, -1 where unknown; needed by the precision alone.
        queries: class name to `(k, d)` vectors of texts that ask for it.
        resamples: bootstrap resamples; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.

    Returns:
        `image_to_text` and `text_to_image`, each with `precision_at_k`, `recall_at_k`, `median_rank`,
        `reciprocal_rank` and the `chance` of each; `reciprocal_rank`, the mean of both ways; `query_to_image` with
        `precision_at_k`, its `chance`, and the numbers `n` of images and `queries`; `n` samples with a text. And
        sentences on what was left out.
    """
    by_class = cohort.target_kind == "classes" and target is not None
    classes = np.asarray(target) if by_class else np.full(len(pairs), UNKNOWN)
    found: dict[str, Any] = {}
    notes: list[str] = []
    if queries:
        found["query_to_image"], notes = by_query(pairs, cohort, classes, queries, resamples, confidence, seed)
    rows = np.flatnonzero([key != "" for key in pairs.keys])
    if len(rows) < len(pairs):
        notes.append(f"retrieval: {len(pairs) - len(rows)} of {len(pairs)} samples have no text; left out")
    if len(rows) < 2:
        return found, [*notes, "retrieval: fewer than two samples have a text; pairs are not measured"]
    pairs, classes = pairs.take(rows), classes[rows]
    people, names = subject_codes(pairs.subjects)
    scores, expected, chance = _scores(pairs, classes)
    means = Means(scores, people, len(names))
    medians = {(way, "median_rank"): Median(values, people) for way, values in expected.items()}

    def statistic(counts: Array) -> dict[Path, Array]:
        return means(counts) | {path: median(counts) for path, median in medians.items()}

    for path, number in numbers(statistic, np.bincount(people), resamples, confidence, seed).items():
        branch = found.setdefault(path[0], {}) if len(path) > 1 else found
        branch[path[-1]] = number
    for path, level in chance.items():
        branch = found[path[0]] if len(path) > 1 else found
        branch.setdefault("chance", {})[path[-1]] = plain(level)
    found["n"] = len(pairs)
    return found, notes + _remarks(pairs, classes, cohort)


def reciprocal_rank(pairs: Pairs) -> float | None:
    """The mean of `reciprocal_rank` over both ways; None where fewer than two samples have a text."""
    pairs = pairs.with_text()
    if len(pairs) < 2:
        return None
    return float(np.mean([found.reciprocal.mean() for found in both_ranks(pairs).values()]))


def both_ranks(pairs: Pairs) -> dict[str, Ranks]:
    """`image_to_text` and `text_to_image` ranks of n samples that all have a text."""
    codes, first = _distinct(pairs.keys)
    text, every = pairs.text[first], np.arange(len(first))
    return {
        "image_to_text": ranks(pairs.image, text, codes, every, np.bincount(codes)),
        "text_to_image": ranks(text[codes], pairs.image, codes, codes, np.ones(len(codes))),
    }


def both_precisions(pairs: Pairs, classes: Array) -> dict[str, Array]:
    """`image_to_text` and `text_to_image` precision, `(n, depths)`, of n samples that all have a text and a class."""
    codes, first = _distinct(pairs.keys)
    text, one_hot = pairs.text[first], np.eye(int(classes.max()) + 1)[classes]
    mass = np.zeros((len(first), one_hot.shape[1]))
    np.add.at(mass, codes, one_hot)
    return {
        "image_to_text": precision(pairs.image, text, classes, mass),
        "text_to_image": precision(text[codes], pairs.image, classes, one_hot),
    }


def by_query(
    pairs: Pairs,
    cohort: Cohort,
    classes: Array,
    queries: Mapping[str, Array],
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[dict[str, Any], list[str]]:
    """Precision of the images that texts of each class find; see `retrieval`."""
    names, notes = list(cohort.target.classes), []
    wrong = [name for name in queries if name not in names]
    if wrong:
        notes.append(f"retrieval: queries for {wrong} are left out; the classes are {names}")
    asked = {names.index(name): vectors for name, vectors in queries.items() if name in names}
    known = np.flatnonzero(classes != UNKNOWN)
    if not asked or not len(known):
        return {}, [*notes, "retrieval: no query asks for a known class of an image; queries are not measured"]
    of_query = np.repeat(list(asked), [len(vectors) for vectors in asked.values()])
    people, persons = subject_codes([pairs.subjects[row] for row in known])
    vectors, images = np.concatenate(list(asked.values())), pairs.image[known]
    statistic = QueryPrecision(vectors, images, of_query, classes[known], people)
    found = numbers(statistic, np.bincount(people, minlength=len(persons)), resamples, confidence, seed)
    share = float((classes[known] == of_query[:, None]).mean())
    return {
        **{path[0]: number for path, number in found.items()},
        "chance": {path[0]: plain(share) for path in found},
        "n": len(known),
        "queries": len(of_query),
    }, notes


def _scores(pairs: Pairs, classes: Array) -> tuple[dict[Path, Array], dict[str, Array], dict[Path, float]]:
    """Scores of every query, expected ranks both ways, and the chance levels of all."""
    n, codes = len(pairs), _distinct(pairs.keys)[0]
    copies = np.bincount(codes)[codes].astype(np.float64)
    blind = Ranks(np.zeros(n), n - copies, copies)
    known = np.flatnonzero(classes != UNKNOWN)
    share = np.bincount(classes[known])[classes[known]].mean() / len(known) if len(known) else np.nan
    precisions = both_precisions(pairs.take(known), classes[known]) if len(known) else {}
    scores: dict[Path, Array] = {}
    expected: dict[str, Array] = {}
    chance: dict[Path, float] = {}
    for way, found in both_ranks(pairs).items():
        expected[way] = found.expected
        for column, depth in enumerate(DEPTHS):
            scores[way, f"precision_at_{depth}"] = np.full(n, np.nan)
            scores[way, f"precision_at_{depth}"][known] = precisions[way][:, column] if precisions else np.nan
            chance[way, f"precision_at_{depth}"] = float(share)
        for depth in DEPTHS:
            scores[way, f"recall_at_{depth}"] = found.recall(depth) if depth <= n else np.full(n, np.nan)
            chance[way, f"recall_at_{depth}"] = float(blind.recall(depth).mean()) if depth <= n else np.nan
        chance[way, "median_rank"] = float(np.median(blind.expected))
        scores[way, "reciprocal_rank"] = found.reciprocal
        chance[way, "reciprocal_rank"] = float(blind.reciprocal.mean())
    scores["reciprocal_rank",] = np.mean([scores[way, "reciprocal_rank"] for way in expected], axis=0)
    chance["reciprocal_rank",] = float(blind.reciprocal.mean())
    return scores, expected, chance


def _remarks(pairs: Pairs, classes: Array, cohort: Cohort) -> list[str]:
    """Sentences on texts that read alike, unknown classes, and sets and classes that are smaller than the depths."""
    n, alike, unknown = len(pairs), len(pairs) - len(set(pairs.keys)), int((classes == UNKNOWN).sum())
    notes = []
    if alike:
        notes.append(f"retrieval: {alike} of {n} texts read like an earlier one; any of those alike is right")
    if unknown:
        notes.append(f"retrieval: {unknown} of {n} samples have no known class; left out of precision")
    if n < max(DEPTHS):
        notes.append(f"retrieval: only {n} samples, so that numbers at greater depths are not defined")
    sizes = np.bincount(classes[classes != UNKNOWN], minlength=1)
    small = [f"{cohort.target.classes[k]} {size}" for k, size in enumerate(sizes) if 0 < size < min(n, max(DEPTHS))]
    if small:
        notes.append(f"retrieval: small classes cannot reach precision 1 at {max(DEPTHS)}: {', '.join(small)}")
    return notes


def _distinct(keys: Sequence[str]) -> tuple[Array, Array]:
    """Code of each key, `(n,)`, and the first position of each code."""
    _, first, codes = np.unique(np.array(keys), return_index=True, return_inverse=True)
    return codes.reshape(-1), first
