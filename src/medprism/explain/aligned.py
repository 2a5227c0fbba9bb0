"""What a test of an image-text method leaves for its figures, and which samples and pairs they show.

Samples are chosen by id and class, before anybody looks at results.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medprism.cohort import UNKNOWN, Batch, Cohort
from medprism.explain.image_text import Hit, Query, Similarity
from medprism.explain.regions import NothingToShow

Array = NDArray[Any]

MOST_SAMPLES = 40
"""Samples in the similarity matrix."""

QUERIES, HITS = 3, 3
"""Images (and texts) that look for their counterpart, and how many each of them shows."""

DECIMALS = 6
"""Cosines that agree so far are tied: float32 has hardly more digits."""


@dataclass
class Aligned:
    """What the steps of an image-text method leave behind; of other methods nothing.

    Attributes:
        ids: names of n samples.
        subjects: names of their people.
        texts: the sentences of each sample.
        gaze: whether each has gaze.
        classes: class code of each, -1 where unknown and where the target is not one of several classes.
        image: `(n, d)` vectors, a batch at a time; `(n, 0)` where the steps return none.
        text: `(n, d)` vectors, likewise; of no meaning where there is no sentence.
    """

    ids: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    texts: list[tuple[str, ...]] = field(default_factory=list)
    gaze: list[bool] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)
    image: list[Array] = field(default_factory=list)
    text: list[Array] = field(default_factory=list)

    def add(self, outputs: Any, batch: Batch, cohort: Cohort) -> None:
        """Add a batch that a test step was given and what it returned.

        Args:
            outputs: a step's output; without the tokens `patches` and `sentences` of images nothing is added.
            batch: of B samples.
            cohort: names the target.
        """
        tokens = set(outputs.get("tokens", {})) if isinstance(outputs, dict) else set()
        if not {"patches", "sentences"} <= tokens or "image" not in batch:
            return
        ids, blocks = batch["id"], outputs.get("blocks", {})
        self.ids += ids
        self.subjects += batch.get("subject", ids)
        self.texts += [tuple(each) for each in batch.get("sentences", [[] for _ in ids])]
        self.gaze += batch["has_gaze"].tolist() if "gaze" in batch else [False] * len(ids)
        known = cohort.target_kind == "classes" and "target" in batch
        self.classes += batch["target"].tolist() if known else [UNKNOWN] * len(ids)
        for own, name in ((self.image, "image"), (self.text, "text")):
            found = {"image", "text"} <= set(blocks)
            own.append(blocks[name].detach().float().cpu().numpy() if found else np.zeros((len(ids), 0), np.float32))

    @classmethod
    def merge(cls, parts: Sequence[Aligned]) -> Aligned:
        """The samples of all processes, sorted by id, each once; distributed samplers pad with copies."""
        parts = [part for part in parts if part.ids]
        _, first = np.unique(np.array([name for part in parts for name in part.ids], dtype=object), return_index=True)
        whole = cls()
        for name in ("ids", "subjects", "texts", "gaze", "classes"):
            values = [value for part in parts for value in getattr(part, name)]
            setattr(whole, name, [values[row] for row in first])
        whole.image, whole.text = (
            [np.concatenate([each for part in parts for each in getattr(part, name)])[first]]
            for name in ("image", "text")
        )
        return whole

    def cosines(self, images: Sequence[int], texts: Sequence[int]) -> Array:
        """`(images, texts)` cosines of samples, rounded to what float32 can tell apart.

        Raises:
            NothingToShow: when the steps returned no vectors.
        """
        image, text = (np.concatenate(part)[list(rows)] for part, rows in ((self.image, images), (self.text, texts)))
        if not image.shape[1]:
            raise NothingToShow("the test steps return no blocks image and text")
        lengths = [np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (image, text)]
        found: Array = np.round((image / lengths[0]) @ (text / lengths[1]).T, DECIMALS)
        return found

    @property
    def written(self) -> list[int]:
        """Positions of the samples that have sentences."""
        return [row for row, text in enumerate(self.texts) if text]


def chosen_readings(aligned: Aligned, count: int) -> list[int]:
    """Positions of the first samples by id that have gaze; or sentences, where none has gaze."""
    rows = aligned.written
    with_gaze = [row for row in rows if aligned.gaze[row]]
    return sorted(with_gaze or rows, key=aligned.ids.__getitem__)[:count]


def spread(aligned: Aligned, rows: Sequence[int], count: int) -> list[int]:
    """The first `count` of some samples by id, taken from each class in turn."""
    order: dict[int, tuple[int, int]] = {}
    seen: dict[int, int] = {}
    for row in sorted(rows, key=aligned.ids.__getitem__):
        code = aligned.classes[row]
        order[row] = (seen.get(code, 0), code if code != UNKNOWN else len(rows))
        seen[code] = seen.get(code, 0) + 1
    return sorted(order, key=order.__getitem__)[:count]


def similarity(aligned: Aligned, cohort: Cohort) -> Similarity:
    """The cosines of some images with the texts of the same samples, sorted by class.

    Raises:
        NothingToShow: when there are fewer than two samples with sentences, or no vectors.
    """
    rows = spread(aligned, aligned.written, MOST_SAMPLES)
    if len(rows) < 2:
        raise NothingToShow(f"a similarity matrix needs two samples with sentences; the test has {len(rows)}")
    # Unknown classes come last.
    rows.sort(key=lambda row: (aligned.classes[row] == UNKNOWN, aligned.classes[row], aligned.ids[row]))
    codes = np.array([aligned.classes[row] for row in rows])
    alike = np.array([[aligned.texts[a] == aligned.texts[b] for b in rows] for a in rows])
    names = [class_name(cohort, code) for code in codes]
    subjects = len({aligned.subjects[row] for row in rows})
    return Similarity(aligned.cosines(rows, rows), alike, names if (codes != UNKNOWN).any() else [], subjects)


def texts_of_images(aligned: Aligned, cohort: Cohort) -> list[Query]:
    """For a few images the texts that are most like them; samples without sentences take no part.

    Raises:
        NothingToShow: when there are fewer than two different texts, or no vectors.
    """
    gallery = list(_different(aligned).values())
    queries = spread(aligned, aligned.written, QUERIES)
    scores, of_text = aligned.cosines(queries, gallery), _classes_of_texts(aligned)
    hits = [_Item(row, of_text[aligned.texts[row]]) for row in gallery]
    return [
        _query(aligned, cohort, _Item(row, {aligned.classes[row]}), hits, values)
        for row, values in zip(queries, scores, strict=True)
    ]


def images_of_texts(aligned: Aligned, cohort: Cohort) -> list[Query]:
    """For a few texts the images that are most like them; samples without sentences take no part.

    Raises:
        NothingToShow: when there are fewer than two different texts, or no vectors.
    """
    gallery = aligned.written
    queries = spread(aligned, list(_different(aligned).values()), QUERIES)
    scores, of_text = aligned.cosines(gallery, queries).T, _classes_of_texts(aligned)
    hits = [_Item(row, {aligned.classes[row]}) for row in gallery]
    return [
        _query(aligned, cohort, _Item(row, of_text[aligned.texts[row]]), hits, values)
        for row, values in zip(queries, scores, strict=True)
    ]


def class_name(cohort: Cohort, code: int) -> str:
    """The name of a class of the target; empty where it is not known."""
    return cohort.target.classes[code] if code != UNKNOWN else ""


class _Item(NamedTuple):
    """A sample as an image or a text, and the classes that it belongs to."""

    row: int
    classes: Collection[int]


def _query(aligned: Aligned, cohort: Cohort, query: _Item, gallery: Sequence[_Item], scores: Array) -> Query:
    """What a query finds; items that tie are in a random order, and come before the right one in its rank."""
    right = np.array([aligned.texts[item.row] == aligned.texts[query.row] for item in gallery])
    order = np.lexsort((np.random.default_rng(0).permutation(len(gallery)), -scores))
    classes = [set(item.classes) - {UNKNOWN} for item in (query, *gallery)]
    hits = [
        Hit(
            aligned.ids[gallery[k].row],
            aligned.texts[gallery[k].row],
            _label(cohort, gallery[k].classes),
            float(scores[k]),
            right=bool(right[k]),
            same_class=bool(classes[0] & classes[k + 1]) if classes[0] and classes[k + 1] else None,
        )
        for k in order[:HITS].tolist()
    ]
    rank = 1 + int((~right & (scores >= scores[right].max())).sum())
    label = _label(cohort, query.classes)
    return Query(aligned.ids[query.row], aligned.texts[query.row], label, tuple(hits), rank, len(gallery))


def _label(cohort: Cohort, classes: Collection[int]) -> str:
    names = [class_name(cohort, code) for code in sorted(classes) if code != UNKNOWN]
    return " or ".join(names if len(names) < 3 else [names[0], f"{len(names) - 1} others"])


def _different(aligned: Aligned) -> dict[tuple[str, ...], int]:
    """Each text and the first sample that has it."""
    found: dict[tuple[str, ...], int] = {}
    for row in aligned.written:
        found.setdefault(aligned.texts[row], row)
    if len(found) < 2:
        raise NothingToShow(f"retrieval needs two different texts; the test has {len(found)}")
    return found


def _classes_of_texts(aligned: Aligned) -> dict[tuple[str, ...], set[int]]:
    found: dict[tuple[str, ...], set[int]] = {}
    for text, code in zip(aligned.texts, aligned.classes, strict=True):
        found.setdefault(text, set()).add(code)
    return found


WAYS: dict[str, Callable[[Aligned, Cohort], list[Query]]] = {
    "image_to_text": texts_of_images,
    "text_to_image": images_of_texts,
}
