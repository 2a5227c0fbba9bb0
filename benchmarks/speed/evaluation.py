"""Evaluation of many predictions with all fairness metrics and bootstrap intervals, against fairlearn's own bootstrap.

The predictions are simulated: a binary target, and sex, age class and site as attributes, each person with one sample.
Ours is `medprism.evaluation.evaluate`: performance, calibration, cells, the gaps and groups of every attribute, with
percentile intervals over subjects. The reference is `fairlearn.metrics.MetricFrame` with `n_boot`, one frame for each
attribute, with accuracy, AUROC and the rates that the gaps are made of; it runs few resamples, and its time for all is
**extrapolated** from the difference of two of its runs. Gaps of both are compared.

    python benchmarks/speed/evaluation.py
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
from fairlearn import metrics as fairlearn_metrics
from sklearn.metrics import accuracy_score, roc_auc_score

from medprism.cohort import Cohort, Factor
from medprism.evaluation import Predictions, evaluate

from common import machine, seconds, write

ATTRIBUTES = {"sex": 2, "age": 4, "site": 20}
"""Attribute name to number of classes."""
TOLERANCE = 1e-9


def simulated(n: int, seed: int = 0) -> tuple[Predictions, Cohort]:
    """Predictions that treat the groups of every attribute somewhat differently."""
    draw = np.random.default_rng(seed)
    target = draw.integers(0, 2, n)
    attributes = {name: draw.integers(0, classes, n) for name, classes in ATTRIBUTES.items()}
    lean = sum(0.05 * codes / ATTRIBUTES[name] for name, codes in attributes.items())
    score = np.clip(0.35 + 0.25 * target + lean + draw.normal(0, 0.2, n), 0, 1)
    people = [f"person {k}" for k in range(n)]
    factors = tuple(
        Factor(name, tuple(f"{name} {k}" for k in range(classes)), role="sensitive")
        for name, classes in ATTRIBUTES.items()
    )
    target_factor = Factor("disease", ("control", "patient"), role="target")
    fields = ("id", "image", "target", "attributes")
    cohort = Cohort("simulated predictions", fields, (1, 8, 8), target_factor, attributes=factors, simulated=True)
    return Predictions(people, people, np.column_stack([1 - score, score]), target, attributes), cohort


def with_fairlearn(predictions: Predictions, resamples: int) -> dict[str, dict[str, float]]:
    """The gaps of every attribute, with fairlearn's bootstrap of that many resamples."""
    assert predictions.target is not None
    score = predictions.probabilities[:, 1]
    decided = (score >= 0.5).astype(int)
    rates = {
        "accuracy": accuracy_score,
        "selection rate": fairlearn_metrics.selection_rate,
        "true positive rate": fairlearn_metrics.true_positive_rate,
        "false positive rate": fairlearn_metrics.false_positive_rate,
    }
    boot: dict[str, Any] = {"n_boot": resamples, "ci_quantiles": [0.025, 0.975], "random_state": 0}
    gaps = {}
    for name, codes in predictions.attributes.items():
        frame = fairlearn_metrics.MetricFrame(
            metrics=rates, y_true=predictions.target, y_pred=decided, sensitive_features=codes, **boot
        )
        fairlearn_metrics.MetricFrame(
            metrics={"auroc": roc_auc_score}, y_true=predictions.target, y_pred=score, sensitive_features=codes, **boot
        )
        spread = frame.difference(method="between_groups")
        gaps[name] = {
            "demographic_parity_difference": float(spread["selection rate"]),
            "equalized_odds_difference": float(max(spread["true positive rate"], spread["false positive rate"])),
        }
    return gaps


def differing(ours: dict[str, Any], theirs: dict[str, dict[str, float]]) -> float:
    """Largest difference of a gap.

    Raises:
        RuntimeError: when it is more than rounding.
    """
    apart = [
        abs(ours["fairness"][name][gap]["value"] - value)
        for name, each in theirs.items()
        for gap, value in each.items()
    ]
    if max(apart) > TOLERANCE:
        raise RuntimeError(f"gaps of fairlearn and ours differ by up to {max(apart)}")
    return max(apart)


def measure(n: int, resamples: int, few: tuple[int, int]) -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    predictions, cohort = simulated(n)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, dict[str, float]]] = []
    clock = time.perf_counter
    own = seconds(lambda: ours.append(evaluate(predictions, cohort, bootstrap=resamples)), clock)
    first, second = (seconds(lambda b=b: theirs.append(with_fairlearn(predictions, b)), clock) for b in few)  # type: ignore[misc]
    each = (second - first) / (few[1] - few[0])
    extrapolated = first + each * (resamples - few[0])
    return {
        "predictions": n,
        "resamples": resamples,
        "attributes": ATTRIBUTES,
        "ours, seconds": own,
        "reference": "fairlearn MetricFrame with n_boot, extrapolated",
        "reference: resamples timed": few,
        "reference: seconds of those": [first, second],
        "reference: seconds, extrapolated": extrapolated,
        "times faster than the reference": extrapolated / own,
        "largest difference of a gap": differing(ours[0], theirs[0]),
        "environment": machine(),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--few", type=int, nargs=2, default=(2, 5), help="resamples of the reference that are timed")
    options = parser.parse_args()
    result = measure(options.predictions, options.resamples, tuple(options.few))
    print(
        f"ours {result['ours, seconds']:.1f} s, fairlearn {result['reference: seconds, extrapolated']:.0f} s "
        f"(extrapolated), {result['times faster than the reference']:.0f} times faster"
    )
    write("evaluation", result)


if __name__ == "__main__":
    main()
