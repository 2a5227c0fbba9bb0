"""Simulated connectomes with a planted disease, a planted sex difference, and a shortcut between them."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medprism.cohort import Factor
from medprism.data.cache import Arrays
from medprism.data.errors import DataError
from medprism.data.samples import IntArray, Samples
from medprism.datamodules.fmri import Atlas, ConnectomeDataModule, Labels, Source

MOST_REGIONS = 160
PLANTED = {"disease": "default", "sex": "sensorimotor", "site": "cerebellum"}
"""Which network of Dosenbach et al. (2010) each factor changes."""


class SimulatedConnectomes(ConnectomeDataModule):
    """SIMULATED time series of planted networks, for methods whose truth must be known.

    The regions are a subset of those of Dosenbach et al. (Science 329, 2010). In each of the six networks k they share
    a signal: `x_r(t) = g_k s_k(t) + e_r(t)` with white `s_k`, `e_r`, and a strength `g_k` that varies over people.
    Disease shifts the strength of the default network (block P), sex that of the sensorimotor network (block Q), site
    weakly that of the cerebellum. Sex is correlated with disease in training and validation, and not (or otherwise) in
    the test part, so that a model that leans on block Q is found out.

    Labels are drawn within the parts of the split, so there is nothing to stratify by, and another fold has other
    labels: compare seeds rather than folds. Nothing but the `tangent` measure is cached.

    Args:
        subjects: number of people, one scan each.
        regions: number of regions, 12 to 160.
        volumes: time points of a scan.
        effect: difference of the strength of block P between disease and control.
        sex_effect: difference of the strength of block Q between female and male.
        site_effect: range of the strength of the cerebellum over sites.
        spread: standard deviation of the strength over people, the same in every network.
        correlation_train: phi correlation of disease and sex in training and validation, -1 to 1.
        correlation_test: phi correlation of disease and sex in the test part, -1 to 1.
        sites: number of sites.
        seed: seed of the simulation.
        **base: arguments of `ConnectomeDataModule` and `CohortDataModule`.
    """

    name = "simulated connectomes"
    simulated = True

    def __init__(
        self,
        subjects: int = 600,
        regions: int = 60,
        volumes: int = 120,
        effect: float = 0.28,
        sex_effect: float = 0.3,
        site_effect: float = 0.1,
        spread: float = 0.1,
        correlation_train: float = 0.8,
        correlation_test: float = 0.0,
        sites: int = 3,
        seed: int = 0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if not 12 <= regions <= MOST_REGIONS:
            raise DataError(f"regions is {regions}; the simulation has 12 to {MOST_REGIONS} regions")
        if max(abs(correlation_train), abs(correlation_test)) > 1:
            raise DataError("correlation_train and correlation_test must lie between -1 and 1")
        if subjects < 20 or sites < 1:
            raise DataError(f"{subjects} subjects of {sites} sites; take at least 20 subjects and one site")
        self.subjects = subjects
        self.regions = regions
        self.volumes = volumes
        self.effects = {"disease": effect, "sex": sex_effect, "site": site_effect}
        self.spread = spread
        self.correlations = {"train": correlation_train, "validation": correlation_train, "test": correlation_test}
        self.sites = sites
        self.seed = seed

    @property
    def planted(self) -> dict[str, tuple[int, ...]]:
        """For disease, sex and site the regions whose connectivity they change."""
        networks = self._dosenbach["network"].to_numpy()
        return {name: tuple(np.flatnonzero(networks == k).tolist()) for name, k in PLANTED.items()}

    @cached_property
    def _dosenbach(self) -> pd.DataFrame:
        """Name, network and MNI place of each region; every network keeps its share."""
        from nilearn.datasets import fetch_coords_dosenbach_2010

        bunch = fetch_coords_dosenbach_2010()
        table: pd.DataFrame = (
            bunch["rois"].assign(name=bunch["labels"], network=bunch["networks"]).reset_index(drop=True)
        )
        chosen = np.linspace(0, MOST_REGIONS - 1, self.regions).round().astype(int)
        return table.iloc[chosen].reset_index(drop=True)

    @cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(f"simulated-{k:05d}" for k in range(self.subjects))

    @cached_property
    def _site(self) -> IntArray:
        return _generator(self.seed, "site").integers(self.sites, size=self.subjects)

    def strata(self) -> pd.DataFrame:
        """Only names: the parts are made first, and labels are drawn within them."""
        return pd.DataFrame(index=pd.Index(self._names, name="subject"))

    def groups(self) -> dict[str, set[str]]:
        """The site of each subject, which is known before the split."""
        return {name: {self._site_names[code]} for name, code in zip(self._names, self._site, strict=True)}

    @property
    def _site_names(self) -> tuple[str, ...]:
        return tuple(f"site {k + 1}" for k in range(self.sites))

    @cached_property
    def labels(self) -> Labels:
        """Disease and sex with exactly the asked correlation in each part, up to rounding."""
        disease = np.zeros(self.subjects, dtype=np.int64)
        sex = np.zeros(self.subjects, dtype=np.int64)
        position = {name: k for k, name in enumerate(self._names)}
        for part, correlation in self.correlations.items():
            rows = np.array([position[name] for name in self.partition.part(part)])
            disease[rows], sex[rows] = crossed(len(rows), correlation, _generator(self.seed, part))
        samples = Samples(self._names, self._names, disease, {"sex": sex, "site": self._site})
        return Labels(
            samples,
            Factor("disease", ("control", "disease"), (("healthy control",), ("disease",)), "target"),
            (
                Factor("sex", ("male", "female"), role="sensitive"),
                Factor("site", self._site_names, role="nuisance"),
            ),
        )

    def source(self) -> Source:
        """Series in memory."""
        series = self.simulate()
        return Source(
            names=tuple(f"simulated scan {name}" for name in self._names),
            read=lambda rows: [series[row] for row in rows],
            key={"content": hashlib.sha256(series.tobytes()).hexdigest()},
        )

    @cached_property
    def _arrays(self) -> Arrays:
        return self._build()

    def simulate(self) -> npt.NDArray[np.float32]:
        """The time series `(subjects, volumes, regions)`, without a unit."""
        samples = self.samples
        network = pd.factorize(self._dosenbach["network"])[0]
        order = list(pd.unique(self._dosenbach["network"]))
        # One generator a purpose: the noise of a scan does not depend on the effects or the labels.
        strength = 0.6 + self.spread * _generator(self.seed, "strength").standard_normal((self.subjects, len(order)))
        site = samples.attributes["site"] / max(self.sites - 1, 1) - 0.5
        shifts = {"disease": samples.target - 0.5, "sex": samples.attributes["sex"] - 0.5, "site": site}
        for name, shift in shifts.items():
            strength[:, order.index(PLANTED[name])] += self.effects[name] * shift
        signal = _generator(self.seed, "signal").standard_normal((self.subjects, self.volumes, len(order)), np.float32)
        series = _generator(self.seed, "noise").standard_normal((self.subjects, self.volumes, self.regions), np.float32)
        series += (signal * strength[:, None, :].astype(np.float32))[:, :, network]
        return series

    def atlas_of(self, regions: int) -> Atlas:
        """The regions of Dosenbach et al. that are simulated."""
        places = self._dosenbach[["x", "y", "z"]].to_numpy(dtype=float).tolist()
        return Atlas(
            "Dosenbach 2010 (simulated)", tuple(self._dosenbach["name"]), tuple((x, y, z) for x, y, z in places)
        )


def crossed(n: int, correlation: float, generator: np.random.Generator) -> tuple[IntArray, IntArray]:
    """Two balanced binary variables of n people with phi = correlation, up to rounding.

    Of two balanced variables a share (1 + phi) / 2 agrees; half of these are (0, 0), half (1, 1).
    """
    agree = round(n * (1 + correlation) / 2)
    first = np.arange(n) % 2
    second = np.where(np.arange(n) < agree, first, 1 - first)
    order = generator.permutation(n)
    return first[order].astype(np.int64), second[order].astype(np.int64)


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose."""
    digest = hashlib.sha256(json.dumps([seed, purpose]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))
