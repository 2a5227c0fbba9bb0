"""Metadata normalisation: features without what a linear model of the metadata says of them."""

from __future__ import annotations

import torch
from torch import Tensor

from medprism.distributed import gather_with_grad


def metadata_effect(features: Tensor, metadata: Tensor, labels: Tensor, known: Tensor | None = None) -> Tensor:
    """Effect of the metadata on features, beside that of the labels (Lu et al., CVPR 2021, equation 1).

    Least squares of `features = 1 b_0 + metadata b_m + labels b_y + rest` over the samples of all ranks; with the
    labels in the model, what a feature shares with the metadata only through the label stays.

    Args:
        features: `(n, d)`.
        metadata: `(n, m)` columns.
        labels: `(n, k)` columns that explain features and stay.
        known: `(n,)` bool; samples whose metadata and labels are known, the others do not count. All, when left out.

    Returns:
        `b_m` `(m, d)`, with gradient to the features; 0 for a column that does not vary.
    """
    known = torch.ones_like(features[:, 0], dtype=torch.bool) if known is None else known
    columns = gather_with_grad(torch.cat([metadata, labels, known[:, None]], 1).float()).detach()
    every = gather_with_grad(features.float())
    design, counts = columns[:, :-1], columns[:, -1:]
    # Centred columns stand for the intercept b_0. A batch may lack a class: its column is constant, and beside an
    # intercept the pseudoinverse would give it a share of the mean of the features.
    design = counts * (design - (counts * design).sum(0) / counts.sum().clamp(min=1))
    varies = design.abs().amax(0) > 1e-5
    with torch.autocast(every.device.type, enabled=False):
        effects: Tensor = torch.linalg.pinv(design * varies) @ every
    return (effects * varies[:, None])[: metadata.shape[1]]
