from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.preprocessing import StandardScaler

from medprism.cohort import Cohort
from medprism.evaluation import Predictions
from medprism.evaluation.leakage import leakage
from medprism.evaluation.performance import auroc
from medprism.evaluation.probes import probe

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def pair(make: Make, plant: float, n: int = 300) -> tuple[Predictions, Predictions]:
    """Reference and test samples whose block z holds the sex `plant` standard deviations apart."""
    sets = []
    for seed in (1, 2):
        p = make(n, seed=seed)
        z = np.random.default_rng(seed + 10).normal(size=(n, 8)).astype(np.float32)
        z[:, 3] += plant * p.attributes["sex"]
        p = dataclasses.replace(p, subjects=[f"{seed}-{name}" for name in p.subjects], blocks={"z": z * 100 - 7})
        sets.append(p)
    return sets[0], sets[1]


def test_a_planted_leak_is_found(cohort_of: MakeCohort, predictions_of: Make) -> None:
    found, notes = leakage(*pair(predictions_of, 3.0), cohort_of(), resamples=200)
    z = found["z"]
    assert notes == []
    assert z["sex"]["auroc"]["value"] > 0.95 and z["sex"]["auroc"]["low"] > 0.9
    assert z["sex"]["chance"] == {"auroc": 0.5, "balanced_accuracy": 0.5}
    assert z["site"]["chance"]["balanced_accuracy"] == pytest.approx(1 / 3)
    assert z["sex"]["n"] == 300 and z["site"]["n"] < 300  # unknown sites are not scored


def test_noise_reads_chance_on_average() -> None:
    rng, scores = np.random.default_rng(0), []
    for _ in range(30):
        x, y = rng.normal(size=(400, 8)), rng.integers(0, 3, 400)
        result, _ = probe(x[:200], y[:200], x[200:], y[200:], ("A", "B", "C"))
        assert result is not None
        scores.append(auroc(result[1]))
    assert np.mean(scores) == pytest.approx(0.5, abs=0.02)  # the standard error of the mean is about 0.005


def test_scores_are_those_of_sklearn(cohort_of: MakeCohort, predictions_of: Make) -> None:
    reference, test = pair(predictions_of, 0.5)
    found, _ = leakage(reference, test, cohort_of(), resamples=0)
    known, scored = reference.attributes["site"] >= 0, test.attributes["site"] >= 0
    scaler = StandardScaler().fit(reference.blocks["z"][known].astype(float))
    model = LogisticRegression().fit(
        scaler.transform(reference.blocks["z"][known].astype(float)), reference.attributes["site"][known]
    )
    x, y = scaler.transform(test.blocks["z"][scored].astype(float)), test.attributes["site"][scored]
    auc = roc_auc_score(y, model.predict_proba(x), multi_class="ovr")
    assert found["z"]["site"]["auroc"] == {"value": pytest.approx(auc, abs=1e-6), "low": None, "high": None}
    expected = balanced_accuracy_score(y, model.predict(x))
    assert found["z"]["site"]["balanced_accuracy"]["value"] == pytest.approx(expected)


def test_unseen_and_single_classes_are_said(cohort_of: MakeCohort, predictions_of: Make) -> None:
    reference, test = pair(predictions_of, 0)
    lone = dataclasses.replace(
        reference, attributes={"sex": np.zeros(300, int), "site": np.minimum(reference.attributes["site"], 1)}
    )
    found, notes = leakage(lone, test, cohort_of(), resamples=5)
    unseen = int((test.attributes["site"] == 2).sum())
    assert set(found["z"]) == {"disease", "site"}
    assert notes == [
        "leakage: sex from z: male not among the reference samples; "
        f"{int((test.attributes['sex'] == 1).sum())} test samples left out",
        "leakage: sex from z: only female among the reference samples; not probed",
        f"leakage: site from z: C not among the reference samples; {unseen} test samples left out",
    ]
    assert found["z"]["site"]["n"] == int((test.attributes["site"] >= 0).sum()) - unseen


def test_shared_subjects_many_samples_and_missing_blocks_are_said(cohort_of: MakeCohort, predictions_of: Make) -> None:
    reference, test = pair(predictions_of, 0)
    _, notes = leakage(test, test, cohort_of(), resamples=0, max_reference=200)
    assert "150 test subjects are among those" in notes[0] and "fitted on 200 of 300" in notes[1]
    found, notes = leakage(dataclasses.replace(reference, blocks={}), test, cohort_of(), resamples=0)
    assert found == {} and notes == ["leakage: reference samples have no block z; it is not probed"]


def test_twenty_sites_take_seconds() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 20, 1000)
    x = rng.normal(size=(1000, 256)) + rng.normal(size=(20, 256))[y] * 0.1
    start = time.process_time()
    result, notes = probe(x[:800], y[:800], x[800:], y[800:], tuple(map(str, range(20))))
    assert result is not None and notes == []
    assert time.process_time() - start < 10
