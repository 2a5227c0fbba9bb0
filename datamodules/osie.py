"""OSIE: where 15 people looked on each of 700 photographs. Real gaze that anybody may use, without speech."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medprism.cohort import Factor
from medprism.data.errors import DataError
from medprism.data.gaze import Fixations, Reading, gaze_maps
from medprism.data.imaging import FloatArray, read_colour, resized
from medprism.data.samples import IntArray, Labels, Samples
from medprism.data.tables import read_table
from medprism.data.transcripts import Sentence
from medprism.datamodules.gaze import GazeDataModule

PRESENTED = (800, 600)
"""Width and height in pixels of the pictures as they were shown; the coordinates of the fixations."""
SIGMA_PX = 24.0
"""About one degree of sight in presented pixels. The release tells no distance from the screen: a choice of ours."""
PHRASES = ("where people look first", "where people look later")
NUMBERS = ("fix_index", "x_px800", "y_px600", "duration_ms")
PAUSE = 1.0
"""Seconds between two parts of an artificial clock, so that no fixation touches two of them."""
COMPARED = 32
"""Side in pixels of the maps by which viewers are compared."""


class OSIE(GazeDataModule):
    """Whether viewers look at the same places of a photograph, and where. Xu et al., Journal of Vision 14(1), 2014.

    A sample is a photograph. There was no speech: every photograph has the same two sentences, `where people look
    first` (the first fixations of each viewer) and `where people look later` (the rest), and the gaze map of each is
    the sum over all viewers, weighted with the duration of the fixations.

    The target is derived by us from the gaze, as the release has no labels: viewers look alike where the correlation of
    a viewer's map with that of all others, averaged over the viewers, reaches a fixed threshold. Part of it is the bias
    of all viewers towards the centre. There are no patients: the photograph is the subject, and splits are by
    photograph. The viewers are the same in all parts of a split.

    Args:
        root: folder of `fixations.csv.gz` and `stimuli_320`.
        agreement: correlation from which viewers look alike; about half of the photographs reach the default.
        first: number of fixations of each viewer that count as the first ones.
        sigma_px: width of the Gaussian around a fixation, in pixels of the presentation of 800 by 600. The default is
            about one degree; the release tells no distance from the screen.
        **base: arguments of `GazeDataModule`, `XrayDataModule`, `ImageDataModule` and `CohortDataModule`. Pictures stay
            in colour, so clahe cannot be used, and there is no speech, so neither can lookback.
    """

    name = "OSIE"

    def __init__(
        self,
        root: str = "data/osie_gaze",
        agreement: float = 0.7,
        first: int = 3,
        sigma_px: float = SIGMA_PX,
        **base: Any,
    ) -> None:
        super().__init__(sigma_px=sigma_px, **base)
        if not -1 < agreement < 1 or first < 1:
            raise DataError(
                f"agreement is {agreement}, first {first}; take a correlation between -1 and 1, and 1 fixation or more"
            )
        if self.clahe or self.lookback:
            raise DataError(f"{self.name} is in colour and without speech; leave out clahe and lookback")
        self.root = Path(root)
        self.agreement = agreement
        self.first = first

    @cached_property
    def fixations(self) -> dict[str, FloatArray]:
        """`(F, 5)` viewer, position in the scanpath, x, y and duration (ms) of each photograph, by its file name."""
        file = self.root / "fixations.csv.gz"
        table = read_table(file, ["image", "subject", *NUMBERS])
        if (table["image"] == "").any() or (table["subject"] == "").any():
            raise DataError(f"{file}: rows without an image or a subject; fill their cells")
        columns = [pd.factorize(table["subject"])[0].astype(np.float64)]
        for name in NUMBERS:
            numbers = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
            wrong = ~np.isfinite(numbers) | ((numbers < 0) & (name in ("fix_index", "duration_ms")))
            if wrong.any():
                row = int(wrong.argmax())
                raise DataError(
                    f"{file}, row {row + 2}: column '{name}' holds '{table[name][row]}', expected a number, from 0 for "
                    "positions and durations; mend the cell, or leave the row out"
                )
            columns.append(numbers)
        codes, names = pd.factorize(table["image"], sort=True)
        order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))
        found: dict[str, FloatArray] = dict(
            zip(map(str, names), np.split(np.column_stack(columns)[order], ends[:-1]), strict=True)
        )
        alone = [name for name, rows in found.items() if (rows[:, 0] == rows[0, 0]).all()]
        if alone:
            raise DataError(f"{file}: one person alone looked at {alone[:3]}, so nobody can agree; leave them out")
        unseen = sum(path.name not in found for path in (self.root / "stimuli_320").glob("*.jpg"))
        if unseen:
            self.skipped["photograph without fixations"] = unseen
        return found

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """For each photograph the first and the later fixations of all viewers."""
        return tuple(
            self._reading(name, rows, (rows[:, 1] >= self.first).astype(np.int64), PHRASES, self.sigma_px)
            for name, rows in self.fixations.items()
        )

    @cached_property
    def agreements(self) -> FloatArray:
        """`(n,)` of each photograph, see `agreement`."""
        readings = []
        for name, rows in self.fixations.items():
            viewers, codes = np.unique(rows[:, 0], return_inverse=True)
            readings.append(self._reading(name, rows, codes, [f"viewer {code:g}" for code in viewers], SIGMA_PX))
        gaze, _ = gaze_maps(readings, COMPARED, "stretch", self.cache_dir)
        parts = zip(gaze.start[:-1], gaze.start[1:], strict=True)
        return np.array([agreement(gaze.maps[low:high].astype(np.float64)) for low, high in parts])

    @cached_property
    def labels(self) -> Labels:
        """Whether viewers look alike."""
        names, values = tuple(self.fixations), self.agreements
        alike = (values >= self.agreement).astype(np.int64)
        if alike.min() == alike.max():
            raise DataError(
                f"{self.name}: agreement is {self.agreement}, which {'all' if alike.all() else 'none'} of {len(alike)} "
                f"photographs reach; take a threshold between {values.min():.2f} and {values.max():.2f}"
            )
        classes = ("looked at differently", "looked at alike")
        phrases = (("people look at different places",), ("people look at the same place",))
        return Labels(Samples(names, names, alike, {}), Factor("viewers", classes, phrases, "target"), ())

    def prepared(self, file: Path, source: str) -> FloatArray:
        """The sample `(3, size, size)` of a file."""
        return resized(read_colour(file, source), self.size, self.square).transpose(2, 0, 1)

    def _reading(self, name: str, rows: FloatArray, parts: IntArray, texts: Sequence[str], sigma: float) -> Reading:
        sentences, start, end = laid_out(rows[:, 4] / 1000, parts, texts)
        fixations = Fixations(rows[:, 2], rows[:, 3], start, end, np.full((len(rows), 2), sigma))
        file = self.root / "stimuli_320" / name
        return Reading(name, name, str(file), PRESENTED, sentences, fixations, f"fixations.csv.gz, {name}")


def laid_out(
    seconds: FloatArray, parts: IntArray, texts: Sequence[str]
) -> tuple[tuple[Sentence, ...], FloatArray, FloatArray]:
    """Fixations on an artificial clock, on which every part has a time of its own.

    Those of a part follow each other without a gap, so that each overlaps the sentence of its part for its duration,
    and no other sentence.

    Args:
        seconds: `(F,)` duration of each.
        parts: `(F,)` which part it belongs to.
        texts: of each part.

    Returns:
        The sentences, and begin and end of each fixation, `(F,)` each, in seconds.
    """
    pauses = PAUSE * parts
    order = np.argsort(parts, kind="stable")
    end = np.empty(len(seconds))
    end[order] = np.cumsum(seconds[order])
    end += pauses
    start = end - seconds
    lengths = np.bincount(parts, weights=seconds, minlength=len(texts))
    ends = np.cumsum(lengths) + PAUSE * np.arange(len(texts))
    # A little longer on both sides: sums of floats are not exact, and nothing else lies in the pause.
    sentences = (
        Sentence(text, float(last - length - PAUSE / 4), float(last + PAUSE / 4))
        for text, last, length in zip(texts, ends, lengths, strict=True)
    )
    return tuple(sentences), start, end


def agreement(maps: FloatArray) -> float:
    """The Pearson correlation of each viewer's map with the sum of all others, averaged over the viewers.

    Args:
        maps: `(viewers, G, G)` of one picture.
    """
    own = maps.reshape(len(maps), -1)
    others = own.sum(axis=0) - own
    own, others = (side - side.mean(axis=1, keepdims=True) for side in (own, others))
    return float(np.mean((own * others).sum(axis=1) / np.sqrt((own**2).sum(axis=1) * (others**2).sum(axis=1))))
