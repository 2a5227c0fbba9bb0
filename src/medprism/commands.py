"""The commands behind the front door; imported late, so that `--version` does not wait for torch."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

import medprism.datamodules
import medprism.methods  # noqa: F401 - importing both lets `class_path: NeuroLIP` go without its module
from medprism.checkpoint import CheckpointError, read_checkpoint
from medprism.cohort import Cohort
from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.evaluation.evaluator import Evaluator
from medprism.explain.figures import Figures
from medprism.method import CohortMismatchError, Method, NonFiniteLossError
from medprism.plugins import DATAMODULES, METHODS, load_plugins
from medprism.runs import Resumable, RunRecord, new_run_folder, record_cost, record_selection

load_plugins(METHODS, Method)
load_plugins(DATAMODULES, CohortDataModule)

EXPLAINED = (DataError, CohortMismatchError, CheckpointError, NonFiniteLossError)
"""Errors whose message says what was wrong and what to do."""

DESCRIPTION = "medprism: train, validate, test and predict with a config of configs/, every value changeable here."

_RUN_FOLDER = "MEDPRISM_RUN_FOLDER"  # how the processes of one DDP run agree on the folder


class CommandLine(LightningCLI):
    """LightningCLI with a folder for each run, the shared evaluator and figures, and the cohort as an argument."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Arguments beside trainer, model and data."""
        parser.add_argument(
            "--run_folder",
            type=str | None,
            default=None,
            help="Folder of the run; a new one, runs/<method>_<cohort>/<date>-<time>, when left out.",
        )
        parser.add_argument(
            "--test_after_fit", type=bool, default=False, help="Test the best checkpoint when training has ended."
        )
        parser.add_lightning_class_args(Evaluator, "evaluator")
        parser.add_lightning_class_args(Figures, "figures")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(EarlyStopping, "early_stopping")
        parser.set_defaults(
            {
                "checkpoint.monitor": "val/auroc",
                "checkpoint.mode": "max",
                "checkpoint.filename": "best",
                "checkpoint.enable_version_counter": False,
                "early_stopping.patience": 20,
            }
        )
        for key in ("monitor", "mode"):
            parser.link_arguments(f"checkpoint.{key}", f"early_stopping.{key}")
        parser.link_arguments(
            "data.cohort", "model.init_args.cohort", compute_fn=Cohort.to_dict, apply_on="instantiate"
        )

    def _parse_ckpt_path(self) -> None:
        """Refuse a bad checkpoint early; the config, which the run's folder holds, stays in charge of the arguments."""
        path = self.config[self.config.subcommand].get("ckpt_path")
        if path and path not in ("best", "last"):
            read_checkpoint(path)

    def before_instantiate_classes(self) -> None:
        """Choose the folder of the run, and write it into the config."""
        config = self.config[self.subcommand]
        if config.run_folder is None:
            config.run_folder = str(self._find_run_folder(config))
        os.environ[_RUN_FOLDER] = config.run_folder
        if config.checkpoint.dirpath is None:
            config.checkpoint.dirpath = str(Path(config.run_folder, "checkpoints"))

    def _find_run_folder(self, config: Any) -> Path:
        if _RUN_FOLDER in os.environ and os.environ.get("LOCAL_RANK", "0") != "0":
            return Path(os.environ[_RUN_FOLDER])
        given = config.get("ckpt_path")
        if given and Path(given).parent.with_name("config.yaml").exists():
            return Path(given).parent.parent
        names = [str(config[key].class_path).rsplit(".", 1)[-1] for key in ("model", "data")]
        return new_run_folder(names[0], names[1])

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        options = self.config[self.subcommand]
        folder = Path(options.run_folder)
        config["default_root_dir"] = folder
        if config.get("logger") in (None, True):
            config["logger"] = [
                TensorBoardLogger(folder, name="logs", version="tensorboard"),
                CSVLogger(folder, name="logs", version="csv"),
            ]
        if self.subcommand == "fit" and not config.get("fast_dev_run"):
            callbacks = [*callbacks, Resumable(folder / "checkpoints", int(options.seed_everything))]
        return super()._instantiate_trainer(config, callbacks)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Use the best checkpoint of the run's folder where none is named: nobody wants to test random weights."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if "verbose" in arguments:
            arguments["verbose"] = False  # the evaluator prints a table that people can read
        arguments["weights_only"] = True  # a checkpoint holds plain values; a pickle in it would be a stranger's code
        if subcommand != "fit" and arguments.get("ckpt_path") is None:
            best = Path(self.config[subcommand].run_folder, "checkpoints", "best.ckpt")
            if not best.exists():
                raise SystemExit(
                    f"lightning {subcommand} needs a trained model: there is no {best}. Give --ckpt_path, or the "
                    f"config.yaml that `lightning fit` wrote into its run's folder."
                )
            arguments["ckpt_path"] = str(best)
        return arguments

    def after_fit(self) -> None:
        """Test the best checkpoint where that was asked for, and say where everything lies."""
        folder = Path(self.config["fit"].run_folder)
        chosen = self.trainer.checkpoint_callback
        best = chosen.best_model_path if isinstance(chosen, ModelCheckpoint) else ""
        tested = bool(self.config["fit"].test_after_fit and best)
        if tested:
            self.trainer.test(self.model, datamodule=self.datamodule, ckpt_path=best, verbose=False, weights_only=True)
        if self.trainer.is_global_zero:
            record_selection(folder, chosen)
            record_cost(self.trainer, self.model)
            lines = [f"Run: {folder}"]
            if any(callback.written for callback in self.trainer.callbacks if isinstance(callback, Figures)):  # type: ignore[attr-defined]
                lines.append(f"Figures: {folder / 'figures'}")
            if best and not tested:
                lines.append(f"Next: lightning test --ckpt_path {os.path.relpath(best)}")
            Console().print("\n".join(["", *lines]), highlight=False, soft_wrap=True)


def run(words: list[str]) -> CommandLine:
    """Parse the words of a command line and do what they say."""
    # The words are those of the command line, and the config of a run may have joined them.
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")
    try:
        return CommandLine(
            Method,
            CohortDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=RunRecord,
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"max_epochs": 50, "logger": True},
            parser_kwargs={"prog": "lightning", "description": DESCRIPTION},
            args=_with_config_of_run(words),
        )
    except SIGTERMException:
        # Lightning would end with status 0, and a scheduler would take the run for a finished one.
        sys.exit(128 + signal.SIGTERM)


def _with_config_of_run(words: list[str]) -> list[str]:
    """`lightning test --ckpt_path RUN/checkpoints/best.ckpt` alone means the config.yaml of that run."""
    given = [word.split("=")[0] for word in words]
    if words and "--ckpt_path" in given and not {"--config", "-c"} & set(given):
        at = given.index("--ckpt_path")
        path = words[at].partition("=")[2] or (words[at + 1] if at + 1 < len(words) else "")
        config = Path(path).parent.with_name("config.yaml")
        if config.exists():
            return [words[0], "--config", str(config), *words[1:]]
    return words
