import json

import numpy as np
import pytest
from fake_runs import COHORT, finished, predictions_of

from medprism.benchmark.results import COLUMNS, GROUP_COLUMNS, WHOLE
from medprism.benchmark.statistics import Cell, by_cell, compare, extras, holm
from medprism.evaluation import evaluate
from medprism.evaluation.report import flatten

SEEDS = (0, 1, 2)


def summary_of(*args, **options):
    return compare(*args, **options)[0]


def cell_of(runs, method="erm", skill=1.0, seeds=SEEDS, **options) -> Cell:
    made = [finished(runs, method, s, predictions_of(100 * len(method) + s, skill), **options) for s in seeds]
    return Cell.read("made", method, made)


def values(table, method="erm", where=WHOLE):
    return table[(table["method"] == method) & (table["set"] == where)].set_index("metric")


@pytest.mark.parametrize("unknown", [0, 9])
def test_one_run_has_the_numbers_and_intervals_of_the_evaluator(tmp_path, unknown):
    predictions = predictions_of(3)
    predictions.target[:unknown] = -1
    ids = {"same": predictions.ids[:40], "inverted": predictions.ids[30:]}
    cells = {"evaluator": {"cells": ["site"]}}
    outcome = finished(tmp_path, "erm", 0, predictions, sets=ids, config=cells)
    table = summary_of([Cell.read("made", "erm", [outcome])], "erm", resamples=200)
    assert list(dict.fromkeys(table["set"])) == ["same", "inverted"]
    for name, chosen in ids.items():
        part = predictions.take(np.array([i in chosen for i in predictions.ids]))
        metrics = evaluate(part, COHORT, bootstrap=200, cells=["site"])
        found = values(table, where=name)
        flat = flatten(metrics)
        for metric in found.index:
            assert found["mean"][metric] == pytest.approx(flat[metric], abs=1e-6), metric
        assert {"accuracy", "auroc", "worst_cell/accuracy", "sex/worst_group/accuracy"} <= set(found.index)
        for metric in ("accuracy", "auroc"):
            ends = metrics["performance"][metric]
            assert found.loc[metric, ["low", "high"]].tolist() == pytest.approx([ends["low"], ends["high"]], abs=1e-6)
        assert found["low"]["worst_cell/accuracy"] == pytest.approx(metrics["worst_cell"]["accuracy"]["low"], abs=1e-6)
        assert found["sd"].isna().all() and (found["seeds"] == 1).all()
        assert found["samples"]["auroc"] == metrics["n"] and found["subjects"]["auroc"] == metrics["subjects"]


def test_cells_are_those_of_the_evaluator_of_the_runs(tmp_path):
    default = values(summary_of([cell_of(tmp_path / "a")], "erm", 5))
    chosen = {"evaluator": {"cells": ["sex", "site"], "min_group": 3}}
    other = values(summary_of([cell_of(tmp_path / "b", config=chosen)], "erm", 5))
    wanted = [evaluate(predictions_of(300 + s), COHORT, bootstrap=0, cells=["sex", "site"], min_group=3) for s in SEEDS]
    mean = np.mean([each["worst_cell"]["accuracy"]["value"] for each in wanted])
    assert other["mean"]["worst_cell/accuracy"] == pytest.approx(mean, abs=1e-9)
    assert default["mean"]["worst_cell/accuracy"] > mean
    assert default["mean"]["auroc"] == other["mean"]["auroc"]


def test_means_and_deviations_over_seeds(tmp_path):
    found = values(summary_of([cell_of(tmp_path)], "erm", 50))
    for metric in ("accuracy", "auroc"):
        each = [evaluate(predictions_of(300 + s), COHORT, bootstrap=0)["performance"][metric]["value"] for s in SEEDS]
        assert found["mean"][metric] == pytest.approx(np.mean(each), abs=1e-6)
        assert found["sd"][metric] == pytest.approx(np.sqrt(np.sum((each - np.mean(each)) ** 2) / 2), abs=1e-6)
    assert (found["seeds"] == 3).all() and (found["samples"] == 60).all()


def accuracy_of(predictions) -> np.ndarray:
    return (predictions.probabilities.argmax(axis=1) == predictions.target).astype(float)


def test_differences_are_paired_as_by_hand(tmp_path):
    cells = [cell_of(tmp_path, "erm", 0.4), cell_of(tmp_path, "better", 1.2)]
    table = summary_of(cells, "erm", resamples=300, seed=4)
    row = values(table, "better").loc["accuracy"]
    # 60 subjects with one sample each, the same for both: the difference is a mean over subjects
    right = {m: np.mean([accuracy_of(predictions_of(100 * len(m) + s, k)) for s in SEEDS], axis=0)
             for m, k in (("erm", 0.4), ("better", 1.2))}  # fmt: skip
    gain = right["better"] - right["erm"]
    drawn = []
    for b in range(300):
        drawn.append(gain[np.random.default_rng([4, b]).integers(0, 60, 60)].mean())
    drawn = np.array(drawn)
    assert row["difference"] == pytest.approx(gain.mean(), abs=1e-9)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert [row["difference low"], row["difference high"]] == pytest.approx([low, high], abs=1e-9)
    p = 2 * min((drawn <= 1e-12).sum() + 1, (drawn >= -1e-12).sum() + 1) / 301
    assert row["p"] == pytest.approx(p) and row["p holm"] == row["p"]
    assert high - low < row["high"] - row["low"] + 0.1
    assert values(table, "erm")[["difference", "p", "p holm"]].isna().all(axis=None)


def test_a_method_that_is_the_reference_differs_by_nothing(tmp_path):
    twin = [finished(tmp_path, "twin", s, predictions_of(300 + s)) for s in SEEDS]
    table = values(summary_of([cell_of(tmp_path), Cell.read("made", "twin", twin)], "erm", 50), "twin")
    assert table["difference"].abs().max() == 0 and (table["p"] == 1).all()
    assert (table[["difference low", "difference high"]] == 0).all(axis=None)


def test_differences_are_over_the_seeds_that_both_have(tmp_path):
    cells = [cell_of(tmp_path, "erm", seeds=(0, 1)), cell_of(tmp_path, "other", seeds=(1, 2))]
    row = values(summary_of(cells, "erm", 20), "other").loc["accuracy"]
    wanted = accuracy_of(predictions_of(501)).mean() - accuracy_of(predictions_of(301)).mean()
    assert row["difference"] == pytest.approx(wanted) and row["seeds"] == 2
    alone = summary_of(
        [cell_of(tmp_path / "b", "erm", seeds=(0,)), cell_of(tmp_path / "b", "other", seeds=(1,))], "erm", 9
    )
    assert alone[["difference", "p"]].isna().all(axis=None)
    assert summary_of(cells[1:], "erm", 9)["p"].isna().all()  # no reference


def test_holm_by_hand():
    p = np.array([0.01, 0.04, 0.03, 0.005])
    # sorted .005 .01 .03 .04 times 4 3 2 1: .02 .03 .06 .04, never falling: .02 .03 .06 .06
    assert holm(p) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, 0.6])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).size == 0


def test_holm_is_over_the_methods_of_each_metric(tmp_path):
    names = ("erm", "better", "best")
    cells = [cell_of(tmp_path, name, 0.3 * k) for k, name in enumerate(names, 1)]
    table = summary_of(cells, "erm", 99)
    for _, rows in table.dropna(subset="p").groupby("metric"):
        assert len(rows) == 2
        assert rows["p holm"].tolist() == pytest.approx(holm(rows["p"].to_numpy(dtype=float)))
    assert (table["p holm"] > table["p"]).any()


@pytest.mark.parametrize("state", ["missing", "failed"])
def test_incomplete_seeds_are_not_averaged(tmp_path, state):
    halves = [predictions_of(300, n=30, fold="a"), predictions_of(301, n=30, fold="b")]
    made = [
        finished(tmp_path, "erm", seed, part, fold=k, state=state if (seed, k) == (1, 1) else "kept")
        for seed in (0, 1)
        for k, part in enumerate(halves)
    ]
    cell = Cell.read("made", "erm", made)
    assert [run.seed for run in cell.runs] == [0, 0]
    assert cell.state == "1 of 4 runs missing" + ("; 1 failed" if state == "failed" else "")
    found = values(summary_of([cell], "erm", 10))
    assert (found["seeds"] == 1).all()
    # folds are pooled: one accuracy over all out-of-fold predictions, not a mean of two
    right = np.concatenate([accuracy_of(part) for part in halves])
    assert found["mean"]["accuracy"] == pytest.approx(right.mean()) and found["samples"]["accuracy"] == 60
    assert (found["subjects"] == 60).all()
    nothing = Cell.read("made", "erm", made[3:])
    assert (nothing.declared, nothing.runs) == (None, ())
    assert list(summary_of([], "erm").columns) == list(COLUMNS)


def test_pooled_folds_have_one_auroc(tmp_path):
    halves = [predictions_of(300, n=30, fold="a"), predictions_of(301, 0.2, n=30, fold="b")]
    made = [finished(tmp_path, "erm", 0, part, fold=k) for k, part in enumerate(halves)]
    found = values(summary_of([Cell.read("made", "erm", made)], "erm", 10))
    score = np.concatenate([part.probabilities[:, 1] for part in halves])
    target = np.concatenate([part.target for part in halves])
    pairs = score[target == 1][:, None] - score[target == 0]
    assert found["mean"]["auroc"] == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_runs_of_different_code_are_never_mixed(tmp_path):
    def mixed(folder, codes, today):
        made = [
            finished(tmp_path / folder, "erm", s, predictions_of(s), code=c, state="kept" if c == today else "stale")
            for s, c in enumerate(codes)
        ]
        return Cell.read("made", "erm", made)

    cell = mixed("a", "oon", "n")
    assert [run.seed for run in cell.runs] == [2] and cell.state == "2 of 3 runs left out: other code or data"
    cell = mixed("b", "pooq", "n")
    assert [run.seed for run in cell.runs] == [1, 2]
    assert cell.state == "2 of 4 runs left out: other code or data; code or data have changed since"
    cell = mixed("c", "oo", "n")
    assert len(cell.runs) == 2 and cell.state == "code or data have changed since"
    assert mixed("d", "nn", "n").state == "complete"


def test_test_sets_have_their_order_and_sets_without_truth_are_left_out(tmp_path):
    predictions = predictions_of(1)
    predictions.target[50:] = -1
    ids = predictions.ids
    sets = {"zebra": ids[:9], "balanced": ids[10:30], "dark": ids[50:], "inverted": ids[:30], "same": ids[30:50]}
    cell = Cell.read("made", "erm", [finished(tmp_path, "erm", 0, predictions, sets=sets)])
    assert cell.test_sets == ["same", "inverted", "balanced", "dark", "zebra"]
    assert list(dict.fromkeys(summary_of([cell], "erm", 9)["set"])) == ["same", "inverted", "balanced", "zebra"]


def test_what_a_resample_does_not_define_is_left_out_of_the_interval(tmp_path):
    # with one case only, about a third of the resamples have no AUROC
    predictions = predictions_of(1, n=12)
    predictions.target[:] = np.arange(12) == 0
    table = values(summary_of([Cell.read("made", "erm", [finished(tmp_path, "erm", 0, predictions)])], "erm", 200))
    assert np.isfinite(table.loc["auroc", ["low", "high"]].to_numpy(dtype=float)).all()
    predictions.target[:] = 0
    table = values(summary_of([Cell.read("made", "erm", [finished(tmp_path, "erm", 1, predictions)])], "erm", 9))
    assert "auroc" not in table.index and "accuracy" in table.index


def test_extras_are_means_over_runs(tmp_path):
    def metrics(x):
        number = {"value": x, "low": 0.1, "high": 0.9}
        return {
            "heads": {"sex": {"accuracy": number, "n": 60}},
            "leakage": {"z": {"sex": {"auroc": {"value": None, "low": None, "high": None}}}},
            "latent": {"set": "balanced", "dominance": {"knn": number}},
            "sets": {"same": {"heads": {"sex": {"accuracy": number}}}},
        }

    made = [finished(tmp_path, "erm", s, predictions_of(s), metrics=metrics(0.5 + 0.1 * s)) for s in (0, 1)]
    table = extras(by_cell([*made, finished(tmp_path, "late", 0, predictions_of(0), state="missing")]))
    found = table.set_index("what")
    assert set(table["method"]) == {"erm"}
    names = ["test/heads/sex/accuracy", "same/heads/sex/accuracy", "latent/dominance/knn"]
    assert found["mean"][names].tolist() == pytest.approx([0.55] * 3)
    assert found["sd"][names[0]] == pytest.approx(0.1 / np.sqrt(2)) and found["runs"][names[0]] == 2
    assert found["mean"]["seconds"] == 2.5 and found["mean"]["peak memory, MB"] == 100
    assert not any(name.startswith("leakage") or "low" in name for name in found.index)
    assert list(extras([]).columns) == list(table.columns)


def test_numbers_of_groups_stand_in_a_table_of_their_own(tmp_path):
    summary, groups = compare([cell_of(tmp_path)], "erm", 50)
    assert list(groups.columns) == list(GROUP_COLUMNS)
    assert not summary["metric"].str.contains("groups").any()
    found = groups.set_index(["attribute", "group", "metric"])
    each = [flatten(evaluate(predictions_of(300 + s), COHORT, bootstrap=0)) for s in SEEDS]
    for attribute, group, metric in (("sex", "female", "accuracy"), ("site", "B", "auroc")):
        row = found.loc[(attribute, group, metric)]
        numbers = [flat[f"{attribute}/groups/{group}/{metric}"] for flat in each]
        assert row["mean"] == pytest.approx(np.mean(numbers), abs=1e-6)
        assert row["sd"] == pytest.approx(np.std(numbers, ddof=1), abs=1e-6)
        assert row["low"] < row["mean"] < row["high"] and row["seeds"] == 3
    assert compare([], "erm")[1].empty


def test_what_a_training_cost_is_among_the_extras(tmp_path):
    made = [finished(tmp_path, "erm", s, predictions_of(s)) for s in (0, 1)]
    for s, outcome in enumerate(made):
        cost = {"parameters": 100, "trained_parameters": 90, "seconds_per_epoch": 1.0 + s}
        (outcome.folder / "cost.json").write_text(json.dumps(cost))
    found = extras([Cell.read("made", "erm", made)]).set_index("what")["mean"]
    assert (found["parameters"], found["trained parameters"], found["seconds per epoch"]) == (100, 90, 1.5)
