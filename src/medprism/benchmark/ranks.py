"""Ranks of methods over cohorts: Friedman's test and Nemenyi's critical difference (Demsar, JMLR 7, 2006)."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import friedmanchisquare, rankdata, studentized_range

from medprism.benchmark.results import Results, lower_is_better

RANK_COLUMNS = ("set", "metric", "method", "mean rank", "methods", "cohorts", "friedman", "p", "critical difference")
LEAST = 3
"""Cohorts, and methods, below which ranks say nothing."""
HEADLINE = "balanced or test"
"""Of each cohort the balanced set, else the whole test part, else its first set."""

Values = NDArray[np.float64]


def mean_ranks(values: Values, lower: bool = False) -> Values:
    """Mean rank of each method, 1 is best, ties share their ranks.

    Args:
        values: `(cohorts, methods)`.
        lower: whether less is better.
    """
    means: Values = rankdata(values if lower else -values, axis=1).mean(axis=0)
    return means


def critical_difference(methods: int, cohorts: int, level: float = 0.05) -> float:
    """By how much two mean ranks must differ, by Nemenyi's test at this level."""
    quantile = studentized_range.ppf(1 - level, methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(methods * (methods + 1) / (6 * cohorts)))


def friedman(values: Values) -> tuple[float, float]:
    """Friedman's statistic and its p: do the methods differ at all? NaN where all are tied everywhere."""
    with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
        warnings.simplefilter("ignore", RuntimeWarning)  # what scipy says of ties everywhere
        statistic, p = friedmanchisquare(*values.T)
    return float(statistic), float(p)


def alike(ranks: Values, difference: float) -> list[tuple[int, int]]:
    """First and last place, by mean rank, of each largest run of methods that do not differ.

    Args:
        ranks: mean ranks in rising order.
        difference: the critical difference.
    """
    ends = [int(np.searchsorted(ranks, rank + difference, side="right")) - 1 for rank in ranks]
    return [
        (start, end)
        for start, end in enumerate(ends)
        if end > start and (start == 0 or end > ends[start - 1])  # else within the run before
    ]


def ranks(results: Results) -> tuple[pd.DataFrame, list[str]]:
    """Mean ranks over cohorts for every shown metric and test set.

    Methods are those that the suite asks for on every cohort with the test set, without the ceiling; cohorts are those
    where all of these methods are complete and define the metric.

    Returns:
        Table of `RANK_COLUMNS`, and sentences on what could not be ranked and which cohorts were left out.
    """
    rows, notes = [], []
    for name, places in _places(results).items():
        for metric in results.shown:
            table, asked = _values(results, places, metric)
            absent = [cohort for cohort in places if cohort not in table.index]
            what = f"{name}: {metric}"
            if len(table) < LEAST or len(asked) < LEAST:
                notes.append(
                    f"{what}: {_count(len(table), 'cohort')} with {_count(len(asked), 'method')} that all of them have "
                    f"complete; ranks need {LEAST} of each."
                )
                continue
            if absent:
                notes.append(f"{what}: without {', '.join(absent)}, where not all methods are complete.")
            values = table.to_numpy(dtype=float)
            statistic, p = friedman(values)
            shared = (len(asked), len(table), statistic, p, critical_difference(len(asked), len(table)))
            means = mean_ranks(values, lower_is_better(metric))
            rows += [(name, metric, asked[k], means[k], *shared) for k in np.argsort(means, kind="stable")]
    return pd.DataFrame(rows, columns=RANK_COLUMNS), notes


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _places(results: Results) -> dict[str, dict[str, str]]:
    """Name of a ranking to cohort to its test set."""
    sets = list(dict.fromkeys(name for cohort in results.cohorts for name in cohort.sets))
    found = {name: {c.name: name for c in results.cohorts if name in c.sets} for name in sets}
    headline = {c.name: c.headline for c in results.cohorts}
    return found if headline in found.values() or not headline else {HEADLINE: headline, **found}


def _values(results: Results, places: dict[str, str], metric: str) -> tuple[pd.DataFrame, list[str]]:
    """`(cohorts, methods)` means of the cohorts where all methods are complete, and the methods."""
    asked = [
        method
        for method in dict.fromkeys(cell.method for cell in results.cells)
        if method != results.ceiling and places.keys() <= {c.cohort for c in results.cells if c.method == method}
    ]
    rows = {cohort: row for cohort, row in _rows(results, places, metric) if all(method in row for method in asked)}
    table = pd.DataFrame.from_dict({cohort: [row[m] for m in asked] for cohort, row in rows.items()}, orient="index")
    return table, asked


def _rows(results: Results, places: dict[str, str], metric: str) -> Iterator[tuple[str, dict[str, float]]]:
    summary = results.summary[results.summary["metric"] == metric]
    for cohort, name in places.items():
        own = summary[(summary["cohort"] == cohort) & (summary["set"] == name)]
        means = dict(zip(own["method"], own["mean"].astype(float), strict=True))
        yield cohort, {method: mean for method, mean in means.items() if (cohort, method) in results.compared}
