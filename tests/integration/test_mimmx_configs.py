"""The experiments of MIMM-X and its relatives, run for real with tiny settings on files in the released layouts."""

import json
import sys
from pathlib import Path

import pytest
import yaml

from medprism.cli import main

from layouts import write_abide, write_chexpert, write_covid, write_morpho_mnist, write_oasis, write_ukb

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = ["erm_digits", *sorted(path.stem for path in CONFIGS.glob("mimmx_*.yaml"))]
TINY = {
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "evaluator.bootstrap": 10,
    "data.init_args.batch_size": 16,
    "test_after_fit": "true",
}
DIGITS = {"train": 80, "validation": 40, "same": 20, "inverted": 20, "balanced": 40}
# So few people cannot be confounded at the published ratios.
UNSHIFTED = {"shift": "null", "folds": 2, "validation_fraction": 0.4}


def arguments_of(experiment: str, folder: Path) -> dict:
    """Files in the layout that the experiment reads, and where they are."""
    kind = experiment.split("_", 1)[1]
    folder.mkdir()
    if kind == "digits":
        return DIGITS
    if kind == "morpho_mnist":
        write_morpho_mnist(folder)
        return {**DIGITS, "root": folder}
    if kind == "ukb":
        write_ukb(folder)
        return {
            "manifest": folder / "volumes.csv",
            "shape": "[8, 8, 8]",
            "test_fraction": 0.4,
            "validation_fraction": 0.4,
        }
    write = {"abide": write_abide, "chexpert": write_chexpert, "covid": write_covid, "oasis": write_oasis}[kind]
    write(folder)
    changes = {"shift_flip": "null"} if kind == "abide" else {"size": 32}
    if kind == "abide":
        changes |= {"site_group": "[NYU]"}
    root = folder / "CheXpert-v1.0-small" if kind == "chexpert" else folder
    return {**UNSHIFTED, **changes, "root": root}


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])


def fit(config: Path, run: Path, settings: dict, *more: str):
    words = [word for key, value in {**TINY, **settings}.items() for word in (f"--{key}", str(value))]
    return main(["fit", "--config", str(config), "--run_folder", str(run), *more, *words])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs(experiment, tmp_path):
    data = arguments_of(experiment, tmp_path / "data")
    fit(CONFIGS / f"{experiment}.yaml", tmp_path / "run", {f"data.init_args.{k}": v for k, v in data.items()})
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    assert 0 <= metrics["performance"]["accuracy"]["value"] <= 1
    assert bool(metrics["heads"]) == experiment.startswith("mimmx")
    if "digits" in experiment or "mnist" in experiment:
        assert set(metrics["sets"]) == {"same", "inverted", "balanced"}


METHODS = ["adversarial", "end", "erm_image", "group_dro", "mdn", "mimm", "mimmx"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_every_method_of_images_runs(method, tmp_path):
    config = tmp_path / "experiment.yaml"
    model = yaml.safe_load((CONFIGS / "methods" / f"{method}.yaml").read_text())
    data = yaml.safe_load((CONFIGS / "data" / "digits.yaml").read_text())
    data["init_args"] |= DIGITS
    config.write_text(yaml.safe_dump({"model": model, "data": data, "trainer": {"devices": 1, "logger": False}}))
    line = fit(config, tmp_path / "run", {})
    assert type(line.model).__name__ == model["class_path"]
    main(["test", "--ckpt_path", str(tmp_path / "run" / "checkpoints" / "best.ckpt")])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["sets"]
