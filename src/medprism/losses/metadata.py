"""Metadata normalisation: features without what a linear model of the metadata says of them."""

from __future__ import annotations

import torch
from torch import Tensor

from medprism.distributed import gather_with_grad


def metadata_effect(features: Tensor, metadata: Tensor, labels: Tensor) -> Tensor:
    """Effect of the metadata on features, beside that of the labels (Lu et al., CVPR 2021, equation 1).

    Least squares of `features = 1 b_0 + metadata b_m + labels b_y + rest` over the samples of all ranks; with the
    labels in the model, what a feature shares with the metadata only through the label stays.

    Args:
        features: `(n, d)`.
        metadata: `(n, m)` centred columns.
        labels: `(n, k)` columns that explain features and stay.

    Returns:
        `b_m` `(m, d)`, with gradient to the features.
    """
    design = gather_with_grad(torch.cat([metadata, labels, torch.ones_like(metadata[:, :1])], 1)).detach()
    every = gather_with_grad(features.float())
    # The pseudoinverse: a batch may lack a class, and then a column is constant.
    effects: Tensor = torch.linalg.pinv(design.float()) @ every
    return effects[: metadata.shape[1]]
