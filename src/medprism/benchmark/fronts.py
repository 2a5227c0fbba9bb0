"""Performance against each gap: which methods no other one beats in both."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from medprism.benchmark.results import CohortNote, Results, lower_is_better

PARETO_COLUMNS = ("cohort", "set", "metric", "gap", "method", "value", "gap value", "compared", "front")

SHIFT = "same minus inverted"
"""The gap of a cohort with shifted test sets: the size of what a metric loses when confounders are turned round."""


def pareto_front(performance: NDArray[np.float64], gap: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which of n points no other point beats: none is at least as good in both and better in one.

    Args:
        performance: `(n,)`, more is better.
        gap: `(n,)`, less is better.
    """
    no_worse = (performance[:, None] >= performance) & (gap[:, None] <= gap)  # does j do no worse than i: [j, i]
    better = (performance[:, None] > performance) | (gap[:, None] < gap)
    return np.logical_not((no_worse & better).any(axis=0))


def fronts(results: Results) -> pd.DataFrame:
    """Every shown metric against every gap, by cohort and test set.

    Gaps are the `..._difference` metrics on the same test set. With the sets `same` and `inverted`, |same - inverted|
    of the metric is one more, beside the metric on the balanced set where there is one, else on the inverted one.

    Returns:
        Long table of `PARETO_COLUMNS`. `compared` is false for incomplete cells and the ceiling, which are on no front.
    """
    rows = []
    for cohort in results.cohorts:
        summary = results.summary[results.summary["cohort"] == cohort.name]
        means = {(row["set"], row["metric"], row["method"]): float(row["mean"]) for row in summary.to_dict("records")}
        for where, metric, gap, points in _views(results, cohort, means):
            compared = [(cohort.name, method) in results.compared for method in points]
            sign = -1 if lower_is_better(metric) else 1
            values = np.array(list(points.values()), dtype=float)
            front = np.zeros(len(points), dtype=bool)
            front[compared] = pareto_front(sign * values[compared, 0], values[compared, 1])
            rows += [
                (cohort.name, where, metric, gap, method, *value, take, on)
                for (method, value), take, on in zip(points.items(), compared, front.tolist(), strict=True)
            ]
    return pd.DataFrame(rows, columns=PARETO_COLUMNS)


def _views(
    results: Results, cohort: CohortNote, means: dict[tuple[str, str, str], float]
) -> Iterator[tuple[str, str, str, dict[str, tuple[float, float]]]]:
    """Test set, metric, gap, and method to the values of both."""
    methods = [cell.method for cell in results.cells_of(cohort.name)]
    gaps = list(dict.fromkeys(metric for _, metric, _ in means if metric.endswith("_difference")))
    shown = [metric for metric in results.shown if metric not in gaps]
    for metric in shown:
        if {"same", "inverted"} <= set(cohort.sets):
            where = "balanced" if "balanced" in cohort.sets else "inverted"
            needed = {m: [means.get((s, metric, m)) for s in (where, "same", "inverted")] for m in methods}
            points = {
                m: (v, abs(same - turned))
                for m, (v, same, turned) in needed.items()
                if v is not None and same is not None and turned is not None
            }
            if points:
                yield where, metric, SHIFT, points
        for where in cohort.sets:
            for gap in gaps:
                both = {m: (means.get((where, metric, m)), means.get((where, gap, m))) for m in methods}
                pairs = {m: (v, g) for m, (v, g) in both.items() if v is not None and g is not None}
                if pairs:
                    yield where, metric, gap, pairs
