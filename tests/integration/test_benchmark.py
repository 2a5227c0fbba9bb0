"""`lightning benchmark` for real, on a tiny suite of the embedded digits."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from medprism.cli import main

ROOT = Path(__file__).parents[2]
SIZES = {"train": 80, "validation": 40, "same": 20, "inverted": 20, "balanced": 40, "batch_size": 16}


def tiny(path: Path) -> Path:
    """benchmarks/digits.yaml with two of its methods, two seeds, and almost no training."""
    suite = yaml.safe_load((ROOT / "benchmarks" / "digits.yaml").read_text())
    suite["methods"] = {name: suite["methods"][name] for name in ("erm", "mimmx")}
    suite["methods"]["mimmx"]["evaluator"] = {"cells": ["stroke"]}
    suite |= {"seeds": [0, 1], "ceiling": "mimmx"}
    suite["common"]["trainer"] |= {"max_epochs": 1, "accelerator": "cpu"}
    # only the last word counts: the balanced methods name their own file of data
    for method in suite["methods"].values():
        data = method.get("data", "configs/data/digits.yaml")
        method["data"] = {"file": data, "init_args": SIZES}
    path.write_text(yaml.safe_dump(suite, sort_keys=False))
    return path


@pytest.mark.slow
def test_a_suite_from_its_file_to_its_tables(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(ROOT)  # the suite's paths are relative to the repository
    words = ["benchmark", "--config", str(tiny(tmp_path / "tiny.yaml")), "--runs", str(tmp_path / "runs")]
    assert main([*words, "--workers", "2"]) == 0
    results = tmp_path / "runs" / "results"
    first = {name: (results / name).read_bytes() for name in ("summary.csv", "extras.csv", "summary.md")}
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("done.json")}
    assert len(done) == 4

    assert main(words) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("done.json")} == done
    assert {name: (results / name).read_bytes() for name in first} == first
    capsys.readouterr()
    main([*words, "--dry-run"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["kept"] * 4

    summary = pd.read_csv(results / "summary.csv").set_index(["set", "method", "metric"])
    assert (summary["seeds"] == 2).all()
    for method, cells in (("erm", None), ("mimmx", ["stroke"])):
        folders = sorted((tmp_path / "runs" / "digits" / method).iterdir())
        tests = [json.loads((folder / "metrics.json").read_text()) for folder in folders]
        assert [each["settings"]["cells"] for each in tests] == [cells, cells]
        for name in ("same", "inverted", "balanced"):
            own = [each["test"]["sets"][name] for each in tests]
            accuracy = [each["performance"]["accuracy"]["value"] for each in own]
            worst = [each["worst_cell"]["accuracy"]["value"] for each in own]
            assert summary.loc[(name, method, "accuracy"), "mean"] == pytest.approx(sum(accuracy) / 2, abs=1e-4)
            assert summary.loc[(name, method, "worst_cell/accuracy"), "mean"] == pytest.approx(sum(worst) / 2, abs=1e-4)
    extras = pd.read_csv(results / "extras.csv").set_index(["method", "what"])["mean"]
    for method in ("erm", "mimmx"):
        assert 0 < extras[method, "trained parameters"] <= extras[method, "parameters"]
        assert 0 < extras[method, "seconds per epoch"] < extras[method, "seconds"]
    assert extras["mimmx", "parameters"] > extras["erm", "parameters"]
    (results / "report.html").unlink()
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert {name: (results / name).read_bytes() for name in first} == first
    assert "cohort" in (results / "report.html").read_text()
    text = first["summary.md"].decode()
    assert "`val/mean_cell/accuracy`" in text and "of mimmx)" in text and "balanced: head of stroke" in text
