"""Simulated pictures of one bright blob."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch

from medprism.cohort import Cohort, Factor
from medprism.data.base import ArrayReader, CohortDataModule, Reader
from medprism.data.samples import Samples


class SimulatedBlobs(CohortDataModule):
    """SIMULATED pictures with a bright blob in the upper or the lower half, on a light or a dark ground.

    Args:
        people: number of people, one picture each.
        seed: seed of the simulation.
        **base: arguments of `CohortDataModule`.
    """

    def __init__(self, people: int = 80, seed: int = 0, **base: Any) -> None:
        super().__init__(**base)
        self.people = people
        self.seed = seed

    @cached_property
    def samples(self) -> Samples:
        """Half of each."""
        names = tuple(f"blob-{k:03d}" for k in range(self.people))
        row = np.arange(self.people)
        return Samples(names, names, row % 2, {"ground": row // 2 % 2})

    @property
    def cohort(self) -> Cohort:
        """Where the blob is, and the ground."""
        return Cohort(
            name="simulated blobs",
            fields=self.batch_fields("image"),
            input_shape=(1, 16, 16),
            target=Factor("place", ("upper", "lower"), role="target"),
            attributes=(Factor("ground", ("dark", "light")),),
            simulated=True,
        )

    @cached_property
    def _pictures(self) -> torch.Tensor:
        pictures = np.random.default_rng(self.seed).normal(0, 0.1, (self.people, 1, 16, 16))
        pictures += 0.3 * self.samples.attributes["ground"][:, None, None, None]
        for picture, lower in zip(pictures, self.samples.target, strict=True):
            picture[0, 4 + 8 * lower, 8] += 1
        return torch.tensor(pictures, dtype=torch.float32)

    def reader(self, training: bool) -> Reader:
        """Pictures in memory."""
        return ArrayReader({"image": self._pictures})
