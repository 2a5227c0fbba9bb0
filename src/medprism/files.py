"""The files of a run's folder that several rooms know by name, and how a file is written whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

PREDICTIONS, METRICS = "predictions.csv", "metrics.json"
"""What a test writes."""

SELECTION = "selection.json"
"""Which validation metric chose the checkpoint, and how high it was there."""

COST = "cost.json"
"""What a training cost: `parameters`, `trained_parameters`, and the median `seconds_per_epoch`."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file so that a reader sees the old or the new one, never a half: write beside it, then rename."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)
