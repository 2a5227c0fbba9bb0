"""Empirical risk minimisation: an encoder and a linear head; the reference of every comparison."""

from __future__ import annotations

from typing import Any, ClassVar, Optional

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from medprism.cohort import Batch, Representation
from medprism.encoders import build_encoder
from medprism.losses.supervised import target_loss
from medprism.method import Method


class ERM(Method):
    """Empirical risk minimisation (Vapnik 1992): cross-entropy of a linear head on the pooled embedding.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        encoder: short name of an encoder for the cohort's input (`region`, `transformer`, `graph`, `mlp` for
            connectomes), or the import path of a class of your own.
        encoder_options: arguments of that encoder.
        dropout: share of the pooled embedding that is dropped in training.
        optimizer: how to make the optimizer; AdamW with learning rate 1e-3 and weight decay 1e-4 when left out.
        scheduler: how to make the learning-rate scheduler; none when left out.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target"})

    def __init__(
        self,
        cohort: dict[str, Any],
        encoder: str = "region",
        encoder_options: dict[str, Any] | None = None,
        dropout: float = 0.0,
        optimizer: Optional[OptimizerCallable] = None,  # noqa: UP045
        scheduler: Optional[LRSchedulerCallable] = None,  # noqa: UP045
    ) -> None:
        super().__init__(cohort, optimizer, scheduler)
        self.encoder = build_encoder(self.cohort, encoder, encoder_options)
        outputs = max(1, len(self.cohort.target.classes))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.encoder.dim, outputs))

    def represent(self, batch: Batch) -> Representation:
        """Pooled embedding and logits of the target."""
        encoded = self.encoder(batch[self.cohort.input_field])  # type: ignore[literal-required]
        return Representation(
            logits={self.cohort.target.name: self.head(encoded.pooled)},
            blocks={"pooled": encoded.pooled},
            tokens={"regions": encoded.tokens},
        )

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """Cross-entropy (classes, labels) or squared error (value) of the target."""
        target = self.cohort.target.name
        return {"target": target_loss(rep.logits[target], batch["target"], self.cohort.target_kind)}
