"""What the checks of a method are given: the class, its arguments, a cohort, and small batches of it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from medprism.cohort import UNKNOWN, Batch, Cohort
from medprism.data.base import CohortDataModule, CohortDataset
from medprism.evaluation.predictions import StepOutput
from medprism.method import Method

SAMPLES = 16
"""Samples of the tiny batch."""


@dataclass(frozen=True)
class MethodTrial:
    """A method class under test.

    Attributes:
        cls: the class.
        init_args: its arguments, beside the cohort.
        data: the cohort, set up.
        folder: an empty folder for checkpoints.
    """

    cls: type[Method]
    init_args: Mapping[str, Any]
    data: CohortDataModule
    folder: Path

    @property
    def cohort(self) -> Cohort:
        """What the data are."""
        return self.data.cohort

    def build(self, cohort: Cohort | None = None, seed: int = 0) -> Method:
        """A seeded instance, ready for a training step.

        Args:
            cohort: for another cohort than that of the trial.
            seed: seed of its weights.
        """
        L.seed_everything(seed, verbose=False)
        method = self.cls((cohort or self.cohort).to_dict(), **self.init_args)
        method.setup("fit")
        return method.train()

    def batch(self) -> Batch:
        """A batch of training samples without augmentation, the classes of the target in turns."""
        dataset = cast(CohortDataset, self.data.reference_dataloader().dataset)
        rows = list(range(len(dataset)))
        if self.cohort.target_kind == "classes":
            codes = dataset.target[dataset.rows].tolist()
            turns = [[row for row in rows if codes[row] == code] for code in sorted(set(codes))]
            longest = max(map(len, turns))
            rows = [group[k] for k in range(longest) for group in turns if k < len(group)]
        return dataset.__getitems__(rows[:SAMPLES])

    def predictions(self, method: Method, batch: Batch) -> StepOutput:
        """What the evaluator reads, in evaluation mode."""
        method.eval()
        with torch.no_grad():
            return method.predict_step(batch, 0)

    @cached_property
    def after_training(self) -> tuple[Method, L.Trainer]:
        """One fitted instance for all checks that only look at it."""
        return self.fitted()

    def fitted(self, seed: int = 0) -> tuple[Method, L.Trainer]:
        """An instance after three training batches of a real trainer."""
        L.seed_everything(seed, verbose=False)
        method = self.cls(self.cohort.to_dict(), **self.init_args)
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=3,
            limit_train_batches=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=self.folder,
        )
        trainer.fit(method, train_dataloaders=self.data.train_dataloader())
        return method, trainer


def terms_of(method: Method, batch: Batch) -> dict[str, Tensor]:
    """All named terms of a batch, those of the critics too."""
    rep = method.represent(batch)
    return {**method.losses(batch, rep), **method.critic_losses(batch, rep)}


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of named terms."""
    return torch.stack(list(terms.values())).sum()


def part_of(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch, as a loader would give them: gaze has as many maps as the longest of them."""
    part = {
        key: {name: x[rows] for name, x in value.items()} if isinstance(value, dict) else value[rows]  # type: ignore[index]
        for key, value in batch.items()
    }
    if "gaze" in part and "sentences" in part:
        part["gaze"] = part["gaze"][:, : max(map(len, part["sentences"]), default=0)]
    return cast(Batch, part)


def without(batch: Batch, names: Sequence[str]) -> Batch:
    """A batch that lacks some fields."""
    return cast(Batch, {key: value for key, value in batch.items() if key not in names})


def with_unknown(batch: Batch, every: int) -> Batch:
    """A batch in which every `every`-th sample has no known attribute, and the one after it no known class."""
    changed = cast(Batch, dict(batch))
    if "attributes" in batch:
        changed["attributes"] = {name: _unknown(codes, 0, every) for name, codes in batch["attributes"].items()}
    if "target" in batch and not batch["target"].is_floating_point():
        changed["target"] = _unknown(batch["target"], 1 % every, every)
    return changed


def _unknown(codes: Tensor, start: int, every: int) -> Tensor:
    codes = codes.clone()
    codes[start::every] = UNKNOWN
    return codes


@contextmanager
def quiet(*more: str) -> Iterator[None]:
    """Without what a trainer says about machines and loaders, which is no news about the class under test.

    Args:
        *more: names of other loggers that should be silent.
    """
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", *more)]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
