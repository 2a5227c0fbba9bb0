"""How well a method predicts its attributes, where it has auxiliary heads for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from medprism.cohort import UNKNOWN, Cohort
from medprism.evaluation.bootstrap import intervals
from medprism.evaluation.decisions import Decisions
from medprism.evaluation.performance import auroc, count, missing_classes
from medprism.evaluation.predictions import Predictions, check_codes, check_probabilities
from medprism.evaluation.weighted import ClassificationStatistic, subject_codes

Number = dict[str, float | None]
"""`value`, `low` and `high`; None where it is not defined or not asked for."""


def head_scores(
    predictions: Predictions, cohort: Cohort, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Measure every auxiliary head on the samples whose attribute is known.

    Args:
        predictions: with heads and attributes.
        cohort: names the attributes and their classes.
        resamples: bootstrap resamples of subjects; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.

    Returns:
        Attribute to `accuracy`, `balanced_accuracy` and `auroc` (`value`, `low`, `high`) and `n` samples. And
        sentences on what was left out.

    Raises:
        ValueError: when a head gives no probabilities of the attribute's classes.
    """
    found: dict[str, dict[str, Any]] = {}
    notes = []
    for factor in cohort.attributes:
        if factor.name not in predictions.heads:
            continue
        head = predictions.heads[factor.name]
        check_probabilities(head, factor)
        codes = predictions.attributes.get(factor.name, np.full(len(predictions), UNKNOWN))
        check_codes(codes, factor)
        rows = np.flatnonzero(codes != UNKNOWN)
        if not len(rows):
            notes.append(f"head of {factor.name}: no sample has a known {factor.name}; not measured")
            continue
        decisions = Decisions.of_classes(head[rows], codes[rows], factor.classes)
        notes += missing_classes(decisions, f"head of {factor.name}")
        subjects = [predictions.subjects[row] for row in rows]
        metrics = ("accuracy", "balanced_accuracy", "auroc")
        found[factor.name] = {**scored(decisions, subjects, metrics, resamples, confidence, seed), "n": len(rows)}
    return found, notes


def scored(
    decisions: Decisions, subjects: list[str], metrics: tuple[str, ...], resamples: int, confidence: float, seed: int
) -> dict[str, Number]:
    """Some performance metrics of n classified samples, with intervals over subjects.

    Args:
        decisions: n samples.
        subjects: n names of people.
        metrics: `auroc`, and names of `Counts.metrics`.
        resamples: bootstrap resamples; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.
    """
    codes, names = subject_codes(subjects)
    counts = count(decisions).metrics()
    found = {}
    if resamples:
        statistic = ClassificationStatistic(decisions, [], codes, len(names))
        found = intervals(statistic, np.bincount(codes), resamples, confidence, seed)
    numbers: dict[str, Number] = {}
    for name in metrics:
        value = auroc(decisions) if name == "auroc" else float(counts[name])
        value = None if value is None or np.isnan(value) else value  # a class that no sample has
        ends = found.get((name,)) if value is not None else None
        numbers[name] = {"value": value, "low": ends.low if ends else None, "high": ends.high if ends else None}
    return numbers
