"""The results of a suite as plain files: what tables, figures and the page are made from, without runs and torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

SUMMARY, EXTRAS, GROUPS, RECORD, ENVIRONMENT = (
    "summary.csv",
    "extras.csv",
    "groups.csv",
    "report.json",
    "environment.json",
)
SEARCH = "search.csv"
"""Every trial of a search of settings; written only where there is one."""

PLAN = "suite.json"
"""What the folder of the runs remembers of the suite."""

COLUMNS = ("cohort", "set", "method", "metric", "seeds", "samples", "subjects", "mean", "sd", "low", "high",
           "difference", "difference low", "difference high", "p", "p holm")  # fmt: skip
EXTRA_COLUMNS = ("cohort", "method", "what", "runs", "mean", "sd")
GROUP_COLUMNS = ("cohort", "set", "method", "attribute", "group", "metric", "seeds", "mean", "sd", "low", "high")

WHOLE = "test"
"""Name of the whole test part, beside the names of test sets."""

ORDER = ("same", "inverted", "balanced", "native")
"""Test sets in the order of tables."""

COMPLETE = "complete"

_NAMES = dict.fromkeys(("cohort", "set", "method", "metric", "what", "attribute", "group"), str)
_NUMBERS = (*COLUMNS[COLUMNS.index("mean") :], "value", "fold")


class ReportError(ValueError):
    """A folder that no report can be made from; the message says what to do."""


@dataclass(frozen=True)
class RunNote:
    """A run of a cell.

    Attributes:
        name: its folder within the folder of the runs.
        seed: its seed.
        fold: its test fold, or None.
        state: `finished`, `kept`, `stale`, `failed` or `missing`.
        counted: whether the numbers contain it.
        seconds: it took.
        error: the last words of a failed run.
    """

    name: str
    seed: int
    fold: int | None
    state: str
    counted: bool
    seconds: float
    error: str


@dataclass(frozen=True)
class CellNote:
    """A method on a cohort.

    Attributes:
        cohort: name in the suite.
        method: name in the suite.
        state: `complete`, or what is missing or does not fit together.
        seeds: number of complete seeds.
        settings: of its first run, as YAML; the others differ in seed and fold alone.
        runs: every run that the suite asks for.
    """

    cohort: str
    method: str
    state: str
    seeds: int
    settings: str
    runs: tuple[RunNote, ...]

    @property
    def whole(self) -> bool:
        """Whether every run counts; only then is the cell compared with others on a front or by ranks."""
        return all(run.counted for run in self.runs)


@dataclass(frozen=True)
class CohortNote:
    """A cohort with at least one complete seed.

    Attributes:
        name: in the suite.
        target: what is predicted.
        simulated: whether its samples are.
        sets: test sets in their order.
    """

    name: str
    target: str
    simulated: bool
    sets: tuple[str, ...]

    @property
    def headline(self) -> str:
        """The test set that says most: where confounders say nothing, else the whole test part, else the first."""
        return next((name for name in ("balanced", WHOLE) if name in self.sets), self.sets[0])


@dataclass(frozen=True)
class MapNote:
    """A figure of a run, shrunk, in the folder of the results."""

    file: str
    cohort: str
    method: str
    seed: int
    name: str


@dataclass(frozen=True)
class Heading:
    """What a suite says of itself, in its plan and in its results.

    Attributes:
        name: name of the suite.
        title: a sentence for tables.
        reference: the method that differences are taken to.
        ceiling: the method, such as an oracle, whose shares are shown; it takes no part in fronts and ranks. None for
            none.
        shown: metrics in the tables, for each test set.
        labels: method to its name for people.
        command: that runs the suite.
        trials: of each method, for every seed and fold; 1 without a search of settings.
    """

    name: str
    title: str
    reference: str
    ceiling: str | None
    shown: tuple[str, ...]
    labels: Mapping[str, str]
    command: str
    trials: int

    @property
    def heading(self) -> dict[str, Any]:
        """These alone, by name."""
        return {field.name: getattr(self, field.name) for field in fields(Heading)}


@dataclass(frozen=True)
class Results(Heading):
    """All that is known of a suite's runs.

    Attributes:
        selection: validation metrics that chose the epochs.
        resamples: of subjects, for the intervals.
        runs_at: folder of the runs, relative to that of the results where it holds them; None elsewhere.
        cohorts: those with a complete seed.
        cells: every method on every cohort that the suite asks for.
        maps: figures of the runs.
        maps_left_out: number of figures that were too many.
        summary: metrics, see `COLUMNS`.
        extras: what was measured beside predictions, see `EXTRA_COLUMNS`.
        groups: metrics of the groups of attributes, see `GROUP_COLUMNS`.
        environment: versions, machine, code and data of the runs.
    """

    selection: tuple[str, ...]
    resamples: int
    runs_at: str | None
    cohorts: tuple[CohortNote, ...]
    cells: tuple[CellNote, ...]
    maps: tuple[MapNote, ...]
    maps_left_out: int
    summary: pd.DataFrame
    extras: pd.DataFrame
    groups: pd.DataFrame
    environment: Mapping[str, Any]

    def save(self, folder: Path) -> None:
        """Write the tables as CSV, report.json and environment.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in self._tables().items():
            table.to_csv(folder / name, index=False, float_format=rounded)
        note = {key: value for key, value in vars(self).items() if key not in _FILES}
        for key in ("cohorts", "cells", "maps"):
            note[key] = [asdict(each) for each in note[key]]
        for name, content in {RECORD: note, ENVIRONMENT: self.environment}.items():
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Results:
        """Read what `save` wrote.

        Raises:
            ReportError: when a file is missing.
        """
        for name in (RECORD, ENVIRONMENT, SUMMARY, EXTRAS, GROUPS):
            if not (folder / name).is_file():
                raise ReportError(
                    f"{folder} has no {name}: expected the folder of a suite's runs, with {PLAN}, or of its results, "
                    f"with {RECORD}. Results of an earlier version are written anew, without training, by "
                    "`lightning benchmark --config SUITE --tables-only`"
                )
        content = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        cells = [{**cell, "runs": tuple(RunNote(**run) for run in cell["runs"])} for cell in content["cells"]]
        cohorts = [{**cohort, "sets": tuple(cohort["sets"])} for cohort in content["cohorts"]]
        content |= {
            "shown": tuple(content["shown"]),
            "selection": tuple(content["selection"]),
            "cohorts": tuple(CohortNote(**cohort) for cohort in cohorts),
            "cells": tuple(CellNote(**cell) for cell in cells),
            "maps": tuple(MapNote(**each) for each in content["maps"]),
            "environment": json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8")),
        }
        tables: dict[str, Any] = {key: read_table(folder / name) for key, name in _FILES.items() if name != ENVIRONMENT}
        return cls(**content, **tables)

    def _tables(self) -> dict[str, pd.DataFrame]:
        return {SUMMARY: self.summary, EXTRAS: self.extras, GROUPS: self.groups}

    def label(self, method: str) -> str:
        """A method's name for people."""
        return self.labels.get(method, method)

    def cells_of(self, cohort: str) -> list[CellNote]:
        """The methods of a cohort in the order of the suite."""
        return [cell for cell in self.cells if cell.cohort == cohort]

    @property
    def compared(self) -> set[tuple[str, str]]:
        """Cohort and method of the cells that take part in fronts and ranks: whole ones, without the ceiling."""
        return {(cell.cohort, cell.method) for cell in self.cells if cell.whole and cell.method != self.ceiling}


_FILES = {"summary": SUMMARY, "extras": EXTRAS, "groups": GROUPS, "environment": ENVIRONMENT}


def read_table(path: Path) -> pd.DataFrame:
    """A CSV of results; a method or group whose name looks like a number, or like nothing, stays a name."""
    return pd.read_csv(path, dtype=_NAMES, keep_default_na=False, na_values=dict.fromkeys(_NUMBERS, ""))


def rounded(value: Any) -> str:
    """A number in a CSV: five digits, and all of a count such as that of parameters."""
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.5g}"


def lower_is_better(metric: str) -> bool:
    """Whether a metric is an error or a gap."""
    last = metric.rpartition("/")[2]
    return last.endswith("_difference") or last in ("calibration_error", "mae")


def plain(metric: str) -> str:
    """A metric's name for people."""
    return metric.replace("_", " ").replace("/", " ")
