from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from medprism.cohort import Cohort
from medprism.evaluation import Predictions, evaluate, paired_difference
from medprism.evaluation import bootstrap as module
from medprism.evaluation.bootstrap import intervals, percentile_interval, resample_counts, statistic
from medprism.evaluation.decisions import decide, group, known_only
from medprism.evaluation.fairness import fairness, regression_fairness
from medprism.evaluation.performance import performance
from medprism.evaluation.weighted import Path, subject_codes

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def recomputed(predictions: Predictions, cohort: Cohort) -> dict[Path, float | None]:
    """Every number of a set of predictions by the slow way: scikit-learn, torchmetrics and fairlearn."""
    values: dict[Path, float | None] = {(name,): value for name, value in performance(predictions, cohort)[0].items()}
    for groups in group(predictions, cohort)[0]:
        if cohort.target_kind == "value":
            assert predictions.target is not None
            values |= regression_fairness(predictions.probabilities[:, 0], predictions.target, groups).values
        else:
            values |= fairness(decide(predictions, cohort), groups).values
    return values


@pytest.mark.parametrize(
    ("kind", "classes", "n", "decimals"),
    [("classes", 2, 40, 1), ("classes", 2, 90, 9), ("classes", 4, 60, 9), ("labels", 3, 50, 1), ("value", 0, 40, 0)],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_all_resamples_at_once_equal_the_plain_loop(
    kind: str, classes: int, n: int, decimals: int, cohort_of: MakeCohort, predictions_of: Make
) -> None:
    cohort = cohort_of(tuple("abcd"[:classes]), kind)
    predictions, _ = known_only(predictions_of(n, classes, kind, decimals=decimals), cohort)
    codes, names = subject_codes(predictions.subjects)
    counts = resample_counts(np.bincount(codes), range(6), seed=3)
    counts[0] = 1  # the set itself
    fast = statistic(predictions, cohort, group(predictions, cohort)[0], codes, len(names))(counts)
    for b, row in enumerate(counts):
        repeated = predictions.take(np.repeat(np.arange(len(codes)), row[codes].astype(int)))
        slow = recomputed(repeated, cohort)
        assert set(slow) == set(fast)
        for path, value in slow.items():
            assert fast[path][b] == pytest.approx(np.nan if value is None else value, abs=1e-9, nan_ok=True), path


def test_draws_do_not_depend_on_blocks_and_take_subjects_whole() -> None:
    sizes = np.array([1, 2, 3, 4])
    whole = resample_counts(sizes, range(20), seed=1)
    np.testing.assert_array_equal(whole[7:9], resample_counts(sizes, range(7, 9), seed=1))
    assert (whole.sum(axis=1) == 4).all() and not (whole == resample_counts(sizes, range(20), seed=2)).all()
    assert resample_counts(np.array([2**24]), range(1), 0).dtype == np.float64


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, cohort_of: MakeCohort, predictions_of: Make) -> None:
    one = evaluate(predictions_of(), cohort_of(), bootstrap=40)
    monkeypatch.setattr(module, "CHUNK", 250)
    assert evaluate(predictions_of(), cohort_of(), bootstrap=40) == one
    assert evaluate(predictions_of(), cohort_of(), bootstrap=40, seed=1) != one


def test_intervals_cover_as_often_as_they_say() -> None:
    rng, inside, trials = np.random.default_rng(0), 0, 300
    for trial in range(trials):
        x = rng.normal(size=60)
        found = intervals(lambda c, x=x: {("mean",): c @ x / c.sum(1)}, np.ones(60, int), 200, 0.9, trial)["mean",]
        inside += found.low <= 0 <= found.high  # type: ignore[operator]
    assert 0.83 < inside / trials < 0.95


def test_scans_of_one_person_are_one_observation(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(60, per_subject=1)
    copied = p.take(np.repeat(np.arange(60), 9))
    copied = dataclasses.replace(copied, ids=[f"{i}" for i in range(540)])
    one, nine = (evaluate(x, cohort_of(), bootstrap=200)["performance"]["auroc"] for x in (p, copied))
    assert nine == pytest.approx(one, abs=1e-12)


def test_undefined_resamples_are_counted() -> None:
    found = percentile_interval(np.array([0.0, np.nan, 1.0, np.nan]), 0.9)
    assert (found.low, found.high, found.undefined) == (pytest.approx(0.05), pytest.approx(0.95), 2)
    assert percentile_interval(np.array([np.nan]), 0.9) == (None, None, 1)


def test_rare_classes_are_said_in_a_note(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(20, per_subject=1)
    p = dataclasses.replace(p, target=(np.arange(20) == 0).astype(int))
    metrics = evaluate(p, cohort_of(), bootstrap=100)
    assert any(note.startswith("performance: some resamples lack what a metric needs") for note in metrics["notes"])
    assert metrics["performance"]["auroc"]["low"] is not None


def test_paired_difference(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p, cohort = predictions_of(), cohort_of()
    same = paired_difference(p, p, cohort, 50)
    assert same["auroc"] == {"value": 0, "low": 0, "high": 0} and same["sex/equalized_odds_difference"]["high"] == 0
    better = dataclasses.replace(p, probabilities=np.eye(2)[p.target])
    found, back = paired_difference(better, p, cohort, 200), paired_difference(p, better, cohort, 200)
    alone = evaluate(p, cohort, bootstrap=200)["performance"]["auroc"]
    assert found["auroc"]["value"] == pytest.approx(1 - alone["value"])
    assert (found["auroc"]["low"], found["auroc"]["high"]) == pytest.approx((1 - alone["high"], 1 - alone["low"]))
    assert found["auroc"]["low"] == pytest.approx(-back["auroc"]["high"])
    with pytest.raises(ValueError, match="same subjects on both sides; 1 differ"):
        paired_difference(p, p.take(np.arange(118)), cohort)
    with pytest.raises(ValueError, match="sample 'scan0000' has target"):
        paired_difference(p, dataclasses.replace(p, target=1 - p.target), cohort)  # type: ignore[operator]
