"""Figures of a suite for papers, as PNG and SVG: performance against gaps, shifts, critical differences."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medprism.benchmark.fronts import SHIFT
from medprism.benchmark.ranks import alike
from medprism.benchmark.results import CohortNote, Results, lower_is_better, plain

DPI = 160
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "medprism",
}
_MARKS = {"same": "o", "inverted": "v", "balanced": "s", "native": "D"}
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito
_BLUE, _GREY = "#0072b2", "#8a8f94"


def draw(results: Results, front: pd.DataFrame, ranks: pd.DataFrame, folder: Path) -> None:
    """Write the figures of the first shown metric; figures of an earlier report are removed.

    Args:
        results: of the suite.
        front: table of `fronts`.
        ranks: table of `ranks`.
        folder: where the figures go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.png"), *folder.glob("*.svg")]:
        old.unlink()
    with mpl.rc_context(_STYLE):
        for cohort in results.cohorts:
            own = front[(front["cohort"] == cohort.name) & (front["metric"] == results.shown[0])]
            for (where, gap), points in own.groupby(["set", "gap"], sort=False):
                if gap == SHIFT or (where == cohort.headline and str(gap).endswith("equalized_odds_difference")):
                    _save(_scatter(results, cohort, points), folder, f"{cohort.name}_{gap}")
            if len(cohort.sets) > 1:
                _save(_shift(results, cohort), folder, f"{cohort.name}_shift")
        for (name, metric), rows in ranks.groupby(["set", "metric"], sort=False):
            _save(_critical(results, str(name), str(metric), rows), folder, f"ranks_{name}_{metric}")


def _save(figure: Figure, folder: Path, name: str) -> None:
    path = folder / re.sub(r"[^\w.-]+", "_", name)
    figure.savefig(path.with_name(path.name + ".png"), dpi=DPI, bbox_inches="tight")
    figure.savefig(path.with_name(path.name + ".svg"), metadata={"Date": None}, bbox_inches="tight")


def _title(cohort: CohortNote) -> str:
    return f"{cohort.name}{' (simulated)' if cohort.simulated else ''}: {cohort.target}"


def _scatter(results: Results, cohort: CohortNote, points: pd.DataFrame) -> Figure:
    """Gap to the right, performance upwards, numbered points; steps join the front, which is filled."""
    figure = Figure(figsize=(6.4, 4.4))
    axes = figure.add_subplot()
    front = points[points["front"]].sort_values("gap value")
    axes.plot(front["gap value"], front["value"], color=_BLUE, linewidth=1, drawstyle="steps-post")
    for kind, rows in points.groupby(["compared", "front"]):
        filled = kind == (True, True)
        face = _BLUE if filled else "white"
        edge = _BLUE if kind[0] else _GREY
        axes.scatter(rows["gap value"], rows["value"], s=26, color=face, edgecolor=edge, zorder=3)
    names = []
    for k, row in enumerate(points.to_dict("records"), 1):
        place = (row["gap value"], row["value"])
        axes.annotate(str(k), place, (4, 3), textcoords="offset points", fontsize=7)
        names.append(f"{k}  {results.label(row['method'])}" + ("" if row["compared"] else " (not compared)"))
    axes.text(1.03, 1, "\n".join(names), transform=axes.transAxes, va="top", fontsize=7)
    first = points.iloc[0]
    gap = f"|same - inverted|, {plain(first['metric'])}" if first["gap"] == SHIFT else plain(first["gap"])
    axes.set(xlabel=f"{gap} (less is better)", ylabel=f"{plain(first['metric'])}, {first['set']}", title=_title(cohort))
    return figure


def _shift(results: Results, cohort: CohortNote) -> Figure:
    """A line for each method, a mark for each test set."""
    metric = results.shown[0]
    rows = results.summary[(results.summary["cohort"] == cohort.name) & (results.summary["metric"] == metric)]
    methods = [cell.method for cell in results.cells_of(cohort.name) if (rows["method"] == cell.method).any()]
    figure = Figure(figsize=(6.4, 1 + 0.24 * len(methods)))
    axes = figure.add_subplot()
    place = {method: k for k, method in enumerate(methods)}
    spans = rows.groupby("method")["mean"].agg(["min", "max"])
    axes.hlines([place[str(m)] for m in spans.index], spans["min"], spans["max"], color="#c9cdd1", linewidth=1)
    for k, name in enumerate(cohort.sets):
        own = rows[rows["set"] == name]
        mark, colour = _MARKS.get(name, "P"), _COLOURS[k % len(_COLOURS)]
        places = own["method"].map(place)
        axes.errorbar(
            own["mean"],
            places,
            xerr=[own["mean"] - own["low"], own["high"] - own["mean"]],
            fmt="none",
            ecolor=colour,
            alpha=0.35,
            linewidth=2,
        )
        axes.scatter(own["mean"], places, marker=mark, color=colour, label=name, s=24, zorder=3)
    labels = [f"{results.label(m)}" for m in methods]
    axes.set(yticks=range(len(methods)), yticklabels=labels, title=_title(cohort))
    axes.set_xlabel(f"{plain(metric)}, mean over seeds and 95 % bootstrap interval over subjects")
    axes.invert_yaxis()
    axes.legend(frameon=False, ncols=len(cohort.sets), loc="upper left", bbox_to_anchor=(0, -0.5 / len(methods) - 0.12))
    return figure


def _critical(results: Results, name: str, metric: str, rows: pd.DataFrame) -> Figure:
    """Mean ranks on a line, best to the left; bars join methods that do not differ."""
    rows = rows.sort_values("mean rank", kind="stable")
    first, places = rows.iloc[0], rows["mean rank"].to_numpy(dtype=float)
    count, difference = len(rows), float(first["critical difference"])
    bars = alike(places, difference)
    depth = (count + 1) // 2
    figure = Figure(figsize=(6.4, 1.2 + 0.2 * depth + 0.12 * len(bars)))
    axes = figure.add_subplot()
    axes.set(xlim=(1, count), ylim=(-(depth + 1 + 0.6 * len(bars)), 2.2))
    axes.hlines(0, 1, count, color="black", linewidth=1)
    for tick in range(1, count + 1):
        axes.vlines(tick, 0, 0.25, color="black", linewidth=1)
        axes.text(tick, 0.4, str(tick), ha="center", fontsize=8)
    axes.hlines(1.6, 1, min(count, 1 + difference), color="black", linewidth=2)
    axes.text(1, 1.75, f"critical difference {difference:.2f}", fontsize=8)
    for k, (start, end) in enumerate(bars):
        axes.hlines(-0.5 - 0.6 * k, places[start] - 0.03, places[end] + 0.03, color=_BLUE, linewidth=3)
    base = -0.6 * len(bars)
    for k, row in enumerate(rows.to_dict("records")):
        left = k < depth
        level = base - 1 - (k if left else count - 1 - k)
        edge = 0.9 if left else count + 0.1
        axes.plot(
            [row["mean rank"], row["mean rank"], edge], [0, level, level], color="black", linewidth=0.7, clip_on=False
        )
        text = f"{results.label(row['method'])}  {row['mean rank']:.2f}"
        axes.text(
            edge, level, f"{text} " if left else f" {text}", ha="right" if left else "left", va="center", fontsize=8
        )
    p = "not defined, all are tied" if np.isnan(first["p"]) else f"{first['p']:.3g}"
    better = "less" if lower_is_better(metric) else "more"
    axes.set_title(
        f"Mean rank over {first['cohorts']:.0f} cohorts, {plain(metric)} ({better} is better), {name}; Friedman p {p}"
    )
    axes.axis("off")
    return figure
