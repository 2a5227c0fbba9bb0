"""Dependence measures by name, and those without critics."""

from __future__ import annotations

import inspect
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Final

import torch
from torch import Tensor

from medprism.dependence.base import Measure, Samples
from medprism.dependence.bounds import BOUNDS
from medprism.dependence.kernels import distance_correlation, hsic, joint_product_mmd
from medprism.dependence.mutual_information import CLUB, MutualInformation
from medprism.dependence.negatives import Draws, derangements

__all__ = ["HSIC", "MEASURES", "MMD", "DistanceCorrelation", "Measure", "build_measure"]


class Untrained(Measure):
    """What the measures without critics share: the mean over the classes of `given`.

    Classes with fewer than 4 samples are skipped.
    """

    minimum: ClassVar[int] = 4

    @abstractmethod
    def of_class(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Dependence of the samples of one class, a scalar."""

    def value(self, samples: Samples) -> Tensor:
        """`(P,)` means over classes, each with its share of the samples."""
        groups = samples.groups.expand(len(samples.pairs), -1)
        return torch.stack(
            [self._mean(a, b, own, samples.weight) for (a, b), own in zip(samples.pairs, groups, strict=True)]
        )

    def _mean(self, a: Tensor, b: Tensor, groups: Tensor, weight: Tensor) -> Tensor:
        total, shares = 0 * (a.sum() + b.sum()), 0 * weight.sum()
        for group, size in zip(*torch.unique(groups[groups >= 0], return_counts=True), strict=True):
            if size >= self.minimum:
                rows = groups == group
                share = weight[rows].sum()
                total = total + share * self.of_class(a[rows], b[rows], weight[rows])
                shares = shares + share
        return total / shares.clamp(min=1e-12)


class DistanceCorrelation(Untrained):
    """`distance_correlation` of each pair.

    Args:
        dims: widths of each pair.
        bias_corrected: whether to take the bias-corrected form, on the scale of the square.
    """

    def __init__(self, dims: Sequence[tuple[int, int]], bias_corrected: bool = False) -> None:
        super().__init__(dims)
        self.bias_corrected = bias_corrected

    def of_class(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Scalar."""
        return distance_correlation(a, b, weight, self.bias_corrected)


class HSIC(Untrained):
    """`hsic` of each pair.

    Args:
        dims: widths of each pair.
    """

    def of_class(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Scalar."""
        return hsic(a, b, weight)


class MMD(Untrained):
    """`joint_product_mmd` of each pair, with a derangement of the batch as product samples.

    Args:
        dims: widths of each pair.
        seed: of the derangements; the same on all ranks, and new ones in every call in training.
    """

    def __init__(self, dims: Sequence[tuple[int, int]], seed: int = 0) -> None:
        super().__init__(dims)
        self.draws = Draws(seed)

    def value(self, samples: Samples) -> Tensor:
        """`(P,)` means over classes."""
        value = super().value(samples)
        self.draws.advance()
        return value

    def of_class(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Scalar."""
        everyone = torch.zeros(len(a), dtype=torch.long, device=a.device)
        partner, _ = derangements(everyone, 1, self.draws.generator())
        return joint_product_mmd(a, b, partner[:, 0], weight)


MEASURES: Final[dict[str, Callable[..., Measure]]] = {
    **{name: partial(MutualInformation, estimator=name) for name in BOUNDS},
    "club": CLUB,
    "dcor": DistanceCorrelation,
    "hsic": HSIC,
    "mmd": MMD,
}
"""Name of a measure to what builds it."""


def build_measure(name: str, dims: Sequence[tuple[int, int]], **options: Any) -> Measure:
    """A measure by name.

    Args:
        name: `dv`, `nwj`, `infonce`, `smile`, `js`, `club`, `dcor`, `hsic` or `mmd`.
        dims: widths `(d_a, d_b)` of each pair.
        options: the other constructor arguments of `MutualInformation`, `CLUB`, `DistanceCorrelation`, `HSIC` or `MMD`.

    Returns:
        the measure.

    Raises:
        ValueError: when there is no such measure, or it has no such option; lists those that there are.
    """
    if name not in MEASURES:
        raise ValueError(f"unknown dependence measure '{name}'; choose one of {list(MEASURES)}")
    build = MEASURES[name]
    own = [x for key, x in inspect.signature(build).parameters.items() if key not in ("dims", "estimator")]
    if unknown := sorted(set(options) - {x.name for x in own}):
        raise ValueError(
            f"dependence measure '{name}' has no options {unknown}; its options are: "
            f"{'; '.join(map(str, own)) or 'none'}"
        )
    return build(dims, **options)
