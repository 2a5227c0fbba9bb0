"""The cells that a target and several attributes form together, and the accuracy in the worst of them.

A shortcut shows where it fails: among those in whom an attribute does not agree with the target as it did in training.
So a method is chosen by its accuracy in the worst cell of target class x attribute classes (the worst group of Sagawa
et al., Distributionally robust neural networks, ICLR 2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from medprism.cohort import UNKNOWN, Cohort
from medprism.evaluation.decisions import Decisions, Groups, distinct_rows, mean
from medprism.evaluation.predictions import Array


@dataclass(frozen=True)
class Cells:
    """The cell of each of n samples.

    Attributes:
        attributes: names of the attributes that form the cells with the target.
        names: of the cells, the target's class first, such as `autism, female`.
        codes: `(n,)` cell of each sample; -1 where an attribute is unknown, or the cell is smaller than asked for.
        correct: `(n,)` 1 where the target was predicted right, else 0.
    """

    attributes: tuple[str, ...]
    names: tuple[str, ...]
    codes: Array
    correct: Array

    @property
    def sizes(self) -> Array:
        """`(C,)` samples of each cell."""
        return np.bincount(self.codes[self.codes >= 0], minlength=len(self.names))

    @property
    def accuracy(self) -> Array:
        """`(C,)` share of right samples of each cell."""
        seen = self.codes >= 0
        return np.bincount(self.codes[seen], self.correct[seen], len(self.names)) / self.sizes


def cell_attributes(cohort: Cohort, chosen: Sequence[str] | None = None) -> tuple[str, ...]:
    """The attributes that form cells: the chosen ones, else the sensitive ones, else all.

    Raises:
        ValueError: when the cohort has no attribute of that name.
    """
    known = [factor.name for factor in cohort.attributes]
    if chosen is None:
        return tuple(f.name for f in cohort.attributes if f.role == "sensitive") or tuple(known)
    wrong = [name for name in chosen if name not in known]
    if wrong:
        raise ValueError(f"cells name {wrong}, but the attributes of cohort '{cohort.name}' are {known}")
    return tuple(chosen)


def find_cells(
    decisions: Decisions,
    target: Array,
    groups: Sequence[Groups],
    cohort: Cohort,
    chosen: Sequence[str] | None = None,
    min_group: int = 1,
) -> Cells | None:
    """The cells of samples whose target is one of several classes; None where there are no attributes or cells.

    Args:
        decisions: n samples.
        target: `(n,)` class codes, all known.
        groups: attributes of those samples.
        cohort: names the classes of the target.
        chosen: attributes that form the cells; see `cell_attributes`.
        min_group: cells with fewer samples are left out.
    """
    names = cell_attributes(cohort, chosen)
    joined = [group for group in groups if group.name in names]
    codes = np.column_stack([target, *(group.codes for group in joined)])
    known = (codes >= 0).all(axis=1)
    found, which, sizes = distinct_rows(codes[known])
    large = sizes >= min_group
    if not joined or not large.any():
        return None
    cell = np.full(len(codes), UNKNOWN, dtype=np.int64)
    cell[known] = np.where(large, np.cumsum(large) - 1, UNKNOWN)[which]
    classes = [cohort.target.classes, *(group.classes for group in joined)]
    labels = [", ".join(of[k] for of, k in zip(classes, row, strict=True)) for row in found[large]]
    return Cells(tuple(group.name for group in joined), tuple(labels), cell, decisions.correct)


def describe(cells: Cells) -> dict[str, Any]:
    """Plain values: `attributes`, the worst `cell` with its `n`, and size and accuracy of all `cells`."""
    worst = int(cells.accuracy.argmin())
    return {
        "attributes": list(cells.attributes),
        "cell": cells.names[worst],
        "n": int(cells.sizes[worst]),
        "cells": {
            name: {"n": int(n), "accuracy": float(accuracy)}
            for name, n, accuracy in zip(cells.names, cells.sizes, cells.accuracy, strict=True)
        },
    }


class CellAccuracy:
    """The lowest accuracy of a cell and the mean over cells, for many resamples at once.

    Cells without a sample are left out of a resample.

    Args:
        cells: of n samples.
        subjects: `(n,)` subject codes.
    """

    def __init__(self, cells: Cells, subjects: Array) -> None:
        rows = np.flatnonzero(cells.codes >= 0)
        outcome = 2 * cells.codes[rows] + (cells.correct[rows] > 0)
        order = np.argsort(outcome, kind="stable")
        outcomes, self.starts = np.unique(outcome[order], return_index=True)
        self.order = subjects[rows[order]]
        member = (outcomes[:, None] // 2 == np.arange(len(cells.names))).astype(np.float64)
        self.member, self.hit = member, member * (outcomes[:, None] % 2)

    def __call__(self, counts: Array) -> tuple[Array, Array]:
        """`(B, S)` counts to the lowest and the mean accuracy, `(B,)` each."""
        sums = np.add.reduceat(counts.take(self.order, axis=1), self.starts, axis=1)
        size = sums @ self.member
        accuracy = np.divide(sums @ self.hit, size, out=np.full(size.shape, np.nan), where=size > 0)
        return np.fmin.reduce(accuracy, axis=1), mean(accuracy)
