"""The statistics of a suite as files: long CSV for programs, Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from medprism.benchmark.runner import Outcome
from medprism.benchmark.statistics import Cell, by_cell, compare, extras
from medprism.benchmark.suite import Suite
from medprism.runs import environment

SUMMARY, EXTRAS, MARKDOWN = "summary.csv", "extras.csv", "summary.md"


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
    sections, summaries = [], []
    for name in dict.fromkeys(cell.cohort for cell in cells):
        own = [cell for cell in cells if cell.cohort == name]
        finished = [cell for cell in own if cell.runs]
        summary = compare(finished, suite.reference, resamples) if finished else pd.DataFrame()
        summaries.append(summary)
        sections.append(_section(suite, own, summary))
    folder.mkdir(parents=True, exist_ok=True)
    pd.concat(summaries).to_csv(folder / SUMMARY, index=False, float_format="%.5g")
    extras(cells).to_csv(folder / EXTRAS, index=False, float_format="%.5g")
    text = f"{_header(suite, command)}\n\n" + "\n\n".join(sections) + "\n"
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    prints = sorted({cell.declared.fingerprint for cell in cells if cell.declared is not None})
    record = environment(", ".join(prints)) | {"command": command}
    record["code_of_runs"] = sorted({str(run.record["code"]) for cell in cells for run in cell.runs})
    (folder / "environment.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return text


def _header(suite: Suite, command: str) -> str:
    monitor = suite.common.get("checkpoint", {}).get("monitor", "val/auroc")
    return (
        f"Written by `{command}`. {suite.title} Mean over seeds ± standard deviation (ddof 1), "
        f"[95 % bootstrap interval over subjects]. Epochs are chosen by `{monitor}` on the validation part; nothing "
        "is chosen on a test part."
    )


def _section(suite: Suite, cells: Sequence[Cell], summary: pd.DataFrame) -> str:
    cohort = next((cell.declared for cell in cells if cell.declared is not None), None)
    name = cells[0].cohort
    if cohort is None:
        return f"### {name}\n\nNo run is finished."
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
    for cell in cells:
        label = suite.methods[cell.method].get("label", cell.method)
        if not cell.runs:
            lines.append(f"| {label} | 0 | {cell.state} |" + " |" * (len(titles) - 1))
            continue
        rows = summary[summary["method"] == cell.method].set_index(["set", "metric"])
        shown = [_number(rows.loc[column]) if column in rows.index else "not defined" for column in columns]
        note = "" if cell.state == "complete" else f" ({cell.state})"
        lines.append(f"| {label}{note} | {len(cell.pooled)} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def _number(row: pd.Series) -> str:
    spread = "" if pd.isna(row["sd"]) else f" ± {row['sd']:.3f}"
    ends = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    return f"{row['mean']:.3f}{spread}{ends}"
