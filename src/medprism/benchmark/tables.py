"""The statistics of a suite as files: long CSV for programs, Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medprism.benchmark.runner import Outcome
from medprism.benchmark.statistics import WHOLE, Cell, by_cell, compare, extras
from medprism.benchmark.suite import Suite
from medprism.runs import environment

SUMMARY, EXTRAS, MARKDOWN = "summary.csv", "extras.csv", "summary.md"

Row = dict[Hashable, Any]

ALIGNED = {
    "zero_shot/macro_f1": "zero-shot macro F1",
    "linear_probe/percent_10/auroc": "AUROC of a linear probe, 10 % of the labels",
    "retrieval/text_to_image/precision_at_5": "P@5, text to image",
    "retrieval/text_to_image/recall_at_5": "R@5, text to image",
    "retrieval/image_to_text/recall_at_5": "R@5, image to text",
    "grounding/gaze/pointing": "pointing game, gaze",
    "grounding/gaze/iou": "IoU, gaze",
    "grounding/gaze/cc": "correlation, gaze",
    "grounding/gaze/nss": "NSS, gaze",
    "grounding/gaze/auc": "AUC, gaze",
    "grounding/boxes/pointing": "pointing game, boxes",
    "grounding/boxes/iou": "IoU, boxes",
}
"""What the tables show of image-text methods; extras.csv has everything."""

BLIND = {"zero_shot": "constant", "linear_probe": "chance", "retrieval": "chance", "grounding": "centre_bias"}
"""Under which name metrics.json has what is reached without a model."""


def write(suite: Suite, outcomes: Sequence[Outcome], folder: Path, command: str, resamples: int = 1000) -> str:
    """Write summary.csv, extras.csv, summary.md and environment.json of a suite.

    Args:
        suite: what was asked for.
        outcomes: of all its jobs.
        folder: where the files go.
        command: that wrote the runs, as the header of the table names it.
        resamples: of subjects, for the intervals.

    Returns:
        The Markdown text.
    """
    cells = by_cell(outcomes)
    beside = extras(cells)
    sections, summaries = [], []
    for name in dict.fromkeys(cell.cohort for cell in cells):
        own = [cell for cell in cells if cell.cohort == name]
        finished = [cell for cell in own if cell.runs]
        summary = compare(finished, suite.reference, resamples)
        summaries.append(summary)
        sections.append(_section(suite, own, summary, beside[beside["cohort"] == name]))
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat([each for each in summaries if len(each)] or summaries).to_csv(
        folder / SUMMARY, index=False, float_format="%.5g"
    )
    beside.to_csv(folder / EXTRAS, index=False, float_format="%.5g")
    text = f"{_header(suite, outcomes, command)}\n\n" + "\n\n".join(sections) + "\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    prints = sorted({cell.declared.fingerprint for cell in cells if cell.declared is not None})
    record = environment(", ".join(prints)) | {"command": command}
    record["code_of_runs"] = sorted({str(run.record["code"]) for cell in cells for run in cell.runs})
    (folder / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return text


def _header(suite: Suite, outcomes: Sequence[Outcome], command: str) -> str:
    rules = {o.job.config.get("checkpoint", {}).get("monitor", "val/auroc") for o in outcomes}
    chosen = " or ".join(f"`{rule}`" for rule in sorted(rules))
    ceiling = f" (.9 of {suite.ceiling}): share of its mean on the same set." if suite.ceiling else ""
    search = (
        f" Settings are chosen in the same way, of {suite.trials} trials of every method for each seed and fold."
        if suite.trials > 1
        else ""
    )
    return (
        f"Written by `{command}`. {suite.title} Mean over seeds ± standard deviation (ddof 1), "
        f"[95 % bootstrap interval over subjects].{ceiling} Epochs are chosen by {chosen} on the validation part; "
        f"nothing is chosen on a test part.{search}"
    )


def _section(suite: Suite, cells: Sequence[Cell], summary: pd.DataFrame, beside: pd.DataFrame) -> str:
    cohort = next((cell.declared for cell in cells if cell.declared is not None), None)
    name = cells[0].cohort
    if cohort is None:
        return (
            f"### {name}\n\nNo seed is finished: " + "; ".join(f"{cell.method}, {cell.state}" for cell in cells) + "."
        )
    simulated = " (simulated)" if cohort.simulated else ""
    sets = list(dict.fromkeys(summary["set"]))
    sizes = {each: summary[summary["set"] == each] for each in sets}
    described = ", ".join(f"{each} {rows['samples'].mean():.0f}" for each, rows in sizes.items())
    columns = [(each, metric) for each in sets for metric in suite.shown if (sizes[each]["metric"] == metric).any()]
    titles = [f"{each}: {metric.replace('_', ' ').replace('/', ' ')}" for each, metric in columns]
    lines = [
        f"### {name}{simulated}: {cohort.target.name}",
        "",
        f"Samples of a seed: {described}.",
        "",
        "| method | seeds | " + " | ".join(titles) + " |",
        "|---" * (len(titles) + 2) + "|",
    ]
    rows = {(row["method"], row["set"], row["metric"]): row for row in summary.to_dict("records")}
    for cell in cells:
        label = suite.methods[cell.method].get("label", cell.method)
        if not cell.runs:
            lines.append(f"| {label} | 0 | {cell.state} |" + " |" * (len(titles) - 1))
            continue
        shown = [_number(rows, suite, cell.method, *column) for column in columns]
        note = "" if cell.state == "complete" else f" ({cell.state})"
        lines.append(f"| {label}{note} | {len(cell.pooled)} | " + " | ".join(shown) + " |")
    return "\n".join([*lines, *_representation(suite, cells, sets, beside), *_alignment(suite, cells, beside)])


def _number(rows: Mapping[tuple[str, str, str], Row], suite: Suite, method: str, where: str, metric: str) -> str:
    row = rows.get((method, where, metric))
    if row is None:
        return "not defined"
    ends: str = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    best = rows.get((suite.ceiling, where, metric)) if suite.ceiling else None
    share = ""
    if best and best is not row and best["mean"] > 0 and metric.endswith("accuracy"):
        share = f" ({row['mean'] / best['mean']:.2f} of {suite.ceiling})".replace("(0.", "(.")
    return f"{_spread(row)}{ends}{share}"


def _spread(row: Row) -> str:
    return f"{row['mean']:.3f}" + ("" if pd.isna(row["sd"]) else f" ± {row['sd']:.3f}")


def _representation(suite: Suite, cells: Sequence[Cell], sets: Sequence[str], beside: pd.DataFrame) -> list[str]:
    """On test sets, how well the attributes' heads do, and how far the blocks are taken apart, where measured."""
    if sets == [WHOLE]:
        return []
    kinds = {f"{each}/heads/": f"{each}: head of " for each in sets} | {"latent/dominance/": "diagonal dominance, "}
    known = list(dict.fromkeys(beside["what"]))
    columns = {
        what: title + what.removeprefix(kind).removesuffix("/accuracy").replace("_", " ")
        for kind, title in kinds.items()
        for what in known
        if what.startswith(kind) and (kind == "latent/dominance/" or what.endswith("/accuracy"))
    }
    if not columns:
        return []
    lines = [
        "",
        "Accuracy of the heads of attributes, and diagonal dominance of the latent blocks (1/2: every block knows "
        "everything, 1: taken apart): mean over runs ± standard deviation (ddof 1).",
        "",
        "| method | " + " | ".join(columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    rows = {(row["method"], row["what"]): row for row in beside.to_dict("records")}
    for method in dict.fromkeys(cell.method for cell in cells):
        shown = [_spread(rows[method, what]) if (method, what) in rows else "" for what in columns]
        if any(shown):
            lines.append(f"| {suite.methods[method].get('label', method)} | " + " | ".join(shown) + " |")
    return lines


def _alignment(suite: Suite, cells: Sequence[Cell], beside: pd.DataFrame) -> list[str]:
    """How well image-text methods align images and texts, and what is reached without a model."""
    rows = {(row["method"], row["what"].removeprefix("alignment/")): row for row in beside.to_dict("records")}
    known = {what for _, what in rows}
    columns = {what: title for what, title in ALIGNED.items() if what in known}
    if not columns:
        return []
    lines = [
        "",
        "Images and texts of the whole test: mean over runs ± standard deviation (ddof 1). Without a model: always the "
        "most frequent class, a random order, or the mean map of the training readings.",
        "",
        "| method | " + " | ".join(columns.values()) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for method in dict.fromkeys(cell.method for cell in cells):
        shown = [_spread(rows[method, what]) if (method, what) in rows else "" for what in columns]
        if any(shown):
            lines.append(f"| {suite.methods[method].get('label', method)} | " + " | ".join(shown) + " |")
    levels = [[row["mean"] for (_, name), row in rows.items() if name == _without_model(what)] for what in columns]
    blind = [f"{np.mean(level):.3f}" if level else "" for level in levels]
    return [*lines, "| without a model | " + " | ".join(blind) + " |"]


def _without_model(what: str) -> str:
    """The name of what is reached without a model, for a name of `ALIGNED`."""
    branch, _, metric = what.rpartition("/")
    kind = what.split("/")[0]
    return f"{branch}/{BLIND[kind]}/{metric}"
