"""`lightning report`, and what it writes: tables, figures and the page, from the results alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from medprism.benchmark.fronts import fronts
from medprism.benchmark.ranks import ranks
from medprism.benchmark.results import PLAN, ReportError, Results, rounded
from medprism.benchmark.tables import latex, markdown, sections
from medprism.benchmark.webpage import PAGE, page

PARETO, RANKS, MARKDOWN, LATEX, FIGURES = "pareto.csv", "ranks.csv", "summary.md", "tables.tex", "figures"


def publish(folder: Path) -> str:
    """Write pareto.csv, ranks.csv, summary.md, tables.tex, figures/ and report.html from the results in a folder.

    Returns:
        The tables in Markdown.

    Raises:
        ReportError: when the folder has no results.
    """
    from medprism.benchmark.charts import draw  # matplotlib is slow to import

    results = Results.load(folder)
    front, (ranked, notes) = fronts(results), ranks(results)
    for name, table in {PARETO: front, RANKS: ranked}.items():
        table.to_csv(folder / name, index=False, float_format=rounded)
    parts = sections(results)
    text = markdown(results, parts)
    (folder / MARKDOWN).write_text(text, encoding="utf-8")
    (folder / LATEX).write_text(latex(results, parts), encoding="utf-8")
    draw(results, front, ranked, folder / FIGURES)
    (folder / PAGE).write_text(page(results, front, ranked, notes, folder), encoding="utf-8")
    return text


def report(words: Sequence[str]) -> int:
    """Rebuild the tables and the page of a suite, and train nothing."""
    parser = argparse.ArgumentParser(
        "lightning report",
        description="Rebuilds tables, figures and the page of a suite, and trains nothing. From a folder of runs the "
        "statistics are computed anew; from a folder of results they are taken as they are.",
    )
    parser.add_argument("folder", type=Path, help="runs of a suite, such as runs/benchmark/digits, or its results")
    parser.add_argument("--results", type=Path, help="folder of the tables of runs; <folder>/results when left out")
    options = parser.parse_args(words)
    folder: Path = options.folder
    try:
        if (folder / PLAN).is_file():
            folder = options.results or folder / "results"
            _measure(options.folder, folder)
        elif options.results is not None:
            parser.error(f"--results is for a folder of runs, and {folder} has no {PLAN}")
        else:
            publish(folder)
    except ReportError as error:
        parser.error(str(error))
    print(f"Tables: {folder / MARKDOWN}\nPage: {folder / PAGE}")
    return 0


def _measure(runs: Path, results: Path) -> None:
    # imported here: statistics of runs need torch, and a report from results does not
    from medprism.benchmark.collect import write
    from medprism.benchmark.plan import Plan
    from medprism.benchmark.runner import Fingerprints, state_of

    plan, now = Plan.load(runs), Fingerprints()
    write(plan, [state_of(job, runs, now) for job in plan.jobs], results)
