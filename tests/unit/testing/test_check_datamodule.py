"""`check_datamodule`: a sound cohort passes, and for each check there is one that fails it and no other."""

from functools import cached_property

import numpy as np
import pytest
import torch

from medprism.cohort import Cohort, Factor
from medprism.data.base import ArrayReader, CohortDataModule
from medprism.data.samples import Samples
from medprism.testing import DATAMODULE_CHECKS, ChecksFailed, check_datamodule

PEOPLE = 40


class Sound(CohortDataModule):
    """Random connectomes of people with two scans each.

    Args:
        regions: number of regions.
        **base: arguments of `CohortDataModule`.
    """

    types = torch.float32
    site = 2

    def __init__(self, regions: int = 4, **base) -> None:
        super().__init__(**{"batch_size": 8, **base})
        self.regions = regions
        self.noise = np.random.default_rng(0)

    @cached_property
    def samples(self) -> Samples:
        people = [f"p{k // 2}" for k in range(2 * PEOPLE)]
        codes = np.arange(2 * PEOPLE) // 2
        attributes = {"sex": codes // 2 % 2, "site": codes // 4 % self.site}
        return Samples(tuple(f"s{k}" for k in range(2 * PEOPLE)), tuple(people), codes % 2, attributes)

    @property
    def cohort(self) -> Cohort:
        return Cohort(
            "made",
            self.batch_fields("connectome"),
            (self.regions, self.regions),
            Factor("disease", ("no", "yes"), role="target"),
            attributes=(Factor("sex", ("female", "male"), role="sensitive"), Factor("site", ("a", "b"))),
            regions=tuple(f"r{k}" for k in range(self.regions)),
        )

    @cached_property
    def array(self) -> torch.Tensor:
        return torch.tensor(self.noise.normal(size=(2 * PEOPLE, self.regions, self.regions)), dtype=self.types)

    def reader(self, training: bool):
        return ArrayReader({"connectome": self.array})


class Wavering(Sound):
    known = False

    @property
    def cohort(self):
        cohort = super().cohort
        return Cohort(**{**vars(cohort), "fingerprint": "known" if self.known else ""})

    def setup(self, stage):
        super().setup(stage)
        self.known = True


class Deaf(Sound):
    """Takes nothing on.

    Args:
        regions: number of regions.
    """

    def __init__(self, regions: int = 4) -> None:
        super().__init__(regions)


class Lists(Sound):
    @property
    def cohort(self):
        cohort = super().cohort
        return Cohort(**{**vars(cohort), "regions": list(cohort.regions)})


class Double(Sound):
    types = torch.float64


class Mistaken(Sound):
    def predict_dataloader(self):
        return self.val_dataloader()


class Overlapping(Sound):
    def rows(self, part):
        return super().rows("train")[:9] if part == "validation" else super().rows(part)


class Beyond(Sound):
    site = 3


class Unseeded(Sound):
    def __init__(self, regions: int = 4, **base) -> None:
        super().__init__(regions, **base)
        self.noise = np.random.default_rng()


class Drifting(Sound):
    def setup(self, stage):
        super().setup(stage)
        self.array = self.array + 1


class Noisy(Sound):
    def reader(self, training):
        return Noise(self.array)


class Noise:
    def __init__(self, array):
        self.array = array

    def __call__(self, rows):
        return {"connectome": self.array[rows] + torch.randn(len(rows), 1, 1)}


class Unpicklable(Sound):
    def reader(self, training):
        return lambda rows: {"connectome": self.array[rows]}


BROKEN = {
    "construct": (Wavering, "the same cohort before and after setup"),
    "arguments": (Deaf, "['batch_size', 'split_seed', 'num_workers'] lost"),
    "cohort_round_trip": (Lists, "another ['regions']"),
    "fields": (Double, "a tensor (8, 4, 4) of torch.float32; found (8, 4, 4) of torch.float64"),
    "ids": (Mistaken, "of the test part once from the predict loader"),
    "splits": (Overlapping, "in train and validation, such as"),
    "codes": (Beyond, "codes of 'site' from 0 to 1, or -1 where unknown; found [2]"),
    "determinism": (Unseeded, "the same train batches from another instance"),
    "second_setup": (Drifting, "the same train batches from a second setup"),
    "fixed_order": (Noisy, "the same reference batches twice; found another ['connectome']"),
    "workers": (Unpicklable, "a data set that can be pickled"),
}


def test_a_sound_cohort_passes():
    report = check_datamodule(Sound, regions=5)
    assert {each.name: each.state for each in report.outcomes} == dict.fromkeys(DATAMODULE_CHECKS, "passed")
    weighted = check_datamodule(Sound, checks=["construct", "fields"], balance="reweight")
    assert [each.state for each in weighted.outcomes] == ["passed", "passed"]


def test_every_check_has_a_broken_cohort():
    assert set(BROKEN) == set(DATAMODULE_CHECKS)


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_cohort_fails_its_check_and_no_other(name):
    cls, said = BROKEN[name]
    with pytest.raises(ChecksFailed) as error:
        check_datamodule(cls)
    assert [each.name for each in error.value.report.failed] == [name], str(error.value)
    assert said in str(error.value)


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(TypeError, match=r"takes a subclass of .*CohortDataModule, and got 3"):
        check_datamodule(3)
    with pytest.raises(TypeError, match="cannot be built: define cohort and reader and samples"):
        check_datamodule(CohortDataModule)
    report = check_datamodule(Noisy, skip={"fixed_order": "its noise is on purpose"})
    assert report.state("fixed_order") == "skipped"
