from __future__ import annotations

import dataclasses
from collections.abc import Callable

import fairlearn.metrics as fl
import numpy as np
import pytest
from sklearn import metrics as sk

from medprism.cohort import Cohort
from medprism.evaluation import Predictions, evaluate
from medprism.evaluation.decisions import decide, group, known_only
from medprism.evaluation.fairness import GAPS, Fairness, fairness

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def measure(predictions: Predictions, cohort: Cohort, attribute: str, min_group: int = 1) -> Fairness:
    known, _ = known_only(predictions, cohort)
    groups, notes = group(known, cohort, min_group)
    found = fairness(decide(known, cohort), next(g for g in groups if g.name == attribute))
    found.notes += notes
    return found


@pytest.mark.parametrize("seed", range(3))
def test_gaps_equal_fairlearn_and_plain_loops(seed: int, cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(seed=seed)
    found = measure(p, cohort_of(), "site").values
    seen = p.attributes["site"] >= 0
    y, chosen, site = p.target[seen], p.probabilities.argmax(1)[seen], p.attributes["site"][seen]  # type: ignore[index]
    for gap in GAPS:
        assert found["site", gap] == pytest.approx(getattr(fl, gap)(y, chosen, sensitive_features=site), abs=1e-12)
    tpr = [np.mean(chosen[(site == g) & (y == 1)]) for g in range(3)]
    fpr = [np.mean(chosen[(site == g) & (y == 0)]) for g in range(3)]
    assert found["site", GAPS[1]] == pytest.approx(max(np.ptp(tpr), np.ptp(fpr)))
    assert found["site", GAPS[2]] == pytest.approx(np.ptp(tpr))
    score = p.probabilities[seen, 1]
    aucs = [sk.roc_auc_score(y[site == g], score[site == g]) for g in range(3)]
    overall = sk.roc_auc_score(p.target, p.probabilities[:, 1])  # of all samples, as the performance table has it
    assert found["site", "equity_scaled_auroc"] == pytest.approx(overall / (1 + np.abs(np.array(aucs) - overall).sum()))
    assert found["site", "worst_group", "auroc"] == pytest.approx(min(aucs))
    cells = [np.mean(chosen[(site == g) & (y == k)] == k) for g in range(3) for k in range(2)]
    assert found["site", "worst_group", "cell_accuracy"] == pytest.approx(min(cells))
    for g, name in enumerate("ABC"):
        assert found["site", "groups", name, "auroc"] == pytest.approx(aucs[g])
        assert found["site", "groups", name, "accuracy"] == pytest.approx(np.mean((y == chosen)[site == g]))
        assert found["site", "groups", name, "sensitivity"] == pytest.approx(tpr[g])
        assert found["site", "groups", name, "specificity"] == pytest.approx(1 - fpr[g])


def test_several_classes_take_the_largest_gap(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(classes=3)
    found = measure(p, cohort_of(("a", "b", "c")), "sex").values
    chosen = p.probabilities.argmax(1)
    for gap in GAPS:
        by_class = [
            getattr(fl, gap)((p.target == k).astype(int), (chosen == k).astype(int),
                             sensitive_features=p.attributes["sex"]) for k in range(3)
        ]  # fmt: skip
        assert found["sex", gap] == pytest.approx(max(by_class))
    women = p.take(p.attributes["sex"] == 0)
    auc = sk.roc_auc_score(women.target, women.probabilities, multi_class="ovr")
    assert found["sex", "groups", "female", "auroc"] == pytest.approx(auc)


def test_perfect_and_constant_predictors_are_fair_in_their_way(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    perfect = measure(dataclasses.replace(p, probabilities=np.eye(2)[p.target]), cohort_of(), "sex").values
    assert perfect["sex", GAPS[1]] == 0 and perfect["sex", "equity_scaled_auroc"] == 1
    constant = measure(dataclasses.replace(p, probabilities=np.full((120, 2), 0.5)), cohort_of(), "sex").values
    assert all(constant["sex", gap] == 0 for gap in GAPS)
    assert constant["sex", "worst_group", "cell_accuracy"] == 0
    shortcut = dataclasses.replace(p, probabilities=np.eye(2)[p.attributes["sex"]])
    assert all(measure(shortcut, cohort_of(), "sex").values["sex", gap] == 1 for gap in GAPS)


def test_groups_of_a_single_class_are_left_out_and_named(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    assert p.target is not None
    site = np.where(p.target == 1, p.attributes["site"], np.minimum(p.attributes["site"], 1))  # C has only autism
    p = dataclasses.replace(p, attributes=p.attributes | {"site": site})
    found = measure(p, cohort_of(), "site")
    n = int((site == 2).sum())
    assert f"site C: only autism among {n} samples; AUROC and equalized odds leave it out" in found.notes
    assert found.values["site", "groups", "C", "auroc"] is None
    assert found.values["site", "groups", "C", "specificity"] is None
    assert found.values["site", "groups", "C", "sensitivity"] is not None
    rest, all_three = p.take((site == 0) | (site == 1)), p.take(site >= 0)
    odds = fl.equalized_odds_difference(
        rest.target, rest.probabilities.argmax(1), sensitive_features=rest.attributes["site"]
    )
    assert found.values["site", GAPS[1]] == pytest.approx(odds)
    opportunity = fl.equal_opportunity_difference(
        all_three.target, all_three.probabilities.argmax(1), sensitive_features=all_three.attributes["site"]
    )
    assert found.values["site", GAPS[2]] == pytest.approx(opportunity)


def test_absent_small_and_unknown_groups(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    site = np.full(120, 0)
    site[:4], site[4:10] = 1, -1
    p = dataclasses.replace(p, attributes={"sex": np.full(120, -1), "site": site})
    metrics = evaluate(p, cohort_of(), bootstrap=30, min_group=5)
    notes = metrics["notes"]
    assert "site: unknown for 6 of 120 samples; left out of its groups" in notes
    assert "site B: 4 samples, fewer than min_group = 5; left out" in notes and "site C: no sample" in notes
    assert "sex: fewer than two groups have samples; there are no gaps" in notes
    fairness_of = metrics["fairness"]
    assert fairness_of["sex"]["equalized_odds_difference"] == {"value": None, "low": None, "high": None}
    assert fairness_of["site"]["groups"]["C"]["n"] == 0
    assert fairness_of["site"]["groups"]["B"]["auroc"]["value"] is None
    assert fairness_of["site"]["worst_group"]["accuracy"]["group"] == "A"
    del p.attributes["sex"]
    assert "sex: the cohort declares it, but the predictions do not carry it" in evaluate(p, cohort_of())["notes"]


def test_regression_compares_errors(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(kind="value")
    assert p.target is not None
    error, sex = np.abs(p.probabilities[:, 0] - p.target), p.attributes["sex"]
    found = evaluate(p, cohort_of((), "value"), bootstrap=50)["fairness"]["sex"]
    by_group = [error[sex == g].mean() for g in range(2)]
    assert found["mae_difference"]["value"] == pytest.approx(np.ptp(by_group))
    assert found["worst_group"]["mae"]["value"] == pytest.approx(max(by_group))
    assert found["worst_group"]["mae"]["low"] < max(by_group) < found["worst_group"]["mae"]["high"]


def test_labels_have_gaps(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(classes=3, kind="labels")
    assert p.target is not None
    gaps = []
    for k in range(3):
        known = p.target[:, k] >= 0
        chosen = (p.probabilities[known, k] >= 0.5).astype(int)
        gaps.append(
            fl.equalized_odds_difference(
                p.target[known, k].astype(int), chosen, sensitive_features=p.attributes["sex"][known]
            )
        )
    found = measure(p, cohort_of(("a", "b", "c"), "labels"), "sex")
    assert found.values["sex", "equalized_odds_difference"] == pytest.approx(max(gaps))
