"""A search over small grids: what is tried, what is chosen, and what the tables say."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from fake_runs import COHORT
from fake_worker import fake_fit

from medprism.benchmark import command
from medprism.benchmark.grid import nested, points
from medprism.benchmark.runner import Outcome
from medprism.benchmark.search import choose
from medprism.benchmark.suite import Job, Suite, SuiteError

VALUES = {"model.value": [0.2, 0.9, 0.5]}


def write_suite(folder: Path, methods: dict, search: object, **changes) -> Path:
    cohort = json.dumps(COHORT.to_dict())
    content = {
        "reference": next(iter(methods)),
        "seeds": [0, 1],
        "cohorts": {"made": {"folds": 2, "data": {"class_path": "Made"}}},
        "methods": {
            name: {**how, "model": {"class_path": "M", "name": name, "cohort": cohort, **how.get("model", {})}}
            for name, how in methods.items()
        },
        "search": search,
        **changes,
    }
    path = folder / "made.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def trial(folder: Path, number: int, state: str, value: float = 0.0, mode: str = "max", error: str = "") -> Outcome:
    job = Job("made", "erm", 0, None, {"trial": number}, {"lr": number})
    home = folder / job.name
    if state not in ("missing", "failed"):
        home.mkdir(parents=True)
        (home / "selection.json").write_text(json.dumps({"metric": "val/x", "mode": mode, "value": value}))
    return Outcome(job, home, state, error=error)


def chosen(*trials: Outcome) -> tuple[int, str]:
    (one,) = choose(trials)
    return one.job.settings["lr"], one.state


def test_the_best_on_validation_stands_for_the_method(tmp_path):
    def made(name, *values, mode="max", states=("kept", "kept", "kept")):
        return [trial(tmp_path / name, k, s, v, mode) for k, (s, v) in enumerate(zip(states, values, strict=True))]

    assert chosen(*made("a", 0.2, 0.9, 0.5)) == (1, "kept")
    assert chosen(*made("b", 0.2, 0.9, 0.5, mode="min")) == (0, "kept")
    assert chosen(*made("c", 0.9, 0.9, 0.5)) == (0, "kept")
    assert chosen(*made("d", float("nan"), 0.1, 0.5)) == (2, "kept")
    assert chosen(*made("e", 0.2, 0.9, 0.5, states=("kept", "failed", "finished"))) == (2, "finished")
    assert chosen(*made("f", 0.2, 0.9, 0.5, states=("stale", "kept", "kept"))) == (1, "stale")
    assert chosen(*made("g", 0.2, 0.9, 0.5, states=("kept", "missing", "kept"))) == (1, "missing")
    failed = [trial(tmp_path, k, "failed", error=f"no {k}") for k in range(2)]
    (one,) = choose(failed)
    assert (one.state, one.error) == ("failed", "all 2 trials failed, the first with: no 0")
    single = trial(tmp_path / "h", 0, "kept")
    assert choose([single]) == [single]


def test_points_are_the_whole_grid_or_always_the_same_part_of_it():
    grid = {"a.x": [1, 2], "b": [3, 4]}
    every = [{"a.x": x, "b": b} for x in (1, 2) for b in (3, 4)]
    assert points(grid, 4) == every
    some = points({"a": list(range(50)), "b": list(range(50))}, 5)
    assert len(some) == 5 == len({tuple(point.values()) for point in some})
    assert (
        some == points({"a": list(range(50)), "b": list(range(50))}, 5) == sorted(some, key=lambda p: (p["a"], p["b"]))
    )
    assert nested({"a.x.y": 1, "a.x.z": [2], "b": 3}) == {"a": {"x": {"y": 1, "z": [2]}}, "b": 3}


@pytest.mark.parametrize(
    ("methods", "search", "says"),
    [
        ({"erm": {"grid": VALUES}}, None, r"\['erm'\] have a grid, and the suite has no search"),
        ({"erm": {"grid": VALUES}}, {"trials": 1}, "search is {'trials': 1}; expected trials, at least 2"),
        ({"erm": {"grid": VALUES}}, {"trials": 2, "seed": 3}, "expected trials, at least 2"),
        ({"erm": {"grid": VALUES}}, 4, "search is 4"),
        (
            {"erm": {"grid": VALUES}},
            {"trials": 4},
            "the grid of method 'erm' has 3 points, and .* 4 trials: add",
        ),
        ({"erm": {"grid": VALUES}, "other": {}}, {"trials": 3}, "the grid of method 'other' has 0 points"),
        ({"erm": {"grid": {"model.x": 3}}}, {"trials": 2}, "has model.x: 3; expected a list of different values"),
        ({"erm": {"grid": {"model.x": [1, 1]}}}, {"trials": 2}, "expected a list of different values"),
        ({"erm": {"grid": [1]}}, {"trials": 2}, r"is \[1\]; expected dotted names"),
    ],
)
def test_searches_that_are_not_the_same_for_all_methods_are_refused(tmp_path, methods, search, says):
    with pytest.raises(SuiteError, match=says):
        Suite.read(write_suite(tmp_path, methods, search))


def test_trials_are_runs_with_the_settings_of_the_suite_and_of_the_method(tmp_path):
    methods = {"erm": {}, "other": {"grid": {"model.depth": [1], "model.lr": [7, 8]}, "model": {"depth": 5}}}
    suite = Suite.read(write_suite(tmp_path, methods, {"trials": 2, "grid": {"model.lr": [1, 2, 3]}}))
    jobs = [job for job in suite.jobs() if (job.seed, job.fold) == (0, 0)]
    assert [(job.method, dict(job.settings)) for job in jobs][2:] == [
        ("other", {"model.lr": 7, "model.depth": 1}),
        ("other", {"model.lr": 8, "model.depth": 1}),
    ]
    assert [job.config["model"]["lr"] for job in jobs if job.method == "other"] == [7, 8]
    assert {job.config["model"]["depth"] for job in jobs if job.method == "other"} == {1}
    assert all("grid" not in job.config for job in jobs) and len({job.name for job in suite.jobs()}) == 16
    # the same settings written by hand are the same run
    by_hand = {"erm": {"model": {"lr": jobs[0].settings["model.lr"]}}}
    assert jobs[0].name in {job.name for job in Suite.read(write_suite(tmp_path, by_hand, None)).jobs()}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_a_search_from_its_suite_to_its_tables(tmp_path, monkeypatch, capsys):
    fake_fit(monkeypatch, tmp_path)
    methods = {"erm": {"grid": VALUES}, "other": {"grid": {"model.value": [0.1, 0.3], "model.exit": [None, 3]}}}
    suite = {"title": "Made up.", "seeds": [0], "cohorts": {"made": {"data": {"class_path": "Made"}}}}
    path = write_suite(tmp_path, methods, {"trials": 3}, **suite)
    words = ["--config", str(path), "--runs", "runs", "--results", "results"]
    assert command.benchmark([*words, "--dry-run"]) == 0
    captured = capsys.readouterr()
    assert "6 runs, 3 trials of every method for each seed and fold, 6 to do" in captured.err
    assert captured.out.splitlines()[0].endswith("model.value=0.2")
    failed = sum(job.settings.get("model.exit") == 3 for job in Suite.read(path).jobs())
    assert failed and command.benchmark(words) == failed
    rows = table(Path("results", "search.csv"))
    taken = {row["method"]: json.loads(row["settings"]) for row in rows if row["chosen"] == "yes"}
    assert len(rows) == 6 and sum(row["chosen"] == "yes" for row in rows) == 2
    assert taken["erm"] == {"model.value": 0.9} and taken["other"]["model.exit"] is None
    assert {row["state"] for row in rows} == {"finished", "failed"}
    text = Path("results", "summary.md").read_text()
    assert "of 3 trials of every method for each seed and fold" in text and "| erm | 1 |" in text
    # the numbers of the table are those of the chosen run
    (best,) = [job for job in Suite.read(path).jobs() if job.settings == {"model.value": 0.9}]
    predictions = table(Path("runs", best.name, "predictions.csv"))
    same = [row for row in predictions if row["sets"] == "same"]
    accuracy = sum(row["predicted"] == row["target"] for row in same) / len(same)
    summary = table(Path("results", "summary.csv"))
    (row,) = [r for r in summary if (r["set"], r["method"], r["metric"]) == ("same", "erm", "accuracy")]
    assert float(row["mean"]) == pytest.approx(accuracy, abs=1e-4)
