"""Figures that runs have drawn, shrunk for the page: brain maps, overlays of readings, latent blocks."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from medprism.benchmark.results import MapNote
from medprism.benchmark.statistics import Cell

FOLDER = "maps"
MOST_OF_A_CELL, MOST = 4, 24
SIDE = 1000
"""Longest side in pixels."""

_FIRST = ("maps", "difference", "reading", "similarit", "retrieved", "overlap", "latent")


def collect_maps(cells: Sequence[Cell], folder: Path) -> tuple[tuple[MapNote, ...], int]:
    """Copy figures of the first counted run of each cell, shrunk, into the folder of the results.

    Args:
        cells: all methods on all cohorts.
        folder: of the results; what an earlier report copied there is removed.

    Returns:
        What was copied, and how many figures of those runs were too many.
    """
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    notes: list[MapNote] = []
    left_out = 0
    for cell in cells:
        first = next((o for o in cell.outcomes if cell.runs and o.job.name == cell.runs[0].name), None)
        found = sorted((first.folder / "figures").glob("*.png"), key=_order) if first else []
        taken = found[: min(MOST_OF_A_CELL, MOST - len(notes))]
        left_out += len(found) - len(taken)
        for path in taken:
            name = f"{FOLDER}/{cell.cohort}_{cell.method}_{path.stem}.webp"
            _shrink(path, folder / name)
            notes.append(MapNote(name, cell.cohort, cell.method, cell.runs[0].seed, path.stem))
    return tuple(notes), left_out


def _order(path: Path) -> tuple[int, str]:
    return next((k for k, part in enumerate(_FIRST) if part in path.stem), len(_FIRST)), path.stem


def _shrink(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with Image.open(source) as picture:
        shrunk = picture.convert("RGBA")
        shrunk.thumbnail((SIDE, SIDE))
        white = Image.new("RGBA", shrunk.size, "white")
        Image.alpha_composite(white, shrunk).convert("RGB").save(target, quality=85)
