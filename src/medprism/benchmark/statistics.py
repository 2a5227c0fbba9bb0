"""From the predictions of finished runs to numbers that a reviewer accepts.

Out-of-fold predictions are pooled, a metric is averaged over seeds, and intervals come from resampling subjects: the
same resamples for every method, so that differences are paired.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from medprism.benchmark.runner import DONE, Outcome
from medprism.cohort import Cohort
from medprism.evaluation.bootstrap import cells_of, percentile_interval, resample_counts, statistic
from medprism.evaluation.decisions import group, known_only
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.weighted import Path as Metric
from medprism.evaluation.weighted import Statistic

WHOLE = "test"
"""Name of the whole test part, beside the names of test sets."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        seed: its seed.
        predictions: of the test part.
        sets: test set to the ids in it.
        metrics: nested metrics of the test, as metrics.json holds them.
        record: what done.json holds: `seconds`, `peak_memory_mb`, `code`.
    """

    seed: int
    predictions: Predictions
    sets: Mapping[str, frozenset[str]]
    metrics: Mapping[str, Any]
    record: Mapping[str, Any]

    @classmethod
    def read(cls, outcome: Outcome, cohort: Cohort) -> Run:
        """Read the folder of a run."""
        path = outcome.folder / "predictions.csv"
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table[table["stage"] == "test"]
        sets: dict[str, set[str]] = {}
        for name, joined in zip(table["id"], table.get("sets", [""] * len(table)), strict=True):
            for one in filter(None, joined.split(";")):
                sets.setdefault(one, set()).add(name)
        return cls(
            outcome.job.seed,
            Predictions.load(path, "test", cohort),
            {name: frozenset(ids) for name, ids in sets.items()},
            json.loads((outcome.folder / "metrics.json").read_text(encoding="utf-8"))["test"],
            json.loads((outcome.folder / DONE).read_text(encoding="utf-8")),
        )


@dataclass(frozen=True)
class Cell:
    """All runs of one method on one cohort.

    Attributes:
        cohort: name in the suite.
        method: name in the suite.
        outcomes: every run of the suite, also those that are missing.
        declared: what the cohort is; None where no run is finished.
        runs: the runs of the seeds that are complete.
    """

    cohort: str
    method: str
    outcomes: tuple[Outcome, ...]
    declared: Cohort | None
    runs: tuple[Run, ...]

    @classmethod
    def read(cls, cohort: str, method: str, outcomes: Sequence[Outcome]) -> Cell:
        """Read what is finished; a seed counts when all of its folds are there."""
        complete = [o for o in outcomes if all(_finished(p) for p in outcomes if p.job.seed == o.job.seed)]
        if not complete:
            return cls(cohort, method, tuple(outcomes), None, ())
        declared = Cohort.from_dict(json.loads((complete[0].folder / "cohort.json").read_text(encoding="utf-8")))
        return cls(cohort, method, tuple(outcomes), declared, tuple(Run.read(o, declared) for o in complete))

    @property
    def state(self) -> str:
        """`complete`, or a sentence on what is missing or does not fit together."""
        missing = [o for o in self.outcomes if not _finished(o)]
        failed = sum(o.state == "failed" for o in missing)
        codes = {run.record["code"] for run in self.runs}
        parts = [f"{len(missing)} of {len(self.outcomes)} runs missing"] if missing else []
        parts += [f"{failed} failed"] if failed else []
        parts += ["runs of different code"] if len(codes) > 1 else []
        parts += (
            ["code has changed since"] if any(o.state == "stale" for o in self.outcomes) and len(codes) == 1 else []
        )
        return "; ".join(parts) or "complete"

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


ORDER = ("same", "inverted", "balanced", "native")


def _finished(outcome: Outcome) -> bool:
    return outcome.state in ("finished", "kept", "stale")


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


class OverSeeds:
    """Metrics of a method on one test set, seed by seed, as functions of how often each subject was drawn.

    Args:
        cell: the method's runs.
        name: test set, or `WHOLE`.
        subjects: subject to its code; those of all methods that are compared.
    """

    def __init__(self, cell: Cell, name: str, subjects: Mapping[str, int]) -> None:
        assert cell.declared is not None
        self.parts: list[Statistic] = []
        self.samples: list[int] = []
        self.people = np.zeros(len(subjects), dtype=np.int64)
        for predictions, sets in cell.pooled.values():
            part = predictions
            if name != WHOLE:
                inside = sets.get(name, set())
                part = predictions.take(np.array([each in inside for each in predictions.ids], dtype=bool))
            part = known_only(part, cell.declared)[0]
            if not len(part):
                continue
            groups = group(part, cell.declared, 1)[0]
            codes = np.array([subjects[each] for each in part.subjects], dtype=np.int64)
            cells = cells_of(part, cell.declared, groups)
            self.parts.append(statistic(part, cell.declared, groups, codes, len(subjects), cells))
            self.samples.append(len(part))
            self.people = np.maximum(self.people, np.bincount(codes, minlength=len(subjects)))

    def __call__(self, counts: Array) -> dict[Metric, Array]:
        """Mean over seeds of the metrics of `(b, S)` counts, `(b,)` each; NaN where a seed does not define it."""
        each = self.seeds(counts)
        return {path: np.mean([found[path] for found in each], axis=0) for path in _common(each)}

    def seeds(self, counts: Array) -> list[dict[Metric, Array]]:
        """The metrics of each seed."""
        return [{path: values for path, values in part(counts).items() if _shown(path)} for part in self.parts]


def _common(each: Sequence[Mapping[Metric, Array]]) -> list[Metric]:
    return [path for path in each[0] if all(path in other for other in each)] if each else []


def _shown(path: Metric) -> bool:
    """Headline numbers and gaps, not the numbers of single groups."""
    return len(path) == 1 or (len(path) == 2 and path[1] != "groups")


def compare(cells: Sequence[Cell], reference: str, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """The statistics of all methods on one cohort.

    Args:
        cells: the methods' runs on the cohort, each with at least one complete seed.
        reference: the method that differences are taken to.
        resamples: of subjects.
        seed: of the resamples.

    Returns:
        Long table: `cohort`, `set`, `method`, `metric`, `seeds`, `samples` (mean over seeds), `subjects`, `mean`, `sd`
        over seeds (ddof 1), `low` and `high` (95 %, over subjects), and `difference` to the reference with its
        interval, p and Holm-corrected p.
    """
    tables = []
    for name in dict.fromkeys(each for cell in cells for each in cell.test_sets):
        having = [cell for cell in cells if name in cell.test_sets]
        people = sorted({s for cell in having for p, _ in cell.pooled.values() for s in p.subjects})
        codes = {subject: k for k, subject in enumerate(people)}
        measured = {cell.method: OverSeeds(cell, name, codes) for cell in having}
        drawn = _resampled(measured, len(people), resamples, seed)
        rows = [row for cell in having for row in _rows(cell, name, measured[cell.method], drawn, reference)]
        tables.append(_corrected(pd.DataFrame(rows)))
    return pd.concat(tables, ignore_index=True)


def _resampled(
    measured: Mapping[str, OverSeeds], subjects: int, resamples: int, seed: int
) -> dict[str, dict[Metric, Array]]:
    """Every method's metrics on the same resamples."""
    sizes = np.max([each.people for each in measured.values()], axis=0)
    block = max(1, 2**18 // int(sizes.sum()))
    found: dict[str, list[dict[Metric, Array]]] = {name: [] for name in measured}
    with threadpool_limits(1, user_api="blas"), np.errstate(invalid="ignore", divide="ignore"):
        for start in range(0, resamples, block):
            counts = resample_counts(sizes, range(start, min(start + block, resamples)), seed)
            for name, values in measured.items():
                found[name].append(values(counts))
    return {
        name: {path: np.concatenate([part[path] for part in parts]) for path in parts[0]}
        for name, parts in found.items()
    }


def _rows(
    cell: Cell, name: str, values: OverSeeds, drawn: Mapping[str, Mapping[Metric, Array]], reference: str
) -> list[dict[str, Any]]:
    ones = np.ones((1, len(values.people)))
    each = values.seeds(ones)
    rows = []
    for path in _common(each):
        points = np.array([found[path][0] for found in each])
        if np.isnan(points).any():
            continue
        ends = percentile_interval(drawn[cell.method][path], 0.95)
        row = {
            "cohort": cell.cohort,
            "set": name,
            "method": cell.method,
            "metric": "/".join(path),
            "seeds": len(points),
            "samples": float(np.mean(values.samples)),
            "subjects": int((values.people > 0).sum()),
            "mean": points.mean(),
            "sd": points.std(ddof=1) if len(points) > 1 else np.nan,
            "low": ends.low,
            "high": ends.high,
        }
        if cell.method != reference and path in drawn.get(reference, {}):
            row |= _difference(drawn[cell.method][path] - drawn[reference][path])
        rows.append(row)
    return rows


def _difference(drawn: Array) -> dict[str, Any]:
    """Interval of a paired difference, and the two-sided p of no difference, by the bootstrap."""
    ends, defined = percentile_interval(drawn, 0.95), drawn[~np.isnan(drawn)]
    below, above = (defined <= 0).sum() + 1, (defined >= 0).sum() + 1
    p = min(1.0, 2 * min(below, above) / (len(defined) + 1))
    return {"difference low": ends.low, "difference high": ends.high, "p": p}


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """Add `difference` of the means, and Holm's correction over the methods for each metric."""
    if "p" not in table:
        return table
    table = table.copy()
    table["p holm"] = np.nan
    for _, rows in table.groupby("metric"):
        known = rows[rows["p"].notna()]
        other = rows[rows["p"].isna()]
        if len(other) == 1:
            table.loc[known.index, "difference"] = known["mean"] - other["mean"].iloc[0]
        table.loc[known.index, "p holm"] = holm(known["p"].to_numpy())
    return table


def holm(p: Array) -> Array:
    """Holm's step-down correction of p values (Scandinavian Journal of Statistics 6, 1979)."""
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    corrected = np.empty_like(stepped)
    corrected[order] = np.minimum(1, stepped)
    return corrected


def extras(cells: Sequence[Cell]) -> pd.DataFrame:
    """What the runs measured beside predictions: heads, latent blocks, leakage, cost; mean and sd over runs.

    Returns:
        Long table: `cohort`, `method`, `what`, `runs`, `mean`, `sd`.
    """
    rows = []
    for cell in cells:
        found: dict[str, list[float]] = {}
        for run in cell.runs:
            numbers = {"seconds": run.record["seconds"], "peak memory, MB": run.record["peak_memory_mb"]}
            for name, part in {WHOLE: run.metrics, **run.metrics.get("sets", {})}.items():
                numbers |= {f"{name}/heads/{key}": v for key, v in _numbers(part.get("heads", {})).items()}
            for key in ("latent", "leakage"):
                numbers |= {f"{key}/{name}": v for name, v in _numbers(run.metrics.get(key) or {}).items()}
            for name, value in numbers.items():
                found.setdefault(name, []).append(value)
        for name, values in found.items():
            sd = float(np.std(values, ddof=1)) if len(values) > 1 else np.nan
            rows.append(
                {"cohort": cell.cohort, "method": cell.method, "what": name}
                | {"runs": len(values), "mean": float(np.mean(values)), "sd": sd}
            )
    return pd.DataFrame(rows)


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


def folder_of(cell: Cell) -> Path:
    """The folder that holds the runs of a cell."""
    return cell.outcomes[0].folder.parent
