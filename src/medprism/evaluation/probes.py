"""Probes: small classifiers that read a factor from a latent block, written once for all that ask what a block knows.

- `linear`: L2-penalised logistic regression on standardised vectors (C = 1, scikit-learn's default): convex, so that
  the result has no seed, and with lbfgs it converges in tens of steps. (Alain & Bengio, Understanding intermediate
  layers using linear classifier probes, 2016.)
- `mlp`: one hidden layer of 32 units on standardised vectors, up to 100 epochs of Adam (1e-2, batches of 500).
- `knn`: the 30 nearest neighbours on standardised vectors (all, where fewer were given).

What a probe finds is there; what it misses may be there.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import numpy as np

from medprism.cohort import UNKNOWN
from medprism.evaluation.decisions import Decisions
from medprism.evaluation.predictions import Array

Probe = Literal["linear", "mlp", "knn"]

Probed = tuple[Array, Decisions]
"""The rows that were scored, and the decisions on them."""

NEIGHBOURS = 30


def probe(
    x_fit: Array,
    y_fit: Array,
    x_score: Array,
    y_score: Array,
    classes: tuple[str, ...],
    kind: Probe = "linear",
    seed: int = 0,
) -> tuple[Probed | None, list[str]]:
    """Fit a probe and let it decide on other samples.

    Args:
        x_fit: `(m, d)` latent vectors of the samples to fit on.
        y_fit: `(m,)` class codes, -1 where unknown.
        x_score: `(n, d)`.
        y_score: `(n,)`.
        classes: class names.
        kind: of the probe.
        seed: of the `mlp`.

    Returns:
        The rows of `x_score` whose class was seen in fitting, with the decisions on them; None where one of the sets
        has fewer than two such classes. And sentences on what was left out.
    """
    from sklearn.exceptions import ConvergenceWarning

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
    known = y_fit != UNKNOWN
    model = _model(kind, int(known.sum()), seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x_fit[known].astype(np.float64), y_fit[known])
    if kind == "linear" and any(issubclass(warning.category, ConvergenceWarning) for warning in caught):
        notes.append("the probe did not converge in 1000 steps; its score is a lower bound")
    probabilities = model.predict_proba(x_score[rows].astype(np.float64))
    target = np.searchsorted(seen, y_score[rows])
    return (rows, Decisions.of_classes(probabilities, target, tuple(classes[k] for k in seen))), notes


def cross_probe(
    x: Array,
    y: Array,
    subjects: Array,
    classes: tuple[str, ...],
    kind: Probe = "linear",
    folds: int = 5,
    seed: int = 0,
) -> tuple[Probed | None, list[str]]:
    """Probe a set with itself: each fold of subjects is decided on by a probe that was fitted on the other folds.

    Args:
        x: `(n, d)` latent vectors.
        y: `(n,)` class codes, -1 where unknown.
        subjects: `(n,)` codes of people; all samples of a person are in one fold.
        classes: class names.
        kind: of the probe.
        folds: number of folds, stratified by class; classes with fewer subjects are left out.
        seed: of the folds and the `mlp`.

    Returns:
        The rows that were decided on, with the decisions; None where fewer than two classes have enough subjects. And
        sentences on what was left out.
    """
    from sklearn.model_selection import StratifiedKFold

    people = {k: len(np.unique(subjects[y == k])) for k in np.unique(y[y != UNKNOWN])}
    notes = [
        f"{classes[k]} has {n} subjects, fewer than {folds} folds; left out" for k, n in people.items() if n < folds
    ]
    kept = np.array([k for k, n in people.items() if n >= folds], dtype=np.int64)
    if len(kept) < 2:
        only = classes[kept[0]] if len(kept) else "no class"
        return None, [*notes, f"only {only} has {folds} subjects or more; not probed"]
    rows = np.flatnonzero(np.isin(y, kept))
    x, y, subjects = x[rows], np.searchsorted(kept, y[rows]), subjects[rows]
    names = tuple(classes[k] for k in kept)
    # Folds of subjects, each with its largest code: StratifiedGroupKFold loops over groups and takes minutes.
    everyone, of = np.unique(subjects, return_inverse=True)
    strata = np.full(len(everyone), UNKNOWN)
    np.maximum.at(strata, of, y)
    probabilities = np.zeros((len(rows), len(kept)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a probe that stops early is scored all the same
        for _, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(strata, strata):
            score = np.isin(of, held_out)
            if len(np.unique(y[~score])) < 2:
                return None, [*notes, "the samples outside of a fold are of one class; not probed"]
            model = _model(kind, int((~score).sum()), seed)
            model.fit(x[~score].astype(np.float64), y[~score])
            decided = model.predict_proba(x[score].astype(np.float64))
            probabilities[np.ix_(np.flatnonzero(score), model.classes_)] = decided
    return (rows, Decisions.of_classes(probabilities, y, names)), notes


def _model(kind: Probe, samples: int, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = {
        "linear": lambda: LogisticRegression(C=1.0, max_iter=1000),
        "mlp": lambda: MLPClassifier(
            (32,),
            alpha=0.01,
            learning_rate_init=0.01,
            batch_size=min(500, samples),
            max_iter=100,
            tol=1e-3,
            random_state=seed,
        ),
        "knn": lambda: KNeighborsClassifier(min(NEIGHBOURS, samples)),
    }[kind]()
    return make_pipeline(StandardScaler(), classifier)
