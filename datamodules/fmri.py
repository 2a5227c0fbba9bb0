"""What fMRI cohorts share: labels and a source of region time series become cached connectomes."""

from __future__ import annotations

import hashlib
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from medprism.cohort import Cohort
from medprism.data.base import ArrayReader, CohortDataModule, Reader
from medprism.data.cache import Arrays, cached
from medprism.data.connectivity import (
    FITTED,
    FloatArray,
    Kind,
    check_series,
    connectomes,
    constant_regions,
    fisher,
    standardized,
)
from medprism.data.errors import DataError, report
from medprism.data.samples import Labels as Labels  # the other fMRI cohorts import it from here
from medprism.data.samples import Samples, as_text

CHUNK = 50
"""Samples that a thread reads at a time: few enough for a lively bar, many enough to read a table seldom."""


@dataclass(frozen=True)
class Source:
    """Where the region data of a cohort come from.

    Attributes:
        names: file and row of each sample, as errors name it.
        read: positions of samples to their arrays; called from several threads.
        key: plain values that determine the data, for the cache.
        content: `timeseries` `(T, R)`, or a ready `matrix` `(R, R)`.
    """

    names: tuple[str, ...]
    read: Callable[[Sequence[int]], list[FloatArray]]
    key: Mapping[str, Any] = field(default_factory=dict)
    content: Literal["timeseries", "matrix"] = "timeseries"


@dataclass(frozen=True)
class Atlas:
    """The regions of a parcellation.

    Attributes:
        name: name of the parcellation.
        regions: R names.
        coordinates: MNI coordinates of the R regions in mm; empty when not known.
    """

    name: str
    regions: tuple[str, ...]
    coordinates: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def numbered(cls, name: str, regions: int) -> Atlas:
        """An atlas of which only the number of regions is known."""
        return cls(name, tuple(f"{name} {k + 1}" for k in range(regions)))

    @classmethod
    def read(cls, table: Path, name: str, regions: int) -> Atlas:
        """Read region names and coordinates.

        Args:
            table: CSV in the order of the regions with the columns `roi`, `x`, `y`, `z` (MNI, mm), and a name in the
                first of the columns `name`, `aal`, `harvard_oxford` that there is. Several regions may share a name.
            name: name of the parcellation.
            regions: expected number of rows.

        Raises:
            DataError: when the table is missing, lacks a column, or has another number of rows.
        """
        if not table.is_file():
            raise DataError(f"atlas table {table} does not exist; give a CSV with the columns roi, x, y, z, name")
        rows = pd.read_csv(table)
        missing = [column for column in ("roi", "x", "y", "z") if column not in rows]
        if missing:
            raise DataError(f"atlas table {table} lacks the columns {missing}; it has {list(rows.columns)}")
        if len(rows) != regions:
            raise DataError(
                f"atlas table {table} names {len(rows)} regions, the data have {regions}; take its own table"
            )
        titles = rows[next((column for column in ("name", "aal", "harvard_oxford") if column in rows), "roi")]
        names = tuple(
            as_text(title) or f"{name} {roi}" for title, roi in zip(titles, rows["roi"].astype(int), strict=True)
        )
        places = rows[["x", "y", "z"]].to_numpy(dtype=float).tolist()
        return cls(name, names, tuple((x, y, z) for x, y, z in places))


class ConnectomeDataModule(CohortDataModule):
    """Base of the fMRI cohorts; a subclass says what its table holds and where its time series are.

    Args:
        connectivity: measure of nilearn's ConnectivityMeasure. `tangent` has a group reference, which is fitted on the
            training subjects alone.
        fisher_z: take Fisher's z of correlations; the diagonal becomes 0.
        standardize: give every edge mean 0 and variance 1 over the training subjects.
        constant_regions: what to do with a region that never changes, whose correlation is undefined: `zero` sets its
            row and column to 0 and counts it, `error` stops.
        min_volumes: smallest number of volumes of a scan that is accepted.
        cache_dir: folder of computed connectomes; the environment's MEDPRISM_CACHE or ~/.cache/medprism when left out.
        jobs: threads that read and compute on the first start; -1 for one a core.
        **base: arguments of `CohortDataModule`.
    """

    name: str
    simulated: bool = False

    def __init__(
        self,
        connectivity: Kind = "correlation",
        fisher_z: bool = False,
        standardize: bool = False,
        constant_regions: Literal["zero", "error"] = "zero",
        min_volumes: int = 20,
        cache_dir: str | None = None,
        jobs: int = -1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if fisher_z and "correlation" not in connectivity:
            raise DataError(f"fisher_z is for correlations, not for connectivity '{connectivity}'; set it to false")
        self.connectivity: Kind = connectivity
        self.fisher_z = fisher_z
        self.standardize = standardize
        self.constant_regions = constant_regions
        self.min_volumes = min_volumes
        self.cache_dir = cache_dir
        self.jobs = jobs

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """What the cohort's table says; read once."""

    @abstractmethod
    def source(self) -> Source:
        """Where the time series are, in the order of `labels.samples`."""

    @abstractmethod
    def atlas_of(self, regions: int) -> Atlas:
        """The atlas, for data with that many regions."""

    @property
    def samples(self) -> Samples:
        """The labels of every sample, in the order of the table."""
        return self.labels.samples

    @cached_property
    def cohort(self) -> Cohort:
        """What the data are; reads them, or their cache, on first use."""
        regions = self._arrays["constant"].shape[1]
        atlas = self.atlas_of(regions)
        return Cohort(
            name=self.name,
            fields=self.batch_fields("connectome"),
            input_shape=(regions, regions),
            target=self.labels.target,
            attributes=self.labels.attributes,
            regions=atlas.regions,
            coordinates=atlas.coordinates,
            atlas=atlas.name,
            simulated=self.simulated,
            fingerprint=self._fingerprint(),
        )

    def reader(self, training: bool) -> Reader:
        """Connectomes from memory."""
        return ArrayReader({"connectome": self._connectomes})

    @cached_property
    def _connectomes(self) -> torch.Tensor:
        arrays = self._arrays
        if self.connectivity in FITTED:
            key = {**self._key, "split": self.split.fingerprint}
            arrays = self._cached("connectomes", key, ["connectome"], self._fit)
        matrices = torch.from_numpy(arrays["connectome"])
        return standardized(matrices, torch.from_numpy(self.rows("train"))) if self.standardize else matrices

    def _fit(self) -> Arrays:
        arrays = self._arrays
        series = np.split(arrays["series"], np.cumsum(arrays["volumes"])[:-1])
        return {"connectome": connectomes(series, self.connectivity, self.fisher_z, fit_on=self.rows("train"))}

    @cached_property
    def _source(self) -> Source:
        return self.source()

    @property
    def _key(self) -> dict[str, Any]:
        return {
            "cohort": self.name,
            "ids": self.samples.id,
            "connectivity": self.connectivity,
            "fisher_z": self.fisher_z,
            "min_volumes": self.min_volumes,
            "nilearn": version("nilearn"),
            **self._source.key,
        }

    @cached_property
    def _arrays(self) -> Arrays:
        """`digest`, `constant`, and `connectome`; or `series` and `volumes` for a measure that is fitted."""
        contents = ["series", "volumes"] if self.connectivity in FITTED else ["connectome"]
        arrays = self._cached("regions", self._key, ["digest", "constant", *contents], self._build)
        constant = arrays["constant"]
        if constant.any():
            if self.constant_regions == "error":
                row = int(constant.any(axis=1).argmax())
                regions = (np.flatnonzero(constant[row]) + 1).tolist()
                raise DataError(
                    f"{self._source.names[row]}: regions {regions} never change, so their correlation is undefined; "
                    "leave the scan out, or set constant_regions to zero"
                )
            report(
                f"{self.name}: {int(constant.any(axis=1).sum())} of {len(constant)} scans have constant regions "
                f"({int(constant.sum())} in all), whose connectivity is set to 0"
            )
        return arrays

    def _cached(self, what: str, key: Mapping[str, Any], arrays: list[str], build: Callable[[], Arrays]) -> Arrays:
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.name}-{what}".lower())
        return cached(name, key, arrays, build, self.cache_dir)

    def _build(self) -> Arrays:
        """Read and compute everything, on all cores, with a progress bar."""
        source = self._source
        first = source.read([0])[0]
        regions = first.shape[-1] if first.ndim else 0
        work = partial(process, source, regions, self.connectivity, self.fisher_z, self.min_volumes)
        chunks = [
            list(range(start, min(start + CHUNK, len(self.samples)))) for start in range(0, len(self.samples), CHUNK)
        ]
        parts = list(_progress(work, chunks, self.jobs, f"{self.name}: connectomes"))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _fingerprint(self) -> str:
        """SHA-256 of the data and labels, whatever their folder and the measure of connectivity."""
        samples = self.samples
        codes = np.column_stack([samples.target, *samples.attributes.values()]).tolist()
        rows = sorted(
            f"{name} {subject} {digest.decode()} {code}"
            for name, subject, digest, code in zip(
                samples.id, samples.subject, self._arrays["digest"], codes, strict=True
            )
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def process(source: Source, regions: int, kind: Kind, fisher_z: bool, min_volumes: int, rows: Sequence[int]) -> Arrays:
    """Read and check some samples, and compute what can be computed without the others.

    Args:
        source: where they come from.
        regions: number of regions that each must have.
        kind: measure of connectivity.
        fisher_z: see `connectomes`.
        min_volumes: smallest number of volumes.
        rows: positions of the n samples.

    Returns:
        `digest` `(n,)` SHA-256 of the read values, `constant` `(n, R)`, and `connectome` `(n, R, R)`; or for a fitted
        measure `series` `(sum of T, R)` and `volumes` `(n,)`.

    Raises:
        DataError: names file and row of a sample that cannot be used.
    """
    read = source.read(rows)
    matrices = source.content == "matrix"
    for row, array in zip(rows, read, strict=True):
        if matrices:
            check_matrix(array, source.names[row], regions)
        else:
            check_series(array, source.names[row], regions, min_volumes)
    digests = [hashlib.sha256(np.ascontiguousarray(array, dtype=np.float64).tobytes()).hexdigest() for array in read]
    arrays: Arrays = {"digest": np.array(digests, dtype="S64")}
    if matrices:
        stacked = np.stack(read)
        arrays["constant"] = np.zeros(stacked.shape[:2], dtype=bool)
        arrays["connectome"] = fisher(stacked, kind) if fisher_z else stacked.astype(np.float32)
        return arrays
    arrays["constant"] = np.stack([constant_regions(array) for array in read])
    if kind in FITTED:
        arrays["series"] = np.concatenate(read).astype(np.float32)
        arrays["volumes"] = np.array([len(array) for array in read], dtype=np.int64)
    else:
        arrays["connectome"] = connectomes(read, kind, fisher_z)
    return arrays


def check_matrix(matrix: FloatArray, source: str, regions: int) -> None:
    """Refuse a ready matrix that is no connectome.

    Raises:
        DataError: when it is not square, not symmetric, not finite, or has another number of regions.
    """
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise DataError(
            f"{source}: expected a square matrix, found shape {matrix.shape}; for series set content to timeseries"
        )
    if len(matrix) != regions:
        raise DataError(f"{source}: has {len(matrix)} regions, expected {regions} as in the first file")
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0] + 1
        raise DataError(f"{source}: is not a finite number at row {row}, column {column}; repair or leave out the scan")
    if not np.allclose(matrix, matrix.T, rtol=1e-4, atol=1e-5):
        row, column = np.unravel_index(np.abs(matrix - matrix.T).argmax(), matrix.shape)
        raise DataError(
            f"{source}: is not symmetric: ({row + 1}, {column + 1}) holds {matrix[row, column]:g}, the other side "
            f"{matrix[column, row]:g}; average the two sides, or compute the matrix again"
        )


def _progress(work: Callable[[Sequence[int]], Arrays], chunks: list[list[int]], jobs: int, title: str) -> Any:
    """The results of `work` on each chunk, in order, with a bar."""
    from joblib import Parallel, delayed
    from rich.progress import track

    # Threads: half of the time is linear algebra, which they share; processes would first import torch, for seconds.
    results = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")(delayed(work)(chunk) for chunk in chunks)
    return track(results, description=title, total=len(chunks), transient=True, disable=len(chunks) < 3)
