"""What can be read from a latent block: linear probes of every attribute and of the target.

A probe is a logistic regression on standardised latent vectors, fitted on reference (training) samples and scored on
the test samples; see `medprism.evaluation.probes`. It is linear, so it bounds leakage from below: what it finds is
there, what it misses may be there.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medprism.cohort import UNKNOWN, Cohort, Factor
from medprism.evaluation.heads import scored
from medprism.evaluation.predictions import Array, Predictions
from medprism.evaluation.probes import probe

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
            fit, score = factor_codes(reference, factor, cohort), factor_codes(test, factor, cohort)
            if fit is None or score is None:
                notes.append(f"leakage: {factor.name} is not given for both sets; it is not probed")
                continue
            result, remarks = probe(reference.blocks[block], fit, test.blocks[block], score, factor.classes)
            notes += [f"leakage: {factor.name} from {block}: {remark}" for remark in remarks]
            if result is not None:
                rows, decisions = result
                subjects, metrics = [test.subjects[row] for row in rows], ("auroc", "balanced_accuracy")
                found[block][factor.name] = {
                    **scored(decisions, subjects, metrics, resamples, confidence, seed),
                    "chance": {"auroc": 0.5, "balanced_accuracy": 1 / len(np.unique(score[rows]))},
                    "n": len(rows),
                    "n_reference": int((fit != UNKNOWN).sum()),
                }
    return found, list(dict.fromkeys(notes))


def factor_codes(predictions: Predictions, factor: Factor, cohort: Cohort) -> Array | None:
    """`(n,)` class codes of the target or an attribute; None where the predictions do not carry it."""
    return predictions.target if factor is cohort.target else predictions.attributes.get(factor.name)
