"""Classification by the nearest prototype."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from medprism.cohort import Batch, Representation
from medprism.encoders import build_encoder, pooled
from medprism.losses.supervised import target_loss
from medprism.method import Method


class NearestPrototype(Method):
    """Each class has a learned prototype; the nearest one to the embedding is predicted.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        encoder: short name of an encoder for the cohort's input.
        encoder_options: arguments of that encoder.
        sharpness: scale of the squared distances.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target"})

    def __init__(
        self,
        cohort: dict[str, Any],
        encoder: str = "small",
        encoder_options: dict[str, Any] | None = None,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__(cohort)
        self.encoder = build_encoder(self.cohort, encoder, encoder_options)
        self.prototypes = nn.Parameter(torch.randn(len(self.cohort.target.classes), self.encoder.dim))

    def represent(self, batch: Batch) -> Representation:
        """Minus the squared distance to each prototype, as logits."""
        embedding = pooled(self.encoder, batch[self.cohort.input_field])  # type: ignore[literal-required]
        squares = (embedding.float()[:, None] - self.prototypes).square().mean(-1)
        logits = -float(self.hparams["sharpness"]) * squares
        return Representation(logits={self.cohort.target.name: logits}, blocks={"pooled": embedding})

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The term `target`."""
        return {"target": target_loss(rep.logits[self.cohort.target.name], batch["target"])}
