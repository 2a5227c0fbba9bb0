"""`check_datamodule`: every check of a cohort, by name."""

from __future__ import annotations

import inspect
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any

import lightning as L
from lightning.pytorch.utilities.seed import isolate_rng

from medprism.cohort import UNKNOWN, Batch, Cohort
from medprism.data.base import CohortDataModule
from medprism.data.splits import PARTS
from medprism.testing.batches import check_batches, same
from medprism.testing.contract import refuse_unexplained
from medprism.testing.report import Check, CheckFailure, Report, described, require_class, run_checks
from medprism.testing.trial import quiet

FIRST = 4
"""Batches that are compared where all would take long."""


@dataclass
class DataTrial:
    """A datamodule class under test.

    Attributes:
        cls: the class.
        init_args: its arguments.
    """

    cls: type[CohortDataModule]
    init_args: Mapping[str, Any]

    def build(self) -> CohortDataModule:
        """A new instance, set up."""
        data = self.cls(**self.init_args)
        data.prepare_data()
        data.setup("fit")
        return data

    @cached_property
    def data(self) -> CohortDataModule:
        """An instance that all checks may read."""
        return self.build()

    def loaders(self, data: CohortDataModule | None = None) -> dict[str, Any]:
        """Each loader by its name."""
        data = data or self.data
        return {
            "train": data.train_dataloader(),
            "validation": data.val_dataloader(),
            "test": data.test_dataloader(),
            "predict": data.predict_dataloader(),
            "reference": data.reference_dataloader(),
        }

    def batches(self, name: str, data: CohortDataModule | None = None) -> Iterator[Batch]:
        """The batches of one loader."""
        yield from self.loaders(data)[name]

    def first(self, name: str, data: CohortDataModule) -> list[Batch]:
        """The first batches of one loader, after seeding."""
        L.seed_everything(0, verbose=False)
        return list(islice(self.loaders(data)[name], FIRST))

    @staticmethod
    def drawn(dataset: Any) -> dict[str, Any]:
        """One sample of a data set, after seeding."""
        L.seed_everything(0, verbose=False)
        return dict(dataset[0])


def check_construct(trial: DataTrial) -> None:
    """The class can be built and set up, and its cohort is known before that."""
    try:
        before = trial.cls(**trial.init_args).cohort
        data = trial.data
    except Exception as error:
        raise CheckFailure(
            f"{trial.cls.__name__} to build and set up with {dict(trial.init_args)}",
            described(error),
            "give the arguments that it needs: check_datamodule(..., name=value)",
        ) from error
    if not isinstance(before, Cohort):
        raise CheckFailure("`cohort` to be a Cohort", type(before).__name__, "return medprism.cohort.Cohort(...)")
    if data.cohort != before:
        raise CheckFailure(
            "the same cohort before and after setup, since methods are built from it before",
            "another",
            "declare only what is known right after construction",
        )


def check_arguments(trial: DataTrial) -> None:
    """Arguments have types and lines of help, and those of the base are passed on."""
    refuse_unexplained(trial.cls, set())
    wanted = ("batch_size", "split_seed", "num_workers")
    parameters = inspect.signature(trial.cls).parameters
    rest = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    lost = [name for name in wanted if name not in parameters and not rest]
    if not lost:
        changed = trial.cls(**{**trial.init_args, "batch_size": 3, "split_seed": 5})
        lost = [name for name, value in (("batch_size", 3), ("split_seed", 5)) if getattr(changed, name) != value]
    if lost:
        raise CheckFailure(
            f"the arguments {list(wanted)} of CohortDataModule to be taken and passed on: suites set the split's seed",
            f"{lost} lost",
            "take **base and call super().__init__(**base)",
        )


def check_cohort_round_trip(trial: DataTrial) -> None:
    """The cohort survives `to_dict`, JSON and `from_dict`, as in configs and checkpoints."""
    cohort = trial.data.cohort
    try:
        again = Cohort.from_dict(json.loads(json.dumps(cohort.to_dict())))
    except Exception as error:
        raise CheckFailure(
            "a cohort of plain values", described(error), "use str, int, float and bool, no numpy types or objects"
        ) from error
    if again != cohort:
        other = [name for name in vars(cohort) if getattr(again, name) != getattr(cohort, name)]
        raise CheckFailure("the same cohort from its dictionary", f"another {other}", "use tuples and plain values")


def check_fields(trial: DataTrial) -> None:
    """Every batch has exactly the declared fields, in the declared shapes and types."""
    for name in trial.loaders():
        for batch in trial.batches(name):
            check_batches(batch, trial.data.cohort, name)


def check_ids(trial: DataTrial) -> None:
    """Ids are unique, and every loader gives each sample of its part exactly once."""
    data = trial.data
    for name, part in (("reference", "train"), ("validation", "validation"), ("test", "test"), ("predict", "test")):
        expected = {data.samples.id[row] for row in data.rows(part)}
        found = Counter(sample for batch in trial.batches(name) for sample in batch["id"])
        twice = [sample for sample, n in found.items() if n > 1]
        lost, added = sorted(expected - set(found)), sorted(set(found) - expected)
        if twice or lost or added:
            raise CheckFailure(
                f"each of the {len(expected)} samples of the {part} part once from the {name} loader",
                f"{len(twice)} more than once {twice[:3]}, {len(lost)} missing {lost[:3]}, {len(added)} of other parts "
                f"{added[:3]}",
                "give `samples` unique ids, and leave the loaders to the base class",
            )


def check_splits(trial: DataTrial) -> None:
    """Parts have samples, and no person is in two of them."""
    data = trial.data
    people = {part: {data.samples.subject[row] for row in data.rows(part)} for part in PARTS}
    empty = [part for part, names in people.items() if not names]
    if empty:
        raise CheckFailure("samples in every part", f"none in {empty}", "give more data, or other fractions")
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if both := sorted(people[one] & people[other]):
            raise CheckFailure(
                "every person in one part only",
                f"{len(both)} in {one} and {other}, such as {both[:3]}",
                "give all samples of a person the same `subject`, and divide people rather than samples",
            )


def check_codes(trial: DataTrial) -> None:
    """Codes of target and attributes lie within their classes, and training sees every class of the target."""
    data = trial.data
    cohort, samples = data.cohort, data.samples
    if sorted(samples.attributes) != sorted(factor.name for factor in cohort.attributes):
        raise CheckFailure(
            "the attributes of `samples` to be those of the cohort",
            f"{sorted(samples.attributes)} and {sorted(factor.name for factor in cohort.attributes)}",
            "build both from one table of labels",
        )
    codes = {factor.name: (samples.attributes[factor.name], len(factor.classes)) for factor in cohort.attributes}
    if cohort.target_kind == "classes":
        codes[cohort.target.name] = (samples.target, len(cohort.target.classes))
    for name, (values, classes) in codes.items():
        outside = sorted({int(value) for value in values if not UNKNOWN <= value < classes})
        if outside:
            raise CheckFailure(
                f"codes of '{name}' from 0 to {classes - 1}, or -1 where unknown",
                f"{outside[:5]}",
                "number the classes in the order in which the cohort names them",
            )
    if cohort.target_kind == "classes":
        seen = set(samples.target[data.rows("train")].tolist())
        if unseen := [name for code, name in enumerate(cohort.target.classes) if code not in seen]:
            raise CheckFailure(
                "training samples of every class of the target",
                f"none of {unseen}",
                "leave these classes out of the cohort, or give more data",
            )
    if cohort.target_kind == "labels":
        known = samples.target[samples.target == samples.target]
        if not set(known.tolist()) <= {0.0, 1.0}:
            raise CheckFailure("labels of 0 and 1", f"{sorted(set(known.tolist()))[:5]}", "threshold or bin them")


def check_determinism(trial: DataTrial) -> None:
    """Another instance with the same arguments has the same cohort, labels, split, order and values."""
    with quiet("medprism.data"):  # it was reported at first
        other = trial.build()
    mend = "seed what you draw, and sort the names of files"
    _refuse_other(_content(trial, trial.data), _content(trial, other), "another instance with the same arguments", mend)


def check_second_setup(trial: DataTrial) -> None:
    """Setting up again, for another stage, changes nothing."""
    with quiet("medprism.data"):
        data = trial.build()
        before = _content(trial, data)
        for stage in ("test", "fit", "predict"):
            data.setup(stage)
    _refuse_other(before, _content(trial, data), "a second setup", "let setup build what is missing and nothing twice")


def _content(trial: DataTrial, data: CohortDataModule) -> dict[str, list[Any]]:
    """What another set-up must give again."""
    samples = data.samples
    return {
        "cohort": [data.cohort],
        "ids and people": [samples.id, samples.subject],
        "parts": [data.rows(part).tolist() for part in PARTS],
        **{f"{name} batches": trial.first(name, data) for name in ("train", "test")},
    }


def _refuse_other(one: dict[str, list[Any]], other: dict[str, list[Any]], what: str, mend: str) -> None:
    for name, values in one.items():
        if len(values) != len(other[name]) or not all(same(a, b) for a, b in zip(values, other[name], strict=True)):
            raise CheckFailure(f"the same {name} from {what}", f"other {name}", mend)


def check_fixed_order(trial: DataTrial) -> None:
    """Loaders but that of training give the same batches twice, and reading changes nothing."""
    for name in ("reference", "validation", "test"):
        for one, two in zip(trial.batches(name), trial.batches(name), strict=True):
            if differ := [key for key, value in one.items() if not same(value, two.get(key))]:
                raise CheckFailure(
                    f"the same {name} batches twice",
                    f"another {differ}",
                    "augment only where reader(training=True) asks for it, and draw nothing elsewhere",
                )


def check_workers(trial: DataTrial) -> None:
    """The data sets can be sent to worker processes (num_workers above 0)."""
    dataset = trial.loaders()["reference"].dataset
    try:
        again = pickle.loads(pickle.dumps(dataset))
    except Exception as error:
        raise CheckFailure(
            "a data set that can be pickled",
            described(error),
            "let `reader` return an object of a class on the top level of a module, no lambda and no open file",
        ) from error
    here, there = (trial.drawn(each) for each in (dataset, again))
    if differ := [key for key, value in here.items() if not same(value, there.get(key))]:
        raise CheckFailure("the same batch in a worker", f"another {differ}", "keep no state outside of the reader")


DATAMODULE_CHECKS: Mapping[str, Check[DataTrial]] = {
    "construct": check_construct,
    "arguments": check_arguments,
    "cohort_round_trip": check_cohort_round_trip,
    "fields": check_fields,
    "ids": check_ids,
    "splits": check_splits,
    "codes": check_codes,
    "determinism": check_determinism,
    "second_setup": check_second_setup,
    "fixed_order": check_fixed_order,
    "workers": check_workers,
}
"""Name to check; the first is what the others build on."""


def check_datamodule(
    cls: type[CohortDataModule],
    checks: Sequence[str] | None = None,
    skip: Mapping[str, str] | None = None,
    **init_args: Any,
) -> Report:
    """Check that a cohort keeps the promises that methods and evaluators rely on; it reads all samples a few times.

    Args:
        cls: the class, a subclass of `CohortDataModule`.
        checks: names of the checks to run, of `DATAMODULE_CHECKS`; all when left out.
        skip: name to reason of checks that do not suit the cohort; the reason stands in the report.
        **init_args: arguments of the class; a folder with a few samples makes the checks quick.

    Returns:
        The report; printing it shows a table of all checks.

    Raises:
        TypeError: when `cls` is no class of a datamodule that can be built.
        ValueError: for unknown names of checks, or a skip without a reason.
        ChecksFailed: lists every check that failed, with what was expected, what was found, and the mend.
    """
    require_class("check_datamodule", cls, CohortDataModule)
    with isolate_rng():
        return run_checks(cls.__name__, DATAMODULE_CHECKS, DataTrial(cls, init_args), checks, skip)
