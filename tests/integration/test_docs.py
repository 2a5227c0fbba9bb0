"""The guide for a new method, run as it is written."""

import re
import sys
from pathlib import Path

from medprism.checkpoint import load_method
from medprism.cli import main

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(), re.S)


def test_own_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])
    (code,), (config,), (command,) = (blocks("own-method.md", kind) for kind in ("python", "yaml", "bash"))
    body = [line for line in code.splitlines() if line.strip()]
    assert len(body) < 45
    assert len(body[body.index("class Reversal(Method):") :]) < 40
    Path("my_method.py").write_text(code)
    Path("adversarial.yaml").write_text(config)
    program, *words = command.split()
    assert program == "lightning"
    small = ["--data.init_args.subjects", "80", "--data.init_args.regions", "16", "--data.init_args.volumes", "40"]
    main([*words, *small, "--trainer.max_epochs", "2", "--evaluator.bootstrap", "10", "--run_folder", "run"])
    assert Path("run", "metrics.json").exists()
    logged = next(Path("run", "logs").rglob("metrics.csv")).read_text()
    assert "train/target" in logged and "train/adversary" in logged and "val/auroc" in logged
    sys.modules.pop("my_method")
    model = load_method("run/checkpoints/best.ckpt", module="my_method")
    assert model.hparams["strength"] == 0.3


def test_simulated_readings_are_written_as_the_guide_says(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("cohorts/gaze.md", "python")
    exec(compile(code, "gaze.md", "exec"), {})
    assert Path("reflacx", "main_data", "metadata_phase_3.csv").exists()
