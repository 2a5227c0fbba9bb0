"""SIMULATED readings in the released layouts, which several tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from medprism.datamodules.gaze_released import EGDCXR, MIMICEYE, REFLACX, ReleasedReadings
from medprism.datamodules.reading_room_cases import simulated_cases
from medprism.datamodules.reading_room_files import write_egd, write_mimic_eye, write_reflacx

SEED = 5
CASES = simulated_cases(24, seed=SEED)
WRITERS = {"egd": write_egd, "reflacx": write_reflacx, "mimic_eye": write_mimic_eye}


def make(kind: str, folder: Path, cache: Path | None = None, **options: object) -> ReleasedReadings:
    given = {"size": 32, "gaze_size": 16, "sigma_px": 5.0, "jobs": 1, "split": "holdout"}
    given["cache_dir"] = str(cache or folder / "cache")
    given |= {"attributes": ()} if kind != "mimic_eye" else {"uncertain": "u_ones"}
    return {"egd": EGDCXR, "reflacx": REFLACX, "mimic_eye": MIMICEYE}[kind](str(folder), **(given | options))


def edited(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame | None]) -> None:
    """Change a table of text, in place or for another."""
    table = pd.read_csv(file, dtype=str, keep_default_na=False)
    changed = change(table)
    (table if changed is None else changed).to_csv(file, index=False)
