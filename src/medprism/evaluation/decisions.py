"""One view of every classification task: some classes, each scored against the rest.

A binary target has one such class (the last, the positive one), a target of K > 2 classes has K, and a multi-label
target has one a label. So every metric is written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medprism.cohort import UNKNOWN, Cohort
from medprism.evaluation.predictions import Array, Predictions, check_codes

Bools = NDArray[np.bool_]
Kind = Literal["binary", "classes", "labels"]


@dataclass(frozen=True)
class Decisions:
    """The classification of n samples, for C classes against the rest.

    Attributes:
        kind: `binary` (C = 1), `classes` (exactly one of C holds) or `labels` (any of C).
        names: the C class names.
        scores: `(n, C)` probability of each class.
        positives: `(n, C)` whether the sample is known to be of the class.
        negatives: `(n, C)` whether it is known not to be.
        predicted: `(n, C)` whether the method chose the class: the likeliest one; for labels, those at 0.5 or more.
        correct: `(n,)` 1 where the choice is right, else 0; for labels, the share of known labels that are right.
        confidence: `(n, E)` probabilities whose calibration is measured: of the positive class, of the chosen class
            (more than two classes), or of every label; NaN where the truth is unknown.
        hit: `(n, E)` whether what that probability stands for came true.
    """

    kind: Kind
    names: tuple[str, ...]
    scores: Array
    positives: Bools
    negatives: Bools
    predicted: Bools
    correct: Array
    confidence: Array
    hit: Bools

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: Array) -> Decisions:
        """The given rows: indices, or a boolean mask."""
        arrays = (self.scores, self.positives, self.negatives, self.predicted, self.correct, self.confidence, self.hit)
        return Decisions(self.kind, self.names, *(array[rows] for array in arrays))

    @classmethod
    def of_classes(cls, probabilities: Array, target: Array, names: tuple[str, ...]) -> Decisions:
        """Decisions for one of K classes.

        Args:
            probabilities: `(n, K)`.
            target: `(n,)` class codes, all known.
            names: the K class names.
        """
        codes = np.array([1]) if len(names) == 2 else np.arange(len(names))
        chosen = probabilities.argmax(axis=1)
        positives = target[:, None] == codes
        binary = len(names) == 2
        return cls(
            kind="binary" if binary else "classes",
            names=tuple(names[k] for k in codes),
            scores=probabilities[:, codes],
            positives=positives,
            negatives=~positives,
            predicted=chosen[:, None] == codes,
            correct=(chosen == target).astype(np.float64),
            confidence=probabilities[:, [1]] if binary else probabilities.max(axis=1, keepdims=True),
            hit=positives if binary else (chosen == target)[:, None],
        )

    @classmethod
    def of_labels(cls, probabilities: Array, target: Array, names: tuple[str, ...]) -> Decisions:
        """Decisions for any of K labels.

        Args:
            probabilities: `(n, K)`.
            target: `(n, K)` with 1 and 0; negative or NaN where unknown.
            names: the K label names.
        """
        known = target >= 0  # False for NaN too
        positives = known & (target >= 0.5)
        predicted = probabilities >= 0.5
        right = (predicted == positives) & known
        return cls(
            kind="labels",
            names=names,
            scores=probabilities,
            positives=positives,
            negatives=known & ~positives,
            predicted=predicted,
            correct=right.sum(axis=1) / np.maximum(known.sum(axis=1), 1),
            confidence=np.where(known, probabilities, np.nan),
            hit=positives,
        )


@dataclass(frozen=True)
class Counts:
    """Sums over samples, each taken as often as its weight says, for any leading shape such as resamples x groups.

    Attributes:
        kind: as in `Decisions`.
        n: `(...)` samples.
        correct: `(...)` of which right.
        pos: `(..., C)` samples known to be of each class.
        neg: `(..., C)` samples known not to be.
        tp: `(..., C)` of `pos`, those for which the class was predicted.
        fp: `(..., C)` of `neg`, those for which the class was predicted.
    """

    kind: Kind
    n: Array
    correct: Array
    pos: Array
    neg: Array
    tp: Array
    fp: Array

    @property
    def accuracy(self) -> Array:
        """`(...)` share of right samples."""
        return ratio(self.correct, self.n)

    @property
    def tpr(self) -> Array:
        """`(..., C)` true positive rate; NaN without positives."""
        return ratio(self.tp, self.pos)

    @property
    def fpr(self) -> Array:
        """`(..., C)` false positive rate; NaN without negatives."""
        return ratio(self.fp, self.neg)

    @property
    def selected(self) -> Array:
        """`(..., C)` share of samples for which the class was predicted."""
        return ratio(self.tp + self.fp, self.pos + self.neg)

    def metrics(self) -> dict[str, Array]:
        """The threshold metrics, `(...)` each; macro averages over the classes for which they are defined.

        Balanced accuracy is the mean recall over all classes (for labels, over each label and its absence).
        """
        tpr, tnr = self.tpr, 1 - self.fpr
        f1 = ratio(2 * self.tp, self.tp + self.fp + self.pos)
        balanced = mean(tpr) if self.kind == "classes" else mean((tpr + tnr) / 2)
        return {
            "accuracy": self.accuracy,
            "balanced_accuracy": balanced,
            "sensitivity": mean(tpr),
            "specificity": mean(tnr),
            "f1": mean(f1),
        }


@dataclass(frozen=True)
class Groups:
    """An attribute of n samples.

    Attributes:
        name: of the attribute.
        classes: names of its groups.
        codes: `(n,)` group of each sample; -1 where it is unknown, or its group is smaller than asked for.
    """

    name: str
    classes: tuple[str, ...]
    codes: Array


def known_only(predictions: Predictions, cohort: Cohort) -> tuple[Predictions, list[str]]:
    """Check predictions against their cohort and leave out the samples whose target is unknown.

    Returns:
        The predictions with a known target, and sentences that say what was left out.

    Raises:
        ValueError: when there is no target, or numbers are no probabilities of the cohort's classes.
    """
    target, probabilities, kind = predictions.target, predictions.probabilities, cohort.target_kind
    if target is None:
        raise ValueError("these predictions have no target, so nothing can be measured; save them instead")
    expected = 1 if kind == "value" else len(cohort.target.classes)
    if probabilities.shape[1] != expected:
        raise ValueError(
            f"predictions have {probabilities.shape[1]} columns, but target '{cohort.target.name}' of cohort "
            f"'{cohort.name}' needs {expected}: {list(cohort.target.classes) or 'the value'}"
        )
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.all():
        name = predictions.ids[int(np.argmin(finite))]
        raise ValueError(f"the prediction for '{name}' is not finite ({int((~finite).sum())} in all): did it diverge?")
    if kind != "value" and len(probabilities):
        total = probabilities.sum(axis=1) if kind == "classes" else np.ones(1)
        # half precision rounds sums of probabilities by about a hundredth
        if probabilities.min() < 0 or probabilities.max() > 1 or np.abs(total - 1).max() > 0.02:
            wanted = "rows in [0, 1] that sum to 1: apply softmax" if kind == "classes" else "[0, 1]: apply sigmoid"
            raise ValueError(f"'probabilities' hold {probabilities[0]} in the first row; expected {wanted}")
    if kind == "classes":
        check_codes(target, cohort.target)
        known = target != UNKNOWN
    else:
        known = np.isfinite(target) if kind == "value" else (target >= 0).any(axis=1)
    missing = int((~known).sum())
    notes = [f"target {cohort.target.name} is unknown for {missing} of {len(known)} samples; left out"]
    return (predictions.take(known), notes) if missing else (predictions, [])


def decide(predictions: Predictions, cohort: Cohort) -> Decisions:
    """The one-against-the-rest view of predictions with known targets (classes or labels)."""
    assert predictions.target is not None
    build = Decisions.of_classes if cohort.target_kind == "classes" else Decisions.of_labels
    return build(predictions.probabilities, predictions.target, cohort.target.classes)


def group(predictions: Predictions, cohort: Cohort, min_group: int = 1) -> tuple[list[Groups], list[str]]:
    """The groups of every attribute of the cohort, with sentences on unknown values and small or absent groups.

    Args:
        predictions: n samples.
        cohort: names attributes and their classes.
        min_group: groups with fewer samples are left out.
    """
    found, notes = [], []
    for factor in cohort.attributes:
        if factor.name not in predictions.attributes:
            notes.append(f"{factor.name}: the cohort declares it, but the predictions do not carry it")
            continue
        codes = predictions.attributes[factor.name].copy()
        check_codes(codes, factor)
        if unknown := int((codes == UNKNOWN).sum()):
            notes.append(f"{factor.name}: unknown for {unknown} of {len(codes)} samples; left out of its groups")
        for g, name in enumerate(factor.classes):
            n = int((codes == g).sum())
            if n == 0:
                notes.append(f"{factor.name} {name}: no sample")
            elif n < min_group:
                notes.append(f"{factor.name} {name}: {n} samples, fewer than min_group = {min_group}; left out")
                codes[codes == g] = UNKNOWN
        found.append(Groups(factor.name, factor.classes, codes))
    return found, notes


def distinct_rows(table: Array) -> tuple[Array, Array, Array]:
    """The distinct rows of an `(n, k)` table of few values a column, much faster than numpy's `unique`.

    Returns:
        The `(d, k)` rows in lexicographic order, which of them each row is, `(n,)`, and how often each occurs, `(d,)`.
    """
    code = np.zeros(len(table), dtype=np.int64)  # one number a row, in the order of the rows
    for column in table.T:
        values, level = np.unique(column, return_inverse=True)
        code = np.unique(code * max(len(values), 1) + level, return_inverse=True)[1]
    _, first, sizes = np.unique(code, return_index=True, return_counts=True)
    return table[first], code, sizes


def ratio(above: Array, below: Array) -> Array:
    """`above / below`, NaN where `below` is zero."""
    above, below = np.broadcast_arrays(above, below)
    found: Array = np.divide(above, below, out=np.full(below.shape, np.nan), where=below != 0)
    return found


def mean(x: Array) -> Array:
    """Mean over the last axis of what is defined (not NaN); NaN where nothing is."""
    defined = ~np.isnan(x)
    return ratio(np.where(defined, x, 0).sum(axis=-1), defined.sum(axis=-1).astype(np.float64))
