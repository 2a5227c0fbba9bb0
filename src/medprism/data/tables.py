"""Tables that people write about their own data: one row a sample or a person, and how columns become labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from medprism.cohort import Factor
from medprism.data.errors import DataError
from medprism.data.samples import IntArray, Labels, Samples, as_text, binned, coded, inferred_classes

Role = Literal["target", "sensitive", "nuisance"]

MOST_CLASSES = 50
"""A column with more distinct values than this is taken for a number that was not binned."""


def read_table(file: Path, needed: Iterable[str], filled: Iterable[str] = ()) -> pd.DataFrame:
    """Read a CSV, or a TSV by its suffix, as text.

    Args:
        file: path of the table; its first line names the columns.
        needed: columns that it must have.
        filled: columns of which no cell may be empty, where the table has them.

    Returns:
        Table of str, with empty cells as empty text.

    Raises:
        DataError: when the file is missing or no table, lacks a column or rows, or a cell of `filled` is empty.
    """
    needed = list(dict.fromkeys(needed))
    if not file.is_file():
        raise DataError(f"table {file} does not exist; write a CSV with the columns {', '.join(needed)}")
    try:
        table = pd.read_csv(file, dtype=str, sep="\t" if file.suffix == ".tsv" else ",", keep_default_na=False)
    except ValueError as error:
        raise DataError(f"table {file} cannot be read ({error}); it must be a CSV with a header") from error
    missing = [column for column in needed if column not in table]
    if missing:
        raise DataError(f"{file} lacks the columns {missing}; it has {list(table.columns)}")
    if table.empty:
        raise DataError(f"{file} has no rows; write one row for each scan")
    for column in filled:
        for row, cell in enumerate(table.get(column, ())):
            if not as_text(cell):
                raise DataError(f"{file}, row {row + 2}: column '{column}' is empty; fill the cell")
    return table


@dataclass(frozen=True)
class Columns:
    """Which columns of a table are the target and the attributes, and how their cells become classes.

    Attributes:
        target: column to predict.
        target_classes: its classes in the order of their codes, the positive one last; sorted when left out.
        attributes: attribute columns; all columns that have no other meaning when left out.
        attribute_classes: classes of attribute columns; sorted values for those left out.
        bins: bounds for columns of numbers, such as {age: [6, 12, 18, 65]}; outside of them the class is unknown.
        cuts: thresholds for columns of numbers, such as {age: [60]}: below 60, and 60 and above.
        sensitive: attributes that are properties of the person, to be treated fairly; the others are nuisance.
        phrases: for class names the phrase that says them in words.
    """

    target: str = "target"
    target_classes: Sequence[str] | None = None
    attributes: Sequence[str] | None = None
    attribute_classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    bins: Mapping[str, Sequence[float]] = field(default_factory=dict)
    cuts: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sensitive: Sequence[str] = ("sex", "age")
    phrases: Mapping[str, str] = field(default_factory=dict)

    @property
    def needed(self) -> tuple[str, ...]:
        """Every column that is named here, once."""
        named = (self.target, *(self.attributes or ()), *self.attribute_classes, *self.bins, *self.cuts)
        return tuple(dict.fromkeys(named))

    def labels(
        self,
        table: pd.DataFrame,
        source: str,
        ids: Iterable[str],
        subjects: Iterable[str],
        reserved: Iterable[str],
        rows: Sequence[int] | None = None,
    ) -> Labels:
        """The codes of n samples.

        Args:
            table: as `read_table` gives it.
            source: name of the table, for messages.
            ids: n names of samples.
            subjects: n names of people.
            reserved: columns that are no attributes although nobody says so, such as the path.
            rows: the row of the table that speaks for each sample; one row a sample when left out.

        Raises:
            DataError: when a cell or a column cannot be used; names the row (1 is the header) and the mend.
        """
        positions = np.arange(len(table)) if rows is None else np.asarray(rows, dtype=np.int64)
        names = self.attributes
        if names is None:
            names = [name for name in map(str, table.columns) if name not in {*reserved, self.target}]
        target, codes = self._factor(table, positions, source, self.target, self.target_classes, "target")
        factors: list[Factor] = []
        columns: dict[str, IntArray] = {}
        for name in names:
            role: Role = "sensitive" if name in self.sensitive else "nuisance"
            classes = self.attribute_classes.get(name)
            factor, columns[name] = self._factor(table, positions, source, name, classes, role)
            factors.append(factor)
        return Labels(Samples(tuple(ids), tuple(subjects), codes, columns), target, tuple(factors))

    def _factor(
        self,
        table: pd.DataFrame,
        positions: IntArray,
        source: str,
        name: str,
        classes: Sequence[str] | None,
        role: Role,
    ) -> tuple[Factor, IntArray]:
        used = np.isin(np.arange(len(table)), positions)
        # Rows without a sample say nothing; they stay in place, so that messages count rows as the file does.
        values = [cell if use else "" for cell, use in zip(table[name], used, strict=True)]
        if name in self.bins or name in self.cuts:
            _check_numbers(values, source, name)
            codes, classes = binned(values, self.bins[name]) if name in self.bins else above(values, self.cuts[name])
            phrases = tuple((self.phrases.get(label, f"{name} {label}"),) for label in classes)
        else:
            classes = tuple(classes) if classes is not None else inferred_classes(values)
            if len(classes) > MOST_CLASSES:
                raise DataError(
                    f"{source}: column '{name}' has {len(classes)} different values; if it is a number, give it "
                    "bins, otherwise leave it out of attributes or name its attribute_classes"
                )
            codes = coded(values, classes, name, source)
            phrases = tuple((self.phrases.get(label, label),) for label in classes)
        codes = codes[positions]
        empty = [label for code, label in enumerate(classes) if not (codes == code).any()]
        if empty or len(classes) < 2:
            mend = "column or the classes" if role == "target" else "column or the classes, or leave it out"
            raise DataError(
                f"{source}: column '{name}' has no rows for {empty or 'a second class'} (classes {list(classes)}); "
                f"a factor has two classes or more, each with at least one scan, so mend the {mend}"
            )
        return Factor(name, tuple(classes), phrases, role), codes


def above(values: Sequence[str], thresholds: Sequence[float]) -> tuple[IntArray, tuple[str, ...]]:
    """Cut a column of numbers at thresholds; a value at a threshold lies above it.

    Args:
        values: cells; empty ones are unknown.
        thresholds: at least one number, increasing.

    Returns:
        Codes (-1 unknown), and class names such as `below 40`, `40 to 60`, `60 and above`.

    Raises:
        DataError: when the thresholds do not increase.
    """
    if not thresholds:
        raise DataError("cuts need at least one threshold, such as {age: [60]}")
    codes, between = binned(values, [-np.inf, *thresholds, np.inf])
    return codes, (f"below {thresholds[0]:g}", *between[1:-1], f"{thresholds[-1]:g} and above")


def _check_numbers(values: Sequence[str], source: str, column: str) -> None:
    numbers = pd.to_numeric(pd.Series(list(values)), errors="coerce").to_numpy(dtype=float)
    for row, (cell, number) in enumerate(zip(values, numbers, strict=True)):
        if as_text(cell) and not np.isfinite(number):
            raise DataError(
                f"{source}, row {row + 2}: column '{column}' holds '{cell}', expected a number; mend the cell, or "
                "leave it empty if unknown"
            )
