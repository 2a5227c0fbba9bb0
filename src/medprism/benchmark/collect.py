"""From the folders of runs to the results of a suite."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from medprism.benchmark.maps import collect_maps
from medprism.benchmark.plan import Plan
from medprism.benchmark.report import publish
from medprism.benchmark.results import CellNote, CohortNote, Results, RunNote
from medprism.benchmark.runner import Outcome
from medprism.benchmark.search import choose, write_table
from medprism.benchmark.statistics import Cell, by_cell, compare, extras
from medprism.benchmark.suite import DATA
from medprism.runs import environment


def write(plan: Plan, outcomes: Sequence[Outcome], folder: Path, resamples: int = 1000) -> str:
    """Write the results of a suite: CSV, Markdown, LaTeX, figures and the page.

    Args:
        plan: what was asked for.
        outcomes: of all its jobs.
        folder: where the files go.
        resamples: of subjects, for the intervals.

    Returns:
        The tables in Markdown.
    """
    chosen = choose(outcomes)
    cells = by_cell(chosen)
    tables = []
    for name in dict.fromkeys(cell.cohort for cell in cells):
        tables.append(compare([c for c in cells if c.cohort == name and c.runs], plan.reference, resamples))
    maps, left_out = collect_maps(cells, folder)
    summaries, groups = [each for each, _ in tables], [each for _, each in tables]
    Results(
        **plan.heading,
        selection=tuple(sorted({o.job.config.get("checkpoint", {}).get("monitor", "val/auroc") for o in chosen})),
        resamples=resamples,
        runs_at=_holder(chosen, folder),
        cohorts=_cohorts(cells),
        cells=tuple(_note(cell, plan) for cell in cells),
        maps=maps,
        maps_left_out=left_out,
        summary=_joined(summaries),
        extras=extras(cells),
        groups=_joined(groups),
        environment=_environment(cells, plan),
    ).save(folder)
    if plan.trials > 1:
        write_table(outcomes, folder)
    return publish(folder)


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([each for each in tables if len(each)] or tables, ignore_index=True)


def _holder(outcomes: Sequence[Outcome], folder: Path) -> str | None:
    """The folder of the runs as seen from the results, where they lie within it: there alone links stay whole."""
    runs = outcomes[0].folder.parents[2].resolve()
    return Path(os.path.relpath(runs, folder.resolve())).as_posix() if runs in folder.resolve().parents else None


def _cohorts(cells: Sequence[Cell]) -> tuple[CohortNote, ...]:
    found = {}
    for name in dict.fromkeys(cell.cohort for cell in cells):
        having = [cell for cell in cells if cell.cohort == name and cell.declared is not None]
        if having:
            declared = having[0].declared
            assert declared is not None
            sets = tuple(dict.fromkeys(each for cell in having for each in cell.test_sets))
            found[name] = CohortNote(name, declared.target.name, declared.simulated, sets)
    return tuple(found.values())


def _note(cell: Cell, plan: Plan) -> CellNote:
    counted = {run.name for run in cell.runs}
    runs = tuple(
        RunNote(
            o.job.name, o.job.seed, o.job.fold, o.state, o.job.name in counted, o.seconds, plan.without_place(o.error)
        )
        for o in cell.outcomes
    )
    settings = {key: value for key, value in cell.outcomes[0].job.config.items() if key != "seed_everything"}
    if isinstance(data := settings.get(DATA), dict) and isinstance(arguments := data.get("init_args"), dict):
        kept = {key: value for key, value in arguments.items() if key not in ("split_seed", "fold")}
        settings[DATA] = {**data, "init_args": kept}
    settings = json.loads(plan.without_place(json.dumps(settings, ensure_ascii=False)))
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    return CellNote(cell.cohort, cell.method, cell.state, len(cell.pooled), text, runs)


def _environment(cells: Sequence[Cell], plan: Plan) -> dict[str, object]:
    prints = sorted({cell.declared.fingerprint for cell in cells if cell.declared is not None})
    record = environment(", ".join(prints)) | {"command": plan.command}
    return record | {"code_of_runs": sorted({str(run.record["code"]) for cell in cells for run in cell.runs})}
