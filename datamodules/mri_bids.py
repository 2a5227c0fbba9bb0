"""Structural MRI in the Brain Imaging Data Structure (BIDS): a folder of scans and its participants.tsv."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from medprism.data.errors import DataError
from medprism.data.samples import Labels, as_text
from medprism.data.tables import read_table
from medprism.datamodules.mri import Scans, TableVolumeDataModule


@dataclass(frozen=True)
class Matched:
    """Scans of people that the table knows.

    Attributes:
        files: path of each scan.
        people: participant of each scan.
        rows: position in the table of each scan's participant.
    """

    files: tuple[Path, ...]
    people: tuple[str, ...]
    rows: tuple[int, ...]


class MriBids(TableVolumeDataModule):
    """A classification cohort from a BIDS folder; the labels are columns of participants.tsv.

    Every `sub-*/[ses-*/]anat/<pattern>.nii[.gz]` is a sample, and all sessions of a person stay in one part of the
    split. `n/a` is unknown. Scans of people whose target is unknown or who are not listed, scans stored twice, and
    people without a scan are left out, counted and reported. Gorgolewski et al., Scientific Data 3, 2016.

    Args:
        root: the BIDS folder; a folder of derivatives in the same layout will do.
        pattern: names of the scans without `.nii`, with wildcards, such as `*_space-MNI*_T1w`.
        participants: path of the table; `participants.tsv` in `root` when left out.
        **base: arguments of `TableVolumeDataModule`, `VolumeDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    def __init__(self, root: str, pattern: str = "*_T1w", participants: str | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.root = Path(root)
        self.pattern = pattern
        self.participants = Path(participants) if participants is not None else self.root / "participants.tsv"

    @cached_property
    def _table(self) -> pd.DataFrame:
        return read_table(self.participants, ["participant_id", *self.columns.needed], filled=["participant_id"])

    @cached_property
    def _matched(self) -> Matched:
        """Scans with their rows of the table; whatever has no partner is counted."""
        rows = participants(self._table, str(self.participants))
        scans, twice = find_scans(self.root, self.pattern)
        targets = self._table[self.columns.target]
        left_out = Counter(
            {
                "participants listed twice": len(self._table) - len(rows),
                "participants without a scan": len(rows.keys() - {person_of(file) for file in scans}),
                "scans stored twice": twice,
            }
        )
        kept = []
        for file in scans:
            row = rows.get(person_of(file))
            if row is None:
                left_out["scans without a row in the table"] += 1
            elif not as_text(targets.iloc[row]):
                left_out["scans with unknown target"] += 1
            elif not file.is_file():
                left_out["scans whose link leads nowhere"] += 1
            else:
                kept.append((file, person_of(file), row))
        self.skipped.update({reason: n for reason, n in left_out.items() if n})
        if not kept:
            raise DataError(
                f"{self.root} has no usable scan sub-*/[ses-*/]anat/{self.pattern}.nii[.gz] for the {len(rows)} people "
                f"of {self.participants} (left out: {self.skipped}); mend root, pattern or target"
            )
        return Matched(*(tuple(column) for column in zip(*kept, strict=True)))

    @cached_property
    def labels(self) -> Labels:
        """Target and attributes of each scan's participant."""
        matched = self._matched
        ids = [scan_name(file) for file in matched.files]
        source = str(self.participants)
        return self.columns.labels(self._table, source, ids, matched.people, {"participant_id"}, matched.rows)

    def scans(self) -> Scans:
        """The scans of the folder, in the order of their paths."""
        matched = self._matched
        names = tuple(
            f"{file} ({self.participants.name}, row {row + 2})"
            for file, row in zip(matched.files, matched.rows, strict=True)
        )
        return Scans(matched.files, names)


def find_scans(root: Path, pattern: str) -> tuple[list[Path], int]:
    """The scans of a BIDS folder, sorted, and how many more are copies, `.nii` next to `.nii.gz`."""
    found = sorted(
        file
        for folder in ("sub-*/anat", "sub-*/ses-*/anat")
        for suffix in (".nii", ".nii.gz")
        for file in root.glob(f"{folder}/{pattern}{suffix}")
    )
    once = {file.with_name(scan_name(file)): file for file in found}
    return list(once.values()), len(found) - len(once)


def scan_name(file: Path) -> str:
    """The name of a scan without its suffix."""
    return file.name.removesuffix(".gz").removesuffix(".nii")


def person_of(file: Path) -> str:
    """The participant `sub-...` whose folder a scan lies in."""
    return next(part for part in reversed(file.parent.parts) if part.startswith("sub-"))


def participants(table: pd.DataFrame, source: str) -> dict[str, int]:
    """The first row of each participant, whose name may lack its `sub-`.

    Raises:
        DataError: when two rows of one participant differ.
    """
    rows: dict[str, int] = {}
    for row, cell in enumerate(table["participant_id"]):
        person = f"sub-{cell.removeprefix('sub-')}"
        first = rows.setdefault(person, row)
        if not table.iloc[row].equals(table.iloc[first]):
            raise DataError(
                f"{source}, rows {first + 2} and {row + 2}: {person} is listed twice with different values; keep one"
            )
    return rows
