"""Own fMRI data: a CSV manifest and a folder of time series or matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from medprism.cohort import Factor
from medprism.data.cache import stamps
from medprism.data.connectivity import FloatArray
from medprism.data.errors import DataError
from medprism.data.samples import IntArray, Samples, as_text, binned, coded, inferred_classes
from medprism.datamodules.fmri import Atlas, ConnectomeDataModule, Labels, Source

MOST_CLASSES = 50
"""A column with more distinct values than this is taken for a number that was not binned."""


class FmriManifest(ConnectomeDataModule):
    """A classification cohort from your own region time series or connectivity matrices.

    The manifest is a CSV (or TSV) with one row a scan and the columns `id` (unique), `path` (relative to `root`), the
    target, and optionally `subject` (`id` when left out) and any attributes. Files are `.npy`, or text (`.1D`, `.csv`,
    `.tsv`, `.txt`) with volumes as rows and regions as columns. See docs/own-data.md.

    Args:
        root: folder that the paths of the manifest are relative to.
        manifest: path of the manifest.
        content: whether files hold time series `(T, R)`, or ready matrices `(R, R)` that are taken as they are.
        target: column to predict.
        target_classes: its classes in the order of their codes, the positive one last; sorted when left out.
        attributes: attribute columns; all other columns when left out.
        attribute_classes: classes of attribute columns; sorted values for those left out.
        bins: bounds for attribute columns of numbers, such as {age: [6, 12, 18, 65]}.
        sensitive: attributes that are properties of the person, to be treated fairly; the others are nuisance.
        phrases: for class names the phrase that says them in words, such as {ASD: autism spectrum disorder}.
        cohort_name: name of the data set in tables and figures.
        atlas_table: CSV with the columns roi, x, y, z and name of each region, for the brain figures.
        **base: arguments of `ConnectomeDataModule` and `CohortDataModule`.
    """

    def __init__(
        self,
        root: str,
        manifest: str,
        content: Literal["timeseries", "matrix"] = "timeseries",
        target: str = "target",
        target_classes: list[str] | None = None,
        attributes: list[str] | None = None,
        attribute_classes: dict[str, list[str]] | None = None,
        bins: dict[str, list[float]] | None = None,
        sensitive: tuple[str, ...] = ("sex", "age"),
        phrases: dict[str, str] | None = None,
        cohort_name: str = "own fMRI data",
        atlas_table: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if content == "matrix" and self.connectivity != "correlation":
            raise DataError(
                f"content is matrix, so connectivity '{self.connectivity}' cannot be computed; leave it out"
            )
        self.name = cohort_name
        self.root = Path(root)
        self.manifest = Path(manifest)
        self.content: Literal["timeseries", "matrix"] = content
        self.target = target
        self.target_classes = target_classes
        self.attributes = attributes
        self.attribute_classes = attribute_classes or {}
        self.bins = bins or {}
        self.sensitive = sensitive
        self.phrases = phrases or {}
        self.atlas_table = atlas_table

    @cached_property
    def _table(self) -> pd.DataFrame:
        if not self.manifest.is_file():
            raise DataError(
                f"manifest {self.manifest} does not exist; write a CSV with the columns id, path, {self.target}"
            )
        separator = "\t" if self.manifest.suffix == ".tsv" else ","
        try:
            table = pd.read_csv(self.manifest, dtype=str, sep=separator, keep_default_na=False)
        except ValueError as error:
            raise DataError(
                f"manifest {self.manifest} cannot be read ({error}); it must be a CSV with a header"
            ) from error
        needed = ["id", "path", self.target, *(self.attributes or []), *self.attribute_classes, *self.bins]
        missing = [column for column in dict.fromkeys(needed) if column not in table]
        if missing:
            raise DataError(f"{self.manifest} lacks the columns {missing}; it has {list(table.columns)}")
        if table.empty:
            raise DataError(f"{self.manifest} has no rows; write one row for each scan")
        for column in ("id", "path", self.target, *(["subject"] if "subject" in table else [])):
            empty = np.flatnonzero([not as_text(cell) for cell in table[column]])
            if len(empty):
                raise DataError(f"{self.manifest}, row {empty[0] + 2}: column '{column}' is empty; fill the cell")
        return table

    @cached_property
    def labels(self) -> Labels:
        """Target and attributes of the manifest."""
        table = self._table
        target, codes = self._factor(self.target, self.target_classes, "target")
        reserved = {"id", "path", "subject", self.target}
        names = (
            self.attributes
            if self.attributes is not None
            else [c for c in map(str, table.columns) if c not in reserved]
        )
        factors: list[Factor] = []
        columns: dict[str, IntArray] = {}
        for name in names:
            role: Literal["sensitive", "nuisance"] = "sensitive" if name in self.sensitive else "nuisance"
            factor, columns[name] = self._factor(name, self.attribute_classes.get(name), role)
            factors.append(factor)
        ids = tuple(table["id"])
        subjects = tuple(table["subject"]) if "subject" in table else ids
        return Labels(Samples(ids, subjects, codes, columns), target, tuple(factors))

    def _factor(
        self, name: str, classes: Sequence[str] | None, role: Literal["target", "sensitive", "nuisance"]
    ) -> tuple[Factor, IntArray]:
        values = self._table[name].tolist()
        if name in self.bins:
            codes, classes = binned(values, self.bins[name])
            phrases = tuple((self.phrases.get(label, f"{name} {label}"),) for label in classes)
        else:
            classes = tuple(classes) if classes is not None else inferred_classes(values)
            if len(classes) > MOST_CLASSES:
                raise DataError(
                    f"{self.manifest}: column '{name}' has {len(classes)} different values; if it is a number, give it "
                    "bins, otherwise leave it out of attributes or name its attribute_classes"
                )
            codes = coded(values, classes, name, str(self.manifest))
            phrases = tuple((self.phrases.get(label, label),) for label in classes)
        empty = [label for code, label in enumerate(classes) if not (codes == code).any()]
        if empty or len(classes) < (2 if role == "target" else 1):
            raise DataError(
                f"{self.manifest}: column '{name}' has no rows for {empty or 'a second class'} (classes "
                f"{list(classes)}); every class needs at least one scan, so mend the column or the classes"
            )
        return Factor(name, tuple(classes), phrases, role), codes

    def source(self) -> Source:
        """The files that the manifest names."""
        files = tuple(str(self.root / path) for path in self._table["path"])
        names = tuple(f"{file} ({self.manifest.name}, row {row + 2})" for row, file in enumerate(files))
        missing = [name for name, file in zip(names, files, strict=True) if not Path(file).is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(files)} files do not exist, the first is {missing[0]}; paths are relative to "
                f"root = {self.root}"
            )
        return Source(names, ReadFiles(files, names), {"files": stamps(files), "content": self.content}, self.content)

    def atlas_of(self, regions: int) -> Atlas:
        """Names and places from the atlas table, where there is one."""
        if self.atlas_table is None:
            return Atlas.numbered("region", regions)
        return Atlas.read(Path(self.atlas_table), Path(self.atlas_table).stem, regions)


@dataclass(frozen=True)
class ReadFiles:
    """Reads arrays of numbers from `.npy` or text files.

    Attributes:
        files: path of each sample.
        names: how an error names each sample.
    """

    files: tuple[str, ...]
    names: tuple[str, ...]

    def __call__(self, rows: Sequence[int]) -> list[FloatArray]:
        """The arrays of the samples at `rows`.

        Raises:
            DataError: when a file is not readable as numbers.
        """
        return [self._read(Path(self.files[row]), self.names[row]) for row in rows]

    def _read(self, file: Path, name: str) -> FloatArray:
        try:
            if file.suffix == ".npy":
                return np.asarray(np.load(file, allow_pickle=False), dtype=np.float64)
            with file.open(encoding="utf-8") as stream:
                first = stream.readline()
            separator = next((mark for mark in ("\t", ",", ";") if mark in first), None)
            header = 0 if first.startswith("#") or _numbers(first, separator) else 1
            return np.loadtxt(file, delimiter=separator, skiprows=header, ndmin=2)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{name}: cannot be read as numbers ({error}); expected .npy, or text with one volume a line, at most "
                "one header line, and nothing but numbers below it"
            ) from error


def _numbers(line: str, separator: str | None) -> bool:
    try:
        [float(cell) for cell in line.split(separator)]
    except ValueError:
        return False
    return True
