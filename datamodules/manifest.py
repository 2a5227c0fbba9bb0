"""Own fMRI data: a CSV manifest and a folder of time series or matrices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from medprism.data.cache import stamps
from medprism.data.connectivity import FloatArray
from medprism.data.errors import DataError
from medprism.data.samples import Labels
from medprism.data.tables import Columns, read_table
from medprism.datamodules.fmri import Atlas, ConnectomeDataModule, Source


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
        self.columns = Columns(
            target,
            target_classes,
            attributes,
            attribute_classes or {},
            bins or {},
            sensitive=sensitive,
            phrases=phrases or {},
        )
        self.atlas_table = atlas_table

    @cached_property
    def _table(self) -> pd.DataFrame:
        needed = ["id", "path", *self.columns.needed]
        return read_table(self.manifest, needed, filled=["id", "path", self.columns.target, "subject"])

    @cached_property
    def labels(self) -> Labels:
        """Target and attributes of the manifest."""
        table = self._table
        subjects = table["subject"] if "subject" in table else table["id"]
        return self.columns.labels(table, str(self.manifest), table["id"], subjects, {"id", "path", "subject"})

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
