"""A linear probe of the image vectors with a share of the training labels: 1, 10 and 100 %.

The encoder stays as it is; a logistic regression on standardised vectors (`medprism.evaluation.probes`) is fitted on
the training samples of some subjects and scored on the test samples. The subjects of a share are drawn at random
within each class of the target, and those of a smaller share are among those of a larger one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from medprism.cohort import UNKNOWN, Cohort
from medprism.evaluation.averages import plain
from medprism.evaluation.heads import scored
from medprism.evaluation.predictions import Array
from medprism.evaluation.probes import probe

PERCENTS = (1, 10, 100)

MOST = 50_000
"""Training samples that a probe sees at most, drawn at random, to bound its time."""


def label_shares(
    x: Array,
    y: Array,
    subjects: list[str],
    x_test: Array,
    y_test: Array,
    test_subjects: list[str],
    cohort: Cohort,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Fit the probe on each share of the training subjects, and score it on the test samples.

    Args:
        x: `(m, d)` vectors of training images.
        y: `(m,)` their classes, -1 where unknown.
        subjects: m names of people.
        x_test: `(n, d)` vectors of test images.
        y_test: `(n,)` their classes.
        test_subjects: n names of people.
        cohort: names the classes of the target.
        resamples: bootstrap resamples of the test subjects for the intervals; the fitted probe stays. 0 for none.
        confidence: of the intervals.
        seed: of the shares and resamples.

    Returns:
        `percent_1`, `percent_10` and `percent_100`, each with `auroc`, its `chance`, and the numbers of training
        samples `n` and `subjects`; `auroc` is None where a share leaves a class out. And sentences on what was left
        out.
    """
    name, classes = cohort.target.name, cohort.target.classes
    notes = []
    shared = set(subjects) & set(test_subjects)
    if shared:
        notes.append(f"linear probe: {len(shared)} test subjects are among the training subjects: too optimistic")
    known = np.flatnonzero(y != UNKNOWN)
    x, y, people = x[known], y[known], np.array(subjects, dtype=object)[known]
    needed = np.unique(y)
    found: dict[str, Any] = {}
    for percent in PERCENTS:
        rows = np.flatnonzero(share_of(people, y, percent / 100, seed))
        entry: dict[str, Any] = {
            "auroc": plain(None),
            "chance": {"auroc": plain(0.5)},
            "n": len(rows),
            "subjects": len(set(people[rows])),
        }
        found[f"percent_{percent}"] = entry
        missing = [classes[k] for k in np.setdiff1d(needed, y[rows])]
        if missing:
            notes.append(f"linear probe: {percent} % of the training subjects leave out {missing}; not scored")
            continue
        if len(rows) > MOST:
            notes.append(f"linear probe: {percent} %: {MOST} of {len(rows)} training samples, drawn at random")
            rows = np.sort(np.random.default_rng(seed).choice(rows, MOST, replace=False))
        result, remarks = probe(x[rows], y[rows], x_test, y_test, classes)
        notes += [f"linear probe: {percent} %: {name}: {remark}" for remark in remarks]
        if result is not None:
            scored_rows, decisions = result
            named = [test_subjects[row] for row in scored_rows]
            entry |= scored(decisions, named, ("auroc",), resamples, confidence, seed)
    return found, notes


def share_of(subjects: Array, y: Array, share: float, seed: int) -> Array:
    """`(m,)` whether a sample is of one of the drawn subjects.

    Args:
        subjects: `(m,)` names of people.
        y: `(m,)` class codes; a subject with several counts as of the largest.
        share: of the subjects of each class, rounded.
        seed: of the order in which subjects are drawn.
    """
    everyone, of = np.unique(subjects.astype(str), return_inverse=True)
    strata = np.full(len(everyone), UNKNOWN)
    np.maximum.at(strata, of, y)
    drawn = np.zeros(len(everyone), dtype=bool)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        order = np.random.default_rng([seed, int(stratum)]).permutation(members)
        drawn[order[: round(share * len(members))]] = True
    found: Array = drawn[of]
    return found
