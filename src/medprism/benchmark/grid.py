"""The settings that a search tries: the points of a small grid."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from typing import Any

Grid = Mapping[str, Sequence[Any]]
"""Dotted name of a setting, such as `model.init_args.lambda_dep`, to its values."""


def mistake(grid: Any, trials: int) -> str:
    """What is wrong with a grid, as the end of a sentence about it; nothing when nothing is."""
    if not isinstance(grid, dict) or any(not isinstance(name, str) for name in grid):
        return f"is {grid!r}; expected dotted names with lists, such as model.init_args.lambda_dep: [0.1, 1.0]"
    for name, values in grid.items():
        if not isinstance(values, list) or not values or any(v in values[:k] for k, v in enumerate(values)):
            return f"has {name}: {values!r}; expected a list of different values"
    size = _size(grid)
    if size < trials:
        return (
            f"has {size} points, and the search gives every method {trials} trials: add values, or lower `trials`, so "
            "that no method is tried more often than another"
        )
    return ""


def points(grid: Grid, trials: int) -> list[dict[str, Any]]:
    """The settings that are tried: the whole grid when it has as many points, else as many at random, always the same.

    Args:
        grid: has at least as many points as there are trials.
        trials: number of points.

    Returns:
        Dotted names to values, in the order of the grid.
    """
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    return [every[k] for k in sorted(random.Random(0).sample(range(len(every)), trials))]


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1, "a.c": 2}` as `{"a": {"b": 1, "c": 2}}`."""
    out: dict[str, Any] = {}
    for name, value in settings.items():
        *path, last = name.split(".")
        inner = out
        for step in path:
            inner = inner.setdefault(step, {})
        inner[last] = value
    return out


def _size(grid: Grid) -> int:
    size = 1
    for values in grid.values():
        size *= len(values)
    return size if grid else 0
