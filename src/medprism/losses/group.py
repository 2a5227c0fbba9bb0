"""The loss of the worst group: distributionally robust optimisation over groups (GroupDRO)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import UNKNOWN
from medprism.distributed import gather_with_grad


def group_index(codes: Sequence[Tensor], classes: Sequence[int]) -> Tensor:
    """The number of each sample's group, when every combination of codes is a group.

    Args:
        codes: `(B,)` long codes of each factor, -1 where unknown.
        classes: number of classes of each factor.

    Returns:
        `(B,)` long in [0, product of `classes`), -1 where one of the codes is unknown.
    """
    group = torch.zeros_like(codes[0])
    for code, number in zip(codes, classes, strict=True):
        group = group * number + code
    return group.masked_fill((torch.stack(list(codes)) == UNKNOWN).any(0), UNKNOWN)


def group_dro(values: Tensor, groups: Tensor, q: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """GroupDRO (Sagawa et al., ICLR 2020, algorithm 1): groups with a large loss gain weight.

    With the mean loss l_g of group g over the samples of all ranks, `q_g <- q_g exp(step * l_g)`, normalised to sum 1,
    and the loss is `sum_g q_g l_g`. A group that the batch lacks has the loss 0.

    Args:
        values: `(B,)` loss of each sample.
        groups: `(B,)` long group of each sample in [0, G); those with -1 do not count.
        q: `(G,)` weights of the groups before this batch, which sum to 1.
        step: step size of the weights; 0 leaves them as they are.

    Returns:
        Scalar loss, with gradient, and `(G,)` weights after this batch, without.
    """
    # A masked value may be infinite; multiplying it by 0 would give NaN.
    values = gather_with_grad(values.masked_fill(groups == UNKNOWN, 0))  # (n,)
    member = F.one_hot(gather_with_grad(groups) + 1, len(q) + 1)[:, 1:].to(values.dtype)  # (n, G)
    losses = values @ member / member.sum(0).clamp(min=1)  # (G,)
    q = (q.log() + step * losses.detach()).softmax(0)
    return q @ losses, q
