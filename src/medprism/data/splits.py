"""Splits by subject: seeded, stratified, without overlap, and saved with a hash.

Each maker takes one row a subject and returns a `Split`. The result depends on the names of the subjects and their
strata, not on the order of the rows.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.model_selection import StratifiedKFold, StratifiedShuffleSplit

from medprism.data.errors import DataError, report

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Who is in which part; the unit is the subject.

    Attributes:
        train: subjects to learn from; anything that is fitted is fitted on them.
        validation: subjects to choose an epoch with.
        test: subjects to judge with.

    Raises:
        DataError: when a part is empty, or a subject stands twice; names the subjects.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse what would leak, and what could not be evaluated."""
        empty = [name for name in PARTS if not self.part(name)]
        if empty:
            sizes = {name: len(self.part(name)) for name in PARTS}
            raise DataError(f"the split has no subjects in {empty} (sizes {sizes}); change the fractions or the folds")
        times = Counter(subject for name in PARTS for subject in self.part(name))
        twice = sorted(subject for subject, n in times.items() if n > 1)
        if twice:
            where = {subject: [name for name in PARTS if subject in self.part(name)] for subject in twice[:10]}
            raise DataError(f"{len(twice)} subjects stand in the split more than once: {where}; put each in one part")

    def part(self, name: str) -> tuple[str, ...]:
        """The subjects of `train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of who is where, in hexadecimal; the order of the names does not matter."""
        plain = json.dumps({name: sorted(self.part(name)) for name in PARTS}, sort_keys=True)
        return hashlib.sha256(plain.encode()).hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the split and its fingerprint as JSON."""
        content = {**{name: list(self.part(name)) for name in PARTS}, "fingerprint": self.fingerprint}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], subjects: Iterable[str]) -> Split:
        """Read a saved split.

        Args:
            path: file that `save` wrote.
            subjects: all subjects of the cohort.

        Raises:
            DataError: when the file is missing or no split, was changed after it was saved, or names subjects that
                the cohort does not have.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            split = cls(*(tuple(map(str, content[name])) for name in PARTS))
            saved = content["fingerprint"]
        except FileNotFoundError:
            raise DataError(f"split file {path} does not exist; give the path of a file that a run has saved") from None
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no saved split ({type(error).__name__}: {error}); it must be JSON with the keys "
                "train, validation, test and fingerprint"
            ) from error
        if split.fingerprint != saved:
            raise DataError(
                f"{path} was changed after it was saved: its fingerprint says {str(saved)[:12]}..., its subjects give "
                f"{split.fingerprint[:12]}...; take the original file, or make a new split"
            )
        known = set(subjects)
        unknown = sorted(subject for name in PARTS for subject in split.part(name) if subject not in known)
        if unknown:
            raise DataError(
                f"{path} names {len(unknown)} subjects that the cohort does not have: {', '.join(unknown[:10])}; "
                "the file belongs to other data, or to other inclusion settings"
            )
        return split


def holdout(
    subjects: pd.DataFrame, test_fraction: float = 0.2, validation_fraction: float = 0.15, seed: int = 0
) -> Split:
    """One stratified cut into training, validation and test subjects.

    Args:
        subjects: one row a subject, indexed by name; the columns are class codes to stratify by (-1 unknown, a
            stratum of its own), the most important first.
        test_fraction: share of all subjects that is tested on, between 0 and 1.
        validation_fraction: share of the other subjects that is validated on, between 0 and 1.
        seed: another seed, another split.

    Raises:
        DataError: when a fraction lies outside (0, 1), or there are too few subjects.
    """
    table = _ordered(subjects)
    rest, test = _cut(table, test_fraction, seed, "test_fraction")
    train, validation = _cut(rest, validation_fraction, seed, "validation_fraction")
    return _split(train, validation, test)


def kfold(
    subjects: pd.DataFrame, folds: int = 5, fold: int = 0, validation_fraction: float = 0.15, seed: int = 0
) -> Split:
    """One fold of a stratified cross-validation; over all folds every subject is tested exactly once.

    Args:
        subjects: as in `holdout`.
        folds: number of folds, at least 2.
        fold: which of them is the test part, from 0.
        validation_fraction: share of the training folds that is validated on, between 0 and 1.
        seed: another seed, another assignment to folds.

    Raises:
        DataError: when there is no such fold, or there are fewer subjects than folds.
    """
    if folds < 2 or not 0 <= fold < folds:
        raise DataError(f"there is no fold {fold} of {folds}; take at least 2 folds, and a fold from 0 to folds - 1")
    table = _ordered(subjects)
    if len(table) < folds:
        raise DataError(f"{len(table)} subjects cannot make {folds} folds; take fewer folds")
    labels = _strata(table, folds, f"{folds} folds")
    splitter = StratifiedKFold(folds, shuffle=True, random_state=seed)
    rest, test = list(splitter.split(np.zeros(len(table)), labels))[fold]
    train, validation = _cut(table.iloc[rest], validation_fraction, seed, "validation_fraction")
    return _split(train, validation, table.iloc[test])


def leave_group_out(
    subjects: pd.DataFrame,
    groups: Mapping[str, Iterable[str]],
    held_out: str,
    validation_fraction: float = 0.15,
    seed: int = 0,
) -> Split:
    """Test on one group, such as a site that training never sees.

    Args:
        subjects: as in `holdout`.
        groups: for each subject the groups of its samples; somebody with any sample in `held_out` is tested on.
        held_out: name of the group.
        validation_fraction: share of the other subjects that is validated on, between 0 and 1.
        seed: another seed, another validation part.

    Raises:
        DataError: when nobody is in the group, or everybody is.
    """
    table = _ordered(subjects)
    inside = np.array([held_out in groups[str(name)] for name in table.index], dtype=bool)
    if inside.all() or not inside.any():
        known = sorted({group for names in groups.values() for group in names})
        raise DataError(f"{inside.sum()} of {len(table)} subjects are in group '{held_out}'; hold out one of {known}")
    train, validation = _cut(table[~inside], validation_fraction, seed, "validation_fraction")
    return _split(train, validation, table[inside])


def _ordered(subjects: pd.DataFrame) -> pd.DataFrame:
    if not subjects.index.is_unique:
        twice = sorted(set(subjects.index[subjects.index.duplicated()].astype(str)))
        raise DataError(f"subjects stand twice in the table to split: {twice[:10]}; give one row a subject")
    return subjects.sort_index()


def _split(*parts: pd.DataFrame) -> Split:
    return Split(*(tuple(map(str, part.index)) for part in parts))


def _cut(table: pd.DataFrame, fraction: float, seed: int, name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Cut `fraction` of the rows off, stratified; returns the kept rows and those cut off."""
    if not 0 < fraction < 1:
        raise DataError(f"{name} is {fraction}; it must lie between 0 and 1, both excluded")
    if len(table) < 2:
        raise DataError(f"{len(table)} subjects are too few to cut {name} = {fraction} off; use more subjects")
    # With this many members in every stratum, both sides have room for one of each.
    labels = _strata(table, math.ceil(1 / min(fraction, 1 - fraction)), f"{name} = {fraction:g}")
    size = min(max(math.ceil(round(len(table) * fraction, 9)), 1), len(table) - 1)
    splitter = StratifiedShuffleSplit(1, test_size=size, train_size=len(table) - size, random_state=seed)
    kept, cut = next(splitter.split(np.zeros(len(table)), labels))
    return table.iloc[np.sort(kept)], table.iloc[np.sort(cut)]


def _strata(table: pd.DataFrame, minimum: int, purpose: str) -> npt.NDArray[np.int64]:
    """A stratum number for each row; strata below `minimum` are merged, and that is reported.

    Small strata give up their last column first, then the one before it, and what is still small joins the largest.
    """
    width = table.shape[1]
    labels: list[tuple[int | None, ...]] = [tuple(map(int, row)) for row in table.to_numpy()]
    small = {label: n for label, n in Counter(labels).items() if n < minimum}
    for depth in range(width - 1, -1, -1):
        few = {label for label, n in Counter(labels).items() if n < minimum}
        labels = [label[:depth] + (None,) * (width - depth) if label in few else label for label in labels]
    counts = Counter(labels)
    largest = max(counts, key=lambda label: counts[label])
    labels = [label if counts[label] >= minimum else largest for label in labels]
    if small:
        names = " x ".join(map(str, table.columns))
        report(
            f"{len(small)} strata of {names} ({sum(small.values())} of {len(table)} subjects) have fewer than "
            f"{minimum} subjects, too few to stratify {purpose}: they are merged with others"
        )
    number = {label: k for k, label in enumerate(dict.fromkeys(labels))}
    return np.array([number[label] for label in labels], dtype=np.int64)
