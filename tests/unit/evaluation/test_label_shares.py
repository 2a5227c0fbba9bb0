from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from medprism.cohort import Cohort
from medprism.evaluation.label_shares import label_shares, share_of

MakeCohort = Callable[..., Cohort]


def make_set(people: int, prefix: str, seed: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Two samples a person, of one class; class 2 is rare."""
    rng = np.random.default_rng(seed)
    of_person = np.where(np.arange(people) % 20 == 0, 2, np.arange(people) % 2)
    y = np.repeat(of_person, 2)
    x = rng.normal(size=(2 * people, 5)) * 3 + 2 * np.eye(5)[y]
    return x.astype(np.float32), y, [f"{prefix}{k // 2:04d}" for k in range(2 * people)]


def measured(cohort: Cohort, **options: Any) -> tuple[dict[str, Any], list[str]]:
    return label_shares(*make_set(200, "train", 0), *make_set(60, "test", 1), cohort, **options)


def test_each_share_is_a_logistic_regression_on_its_subjects(cohort_of: MakeCohort) -> None:
    found, notes = measured(cohort_of(("a", "b", "c")), resamples=30)
    assert list(found) == ["percent_1", "percent_10", "percent_100"]
    assert [each["subjects"] for each in found.values()] == [2, 20, 200]
    assert [each["n"] for each in found.values()] == [4, 40, 400]
    assert found["percent_1"]["auroc"]["value"] is None  # 1 % of the 10 rare people is nobody
    assert notes == ["linear probe: 1 % of the training subjects leave out ['c']; not scored"]
    x, y, _ = make_set(200, "train", 0)
    x_test, y_test, _ = make_set(60, "test", 1)
    scaler = StandardScaler().fit(x)
    model = LogisticRegression(max_iter=1000).fit(scaler.transform(x), y)
    plain = roc_auc_score(y_test, model.predict_proba(scaler.transform(x_test)), multi_class="ovr")
    number = found["percent_100"]["auroc"]
    assert number["value"] == pytest.approx(plain, abs=1e-3) and number["low"] < number["value"] < number["high"]
    assert found["percent_10"]["auroc"]["value"] < number["value"]


def test_shares_are_nested_stratified_and_follow_the_seed() -> None:
    _, y, names = make_set(200, "train", 0)
    subjects = np.array(names, dtype=object)
    shares = [share_of(subjects, y, share, seed=3) for share in (0.1, 0.5, 1.0)]
    for small, large in pairwise(shares):
        assert (large | ~small).all() and large.sum() > small.sum()
    assert shares[2].all()
    assert [len(set(subjects[shares[0] & (y == k)])) for k in range(3)] == [9, 10, 1]
    assert all(shares[0][k] == shares[0][k + 1] for k in range(0, 400, 2))  # a person comes with all samples
    order = np.random.default_rng(0).permutation(400)
    again = share_of(subjects[order], y[order], 0.1, seed=3)
    np.testing.assert_array_equal(again, shares[0][order])
    assert (share_of(subjects, y, 0.1, seed=4) != shares[0]).any()


def test_what_makes_a_probe_unfair_is_said(cohort_of: MakeCohort) -> None:
    x, y, people = make_set(200, "train", 0)
    found, notes = label_shares(x, y, people, x[:40], y[:40], people[:40], cohort_of(("a", "b", "c")), resamples=0)
    assert notes[0] == "linear probe: 20 test subjects are among the training subjects: too optimistic"
    y = np.where(y == 2, -1, y)  # unknown classes take no part
    found, notes = label_shares(x, y, people, x[:40], y[:40], ["t"] * 40, cohort_of(("a", "b", "c")), resamples=0)
    assert found["percent_100"]["n"] == 380 and notes == []
    found, notes = label_shares(x, y, people, x[2:4], y[2:4], ["t"] * 2, cohort_of(("a", "b", "c")), resamples=0)
    assert found["percent_100"]["auroc"]["value"] is None
    assert "linear probe: 100 %: disease: only b among the test samples; not probed" in notes
