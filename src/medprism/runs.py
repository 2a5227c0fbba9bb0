"""What a run leaves behind: its folder, its record, and a place to go on from."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.trainer.states import TrainerFn

from medprism.cohort import Cohort
from medprism.files import COST, SELECTION

_PACKAGES = ("medprism", "torch", "lightning", "torchmetrics", "torch-geometric", "open_clip_torch", "nilearn",
             "fairlearn", "scikit-learn", "numpy", "pandas")  # fmt: skip


def new_run_folder(method: str, cohort: str) -> Path:
    """`runs/<method>_<cohort>/<date>-<time>`."""
    return Path("runs", f"{method.lower()}_{cohort.lower()}", datetime.now().strftime("%Y%m%d-%H%M%S"))


def environment(fingerprint: str = "") -> dict[str, Any]:
    """Versions, machine, git state and data fingerprint, as plain values."""
    return {
        "python": sys.version.split()[0],
        "platform": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "packages": {name: _version(name) for name in _PACKAGES},
        "git": {"commit": _git("rev-parse", "HEAD"), "changed": bool(_git("status", "--porcelain"))},
        "data_fingerprint": fingerprint,
        "command": sys.argv,
    }


class RunRecord(SaveConfigCallback):
    """Writes config, cohort, environment and split into the folder of the run, before anything is trained."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Write the records; only `fit` writes config.yaml, so that a later test does not change it."""
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yaml"
        if stage == "fit" or not config.exists():
            self.parser.save(self.config, config, skip_unset=False, overwrite=True, multifile=False)
        cohort = getattr(pl_module, "cohort", None)
        if isinstance(cohort, Cohort):
            _write_json(folder / "cohort.json", cohort.to_dict())
        record = environment(getattr(cohort, "fingerprint", ""))
        _write_json(
            folder / ("environment.json" if stage == "fit" else f"environment_{TrainerFn(stage).value}.json"), record
        )
        split = getattr(trainer.datamodule, "split", None)  # type: ignore[attr-defined]
        if split is not None:
            split.save(folder / "split.json")


class Resumable(pl.Callback):
    """Keeps `checkpoints/last.ckpt` at the start and after every epoch, and makes going on from it exact.

    Every epoch draws its random numbers from a seed of its own, so that a run which is interrupted and goes on from
    `last.ckpt` ends (on a CPU) with the weights of one that was not.

    Args:
        folder: folder of `last.ckpt`.
        seed: seed of the run.

    Attributes:
        seconds: of each epoch with its validation, without the saving; of this process alone.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.path, self.seed = folder / "last.ckpt", seed
        self._began, self.seconds = 0.0, list[float]()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """An interruption within the first epoch can go on from here."""
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Seed this epoch; ranks draw different dropout."""
        self._began = time.perf_counter()
        torch.manual_seed(self.seed + 1_000_003 * (trainer.current_epoch + 1) + 7919 * trainer.global_rank)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save after the epoch."""
        self.seconds.append(time.perf_counter() - self._began)
        trainer.save_checkpoint(self.path, weights_only=False)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Say how to go on."""
        if trainer.is_global_zero and self.path.exists() and not isinstance(exception, Exception):
            run = Path(trainer.default_root_dir)
            print(f"\nInterrupted. Go on with:\n  lightning fit --config {run}/config.yaml --ckpt_path {self.path}\n")


def record_selection(folder: Path, checkpoint: object) -> None:
    """Write selection.json: which validation metric chose the checkpoint, and how high it was there."""
    if isinstance(checkpoint, ModelCheckpoint) and checkpoint.best_model_score is not None:
        chosen = {"metric": checkpoint.monitor, "mode": checkpoint.mode, "value": float(checkpoint.best_model_score)}
        path = os.path.relpath(checkpoint.best_model_path, folder)
        _write_json(folder / SELECTION, {**chosen, "checkpoint": path})


def record_cost(trainer: pl.Trainer, model: pl.LightningModule) -> None:
    """Write cost.json beside the other records of a training."""
    sizes = [(weight.numel(), weight.requires_grad) for weight in model.parameters()]
    cost: dict[str, Any] = {
        "parameters": sum(size for size, _ in sizes),
        "trained_parameters": sum(size for size, trained in sizes if trained),
    }
    seconds = [each for callback in trainer.callbacks if isinstance(callback, Resumable) for each in callback.seconds]  # type: ignore[attr-defined]
    if seconds:
        cost["seconds_per_epoch"] = round(statistics.median(seconds), 4)
    _write_json(Path(trainer.default_root_dir) / COST, cost)


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about the code that runs, or None outside of a checkout."""
    try:
        done = subprocess.run(
            ["git", *arguments], capture_output=True, text=True, timeout=10, cwd=Path(__file__).parent, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
