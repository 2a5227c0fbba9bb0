"""Information that labels share: the floor of every dependence between accurate representations."""

from __future__ import annotations

import torch
from torch import Tensor

from medprism.cohort import UNKNOWN
from medprism.distributed import gather_with_grad


def label_information(first: Tensor, second: Tensor, weight: Tensor | None = None) -> Tensor:
    """Plug-in mutual information of two class labels, over the samples of all ranks, in nat.

    Representations from which both labels are read without error share at least as much.

    Args:
        first: `(n,)` long classes, -1 where unknown.
        second: `(n,)` long classes, -1 where unknown.
        weight: `(n,)` weights of the samples; equal when left out.

    Returns:
        Scalar; 0 when no sample has both labels.
    """
    first, second = gather_with_grad(first), gather_with_grad(second)
    weight = torch.ones_like(first, dtype=torch.float) if weight is None else gather_with_grad(weight.float())
    known = ((first != UNKNOWN) & (second != UNKNOWN)).float() * weight
    rows, columns = first.clamp(min=0), second.clamp(min=0)
    width = int(columns.max()) + 1
    counts = torch.zeros((int(rows.max()) + 1) * width, device=first.device)
    counts.index_add_(0, rows * width + columns, known)
    joint = counts.view(-1, width) / counts.sum().clamp(min=1e-12)
    product = joint.sum(1, keepdim=True) * joint.sum(0, keepdim=True)
    return torch.where(joint > 0, joint * (joint / product.clamp(min=1e-30)).clamp(min=1e-30).log(), 0.0).sum()
