"""Confounders that are applied by us: who gets which class of an attribute, so that it agrees with the target."""

from __future__ import annotations

import itertools
import math

import numpy as np

from medprism.data.errors import DataError
from medprism.data.samples import IntArray


def checked_ratio(ratio: float) -> float:
    """The ratio, if it is one that both values of an attribute occur with.

    Raises:
        DataError: when it does not lie in (0, 1).
    """
    if not 0 < ratio < 1:
        raise DataError(f"ratio is {ratio}; it must lie between 0 and 1, both excluded, such as 0.9")
    return ratio


def confounded(target: IntArray, ratio: float, attributes: int, generator: np.random.Generator) -> IntArray:
    """Binary attributes that each agree with a binary target at a rate, independent of each other given the target.

    The counts of all combinations are exact up to rounding; who gets which combination is random.

    Args:
        target: `(n,)` classes 0 and 1.
        ratio: share of the samples of each class in which an attribute equals the target, in (0, 1).
        attributes: their number K.
        generator: draws who gets which.

    Returns:
        `(n, K)` codes 0 and 1.

    Raises:
        DataError: when the ratio does not lie in (0, 1).
    """
    checked_ratio(ratio)
    patterns = np.array(list(itertools.product((1, 0), repeat=attributes)))
    shares = [math.prod(ratio if agrees else 1 - ratio for agrees in pattern) for pattern in patterns.tolist()]
    codes = np.zeros((len(target), attributes), dtype=np.int64)
    for label in (0, 1):
        rows = np.flatnonzero(target == label)
        agrees = np.repeat(patterns, apportioned(len(rows), shares), axis=0)
        codes[generator.permutation(rows)] = np.where(agrees, label, 1 - label)
    return codes


def apportioned(total: int, shares: list[float]) -> IntArray:
    """Whole numbers in the proportion of `shares` that sum to `total`, by largest remainder."""
    exact = np.asarray(shares) * (total / sum(shares))
    counts = np.floor(exact + 1e-9).astype(np.int64)
    most = np.argsort(counts - exact, kind="stable")[: total - counts.sum()]
    counts[most] += 1
    return counts
