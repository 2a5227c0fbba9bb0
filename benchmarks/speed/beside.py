"""Callbacks that measure inside of `lightning fit`; `step.py` and `loading.py` put them on its command line."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import move_data_to_device


class Bare(pl.Callback):
    """A plain PyTorch loop beside the training, in turns: some steps of one, then as many of the other.

    The plain loop has a copy of the model, an optimizer of its own, and batches from a loader of its own. What is
    compared are whole steps: fetching the batch, forward, backward, the optimizer, and, on the framework's side, its
    hooks, logs and checks. Ends of epochs and validation are left out.

    Args:
        steps: of each turn; an epoch needs one more.

    Attributes:
        times: for every pair of turns the seconds a step, `framework` and `bare`, each by wall clock and processor.
    """

    def __init__(self, steps: int = 5) -> None:
        self.steps = steps
        self.times: list[dict[str, tuple[float, float]]] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the model as it begins, without what belongs to the trainer."""
        pl_module._trainer, belongs = None, pl_module._trainer
        self.model: Any = copy.deepcopy(pl_module)
        pl_module._trainer = belongs
        found = self.model.configure_optimizers()
        self.optimizer = found["optimizer"] if isinstance(found, dict) else found
        self.batches = endless(trainer.datamodule)  # type: ignore[attr-defined]
        self.run(2)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the clock: the end of an epoch is no step."""
        self.count = 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """After each turn of the framework, a turn of the plain loop."""
        if self.count and self.count % self.steps == 0:
            framework = [(now - before) / self.steps for now, before in zip(clocks(), self.before, strict=True)]
            started = clocks()
            self.run(self.steps)
            bare = [(now - before) / self.steps for now, before in zip(clocks(), started, strict=True)]
            self.times.append({"framework": (framework[0], framework[1]), "bare": (bare[0], bare[1])})
        if self.count % self.steps == 0:
            self.before = clocks()
        self.count += 1

    def run(self, steps: int) -> None:
        """Train the copy as a plain loop would."""
        for _ in range(steps):
            batch = move_data_to_device(next(self.batches), self.model.device)
            rep = self.model.represent(batch)
            terms = {**self.model.losses(batch, rep), **self.model.critic_losses(batch, rep)}
            loss = torch.stack(list(terms.values())).sum()
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


class Waiting(pl.Callback):
    """How long the training waits for its batches, from the second epoch on.

    Attributes:
        waited: seconds between the end of a step and the arrival of the next batch, one a step.
        worked: seconds from there to the end of the step.
    """

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.worked: list[float] = []
        self.mark = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first batch of an epoch is waited for as well."""
        self.mark = clocks()[0]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """A batch is there."""
        now = clocks()[0]
        if trainer.current_epoch:
            self.waited.append(now - self.mark)
        self.mark = now

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """A step is done."""
        now = clocks()[0]
        if trainer.current_epoch:
            self.worked.append(now - self.mark)
        self.mark = now


def endless(datamodule: pl.LightningDataModule) -> Iterator[Any]:
    """Batches of one epoch after another."""
    loader = datamodule.train_dataloader()
    while True:
        yield from loader


def clocks() -> tuple[float, float]:
    """Wall clock and processor time, when the device has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()
