"""Empirical risk minimisation: an encoder and a linear head; the reference of every comparison."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, Optional

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.nn import functional as F

from medprism.cohort import UNKNOWN, Batch, Factor, Representation
from medprism.encoders import build_encoder, pooled
from medprism.losses.group import group_dro, group_index
from medprism.losses.supervised import target_loss
from medprism.method import CohortMismatchError, Method


class ERM(Method):
    """Empirical risk minimisation (Vapnik 1992): cross-entropy of a linear head on the pooled embedding.

    With `objective: group_dro` it minimises the loss of the worst group of target and attributes instead (Sagawa et
    al., ICLR 2020). It never predicts an attribute.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        encoder: short name of an encoder for the cohort's input (`region`, `transformer`, `graph`, `mlp` for
            connectomes; `small`, `timm`, `open_clip` for images; `small`, `resnet18`, `densenet` for volumes), or the
            import path of a class of your own.
        encoder_options: arguments of that encoder.
        dropout: share of the pooled embedding that is dropped in training.
        objective: `mean` over all samples, or `group_dro`, in which groups with a large loss gain weight.
        group_by: attributes that form those groups with the target; the sensitive ones when left out, or else all.
        group_step: step size of the weights of the groups.
        optimizer: how to make the optimizer; AdamW with learning rate 1e-3 and weight decay 1e-4 when left out.
        scheduler: how to make the learning-rate scheduler; none when left out.

    Raises:
        CohortMismatchError: when the cohort cannot form the groups of `group_dro`.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target"})
    uses_weight: ClassVar[bool] = True

    group_weights: Tensor
    """`(G,)` weights of the groups of `group_dro`, which sum to 1."""

    def __init__(
        self,
        cohort: dict[str, Any],
        encoder: str = "region",
        encoder_options: dict[str, Any] | None = None,
        dropout: float = 0.0,
        objective: Literal["mean", "group_dro"] = "mean",
        group_by: list[str] | None = None,
        group_step: float = 0.01,
        optimizer: Optional[OptimizerCallable] = None,  # noqa: UP045
        scheduler: Optional[LRSchedulerCallable] = None,  # noqa: UP045
    ) -> None:
        super().__init__(cohort, optimizer, scheduler)
        self.encoder = build_encoder(self.cohort, encoder, encoder_options)
        outputs = max(1, len(self.cohort.target.classes))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.encoder.dim, outputs))
        self.objective = objective
        self.group_step = group_step
        if objective == "group_dro":
            self.grouping = self._grouping(group_by)
            groups = outputs * math.prod(len(factor.classes) for factor in self.grouping)
            self.register_buffer("group_weights", torch.full((groups,), 1 / groups))

    def represent(self, batch: Batch) -> Representation:
        """Pooled embedding and logits of the target; tokens unless training, which reads none."""
        x = batch[self.cohort.input_field]  # type: ignore[literal-required]
        tokens = {}
        if self.training:
            embedding = pooled(self.encoder, x)
        else:
            encoded = self.encoder(x)
            embedding = encoded.pooled
            tokens["regions" if self.cohort.input_field == "connectome" else "patches"] = encoded.tokens
        return Representation({self.cohort.target.name: self.head(embedding)}, {"pooled": embedding}, tokens)

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """Cross-entropy (classes, labels) or squared error (value) of the target, or its GroupDRO."""
        logits, target = rep.logits[self.cohort.target.name], batch["target"]
        if self.objective == "mean":
            return {"target": target_loss(logits, target, self.cohort.target_kind, weight=batch.get("weight"))}
        codes = [target, *(batch["attributes"][factor.name] for factor in self.grouping)]
        groups = group_index(codes, [logits.shape[-1], *(len(factor.classes) for factor in self.grouping)])
        each = F.cross_entropy(logits.float(), target, reduction="none", ignore_index=UNKNOWN)
        loss, weights = group_dro(each, groups, self.group_weights, self.group_step if self.training else 0.0)
        if self.training:
            self.group_weights.copy_(weights)
        return {"target": loss}

    def _grouping(self, names: list[str] | None) -> tuple[Factor, ...]:
        """The attributes that form the groups; refuses a cohort that has no such groups."""
        cohort = self.cohort
        known = {factor.name: factor for factor in cohort.attributes}
        if names is None:
            names = [factor.name for factor in cohort.attributes if factor.role == "sensitive"] or list(known)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise CohortMismatchError(f"`{cohort.name}` has no {unknown} to group by; its attributes are {list(known)}")
        if cohort.target_kind != "classes" or (names and "attributes" not in cohort.fields):
            raise CohortMismatchError(
                f"objective=group_dro needs a target of classes and the field attributes; `{cohort.name}` has "
                f"{cohort.target_kind} and the fields {sorted(cohort.fields)}: take objective=mean"
            )
        if "weight" in cohort.fields:
            raise CohortMismatchError(
                f"objective=group_dro weighs groups itself, and `{cohort.name}` weighs samples (balance=reweight): "
                "take balance=none or resample, or objective=mean"
            )
        return tuple(known[name] for name in names)
