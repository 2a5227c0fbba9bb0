"""Dropout of a batch of connectomes on a CPU: torch's against `InputDropout`, in turn, on one thread."""

from __future__ import annotations

import statistics
import time

import torch

from medprism.encoders.dropout import InputDropout


def milliseconds(drop: torch.nn.Module, x: torch.Tensor) -> float:
    """Time of one call."""
    started = time.perf_counter()
    drop(x)
    return 1e3 * (time.perf_counter() - started)


if __name__ == "__main__":
    torch.set_num_threads(1)
    x, ours, reference = torch.randn(64, 200, 200), InputDropout(0.5), torch.nn.Dropout(0.5)
    pairs = [(milliseconds(reference, x), milliseconds(ours, x)) for _ in range(33)][3:]
    ratios = [a / b for a, b in pairs]
    print(
        f"torch {statistics.median(a for a, _ in pairs):.1f} ms, ours {statistics.median(b for _, b in pairs):.1f} ms"
    )
    print(f"ratio: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}, {len(ratios)} pairs")
