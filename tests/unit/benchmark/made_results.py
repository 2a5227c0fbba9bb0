"""Results of a suite, made up without any runs."""

import numpy as np
import pandas as pd

from medprism.benchmark.results import (
    COLUMNS,
    EXTRA_COLUMNS,
    GROUP_COLUMNS,
    CellNote,
    CohortNote,
    Results,
    RunNote,
)


def summary_row(cohort: str, where: str, method: str, metric: str, mean: float, **others) -> dict:
    row = dict.fromkeys(COLUMNS, np.nan) | {"seeds": 2, "samples": 60.0, "subjects": 60, "sd": 0.01}
    row |= {"low": mean - 0.05, "high": mean + 0.05} | others
    return row | {"cohort": cohort, "set": where, "method": method, "metric": metric, "mean": mean}


def results_of(means: dict[tuple[str, str, str, str], float], incomplete=(), **changes) -> Results:
    """Results with these means, under cohort, set, method and metric; `incomplete` are pairs of cohort and method."""
    names = list(dict.fromkeys((cohort, method) for cohort, _, method, _ in means))
    cells = []
    for cohort, method in names:
        whole = (cohort, method) not in incomplete
        runs = tuple(
            RunNote(f"{cohort}/{method}/seed{s}_0123456789", s, None, "kept" if whole or s == 0 else "missing",
                    whole or s == 0, 2.0, "") for s in (0, 1)
        )  # fmt: skip
        state = "complete" if whole else "1 of 2 runs missing"
        cells.append(CellNote(cohort, method, state, 1 + whole, f"model: {method}\n", runs))
    sets = {cohort: tuple(dict.fromkeys(s for c, s, _, _ in means if c == cohort)) for cohort, _ in names}
    fields = {
        "name": "made",
        "title": "Made up.",
        "reference": "erm",
        "ceiling": None,
        "shown": ("accuracy",),
        "labels": {method: method for _, method in names},
        "command": "lightning benchmark --config made.yaml",
        "selection": ("val/auroc",),
        "trials": 1,
        "resamples": 1000,
        "runs_at": None,
        "cohorts": tuple(CohortNote(name, "disease", True, each) for name, each in sets.items()),
        "cells": tuple(cells),
        "maps": (),
        "maps_left_out": 0,
        "summary": pd.DataFrame([summary_row(*key, mean) for key, mean in means.items()], columns=COLUMNS),
        "extras": pd.DataFrame(columns=EXTRA_COLUMNS),
        "groups": pd.DataFrame(columns=GROUP_COLUMNS),
        "environment": {"python": "3.11", "device": "cpu", "packages": {"torch": "2"}, "code_of_runs": ["now"]},
    }
    return Results(**{**fields, **changes})
