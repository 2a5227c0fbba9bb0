"""Runs that cost nothing: a suite for the script of `fake_worker`, and folders written by hand."""

import json
from pathlib import Path

import numpy as np
import yaml

from medprism.benchmark.runner import Outcome
from medprism.benchmark.suite import Job
from medprism.cohort import Cohort, Factor
from medprism.evaluation import Predictions

COHORT = Cohort(
    name="Made",
    fields=("id", "subject", "image", "target", "attributes"),
    input_shape=(1, 4, 4),
    target=Factor("disease", ("control", "case"), role="target"),
    attributes=(Factor("sex", ("female", "male"), role="sensitive"), Factor("site", ("A", "B"))),
    simulated=True,
)


def write_suite(path: Path, methods: dict | None = None, **changes) -> Path:
    """A suite of two methods on one cohort, two seeds and two folds; returns its path."""
    methods = methods or {"erm": {}, "other": {}}
    cohort = json.dumps(COHORT.to_dict())
    content = {
        "title": "Made up.",
        "reference": "erm",
        "seeds": [0, 1],
        "shown": ["accuracy", "worst_cell/accuracy"],
        "cohorts": {"made": {"folds": 2, "data": {"class_path": "Made"}}},
        "methods": {
            name: {"model": {"class_path": "M", "name": name, "cohort": cohort, **how}} for name, how in methods.items()
        },
        **changes,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def predictions_of(seed: int, skill: float = 1.0, n: int = 60, fold: str = "", heads: bool = False) -> Predictions:
    """Imperfect predictions of n subjects, who are the same for every seed and method."""
    target = np.random.default_rng(7).integers(0, 2, n)
    sex, site = np.random.default_rng(8).integers(0, 2, (2, n))
    positive = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(skill * (2 * target - 1), 1)))
    names = [f"s{fold}{k:03d}" for k in range(n)]
    return Predictions(
        names,
        names,
        np.column_stack([1 - positive, positive]),
        target,
        {"sex": sex, "site": site},
        heads={"site": np.full((n, 2), 0.5)} if heads else {},
    )


def finished(
    runs: Path,
    method: str,
    seed: int,
    predictions: Predictions,
    fold: int | None = None,
    state: str = "kept",
    code: str = "now",
    sets: dict | None = None,
    metrics: dict | None = None,
    config: dict | None = None,
) -> Outcome:
    """A run as a finished `lightning fit` leaves it; a missing or failed one has no files."""
    job = Job("made", method, seed, fold, {"model": method, "seed": seed, "fold": fold, **(config or {})})
    folder = runs / job.name
    if state in ("missing", "failed"):
        return Outcome(job, folder, state)
    folder.mkdir(parents=True)
    (folder / "cohort.json").write_text(json.dumps(COHORT.to_dict()))
    (folder / "metrics.json").write_text(json.dumps({"test": metrics or {}}))
    (folder / "done.json").write_text(json.dumps({"seconds": 2.0 + seed, "code": code, "peak_memory_mb": 100}))
    predictions.save(folder / "predictions.csv", "test", COHORT, sets)
    return Outcome(job, folder, state, 2.0 + seed)
