"""Talk between processes: the only code of the project that calls torch.distributed.

Losses that couple samples gather their samples over all ranks first. With `gather_with_grad` a loss that every rank
computes on the gathered batch, or on its own rows of it and averages, has under DDP's gradient averaging exactly the
gradient of one process on the concatenated batch: backward sums over ranks, DDP divides by their number. So a loss
is never scaled by the world size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes of this run; 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; 0 without torch.distributed."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def gather_with_grad(x: Tensor) -> Tensor:
    """Concatenate `x` of all ranks along dimension 0, in the order of ranks, keeping gradients.

    Every rank must call it, also with zero rows. Ranks may hold different numbers of rows, but must agree in the
    other dimensions and the type.

    Args:
        x: `(n, ...)` rows of this rank.

    Returns:
        `(sum of n, ...)`; `x` itself in a single process.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over all ranks, without gradient; every rank must call it with the same shape."""
    if world_size() == 1:
        return x.detach()
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / world_size()


def gather_objects(value: T) -> list[T]:
    """The value of every rank, in the order of ranks; for evaluation, not for training steps."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def process_group(rank: int, ranks: int, meeting: Path) -> Iterator[None]:
    """Within it this process is one of several that talk over the CPU; for processes that no trainer started.

    Args:
        rank: number of this process, from 0.
        ranks: number of processes.
        meeting: a file that does not exist yet, the same for all, through which they find each other.
    """
    dist.init_process_group("gloo", init_method=f"file://{meeting.absolute()}", rank=rank, world_size=ranks)
    try:
        yield
    finally:
        dist.destroy_process_group()


def rows_of_all_ranks(n: int, device: torch.device) -> list[int]:
    """The number of rows that each rank holds."""
    if world_size() == 1:
        return [n]
    counts = torch.zeros(world_size(), dtype=torch.long, device=device)
    counts[rank()] = n
    dist.all_reduce(counts)
    return [int(count) for count in counts]


class _Gather(torch.autograd.Function):
    """All-gather forward; in backward the sum over ranks of the gradient that reaches this rank's rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.counts = rows_of_all_ranks(x.shape[0], x.device)
        longest = max(ctx.counts)
        padded = x.new_zeros(longest, *x.shape[1:])
        padded[: x.shape[0]] = x
        parts = [torch.empty_like(padded) for _ in ctx.counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, ctx.counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        start = sum(ctx.counts[: rank()])
        return total[start : start + ctx.counts[rank()]]
