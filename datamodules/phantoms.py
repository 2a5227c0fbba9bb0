"""Simulated brain volumes: a head with a target and any number of attributes, each in a region of its own."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from medprism.cohort import Factor
from medprism.data.errors import DataError
from medprism.data.samples import IntArray, Labels, Samples
from medprism.datamodules.images import ImageDataModule, Images

BoolArray = npt.NDArray[np.bool_]


class SimulatedVolumes(ImageDataModule):
    """SIMULATED three-dimensional heads with planted factors, for methods whose truth must be known.

    A head is an ellipsoid of intensity 1 with smooth anatomy of its own and white noise. The disease and each attribute
    brighten one ball inside it by `noise * (effect * (code - 0.5) + spread * z)`, with a normal z for each person and
    ball; the balls do not overlap. So the best AUROC from a ball is about Phi(effect / spread / sqrt(2)). All factors
    are balanced and drawn without regard to each other: `shift` of the base confounds them.

    Args:
        subjects: number of people, one volume each.
        size: voxels along each axis.
        effect: difference of the ball of the disease between the classes.
        attributes: the same for each attribute, by name; sex and scanner with 1.5 when left out.
        sensitive: attributes that are properties of the person; the others are nuisance.
        spread: standard deviation of the brightness of each ball over people, in the same unit.
        noise: standard deviation of the noise; the head has intensity 1.
        anatomy: standard deviation of the smooth anatomy, which differs between people.
        seed: seed of the simulation.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    name = "simulated volumes"
    simulated = True
    field = "volume"
    left_right = 0

    def __init__(
        self,
        subjects: int = 400,
        size: int = 24,
        effect: float = 1.0,
        attributes: dict[str, float] | None = None,
        sensitive: tuple[str, ...] = ("sex",),
        spread: float = 0.5,
        noise: float = 0.2,
        anatomy: float = 0.1,
        seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if subjects < 20 or size < 12:
            raise DataError(f"{subjects} subjects of {size} voxels a side; take at least 20 subjects and 12 voxels")
        if noise <= 0 or anatomy < 0 or spread < 0:
            raise DataError(f"noise {noise} must be positive, anatomy {anatomy} and spread {spread} at least 0")
        attributes = {"sex": 1.5, "scanner": 1.5} if attributes is None else attributes
        if "disease" in attributes:
            raise DataError("disease is the target; give the attributes other names")
        self.subjects = subjects
        self.size = size
        self.effects = {"disease": effect, **attributes}
        self.sensitive = sensitive
        self.spread = spread
        self.noise = noise
        self.anatomy = anatomy
        self.seed = seed
        self._regions = balls(size, len(self.effects))

    @property
    def planted(self) -> dict[str, BoolArray]:
        """For the disease and each attribute the voxels `(size, size, size)` that it changes."""
        return dict(zip(self.effects, self._regions, strict=True))

    @cached_property
    def _codes(self) -> dict[str, IntArray]:
        halves = np.arange(self.subjects, dtype=np.int64) % 2
        return {name: _generator(self.seed, f"labels {name}").permutation(halves) for name in self.effects}

    @cached_property
    def labels(self) -> Labels:
        """Disease and attributes, balanced and independent."""
        names = tuple(f"simulated-{k:05d}" for k in range(self.subjects))
        attributes = {name: codes for name, codes in self._codes.items() if name != "disease"}
        classes = {"sex": ("female", "male")}
        return Labels(
            Samples(names, names, self._codes["disease"], attributes),
            Factor("disease", ("control", "disease"), (("healthy control",), ("disease",)), "target"),
            tuple(
                Factor(
                    name,
                    classes.get(name, (f"{name} 0", f"{name} 1")),
                    role="sensitive" if name in self.sensitive else "nuisance",
                )
                for name in attributes
            ),
        )

    def images(self) -> Images:
        """Volumes that are made in memory."""
        names = tuple(f"simulated volume {name}" for name in self.labels.samples.id)
        return Images(names, self.simulate, None, "float16")

    def simulate(self, row: int) -> npt.NDArray[np.float32]:
        """The volume `(1, size, size, size)` of the person at `row`."""
        from scipy.ndimage import zoom

        generator = _generator(self.seed, f"head {row}")
        coarse = generator.standard_normal((5, 5, 5))
        noise = self.noise * generator.standard_normal((self.size,) * 3)
        volume = head(self.size) * (1 + self.anatomy * zoom(coarse, self.size / 5, order=1)) + noise
        brightness = self.spread * generator.standard_normal(len(self.effects))
        for (name, region), own in zip(self.planted.items(), brightness, strict=True):
            volume[region] += self.noise * (self.effects[name] * (self._codes[name][row] - 0.5) + own)
        return np.asarray(volume[None], dtype=np.float32)


def head(size: int) -> BoolArray:
    """An ellipsoid in a cube of `size` voxels, longest from front to back."""
    places = (np.indices((size, size, size)) + 0.5) * 2 / size - 1
    axes = np.array([0.8, 0.95, 0.8])[:, None, None, None]
    inside: BoolArray = ((places / axes) ** 2).sum(axis=0) <= 1
    return inside


def balls(size: int, number: int) -> list[BoolArray]:
    """Balls inside `head(size)` that do not overlap, spread evenly (on a Fibonacci sphere) around its centre.

    Raises:
        DataError: when there are so many that a ball would have a radius below one voxel and a half.
    """
    k = np.arange(number) + 0.5
    height, angle = 1 - 2 * k / number, np.pi * (1 + 5**0.5) * k
    ring = np.sqrt(1 - height**2)
    centres = 0.45 * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], axis=1)
    apart = np.linalg.norm(centres[:, None] - centres[None], axis=2) + 9 * np.eye(number)
    radius = min(0.3, 0.45 * apart.min())
    if radius * size / 2 < 1.5:
        raise DataError(f"{number} factors do not fit into a head of {size} voxels a side; take a larger size")
    places = (np.indices((size, size, size)) + 0.5) * 2 / size - 1
    return [np.linalg.norm(places - centre[:, None, None, None], axis=0) <= radius for centre in centres]


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose."""
    digest = hashlib.sha256(json.dumps([seed, purpose]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
