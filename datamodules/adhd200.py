"""ADHD-200 in the layout of the Neuro Bureau's Athena pipeline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medprism.cohort import UNKNOWN, Factor
from medprism.data.cache import stamps
from medprism.data.connectivity import FloatArray
from medprism.data.errors import DataError, report
from medprism.data.samples import IntArray, Samples, as_text, binned
from medprism.datamodules.fmri import Atlas, ConnectomeDataModule, Labels, Source

ATTRIBUTES = ("sex", "age", "site")
SITES = ("Peking", "Brown", "KKI", "NeuroIMAGE", "NYU", "OHSU", "Pittsburgh", "WashU")
"""Names of the site codes 1 to 8."""
MISSING = frozenset({"", "-999", "pending", "withheld", "l"})
"""Texts that mean "not known", next to the usual ones; `L` stands for a withheld age in some releases."""


class ADHD200(ConnectomeDataModule):
    """ADHD against typically developing children from resting-state connectomes of 8 sites.

    Time courses lie at `<root>/<SITE>/<ScanDir ID>/sfnwmrda<ID>_session_1_rest_1_cc200_TCs.1D`: tab-separated, with the
    columns File, Sub-brick, Mean_1, ...; about 190 of 200 regions carry signal, and the number is read from the data.
    DX 0 is control, 1 to 3 are the ADHD subtypes; Gender 0 is female. Bellec et al., NeuroImage 144, 2017.

    Args:
        root: folder of the site folders.
        table: phenotypic CSV or TSV; when left out, all `<root>/<SITE>/*phenotypic*.csv` together.
        atlas: parcellation in the file names, such as cc200 or aal.
        filtered: band-pass filtered time courses (`sfnwmrda`) instead of unfiltered ones (`snwmrda`).
        qc_column: column that must be 1; no quality filter when left out.
        age_bins: bounds in years of the age classes; who lies outside has an unknown age class.
        attributes: which of sex, age and site the cohort has.
        atlas_table: CSV with the columns roi, x, y, z and name of each region.
        **base: arguments of `ConnectomeDataModule` and `CohortDataModule`.
    """

    name = "ADHD-200"

    def __init__(
        self,
        root: str,
        table: str | None = None,
        atlas: str = "cc200",
        filtered: bool = True,
        qc_column: str | None = "QC_Athena",
        age_bins: tuple[float, ...] = (7, 12, 18, 22),
        attributes: tuple[str, ...] = ATTRIBUTES,
        atlas_table: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        unknown = [name for name in attributes if name not in ATTRIBUTES]
        if unknown:
            raise DataError(f"ADHD-200 has no attributes {unknown}; choose among {list(ATTRIBUTES)}")
        self.root = Path(root)
        self.table = table
        self.atlas = atlas
        self.prefix = "sfnwmrda" if filtered else "snwmrda"
        self.qc_column = qc_column
        self.age_bins = age_bins
        self.attributes = attributes
        self.atlas_table = atlas_table

    @cached_property
    def _files(self) -> dict[int, Path]:
        """ScanDir ID to the first run that is there."""
        pattern = re.compile(rf"{self.prefix}(\d+)_session_\d+_rest_\d+_{re.escape(self.atlas)}_TCs\.1D")
        found: dict[int, Path] = {}
        for file in sorted(self.root.rglob(f"{self.prefix}*_{self.atlas}_TCs.1D"), key=lambda path: path.name):
            match = pattern.fullmatch(file.name)
            if match is None:
                continue
            known = found.setdefault(int(match[1]), file)
            if known.name == file.name and known != file:
                raise DataError(f"{known} and {file} are both the first run of one subject; delete one of them")
        if not found:
            raise DataError(
                f"{self.root} holds no time courses; expected <SITE>/<ScanDir ID>/"
                f"{self.prefix}<ID>_session_1_rest_1_{self.atlas}_TCs.1D below it"
            )
        return found

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The rows that can be used; what is left out is counted in `skipped`."""
        table = read_table(self.root, self.table)
        tests = {"no diagnosis": table["dx"].isin(["0", "1", "2", "3"])}
        if self.qc_column is not None:
            tests[f"{self.qc_column} is not 1"] = _column(table, self.qc_column) == "1"
        tests[f"no {self.prefix} {self.atlas} time courses"] = table["scandirid"].astype(int).isin(self._files)
        keep = pd.Series(True, index=table.index)
        for reason, passes in tests.items():
            left_out = int((keep & ~passes).sum())
            if left_out:
                self.skipped[reason] = left_out
            keep &= passes
        if not keep.any():
            raise DataError(
                f"{self.root}: none of {len(table)} subjects can be used ({self.skipped}); "
                "mend root, table or qc_column"
            )
        return table[keep].reset_index(drop=True)

    @cached_property
    def labels(self) -> Labels:
        """Diagnosis, sex, age class and site of the phenotypic table."""
        table = self._table
        age, age_names = binned(table["age"].tolist(), self.age_bins)
        sex = _codes(table["gender"], {"0": 1, "1": 0})
        present = [name for k, name in enumerate(SITES) if (table["site"] == str(k + 1)).any()]
        site = _codes(table["site"], {str(SITES.index(name) + 1): k for k, name in enumerate(present)})
        known = {
            "sex": (Factor("sex", ("male", "female"), role="sensitive"), sex),
            "age": (Factor("age", age_names, tuple((f"age {name}",) for name in age_names), "sensitive"), age),
            "site": (Factor("site", tuple(present), tuple((f"site {name}",) for name in present), "nuisance"), site),
        }
        for name in self.attributes:
            without = int((known[name][1] == UNKNOWN).sum())
            if without:
                report(f"ADHD-200: {name} of {without} subjects is not known")
        names = tuple(table["scandirid"])
        diagnosis = _codes(table["dx"], {"0": 0, "1": 1, "2": 1, "3": 1})
        samples = Samples(names, names, diagnosis, {name: known[name][1] for name in self.attributes})
        phrases = (("healthy control",), ("attention deficit hyperactivity disorder",))
        target = Factor("diagnosis", ("control", "ADHD"), phrases, "target")
        return Labels(samples, target, tuple(known[name][0] for name in self.attributes))

    def source(self) -> Source:
        """The time course files."""
        files = tuple(str(self._files[int(name)]) for name in self.samples.id)
        names = tuple(f"{file} (subject {name})" for file, name in zip(files, self.samples.id, strict=True))
        return Source(names, ReadTimeCourses(files, _regions(files[0])), {"files": stamps(files)})

    def atlas_of(self, regions: int) -> Atlas:
        """Regions named by the columns of the files; with places where an atlas table has as many rows."""
        if self.atlas_table is not None:
            return Atlas.read(Path(self.atlas_table), self.atlas.upper(), regions)
        first = str(self._files[int(self.samples.id[0])])
        return Atlas(
            self.atlas.upper(), tuple(f"{self.atlas.upper()} {c.removeprefix('Mean_')}" for c in _regions(first))
        )


@dataclass(frozen=True)
class ReadTimeCourses:
    """Reads Athena time course files.

    Attributes:
        files: path of each sample.
        regions: the region columns that every file must have.
    """

    files: tuple[str, ...]
    regions: tuple[str, ...]

    def __call__(self, rows: Sequence[int]) -> list[FloatArray]:
        """Time courses `(T, R)` of the samples at `rows`.

        Raises:
            DataError: when a file cannot be parsed, or has other regions.
        """
        return [self._read(self.files[row]) for row in rows]

    def _read(self, file: str) -> FloatArray:
        try:
            table = pd.read_csv(file, sep="\t")
            values: FloatArray = table[[c for c in map(str, table.columns) if c.startswith("Mean_")]].to_numpy(
                dtype=np.float64
            )
        except (OSError, ValueError) as error:
            raise DataError(f"{file} cannot be read as Athena time courses ({error}); unpack it again") from error
        found = _regions(file)
        if found != self.regions:
            raise DataError(
                f"{file}: has {len(found)} regions, expected {len(self.regions)} as in the first file "
                f"(they differ in {sorted(set(found) ^ set(self.regions))[:5]}); use files of one atlas"
            )
        return values


def read_table(root: Path, path: str | None) -> pd.DataFrame:
    """The phenotypic table as text, with column names in lower case letters only, and empty text for "not known".

    Raises:
        DataError: when there is no table, or it lacks a column, or a subject stands in it twice.
    """
    paths = [Path(path)] if path is not None else sorted(root.glob("*/*phenotypic*.csv"))
    if not paths or not all(file.is_file() for file in paths):
        raise DataError(
            f"phenotypic table {path or root / '*' / '*phenotypic*.csv'} does not exist; give its path as table"
        )
    read = []
    for file in paths:
        rows = pd.read_csv(file, dtype=str, sep="\t" if file.suffix == ".tsv" else ",", keep_default_na=False)
        rows = rows.rename(columns=_plain)
        missing = [column for column in ("scandirid", "site", "gender", "age", "dx") if column not in rows]
        if missing:
            raise DataError(f"{file} lacks the columns {missing}; it must be a phenotypic table of ADHD-200")
        rows = rows.map(lambda cell: "" if as_text(cell).lower() in MISSING else as_text(cell))
        bad = [(k + 2, cell) for k, cell in enumerate(rows["scandirid"]) if not cell.isdigit()]
        if bad:
            raise DataError(
                f"{file}, row {bad[0][0]}: the ScanDir ID is '{bad[0][1]}', expected a number; mend the cell"
            )
        read.append(rows)
    table = pd.concat(read, ignore_index=True)
    twice = table["scandirid"][table["scandirid"].duplicated()].tolist()
    if twice:
        raise DataError(f"{paths[0]}: ScanDir IDs stand in the table twice: {twice[:10]}; keep one row of each")
    return table


def _plain(column: str) -> str:
    """`ScanDir ID`, `ScanDir.ID` and `ScanDirID` are one column."""
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _column(table: pd.DataFrame, name: str) -> pd.Series[str]:
    if _plain(name) not in table:
        raise DataError(f"the phenotypic table has no column {name}; set qc_column to one of its columns, or to null")
    return table[_plain(name)]


def _codes(column: pd.Series[str], codes: dict[str, int]) -> IntArray:
    return np.array(column.map(codes).fillna(UNKNOWN), dtype=np.int64)


def _regions(file: str) -> tuple[str, ...]:
    """The region columns of a time course file."""
    with Path(file).open(encoding="utf-8", errors="replace") as stream:
        return tuple(name for name in stream.readline().split() if name.startswith("Mean_"))
