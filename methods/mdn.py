"""MDN, metadata normalisation; a baseline of MIMM-X."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import UNKNOWN, Batch, Representation
from medprism.losses.metadata import metadata_effect
from medprism.methods.erm import ERM


class MDN(ERM):
    """ERM on an embedding from which a linear effect of the attributes is taken out (Lu et al., CVPR 2021).

    The effect is estimated beside that of the target, on each training batch; evaluation uses its moving average. So
    attributes are an input here, also at test time: a sample whose attribute is unknown stays as it is. Large batches
    are needed, and a batch that lacks a class estimates nothing for it.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        spurious: attributes to take out; all of the cohort when left out.
        momentum: share of the old value in the moving average of the effect.
        **erm: arguments of `ERM`.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target", "attributes"})
    uses_weight: ClassVar[bool] = False
    effect: Tensor
    seen: Tensor

    def __init__(
        self, cohort: dict[str, Any], spurious: list[str] | None = None, momentum: float = 0.9, **erm: Any
    ) -> None:
        super().__init__(cohort, **erm)
        names = [factor.name for factor in self.cohort.attributes] if spurious is None else spurious
        self.spurious = tuple(self.cohort.attribute(name) for name in names)
        width = sum(len(factor.classes) - 1 for factor in self.spurious)
        self.register_buffer("effect", torch.zeros(width, self.encoder.dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def represent(self, batch: Batch) -> Representation:
        """As ERM, on the embedding without the effect of the attributes."""
        encoded = self.encoder(batch[self.cohort.input_field])  # type: ignore[literal-required]
        metadata = self._columns(batch).to(encoded.pooled.dtype)
        effect = self.effect
        if self.training:
            effect = metadata_effect(encoded.pooled, metadata, self._labels(batch))
            share = self.hparams["momentum"] if self.seen else 0.0
            self.effect.copy_(share * self.effect + (1 - share) * effect.detach())
            self.seen += 1
        pooled = encoded.pooled - metadata @ effect.to(metadata.dtype)
        return Representation(
            logits={self.cohort.target.name: self.head(pooled)},
            blocks={"pooled": pooled},
            tokens={"regions": encoded.tokens},
        )

    def _columns(self, batch: Batch) -> Tensor:
        """`(B, m)` dummy columns of the attributes, centred for balanced classes, 0 where unknown."""
        columns = []
        for factor in self.spurious:
            codes = batch["attributes"][factor.name]
            dummies = F.one_hot(codes.clamp(min=0), len(factor.classes))[:, 1:].float() - 1 / len(factor.classes)
            columns.append(dummies * (codes != UNKNOWN)[:, None])
        return torch.cat(columns, 1)

    def _labels(self, batch: Batch) -> Tensor:
        target = batch["target"]
        if self.cohort.target_kind == "classes":
            return F.one_hot(target.clamp(min=0), len(self.cohort.target.classes))[:, 1:].float()
        return target.float().reshape(len(target), -1)
