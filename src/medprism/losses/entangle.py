"""EnD: embeddings of one attribute class made orthogonal, those of one target class pulled together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import UNKNOWN
from medprism.distributed import gather_with_grad


def entangle_disentangle(embedding: Tensor, target: Tensor, attribute: Tensor) -> tuple[Tensor, Tensor]:
    """The two terms of EnD (Tartaglione et al., CVPR 2021, equations 3 and 5).

    With unit vectors z, `disentangle` is the mean over samples i of the mean of |z_i . z_j| over the other samples j of
    its attribute class, and `entangle` is minus the mean over i of the mean of z_i . z_j over samples j of its target
    class with another attribute class. Both are 0 where there is no such j.

    Args:
        embedding: `(n, d)`.
        target: `(n,)` long classes, -1 where unknown.
        attribute: `(n,)` long classes, -1 where unknown.

    Returns:
        Scalars `disentangle` in [0, 1] and `entangle` in [-1, 1], over the samples of all ranks.
    """
    own = F.normalize(gather_with_grad(embedding).float(), dim=1)
    target, attribute = gather_with_grad(target), gather_with_grad(attribute)
    with torch.autocast(own.device.type, enabled=False):  # half precision has three digits of a cosine
        cosines = own @ own.T  # (n, n)
    known = (target != UNKNOWN) & (attribute != UNKNOWN)
    pairs = (known[:, None] & known[None, :]).fill_diagonal_(False)
    biased = attribute[:, None] == attribute[None, :]
    same = target[:, None] == target[None, :]
    return _mean_of_means(cosines.abs(), pairs & biased), -_mean_of_means(cosines, pairs & same & ~biased)


def _mean_of_means(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over the rows that have chosen entries of the mean over those entries."""
    count = chosen.sum(1)
    means = (values * chosen).sum(1) / count.clamp(min=1)
    return means.sum() / (count > 0).sum().clamp(min=1)
