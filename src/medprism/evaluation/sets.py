"""Test sets: subsets of the test samples that are measured one by one, such as `same`, `inverted` and `balanced`."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from rich.table import Table

from medprism.cohort import Cohort
from medprism.evaluation.decisions import known_only
from medprism.evaluation.predictions import Predictions
from medprism.evaluation.report import Metrics, evaluate

RESERVED = (
    "alignment",
    "cells",
    "groups",
    "heads",
    "latent",
    "leakage",
    "mean_cell",
    "worst_cell",
    "worst_group_accuracy",
)
"""Names that `flatten` gives to other things."""

Sets = dict[str, Predictions]


def divide(
    predictions: Predictions, sets: Mapping[str, Collection[str]], cohort: Cohort, complete: bool = True
) -> tuple[Sets, list[str]]:
    """The predictions of each test set.

    Args:
        predictions: of the whole test part.
        sets: name of a set to the ids of its samples; sets may overlap.
        cohort: names the attributes, whose names no set may have.
        complete: whether all batches were tested; if not, samples may be missing.

    Returns:
        Name to predictions, sets without a sample left out. And sentences on what was left out.

    Raises:
        ValueError: when a set has an id that was not tested, or a name that would be confused with a metric.
    """
    row = {name: k for k, name in enumerate(predictions.ids)}
    found: Sets = {}
    notes = []
    for name, ids in sets.items():
        taken = [factor.name for factor in cohort.attributes if factor.name == name]
        if taken or name in RESERVED or not name or set(name) & set("/;"):
            raise ValueError(
                f"a test set is called '{name}': give it a name without '/' and ';' that is no attribute and none of "
                f"{', '.join(RESERVED)}"
            )
        missing = [each for each in ids if each not in row]
        if missing and complete:
            raise ValueError(
                f"test set '{name}' has {len(missing)} of {len(ids)} ids that were not tested, such as '{missing[0]}'; "
                "test_sets of the datamodule may only name samples that its test_dataloader yields"
            )
        if missing:
            notes.append(f"test set {name}: {len(missing)} of {len(ids)} samples were not tested (limited batches)")
        rows = sorted({row[each] for each in ids if each in row})
        part = predictions.take(np.array(rows, dtype=np.int64))
        if not len(part) or not len(known_only(part, cohort)[0]):
            notes.append(f"test set {name}: no sample with a known {cohort.target.name}; not measured")
            continue
        found[name] = part
    return found, notes


def evaluate_sets(sets: Sets, cohort: Cohort, **options: Any) -> dict[str, Metrics]:
    """The nested metrics of `evaluate` for each set, without leakage.

    Args:
        sets: from `divide`.
        cohort: says what the predictions are.
        options: of `evaluate`.
    """
    return {name: evaluate(part, cohort, **options) for name, part in sets.items()}


def sets_table(metrics: Metrics) -> Table:
    """One row a test set: size, performance, worst cell, and the accuracy of each head."""
    sets: dict[str, Metrics] = metrics["sets"]
    simulated = " (simulated)" if metrics["simulated"] else ""
    shown = Table(title=f"{metrics['cohort']}{simulated}: {metrics['target']} on each test set")
    performance = [name for name in ("accuracy", "auroc", "mae", "r2") if name in metrics["performance"]]
    heads = list(dict.fromkeys(head for each in sets.values() for head in each["heads"]))
    shown.add_column("test set")
    attributes: list[str] = next((each["worst_cell"]["attributes"] for each in sets.values() if each["worst_cell"]), [])
    worst = [f"worst cell ({' x '.join([metrics['target'], *attributes])})"] if attributes else []
    for title in ["n", *performance, *worst, *(f"head of {head}, accuracy" for head in heads)]:
        shown.add_column(title, justify="right")
    for name, each in sets.items():
        cells = [_shown(each["performance"][metric]) for metric in performance]
        if worst:
            cell = each["worst_cell"]
            cells.append(f"{_shown(cell['accuracy'])} (n = {cell['n']})" if cell else "not defined")
        cells += [_shown(each["heads"][head]["accuracy"]) if head in each["heads"] else "not defined" for head in heads]
        shown.add_row(name, str(each["n"]), *cells)
    shown.caption = "intervals, and which cell is the worst, are in metrics.json"
    return shown


def _shown(number: Mapping[str, float | None]) -> str:
    return "not defined" if number["value"] is None else f"{number['value']:.3f}"
