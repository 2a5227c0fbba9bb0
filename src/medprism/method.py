"""`Method`: the one interface of everything that is trained here.

A new method is a subclass with two functions: `represent` says what the model makes of a batch, `losses` says what is
minimised. Training, several processes, checkpoints, evaluation and figures come from here and from the callbacks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Optional

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from medprism.cohort import Batch, Cohort, Representation
from medprism.evaluation.predictions import StepOutput
from medprism.terms import NamedTerms, refuse_non_finite
from medprism.terms import NonFiniteLossError as NonFiniteLossError


class CohortMismatchError(ValueError):
    """A method was given a cohort that lacks what the method reads."""


class Method(NamedTerms, ABC):
    """Base class of all methods.

    Args:
        cohort: plain values of the `Cohort` (`datamodule.cohort.to_dict()`); the command line fills it in.
        optimizer: how to make the optimizer from parameter groups; AdamW with learning rate 1e-3 and weight decay
            1e-4 when left out.
        scheduler: how to make a learning-rate scheduler (stepped once an epoch) from the optimizer; none when left out.

    Raises:
        CohortMismatchError: when the cohort lacks one of the fields in `requires`, or has weights that the method
            would not use.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target"})
    """The `Batch` fields that the method reads."""

    uses_weight: ClassVar[bool] = False
    """Whether the losses weigh samples by the batch's `weight`."""

    critic_lr: float | None = None
    """Learning rate of the critics; that of the optimizer when left out."""

    def __init__(
        self,
        cohort: dict[str, Any],
        # Optional and None, not a default class: a default's arguments would leak into the class a config chooses.
        optimizer: Optional[OptimizerCallable] = None,  # noqa: UP045 - the command line's parser needs this spelling
        scheduler: Optional[LRSchedulerCallable] = None,  # noqa: UP045
    ) -> None:
        super().__init__()
        self.cohort = cohort if isinstance(cohort, Cohort) else Cohort.from_dict(cohort)
        self.save_hyperparameters(ignore=["cohort", "optimizer", "scheduler"])
        self.save_hyperparameters({"cohort": self.cohort.to_dict()})
        self.make_optimizer, self.make_scheduler = optimizer, scheduler
        missing = self.requires - set(self.cohort.fields)
        if missing:
            raise CohortMismatchError(
                f"`{self.cohort.name}` yields {_listing(self.cohort.fields)}; `{type(self).__name__}` needs "
                f"{_listing(self.requires)}. Missing: {_listing(missing)}. Choose a cohort that has it "
                f"(configs/data/), or a method that reads what this cohort has (configs/methods/)."
            )
        if "weight" in self.cohort.fields and not self.uses_weight:
            raise CohortMismatchError(
                f"`{self.cohort.name}` gives its samples a weight (balance=reweight), which `{type(self).__name__}` "
                "does not use: choose balance=resample, or a method with `uses_weight`, such as ERM."
            )

    # ------------------------------------------------------------------------------------------ what a method says
    @abstractmethod
    def represent(self, batch: Batch) -> Representation:
        """What the model makes of a batch, without looking at its labels."""

    @abstractmethod
    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """Named scalar terms, already weighted; their sum is minimised."""

    def critic_losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """Named terms of a max-player on detached blocks; none unless a method has critics."""
        return {}

    def critic_parameters(self) -> Iterable[nn.Parameter]:
        """Parameters of the critics; they form a parameter group of their own."""
        return ()

    # --------------------------------------------------------------------------------------------- what comes free
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum of the loss terms of one batch."""
        return self._total_loss(batch, self.represent(batch), "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """Log the loss terms, and return what the evaluator reads."""
        rep = self.represent(batch)
        self._total_loss(batch, rep, "val")
        return self.output(batch, rep)

    def test_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """What the evaluator reads."""
        return self.predict_step(batch, batch_idx)

    def predict_step(self, batch: Batch, batch_idx: int) -> StepOutput:
        """What the evaluator reads."""
        return self.output(batch, self.represent(batch))

    def output(self, batch: Batch, rep: Representation) -> StepOutput:
        """Probabilities, latent blocks and auxiliary heads beside the labels that the batch happens to have."""
        logits = rep.logits[self.cohort.target.name].detach().float()
        kind = self.cohort.target_kind
        if kind != "value":
            logits = logits.softmax(-1) if kind == "classes" else logits.sigmoid()
        output: StepOutput = {
            "id": batch["id"],
            "subject": batch.get("subject", batch["id"]),
            "probabilities": logits,
            "blocks": {name: block.detach().float() for name, block in rep.blocks.items()},
            "heads": {
                factor.name: rep.logits[factor.name].detach().float().softmax(-1)
                for factor in self.cohort.attributes
                if factor.name in rep.logits
            },
        }
        if "target" in batch:
            output["target"] = batch["target"]
        if "attributes" in batch:
            output["attributes"] = batch["attributes"]
        if rep.grid:
            output["tokens"], output["grid"] = {name: x.detach() for name, x in rep.tokens.items()}, rep.grid
        return output

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """One optimizer, with a second parameter group for the critics where there are any."""
        critics = list(self.critic_parameters())
        taken = {id(parameter) for parameter in critics}
        rest = [p for p in self.parameters() if p.requires_grad and id(p) not in taken]
        # A max-player is not to be shrunk: its value would be that of a weaker one.
        critic_group: dict[str, Any] = {"params": critics, "weight_decay": 0.0} | (
            {"lr": self.critic_lr} if self.critic_lr else {}
        )
        groups: list[dict[str, Any]] = [{"params": rest}] + ([critic_group] if critics else [])
        optimizer = (
            self.make_optimizer(groups)
            if self.make_optimizer
            else torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-4)
        )
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}

    def ramp(self, share: float, start: float = 0.0) -> float:
        """Weight that is 0 for the first `start` of the epochs and rises to 1 over the next `share`.

        It is 1 outside of a training run.
        """
        trainer = self._trainer
        epochs = (trainer.max_epochs or 0) if trainer is not None else 0
        if epochs <= 0 or share + start <= 0:
            return 1.0
        late = self.current_epoch - start * epochs
        return float(late >= 0) if share <= 0 else min(1.0, max(0.0, late / (share * epochs)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Name the class, so that `load_method` needs the file alone."""
        checkpoint["medprism_method"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def _total_loss(self, batch: Batch, rep: Representation, stage: str) -> Tensor:
        terms = {**self.losses(batch, rep), **self.critic_losses(batch, rep)}
        plain = {name: term.detach() for name, term in terms.items()}
        where = f"{type(self).__name__} not finite in {stage}, epoch {self.current_epoch}, step {self.global_step}"
        refuse_non_finite(plain, where, batch["id"])
        total = torch.stack(list(terms.values())).sum()
        self.note(stage, {**plain, "loss": total}, len(batch["id"]))
        return total


def _listing(names: Iterable[str]) -> str:
    return "{" + ", ".join(sorted(names)) + "}"
