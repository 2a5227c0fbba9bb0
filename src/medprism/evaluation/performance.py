"""How well a method predicts its target.

The positive class of a binary target is its last class. With more than two classes, and for labels, AUROC, AUPRC,
sensitivity, specificity and F1 are macro averages of each class against the rest, over the classes for which they are
defined. What a set cannot define (the AUROC of a single class) is None, and a note says so.
"""

from __future__ import annotations

import numpy as np
import torch
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.functional.regression import mean_absolute_error, pearson_corrcoef, r2_score

from medprism.cohort import Cohort
from medprism.evaluation.decisions import Counts, Decisions, decide, known_only
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.weighted import CALIBRATION_BINS

Values = dict[str, float | None]


def performance(predictions: Predictions, cohort: Cohort) -> tuple[Values, list[str]]:
    """All performance metrics of a set of predictions.

    Args:
        predictions: with a target; samples whose target is unknown are left out.
        cohort: says what the target is.

    Returns:
        For classes and labels `auroc`, `auprc`, `accuracy`, `balanced_accuracy`, `sensitivity`, `specificity`, `f1` and
        `calibration_error`; for a value `mae`, `r2` and `pearson`. And sentences on what was left out.
    """
    known, notes = known_only(predictions, cohort)
    if cohort.target_kind == "value":
        assert known.target is not None
        return regression(known.probabilities[:, 0], known.target), notes
    decisions = decide(known, cohort)
    return classification(decisions), notes + missing_classes(decisions, f"target {cohort.target.name}")


def classification(decisions: Decisions) -> Values:
    """The performance metrics of n classified samples; the threshold is the likeliest class, or 0.5 for labels."""
    # imported here: only evaluation needs scikit-learn, and every command would wait for it
    from sklearn.metrics import average_precision_score

    columns = [
        (decisions.positives[mask, c], decisions.scores[mask, c])
        for c in range(len(decisions.names))
        if decisions.positives[mask := decisions.positives[:, c] | decisions.negatives[:, c], c].any()
    ]
    return {
        "auroc": auroc(decisions),
        "auprc": _plain(np.mean([average_precision_score(*column) for column in columns])) if columns else None,
        **{name: _plain(value) for name, value in count(decisions).metrics().items()},
        "calibration_error": calibration_error(decisions),
    }


def auroc(decisions: Decisions) -> float | None:
    """Area under the receiver operating characteristic, macro over the classes that have positives and negatives.

    scikit-learn's, in float64: torchmetrics accumulates in float32, so that the AUROC of a perfect method may not be 1.
    """
    from sklearn.metrics import roc_auc_score

    values = []
    for c in range(len(decisions.names)):
        mask = decisions.positives[:, c] | decisions.negatives[:, c]
        truth = decisions.positives[mask, c]
        if truth.any() and not truth.all():
            values.append(roc_auc_score(truth, decisions.scores[mask, c]))
    return float(np.mean(values)) if values else None


def calibration_error(decisions: Decisions) -> float | None:
    """Expected calibration error (L1, 15 equal bins): of the positive class, of the chosen class, or of all labels.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017; torchmetrics.
    """
    known = ~np.isnan(decisions.confidence)
    if not known.any():
        return None
    confidence, hit = torch.tensor(decisions.confidence[known]), torch.tensor(decisions.hit[known])
    return float(binary_calibration_error(confidence, hit.long(), n_bins=CALIBRATION_BINS))


def count(decisions: Decisions) -> Counts:
    """The outcome counts of n samples."""
    d = decisions
    return Counts(
        kind=d.kind,
        n=np.array(float(len(d))),
        correct=d.correct.sum(),
        pos=d.positives.sum(axis=0).astype(np.float64),
        neg=d.negatives.sum(axis=0).astype(np.float64),
        tp=(d.positives & d.predicted).sum(axis=0).astype(np.float64),
        fp=(d.negatives & d.predicted).sum(axis=0).astype(np.float64),
    )


def regression(predicted: Array, target: Array) -> Values:
    """Mean absolute error, coefficient of determination and Pearson correlation of `(n,)` predicted values."""
    p, y = torch.tensor(predicted), torch.tensor(target)
    varies = len(y) >= 2 and np.ptp(target) > 0
    return {
        "mae": float(mean_absolute_error(p, y)),
        "r2": float(r2_score(p, y)) if varies else None,
        # correlation does not change under shifts, and centred numbers keep their digits
        "pearson": float(pearson_corrcoef(p - y.mean(), y - y.mean())) if varies and np.ptp(predicted) > 0 else None,
    }


def missing_classes(decisions: Decisions, where: str) -> list[str]:
    """Sentences on classes that have no positive or no negative sample."""
    notes = []
    for c, name in enumerate(decisions.names):
        for kind, found in (("", decisions.positives[:, c]), ("not ", decisions.negatives[:, c])):
            if not found.any():
                notes.append(f"{where}: no sample is {kind}{name}; metrics that need one leave it out")
    return notes


def _plain(value: Array | float) -> float | None:
    return None if np.isnan(value) else float(value)
