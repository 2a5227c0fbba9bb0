"""EnD, entangling and disentangling regularisation; a baseline of MIMM-X."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from medprism.cohort import Batch, Representation
from medprism.losses.entangle import entangle_disentangle
from medprism.method import CohortMismatchError
from medprism.methods.erm import ERM
from medprism.methods.mimmx import spurious_factors


class EnD(ERM):
    """ERM with EnD's regulariser on the pooled embedding (Tartaglione et al., CVPR 2021).

    Embeddings of people who share an attribute class are made orthogonal, those who share the target class but not the
    attribute class are pulled together; with several attributes the mean over them.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        spurious: attributes; all of the cohort when left out.
        disentangle: weight of the first term.
        entangle: weight of the second term.
        **erm: arguments of `ERM`.

    Raises:
        CohortMismatchError: when the target is not one of several classes.
        KeyError: when an attribute is not one of the cohort's.
        ValueError: when there is no attribute, or a weight is below 0.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"target", "attributes"})
    uses_weight: ClassVar[bool] = False

    def __init__(
        self,
        cohort: dict[str, Any],
        spurious: list[str] | None = None,
        disentangle: float = 0.1,
        entangle: float = 0.1,
        **erm: Any,
    ) -> None:
        super().__init__(cohort, **erm)
        if self.cohort.target_kind != "classes":
            raise CohortMismatchError(
                f"`{self.cohort.name}` has a target of kind '{self.cohort.target_kind}'; `EnD` pulls samples of one "
                "target class together and needs classes. Choose such a cohort, or Adversarial."
            )
        if min(disentangle, entangle) < 0:
            raise ValueError(f"disentangle={disentangle}, entangle={entangle}: weights are at least 0")
        self.spurious = spurious_factors(self.cohort, spurious)

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The terms of ERM, `disentangle` and `entangle`."""
        each = [
            entangle_disentangle(rep.blocks["pooled"], batch["target"], batch["attributes"][factor.name])
            for factor in self.spurious
        ]
        apart, together = (torch.stack(terms).mean() for terms in zip(*each, strict=True))
        return {
            **super().losses(batch, rep),
            "disentangle": self.hparams["disentangle"] * apart,
            "entangle": self.hparams["entangle"] * together,
        }
