"""Samples of the product distribution: derangements of the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


def derangements(groups: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Up to k other samples of the same group beside each sample.

    Each group is brought into a random order and shifted cyclically by 1 to k places, so that every sample is drawn as
    often as every other, and never beside itself or twice beside the same. The order is random, so the shifts need not
    be.

    Args:
        groups: `(M,)` long, 0 or more.
        k: number of derangements; a group of m samples has m - 1.
        generator: of the CPU, seeded alike on all ranks.

    Returns:
        `(M, k)` indices of the other samples, and `(M, k)` bool whether each exists.
    """
    order = torch.randperm(len(groups), generator=generator).to(groups.device)
    order = order[groups[order].argsort(stable=True)]  # group after group
    sizes = groups.bincount()
    size = sizes[groups[order], None]
    start = (sizes.cumsum(0) - sizes)[groups[order], None]
    place = torch.arange(len(groups), device=groups.device)[:, None]
    shift = torch.arange(1, k + 1, device=groups.device)
    back = order.argsort()
    return order[start + (place - start + shift) % size][back], (shift < size)[back]


@dataclass(frozen=True)
class Pairings:
    """Which samples are paired, and how much each pairing counts; leading dimension P, or 1 for all pairs.

    Attributes:
        columns: `(P, N, K + 1)` long; the sample itself, then K others.
        joint: `(P, N)` weights that sum to 1.
        product: `(P, N, K)` weights that sum to 1.
        counted: `(P,)` 1, or 0 for a pair without product samples, whose weights are uniform only to stay finite.
    """

    columns: Tensor
    joint: Tensor
    product: Tensor
    counted: Tensor

    @property
    def rows(self) -> Tensor:
        """`(P, N, K + 1)` weights that sum to 1, equal for all pairings that count."""
        counts = torch.cat([self.joint[..., None], self.product], -1) > 0
        return counts / counts.sum((1, 2), keepdim=True)


def pairings(groups: Tensor, weight: Tensor, k: int, generator: torch.Generator) -> Pairings:
    """Draw derangements within groups, and weigh them so that a group has the same mass in joint and product.

    A group of one sample has no product samples and is left out; one of fewer than k + 1 samples has fewer pairings,
    each with more weight.

    Args:
        groups: `(P, N)` long, or `(1, N)`; -1 for samples that do not count.
        weight: `(N,)` importance weights.
        k: number of derangements, at most N - 1.
        generator: of the CPU, seeded alike on all ranks.
    """
    p, n = groups.shape
    first = torch.arange(p, device=groups.device)[:, None] * (int(groups.max()) + 2)
    flat = (groups + 1 + first).flatten()  # a number of its own for each group of each pair
    others, exists = derangements(flat, k, generator)
    counts = (exists[:, 0] & (groups.flatten() >= 0)).to(weight.dtype)
    joint = counts * weight.repeat(p)
    mass = torch.zeros(int(flat.max()) + 1, dtype=joint.dtype, device=joint.device).index_add(0, flat, joint)
    # w_i w_j, over the group's mean weight (which must not count twice) and the number of negatives of i
    mean = (mass / flat.bincount().clamp(min=1))[flat].clamp(min=1e-12)
    product = joint[:, None] * (exists * joint[others]) / (mean * exists.sum(1).clamp(min=1))[:, None]
    joint, product = joint.view(p, n), product.view(p, n, k)
    counted = (joint.sum(1) > 0) & (product.sum((1, 2)) > 0)
    joint = torch.where(counted[:, None], joint, 1.0)
    product = torch.where(counted[:, None, None], product, 1.0)
    own = torch.arange(n, device=groups.device).expand(p, n)[..., None]
    return Pairings(
        columns=torch.cat([own, others.view(p, n, k) % n], -1),
        joint=joint / joint.sum(1, keepdim=True),
        product=product / product.sum((1, 2), keepdim=True),
        counted=counted.to(weight.dtype),
    )


class Draws(nn.Module):
    """Random numbers that are the same on all ranks, and go on where a checkpoint stopped.

    Args:
        seed: of the sequence.
    """

    count: Tensor

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def generator(self) -> torch.Generator:
        """The generator of this step: the same until `advance`."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.count))

    def advance(self) -> None:
        """Go to the next step, in training mode."""
        if self.training:
            self.count += 1
