"""The page of a suite: one HTML file that asks the network for nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medprism.benchmark.ranks import alike
from medprism.benchmark.results import COMPLETE, SEARCH, CellNote, Results, RunNote, lower_is_better, read_table
from medprism.benchmark.tables import sections
from medprism.files import METRICS, PREDICTIONS

PAGE = "report.html"

_SCRIPTS = ("tools.js", "charts.js", "page.js")
_LINKS = {"config": "config.yaml", "predictions": PREDICTIONS, "metrics": METRICS, "log": "log.txt"}
_COUNTS = ("n", "n_reference", "samples", "subjects")


def page(results: Results, front: pd.DataFrame, ranks: pd.DataFrame, notes: list[str], folder: Path) -> str:
    """The page as HTML.

    Args:
        results: of the suite.
        front: table of `fronts`.
        ranks: table of `ranks`.
        notes: what could not be ranked, and why.
        folder: of the results, where the page will lie; links and pictures are relative to it.
    """
    script = "\n".join(_part(name) for name in _SCRIPTS)
    style = _part("style.css")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'"
    )
    parts = {
        "title": escape(f"{results.name}: benchmark report"),
        "policy": escape(policy, quote=True),
        "style": style,
        "script": script,
        "data": _embedded(_data(results, front, ranks, notes, folder)),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _part("page.html"))


def _part(name: str) -> str:
    return (files("medprism.benchmark") / "page" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _embedded(data: dict[str, Any]) -> str:
    """JSON that cannot end the element which holds it."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _data(results: Results, front: pd.DataFrame, ranks: pd.DataFrame, notes: list[str], folder: Path) -> dict[str, Any]:
    environment = results.environment
    kept = [
        what.startswith(("leakage/", "latent/matrix/")) and what.rpartition("/")[2] not in _COUNTS
        for what in results.extras["what"]
    ]
    metrics = [*results.summary["metric"], *results.groups["metric"], *front["gap"]]
    return {
        "name": results.name,
        "title": results.title,
        "command": results.command,
        "reference": results.reference,
        "ceiling": results.ceiling,
        "shown": results.shown,
        "labels": dict(results.labels),
        "selection": results.selection,
        "resamples": results.resamples,
        "trials": results.trials,
        "seeds": sorted({run.seed for cell in results.cells for run in cell.runs}),
        "folds": max((run.fold for cell in results.cells for run in cell.runs if run.fold is not None), default=-1) + 1,
        "machine": {
            "device": environment.get("device", ""),
            "python": environment.get("python", ""),
            "packages": {k: v for k, v in environment.get("packages", {}).items() if v is not None},
            "data": environment.get("data_fingerprint", ""),
            "code": environment.get("code_of_runs", []),
        },
        "lower": sorted({metric for metric in metrics if lower_is_better(metric)}),
        "cohorts": [vars(cohort) | {"headline": cohort.headline} for cohort in results.cohorts],
        "cells": [_cell(cell, results, folder) for cell in results.cells],
        "summary": _table(results.summary),
        "groups": _table(results.groups),
        "matrices": _table(results.extras.loc[kept]),
        "front": _table(front),
        "rankings": _rankings(ranks),
        "rank_notes": notes,
        "tables": _tables(results),
        "search": _table(read_table(folder / SEARCH)) if results.trials > 1 else None,
        "maps": [vars(each) | {"source": _picture(folder / each.file)} for each in results.maps],
        "maps_left_out": results.maps_left_out,
    }


def _table(table: pd.DataFrame) -> dict[str, Any]:
    plain = table.astype(object).where(table.notna(), None)
    return {"columns": list(table.columns), "rows": plain.to_numpy().tolist()}


def _cell(cell: CellNote, results: Results, folder: Path) -> dict[str, Any]:
    runs = [vars(run) | {"links": _links(run, results, folder)} for run in cell.runs]
    return vars(cell) | {"runs": runs, "whole": cell.whole, "complete": cell.state == COMPLETE}


def _links(run: RunNote, results: Results, folder: Path) -> dict[str, str]:
    """What to click at for a run; nothing where the runs do not lie with the page."""
    if results.runs_at is None:
        return {}
    paths = {what: f"{results.runs_at}/{run.name}/{name}" for what, name in _LINKS.items()}
    return {what: path for what, path in paths.items() if (folder / path).is_file()}


def _rankings(ranks: pd.DataFrame) -> list[dict[str, Any]]:
    found = []
    for (name, metric), rows in ranks.groupby(["set", "metric"], sort=False):
        first, places = rows.iloc[0], rows["mean rank"].to_numpy(dtype=float)
        difference = float(first["critical difference"])
        found.append(
            {
                "set": name,
                "metric": metric,
                "cohorts": int(first["cohorts"]),
                "p": None if np.isnan(first["p"]) else float(first["p"]),
                "difference": difference,
                "methods": list(zip(rows["method"], places.tolist(), strict=True)),
                "bars": alike(places, difference),
            }
        )
    return found


def _tables(results: Results) -> list[dict[str, Any]]:
    """The tables beside the metrics, cohort by cohort, as Markdown has them."""
    cohorts = dict.fromkeys(cell.cohort for cell in results.cells)
    return [
        {"cohort": cohort, **vars(table)}
        for cohort, section in zip(cohorts, sections(results), strict=True)
        for table in section.tables[1:]
    ]


def _picture(path: Path) -> str:
    return f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
