"""`Measure`: the one interface of all dependence measures, and the samples that it hands to them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from medprism.distributed import gather_with_grad

Pairs = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Samples:
    """The samples of all ranks.

    Attributes:
        pairs: P pairs of features, `(N, d_a)` and `(N, d_b)`.
        groups: `(P, N)` long, or `(1, N)` for all pairs; product pairs are formed within a group, and samples of group
            -1 do not count.
        weight: `(N,)` importance weights.
    """

    pairs: list[tuple[Tensor, Tensor]]
    groups: Tensor
    weight: Tensor


class Measure(nn.Module, ABC):
    """Dependence of pairs of latent blocks: value and gradient, on the samples of all ranks.

    Args:
        dims: widths `(d_a, d_b)` of each of the P pairs.
    """

    trained: ClassVar[bool] = False
    """Whether it has critics, which `critic_loss` trains."""

    minimum: ClassVar[int]
    """Fewest samples, of one class under `given`, that it can be computed from."""

    def __init__(self, dims: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.dims = [(int(a), int(b)) for a, b in dims]
        if not self.dims or min(map(min, self.dims)) < 1:
            raise ValueError(f"dims are {self.dims}; expected at least one pair of widths (d_a, d_b), each 1 or more")

    @abstractmethod
    def value(self, samples: Samples) -> Tensor:
        """`(P,)` dependence; the parameters of critics must be detached."""

    def objective(self, samples: Samples) -> Tensor:
        """Scalar to minimise by the critics' parameters."""
        return samples.weight.new_zeros(())

    def forward(
        self, pairs: Pairs, given: Tensor | None = None, weight: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """The dependence of each pair; its gradient reaches the features only, critics are frozen.

        Every rank must call it with its own samples and gets the value of all.

        Args:
            pairs: P pairs of features `(n, d_a)`, `(n, d_b)` of this rank.
            given: `(n,)` long classes y, -1 where unknown (such samples do not count); the dependence is then
                conditional, `sum_y p(y) I(a; b | y)`: product samples are formed within a class.
            weight: `(n,)` importance weights of the samples, mean 1; joint and product are both reweighted.
            known: `(P, n)` bool; the samples that count for a pair. A pair with too few of them gives 0.

        Returns:
            `(P,)`; in nat for mutual information.

        Raises:
            ValueError: when an input has the wrong shape, or the batch of all ranks is too small.
        """
        with torch.autocast(
            pairs[0][0].device.type, enabled=False
        ):  # half precision is too coarse for exp and BatchNorm
            return self.value(self._gather(pairs, given, weight, known))

    def critic_loss(
        self,
        pairs: Pairs,
        given: Tensor | None = None,
        weight: Tensor | None = None,
        known: Tensor | None = None,
        detach: bool = True,
    ) -> Tensor:
        """The loss of the critics, summed over pairs, with the features detached; 0 for a measure without critics.

        Args:
            pairs: as in `forward`.
            given: as in `forward`.
            weight: as in `forward`.
            known: as in `forward`.
            detach: False lets the gradient through to what made the features, such as an attention that belongs to the
                critics; the caller then detaches what must be.

        Returns:
            Scalar to minimise by the critics' parameters.

        Raises:
            ValueError: as in `forward`.
        """
        if not self.trained:
            return pairs[0][0].new_zeros(())
        pairs = [(a.detach(), b.detach()) for a, b in pairs] if detach else pairs
        with torch.autocast(pairs[0][0].device.type, enabled=False):
            return self.objective(self._gather(pairs, given, weight, known))

    def _gather(self, pairs: Pairs, given: Tensor | None, weight: Tensor | None, known: Tensor | None) -> Samples:
        self._check(pairs, given, weight, known)
        blocks = [x if x.dtype == torch.float64 else x.float() for pair in pairs for x in pair]
        features = torch.split(gather_with_grad(torch.cat(blocks, 1)), [x.shape[1] for x in blocks], 1)
        n = blocks[0].shape[0]
        # Labels of all kinds travel together: what is not given is class 0, weight 1 and known.
        labels = features[0].new_ones(n, 3)
        labels[:, 0] = 0 if given is None else given
        labels[:, 1] = 1 if weight is None else weight
        seen = labels[:, 2:] if known is None else known.T.to(labels.dtype)
        labels = gather_with_grad(torch.cat([labels[:, :2], seen], 1)).detach()
        classes = labels[:, 0].long()
        self._check_size(classes, given is not None)
        groups = torch.where(labels[:, 2:].T > 0, classes, -1).clamp(min=-1)
        return Samples(list(zip(features[::2], features[1::2], strict=True)), groups, labels[:, 1])

    def _check(self, pairs: Pairs, given: Tensor | None, weight: Tensor | None, known: Tensor | None) -> None:
        if [(a.shape[1:], b.shape[1:]) for a, b in pairs] != [((a,), (b,)) for a, b in self.dims]:
            raise ValueError(
                f"the pairs have shapes {[(tuple(a.shape), tuple(b.shape)) for a, b in pairs]}; this measure was built "
                f"for pairs of widths {self.dims}, each (samples, width)"
            )
        n = pairs[0][0].shape[0]
        if any(len(x) != n for pair in pairs for x in pair):
            raise ValueError(f"the pairs have {[(len(a), len(b)) for a, b in pairs]} samples; all must have the same")
        expected = {"given": (given, (n,)), "weight": (weight, (n,)), "known": (known, (len(self.dims), n))}
        for name, (labels, shape) in expected.items():
            if labels is not None and labels.shape != shape:
                raise ValueError(f"`{name}` has shape {tuple(labels.shape)}; expected {shape}")
        if weight is not None and not (weight >= 0).all():
            raise ValueError("`weight` has negative or missing values; importance weights are 0 or more, with mean 1")

    def _check_size(self, classes: Tensor, conditional: bool) -> None:
        if len(classes) < self.minimum:
            raise ValueError(
                f"the batch of all ranks has {len(classes)} samples; {type(self).__name__} needs at least "
                f"{self.minimum}: enlarge batch_size"
            )
        if conditional and (largest := int(classes[classes >= 0].bincount(minlength=1).max())) < self.minimum:
            raise ValueError(
                f"no class of `given` has more than {largest} of the {len(classes)} samples of the batch; "
                f"{type(self).__name__} needs at least {self.minimum} of one class: enlarge batch_size"
            )
