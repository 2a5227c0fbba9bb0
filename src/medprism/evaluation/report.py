"""From predictions to one nested dictionary of metrics, flat scalars for loggers, and a table for people."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from medprism.cohort import Cohort
from medprism.evaluation.bootstrap import Interval, cells_of, intervals, statistic
from medprism.evaluation.cells import describe
from medprism.evaluation.decisions import decide, group, known_only
from medprism.evaluation.fairness import Fairness, fairness, regression_fairness
from medprism.evaluation.heads import head_scores
from medprism.evaluation.leakage import leakage
from medprism.evaluation.performance import performance
from medprism.evaluation.predictions import Predictions
from medprism.evaluation.weighted import Path, subject_codes

Metrics = dict[str, Any]

WORST: Path = ("worst_cell", "accuracy")
MEAN: Path = ("mean_cell", "accuracy")


def evaluate(
    predictions: Predictions,
    cohort: Cohort,
    reference: Predictions | None = None,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    min_group: int = 1,
    seed: int = 0,
    cells: Sequence[str] | None = None,
) -> Metrics:
    """Measure performance, fairness, auxiliary heads and leakage of a set of predictions.

    Args:
        predictions: with targets, attributes and, where there are any, heads and latent blocks.
        cohort: says what they are.
        reference: training samples with latent blocks, on which leakage probes are fitted; None for no leakage.
        bootstrap: number of resamples of subjects for the intervals; 0 for none.
        confidence: of the intervals.
        min_group: groups with fewer samples are left out of everything but their size, and so are cells.
        seed: of all draws.
        cells: attributes that form cells with the target; the sensitive ones when left out, all where none is.

    Returns:
        Plain values that JSON can hold: `n`, `subjects`, `cohort`, `simulated`, `target`, `positive_class`,
        `performance` (metric to `value`, `low`, `high`), `fairness` (attribute to its gaps, `groups` and
        `worst_group`), `worst_cell` (`accuracy` in the worst cell, its name and size, and all cells; empty where the
        target is not one of several classes), `mean_cell` (mean `accuracy` over the cells), `heads` (attribute to
        scores), `leakage` (block to factor to scores) and `notes`, sentences that say what was left out and why. A
        number that the data cannot define is None, and so are the ends of an interval that was not asked for.

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
    joint = cells_of(known, cohort, groups, cells, min_group)
    if joint:
        points |= {WORST: float(joint.accuracy.min()), MEAN: float(joint.accuracy.mean())}
    outside = int((joint.codes < 0).sum()) if joint else len(known)
    if outside and groups and cohort.target_kind == "classes":
        notes.append(
            f"worst cell: {outside} of {len(known)} samples are in no cell: an attribute is unknown, or fewer than "
            f"min_group = {min_group} samples are alike"
        )
    ends: Mapping[Path, Interval] = {}
    if bootstrap:
        values = statistic(known, cohort, groups, subjects, len(names), joint)
        ends = intervals(values, np.bincount(subjects), bootstrap, confidence, seed)
        notes += _undefined(points, ends, bootstrap)
    worst_cell = describe(joint) | _nest({WORST: points.pop(WORST)}, {}, ends)[WORST[0]] if joint else {}
    mean_cell = _nest({MEAN: points.pop(MEAN)}, {}, ends)[MEAN[0]] if joint else {}
    heads, remarks = head_scores(predictions, cohort, bootstrap, confidence, seed)
    notes += remarks
    metrics: Metrics = {
        "n": len(known),
        "subjects": len(names),
        "cohort": cohort.name,
        "simulated": cohort.simulated,
        "target": cohort.target.name,
        "positive_class": cohort.target.classes[1] if len(cohort.target.classes) == 2 else None,
        "performance": _nest({path: v for path, v in points.items() if len(path) == 1}, {}, ends),
        "fairness": _nest({path: v for path, v in points.items() if len(path) > 1}, facts, ends),
        "worst_cell": worst_cell,
        "mean_cell": mean_cell,
        "heads": heads,
        "leakage": {},
    }
    if reference is not None:
        metrics["leakage"], remarks = leakage(reference, predictions, cohort, bootstrap, confidence, seed)
        notes += remarks
    metrics["notes"] = notes
    return metrics


def scores(
    predictions: Predictions, cohort: Cohort, min_group: int = 1, cells: Sequence[str] | None = None
) -> dict[str, float]:
    """The performance, fairness, worst-cell and head numbers of `flatten(evaluate(...))`, quick enough for every epoch.

    They come from one pass of the bootstrap's arithmetic, without notes, intervals and probes.

    Args:
        predictions: with targets and attributes.
        cohort: says what they are.
        min_group: groups and cells with fewer samples are left out.
        cells: as in `evaluate`.

    Raises:
        ValueError: when no sample has a known target.
    """
    known, _ = known_only(predictions, cohort)
    if not len(known):
        raise ValueError(f"none of {len(predictions)} samples has a known target '{cohort.target.name}'")
    subjects, names = subject_codes(known.subjects)
    groups = group(known, cohort, min_group)[0]
    joint = cells_of(known, cohort, groups, cells, min_group)
    values = statistic(known, cohort, groups, subjects, len(names), joint)
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # an empty group has no mean
        found = values(np.ones((1, len(names))))
    flat = {"/".join(path): float(value[0]) for path, value in found.items() if not np.isnan(value[0])}
    heads, _ = head_scores(predictions, cohort, resamples=0)
    return _with_worst(flat | _values(heads, "heads/"))


def flatten(metrics: Metrics) -> dict[str, float]:
    """The defined values of nested metrics as flat scalars for loggers and checkpoints.

    Names are such as `auroc`, `sex/equalized_odds_difference`, `sex/worst_group/accuracy`, `sex/groups/female/auroc`,
    `worst_cell/accuracy`, `heads/sex/accuracy`, `leakage/z_disease/sex/auroc`, `latent/matrix/z_disease/sex/knn` and
    `alignment/retrieval/image_to_text/recall_at_5`; those of a test set begin with its name, such as
    `inverted/auroc`. `worst_group_accuracy` is the lowest over all attributes, for selection.
    """
    flat = {
        **_values(metrics["performance"], ""),
        **_values(metrics["fairness"], ""),
        **_values(metrics["worst_cell"], "worst_cell/"),
        **_values(metrics["mean_cell"], "mean_cell/"),
        **_values(metrics["heads"], "heads/"),
        **_values(metrics["leakage"], "leakage/"),
        **_values(metrics.get("latent", {}), "latent/"),
        **_values(metrics.get("alignment", {}), "alignment/"),
    }
    sets = {name: flatten(each) for name, each in metrics.get("sets", {}).items()}
    return _with_worst(flat) | {f"{s}/{name}": value for s, each in sets.items() for name, value in each.items()}


def _with_worst(flat: dict[str, float]) -> dict[str, float]:
    worst = [value for name, value in flat.items() if name.endswith("/worst_group/accuracy")]
    return flat | ({"worst_group_accuracy": min(worst)} if worst else {})


def table(metrics: Metrics) -> Table:
    """A compact table: performance, worst cell, heads, then a row for each gap and worst group, then leakage."""
    title = f"{metrics['cohort']}{' (simulated)' if metrics['simulated'] else ''}: {metrics['target']}"
    title += f", positive class {metrics['positive_class']}" if metrics["positive_class"] else ""
    shown = Table(title=f"{title}; {metrics['n']} samples of {metrics['subjects']} subjects")
    shown.add_column("what")
    shown.add_column("metric")
    shown.add_column("value", justify="right")
    shown.add_column("interval", justify="right")
    for name, number in metrics["performance"].items():
        shown.add_row("performance", name, *_cells(number))
    if metrics["worst_cell"]:
        worst = metrics["worst_cell"]
        what = " x ".join([metrics["target"], *worst["attributes"]])
        shown.add_row(what, f"worst cell accuracy ({worst['cell']}, n = {worst['n']})", *_cells(worst["accuracy"]))
    for attribute, numbers in metrics["heads"].items():
        for name in ("accuracy", "auroc"):
            shown.add_row(f"head of {attribute}", name, *_cells(numbers[name]))
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
