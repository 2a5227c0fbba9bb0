"""Simulated chest X-rays with a finding and shortcuts planted in known regions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medprism.cohort import Factor
from medprism.data.errors import DataError
from medprism.data.imaging import FloatArray
from medprism.data.samples import IntArray, Labels, Samples
from medprism.datamodules.confounding import checked_ratio, confounded
from medprism.datamodules.images import ImageDataModule, Images

PLACES: Mapping[str, tuple[float, float]] = {
    "right lower lung": (0.66, 0.30),
    "left upper lung": (0.34, 0.69),
    "right upper lung": (0.34, 0.31),
    "left lower lung": (0.66, 0.74),
    "right shoulder": (0.10, 0.12),
    "left shoulder": (0.10, 0.88),
    "right corner": (0.92, 0.08),
    "left corner": (0.92, 0.92),
}
"""Row and column of the planted blobs, as shares of the side; the patient's right is on the left of the picture."""
RADIUS = 0.09
"""Radius of a blob, as a share of the side."""


class SimulatedXray(ImageDataModule):
    """SIMULATED phantom radiographs: a smooth thorax with a finding and any shortcuts planted as blobs in known places.

    The finding is a blob in the right lower lung, the k-th attribute one in the k-th place after it (see `PLACES`);
    each is there in half of the people. In training and validation the attributes agree with the finding at the rate
    `ratio`, in the test part at `test_ratio`, independently of each other given the finding, so that a model that
    leans on a shortcut is found out. Labels are drawn within the parts of the split, so another fold has other labels.

    Args:
        people: number of people, one image each.
        size: height and width in pixels.
        finding: brightness of the finding; the thorax has values of 0.1 to 0.6.
        attributes: name of each attribute and brightness of its blob.
        ratio: share of the people in whom an attribute agrees with the finding, in training and validation.
        test_ratio: the same in the test part.
        spread: standard deviation over people of the brightness of a blob, as a share of it.
        noise: standard deviation of the noise of a pixel.
        seed: seed of the simulation.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    name = "simulated X-rays"
    simulated = True

    def __init__(
        self,
        people: int = 600,
        size: int = 48,
        finding: float = 0.2,
        attributes: dict[str, float] | None = None,
        ratio: float = 0.9,
        test_ratio: float = 0.5,
        spread: float = 0.2,
        noise: float = 0.05,
        seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.strengths = {"finding": finding, **({"device": 0.3, "marker": 0.3} if attributes is None else attributes)}
        if len(self.strengths) > len(PLACES) or "finding" in (attributes or {}):
            raise DataError(
                f"attributes are {list(attributes or {})}; take at most {len(PLACES) - 1}, none of them called finding"
            )
        if people < 20 or size < 16:
            raise DataError(f"{people} people of {size} pixels; take at least 20 people and 16 pixels")
        train, test = checked_ratio(ratio), checked_ratio(test_ratio)
        self.ratios = {"train": train, "validation": train, "test": test}
        self.people = people
        self.size = size
        self.spread = spread
        self.noise = noise
        self.seed = seed

    @cached_property
    def planted(self) -> dict[str, npt.NDArray[np.bool_]]:
        """For the finding and each attribute the pixels `(size, size)` that it changes, and no others."""
        return {name: blob > 0 for name, blob in self._blobs.items()}

    @cached_property
    def _blobs(self) -> dict[str, FloatArray]:
        places = zip(self.strengths, PLACES.values(), strict=False)
        return {name: bump(self.size, place, (RADIUS, RADIUS)) for name, place in places}

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"simulated-{k:05d}" for k in range(self.people))

    def strata(self) -> pd.DataFrame:
        """Only names: the parts are made first, and labels are drawn within them."""
        return pd.DataFrame(index=pd.Index(self._names, name="subject"))

    @cached_property
    def labels(self) -> Labels:
        """Finding and attributes, with exactly the asked ratio in each part, up to rounding."""
        attributes = list(self.strengths)[1:]
        target = np.zeros(self.people, dtype=np.int64)
        codes = np.zeros((self.people, len(attributes)), dtype=np.int64)
        position = {name: k for k, name in enumerate(self._names)}
        for part, ratio in self.ratios.items():
            rows = np.array([position[name] for name in self.partition.part(part)])
            generator = _generator(self.seed, part)
            target[rows] = generator.permutation(np.arange(len(rows)) % 2)
            codes[rows] = confounded(target[rows], ratio, len(attributes), generator)
        columns: dict[str, IntArray] = {name: codes[:, k] for k, name in enumerate(attributes)}
        return Labels(
            Samples(self._names, self._names, target, columns),
            Factor("finding", ("no finding", "finding"), role="target"),
            tuple(Factor(name, (f"no {name}", name), role="nuisance") for name in attributes),
        )

    def images(self) -> Images:
        """Made in memory; the noise of a person does not depend on labels or strengths."""
        samples = self.labels.samples
        present = np.column_stack([samples.target, *samples.attributes.values()])
        blobs = np.stack([strength * self._blobs[name] for name, strength in self.strengths.items()])

        def read(row: int) -> FloatArray:
            generator = _generator(self.seed, self._names[row])
            picture = thorax(self.size, generator) + self.noise * generator.standard_normal((self.size, self.size))
            brightness = 1 + self.spread * generator.standard_normal(len(PLACES))[: len(blobs)]
            picture = picture + np.tensordot(present[row] * brightness, blobs, 1)
            return np.clip(picture, 0, 1).astype(np.float32)[None]

        return Images(tuple(f"simulated image {name}" for name in self._names), read, key=None)


def bump(size: int, centre: tuple[float, float], radii: tuple[float, float]) -> FloatArray:
    """A smooth blob `(size, size)`: 1 in its centre, exactly 0 outside of an ellipse.

    Args:
        size: side in pixels.
        centre: row and column, as shares of the side.
        radii: half axes along rows and columns, as shares of the side.
    """
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    distance = ((rows - centre[0]) / radii[0]) ** 2 + ((columns - centre[1]) / radii[1]) ** 2
    blob: FloatArray = np.clip(1 - distance, 0, 1) ** 2
    return blob


def thorax(size: int, generator: np.random.Generator) -> FloatArray:
    """A bright body with two dark lungs, a heart and a spine; their brightness varies from person to person."""
    body, lung, heart, spine = 1 + 0.1 * generator.standard_normal(4)
    lungs = bump(size, (0.5, 0.3), (0.45, 0.24)) + bump(size, (0.5, 0.7), (0.45, 0.24))
    picture: FloatArray = (
        0.1
        + 0.4 * body * np.sqrt(bump(size, (0.55, 0.5), (0.75, 0.6)))
        - 0.35 * lung * np.sqrt(lungs)
        + 0.2 * heart * bump(size, (0.6, 0.56), (0.22, 0.2))
        + 0.1 * spine * bump(size, (0.5, 0.5), (0.9, 0.06))
    )
    return picture


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose."""
    digest = hashlib.sha256(json.dumps([seed, purpose]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
