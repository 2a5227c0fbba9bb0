"""Region time series to connectomes, by nilearn, with the checks that a wrong file would not survive."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medprism.data.errors import DataError
from medprism.data.samples import IntArray

FloatArray = npt.NDArray[np.floating[Any]]
Kind = Literal["correlation", "partial correlation", "covariance", "precision", "tangent"]

FITTED: tuple[Kind, ...] = ("tangent",)
"""Kinds with a group reference, which must come from training subjects alone."""

BOUND = 1 - 1e-6
"""Largest correlation that Fisher's z sees: artanh(1) is infinite."""


def check_series(series: FloatArray, source: str, regions: int | None = None, min_volumes: int = 20) -> None:
    """Refuse time series that no connectome can be computed from.

    Args:
        series: `(T, R)` signal of R regions in T volumes, any unit.
        source: file and row, for the message.
        regions: expected number of regions; any when None.
        min_volumes: smallest number of volumes that is accepted.

    Raises:
        DataError: names the source, and the region and volume where that applies.
    """
    if series.ndim != 2:
        raise DataError(f"{source}: expected a table of volumes x regions, found shape {series.shape}")
    if regions is not None and series.shape[1] != regions:
        raise DataError(
            f"{source}: has {series.shape[1]} regions, expected {regions} as in the first file; "
            "extract all subjects with the same atlas, volumes as rows and regions as columns"
        )
    if len(series) < min_volumes:
        raise DataError(
            f"{source}: has {len(series)} volumes, fewer than min_volumes = {min_volumes}; leave the scan out, or "
            "check that volumes are rows and regions are columns"
        )
    if not np.isfinite(series).all():
        volume, region = np.argwhere(~np.isfinite(series))[0]
        raise DataError(
            f"{source}: is not a finite number at volume {volume + 1}, region {region + 1} "
            f"({int((~np.isfinite(series)).sum())} such values); repair or leave out the scan"
        )


def constant_regions(series: FloatArray) -> npt.NDArray[np.bool_]:
    """`(R,)` whether a region of `(T, R)` series never changes, so that its correlation is undefined."""
    constant: npt.NDArray[np.bool_] = np.ptp(series, axis=0) <= 1e-12 * (1 + np.abs(series).max(axis=0))
    return constant


def connectomes(
    series: Sequence[FloatArray],
    kind: Kind = "correlation",
    fisher_z: bool = False,
    fit_on: IntArray | None = None,
) -> npt.NDArray[np.float32]:
    """Connectomes of n subjects: `nilearn.connectome.ConnectivityMeasure` with its Ledoit-Wolf covariance.

    Constant regions get a row and a column of zeros.

    Args:
        series: n arrays `(T, R)`; T may differ.
        kind: as in nilearn. Correlation z-scores each region first.
        fisher_z: artanh of the off-diagonal, and a zero diagonal; for the correlation kinds only.
        fit_on: positions of the training subjects, for the kinds in `FITTED`.

    Returns:
        `(n, R, R)` float32, symmetric.

    Raises:
        DataError: when `kind` needs `fit_on`, or Fisher's z is asked of something that is no correlation.
    """
    from nilearn.connectome import ConnectivityMeasure

    if kind in FITTED and fit_on is None:
        raise DataError(f"connectivity '{kind}' is fitted: say on which training subjects")
    arrays: list[FloatArray] = [np.asarray(x, dtype=np.float64) for x in series]
    constant = np.stack([constant_regions(x) for x in arrays])
    if kind == "correlation":
        # nilearn 0.14 takes the text "zscore_sample" for "do not standardise"; 0.12 and 0.13 want it. So do it here.
        arrays = [_zscored(x, still) for x, still in zip(arrays, constant, strict=True)]
    measure = ConnectivityMeasure(kind=kind, standardize="zscore_sample")
    if fit_on is None:
        matrices = np.asarray(measure.fit_transform(arrays))
    else:
        matrices = np.asarray(measure.fit([arrays[i] for i in fit_on]).transform(arrays))
    matrices[constant[:, :, None] | constant[:, None, :]] = 0.0
    return fisher(matrices, kind) if fisher_z else matrices.astype(np.float32)


def fisher(matrices: FloatArray, kind: str) -> npt.NDArray[np.float32]:
    """Fisher's z of correlations `(n, R, R)`: artanh of the clipped off-diagonal, diagonal 0.

    Raises:
        DataError: when the matrices are no correlations.
    """
    if "correlation" not in kind:
        raise DataError(f"fisher_z is for correlations, not for '{kind}'; set fisher_z to false")
    z = np.arctanh(np.clip(matrices, -BOUND, BOUND)).astype(np.float32)
    z[:, np.arange(z.shape[1]), np.arange(z.shape[1])] = 0.0
    return z


def _zscored(series: FloatArray, constant: npt.NDArray[np.bool_]) -> FloatArray:
    spread = series.std(axis=0, ddof=1)
    spread[constant] = 1.0
    scaled: FloatArray = (series - series.mean(axis=0)) / spread
    scaled[:, constant] = 0.0
    return scaled


def standardized(matrices: Tensor, fit_on: Tensor) -> Tensor:
    """Every edge with mean 0 and variance 1 over some of the samples.

    Args:
        matrices: `(n, R, R)` connectomes.
        fit_on: positions of the samples that mean and standard deviation are taken from.

    Returns:
        `(n, R, R)`; an edge that does not vary over those samples, such as the diagonal, is 0.
    """
    known = matrices[fit_on]
    mean, spread = known.mean(0), known.std(0)
    constant = spread < 1e-6
    return torch.where(constant, 0.0, (matrices - mean) / spread.masked_fill(constant, 1.0))
