"""Adversarial removal of attributes by gradient reversal; a baseline of MIMM-X."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Tensor, nn

from medprism.cohort import Batch, Factor, Representation
from medprism.losses.gradient import reverse_gradient
from medprism.losses.supervised import target_loss
from medprism.methods.erm import ERM
from medprism.methods.mimmx import spurious_factors


class Adversarial(ERM):
    """ERM whose pooled embedding must not tell the attributes (Ganin et al., JMLR 17, 2016).

    A head of each attribute learns to read it from the pooled embedding, and the encoder receives the reversed gradient
    with strength `s (2 / (1 + exp(-gamma p)) - 1)`, where p is the share of the epochs that have passed.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        spurious: attributes to remove; all of the cohort when left out.
        strength: strength s that the reversed gradient approaches; `s tanh(gamma / 2)` at the end of training.
        gamma: how fast it is reached.
        hidden: width of the hidden layer of each attribute's head.
        **erm: arguments of `ERM`.

    Raises:
        KeyError: when an attribute is not one of the cohort's.
        ValueError: when there is no attribute, or a number makes no sense.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target", "attributes"})

    def __init__(
        self,
        cohort: dict[str, Any],
        spurious: list[str] | None = None,
        strength: float = 1.0,
        gamma: float = 4.0,
        hidden: int = 64,
        **erm: Any,
    ) -> None:
        super().__init__(cohort, **erm)
        if strength < 0 or gamma <= 0 or hidden < 1:
            raise ValueError(
                f"strength={strength}, gamma={gamma}, hidden={hidden}: expected at least 0, above 0, and at least 1"
            )
        self.spurious = spurious_factors(self.cohort, spurious)
        self.adversaries = nn.ModuleList([self._adversary(factor, hidden) for factor in self.spurious])

    def _adversary(self, factor: Factor, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(self.encoder.dim, hidden), nn.ReLU(), nn.Linear(hidden, len(factor.classes)))

    def represent(self, batch: Batch) -> Representation:
        """As ERM, with the adversaries' logits of each attribute."""
        rep = super().represent(batch)
        reversed_ = reverse_gradient(rep.blocks["pooled"], self._strength())
        for factor, adversary in zip(self.spurious, self.adversaries, strict=True):
            rep.logits[factor.name] = adversary(reversed_)
        return rep

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The terms of ERM, and a cross-entropy of each attribute, whose gradient is reversed at the embedding."""
        terms = super().losses(batch, rep)
        for factor in self.spurious:
            labels = batch["attributes"][factor.name]
            loss = target_loss(rep.logits[factor.name], labels, weight=batch.get("weight"))
            terms[f"adversary_{factor.name}"] = loss / len(self.spurious)
        return terms

    def _strength(self) -> float:
        progress = self.ramp(1.0)
        return float(self.hparams["strength"]) * (2 / (1 + math.exp(-float(self.hparams["gamma"]) * progress)) - 1)
