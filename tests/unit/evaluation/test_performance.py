from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from torchmetrics.functional import classification as tm

from medprism.cohort import Cohort
from medprism.evaluation import Predictions
from medprism.evaluation.performance import performance

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


@pytest.mark.parametrize("seed", range(3))
def test_binary_equals_sklearn_and_torchmetrics(seed: int, cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(seed=seed)
    y, score, chosen = p.target, p.probabilities[:, 1], p.probabilities.argmax(1)
    values, notes = performance(p, cohort_of())
    expected = {
        "auroc": sk.roc_auc_score(y, score),
        "auprc": sk.average_precision_score(y, score),
        "accuracy": sk.accuracy_score(y, chosen),
        "balanced_accuracy": sk.balanced_accuracy_score(y, chosen),
        "sensitivity": sk.recall_score(y, chosen),
        "specificity": sk.recall_score(y, chosen, pos_label=0),
        "f1": sk.f1_score(y, chosen),
        "calibration_error": float(tm.binary_calibration_error(torch.tensor(score), torch.tensor(y))),
    }
    assert values == pytest.approx(expected, abs=1e-12) and notes == []
    assert values["auroc"] == pytest.approx(float(tm.binary_auroc(torch.tensor(score), torch.tensor(y))), abs=1e-6)


def test_more_classes_are_macro_averages(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(classes=4)
    y, chosen = p.target, p.probabilities.argmax(1)
    values, _ = performance(p, cohort_of(("a", "b", "c", "d")))
    t, q = torch.tensor(y), torch.tensor(p.probabilities)
    assert values == pytest.approx(
        {
            "auroc": sk.roc_auc_score(y, p.probabilities, multi_class="ovr"),
            "auprc": sk.average_precision_score(np.eye(4)[y], p.probabilities),
            "accuracy": sk.accuracy_score(y, chosen),
            "balanced_accuracy": sk.balanced_accuracy_score(y, chosen),
            "sensitivity": sk.recall_score(y, chosen, average="macro"),
            "specificity": float(tm.multiclass_specificity(q, t, 4, average="macro")),
            "f1": sk.f1_score(y, chosen, average="macro"),
            "calibration_error": float(tm.multiclass_calibration_error(q, t, 4)),
        },
        abs=1e-6,
    )
    absent = p.take(y != 3)
    values, notes = performance(absent, cohort_of(("a", "b", "c", "d")))
    aucs = [sk.roc_auc_score(absent.target == k, absent.probabilities[:, k]) for k in range(3)]
    assert values["auroc"] == pytest.approx(np.mean(aucs))  # a class that is not there counts for nothing, not for 0
    assert notes == ["target disease: no sample is d; metrics that need one leave it out"]


def test_labels_average_over_known_labels(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(classes=3, kind="labels")
    assert p.target is not None
    values, notes = performance(p, cohort_of(("a", "b", "c"), "labels"))
    known = [p.target[:, k] >= 0 for k in range(3)]
    columns = [(p.target[m, k], p.probabilities[m, k]) for k, m in enumerate(known)]
    assert values["auroc"] == pytest.approx(np.mean([sk.roc_auc_score(*c) for c in columns]))
    assert values["auprc"] == pytest.approx(np.mean([sk.average_precision_score(*c) for c in columns]))
    assert values["f1"] == pytest.approx(np.mean([sk.f1_score(y, s >= 0.5) for y, s in columns]))
    unknown = int((p.target < 0).all(axis=1).sum())
    assert unknown and f"unknown for {unknown} of 120 samples" in notes[0]


def test_regression_equals_sklearn(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(kind="value")
    q = p.probabilities[:, 0]
    values, _ = performance(p, cohort_of((), "value"))
    expected = sk.mean_absolute_error(p.target, q), sk.r2_score(p.target, q), np.corrcoef(p.target, q)[0, 1]
    assert list(values.values()) == pytest.approx(expected, abs=1e-9)
    constant = dataclasses.replace(p, probabilities=np.ones((120, 1)))
    assert performance(constant, cohort_of((), "value"))[0]["pearson"] is None


def test_perfect_constant_and_inverted(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    perfect = dataclasses.replace(p, probabilities=np.eye(2)[p.target])
    values, _ = performance(perfect, cohort_of())
    assert values.pop("calibration_error") == 0 and all(value == 1 for value in values.values())
    constant = dataclasses.replace(p, probabilities=np.full((120, 2), 0.5))
    values, _ = performance(constant, cohort_of())
    assert values["auroc"] == 0.5 and (values["sensitivity"], values["specificity"]) == (0, 1)
    inverted = dataclasses.replace(perfect, probabilities=perfect.probabilities[:, ::-1])
    assert performance(inverted, cohort_of())[0]["auroc"] == 0  # the last class is the positive one


def test_unknown_targets_are_left_out_and_counted(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    assert p.target is not None
    hidden = dataclasses.replace(p, target=np.where(np.arange(120) < 30, -1, p.target))
    values, notes = performance(hidden, cohort_of())
    assert values == performance(p.take(np.arange(120) >= 30), cohort_of())[0]
    assert notes == ["target disease is unknown for 30 of 120 samples; left out"]


def test_a_single_class_is_none_not_nan(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    values, notes = performance(p.take(p.target == 1), cohort_of())
    assert values["auroc"] is None and values["specificity"] is None and values["sensitivity"] is not None
    assert notes == ["target disease: no sample is not autism; metrics that need one leave it out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.full((120, 2), 3.0)}, "apply softmax"),
        ({"probabilities": np.full((120, 2), 0.2)}, "sum to 1"),
        ({"probabilities": np.full((120, 2), np.nan)}, "'scan0000' is not finite"),
        ({"probabilities": np.full((120, 3), 1 / 3)}, "3 columns, but target 'disease'.* needs 2"),
        ({"target": None}, "no target"),
        ({"target": np.full(120, 2)}, "'disease' has code 2"),
    ],
)
def test_errors_teach(change: dict[str, object], message: str, cohort_of: MakeCohort, predictions_of: Make) -> None:
    with pytest.raises(ValueError, match=message):
        performance(dataclasses.replace(predictions_of(), **change), cohort_of())  # type: ignore[arg-type]
