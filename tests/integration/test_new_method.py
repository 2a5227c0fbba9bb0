"""What `lightning new-method` writes runs as it is: the experiment, the suite, and the test."""

import sys
from pathlib import Path

import pytest
import yaml

from medprism.cli import main

SMALL = {"subjects": 80, "regions": 16, "volumes": 40, "batch_size": 16}
QUICK = {"max_epochs": 1, "accelerator": "cpu"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    main(["new-method", "PaperClip"])
    yield tmp_path
    sys.modules.pop("paperclip", None)


def test_the_experiment_and_the_test_run(folder):
    words = [word for key, value in SMALL.items() for word in (f"--data.init_args.{key}", str(value))]
    words += [word for key, value in QUICK.items() for word in (f"--trainer.{key}", str(value))]
    words += ["--evaluator.bootstrap", "0", "--figures.enabled", "false", "--run_folder", "run"]
    line = main(["fit", "--config", "paperclip.yaml", *words])
    assert type(line.model).__name__ == "PaperClip"
    assert Path("run", "metrics.json").exists()
    assert "train/penalty" in next(Path("run", "logs").rglob("metrics.csv")).read_text()
    space: dict = {}
    exec(compile(Path("test_paperclip.py").read_text(), "test_paperclip.py", "exec"), space)
    space["test_conformance"]()


@pytest.mark.slow
def test_the_suite_runs(folder):
    suite = yaml.safe_load(Path("paperclip_suite.yaml").read_text())
    suite["seeds"] = [0]
    suite["common"]["trainer"] |= QUICK
    suite["cohorts"]["simulated"]["data"]["init_args"] = SMALL
    Path("paperclip_suite.yaml").write_text(yaml.safe_dump(suite))
    assert main(["benchmark", "--config", "paperclip_suite.yaml", "--runs", "runs"]) == 0
    assert "PaperClip" in Path("runs", "results", "summary.md").read_text()
