"""The simulated reading room: films with located findings, what is said about them, and where the readers look."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from medprism.cohort import Factor
from medprism.data.errors import DataError
from medprism.data.gaze import Fixations, Reading
from medprism.data.imaging import FloatArray
from medprism.data.prompts import load_prompts
from medprism.data.samples import Labels, Samples
from medprism.data.texts import Box
from medprism.datamodules.gaze import GazeDataModule
from medprism.datamodules.images import Images
from medprism.datamodules.reading_room_cases import SEXES, Case, simulated_cases
from medprism.datamodules.reading_room_words import FINDINGS, prompts
from medprism.datamodules.xray import PHRASES

SIDE = 3000
"""Height and width in pixels that the films would have on a real detector; gaze is recorded in these pixels."""


class SimulatedReadingRoom(GazeDataModule):
    """SIMULATED readings: phantom films with findings, dictated reports with the times of words, and gaze.

    Each film shows one of five findings of Irvin et al.'s list at one or two places, each finding with a look of its
    own, beside devices, clutter, the view and the sex. The reader names severity and place in varied words, mentions
    devices and normal things, and looks at what is spoken of, with wandering and noise; some readings have no gaze.
    Finding, view and sex are balanced and do not depend on each other: `shift` of the base confounds them.

    Args:
        people: number of people, one film and one reading each.
        size: height and width of the films in pixels.
        contrast: brightness of the findings in relation to the default.
        attention: share of the fixations during a sentence that lie on what it is about.
        without_gaze: share of the readings without gaze.
        noise: standard deviation of the noise of a pixel; films have values in [0, 1].
        seed: seed of the simulation.
        **base: arguments of `GazeDataModule`, `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    name = "simulated reading room"
    simulated = True

    def __init__(
        self,
        people: int = 600,
        size: int = 64,
        contrast: float = 1.0,
        attention: float = 0.8,
        without_gaze: float = 0.1,
        noise: float = 0.05,
        seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(size=size, **base)
        if people < 20 or size < 32:
            raise DataError(f"{people} people and films of {size} pixels; take at least 20 people and 32 pixels")
        if not 0 <= attention <= 1 or not 0 <= without_gaze <= 1 or contrast < 0 or noise < 0:
            raise DataError(
                f"attention is {attention}, without_gaze {without_gaze}, contrast {contrast}, noise {noise}; the first "
                "two are shares from 0 to 1, the others at least 0"
            )
        self.people = people
        self.contrast = contrast
        self.attention = attention
        self.without_gaze = without_gaze
        self.noise = noise
        self.seed = seed

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        """All that was simulated, for those who want to know the truth."""
        return simulated_cases(self.people, self.seed, self.contrast, self.attention, self.without_gaze)

    @property
    def queries(self) -> dict[str, tuple[str, ...]]:
        """Texts that ask for films of a finding, for those that the prompt set `retrieval_8x5` has."""
        return {name: texts for name, texts in load_prompts("retrieval_8x5").items() if name in FINDINGS}

    @cached_property
    def labels(self) -> Labels:
        """The finding, and the attributes view and sex."""
        ids = tuple(f"simulated-{case.number:05d}" for case in self.cases)
        classes = tuple(FINDINGS)
        target = np.array([classes.index(case.finding) for case in self.cases], dtype=np.int64)
        view = np.array([("AP", "PA").index(case.view) for case in self.cases], dtype=np.int64)
        sex = np.array([SEXES.index(case.sex) for case in self.cases], dtype=np.int64)
        return Labels(
            Samples(ids, ids, target, {"view": view, "sex": sex}),
            Factor("finding", classes, tuple(prompts(name) for name in classes), "target"),
            (
                Factor("view", ("AP", "PA"), tuple((PHRASES[name],) for name in ("AP", "PA")), "nuisance"),
                Factor("sex", SEXES, role="sensitive"),
            ),
        )

    @cached_property
    def readings(self) -> tuple[Reading, ...]:
        """One reading of each film, recorded in `SIDE` pixels."""
        return tuple(
            Reading(
                name,
                name,
                name,
                (SIDE, SIDE),
                case.sentences,
                None if case.fixations is None else fixations(case.fixations, (SIDE, SIDE), self.sigma_px),
                f"simulated reading {name}",
            )
            for name, case in zip(self.labels.samples.id, self.cases, strict=True)
        )

    @cached_property
    def regions(self) -> tuple[tuple[Box, ...], ...]:
        """Phrase and place of each finding."""
        return tuple(regions(case, (SIDE, SIDE)) for case in self.cases)

    def images(self) -> Images:
        """Made in memory."""

        def read(row: int) -> FloatArray:
            return self.cases[row].picture(self.size, self.noise, self.seed)[None]

        return Images(tuple(reading.source for reading in self.readings), read, key=None)


def fixations(shares: FloatArray, size: tuple[int, int], sigma: float) -> Fixations:
    """Simulated fixations in pixels.

    Args:
        shares: `(F, 4)` as in `Case`.
        size: width and height of the image.
        sigma: width of the Gaussian in pixels.
    """
    x, y, start, end = shares.T
    # Whole numbers are the centres of pixels.
    return Fixations(x * size[0] - 0.5, y * size[1] - 0.5, start, end, np.full((len(shares), 2), sigma))


def regions(case: Case, size: tuple[int, int]) -> tuple[Box, ...]:
    """Phrase and place of each lesion in pixels of an image of `size` (width, height)."""
    width, height = size
    found = []
    for lesion in case.lesions:
        x, y, rx, ry = lesion.where
        found.append(Box(lesion.phrase, (x - rx) * width, (y - ry) * height, (x + rx) * width, (y + ry) * height))
    return tuple(found)
