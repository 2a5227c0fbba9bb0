"""What can be read from a latent block: linear probes of every attribute and of the target.

A probe is a logistic regression on standardised latent vectors, fitted on reference (training) samples and scored on
the test samples. It is linear, so it bounds leakage from below: what it finds is there, what it misses may be there.
L2-penalised logistic regression (C = 1 on unit-variance features) is scikit-learn's default: convex, so that the
result has no seed, and with lbfgs on standardised features it converges in tens of steps. (Alain & Bengio,
Understanding intermediate layers using linear classifier probes, 2016.)
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from medprism.cohort import UNKNOWN, Cohort, Factor
from medprism.evaluation.bootstrap import intervals
from medprism.evaluation.decisions import Decisions
from medprism.evaluation.performance import auroc, count
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.weighted import ClassificationStatistic, subject_codes

Leakage = dict[str, dict[str, Any]]


def leakage(
    reference: Predictions,
    test: Predictions,
    cohort: Cohort,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    max_reference: int = 10_000,
) -> tuple[Leakage, list[str]]:
    """Probe every latent block for every attribute and for a target of classes.

    Args:
        reference: training samples with blocks, to fit the probes on.
        test: samples with the same blocks, to score them on.
        cohort: names the attributes and the target.
        resamples: bootstrap resamples of the test subjects for the intervals; the fitted probe stays. 0 for none.
        confidence: of the intervals.
        seed: of the resamples, and of the choice of reference samples.
        max_reference: probes are fitted on at most this many samples, drawn at random, to bound their time.

    Returns:
        Block to factor to `auroc` and `balanced_accuracy` (`value`, `low`, `high`; macro over the classes seen in
        both sets), their `chance` levels, and `n` and `n_reference` samples. And sentences on what was left out.
    """
    notes = []
    shared = set(reference.subjects) & set(test.subjects)
    if shared:
        notes.append(f"leakage: {len(shared)} test subjects are among those the probes were fitted on: too optimistic")
    if len(reference) > max_reference:
        notes.append(f"leakage: probes are fitted on {max_reference} of {len(reference)} reference samples")
        rows = np.random.default_rng(seed).choice(len(reference), max_reference, replace=False)
        reference = reference.take(np.sort(rows))
    factors = list(cohort.attributes)
    if cohort.target_kind == "classes":
        factors.insert(0, cohort.target)
    else:
        notes.append(f"leakage: target {cohort.target.name} is not one of several classes; only attributes are probed")
    found: Leakage = {}
    for block in test.blocks:
        if block not in reference.blocks:
            notes.append(f"leakage: reference samples have no block {block}; it is not probed")
            continue
        found[block] = {}
        for factor in factors:
            fit, score = _codes(reference, factor, cohort), _codes(test, factor, cohort)
            if fit is None or score is None:
                notes.append(f"leakage: {factor.name} is not given for both sets; it is not probed")
                continue
            result, remarks = probe(reference.blocks[block], fit, test.blocks[block], score, factor.classes)
            notes += [f"leakage: {factor.name} from {block}: {remark}" for remark in remarks]
            if result is not None:
                rows, decisions = result
                found[block][factor.name] = {
                    **_scores(decisions, [test.subjects[row] for row in rows], resamples, confidence, seed),
                    "chance": {"auroc": 0.5, "balanced_accuracy": 1 / len(np.unique(score[rows]))},
                    "n": len(rows),
                    "n_reference": int((fit != UNKNOWN).sum()),
                }
    return found, list(dict.fromkeys(notes))


def probe(
    x_fit: Array, y_fit: Array, x_score: Array, y_score: Array, classes: tuple[str, ...]
) -> tuple[tuple[Array, Decisions] | None, list[str]]:
    """Fit a linear probe and let it decide on other samples.

    Args:
        x_fit: `(m, d)` latent vectors of the samples to fit on.
        y_fit: `(m,)` class codes, -1 where unknown.
        x_score: `(n, d)`.
        y_score: `(n,)`.
        classes: class names.

    Returns:
        The rows of `x_score` whose class was seen in fitting, with the decisions on them; None where one of the sets
        has fewer than two such classes. And sentences on what was left out.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    notes = []
    seen = np.unique(y_fit[y_fit != UNKNOWN])
    unseen = np.setdiff1d(y_score[y_score != UNKNOWN], seen)
    rows = np.flatnonzero(np.isin(y_score, seen))
    if len(unseen):
        lost = int(np.isin(y_score, unseen).sum())
        named = ", ".join(classes[k] for k in unseen)
        notes.append(f"{named} not among the reference samples; {lost} test samples left out")
    for which, codes in (("reference", seen), ("test", np.unique(y_score[rows]))):
        if len(codes) < 2:
            only = classes[codes[0]] if len(codes) else "no known class"
            return None, [*notes, f"only {only} among the {which} samples; not probed"]
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=1000))
    known = y_fit != UNKNOWN
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x_fit[known].astype(np.float64), y_fit[known])
    if any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        notes.append("the probe did not converge in 1000 steps; its score is a lower bound")
    probabilities = model.predict_proba(x_score[rows].astype(np.float64))
    target = np.searchsorted(seen, y_score[rows])
    return (rows, Decisions.of_classes(probabilities, target, tuple(classes[k] for k in seen))), notes


def _scores(
    decisions: Decisions, subjects: list[str], resamples: int, confidence: float, seed: int
) -> dict[str, dict[str, float | None]]:
    codes, names = subject_codes(subjects)
    values = {"auroc": auroc(decisions), "balanced_accuracy": float(count(decisions).metrics()["balanced_accuracy"])}
    found = {}
    if resamples:
        statistic = ClassificationStatistic(decisions, [], codes, len(names))
        found = intervals(statistic, np.bincount(codes), resamples, confidence, seed)
    return {
        name: {
            "value": value,
            "low": found[name,].low if found else None,
            "high": found[name,].high if found else None,
        }
        for name, value in values.items()
    }


def _codes(predictions: Predictions, factor: Factor, cohort: Cohort) -> Array | None:
    return predictions.target if factor is cohort.target else predictions.attributes.get(factor.name)
