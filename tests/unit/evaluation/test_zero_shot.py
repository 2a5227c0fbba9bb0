from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import f1_score

from medprism.cohort import Cohort
from medprism.evaluation import Predictions, evaluate
from medprism.evaluation.zero_shot import zero_shot

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def measured(predictions: Predictions, cohort: Cohort, bootstrap: int = 30):  # type: ignore[no-untyped-def]
    return zero_shot(predictions, cohort, evaluate(predictions, cohort, bootstrap=bootstrap)["performance"], bootstrap)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_beside_a_constant_predictor(classes: int, predictions_of: Make, cohort_of: MakeCohort) -> None:
    p = predictions_of(classes=classes)
    found, notes = measured(p, cohort_of(tuple("abcde"[:classes])))
    predicted = p.probabilities.argmax(axis=1)
    assert found["accuracy"]["value"] == pytest.approx((predicted == p.target).mean())
    assert found["macro_f1"]["value"] == pytest.approx(f1_score(p.target, predicted, average="macro"))
    assert found["macro_f1"]["low"] < found["macro_f1"]["value"] < found["macro_f1"]["high"]
    frequent = int(np.bincount(p.target).argmax())
    constant = found["constant"]
    assert constant["class"] == "abcde"[frequent] and constant["auroc"]["value"] == 0.5
    assert constant["accuracy"]["value"] == pytest.approx((p.target == frequent).mean())
    always = np.full(len(p), frequent)
    assert constant["macro_f1"]["value"] == pytest.approx(f1_score(p.target, always, average="macro"))
    assert notes == [] and found["n"] == len(p)


def test_a_constant_predictor_is_exposed(predictions_of: Make, cohort_of: MakeCohort) -> None:
    p = predictions_of(n=100)
    target = (np.arange(100) < 77).astype(int)
    constant = replace(p, target=target, probabilities=np.tile([0.4, 0.6], (100, 1)))
    found, notes = measured(constant, cohort_of())
    assert found["accuracy"]["value"] == found["constant"]["accuracy"]["value"] == 0.77  # looks like skill
    assert found["macro_f1"]["value"] == found["constant"]["macro_f1"]["value"] == pytest.approx(0.435, abs=1e-3)
    assert found["auroc"]["value"] == 0.5
    assert found["most_predicted"]["class"] == "autism" and found["most_predicted"]["share"]["value"] == 1.0
    (note,) = notes
    assert note == (
        "zero-shot: 'autism' is predicted for 100 of 100 samples, so this is (nearly) a constant predictor; always "
        "saying 'autism' has accuracy 0.770 and macro-F1 0.435"
    )


def test_inverted_classes_are_caught(predictions_of: Make, cohort_of: MakeCohort) -> None:
    p = predictions_of(n=200)
    right, notes = measured(p, cohort_of())
    assert notes == [] and right["auroc"]["value"] > 0.7
    inverted = replace(p, probabilities=p.probabilities[:, ::-1])
    wrong, (note,) = measured(inverted, cohort_of())
    assert wrong["auroc"]["value"] == pytest.approx(1 - right["auroc"]["value"])
    assert note.startswith("zero-shot: AUROC is 0.") and "backwards" in note and "['control', 'autism']" in note
    assert measured(inverted, cohort_of(), bootstrap=0)[1] == [note]


@pytest.mark.parametrize("kind", ["labels", "value"])
def test_other_targets_are_left_to_performance(kind: str, predictions_of: Make, cohort_of: MakeCohort) -> None:
    classes = 3 if kind == "labels" else 0
    p, cohort = predictions_of(classes=classes, kind=kind), cohort_of(tuple("abc"[:classes]), kind)
    assert zero_shot(p, cohort, {}) == (
        {},
        ["zero-shot: target disease is not one of several classes; see performance"],
    )
