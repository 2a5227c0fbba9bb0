"""Zero-shot classification beside what a constant predictor reaches.

The probabilities of an image-text method's target are its zero-shot scores: images against the cohort's phrases of each
class. A method that calls everybody the same has the accuracy of the most frequent class, which may look like skill:
so accuracy, macro-F1 and AUROC stand side by side with those of the constant predictor, and a note says when nearly
everybody gets one class, or when the scores rank the classes backwards.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from medprism.cohort import Cohort
from medprism.evaluation.averages import numbers, plain
from medprism.evaluation.decisions import known_only, mean, ratio
from medprism.evaluation.heads import Number
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.weighted import Path, subject_codes

NEARLY_ALL = 0.95
"""Share of the samples from which on a method is said to predict one class for nearly everybody."""

BACKWARDS = 0.4
"""AUROC below which, and with its whole interval below 0.5, a note doubts the order of the classes."""


class Confusion:
    """Accuracy and macro-F1 of predicted classes, for many resamples at once.

    Macro-F1 is the mean over the classes that are true or predicted for somebody, for two classes over both.

    Args:
        target: `(n,)` true classes.
        predicted: `(n,)` predicted classes.
        classes: number of classes K.
        subjects: `(n,)` subject codes.
        count: number of subjects S.
    """

    def __init__(self, target: Array, predicted: Array, classes: int, subjects: Array, count: int) -> None:
        self.classes = classes
        cell = (subjects * classes + target) * classes + predicted
        self.cells = np.bincount(cell, minlength=count * classes**2).reshape(count, -1).astype(np.float64)

    def __call__(self, counts: Array) -> tuple[Array, Array]:
        """`(B, S)` counts to accuracy and macro-F1, `(B,)` each."""
        table = (counts @ self.cells).reshape(-1, self.classes, self.classes)
        hits = np.diagonal(table, axis1=1, axis2=2)
        f1 = ratio(2 * hits, table.sum(axis=1) + table.sum(axis=2))
        return ratio(hits.sum(axis=1), table.sum(axis=(1, 2))), mean(f1)


def zero_shot(
    predictions: Predictions,
    cohort: Cohort,
    performance: Mapping[str, Number],
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Zero-shot scores beside those of a constant predictor.

    Args:
        predictions: of an image-text method.
        cohort: names the classes, in the order of their codes.
        performance: of the same predictions, from `medprism.evaluation.report.evaluate`.
        resamples: bootstrap resamples of subjects; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.

    Returns:
        `accuracy`, `macro_f1` and `auroc`; `constant`, the same of a predictor that always says the most frequent
        class, and that `class`; `most_predicted`, a `class` and the `share` of samples that it is predicted for; `n`.
        Empty unless the target is one of several classes. And sentences that warn of a constant predictor and of
        scores that rank the classes backwards.
    """
    if cohort.target_kind != "classes":
        return {}, [f"zero-shot: target {cohort.target.name} is not one of several classes; see performance"]
    known = known_only(predictions, cohort)[0]
    assert known.target is not None
    names, (subjects, people) = cohort.target.classes, subject_codes(known.subjects)
    predicted = known.probabilities.argmax(axis=1)
    frequent, common = (int(np.bincount(codes).argmax()) for codes in (known.target, predicted))
    always = np.full(len(known), frequent)
    measured = [Confusion(known.target, each, len(names), subjects, len(people)) for each in (predicted, always)]

    def statistic(counts: Array) -> dict[Path, Array]:
        (_, ours), (accuracy, f1) = (confusion(counts) for confusion in measured)
        return {("macro_f1",): ours, ("constant", "accuracy"): accuracy, ("constant", "macro_f1"): f1}

    found = numbers(statistic, np.bincount(subjects), resamples, confidence, seed)
    share = float((predicted == common).mean())
    notes = []
    if share >= NEARLY_ALL:
        notes.append(
            f"zero-shot: '{names[common]}' is predicted for {int((predicted == common).sum())} of {len(known)} "
            f"samples, so this is (nearly) a constant predictor; always saying '{names[frequent]}' has accuracy "
            f"{found['constant', 'accuracy']['value']:.3f} and macro-F1 {found['constant', 'macro_f1']['value']:.3f}"
        )
    auroc = performance["auroc"]
    if auroc["value"] is not None and auroc["value"] < BACKWARDS and (auroc["high"] or 0.0) < 0.5:
        notes.append(
            f"zero-shot: AUROC is {auroc['value']:.3f}, so the scores rank the classes backwards; are the phrases "
            f"in the order of the classes {list(names)}?"
        )
    return {
        "accuracy": performance["accuracy"],
        "macro_f1": found["macro_f1",],
        "auroc": auroc,
        "constant": {
            "class": names[frequent],
            "accuracy": found["constant", "accuracy"],
            "macro_f1": found["constant", "macro_f1"],
            "auroc": plain(0.5),
        },
        "most_predicted": {"class": names[common], "share": plain(share)},
        "n": len(known),
    }, notes
