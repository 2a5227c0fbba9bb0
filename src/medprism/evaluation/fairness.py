"""How a method treats the groups of an attribute.

Gaps are differences between the best and the worst group (fairlearn), from 0 (equal) to 1. For more than two classes,
and for labels, each class is taken against the rest, and a gap is the largest over the classes. Groups that cannot
define a number are left out of it and named in a note: a group without positives has no sensitivity, a group of a
single class no AUROC and no place in the equalized odds.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from medprism.evaluation.decisions import Decisions, Groups
from medprism.evaluation.performance import auroc, count
from medprism.evaluation.predictions import Array
from medprism.evaluation.weighted import Path, cell_accuracy

GAPS = ("demographic_parity_difference", "equalized_odds_difference", "equal_opportunity_difference")


@dataclass
class Fairness:
    """The fairness numbers of one attribute.

    Attributes:
        values: path, starting with the attribute's name, to the number; None where the data cannot define it.
        facts: path to group sizes, and to the name of the worst group.
        notes: sentences on what was left out.
    """

    values: dict[Path, float | None] = field(default_factory=dict)
    facts: dict[Path, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def fairness(decisions: Decisions, groups: Groups) -> Fairness:
    """Gaps between groups, metrics of each group, and the worst group.

    - `demographic_parity_difference`: gap of the share of samples for which a class is predicted.
    - `equalized_odds_difference`: the larger of the gaps of true and false positive rates, among groups with both.
    - `equal_opportunity_difference`: gap of the true positive rate, among groups with positives.
    - `equity_scaled_auroc`: AUROC / (1 + sum over groups of |AUROC - AUROC of the group|) (Luo et al., FairCLIP, CVPR
      2024), with the AUROC of all samples, those of unknown group included.
    - `worst_group`: lowest accuracy and AUROC of a group, and lowest accuracy of a class of the target in a group.
    - `groups`: `n`, `n_positive`, `auroc` (macro over classes), `accuracy`, `sensitivity`, `specificity` of each.

    Args:
        decisions: n samples.
        groups: of those samples.
    """
    found, name = Fairness(), groups.name
    parts = {g: decisions.take(groups.codes == g) for g in range(len(groups.classes))}
    parts = {g: part for g, part in parts.items() if len(part)}
    if len(parts) < 2:
        found.notes.append(f"{name}: fewer than two groups have samples; there are no gaps")
    for g, part in parts.items():
        found.notes += _lacks(part, f"{name} {groups.classes[g]}")
    for gap in GAPS:
        found.values[name, gap] = _gap(gap, decisions, groups.codes)

    overall = auroc(decisions)
    by_group: dict[str, dict[str, float | None]] = {metric: {} for metric in ("accuracy", "auroc", "cell_accuracy")}
    for g, group_name in enumerate(groups.classes):
        at = (name, "groups", group_name)
        part = parts.get(g, decisions.take(np.zeros(0, dtype=np.int64)))
        counts = count(part)
        numbers: dict[str, float | None] = {"auroc": auroc(part)}
        numbers |= {metric: _plain(counts.metrics()[metric]) for metric in ("accuracy", "sensitivity", "specificity")}
        found.values |= {(*at, metric): value for metric, value in numbers.items()}
        found.facts[*at, "n"] = len(part)
        positives = {label: int(n) for label, n in zip(part.names, counts.pos, strict=True)}
        found.facts[*at, "n_positive"] = positives if len(positives) > 1 else next(iter(positives.values()))
        for metric in ("accuracy", "auroc"):
            by_group[metric][group_name] = numbers[metric]
        for label, cell in zip(_cells(decisions), cell_accuracy(counts), strict=True):
            by_group["cell_accuracy"][f"{label}, {group_name}"] = _plain(cell)

    aurocs = [value for value in by_group["auroc"].values() if value is not None]
    scaled = overall / (1 + sum(abs(value - overall) for value in aurocs)) if overall is not None and aurocs else None
    found.values[name, "equity_scaled_auroc"] = scaled
    for metric, choices in by_group.items():
        _worst(found, (name, "worst_group", metric), {k: v for k, v in choices.items() if v is not None}, least=True)
    return found


def regression_fairness(predicted: Array, target: Array, groups: Groups) -> Fairness:
    """Mean absolute error of each group, the gap of it, and the worst group.

    Args:
        predicted: `(n,)`.
        target: `(n,)`.
        groups: of those samples.
    """
    found, name, errors = Fairness(), groups.name, {}
    for g, group_name in enumerate(groups.classes):
        rows = groups.codes == g
        error = float(np.abs(predicted - target)[rows].mean()) if rows.any() else None
        found.values[name, "groups", group_name, "mae"] = error
        found.facts[name, "groups", group_name, "n"] = int(rows.sum())
        if error is not None:
            errors[group_name] = error
    if len(errors) < 2:
        found.notes.append(f"{name}: fewer than two groups have samples; there are no gaps")
    gap = max(errors.values()) - min(errors.values()) if len(errors) >= 2 else None
    found.values[name, "mae_difference"] = gap
    _worst(found, (name, "worst_group", "mae"), errors, least=False)
    return found


def _gap(gap: str, decisions: Decisions, codes: Array) -> float | None:
    """One of fairlearn's differences, the largest over classes; None where no class has two groups that define it."""
    import fairlearn.metrics  # two seconds, and only evaluation needs it

    difference = getattr(fairlearn.metrics, gap)
    values = []
    for c in range(len(decisions.names)):
        positives, negatives = decisions.positives[:, c], decisions.negatives[:, c]
        needs = {
            "demographic_parity_difference": [positives | negatives],
            "equalized_odds_difference": [positives, negatives],
            "equal_opportunity_difference": [positives],
        }[gap]
        able = [g for g in np.unique(codes[codes >= 0]) if all((codes[need] == g).any() for need in needs)]
        rows = np.isin(codes, able) & (positives | negatives)
        if len(able) >= 2:
            # fairlearn visits samples one by one: give it each distinct outcome once, with its number as weight
            outcomes = np.column_stack([codes, positives, decisions.predicted[:, c]])[rows].astype(int)
            (groups, truth, predicted), weights = _distinct(outcomes)
            with warnings.catch_warnings():
                # fairlearn computes all rates of a group, also those that this gap does not use and it does not have
                warnings.filterwarnings("ignore", category=UserWarning)
                gap_of_class = difference(truth, predicted, sensitive_features=groups, sample_weight=weights)
            values.append(float(gap_of_class))
    return max(values) if values else None


def _distinct(rows: Array) -> tuple[Array, Array]:
    """`(columns, distinct)` distinct rows of codes from 0, in order, and how often each stands."""
    shape = rows.max(axis=0) + 1
    keys, counts = np.unique(np.ravel_multi_index(rows.T, shape), return_counts=True)  # integers sort quicker than rows
    return np.stack(np.unravel_index(keys, shape)), counts


def _lacks(part: Decisions, where: str) -> list[str]:
    """Sentences on classes that a group does not have."""
    n = len(part)
    if part.kind == "binary":
        has = part.positives[:, 0]
        if has.any() and not has.all():
            return []
        only = part.names[0] if has.any() else f"not {part.names[0]}"
        rest = "" if has.any() else ", and so does equal opportunity"
        return [f"{where}: only {only} among {n} samples; AUROC and equalized odds leave it out{rest}"]
    lacking = [name for c, name in enumerate(part.names) if not part.positives[:, c].any()]
    lacking += [f"not {name}" for c, name in enumerate(part.names) if not part.negatives[:, c].any()]
    what = ", ".join(lacking)
    return [f"{where}: none is {what} among {n} samples; metrics of these classes leave it out"] if lacking else []


def _cells(decisions: Decisions) -> list[str]:
    """The names of the target classes of `cell_accuracy`, in its order."""
    if decisions.kind == "classes":
        return list(decisions.names)
    return [f"not {name}" for name in decisions.names] + list(decisions.names)


def _worst(found: Fairness, path: Path, choices: dict[str, float], least: bool) -> None:
    pick = min if least else max
    worst = pick(choices, key=lambda name: choices[name]) if choices else None
    found.values[path] = choices[worst] if worst is not None else None
    found.facts[*path, "group"] = worst


def _plain(value: Array | float) -> float | None:
    return None if np.isnan(value) else float(value)
