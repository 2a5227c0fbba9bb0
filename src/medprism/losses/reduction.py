"""Means over the samples of all ranks."""

from __future__ import annotations

from torch import Tensor

from medprism.distributed import gather_with_grad


def mean_over_samples(values: Tensor, known: Tensor | None = None, weight: Tensor | None = None) -> Tensor:
    """Mean over the samples of every rank, so that masks and uneven shards weigh each sample alike.

    Args:
        values: `(B,)` one value a sample.
        known: `(B,)` bool; samples that count. All, when left out.
        weight: `(B,)` weights of the samples; the weighted sum is divided by the number of samples that count. So the
            mean over batches stays that over the data, where the weights have mean 1.

    Returns:
        Scalar; 0 with its graph intact when no sample counts.
    """
    if known is not None:
        # A masked value may be infinite; multiplying it by 0 would give NaN.
        values = values.masked_fill(~known, 0)
    if weight is not None:
        values = values * weight
    values = gather_with_grad(values)
    if known is None:
        return values.mean()
    return values.sum() / gather_with_grad(known.to(values.dtype)).detach().sum().clamp(min=1)
