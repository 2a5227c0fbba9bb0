"""From predictions to one nested dictionary of metrics, flat scalars for loggers, and a table for people."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.table import Table

from medprism.cohort import Cohort
from medprism.evaluation.bootstrap import Interval, intervals, statistic
from medprism.evaluation.decisions import decide, group, known_only
from medprism.evaluation.fairness import Fairness, fairness, regression_fairness
from medprism.evaluation.leakage import leakage
from medprism.evaluation.performance import performance
from medprism.evaluation.predictions import Predictions
from medprism.evaluation.weighted import Path, subject_codes

Metrics = dict[str, Any]


def evaluate(
    predictions: Predictions,
    cohort: Cohort,
    reference: Predictions | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    min_group: int = 1,
    seed: int = 0,
) -> Metrics:
    """Measure performance, fairness and leakage of a set of predictions.

    Args:
        predictions: with targets, attributes and, for leakage, latent blocks.
        cohort: says what they are.
        reference: training samples with latent blocks, on which leakage probes are fitted; None for no leakage.
        bootstrap: number of resamples of subjects for the intervals; 0 for none.
        confidence: of the intervals.
        min_group: groups with fewer samples are left out of everything but their size.
        seed: of all draws.

    Returns:
        Plain values that JSON can hold: `n`, `subjects`, `cohort`, `simulated`, `target`, `positive_class`,
        `performance` (metric to `value`, `low`, `high`), `fairness` (attribute to its gaps, `groups` and
        `worst_group`), `leakage` (block to factor to scores) and `notes`, sentences that say what was left out and
        why. A number that the data cannot define is None, and so are the ends of an interval that was not asked for.

    Raises:
        ValueError: when predictions and cohort do not fit, or no sample has a known target.
    """
    known, notes = known_only(predictions, cohort)
    if not len(known):
        raise ValueError(f"none of {len(predictions)} samples has a known target '{cohort.target.name}'")
    subjects, names = subject_codes(known.subjects)
    groups, remarks = group(known, cohort, min_group)
    scores, lacking = performance(known, cohort)
    points: dict[Path, float | None] = {(name,): value for name, value in scores.items()}
    facts: dict[Path, Any] = {}
    notes += lacking + remarks
    for attribute in groups:
        if cohort.target_kind == "value":
            assert known.target is not None
            found: Fairness = regression_fairness(known.probabilities[:, 0], known.target, attribute)
        else:
            found = fairness(decide(known, cohort), attribute)
        points |= found.values
        facts |= found.facts
        notes += found.notes
    ends: Mapping[Path, Interval] = {}
    if bootstrap:
        values = statistic(known, cohort, groups, subjects, len(names))
        ends = intervals(values, np.bincount(subjects), bootstrap, confidence, seed)
        notes += _undefined(points, ends, bootstrap)
    metrics: Metrics = {
        "n": len(known),
        "subjects": len(names),
        "cohort": cohort.name,
        "simulated": cohort.simulated,
        "target": cohort.target.name,
        "positive_class": cohort.target.classes[1] if len(cohort.target.classes) == 2 else None,
        "performance": _nest({path: v for path, v in points.items() if len(path) == 1}, {}, ends),
        "fairness": _nest({path: v for path, v in points.items() if len(path) > 1}, facts, ends),
        "leakage": {},
    }
    if reference is not None:
        metrics["leakage"], remarks = leakage(reference, predictions, cohort, bootstrap, confidence, seed)
        notes += remarks
    metrics["notes"] = notes
    return metrics


def scores(predictions: Predictions, cohort: Cohort, min_group: int = 1) -> dict[str, float]:
    """The performance and fairness numbers of `flatten(evaluate(...))`, from one pass of the bootstrap's arithmetic.

    It leaves out notes, intervals and probes, and is quick enough for every validation epoch.

    Args:
        predictions: with targets and attributes.
        cohort: says what they are.
        min_group: groups with fewer samples are left out.

    Raises:
        ValueError: when no sample has a known target.
    """
    known, _ = known_only(predictions, cohort)
    if not len(known):
        raise ValueError(f"none of {len(predictions)} samples has a known target '{cohort.target.name}'")
    subjects, names = subject_codes(known.subjects)
    values = statistic(known, cohort, group(known, cohort, min_group)[0], subjects, len(names))
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # an empty group has no mean
        found = values(np.ones((1, len(names))))
    return _with_worst({"/".join(path): float(value[0]) for path, value in found.items() if not np.isnan(value[0])})


def flatten(metrics: Metrics) -> dict[str, float]:
    """The defined values of nested metrics as flat scalars for loggers and checkpoints.

    Names are such as `auroc`, `sex/equalized_odds_difference`, `sex/worst_group/accuracy`, `sex/groups/female/auroc`
    and `leakage/z_disease/sex/auroc`. `worst_group_accuracy` is the lowest over all attributes, for selection.
    """
    flat = {
        **_values(metrics["performance"], ""),
        **_values(metrics["fairness"], ""),
        **_values(metrics["leakage"], "leakage/"),
    }
    return _with_worst(flat)


def _with_worst(flat: dict[str, float]) -> dict[str, float]:
    worst = [value for name, value in flat.items() if name.endswith("/worst_group/accuracy")]
    return flat | ({"worst_group_accuracy": min(worst)} if worst else {})


def table(metrics: Metrics) -> Table:
    """A compact table: performance, then a row for each gap and worst group, then leakage."""
    title = f"{metrics['cohort']}{' (simulated)' if metrics['simulated'] else ''}: {metrics['target']}"
    title += f", positive class {metrics['positive_class']}" if metrics["positive_class"] else ""
    shown = Table(title=f"{title}; {metrics['n']} samples of {metrics['subjects']} subjects")
    shown.add_column("what")
    shown.add_column("metric")
    shown.add_column("value", justify="right")
    shown.add_column("interval", justify="right")
    for name, number in metrics["performance"].items():
        shown.add_row("performance", name, *_cells(number))
    for attribute, numbers in metrics["fairness"].items():
        shown.add_section()
        for name, number in numbers.items():
            if name not in ("groups", "worst_group"):
                shown.add_row(attribute, name, *_cells(number))
        for name, number in numbers["worst_group"].items():
            who = f" ({number['group']})" if number["group"] else ""
            shown.add_row(attribute, f"worst {name}{who}", *_cells(number))
    for block, factors in metrics["leakage"].items():
        shown.add_section()
        for factor, number in factors.items():
            shown.add_row(f"leakage of {block}", f"{factor} auroc", *_cells(number["auroc"]))
    if metrics["notes"]:
        shown.caption = f"{len(metrics['notes'])} notes, such as: {metrics['notes'][0]}"
    return shown


def _nest(points: Mapping[Path, float | None], facts: Mapping[Path, Any], ends: Mapping[Path, Interval]) -> Metrics:
    """Paths to a tree; a number becomes `value`, `low` and `high`, a fact stays what it is."""
    tree: Metrics = {}
    for path, value in points.items():
        end = ends.get(path, Interval(None, None)) if value is not None else Interval(None, None)
        _branch(tree, path).update({"value": value, "low": end.low, "high": end.high})
    for path, fact in facts.items():
        _branch(tree, path[:-1])[path[-1]] = fact
    return tree


def _branch(tree: Metrics, path: Path) -> Metrics:
    for step in path:
        tree = tree.setdefault(step, {})
    return tree


def _values(tree: Metrics, prefix: str) -> dict[str, float]:
    if "value" in tree:
        return {} if tree["value"] is None else {prefix.rstrip("/"): float(tree["value"])}
    flat: dict[str, float] = {}
    for name, branch in tree.items():
        if isinstance(branch, dict) and name not in ("chance", "n_positive"):
            flat |= _values(branch, f"{prefix}{name}/")
    return flat


def _cells(number: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = number["value"], number["low"], number["high"]
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    return "not defined" if value is None else f"{value:.3f}", interval


def _undefined(points: Mapping[Path, float | None], ends: Mapping[Path, Interval], resamples: int) -> list[str]:
    """For performance and for each attribute one sentence on resamples that lack a class, naming the worst case."""
    worst: dict[str, tuple[int, Path]] = {}
    for path, end in ends.items():
        where = path[0] if len(path) > 1 else "performance"
        if end.undefined and points.get(path) is not None:
            worst[where] = max(worst.get(where, (0, path)), (end.undefined, path))
    return [
        f"{where}: some resamples lack what a metric needs, up to {count} of {resamples} ({' '.join(path)}); "
        "its interval leaves them out"
        for where, (count, path) in worst.items()
    ]
