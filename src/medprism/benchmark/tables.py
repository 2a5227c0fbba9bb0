"""The results of a suite as tables for people: Markdown, and LaTeX with booktabs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from medprism.benchmark.results import COMPLETE, WHOLE, CohortNote, Results, plain

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

COST = {
    "parameters": "parameters",
    "trained parameters": "trained parameters",
    "seconds per epoch": "seconds per epoch",
    "seconds": "seconds per run",
    "peak memory, MB": "peak memory, MB",
}


@dataclass(frozen=True)
class Table:
    """A table, and the sentence before it."""

    lead: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Section:
    """The tables of a cohort; `text` stands in place of tables where there are none."""

    title: str
    text: str
    tables: Sequence[Table]


def header(results: Results) -> str:
    """What every table needs to be read: command, what a number is, and how epochs were chosen."""
    chosen = " or ".join(f"`{rule}`" for rule in results.selection)
    ceiling = f" (.9 of {results.ceiling}): share of its mean on the same set." if results.ceiling else ""
    search = (
        f" Settings are chosen in the same way, of {results.trials} trials of every method for each seed and fold."
        if results.trials > 1
        else ""
    )
    return (
        f"Written by `{results.command}`. {results.title} Mean over seeds ± standard deviation (ddof 1), "
        f"[95 % bootstrap interval over subjects].{ceiling} Epochs are chosen by {chosen} on the validation part; "
        f"nothing is chosen on a test part.{search}"
    )


def sections(results: Results) -> list[Section]:
    """The tables of every cohort."""
    known = {cohort.name: cohort for cohort in results.cohorts}
    found = []
    for name in dict.fromkeys(cell.cohort for cell in results.cells):
        if name not in known:
            states = "; ".join(f"{cell.method}, {cell.state}" for cell in results.cells_of(name))
            found.append(Section(name, f"No seed is finished: {states}.", []))
            continue
        cohort = known[name]
        beside = results.extras[results.extras["cohort"] == name]
        tables = [
            _performance(results, cohort),
            _representation(results, cohort, beside),
            _alignment(results, cohort, beside),
            _cost(results, cohort, beside),
        ]
        simulated = " (simulated)" if cohort.simulated else ""
        found.append(Section(f"{name}{simulated}: {cohort.target}", "", [each for each in tables if each is not None]))
    return found


def _performance(results: Results, cohort: CohortNote) -> Table:
    summary = results.summary[results.summary["cohort"] == cohort.name]
    sizes = {each: summary[summary["set"] == each] for each in dict.fromkeys(summary["set"])}
    described = ", ".join(f"{each} {rows['samples'].mean():.0f}" for each, rows in sizes.items())
    columns = [(each, m) for each in sizes for m in results.shown if (sizes[each]["metric"] == m).any()]
    rows = {(row["method"], row["set"], row["metric"]): row for row in summary.to_dict("records")}
    lines = []
    for cell in results.cells_of(cohort.name):
        label = results.label(cell.method)
        if not cell.seeds:
            lines.append([label, "0", cell.state, *[""] * (len(columns) - 1)])
            continue
        note = "" if cell.state == COMPLETE else f" ({cell.state})"
        shown = [_number(rows, results.ceiling, cell.method, *column) for column in columns]
        lines.append([label + note, str(cell.seeds), *shown])
    titles = [f"{each}: {plain(metric)}" for each, metric in columns]
    return Table(f"Samples of a seed: {described}.", ["method", "seeds", *titles], lines)


def _number(rows: Mapping[tuple[str, str, str], Row], ceiling: str | None, method: str, where: str, metric: str) -> str:
    row = rows.get((method, where, metric))
    if row is None:
        return "not defined"
    ends: str = "" if pd.isna(row["low"]) else f" [{row['low']:.3f}, {row['high']:.3f}]"
    best = rows.get((ceiling, where, metric)) if ceiling else None
    share = ""
    if best and best is not row and best["mean"] > 0 and metric.endswith("accuracy"):
        share = f" ({row['mean'] / best['mean']:.2f} of {ceiling})".replace("(0.", "(.")
    return f"{_spread(row)}{ends}{share}"


def _spread(row: Row, digits: int = 3) -> str:
    return f"{row['mean']:,.{digits}f}" + ("" if pd.isna(row["sd"]) else f" ± {row['sd']:,.{digits}f}")


def _beside(
    results: Results,
    cohort: CohortNote,
    beside: pd.DataFrame,
    lead: str,
    columns: Mapping[str, str],
    number: Callable[[str, Row], str] = lambda what, row: _spread(row),
) -> Table | None:
    """A table of what was measured beside predictions, of the methods that have any of it; None without columns."""
    rows = {(row["method"], row["what"]): row for row in beside.to_dict("records")}
    columns = {what: title for what, title in columns.items() if any(what == known for _, known in rows)}
    lines = []
    for cell in results.cells_of(cohort.name):
        shown = [number(w, rows[cell.method, w]) if (cell.method, w) in rows else "" for w in columns]
        if any(shown):
            lines.append([results.label(cell.method), *shown])
    return Table(lead, ["method", *columns.values()], lines) if columns else None


def _representation(results: Results, cohort: CohortNote, beside: pd.DataFrame) -> Table | None:
    """On test sets, how well the attributes' heads do, and how far the blocks are taken apart, where measured."""
    if cohort.sets == (WHOLE,):
        return None
    kinds = {f"{each}/heads/": f"{each}: head of " for each in cohort.sets}
    kinds["latent/dominance/"] = "diagonal dominance, "
    columns = {
        what: title + plain(what.removeprefix(kind).removesuffix("/accuracy"))
        for kind, title in kinds.items()
        for what in dict.fromkeys(beside["what"])
        if what.startswith(kind) and (kind == "latent/dominance/" or what.endswith("/accuracy"))
    }
    lead = (
        "Accuracy of the heads of attributes, and diagonal dominance of the latent blocks (1/2: every block knows "
        "everything, 1: taken apart): mean over runs ± standard deviation (ddof 1)."
    )
    return _beside(results, cohort, beside, lead, columns)


def _alignment(results: Results, cohort: CohortNote, beside: pd.DataFrame) -> Table | None:
    """How well image-text methods align images and texts, and what is reached without a model."""
    lead = (
        "Images and texts of the whole test: mean over runs ± standard deviation (ddof 1). Without a model: always the "
        "most frequent class, a random order, or the mean map of the training readings."
    )
    table = _beside(results, cohort, beside, lead, {f"alignment/{what}": title for what, title in ALIGNED.items()})
    if table is None:
        return None
    whats = {title: f"alignment/{_without_model(what)}" for what, title in ALIGNED.items()}
    levels = [beside.loc[beside["what"] == whats[title], "mean"] for title in table.columns[1:]]
    blind = [f"{np.mean(level):.3f}" if len(level) else "" for level in levels]
    return Table(table.lead, table.columns, [*table.rows, ["without a model", *blind]])


def _without_model(what: str) -> str:
    """The name of what is reached without a model, for a name of `ALIGNED`."""
    branch, _, metric = what.rpartition("/")
    kind = what.split("/")[0]
    return f"{branch}/{BLIND[kind]}/{metric}"


def _cost(results: Results, cohort: CohortNote, beside: pd.DataFrame) -> Table | None:
    device = results.environment.get("device", "cpu")
    lead = f"Cost on {device}: mean over runs ± standard deviation (ddof 1)."

    def number(what: str, row: Row) -> str:
        if what.endswith("parameters"):
            return f"{row['mean']:,.0f}"
        return _spread(row, 2 if what == "seconds per epoch" else 0)

    return _beside(results, cohort, beside, lead, COST, number)


def markdown(results: Results, parts: Sequence[Section]) -> str:
    """All tables as Markdown."""
    blocks = [header(results)]
    for part in parts:
        blocks += [f"### {part.title}"] + ([part.text] if part.text else [])
        for table in part.tables:
            lines = [_line(table.columns), "|---" * len(table.columns) + "|", *map(_line, table.rows)]
            blocks += [table.lead, "\n".join(lines)]
    return "\n\n".join(blocks) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def latex(results: Results, parts: Sequence[Section]) -> str:
    """All tables as LaTeX; they need the packages booktabs and graphicx."""
    blocks = ["% Needs \\usepackage{booktabs,graphicx}.", *(f"% {line}" for line in header(results).splitlines())]
    for part in parts:
        for k, table in enumerate(part.tables):
            caption = f"{part.title}. {table.lead}"
            label = "".join(c if c.isalnum() else "-" for c in f"{results.name}-{part.title.split(':')[0]}-{k}")
            blocks.append("\n".join(_tabular(table, caption, label)))
    return "\n\n".join(blocks) + "\n"


def _tabular(table: Table, caption: str, label: str) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(escape, cells)) + r" \\"

    return [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption)}}}",
        rf"\label{{tab:{label}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
        r"\toprule",
        line(table.columns),
        r"\midrule",
        *map(line, table.rows),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]


_LATEX = {
    **{char: "\\" + char for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # after \\ a bracket would be a length
    "]": "{]}",
    "±": r"$\pm$",
    "\n": " ",
}


def escape(text: str) -> str:
    """Text as LaTeX shows it word for word."""
    return "".join(_LATEX.get(char, char) for char in text)
