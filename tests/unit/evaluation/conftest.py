from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from medprism.cohort import Cohort, Factor
from medprism.evaluation import Predictions


def make_cohort(classes: tuple[str, ...] = ("control", "autism"), kind: str = "classes") -> Cohort:
    return Cohort(
        name="simulated",
        fields=("image", "target", "attributes"),
        input_shape=(1, 4, 4),
        target=Factor("disease", classes, role="target"),
        target_kind=kind,  # type: ignore[arg-type]
        attributes=(Factor("sex", ("female", "male"), role="sensitive"), Factor("site", ("A", "B", "C"))),
        simulated=True,
    )


def make_predictions(
    n: int = 120, classes: int = 2, kind: str = "classes", seed: int = 0, decimals: int = 1, per_subject: int = 2
) -> Predictions:
    """Informative but imperfect predictions, rounded so that scores tie, with several samples a subject."""
    rng = np.random.default_rng(seed)
    if kind == "classes":
        target = rng.integers(0, classes, n)
        probabilities = rng.dirichlet(np.ones(classes), n) + 0.5 * np.eye(classes)[target]
        probabilities = probabilities / probabilities.sum(axis=1, keepdims=True)
        if classes == 2:
            positive = probabilities[:, 1].round(decimals)
            probabilities = np.stack([1 - positive, positive], axis=1)
    elif kind == "labels":
        target = rng.integers(-1, 2, (n, classes)).astype(float)
        probabilities = np.clip(0.3 * target + rng.random((n, classes)), 0, 1).round(decimals)
    else:
        target = rng.normal(70, 10, n)
        probabilities = (target + rng.normal(0, 5, n))[:, None]
    return Predictions(
        ids=[f"scan{i:04d}" for i in range(n)],
        subjects=[f"person{i // per_subject:04d}" for i in range(n)],
        probabilities=probabilities,
        target=target,
        attributes={"sex": rng.integers(0, 2, n), "site": rng.integers(-1, 3, n)},
        blocks={"z": rng.normal(size=(n, 6)).astype(np.float32)},
    )


@pytest.fixture
def cohort_of() -> Callable[..., Cohort]:
    return make_cohort


@pytest.fixture
def predictions_of() -> Callable[..., Predictions]:
    return make_predictions
