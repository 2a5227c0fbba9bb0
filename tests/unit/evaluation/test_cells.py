from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from medprism.cohort import Cohort
from medprism.evaluation import Predictions, evaluate, flatten, paired_difference
from medprism.evaluation.cells import cell_attributes
from medprism.evaluation.decisions import distinct_rows
from medprism.evaluation.report import scores

Make = Callable[..., Predictions]
MakeCohort = Callable[..., Cohort]


def by_hand(p: Predictions, names: list[str], classes: int) -> dict[tuple[int, ...], tuple[float, int]]:
    """Accuracy and size of each cell, in plain loops."""
    right: dict[tuple[int, ...], list[bool]] = {}
    for i in range(len(p)):
        key = (int(p.target[i]), *(int(p.attributes[name][i]) for name in names))  # type: ignore[index]
        if -1 not in key:
            right.setdefault(key, []).append(int(p.probabilities[i].argmax()) == key[0])
    return {key: (float(np.mean(hits)), len(hits)) for key, hits in right.items()}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("names", [["sex"], ["sex", "site"]])
def test_the_worst_cell_is_that_of_plain_loops(
    classes: int, names: list[str], cohort_of: MakeCohort, predictions_of: Make
) -> None:
    p, cohort = predictions_of(classes=classes), cohort_of(tuple("abc"[:classes]))
    cells = by_hand(p, names, classes)
    found = evaluate(p, cohort, bootstrap=100, cells=names)["worst_cell"]
    key = min(sorted(cells), key=lambda cell: cells[cell][0])
    accuracy, n = cells[key]
    factors = [cohort.target, *(cohort.attribute(name) for name in names)]
    assert found["cell"] == ", ".join(factor.classes[k] for factor, k in zip(factors, key, strict=True))
    assert found["n"] == n and found["accuracy"]["value"] == pytest.approx(accuracy) and found["attributes"] == names
    assert found["accuracy"]["low"] <= accuracy + 1e-12 and found["accuracy"]["high"] <= 1
    assert len(found["cells"]) == len(cells) and sum(each["n"] for each in found["cells"].values()) == sum(
        n for _, n in cells.values()
    )


def test_the_interval_is_that_of_a_plain_bootstrap(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of(per_subject=1)
    found = evaluate(p, cohort_of(), bootstrap=60, cells=["sex", "site"])["worst_cell"]["accuracy"]
    drawn = []
    for number in range(60):
        rows = np.random.default_rng([0, number]).integers(0, len(p), size=len(p))
        q = dataclasses.replace(p.take(rows), ids=[str(i) for i in range(len(p))])
        drawn.append(min(accuracy for accuracy, _ in by_hand(q, ["sex", "site"], 2).values()))
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())


def test_every_epoch_has_the_number_that_a_test_has(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p, cohort = predictions_of(), cohort_of()
    quick, whole = (f for f in (scores(p, cohort, cells=["site"]), flatten(evaluate(p, cohort, cells=["site"]))))
    assert quick["worst_cell/accuracy"] == pytest.approx(whole["worst_cell/accuracy"])
    assert "sex/worst_group/cell_accuracy" in quick


def test_small_cells_unknown_values_and_other_targets(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    metrics = evaluate(p, cohort_of(), bootstrap=0, min_group=8, cells=["sex", "site"])
    sizes = [n for _, n in by_hand(p, ["sex", "site"], 2).values()]
    found = metrics["worst_cell"]
    assert min(sizes) < 8 <= found["n"]
    assert sorted(each["n"] for each in found["cells"].values()) == sorted(n for n in sizes if n >= 8)
    lost = 120 - sum(n for n in sizes if n >= 8)
    assert any(f"worst cell: {lost} of 120 samples are in no cell" in note for note in metrics["notes"])
    nobody = dataclasses.replace(p, attributes={name: np.full(len(p), -1) for name in p.attributes})
    assert evaluate(nobody, cohort_of(), bootstrap=0)["worst_cell"] == {}
    regression = predictions_of(classes=0, kind="value")
    assert evaluate(regression, cohort_of((), "value"), bootstrap=0)["worst_cell"] == {}


def test_which_attributes_form_cells(cohort_of: MakeCohort, predictions_of: Make) -> None:
    cohort = cohort_of()
    assert cell_attributes(cohort) == ("sex",)  # the sensitive one
    plain = dataclasses.replace(cohort, attributes=(cohort.attribute("site"),))
    assert cell_attributes(plain) == ("site",)
    with pytest.raises(ValueError, match=r"cells name \['race'\], but the attributes of cohort 'simulated' are"):
        scores(predictions_of(), cohort, cells=["sex", "race"])


def test_two_methods_are_compared_on_it(cohort_of: MakeCohort, predictions_of: Make) -> None:
    p = predictions_of()
    perfect = dataclasses.replace(p, probabilities=np.eye(2)[p.target])
    found = paired_difference(perfect, p, cohort_of(), resamples=50, cells=["sex"])["worst_cell/accuracy"]
    worst = min(accuracy for accuracy, _ in by_hand(p, ["sex"], 2).values())
    assert found["value"] == pytest.approx(1 - worst) and found["low"] is not None and found["low"] > 0


@pytest.mark.parametrize("shape", [(200, 3), (50, 1), (0, 2)])
def test_distinct_rows_are_those_of_numpy(shape: tuple[int, int]) -> None:
    table = np.random.default_rng(0).integers(-1, 3, shape).astype(np.float64) / 2
    found = distinct_rows(table)
    expected = np.unique(table, axis=0, return_inverse=True, return_counts=True)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs).reshape(ours.shape))
