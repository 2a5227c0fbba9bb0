"""Weights that make all cells of target and attributes count alike."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from medprism.cohort import UNKNOWN
from medprism.data.samples import IntArray


def cell_weights(codes: IntArray) -> npt.NDArray[np.float32]:
    """Weights under which all cells that occur weigh alike; their mean is 1.

    A sample with an unknown code is in no cell. It keeps the weight 1, its share of the data: as a cell of their own a
    handful of them would fill a large part of every batch.

    Args:
        codes: `(n, k)` class codes of the target and of the attributes that form the cells, -1 unknown.

    Returns:
        `(n,)` weights.
    """
    weights = np.ones(len(codes), dtype=np.float32)
    known = (codes != UNKNOWN).all(axis=1)
    if known.any():
        _, cell, sizes = np.unique(codes[known], axis=0, return_inverse=True, return_counts=True)
        weights[known] = (known.sum() / (len(sizes) * sizes))[cell.reshape(-1)]
    return weights
