"""What every latent block knows of every factor, and what the blocks know of each other.

A method that takes a representation apart promises that a block named after a factor knows this factor and no other.
On samples in which the factors are independent (the test set `balanced`) the promise is a matrix: blocks in rows,
factors in columns, high on the diagonal and at chance beside it.

- `knn`: 30 nearest neighbours among the training latents, scored on the test samples.
- `linear`, `mlp`: probes fitted and scored on the test samples by cross-fitting, 5 folds of subjects, so that they
  learn no correlation of the training set.
- `linear_within`, `mlp_within`: the same for attributes among the samples of one target class, mean over the classes:
  what a block says of the attribute beyond what the target says.

All are balanced accuracies, with chance at one over the number of classes. Mutual information between blocks is
measured by critics that are trained afresh on frozen latents: the critics of a training run may lag behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import torch
from rich.table import Table

from medprism.cohort import UNKNOWN, Cohort, Factor
from medprism.evaluation.bootstrap import intervals
from medprism.evaluation.critics import fresh_critic_mi
from medprism.evaluation.decisions import Decisions
from medprism.evaluation.heads import Number
from medprism.evaluation.leakage import factor_codes
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.probes import Probe, Probed, cross_probe, probe
from medprism.evaluation.weighted import Path, Statistic, Tally, subject_codes

BALANCED, SAME = "balanced", "same"
"""The test sets in which factors are independent, and in which they are correlated as in training."""

MEASURES = ("knn", "linear", "mlp")

MOST = 10_000
"""Samples that probes and critics see at most, drawn at random, to bound their time."""

Latent = dict[str, Any]

Matrix = dict[str, dict[str, dict[str, dict[str, float | None]]]]
"""Block to factor to measure to `value`, `low`, `high` and `chance`."""


def latent(
    reference: Predictions,
    test: Predictions,
    cohort: Cohort,
    sets: Mapping[str, Predictions] | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    steps: int = 300,
    device: torch.device | str = "cpu",
) -> tuple[Latent, list[str]]:
    """Ask every block for every factor, the target's head for the attributes, and the blocks for each other.

    Args:
        reference: training samples with blocks.
        test: samples with the same blocks.
        cohort: names the factors.
        sets: test sets; `balanced` is what the matrix is measured on, else the whole test, and `same` what the mutual
            information is measured on, else a part of the training subjects that the critics do not see.
        bootstrap: resamples of subjects for the intervals; the fitted probes stay. 0 for none.
        confidence: of the intervals.
        seed: of all draws.
        steps: training steps of the critics.
        device: where the critics are trained.

    Returns:
        `set`, `n` and `subjects` of the matrix; `own`, block to the factor it is named after; `matrix`, block to factor
        to measure to `value`, `low`, `high` and `chance`; `dominance` of each measure (see the function);
        `switched_label`, attribute to the agreement of the target's
        predicted class with the attribute's class, beside that of the true class; `mutual_information`, pair of
        blocks to `estimate` and `floor` in nat. And sentences on what was left out.
    """
    sets = sets or {}
    notes = []
    where = BALANCED if BALANCED in sets else "test"
    if where != BALANCED:
        notes.append(
            "latent: there is no test set 'balanced'; in the whole test factors may be correlated, so that a block may "
            "tell one from another"
        )
    scored, reference = _at_most(sets.get(BALANCED, test), seed), _at_most(reference, seed)
    found, remarks = matrix(reference, scored, cohort, bootstrap, confidence, seed)
    switched, more = switched_label(scored, cohort, bootstrap, confidence, seed)
    held_out = _at_most(sets[SAME], seed) if SAME in sets else None
    information, rest = _information(reference, held_out, cohort, steps, seed, device)
    return {
        "set": where,
        "n": len(scored),
        "subjects": len(set(scored.subjects)),
        "own": {block: name for block in found if (name := factor_of(block, cohort))},
        "matrix": found,
        "dominance": {
            measure: {"value": dominance(found, cohort, measure), "low": None, "high": None} for measure in MEASURES
        },
        "switched_label": switched,
        "mutual_information": information,
    }, [*notes, *remarks, *more, *rest]


def matrix(
    reference: Predictions, test: Predictions, cohort: Cohort, bootstrap: int, confidence: float, seed: int
) -> tuple[Matrix, list[str]]:
    """Block to factor to the balanced accuracy of each measure, and sentences on what was left out.

    Args:
        reference: samples with blocks, to fit the neighbours on.
        test: samples with the same blocks.
        cohort: names the factors.
        bootstrap: resamples of subjects for the intervals; 0 for none.
        confidence: of the intervals.
        seed: of all draws.
    """
    people, names = subject_codes(test.subjects)
    probed: dict[Path, list[Probed]] = {}
    notes = []
    for block in test.blocks:
        for factor in factors_of(cohort):
            fit, score = factor_codes(reference, factor, cohort), factor_codes(test, factor, cohort)
            if fit is None or score is None or block not in reference.blocks:
                notes.append(f"latent: {factor.name} from {block}: not given for both sets; not probed")
                continue
            near, remarks = probe(reference.blocks[block], fit, test.blocks[block], score, factor.classes, "knn")
            if near:
                probed[block, factor.name, "knn"] = [near]
            crossed, more = _crossed(test, block, factor, score, people, cohort, seed)
            probed |= {(block, factor.name, measure): parts for measure, parts in crossed.items()}
            notes += [f"latent: {factor.name} from {block}: {remark}" for remark in remarks + more]
    tallies = {
        path: [Tally(decisions, [], people[rows]) for rows, decisions in parts] for path, parts in probed.items()
    }

    def statistic(counts: Array) -> dict[Path, Array]:
        return {
            path: np.mean([tally(counts)[0].metrics()["balanced_accuracy"][:, 0] for tally in each], axis=0)
            for path, each in tallies.items()
        }

    found: Matrix = {block: {} for block in test.blocks}
    for path, number in _numbers(statistic, np.bincount(people, minlength=len(names)), bootstrap, confidence, seed):
        block, name, measure = path
        of_chance = [1 / len(np.unique(np.nonzero(_truth(decisions))[1])) for _, decisions in probed[path]]
        found[block].setdefault(name, {})[measure] = {**number, "chance": float(np.mean(of_chance))}
    return found, list(dict.fromkeys(notes))


def dominance(found: Matrix, cohort: Cohort, measure: str) -> float | None:
    """Diagonal dominance: mean |c| of the diagonal over that mean plus the mean |c| beside the diagonal.

    c = (balanced accuracy - chance) / (1 - chance) is 0 at chance and 1 where a factor is read without error; for two
    classes this is the ratio of |balanced accuracy - 1/2|. The rows are the blocks that are named after a factor
    (`target` means the target), the columns all factors; the diagonal is each such block with its own factor. 1 is a
    representation that is taken apart, 1/2 one in which every block knows everything.

    Args:
        found: from `matrix`.
        cohort: names the factors.
        measure: of the matrix.

    Returns:
        A number in [0, 1]; None where no block is named after a factor, or all is at chance.
    """
    own: list[float] = []
    other: list[float] = []
    for block, row in found.items():
        name = factor_of(block, cohort)
        for factor, entry in row.items():
            if name is not None and measure in entry:
                value, chance = entry[measure]["value"] or 0.0, entry[measure]["chance"] or 0.0
                (own if factor == name else other).append(abs(value - chance) / (1 - chance))
    if not own or not other or not sum(own) + sum(other):
        return None
    diagonal, beside = float(np.mean(own)), float(np.mean(other))
    return diagonal / (diagonal + beside)


def switched_label(
    test: Predictions, cohort: Cohort, bootstrap: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """How often the class that the target's head predicts is the class of an attribute.

    A head that leans on an attribute calls its class instead of the target's. Class k of the target is compared with
    class k of the attribute, so this needs as many classes on both sides. Where the factors are independent a head
    that does not lean on the attribute agrees at chance; away from chance, in either direction, it does.

    Returns:
        Attribute to `value`, `low`, `high`, `chance` and `truth`, the agreement of the true target class with the
        attribute: what a perfect head reads. And sentences on attributes that cannot be compared.
    """
    found: dict[str, dict[str, float | None]] = {}
    notes = []
    if cohort.target_kind != "classes" or test.target is None:
        return {}, ["latent: switched labels need a target of several classes; not measured"]
    codes, names = subject_codes(test.subjects)
    predicted = test.probabilities.argmax(axis=1)
    for factor in cohort.attributes:
        if len(factor.classes) != len(cohort.target.classes):
            notes.append(
                f"latent: {factor.name} has {len(factor.classes)} classes, {cohort.target.name} has "
                f"{len(cohort.target.classes)}; no switched label"
            )
            continue
        values = test.attributes.get(factor.name, np.full(len(test), UNKNOWN))
        known = (values != UNKNOWN) & (test.target != UNKNOWN)
        if not known.any():
            notes.append(f"latent: {factor.name} is unknown for all samples; no switched label")
            continue
        agree = np.bincount(codes[known], predicted[known] == values[known], len(names))
        every = np.bincount(codes[known], minlength=len(names)).astype(np.float64)

        def share(counts: Array, agree: Array = agree, every: Array = every) -> dict[Path, Array]:
            with np.errstate(invalid="ignore"):
                return {("agreement",): (counts @ agree) / (counts @ every)}

        ((_, number),) = _numbers(share, np.bincount(codes), bootstrap, confidence, seed)
        truth = float((test.target[known] == values[known]).mean())
        found[factor.name] = {**number, "chance": 1 / len(factor.classes), "truth": truth}
    return found, notes


def factors_of(cohort: Cohort) -> list[Factor]:
    """The target, where it is one of several classes, and the attributes."""
    return [*([cohort.target] if cohort.target_kind == "classes" else []), *cohort.attributes]


def factor_of(block: str, cohort: Cohort) -> str | None:
    """The factor that a block is named after; `target` means the target."""
    names = {factor.name: factor.name for factor in factors_of(cohort)}
    return ({"target": cohort.target.name} | names).get(block)


def latent_table(metrics: Mapping[str, Any]) -> Table:
    """One row a block, one column a factor, each with its three measures; then what the blocks share."""
    found = metrics["latent"]
    factors = list(dict.fromkeys(factor for row in found["matrix"].values() for factor in row))
    simulated = " (simulated)" if metrics["simulated"] else ""
    what = "whole test" if found["set"] == "test" else f"test set {found['set']}"
    title = f"{metrics['cohort']}{simulated}: what blocks know, {what}, {found['n']} samples"
    shown = Table(title=f"{title}\nbalanced accuracy of {' / '.join(MEASURES)}")
    shown.add_column("block")
    for factor in factors:
        entries = [each for row in found["matrix"].values() for each in row.get(factor, {}).values()]
        chance = ", ".join(sorted({f"{each['chance']:.2f}" for each in entries}))
        shown.add_column(f"{factor} (chance {chance})", justify="right")
    for block, row in found["matrix"].items():
        cells = [" / ".join(_shown(row.get(factor, {}).get(measure)) for measure in MEASURES) for factor in factors]
        shown.add_row(block, *cells)
    switched = found["switched_label"]
    if switched:
        shown.add_section()
        cells = [
            f"{_shown(switched.get(f))} (truth {switched[f]['truth']:.3f})" if f in switched else "" for f in factors
        ]
        shown.add_row(f"predicted {metrics['target']} agrees with", *cells)
    lines = [f"{m} {_shown(found['dominance'][m])}" for m in MEASURES if found["dominance"][m]["value"] is not None]
    captions = [f"diagonal dominance: {', '.join(lines)}"] if lines else []
    for pair, each in found["mutual_information"].items():
        captions.append(f"I({pair}) = {_shown(each['estimate'])} nat (floor {_shown(each['floor'])})")
    shown.caption = "\n".join(captions) or None
    return shown


def _crossed(
    test: Predictions, block: str, factor: Factor, codes: Array, people: Array, cohort: Cohort, seed: int
) -> tuple[dict[str, list[Probed]], list[str]]:
    """Cross-fitted decisions of both probes, on all samples, and for an attribute on those of each target class."""
    found: dict[str, list[Probed]] = {}
    notes = []
    kinds: tuple[Probe, ...] = ("linear", "mlp")
    parts = {"": [("", np.arange(len(test)))]}
    if cohort.target_kind == "classes" and test.target is not None and factor is not cohort.target:
        parts["_within"] = [
            (f"within {cohort.target.name} {name}: ", np.flatnonzero(test.target == k))
            for k, name in enumerate(cohort.target.classes)
        ]
    for suffix, each in parts.items():
        for kind in kinds:
            for where, rows in each:
                x = test.blocks[block][rows]
                result, remarks = cross_probe(x, codes[rows], people[rows], factor.classes, kind, seed=seed)
                notes += [where + remark for remark in remarks]
                if result:
                    found.setdefault(kind + suffix, []).append((rows[result[0]], result[1]))
    return found, notes


def _truth(decisions: Decisions) -> Array:
    """`(n, classes)` which class holds."""
    positives = decisions.positives
    return np.column_stack([~positives, positives]) if decisions.kind == "binary" else positives


def _numbers(
    statistic: Statistic, sizes: Array, resamples: int, confidence: float, seed: int
) -> Iterator[tuple[Path, Number]]:
    """Every value of a statistic, with its interval over subjects."""
    points = statistic(np.ones((1, len(sizes))))
    ends = intervals(statistic, sizes, resamples, confidence, seed) if resamples and points else {}
    for path, value in points.items():
        low, high = (ends[path].low, ends[path].high) if ends else (None, None)
        yield path, {"value": float(value[0]), "low": low, "high": high}


def _information(
    reference: Predictions,
    held_out: Predictions | None,
    cohort: Cohort,
    steps: int,
    seed: int,
    device: torch.device | str,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Mutual information of all pairs of blocks that are named after factors, beside its floor I of their labels."""
    from sklearn.metrics import mutual_info_score

    named = [name for name in reference.blocks if factor_of(name, cohort) is not None]
    pairs = list(combinations(named, 2))
    if not pairs:
        return {}, ["latent: fewer than two blocks are named after factors; no mutual information between blocks"]
    blocks = {name: reference.blocks[name] for name in named}
    people, _ = subject_codes(reference.subjects)
    other = {name: held_out.blocks[name] for name in named} if held_out is not None else None
    try:
        values, n = fresh_critic_mi(blocks, pairs, people, other, steps=steps, seed=seed, device=device)
    except ValueError as error:  # too few people for it; the rest of the test goes on
        return {}, [f"latent: {error}; not measured"]
    by_name = {factor.name: factor for factor in factors_of(cohort)}
    found: dict[str, dict[str, Any]] = {}
    for (a, b), value in zip(pairs, values, strict=True):
        left, right = (factor_codes(reference, by_name[factor_of(name, cohort) or ""], cohort) for name in (a, b))
        floor = None
        if left is not None and right is not None and (known := (left != UNKNOWN) & (right != UNKNOWN)).any():
            floor = float(mutual_info_score(left[known], right[known]))
        found[f"{a}, {b}"] = {
            "estimate": {"value": value, "low": None, "high": None},
            "floor": {"value": floor, "low": None, "high": None},
            "set": SAME if held_out is not None else "held-out training subjects",
            "n": n,
        }
    return found, []


def _at_most(predictions: Predictions, seed: int) -> Predictions:
    if len(predictions) <= MOST:
        return predictions
    return predictions.take(np.sort(np.random.default_rng(seed).choice(len(predictions), MOST, replace=False)))


def _shown(number: Mapping[str, Any] | None) -> str:
    return "-" if number is None or number["value"] is None else f"{number['value']:.3f}"
