"""The callback that scores every method with the same code, on one process or many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from rich.console import Console
from rich.table import Table

from medprism.cohort import Cohort
from medprism.distributed import rank, world_size
from medprism.evaluation.alignment import Alignment, alignment_table, embedded
from medprism.evaluation.latent import latent, latent_table
from medprism.evaluation.predictions import Predictions, StepOutput
from medprism.evaluation.report import Metrics, evaluate, flatten, scores, table
from medprism.evaluation.sets import divide, evaluate_sets, sets_table
from medprism.files import METRICS, PREDICTIONS, write_whole

GROUNDING = "grounding.csv"


class Evaluator(Callback):
    """Collects what the steps of a method return, and measures it.

    The module must have a `cohort`, and its validation, test and predict steps return a `StepOutput`. After every
    validation epoch performance and fairness gaps are logged under `val/`, without intervals or probes; a checkpoint
    may select on `val/auroc`, `val/worst_group_accuracy`, `val/worst_cell/accuracy` or, for one attribute,
    `val/sex/worst_group/cell_accuracy`, and of an image-text method on `val/alignment/retrieval/reciprocal_rank` or
    `val/alignment/grounding/gaze/pointing`. A test (and `trainer.validate`) adds intervals over subjects and leakage
    probes, prints a table and writes metrics.json and predictions.csv. A test measures each set of the datamodule's
    `test_sets` as well, logged as `test/<set>/...`, and of an image-text method zero-shot classification, retrieval,
    grounding and a linear probe, logged as `test/alignment/...`, with one row a sentence in grounding.csv; see
    `medprism.evaluation.alignment`. A prediction run writes its rows of predictions.csv. Samples are gathered over all
    processes and copies that samplers pad with are dropped, so the numbers are those of a single process.

    Args:
        bootstrap: number of resamples of subjects for the intervals of a test; 0 for none.
        confidence: share of the bootstrap distribution that an interval covers.
        leakage: whether a test probes the latent blocks; it needs a datamodule with `reference_dataloader()`.
        min_group: groups with fewer samples are left out of the fairness metrics, and named in the notes; cells with
            fewer samples are left out of the worst cell.
        cells: attributes whose classes form cells with those of the target, for the accuracy in the worst cell; the
            sensitive ones when left out, all where none is sensitive.
        latent: whether a test asks every latent block for every factor, by neighbours, linear and nonlinear probes,
            and for the mutual information between blocks; see `medprism.evaluation.latent`. It takes seconds to
            minutes, and needs a datamodule with `reference_dataloader()`.
        alignment: whether image-text methods are asked what is asked of no others.
        queries: for target classes the texts that ask for images of that class, for the retrieval of an image-text
            method; the `queries` of the datamodule when left out, if it has any.
        beside: runs whose numbers are printed beside those of an image-text method: for each label the path of its
            metrics.json. A file that is not there, or measured other samples, is named and left out.
        seed: of the resamples, probes and critics.
        folder: where metrics.json and predictions.csv go; the trainer's `default_root_dir` when left out.

    Attributes:
        metrics: the last nested metrics of `trainer.validate` (`val`) and `trainer.test` (`test`); see
            `medprism.evaluation.report.evaluate`.
    """

    def __init__(
        self,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        leakage: bool = True,
        min_group: int = 1,
        cells: list[str] | None = None,
        latent: bool = False,
        alignment: bool = True,
        queries: dict[str, list[str]] | None = None,
        beside: dict[str, str] | None = None,
        seed: int = 0,
        folder: str | None = None,
    ) -> None:
        if bootstrap < 0 or min_group < 1 or not 0 < confidence < 1:
            raise ValueError(
                f"got bootstrap={bootstrap}, min_group={min_group}, confidence={confidence}; expected at least 0, "
                "at least 1, and between 0 and 1"
            )
        self.bootstrap = bootstrap
        self.confidence = confidence
        self.leakage = leakage
        self.min_group = min_group
        self.cells = cells
        self.latent = latent
        self.alignment = alignment
        self.queries = queries
        self.beside = beside or {}
        self.seed = seed
        self.folder = folder
        self.metrics: dict[str, Metrics] = {}
        self._forget()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
        self._forget()

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
        self._forget()

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last epoch."""
        self._forget()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep a batch of a validation epoch."""
        if not trainer.sanity_checking:
            complete = trainer.state.fn == TrainerFn.VALIDATING
            self._keep(outputs, pl_module, "validation_step", blocks=complete and (self.leakage or self.latent))
            self._align(outputs, batch)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep a batch of a test."""
        self._keep(outputs, pl_module, "test_step", blocks=self.leakage or self.latent)
        self._align(outputs, batch)

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        """Keep a batch of a prediction run."""
        self._keep(outputs, pl_module, "predict_step", blocks=False)
        outputs.pop("tokens", None)  # Lightning keeps what a prediction returns, and tokens are large

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log performance and fairness gaps; `trainer.validate` measures as a test does."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._measure(trainer, pl_module, "val")
        else:
            values = scores(self._gathered(), _cohort(pl_module), self.min_group, self.cells)
            self._log(pl_module, "val", values | (self._alignment.scores() if self.alignment else {}))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log everything, print it, and write metrics.json and predictions.csv."""
        self._measure(trainer, pl_module, "test")

    def _measure(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        predictions, cohort = self._gathered(), _cohort(pl_module)
        asked = {"leakage": self.leakage, "latent": self.latent}
        aligned = self.alignment and self._alignment.gather()
        probed = any(asked.values()) and predictions.blocks
        reference = self._reference(trainer, pl_module) if aligned or probed else None
        named = _of_datamodule(trainer, "test_sets") if stage == "test" else {}
        sets, notes = divide(predictions, named, cohort, complete=_complete(trainer))
        options: dict[str, Any] = {"bootstrap": self.bootstrap, "confidence": self.confidence, "seed": self.seed}
        groups: dict[str, Any] = {"min_group": self.min_group, "cells": self.cells}
        metrics = evaluate(predictions, cohort, reference if self.leakage else None, **options, **groups)
        metrics["sets"] = evaluate_sets(sets, cohort, **options, **groups)
        if self.latent and reference is not None:
            metrics["latent"], remarks = latent(
                reference, predictions, cohort, sets, **options, device=pl_module.device
            )
            notes += remarks
        metrics["alignment"] = {}
        if aligned:
            queries = embedded(pl_module, self.queries or _of_datamodule(trainer, "queries"))
            metrics["alignment"], remarks = self._alignment.result(
                predictions, cohort, metrics["performance"], reference, queries, **options
            )
            notes += remarks
        if reference is None:
            why = "the steps return no blocks" if not predictions.blocks else "no datamodule has reference_dataloader()"
            notes += [f"{what}: not probed, {why}" for what, wanted in asked.items() if wanted]
        metrics["notes"] += notes
        self.metrics[stage] = metrics
        self._log(pl_module, stage, flatten(metrics))
        if trainer.is_global_zero:
            predictions.save(self._folder(trainer) / PREDICTIONS, stage, cohort, named)
            self._write(self._folder(trainer) / METRICS, stage)
            if aligned:
                self._alignment.save(self._folder(trainer) / GROUNDING, stage)
            for shown in self._tables(metrics, stage):
                Console().print(shown)

    def _tables(self, metrics: Metrics, stage: str) -> list[Table]:
        shown = [table(metrics)]
        shown += [sets_table(metrics)] if metrics["sets"] else []
        shown += [latent_table(metrics)] if metrics.get("latent") else []
        return shown + ([alignment_table(metrics, self.beside, stage)] if metrics["alignment"] else [])

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write predictions.csv."""
        predictions = self._gathered()
        if trainer.is_global_zero:
            predictions.save(self._folder(trainer) / PREDICTIONS, "predict", _cohort(pl_module))

    def _keep(self, outputs: Any, module: LightningModule, step: str, blocks: bool) -> None:
        self._outputs.append(_step_output(outputs, module, step, blocks))

    def _align(self, outputs: Any, batch: Any) -> None:
        if self.alignment:
            self._alignment.add(outputs, batch)

    def _forget(self) -> None:
        self._outputs: list[StepOutput] = []
        self._alignment = Alignment()

    def _gathered(self) -> Predictions:
        outputs, self._outputs = self._outputs, []
        return Predictions.collect(outputs).gather()

    def _reference(self, trainer: Trainer, module: LightningModule) -> Predictions | None:
        """The latent blocks of training samples; every process takes its share of the batches."""
        datamodule: Any = getattr(trainer, "datamodule", None)
        if not hasattr(datamodule, "reference_dataloader"):
            return None
        outputs, training = [], module.training
        module.eval()
        with torch.no_grad(), trainer.precision_plugin.predict_step_context():
            for index, batch in enumerate(datamodule.reference_dataloader()):
                if index % world_size() == rank():
                    batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
                    output = module.predict_step(batch, index)
                    outputs.append(_step_output(output, module, "predict_step", blocks=True))
                    if self.alignment:
                        self._alignment.learn(output, batch)
        module.train(training)
        return Predictions.collect(outputs).gather()

    def _log(self, module: LightningModule, stage: str, values: dict[str, float]) -> None:
        scalars = {f"{stage}/{name}": value for name, value in values.items()}
        # every process has the same numbers, so their maximum is exact; unsynced, Lightning warns once a scalar
        module.log_dict(cast(Any, scalars), sync_dist=True, reduce_fx="max", batch_size=1)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.folder or trainer.default_root_dir)

    def _write(self, path: Path, stage: str) -> None:
        """Put the metrics of a stage into metrics.json, next to those of other stages."""
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        settings = (
            "bootstrap",
            "confidence",
            "leakage",
            "min_group",
            "cells",
            "latent",
            "alignment",
            "queries",
            "seed",
        )
        known |= {stage: self.metrics[stage], "settings": {name: getattr(self, name) for name in settings}}
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(known, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
        write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _step_output(outputs: Any, module: LightningModule, step: str, blocks: bool) -> StepOutput:
    """What a step returned, on the CPU, without its tokens, and with or without its blocks.

    Raises:
        TypeError: when it is no `StepOutput`.
    """
    needed = ("id", "subject", "probabilities")
    if not isinstance(outputs, dict) or any(name not in outputs for name in needed):
        got = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise TypeError(f"{type(module).__name__}.{step} returned {got}; the Evaluator needs a dict with {needed}")
    left_out = ("tokens", "grid") if blocks else ("tokens", "grid", "blocks")
    kept = {name: _on_cpu(value) for name, value in outputs.items() if name not in left_out}
    return cast(StepOutput, kept)


def _of_datamodule(trainer: Trainer, name: str) -> dict[str, tuple[str, ...]]:
    """The `test_sets` or `queries` of the datamodule, if it has any."""
    return dict(getattr(getattr(trainer, "datamodule", None), name, None) or {})


def _complete(trainer: Trainer) -> bool:
    """Whether all batches are tested: a number of batches, or a share below 1, limits them."""
    return isinstance(trainer.limit_test_batches, float) and trainer.limit_test_batches >= 1


def _on_cpu(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _on_cpu(item) for name, item in value.items()}
    return value.detach().cpu() if isinstance(value, torch.Tensor) else value


def _cohort(module: LightningModule) -> Cohort:
    cohort = getattr(module, "cohort", None)
    if not isinstance(cohort, Cohort):
        raise TypeError(f"{type(module).__name__} has no `cohort`; the Evaluator needs a medprism.cohort.Cohort there")
    return cohort
