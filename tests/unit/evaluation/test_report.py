from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable

import numpy as np
import pytest
from rich.console import Console

from medprism.cohort import Cohort
from medprism.evaluation import Predictions, evaluate, flatten, table

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


@pytest.mark.parametrize(("kind", "classes"), [("classes", 2), ("classes", 3), ("labels", 2), ("value", 0)])
def test_metrics_are_plain_and_complete(kind: str, classes: int, cohort_of: MakeCohort, predictions_of: Make) -> None:
    cohort, p = cohort_of(tuple("abc"[:classes]), kind), predictions_of(classes=classes, kind=kind)
    reference = dataclasses.replace(predictions_of(classes=classes, kind=kind, seed=5), subjects=["r"] * 120)
    metrics = evaluate(p, cohort, reference, bootstrap=20)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics
    for number in metrics["performance"].values():
        assert number["low"] <= number["high"]
    assert set(metrics["leakage"]["z"]) == ({"disease", "sex", "site"} if kind == "classes" else {"sex", "site"})
    flat = flatten(metrics)
    assert all(np.isfinite(value) for value in flat.values())
    assert flat["leakage/z/sex/auroc"] == metrics["leakage"]["z"]["sex"]["auroc"]["value"]
    if kind != "value":
        gap = "equalized_odds_difference"
        assert flat[f"sex/{gap}"] == metrics["fairness"]["sex"][gap]["value"]
        worst = [metrics["fairness"][name]["worst_group"]["accuracy"]["value"] for name in ("sex", "site")]
        assert flat["worst_group_accuracy"] == min(worst)
        group = metrics["fairness"]["sex"]["groups"]["female"]
        assert flat["sex/groups/female/auroc"] == group["auroc"]["value"]
    assert metrics["positive_class"] == ("b" if classes == 2 else None)
    file = io.StringIO()
    Console(file=file, width=140).print(table(metrics))
    printed = file.getvalue()
    assert "(simulated)" in printed and "leakage of z" in printed and next(iter(metrics["performance"])) in printed


def test_group_sizes(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    groups = evaluate(p, cohort_of(), bootstrap=0)["fairness"]["sex"]["groups"]
    for g, name in enumerate(("female", "male")):
        rows = p.attributes["sex"] == g
        assert groups[name]["n"] == rows.sum() and groups[name]["n_positive"] == p.target[rows].sum()  # type: ignore[index]


def test_nothing_to_measure_is_an_error(cohort_of: MakeCohort, predictions_of: Make) -> None:
    with pytest.raises(ValueError, match="none of 120 samples has a known target 'disease'"):
        evaluate(dataclasses.replace(predictions_of(), target=np.full(120, -1)), cohort_of())


def test_none_is_not_logged_and_shown_as_not_defined(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    metrics = evaluate(p.take(p.target == 1), cohort_of(), bootstrap=5)
    assert "auroc" not in flatten(metrics) and metrics["performance"]["auroc"]["high"] is None
    file = io.StringIO()
    Console(file=file, width=140).print(table(metrics))
    assert "not defined" in file.getvalue() and "notes, such as" in file.getvalue()
