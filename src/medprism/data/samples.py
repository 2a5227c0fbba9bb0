"""What is known of every sample before its image is read, and how table columns become class codes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from medprism.cohort import UNKNOWN, Factor
from medprism.data.errors import DataError

IntArray = npt.NDArray[np.int64]

MISSING = frozenset({"", "nan", "na", "n/a", "none", "<na>"})
"""Texts (in lower case) that mean "not known" in a table."""


@dataclass(frozen=True)
class Samples:
    """The labels of n samples, in the order of the cohort.

    Attributes:
        id: n names, unique.
        subject: n names of people; all samples of a person stay in one part of a split.
        target: `(n,)` int64 classes, `(n, K)` float32 labels, or `(n,)` float32 values.
        attributes: attribute name to `(n,)` int64 class codes, -1 where unknown.

    Raises:
        DataError: when an id occurs twice, or the lengths differ.
    """

    id: tuple[str, ...]
    subject: tuple[str, ...]
    target: npt.NDArray[Any]
    attributes: Mapping[str, IntArray]

    def __post_init__(self) -> None:
        """Check that the table is one that a cohort can be made of."""
        twice = [name for name, n in Counter(self.id).items() if n > 1]
        if twice:
            raise DataError(
                f"{len(twice)} sample ids occur more than once: {_some(twice)}; give every sample an id of its own"
            )
        lengths = {"subject": len(self.subject), "target": len(self.target)}
        lengths |= {name: len(codes) for name, codes in self.attributes.items()}
        wrong = {name: n for name, n in lengths.items() if n != len(self.id)}
        if wrong:
            raise DataError(f"{len(self.id)} sample ids but {wrong} values; give one value for each sample")

    def __len__(self) -> int:
        return len(self.id)

    def strata(self, attributes: Iterable[str]) -> pd.DataFrame:
        """One row a subject: the class codes to stratify a split by.

        A subject with several samples counts with its largest code. Of several labels the rarest one that is
        present counts, of a continuous value its quartile.

        Args:
            attributes: names of the attributes to stratify by, next to the target.

        Returns:
            Table indexed by subject with the columns `target` and `attributes`.
        """
        columns = {"target": _target_codes(self.target), **{name: self.attributes[name] for name in attributes}}
        table = pd.DataFrame(columns, index=pd.Index(self.subject, name="subject"))
        return table.groupby(level="subject").max()

    def rows(self, subjects: Iterable[str]) -> IntArray:
        """The positions of all samples of `subjects`, in the order of the cohort."""
        wanted = set(subjects)
        return np.array([row for row, name in enumerate(self.subject) if name in wanted], dtype=np.int64)


@dataclass(frozen=True)
class Labels:
    """What the table of a cohort says.

    Attributes:
        samples: the codes of every sample.
        target: what the codes of the target mean.
        attributes: what the codes of each attribute mean, in the order of `samples.attributes`.
    """

    samples: Samples
    target: Factor
    attributes: tuple[Factor, ...]


def coded(values: Sequence[Any], classes: Sequence[str], column: str, source: str) -> IntArray:
    """Class codes of a table column; empty cells are unknown (-1).

    Args:
        values: cells of the column, one a row of the table.
        classes: class names; class k has code k.
        column: name of the column, for the message.
        source: name of the table, for the message.

    Raises:
        DataError: when a cell holds none of the classes; names its row (1 is the header).
    """
    code = {name: k for k, name in enumerate(classes)}
    found = np.full(len(values), UNKNOWN, dtype=np.int64)
    for row, value in enumerate(values):
        text = as_text(value)
        if not text:
            continue
        if text not in code:
            raise DataError(
                f"{source}, row {row + 2}: column '{column}' holds '{text}', expected one of {list(classes)}; "
                "mend the cell, leave it empty if unknown, or add the class"
            )
        found[row] = code[text]
    return found


def inferred_classes(values: Iterable[Any]) -> tuple[str, ...]:
    """The distinct known values of a column, as sorted text; numbers are sorted as numbers."""
    names = {text for text in map(as_text, values) if text}
    try:
        return tuple(sorted(names, key=float))
    except ValueError:
        return tuple(sorted(names))


def binned(values: Sequence[Any], edges: Sequence[float]) -> tuple[IntArray, tuple[str, ...]]:
    """Cut a number column into classes `[edge, next edge)`, the last one closed.

    Args:
        values: cells; empty and non-numeric ones are unknown.
        edges: at least two increasing bounds.

    Returns:
        Codes (-1 unknown or outside the edges), and class names such as `6 to 12`.

    Raises:
        DataError: when the edges do not increase.
    """
    if len(edges) < 2 or any(b <= a for a, b in itertools.pairwise(edges)):
        raise DataError(f"the bin edges {list(edges)} must be at least two increasing numbers, such as [6, 12, 18, 65]")
    numbers = pd.to_numeric(pd.Series(list(values)), errors="coerce").to_numpy(dtype=float)
    codes = np.searchsorted(np.asarray(edges, dtype=float), numbers, side="right") - 1
    codes[numbers == edges[-1]] = len(edges) - 2
    codes[~((numbers >= edges[0]) & (numbers <= edges[-1]))] = UNKNOWN
    names = tuple(f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges))
    return codes.astype(np.int64), names


def as_text(value: Any) -> str:
    """A cell as text: whole numbers without a decimal point, missing markers as the empty text."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip()
    return "" if text.lower() in MISSING else text


def _target_codes(target: npt.NDArray[Any]) -> IntArray:
    if target.ndim == 2:
        by_rarity = np.argsort(np.nansum(target, axis=0), kind="stable")
        present = target[:, by_rarity] > 0.5
        codes: IntArray = np.where(present.any(axis=1), by_rarity[present.argmax(axis=1)], target.shape[1])
        return codes
    if np.issubdtype(target.dtype, np.floating):
        quartiles = pd.qcut(pd.Series(target), 4, labels=False, duplicates="drop")
        return np.array(quartiles.fillna(UNKNOWN), dtype=np.int64)
    return np.array(target, dtype=np.int64)


def _some(names: Sequence[str], most: int = 10) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
