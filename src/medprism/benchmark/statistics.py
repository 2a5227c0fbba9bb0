"""From the predictions of finished runs to numbers that a reviewer accepts.

Out-of-fold predictions are pooled, a metric is averaged over seeds, and intervals come from resampling subjects: the
same resamples for every method, so that differences are paired.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from medprism.benchmark.results import COLUMNS, COMPLETE, EXTRA_COLUMNS, GROUP_COLUMNS, ORDER, WHOLE
from medprism.benchmark.runner import DONE, Outcome, made_of
from medprism.cohort import Cohort
from medprism.evaluation.bootstrap import CHUNK, cells_of, percentile_interval, resample_counts, statistic
from medprism.evaluation.decisions import group, known_only
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.weighted import Path as Metric
from medprism.evaluation.weighted import Statistic
from medprism.files import COST, METRICS, PREDICTIONS

Drawn = dict[int, dict[Metric, Array]]
"""Seed to metric to its values, one a resample."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        name: its folder within the folder of the runs.
        seed: its seed.
        predictions: of the test part.
        sets: test set to the ids in it.
        metrics: nested metrics of the test, as metrics.json holds them.
        record: what done.json holds: `seconds`, `peak_memory_mb`, `code`.
        cost: what cost.json holds: `parameters`, `trained_parameters`, `seconds_per_epoch`; nothing in older runs.
    """

    name: str
    seed: int
    predictions: Predictions
    sets: Mapping[str, frozenset[str]]
    metrics: Mapping[str, Any]
    record: Mapping[str, Any]
    cost: Mapping[str, float]

    @classmethod
    def read(cls, outcome: Outcome, cohort: Cohort) -> Run:
        """Read the folder of a run."""
        path, cost = outcome.folder / PREDICTIONS, outcome.folder / COST
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[table["stage"] == "test"]
        sets: dict[str, set[str]] = {}
        for name, joined in zip(table["id"], table.get("sets", [""] * len(table)), strict=True):
            for one in filter(None, joined.split(";")):
                sets.setdefault(one, set()).add(name)
        return cls(
            outcome.job.name,
            outcome.job.seed,
            Predictions.load(path, "test", cohort),
            {name: frozenset(ids) for name, ids in sets.items()},
            json.loads((outcome.folder / METRICS).read_text(encoding="utf-8"))["test"],
            json.loads((outcome.folder / DONE).read_text(encoding="utf-8")),
            json.loads(cost.read_text(encoding="utf-8")) if cost.exists() else {},
        )


@dataclass(frozen=True)
class Cell:
    """All runs of one method on one cohort.

    Attributes:
        cohort: name in the suite.
        method: name in the suite.
        outcomes: every run of the suite, also those that are missing.
        declared: what the cohort is; None where no seed is complete.
        runs: the runs of the seeds that are complete.
        other_code: number of finished runs that are left out, as they are of other code or data than the rest.
    """

    cohort: str
    method: str
    outcomes: tuple[Outcome, ...]
    declared: Cohort | None
    runs: tuple[Run, ...]
    other_code: int = 0

    @classmethod
    def read(cls, cohort: str, method: str, outcomes: Sequence[Outcome]) -> Cell:
        """Read what is finished; a seed counts when all of its folds are there.

        Runs of different code or data are not averaged: those of today's count, or without any those of most runs.
        """
        finished = [o for o in outcomes if o.state in ("finished", "kept", "stale")]
        made = [made_of(json.loads((o.folder / DONE).read_text(encoding="utf-8"))) for o in finished]
        usable = {o.job.name for o in finished if o.state != "stale"}
        if finished and not usable:
            chosen = Counter(made).most_common(1)[0][0]
            usable = {o.job.name for o, each in zip(finished, made, strict=True) if each == chosen}
        complete = [o for o in outcomes if all(p.job.name in usable for p in outcomes if p.job.seed == o.job.seed)]
        other = len(finished) - len(usable)
        if not complete:
            return cls(cohort, method, tuple(outcomes), None, (), other)
        declared = Cohort.from_dict(json.loads((complete[0].folder / "cohort.json").read_text(encoding="utf-8")))
        return cls(cohort, method, tuple(outcomes), declared, tuple(Run.read(o, declared) for o in complete), other)

    @property
    def state(self) -> str:
        """`complete`, or a sentence on what is missing or does not fit together."""
        states = [o.state for o in self.outcomes]
        failed, missing = states.count("failed"), states.count("failed") + states.count("missing")
        parts = [f"{missing} of {len(states)} runs missing"] if missing else []
        parts += [f"{failed} failed"] if failed else []
        parts += [f"{self.other_code} of {len(states)} runs left out: other code or data"] if self.other_code else []
        parts += (
            ["code or data have changed since"] if "stale" in states and not {"kept", "finished"} & set(states) else []
        )
        return "; ".join(parts) or COMPLETE

    @property
    def evaluator(self) -> Mapping[str, Any]:
        """Settings of the evaluator in the runs."""
        found: Mapping[str, Any] = self.outcomes[0].job.config.get("evaluator", {})
        return found

    @cached_property
    def pooled(self) -> dict[int, tuple[Predictions, dict[str, set[str]]]]:
        """Seed to out-of-fold predictions, and test set to ids."""
        found: dict[int, tuple[list[Predictions], dict[str, set[str]]]] = {}
        for run in self.runs:
            parts, sets = found.setdefault(run.seed, ([], {}))
            parts.append(run.predictions)
            for name, ids in run.sets.items():
                sets.setdefault(name, set()).update(ids)
        return {seed: (joined(parts), sets) for seed, (parts, sets) in found.items()}

    @property
    def test_sets(self) -> list[str]:
        """Names of the test sets in their order; the whole test part where there are none."""
        names = list(dict.fromkeys(name for run in self.runs for name in run.sets))
        return sorted(names, key=lambda n: (n not in ORDER, ORDER.index(n) if n in ORDER else 0, n)) or [WHOLE]


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The predictions of several folds; every sample in one of them."""
    first = parts[0]
    assert all(part.target is not None for part in parts)
    return Predictions(
        ids=[name for part in parts for name in part.ids],
        subjects=[name for part in parts for name in part.subjects],
        probabilities=np.concatenate([part.probabilities for part in parts]),
        target=np.concatenate([part.target for part in parts if part.target is not None]),
        attributes={name: np.concatenate([part.attributes[name] for part in parts]) for name in first.attributes},
        heads={name: np.concatenate([part.heads[name] for part in parts]) for name in first.heads},
    )


def on_set(cell: Cell, name: str) -> dict[int, Predictions]:
    """Seed to the predictions with a known target on one test set, or `WHOLE`; seeds without any are left out."""
    assert cell.declared is not None
    found = {}
    for seed, (predictions, sets) in cell.pooled.items():
        inside = set(predictions.ids) if name == WHOLE else sets.get(name, set())
        part = predictions.take(np.array([each in inside for each in predictions.ids], dtype=bool))
        if len(known := known_only(part, cell.declared)[0]):
            found[seed] = known
    return found


class BySeed:
    """Metrics of a method on one test set, seed by seed, as functions of how often each subject was drawn.

    Args:
        cell: the method's runs.
        parts: seed to predictions.
        subjects: subject to its code; those of all methods that are compared.
    """

    def __init__(self, cell: Cell, parts: Mapping[int, Predictions], subjects: Mapping[str, int]) -> None:
        assert cell.declared is not None
        chosen, smallest = cell.evaluator.get("cells"), cell.evaluator.get("min_group", 1)
        self.parts: dict[int, Statistic] = {}
        self.samples = [len(part) for part in parts.values()]
        self.people = np.zeros(len(subjects), dtype=np.int64)
        for seed, part in parts.items():
            groups = group(part, cell.declared, smallest)[0]
            codes = np.array([subjects[each] for each in part.subjects], dtype=np.int64)
            cells = cells_of(part, cell.declared, groups, chosen, smallest)
            self.parts[seed] = statistic(part, cell.declared, groups, codes, len(subjects), cells)
            self.people = np.maximum(self.people, np.bincount(codes, minlength=len(subjects)))

    def __call__(self, counts: Array) -> Drawn:
        """The metrics of each seed for `(b, S)` counts, `(b,)` each; NaN where a resample does not define one."""
        return {seed: part(counts) for seed, part in self.parts.items()}


def _of_a_group(path: Metric) -> bool:
    """Whether a number is that of a single group, and no headline, gap or worst group."""
    return path[1:2] == ("groups",)


def _stacked(drawn: Drawn) -> dict[Metric, Array]:
    """`(seeds, b)` values of each metric that all seeds have."""
    first = next(iter(drawn.values()), {})
    common = [path for path in first if all(path in each for each in drawn.values())]
    return {path: np.stack([each[path] for each in drawn.values()]) for path in common}


def compare(
    cells: Sequence[Cell], reference: str, resamples: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The statistics of all methods on one cohort.

    Args:
        cells: the methods' runs on the cohort, each with at least one complete seed.
        reference: the method that differences are taken to.
        resamples: of subjects.
        seed: of the resamples.

    Returns:
        Long table: `cohort`, `set`, `method`, `metric`, `seeds`, `samples` (mean over seeds), `subjects`, `mean`, `sd`
        over seeds (ddof 1), `low` and `high` (95 %, over subjects), and over the seeds that both have the `difference`
        to the reference with its interval, p and Holm-corrected p. A metric that a seed does not define is left out.
        And a table of the same numbers of single groups, see `GROUP_COLUMNS`.
    """
    tables, groups = [pd.DataFrame(columns=COLUMNS)], []
    for name in dict.fromkeys(each for cell in cells for each in cell.test_sets):
        parts = {cell.method: on_set(cell, name) for cell in cells if name in cell.test_sets}
        having = [cell for cell in cells if parts.get(cell.method)]
        people = sorted({who for each in parts.values() for part in each.values() for who in part.subjects})
        codes = {subject: k for k, subject in enumerate(people)}
        measured = {cell.method: BySeed(cell, parts[cell.method], codes) for cell in having}
        points = {method: values(np.ones((1, len(people)))) for method, values in measured.items()}
        drawn = _resampled(measured, resamples, seed)
        rows = []
        for cell in having:
            for path, row in _rows(cell, name, measured[cell.method], points[cell.method], drawn[cell.method]):
                if _of_a_group(path):
                    groups.append(row | {"attribute": path[0], "group": path[2], "metric": "/".join(path[3:])})
                else:
                    rows.append(row | _difference(path, points, drawn, cell.method, reference))
        tables.append(_corrected(pd.DataFrame(rows, columns=COLUMNS)))
    summary = pd.concat([table for table in tables if len(table)] or tables, ignore_index=True)
    return summary, pd.DataFrame(groups, columns=GROUP_COLUMNS)


def _resampled(measured: Mapping[str, BySeed], resamples: int, seed: int) -> dict[str, Drawn]:
    """Every method's metrics on the same resamples."""
    found: dict[str, list[Drawn]] = {name: [] for name in measured}
    if not measured:
        return {}
    sizes = np.max([each.people for each in measured.values()], axis=0)
    block = max(1, CHUNK // int(sizes.sum()))
    with threadpool_limits(1, user_api="blas"), np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, resamples, block):
            counts = resample_counts(sizes, range(start, min(start + block, resamples)), seed)
            for name, values in measured.items():
                found[name].append(values(counts))
    return {
        name: {
            seed: {path: np.concatenate([part[seed][path] for part in parts]) for path in values}
            for seed, values in parts[0].items()
        }
        for name, parts in found.items()
    }


def _rows(
    cell: Cell, name: str, values: BySeed, points: Drawn, drawn: Drawn
) -> Iterator[tuple[Metric, dict[str, Any]]]:
    """A row for each metric that every seed defines."""
    draws = _stacked(drawn)
    for path, each in _stacked(points).items():
        if np.isnan(each).any():
            continue
        ends = percentile_interval(draws[path].mean(axis=0), 0.95)
        yield (
            path,
            {
                "cohort": cell.cohort,
                "set": name,
                "method": cell.method,
                "metric": "/".join(path),
                "seeds": len(each),
                "samples": float(np.mean(values.samples)),
                "subjects": int((values.people > 0).sum()),
                "mean": each.mean(),
                "sd": each.std(ddof=1) if len(each) > 1 else np.nan,
                "low": ends.low,
                "high": ends.high,
            },
        )


def _difference(
    path: Metric, points: Mapping[str, Drawn], drawn: Mapping[str, Drawn], method: str, reference: str
) -> dict[str, Any]:
    """The paired difference to the reference, its interval, and the two-sided p of no difference, by the bootstrap."""
    both = [seed for seed in points[method] if seed in points.get(reference, {})]
    if method == reference or not both:
        return {}

    def over_seeds(values: Mapping[str, Drawn]) -> Array:
        nothing = np.array([np.nan])
        each = [values[method][s].get(path, nothing) - values[reference][s].get(path, nothing) for s in both]
        return np.asarray(np.mean(each, axis=0))

    difference = over_seeds(points)[0]
    if np.isnan(difference):
        return {}
    found = over_seeds(drawn)
    ends, defined = percentile_interval(found, 0.95), found[~np.isnan(found)]
    below, above = (defined <= 0).sum() + 1, (defined >= 0).sum() + 1
    p = min(1.0, 2 * min(below, above) / (len(defined) + 1))
    return {"difference": difference, "difference low": ends.low, "difference high": ends.high, "p": p}


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Holm's correction over the methods, for each metric."""
    table = table.copy()
    for _, rows in table.groupby("metric"):
        known = rows["p"].dropna().astype(float)
        table.loc[known.index, "p holm"] = holm(known.to_numpy())
    return table


def holm(p: Array) -> Array:
    """Holm's step-down correction of p values (Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(stepped)
    corrected[order] = np.minimum(1, stepped)
    return corrected


def extras(cells: Sequence[Cell]) -> pd.DataFrame:
    """What the runs measured beside predictions: cost, heads, latent blocks, leakage, alignment; mean, sd over runs.

    Returns:
        Long table: `cohort`, `method`, `what`, `runs`, `mean`, `sd`.
    """
    rows = []
    for cell in cells:
        found: dict[str, list[float]] = {}
        for run in cell.runs:
            numbers = {"seconds": run.record["seconds"], "peak memory, MB": run.record["peak_memory_mb"]}
            numbers |= {name.replace("_", " "): value for name, value in run.cost.items()}
            for name, part in {WHOLE: run.metrics, **run.metrics.get("sets", {})}.items():
                numbers |= {f"{name}/heads/{key}": v for key, v in _numbers(part.get("heads", {})).items()}
            for key in ("latent", "leakage", "alignment"):
                numbers |= {f"{key}/{name}": v for name, v in _numbers(run.metrics.get(key) or {}).items()}
            for name, value in numbers.items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
            rows.append(
                {"cohort": cell.cohort, "method": cell.method, "what": name}
                | {"runs": len(values), "mean": float(np.mean(values)), "sd": sd}
            )
    return pd.DataFrame(rows, columns=EXTRA_COLUMNS)


def _numbers(tree: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The defined numbers of nested metrics, their intervals left out."""
    if "value" in tree:
        return {} if tree["value"] is None else {prefix.rstrip("/"): float(tree["value"])}
    found: dict[str, float] = {}
    for name, branch in tree.items():
        if isinstance(branch, Mapping):
            found |= _numbers(branch, f"{prefix}{name}/")
        elif isinstance(branch, int | float) and not isinstance(branch, bool):
            found[f"{prefix}{name}"] = float(branch)
    return found


def by_cell(outcomes: Sequence[Outcome]) -> list[Cell]:
    """The cells of a suite, in its order."""
    groups: dict[tuple[str, str], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.job.cohort, outcome.job.method), []).append(outcome)
    return [Cell.read(cohort, method, group) for (cohort, method), group in groups.items()]
