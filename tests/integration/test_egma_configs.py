"""The image-text experiments, run for real with tiny settings on SIMULATED readings in the released layouts."""

import json
import sys
from pathlib import Path

import pytest

from medprism.checkpoint import load_method
from medprism.cli import main
from medprism.datamodules.reading_room_cases import simulated_cases
from medprism.datamodules.reading_room_files import write_egd, write_mimic_eye, write_reflacx

from layouts import write_covid_notes, write_osie

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted(path.stem for kind in ("egma", "clip") for path in CONFIGS.glob(f"{kind}_*.yaml"))
TINY = {
    "trainer.max_epochs": 1,
    "trainer.accelerator": "cpu",
    "trainer.precision": 32,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "evaluator.bootstrap": 10,
    "data.init_args.batch_size": 16,
    "data.init_args.gaze_size": 16,
    "test_after_fit": "true",
}
TOWERS = ["--model", str(CONFIGS / "methods" / "egma_small.yaml")]
"""Stand in for towers whose weights need a network; every other part of an experiment stays."""
READERS = {"egd": write_egd, "reflacx": write_reflacx, "mimic_eye": write_mimic_eye}


def arguments_of(experiment: str, folder: Path) -> tuple[dict, list[str]]:
    """Settings and towers for files in the layout that the experiment reads."""
    kind = experiment.split("_", 1)[1]
    if kind == "reading_room":
        return {"people": 60, "size": 32}, []
    if kind == "covid":
        write_covid_notes(folder)
        return {"root": folder, "size": 32, "folds": 2, "gaze_size": None}, []
    if kind == "osie":
        write_osie(folder)
        return {"root": folder, "size": 32, "folds": 2}, []
    READERS[kind](folder, simulated_cases(people=48, seed=0))
    settings = {"root": folder, "size": 32, "test_fraction": 0.3, "validation_fraction": 0.3}
    if kind == "egd":
        settings["images"] = folder / "images"
    if kind == "reflacx":  # whose views MIMIC-CXR-JPG's metadata tell, which are not written
        settings |= {"images": folder, "attributes": []}
    return settings, TOWERS


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment(experiment, tmp_path):
    (tmp_path / "files").mkdir()
    settings, towers = arguments_of(experiment, tmp_path / "files")
    given = TINY | {f"data.init_args.{name}": value for name, value in settings.items()}
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    main(["fit", "--config", str(CONFIGS / f"{experiment}.yaml"), *towers, *words, "--run_folder", "run"])
    measured = json.loads(Path("run", "metrics.json").read_text())["test"]["alignment"]
    assert measured["zero_shot"] and measured["retrieval"]
    grounded = {"clip_covid": {"boxes"}, "egma_osie": {"gaze"}}.get(experiment, {"gaze", "boxes"})
    assert set(measured["grounding"]) == grounded
    rows = Path("run", "grounding.csv").read_text().splitlines()
    assert len(rows) > 1
    assert list(Path("run", "figures").glob("*.png"))
    assert type(load_method("run/checkpoints/best.ckpt")).__name__ == experiment.split("_")[0].upper()
