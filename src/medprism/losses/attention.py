"""Distances between attention maps."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Distance = Literal["cosine", "jensen_shannon", "total_variation", "l2"]


def attention_distance(p: Tensor, q: Tensor, kind: Distance = "cosine") -> Tensor:
    """Distance between maps over the last dimension, each row of which sums to 1; every kind lies in [0, 1].

    `cosine` (1 - cosine) is the default of the NeuroLIP reconstruction: bounded, and with a usable gradient when both
    maps are nearly uniform. Mean squared error has hardly any there, and the Kullback-Leibler divergence is unbounded.

    Args:
        p: `(..., N)` maps.
        q: `(..., N)` maps, broadcast against `p`.
        kind: `cosine`; `jensen_shannon` (in units of ln 2); `total_variation` (half the L1 distance); `l2` (Euclidean
            distance over sqrt(2)).

    Returns:
        `(...)` distances.

    Raises:
        ValueError: for an unknown kind.
    """
    p, q = p.float(), q.float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(p, q, dim=-1)
    if kind == "total_variation":
        return (p - q).abs().sum(-1) / 2
    if kind == "l2":
        # The floor under the root keeps the gradient finite where the two maps are equal.
        return ((p - q).square().sum(-1) / 2 + 1e-12).sqrt()
    if kind == "jensen_shannon":
        p, q = p.clamp(min=1e-12), q.clamp(min=1e-12)  # the entropy has no gradient at 0
        middle = (p + q) / 2
        both: Tensor = torch.special.entr(middle) - (torch.special.entr(p) + torch.special.entr(q)) / 2
        return both.sum(-1) / math.log(2)
    raise ValueError(f"unknown attention distance '{kind}'; choose cosine, jensen_shannon, total_variation or l2")
