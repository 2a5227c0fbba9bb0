"""MDN, metadata normalisation; a baseline of MIMM-X."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import UNKNOWN, Batch, Representation
from medprism.losses.metadata import metadata_effect
from medprism.methods.erm import ERM
from medprism.methods.mimmx import spurious_factors


class MDN(ERM):
    """ERM on an embedding from which a linear effect of the attributes is taken out (Lu et al., CVPR 2021).

    The effect is estimated beside that of the target, on each training batch; evaluation uses its moving average. So
    attributes are an input here, also at test time: what is unknown of a sample takes nothing out of it. In training
    the target is one too, for the estimate alone. Samples with an unknown target or attribute do not count in the
    estimate. Large batches are needed; one that lacks a class estimates nothing for it.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        spurious: attributes to take out; all of the cohort when left out.
        momentum: share of the old value in the moving average of the effect.
        **erm: arguments of `ERM`.

    Raises:
        KeyError: when an attribute is not one of the cohort's.
        ValueError: when there is no attribute, or the momentum is not in [0, 1).
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target", "attributes"})
    uses_weight: ClassVar[bool] = False
    effect: Tensor
    """`(m, d)` moving average of the effect of each column of the attributes."""

    seen: Tensor
    """`(m, 1)` bool; whether a column has been estimated."""

    def __init__(
        self, cohort: dict[str, Any], spurious: list[str] | None = None, momentum: float = 0.9, **erm: Any
    ) -> None:
        super().__init__(cohort, **erm)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        self.spurious = spurious_factors(self.cohort, spurious)
        width = sum(len(factor.classes) - 1 for factor in self.spurious)
        self.register_buffer("effect", torch.zeros(width, self.encoder.dim))
        self.register_buffer("seen", torch.zeros(width, 1, dtype=torch.bool))

    def represent(self, batch: Batch) -> Representation:
        """As ERM, on the embedding without the effect of the attributes."""
        encoded = self.encoder(batch[self.cohort.input_field])  # type: ignore[literal-required]
        metadata = self._columns(batch)
        effect = self._estimate(batch, encoded.pooled, metadata) if self.training else self.effect
        with torch.autocast(metadata.device.type, enabled=False):
            pooled = encoded.pooled - (metadata @ effect.float()).to(encoded.pooled.dtype)
        return Representation(
            logits={self.cohort.target.name: self.head(pooled)},
            blocks={"pooled": pooled},
            tokens={"regions" if self.cohort.input_field == "connectome" else "patches": encoded.tokens},
        )

    def _estimate(self, batch: Batch, features: Tensor, metadata: Tensor) -> Tensor:
        """`(m, d)` effect on the features of this batch, which enters the moving average."""
        known = torch.stack([batch["attributes"][factor.name] != UNKNOWN for factor in self.spurious]).all(0)
        if self.cohort.target_kind == "classes":
            known = known & (batch["target"] != UNKNOWN)
        effect = metadata_effect(features, metadata, self._labels(batch), known)
        estimated = (effect.detach() != 0).any(1, keepdim=True)
        share = torch.where(self.seen, self.hparams["momentum"], 0.0)
        average = share * self.effect + (1 - share) * effect.detach()
        self.effect.copy_(torch.where(estimated, average, self.effect))
        self.seen |= estimated
        return effect

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
