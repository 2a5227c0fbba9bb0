"""Percentile bootstrap intervals over subjects.

Subjects, not samples, are drawn with replacement, and every sample of a drawn subject comes along: two scans of one
person are not two independent observations. (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13;
Field & Welsh, Bootstrapping clustered data, JRSS B 2007.)
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from joblib import cpu_count
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from medprism.cohort import Cohort
from medprism.evaluation.cells import Cells, find_cells
from medprism.evaluation.decisions import Groups, decide, group, known_only
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.weighted import (
    ClassificationStatistic,
    Path,
    RegressionStatistic,
    Statistic,
    subject_codes,
)

CHUNK = 2**19
"""Elements of one block of resamples: small enough to stay in the processor's cache."""

FEW = 64
"""Blocks of fewer resamples are large arrays, which several threads work on at once; of others Python has the most."""


class Interval(NamedTuple):
    """A percentile interval; None where no resample defines the statistic.

    Attributes:
        low: lower end.
        high: upper end.
        undefined: number of resamples that did not define the statistic, and are left out of it.
    """

    low: float | None
    high: float | None
    undefined: int = 0


def resample_counts(sizes: Array, resamples: range, seed: int) -> Array:
    """How often each subject was drawn, in some of the resamples of a bootstrap.

    Each resample draws S of S subjects with replacement, from its own generator: resample b is the same draw in
    whatever block it is made.

    Args:
        sizes: `(S,)` samples of each subject.
        resamples: numbers of the resamples.
        seed: of the bootstrap.

    Returns:
        `(b, S)` counts; float32 where that holds every sum of them exactly, as it takes half the time.
    """
    exact = len(sizes) * sizes.max() < 2**24
    counts = np.empty((len(resamples), len(sizes)), np.float32 if exact else np.float64)
    for row, number in enumerate(resamples):
        drawn = np.random.default_rng([seed, number]).integers(0, len(sizes), size=len(sizes))
        counts[row] = np.bincount(drawn, minlength=len(sizes))
    return counts


def statistic(
    predictions: Predictions,
    cohort: Cohort,
    groups: list[Groups],
    subjects: Array,
    count: int,
    cells: Cells | None = None,
) -> Statistic:
    """All performance and fairness numbers of predictions with known targets, as a function of counts of subjects.

    Args:
        predictions: n samples, targets known.
        cohort: says what the target is.
        groups: attributes.
        subjects: `(n,)` subject codes.
        count: number of subjects.
        cells: of the samples.
    """
    if cohort.target_kind == "value":
        assert predictions.target is not None
        return RegressionStatistic(predictions.probabilities[:, 0], predictions.target, groups, subjects, count)
    return ClassificationStatistic(decide(predictions, cohort), groups, subjects, count, cells)


def cells_of(
    predictions: Predictions,
    cohort: Cohort,
    groups: list[Groups],
    chosen: Sequence[str] | None = None,
    min_group: int = 1,
) -> Cells | None:
    """The cells of predictions with known targets; None where the target is not one of several classes."""
    if cohort.target_kind != "classes":
        return None
    assert predictions.target is not None
    return find_cells(decide(predictions, cohort), predictions.target, groups, cohort, chosen, min_group)


def intervals(
    values: Statistic, sizes: Array, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[Path, Interval]:
    """Percentile bootstrap intervals of every value of a statistic.

    Args:
        values: the statistic.
        sizes: `(S,)` samples of each subject.
        resamples: number of bootstrap resamples.
        confidence: share of the bootstrap distribution between the two ends.
        seed: of the draws.
    """
    block = max(1, CHUNK // int(sizes.sum()))
    blocks = [range(start, min(start + block, resamples)) for start in range(0, resamples, block)]
    # the matrix products are many and small: on busy cores threads that wait for each other took ten times as long
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(min(cpu_count(), 4) if block < FEW else 1) as pool:
        parts = list(pool.map(lambda numbers: values(resample_counts(sizes, numbers, seed)), blocks))
    return {path: percentile_interval(np.concatenate([part[path] for part in parts]), confidence) for path in parts[0]}


def percentile_interval(drawn: Array, confidence: float) -> Interval:
    """The interval between two percentiles of `(B,)` bootstrap values, those undefined (NaN) left out and counted."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return Interval(None, None, len(drawn))
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high), len(drawn) - len(defined))


def paired_difference(
    first: Predictions,
    second: Predictions,
    cohort: Cohort,
    resamples: int = 1000,
    confidence: float = 0.95,
    min_group: int = 1,
    seed: int = 0,
    cells: Sequence[str] | None = None,
) -> dict[str, dict[str, float | None]]:
    """How much higher every metric of `first` is than that of `second`, with an interval.

    Both are measured on the same resampled subjects, so what makes a subject hard for both cancels.

    Args:
        first: predictions of one method.
        second: predictions of another, for the same subjects.
        cohort: of both.
        resamples: number of bootstrap resamples.
        confidence: of the interval.
        min_group: groups with fewer samples are left out.
        seed: of the draws.
        cells: attributes that form cells with the target; see `medprism.evaluation.cells.cell_attributes`.

    Returns:
        Metric name, such as `auroc` or `sex/equalized_odds_difference`, to `value`, `low` and `high`; None where it is
        not defined for both.

    Raises:
        ValueError: when the two do not hold the same subjects, or the same sample has two targets.
    """
    first, second = known_only(first, cohort)[0], known_only(second, cohort)[0]
    codes, names = subject_codes(first.subjects)
    other, others = subject_codes(second.subjects)
    if names != others or not names:
        odd = sorted(set(names) ^ set(others))
        raise ValueError(f"a paired difference needs the same subjects on both sides; {len(odd)} differ: {odd[:3]}")
    truth = dict(zip(first.ids, np.asarray(first.target), strict=True))
    for name, target in zip(second.ids, np.asarray(second.target), strict=True):
        if not np.array_equal(truth.get(name, target), target, equal_nan=True):
            raise ValueError(f"sample '{name}' has target {truth[name]} in the first and {target} in the second set")

    def measured(predictions: Predictions, subjects: Array) -> Statistic:
        groups = group(predictions, cohort, min_group)[0]
        found = cells_of(predictions, cohort, groups, cells, min_group)
        return statistic(predictions, cohort, groups, subjects, len(names), found)

    a, b = measured(first, codes), measured(second, other)

    def difference(counts: Array) -> dict[Path, Array]:
        left, right = a(counts), b(counts)
        return {path: left[path] - right[path] for path in left if path in right}

    point = difference(np.ones((1, len(names))))
    sizes = np.maximum(np.bincount(codes), np.bincount(other))
    found = intervals(difference, sizes, resamples, confidence, seed)
    return {
        "/".join(path): {
            "value": None if np.isnan(value[0]) else float(value[0]),
            "low": None if np.isnan(value[0]) else found[path].low,
            "high": None if np.isnan(value[0]) else found[path].high,
        }
        for path, value in point.items()
    }
