"""The base of all datamodules: who is in which part, and fast batches; a subclass says what a sample is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from medprism.cohort import UNKNOWN, Batch, Cohort
from medprism.data.balance import cell_weights
from medprism.data.errors import DataError, report
from medprism.data.samples import IntArray, Samples
from medprism.data.shifts import Shift, Shifted, people, shifted
from medprism.data.splits import PARTS, Split, holdout, kfold, leave_group_out
from medprism.distributed import world_size

Reader = Callable[[Tensor], Mapping[str, Any]]
"""Takes `(B,)` long positions in the cohort and returns the input fields of a `Batch`, stacked over the B samples."""


@dataclass(frozen=True)
class ArrayReader:
    """A `Reader` of arrays in memory: one index operation a batch.

    Attributes:
        arrays: batch field name to `(n, ...)` tensor over all samples of the cohort.
    """

    arrays: Mapping[str, Tensor]

    def __call__(self, rows: Tensor) -> dict[str, Tensor]:
        """The samples at `rows`."""
        return {name: array[rows] for name, array in self.arrays.items()}


class CohortDataset(Dataset[Batch]):
    """Some samples of a cohort, served a whole batch at a time, so that nothing is left to collate.

    Args:
        samples: labels of the whole cohort.
        rows: positions of this data set's samples in the cohort.
        read: gives the input fields of those positions.
        weight: `(n,)` weights of all samples of the cohort in the training loss; batches have none when left out.
    """

    def __init__(self, samples: Samples, rows: IntArray, read: Reader, weight: Tensor | None = None) -> None:
        self.samples = samples
        self.rows = torch.from_numpy(rows)
        self.read = read
        self.weight = weight
        self.target = torch.from_numpy(samples.target)
        self.attributes = {name: torch.from_numpy(codes) for name, codes in samples.attributes.items()}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Batch:
        """A batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> Batch:
        """The batch of `indices`; torch's loader calls this with all of them at once."""
        rows = self.rows[torch.as_tensor(indices, dtype=torch.long)]
        positions = rows.tolist()
        batch = {
            "id": [self.samples.id[row] for row in positions],
            "subject": [self.samples.subject[row] for row in positions],
            **self.read(rows),
            "target": self.target[rows],
            "attributes": {name: codes[rows] for name, codes in self.attributes.items()},
        }
        if self.weight is not None:
            batch["weight"] = self.weight[rows]
        return cast(Batch, batch)


class EpochOrder(Sampler[int]):
    """A random order that depends on the run's seed and the epoch alone, so that a resumed run sees the same one.

    Lightning calls `set_epoch`. With several processes it wraps the order, passes `set_epoch` on, and gives each
    process its share of the one order that equally seeded processes have. In a loop of one's own each pass takes the
    order of the next epoch.

    Args:
        samples: number of samples.
        weights: `(samples,)` how often each sample is drawn, with replacement, in relation to the others; every sample
            comes exactly once when left out.
    """

    def __init__(self, samples: int, weights: Tensor | None = None) -> None:
        self.samples, self.weights = samples, weights
        self.epoch, self.seed = 0, torch.initial_seed() % 2**62

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        self.epoch += 1
        if self.weights is None:
            yield from torch.randperm(self.samples, generator=generator).tolist()
        else:
            yield from torch.multinomial(self.weights, self.samples, replacement=True, generator=generator).tolist()

    def __len__(self) -> int:
        return self.samples


class CohortDataModule(L.LightningDataModule, ABC):
    """A cohort with its split; the one interface between data sets and everything else.

    A subclass gives three things: `cohort` (what the data are), `samples` (the labels of every sample), and `reader`
    (how to read the inputs). `cohort` must be known right after construction: methods are built from it.

    Args:
        batch_size: samples a batch, on each process.
        num_workers: processes that read ahead; 0 is fastest for data in memory.
        split: how subjects are divided: `kfold`, `holdout`, or `leave_group_out`.
        folds: number of folds, for `kfold`.
        fold: which fold is tested on, from 0, for `kfold`.
        test_fraction: share of the subjects that is tested on, for `holdout`.
        validation_fraction: share of the subjects outside the test part that is validated on.
        stratify: attributes to balance over the parts, next to the target; the shifted ones when left out, or else
            `sex`, where there is one.
        group: attribute whose classes `leave_group_out` divides by.
        held_out: the class of `group` that is tested on, for `leave_group_out`.
        split_seed: seed of the split.
        split_file: a saved split to use instead of making one.
        shift: for attributes the share r of training and validation subjects, in each class of the target, whose
            attribute agrees with it (class k with class k). Test sets `same`, `inverted` (1 - r), `balanced` and
            `native` are made of the test part; none when left out. See docs/shifts.md.
        shift_flip: shifted attributes whose second class agrees with the target's first class.
        shift_classes: two class names for a target or a shifted attribute that has more, such as {site: [NYU, UM]};
            subjects of its other classes are left out.
        shift_prevalence: share of subjects with the second class of the target under the shift.
        balance: make all cells of target and attributes count alike in training: `resample` draws training samples
            with replacement, `reweight` gives batches a `weight` for the loss.
        balance_by: attributes that form those cells with the target; the shifted ones when left out, or else the
            sensitive ones, or else all. An empty list balances the classes of the target.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        split: Literal["kfold", "holdout", "leave_group_out"] = "kfold",
        folds: int = 5,
        fold: int = 0,
        test_fraction: float = 0.2,
        validation_fraction: float = 0.15,
        stratify: list[str] | None = None,
        group: str = "site",
        held_out: str | None = None,
        split_seed: int = 0,
        split_file: str | None = None,
        shift: dict[str, float] | None = None,
        shift_flip: list[str] | None = None,
        shift_classes: dict[str, list[str]] | None = None,
        shift_prevalence: float = 0.5,
        balance: Literal["none", "resample", "reweight"] = "none",
        balance_by: list[str] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; take at least 1")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.split_kind = split
        self.folds = folds
        self.fold = fold
        self.test_fraction = test_fraction
        self.validation_fraction = validation_fraction
        self.stratify = stratify
        self.group = group
        self.held_out = held_out
        self.split_seed = split_seed
        self.split_file = split_file
        self.shift = shift or {}
        self.shift_flip = shift_flip or []
        self.shift_classes = shift_classes or {}
        self.shift_prevalence = shift_prevalence
        self.balance = balance
        self.balance_by = balance_by
        not_shifted = sorted(set(self.shift_flip) - set(self.shift))
        if not_shifted:
            raise DataError(f"shift_flip names {not_shifted}, but the shifted attributes are {list(self.shift)}")
        self.skipped: dict[str, int] = {}
        """Why samples of the source are not in the cohort or the split, and how many."""
        self._reported = False

    @property
    @abstractmethod
    def cohort(self) -> Cohort:
        """What the data are; known without `setup`."""

    @property
    @abstractmethod
    def samples(self) -> Samples:
        """The labels of every sample of the cohort, in a fixed order."""

    @abstractmethod
    def reader(self, training: bool) -> Reader:
        """How to read input fields; `training` asks for augmentation where there is any."""

    @cached_property
    def partition(self) -> Split:
        """Who would be in which part without a shift."""
        subjects = self.strata()
        if self.split_file is not None:
            split = Split.load(self.split_file, map(str, subjects.index))
            outside = len(subjects) - sum(len(split.part(name)) for name in PARTS)
            if outside:
                self.skipped["subject not in the split file"] = outside
            return split
        if self.split_kind == "holdout":
            return holdout(subjects, self.test_fraction, self.validation_fraction, self.split_seed)
        if self.split_kind == "kfold":
            return kfold(subjects, self.folds, self.fold, self.validation_fraction, self.split_seed)
        groups = self.groups()
        if self.held_out is None:
            known = sorted({name for names in groups.values() for name in names})
            raise DataError(f"split=leave_group_out needs held_out, one of the {self.group} classes {known}")
        return leave_group_out(subjects, groups, self.held_out, self.validation_fraction, self.split_seed)

    @cached_property
    def split(self) -> Split:
        """Who is in which part; the whole test part stays, training and validation subjects follow the shift."""
        if not self.shift:
            return self.partition
        self.skipped |= self._shifted.left_out
        return self._shifted.split

    @property
    def test_sets(self) -> dict[str, tuple[str, ...]]:
        """Test set name to sample ids; together they are the test part, and they may overlap. None without a shift."""
        if not self.shift:
            return {}
        sets = {**self._shifted.test_sets, "native": self.split.test}
        samples = self.samples
        return {name: tuple(samples.id[row] for row in samples.rows(names)) for name, names in sets.items()}

    @cached_property
    def _shifted(self) -> Shifted:
        names = list(self.shift)
        self._refuse_unknown(names, "shift")
        if self.cohort.target_kind != "classes":
            raise DataError(f"shift needs a target of classes; '{self.cohort.target.name}' is not one")
        target, attributes = self.cohort.target, [self.cohort.attribute(name) for name in names]
        shift = Shift.of(target, attributes, self.shift, self.shift_prevalence, self.shift_flip, self.shift_classes)
        table = people(self.samples.strata(names), (target, *attributes))
        return shifted(self.partition, table, shift, self.split_seed)

    def _refuse_unknown(self, names: Iterable[str], what: str) -> None:
        unknown = [name for name in names if name not in self.samples.attributes]
        if unknown:
            raise DataError(f"cannot {what} {unknown}: the attributes are {list(self.samples.attributes)}")

    def batch_fields(self, input_field: str) -> tuple[str, ...]:
        """The `Batch` fields of every batch, for `cohort` to declare."""
        weight = ("weight",) if self.balance == "reweight" else ()
        return ("id", "subject", input_field, "target", "attributes", *weight)

    def strata(self) -> pd.DataFrame:
        """Table with one row a subject and the codes to stratify by: the target, then attributes."""
        names = self.stratify
        if names is None:
            names = list(self.shift) or [name for name in ("sex",) if name in self.samples.attributes]
        self._refuse_unknown(names, "stratify by")
        return self.samples.strata(names)

    def groups(self) -> dict[str, set[str]]:
        """For each subject the classes of `group` that its samples have."""
        samples = self.samples
        if self.group not in samples.attributes:
            raise DataError(
                f"cannot leave out a group of '{self.group}': the attributes are {list(samples.attributes)}"
            )
        classes = self.cohort.attribute(self.group).classes
        found: dict[str, set[str]] = {subject: set() for subject in samples.subject}
        for subject, code in zip(samples.subject, samples.attributes[self.group], strict=True):
            if code != UNKNOWN:
                found[subject].add(classes[code])
        without = sum(not names for names in found.values())
        if without:
            report(f"{without} subjects have no known {self.group}: they stay among the training subjects")
        return found

    @cached_property
    def _rows(self) -> dict[str, IntArray]:
        return {name: self.samples.rows(self.split.part(name)) for name in PARTS}

    def rows(self, part: str) -> IntArray:
        """Positions in the cohort of the samples of `train`, `validation` or `test`."""
        return self._rows[part]

    def setup(self, stage: str) -> None:
        """Make the split, read what is held in memory, and report once what is left out; called on every process."""
        self.reader(training=False)
        self.rows("train")
        _ = self.test_sets, self._training_weight  # so that what cannot be made is said before training
        if self.skipped and not self._reported:
            left_out = ", ".join(f"{reason}: {n}" for reason, n in self.skipped.items())
            report(f"{self.cohort.name}: {len(self.samples)} samples; left out: {left_out}")
            self._reported = True

    def counts(self) -> dict[str, dict[str, int]]:
        """Samples, subjects, and samples of each target class in each part."""
        target = self.cohort.target.classes
        table = {}
        for part in PARTS:
            rows = self.rows(part)
            table[part] = {"samples": len(rows), "subjects": len(self.split.part(part))}
            values = self.samples.target[rows]
            for code, name in enumerate(target):
                members = values[:, code] > 0.5 if values.ndim == 2 else values == code
                table[part][name] = int(members.sum())
        return table

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move the tensors; lists hold names and texts, and to look for tensors in them shows in short steps."""
        rest = {name: value for name, value in batch.items() if not isinstance(value, list)}
        return {**batch, **super().transfer_batch_to_device(rest, device, dataloader_idx)}

    def train_dataloader(self) -> DataLoader[Batch]:
        """Training samples, shuffled; an incomplete last batch is left out unless it is the only one."""
        samples = len(self.rows("train"))
        each = -(-samples // world_size())
        drawn = None
        if self.balance == "resample" and self._training_weight is not None:
            drawn = self._training_weight[torch.from_numpy(self.rows("train"))]
        return self._loader("train", True, sampler=EpochOrder(samples, drawn), drop_last=each > self.batch_size)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Validation samples in fixed order."""
        return self._loader("validation", False)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Test samples in fixed order."""
        return self._loader("test", False)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The test samples."""
        return self.test_dataloader()

    def reference_dataloader(self) -> DataLoader[Batch]:
        """Training samples in fixed order, none left out, without augmentation; leakage probes learn from them."""
        return self._loader("train", False)

    @cached_property
    def _training_weight(self) -> Tensor | None:
        """`(n,)` weights of all samples of the cohort: those of the cells in training, 1 elsewhere."""
        if self.balance == "none":
            return None
        cohort, samples, rows = self.cohort, self.samples, self.rows("train")
        if cohort.target_kind != "classes":
            raise DataError(f"balance needs a target of classes; '{cohort.target.name}' is not one")
        if self.balance == "reweight" and "weight" not in cohort.fields:
            raise DataError(
                f"balance=reweight gives batches a weight, but the cohort of {type(self).__name__} declares the fields "
                f"{list(cohort.fields)}; let it declare `fields=self.batch_fields('{cohort.input_field}')`"
            )
        names = self.balance_by
        if names is None:
            sensitive = [factor.name for factor in cohort.attributes if factor.role == "sensitive"]
            names = list(self.shift) or sensitive or [factor.name for factor in cohort.attributes]
        self._refuse_unknown(names, "balance by")
        codes = np.column_stack([samples.target, *(samples.attributes[name] for name in names)])
        weight = torch.ones(len(samples))
        weight[torch.from_numpy(rows)] = torch.from_numpy(cell_weights(codes[rows]))
        return weight

    def _loader(self, part: str, training: bool, **options: Any) -> DataLoader[Batch]:
        weight = self._training_weight if self.balance == "reweight" else None
        return DataLoader(
            CohortDataset(self.samples, self.rows(part), self.reader(training), weight),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=_as_it_is,
            **options,
        )


def _as_it_is(batch: Any) -> Any:
    return batch
