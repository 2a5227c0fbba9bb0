"""What a search of settings has found: of a method's trials, the validation part chooses.

A trial is an ordinary run. For every seed and fold each method has the same number of trials, and the one with the
best validation value of its chosen epoch (`selection.json`) stands for the method there. So settings are chosen on the
part that also chooses the epoch, and never among people whom that run is tested on. Tests of the other trials lie in
their folders, and nothing looks at them.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medprism.benchmark.results import SEARCH
from medprism.benchmark.runner import Outcome
from medprism.files import SELECTION

_ENDED = ("finished", "kept", "stale")


def choose(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """One outcome for every cohort, method, seed and fold, in the order of the first trial.

    Where a trial is missing there is no choice yet. A trial that failed, such as one whose loss was not finite, has
    lost; when all did, the run has failed. A choice among trials of which one is stale is stale.

    Args:
        outcomes: of all jobs of a suite.
    """
    return [_chosen(trials) for trials in _grouped(outcomes).values()]


def write_table(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Write search.csv: every trial with its settings, its validation value, and whether it was chosen."""
    chosen = {outcome.job.name for outcome in choose(outcomes) if outcome.state in _ENDED}
    with (folder / SEARCH).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["cohort", "method", "seed", "fold", "state", "validation", "value", "chosen", "settings"])
        for trials in _grouped(outcomes).values():
            for each in trials:
                metric, value = _shown(each)
                job, fold = each.job, "" if each.job.fold is None else each.job.fold
                state = "finished" if each.state == "kept" else each.state
                taken = "yes" if job.name in chosen else "no"
                writer.writerow(
                    [job.cohort, job.method, job.seed, fold, state, metric, value, taken, json.dumps(job.settings)]
                )


def _grouped(outcomes: Sequence[Outcome]) -> dict[tuple[Any, ...], list[Outcome]]:
    found: dict[tuple[Any, ...], list[Outcome]] = {}
    for each in outcomes:
        found.setdefault((each.job.cohort, each.job.method, each.job.seed, each.job.fold), []).append(each)
    return found


def _chosen(trials: Sequence[Outcome]) -> Outcome:
    if len(trials) == 1:
        return trials[0]
    ended = [each for each in trials if each.state in _ENDED]
    if missing := [each for each in trials if each.state == "missing"]:
        return missing[0]
    if not ended:
        return replace(trials[0], error=f"all {len(trials)} trials failed, the first with: {trials[0].error}")
    best = max(ended, key=_value)  # the first of those that are equal
    return replace(best, state="stale") if any(each.state == "stale" for each in ended) else best


def _value(outcome: Outcome) -> float:
    """Higher is better, whatever the metric."""
    record = _selection(outcome)
    value = float(record["value"])
    return -math.inf if math.isnan(value) else value if record["mode"] == "max" else -value


def _shown(outcome: Outcome) -> tuple[str, str]:
    if outcome.state not in _ENDED:
        return "", ""
    record = _selection(outcome)
    return record["metric"], f"{record['value']:.5g}"


def _selection(outcome: Outcome) -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads((outcome.folder / SELECTION).read_text(encoding="utf-8"))
    return record
