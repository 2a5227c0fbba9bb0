"""Means and medians of scores of single rows, such as queries and sentences, with intervals over subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from medprism.evaluation.bootstrap import intervals
from medprism.evaluation.decisions import ratio
from medprism.evaluation.heads import Number
from medprism.evaluation.predictions import Array
from medprism.evaluation.weighted import Path, Statistic, subject_codes


class Means:
    """Means of the scores of rows, each row as often as its subject was drawn; NaN is left out.

    Args:
        scores: path to `(n,)` scores.
        subjects: `(n,)` subject codes.
        count: number of subjects S.
    """

    def __init__(self, scores: Mapping[Path, Array], subjects: Array, count: int) -> None:
        self.paths = list(scores)
        columns = [np.asarray(values, dtype=np.float64) for values in scores.values()]
        self.sums = np.column_stack([np.bincount(subjects, np.nan_to_num(each), count) for each in columns])
        self.sizes = np.column_stack([np.bincount(subjects, ~np.isnan(each), count) for each in columns])

    def __call__(self, counts: Array) -> dict[Path, Array]:
        """`(B, S)` counts to named `(B,)` values."""
        means = ratio(counts @ self.sums, counts @ self.sizes)
        return {path: means[:, k] for k, path in enumerate(self.paths)}


class Median:
    """Median of the scores of rows, each row as often as its subject was drawn.

    Args:
        scores: `(n,)`, none of them NaN.
        subjects: `(n,)` subject codes.
    """

    def __init__(self, scores: Array, subjects: Array) -> None:
        order = np.argsort(scores, kind="stable")
        self.scores, self.subjects = scores[order], subjects[order]

    def __call__(self, counts: Array) -> Array:
        """`(B, S)` counts to `(B,)` values, the mean of the two middle ones where their number is even."""
        cumulative = np.cumsum(counts.take(self.subjects, axis=1), axis=1, dtype=np.float64)
        half = cumulative[:, -1:] / 2
        lower, upper = (cumulative < half).sum(axis=1), (cumulative <= half).sum(axis=1)
        middle: Array = (self.scores[lower] + self.scores[upper]) / 2
        return middle


def averages(
    scores: Mapping[Path, Array], subjects: Sequence[str], resamples: int, confidence: float, seed: int
) -> dict[Path, Number]:
    """The mean of each column of scores, with its interval over subjects.

    Args:
        scores: path to `(n,)` scores, NaN where one is not defined.
        subjects: n names of people.
        resamples: of the bootstrap; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.
    """
    codes, names = subject_codes(subjects)
    return numbers(Means(scores, codes, len(names)), np.bincount(codes), resamples, confidence, seed)


def numbers(statistic: Statistic, sizes: Array, resamples: int, confidence: float, seed: int) -> dict[Path, Number]:
    """Every value of a statistic with its interval; None where the value is not defined.

    Args:
        statistic: of S subjects.
        sizes: `(S,)` rows of each subject.
        resamples: of the bootstrap; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.
    """
    points = statistic(np.ones((1, len(sizes))))
    ends = intervals(statistic, sizes, resamples, confidence, seed) if resamples else {}
    found: dict[Path, Number] = {}
    for path, value in points.items():
        end = ends.get(path) if not np.isnan(value[0]) else None
        found[path] = {
            "value": None if np.isnan(value[0]) else float(value[0]),
            "low": end.low if end else None,
            "high": end.high if end else None,
        }
    return found


def plain(value: float | None) -> Number:
    """A number without an interval."""
    return {"value": None if value is None or np.isnan(value) else float(value), "low": None, "high": None}
