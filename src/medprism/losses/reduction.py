"""Means over the samples of all ranks."""

from __future__ import annotations

from torch import Tensor

from medprism.distributed import gather_with_grad


def mean_over_samples(values: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean over the samples of every rank, so that masks and uneven shards weigh each sample alike.

    Args:
        values: `(B,)` one value a sample.
        known: `(B,)` bool; samples that count. All, when left out.

    Returns:
        Scalar; 0 with its graph intact when no sample counts.
    """
    values = gather_with_grad(values)
    if known is None:
        return values.mean()
    weight = gather_with_grad(known.to(values.dtype)).detach()
    # A masked value may be infinite; multiplying it by 0 would give NaN.
    return values.masked_fill(weight == 0, 0).sum() / weight.sum().clamp(min=1)
