"""The small cohorts that a method is checked on when its author names none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import medprism.datamodules
from medprism.data.base import CohortDataModule
from medprism.method import Method

_SPLIT = {"batch_size": 16, "split": "holdout", "test_fraction": 0.3, "validation_fraction": 0.3}
DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "SimulatedConnectomes": {
        "subjects": 60,
        "regions": 12,
        "volumes": 60,
        "effect": 0.8,
        "correlation_train": 0.0,
        **_SPLIT,
    },
    "ConfoundedDigits": {
        "train": 40,
        "validation": 16,
        "same": 0,
        "inverted": 0,
        "balanced": 16,
        "ratio": 0.5,
        "batch_size": 16,
    },
    "SimulatedReadingRoom": {"people": 48, "size": 32, "gaze_size": 16, "contrast": 2.0, **_SPLIT},
    "SimulatedVolumes": {"subjects": 48, "size": 12, **_SPLIT},
}
"""Name of a datamodule to its arguments, in the order in which they are tried; nothing is downloaded."""


def make_default(name: str, cache: str) -> CohortDataModule:
    """One of `DEFAULTS`.

    Args:
        name: its name.
        cache: folder for what it keeps on disk.
    """
    data: CohortDataModule = getattr(medprism.datamodules, name)(**DEFAULTS[name], cache_dir=cache)
    return data


def fitting_cohort(cls: type[Method], init_args: Mapping[str, Any], cache: str) -> CohortDataModule:
    """The first default cohort that has the fields of `cls.requires` and that `cls` can be built for.

    Args:
        cls: the method.
        init_args: its arguments, beside the cohort.
        cache: folder for what the cohort keeps on disk.

    Raises:
        ValueError: when there is none; says why each did not fit.
    """
    reasons = []
    for name in DEFAULTS:
        data = make_default(name, cache)
        lacking = sorted(cls.requires - set(data.cohort.fields))
        if lacking:
            reasons.append(f"{name} lacks {lacking}")
            continue
        try:
            cls(data.cohort.to_dict(), **init_args)
        except Exception as error:  # whatever it is, another cohort may suit the method better
            reasons.append(f"{name}: {type(error).__name__}: {error}")
            continue
        return data
    raise ValueError(
        f"no default cohort suits {cls.__name__}; name one, such as check_method({cls.__name__}, cohort=MyData(...)). "
        + "; ".join(reasons)
    )
