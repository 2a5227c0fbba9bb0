"""Information that labels share: the floor of every dependence between accurate representations."""

from __future__ import annotations

import torch
from torch import Tensor

from medprism.cohort import UNKNOWN
from medprism.distributed import gather_with_grad


def label_information(first: Tensor, second: Tensor, weight: Tensor | None = None) -> Tensor:
    """Plug-in mutual information of two class labels, over the samples of all ranks, in nat.

    Representations from which both labels are read without error share at least as much. It reads high, by about
    (classes - 1) (other classes - 1) / (2 samples).

    Args:
        first: `(n,)` long classes, -1 where unknown; or `(n, P)` for P pairs at once.
        second: likewise.
        weight: `(n,)` weights of the samples; equal when left out.

    Returns:
        Scalar, or `(P,)`; 0 when no sample has both labels.
    """
    if first.ndim == 1:
        return label_information(first[:, None], second[:, None], weight)[0]
    first, second = gather_with_grad(first), gather_with_grad(second)
    weight = torch.ones(len(first), device=first.device) if weight is None else gather_with_grad(weight.float())
    known = ((first != UNKNOWN) & (second != UNKNOWN)).float() * weight[:, None]
    # Numbered anew, so that the table has no row for a combination of classes that does not occur.
    (heights, rows), (widths, columns) = (torch.unique(labels, return_inverse=True) for labels in (first, second))
    pairs, height, width = first.shape[1], len(heights), len(widths)
    cells = (torch.arange(pairs, device=first.device) * height + rows) * width + columns
    counts = torch.zeros(pairs * height * width, device=first.device)
    counts.index_add_(0, cells.flatten(), known.flatten())
    joint = counts.view(pairs, height, width)
    joint = joint / joint.sum((1, 2), keepdim=True).clamp(min=1e-12)
    product = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
    each = torch.where(joint > 0, joint * (joint / product.clamp(min=1e-30)).clamp(min=1e-30).log(), 0.0)
    return each.sum((1, 2))
