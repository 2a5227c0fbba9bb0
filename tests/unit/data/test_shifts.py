"""Shifted parts and test sets: ratios, sizes, who is drawn, refusals."""

from __future__ import annotations

import itertools
import logging
import math

import numpy as np
import pandas as pd
import pytest
import torch

from medprism.cohort import Cohort, Factor
from medprism.data.base import ArrayReader, CohortDataModule, Reader
from medprism.data.errors import DataError
from medprism.data.samples import Samples
from medprism.data.shifts import Shift, cells, draw, feasible, people

DISEASE = Factor("disease", ("no", "yes"), role="target")
SEX = Factor("sex", ("male", "female"), role="sensitive")
VIEW = Factor("view", ("PA", "AP"))
SITE = Factor("site", ("A", "B", "C"))


def crossed(counts: dict[tuple[str, ...], int], factors: tuple[Factor, ...]) -> pd.DataFrame:
    """A table with so many people in each cell."""
    rows = [cell for cell, n in counts.items() for _ in range(n)]
    names = pd.Index([f"p{k:04d}" for k in range(len(rows))], name="subject")
    return pd.DataFrame(rows, columns=[factor.name for factor in factors], index=names, dtype=object)


class Toy(CohortDataModule):
    """600 people with one or two scans each; the classes of person k follow from a seed."""

    cohort = Cohort(
        "toy", ("id", "subject", "connectome", "target", "attributes"), (2, 2), DISEASE, attributes=(SEX, VIEW, SITE)
    )
    people = 600

    @property
    def samples(self) -> Samples:
        generator = np.random.default_rng(0)
        target, sex, view = generator.integers(2, size=(3, self.people))
        site = generator.integers(3, size=self.people)
        sex[:20] = -1
        person = np.concatenate([np.arange(self.people), np.arange(0, self.people, 3)])
        return Samples(
            tuple(f"scan{k}" for k in range(len(person))),
            tuple(f"p{k:03d}" for k in person),
            target[person],
            {"sex": sex[person], "view": view[person], "site": site[person]},
        )

    def reader(self, training: bool) -> Reader:
        return ArrayReader({"connectome": torch.zeros(len(self.samples), 2, 2)})


# ------------------------------------------------------------------------------------------------- pure functions
def test_shares_are_a_distribution_with_the_wanted_conditionals() -> None:
    shift = Shift.of(DISEASE, [SEX, VIEW], {"sex": 0.9, "view": 0.7}, prevalence=0.3, flip=["view"])
    shares = shift.shares()
    assert math.isclose(sum(shares.values()), 1)
    # the k-th class of sex agrees with the k-th of disease; view is turned round
    assert math.isclose(shares["yes", "female", "PA"], 0.3 * 0.9 * 0.7)
    assert math.isclose(shares["yes", "male", "PA"], 0.3 * 0.1 * 0.7)
    assert math.isclose(shares["no", "male", "AP"], 0.7 * 0.9 * 0.7)
    assert math.isclose(shares["no", "male", "PA"], 0.7 * 0.9 * 0.3)


@pytest.mark.parametrize("attributes", [1, 2])
def test_scale_is_the_best_one_that_a_search_finds(attributes: int) -> None:
    generator = np.random.default_rng(attributes)
    factors = [SEX, VIEW][:attributes]
    for _ in range(60):
        ratios = {factor.name: float(generator.choice([0.1, 0.5, 0.65, 0.8, 0.9, 0.95])) for factor in factors}
        shares = Shift.of(DISEASE, factors, ratios, prevalence=float(generator.choice([0.3, 0.5]))).shares()
        counts = {cell: int(generator.integers(1, 40)) for cell in shares}
        best = {cell: 0 for cell in shares}
        for total in range(sum(counts.values()) + 1 + len(counts)):
            sizes = {cell: math.floor(round(share * total, 9) + 0.5) for cell, share in shares.items()}
            if all(sizes[cell] <= counts[cell] for cell in shares):
                best = sizes
        assert feasible(counts, shares) == best
        floor = min(math.floor(round(counts[cell] / shares[cell], 9)) for cell in shares)
        assert all(best[cell] >= math.floor(shares[cell] * floor) for cell in shares)


def test_counts_of_abide_at_nine_to_one() -> None:
    counts = {("no", "male"): 378, ("no", "female"): 90, ("yes", "male"): 349, ("yes", "female"): 54}
    table = crossed(counts, (DISEASE, SEX))
    shift = Shift.of(DISEASE, [SEX], {"sex": 0.9}, flip=["sex"])
    drawn = draw(table, shift, 0, "a part")
    # 90 healthy women are 45 % of the part; the smallest cell everywhere would leave 40 people instead of 200
    assert cells(table.loc[list(drawn)], shift) == {
        ("no", "female"): 90,
        ("no", "male"): 10,
        ("yes", "female"): 10,
        ("yes", "male"): 90,
    }


def test_attributes_are_independent_given_the_target() -> None:
    factors = (DISEASE, SEX, VIEW)
    counts = dict(
        zip(itertools.product(*(f.classes for f in factors)), [700, 60, 400, 90, 50, 800, 30, 500], strict=True)
    )
    table = crossed(counts, factors)
    shift = Shift.of(DISEASE, [SEX, VIEW], {"sex": 0.8, "view": 0.7})
    drawn = table.loc[list(draw(table, shift, 3, "a part"))]
    total = len(drawn)
    for cell, n in cells(drawn, shift).items():
        assert abs(n - total * shift.shares()[cell]) <= 1
    for outcome, group in drawn.groupby("disease"):
        male, frontal = group["sex"] == "male", group["view"] == "PA"
        assert abs((male & frontal).mean() - male.mean() * frontal.mean()) < 2 / len(group), outcome


def test_who_is_drawn_depends_on_names_and_seed_alone() -> None:
    table = crossed(dict.fromkeys(itertools.product(DISEASE.classes, SEX.classes), 30), (DISEASE, SEX))
    shift = Shift.of(DISEASE, [SEX], {"sex": 0.8})
    drawn = draw(table, shift, 1, "a part")
    assert drawn == draw(table.sample(frac=1, random_state=0), shift, 1, "a part")
    assert drawn != draw(table, shift, 2, "a part")
    assert drawn == draw(table.loc[list(drawn)], shift, 5, "a part")  # drawing again takes everybody


def test_unknown_people_are_in_no_cell() -> None:
    codes = pd.DataFrame({"target": [0, 1, 1, 0, -1, 0], "sex": [0, 1, 0, -1, 1, 1]}, index=list("abcdef"))
    table = people(codes, (DISEASE, SEX))
    shift = Shift.of(DISEASE, [SEX], {"sex": 0.5})
    assert table.loc["b"].tolist() == ["yes", "female"] and table.loc["d", "sex"] is None
    assert set(cells(table, shift).values()) == {1}
    assert draw(table, shift, 0, "a part") == ("a", "b", "c", "f")


def test_an_empty_cell_that_needs_nobody_does_no_harm() -> None:
    agreeing = {2: 9, 1: 2, 0: 0}  # how many of two attributes agree, and how many people there are
    counts = {
        (y, a, b): agreeing[(a == SEX.classes[k]) + (b == VIEW.classes[k])]
        for (k, y), a, b in itertools.product(enumerate(DISEASE.classes), SEX.classes, VIEW.classes)
    }
    drawn = draw(
        crossed(counts, (DISEASE, SEX, VIEW)), Shift.of(DISEASE, [SEX, VIEW], {"sex": 0.9, "view": 0.9}), 0, ""
    )
    assert len(drawn) == 2 * (9 + 1 + 1 + 0)  # of 23: .405, .045 and .005 of it


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5])
def test_ratios_outside_are_refused_with_the_cells(ratio: float) -> None:
    table = crossed(dict.fromkeys(itertools.product(DISEASE.classes, SEX.classes), 7), (DISEASE, SEX))
    with pytest.raises(
        DataError, match=r"cannot draw it: the ratios \{'sex': .*must lie between 0 and 1(.|\n)*female +7"
    ):
        draw(table, Shift.of(DISEASE, [SEX], {"sex": ratio}), 0, "it")
    with pytest.raises(DataError, match="prevalence 0"):
        draw(table, Shift.of(DISEASE, [SEX], {"sex": 0.5}, prevalence=0), 0, "it")


def test_an_empty_cell_that_needs_somebody_is_refused_with_the_cells() -> None:
    table = crossed(
        {("no", "male"): 40, ("no", "female"): 0, ("yes", "male"): 30, ("yes", "female"): 50}, (DISEASE, SEX)
    )
    with pytest.raises(DataError) as error:
        draw(table, Shift.of(DISEASE, [SEX], {"sex": 0.9}), 0, "the train part")
    said = str(error.value)
    assert "cannot draw the train part: 1 of 4 cells have nobody but need somebody; take ratios nearer to 0.5" in said
    lines = [line.split() for line in said.splitlines()[1:]]
    assert lines[0] == ["disease", "sex", "people", "wanted", "share", "wanted", "people"]
    assert ["no", "female", "0", "0.05", "4"] in lines and ["no", "male", "40", "0.45", "40"] in lines


def test_a_part_that_rounds_to_full_agreement_is_refused() -> None:
    table = crossed({("no", "male"): 4, ("no", "female"): 1, ("yes", "male"): 3, ("yes", "female"): 4}, (DISEASE, SEX))
    with pytest.raises(DataError, match="cannot draw it: it would be so small that nobody in it is no and female"):
        draw(table, Shift.of(DISEASE, [SEX], {"sex": 0.9}), 0, "it")
    with pytest.raises(DataError, match="so small that nobody"):
        draw(table.iloc[:0], Shift.of(DISEASE, [SEX], {"sex": 0.9}), 0, "it")


def test_factors_must_have_two_classes_or_name_two() -> None:
    with pytest.raises(
        DataError, match=r"two classes of 'site'.*its classes are \['A', 'B', 'C'\].*\{site: \[A, B\]\}"
    ):
        Shift.of(DISEASE, [SITE], {"site": 0.8})
    with pytest.raises(DataError, match=r"found \['A', 'X'\]"):
        Shift.of(DISEASE, [SITE], {"site": 0.8}, classes={"site": ["A", "X"]})
    shift = Shift.of(DISEASE, [SITE], {"site": 0.8}, classes={"site": ["C", "A"]})
    assert math.isclose(shift.shares()["no", "C"], 0.4) and len(shift.shares()) == 4


# ------------------------------------------------------------------------------------------------------- datamodule
def agreement(data: CohortDataModule, subjects: set[str], name: str) -> tuple[int, int, int]:
    """Subjects, those whose attribute agrees with the target, and those with the second class of the target."""
    table = data.samples.strata([name]).loc[sorted(subjects)]
    return len(table), int((table["target"] == table[name]).sum()), int(table["target"].sum())


@pytest.mark.parametrize(
    "options", [{}, {"split": "holdout", "test_fraction": 0.4}, {"split": "leave_group_out", "held_out": "B"}]
)
def test_every_split_kind_is_shifted(options: dict) -> None:
    ratios = {"sex": 0.9, "view": 0.8}
    data, plain = Toy(shift=ratios, **options), Toy(stratify=list(ratios), **options)
    data.setup("fit")
    assert data.split.test == plain.split.test
    for part in ("train", "validation"):
        assert set(data.split.part(part)) < set(plain.split.part(part))
    assert len({*data.split.train, *data.split.validation, *data.split.test}) == sum(
        len(data.split.part(part)) for part in ("train", "validation", "test")
    )
    subject = dict(zip(data.samples.id, data.samples.subject, strict=True))
    groups = {name: {subject[name] for name in ids} for name, ids in data.test_sets.items()}
    assert list(groups) == ["same", "inverted", "balanced", "native"]
    parts = {"train": set(data.split.train), "validation": set(data.split.validation), **groups}
    for name, ratio in ratios.items():
        wanted = {"inverted": 1 - ratio, "balanced": 0.5}
        for part in ("train", "validation", "same", "inverted", "balanced"):
            n, agree, ill = agreement(data, parts[part], name)
            assert n > 10
            assert abs(agree - n * wanted.get(part, ratio)) <= 4 and abs(ill - n / 2) <= 4  # 8 cells, each rounded


def test_test_sets_hold_every_scan_of_their_people_within_the_test_part() -> None:
    data = Toy(shift={"sex": 0.9}, split="holdout")
    served = [name for batch in data.test_dataloader() for name in batch["id"]]
    assert sorted(served) == sorted(data.test_sets["native"]) and len(set(served)) == len(served)
    subject = dict(zip(data.samples.id, data.samples.subject, strict=True))
    for ids in data.test_sets.values():
        assert set(ids) <= set(served)
        members = {subject[name] for name in ids}
        assert set(ids) == {name for name in served if subject[name] in members}
    assert Toy().test_sets == {}


def test_who_is_left_out_is_counted(caplog) -> None:
    data = Toy(shift={"sex": 0.9}, split="holdout")
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
    everybody = sum(len(data.split.part(part)) for part in ("train", "validation", "test"))
    gone = sum(n for reason, n in data.skipped.items() if not reason.startswith("test"))
    assert everybody + gone == 600
    assert sum(n for reason, n in data.skipped.items() if "unknown" in reason) == 20
    assert "train subjects beyond the shift's ratios" in caplog.text


def test_prevalence_flip_and_classes() -> None:
    data = Toy(
        shift={"sex": 0.8, "site": 0.7}, shift_flip=["sex"], shift_classes={"site": ["C", "A"]}, shift_prevalence=0.3
    )
    table = data.samples.strata(["sex", "site"]).loc[list(data.split.train)]
    assert set(table["site"]) == {0, 2}
    assert abs(table["target"].mean() - 0.3) < 0.03
    assert abs((table["sex"] != table["target"]).mean() - 0.8) < 0.03
    assert abs((table["site"] == 2 * (1 - table["target"])).mean() - 0.7) < 0.03


def test_refusals_name_the_attributes() -> None:
    with pytest.raises(DataError, match=r"shift_flip names \['view'\], but the shifted attributes are \['sex'\]"):
        Toy(shift={"sex": 0.9}, shift_flip=["view"])
    with pytest.raises(DataError, match=r"cannot shift \['age'\]: the attributes are \['sex', 'view', 'site'\]"):
        Toy(shift={"age": 0.9}, stratify=[]).setup("fit")
    with pytest.raises(DataError, match="two classes of 'site'"):
        Toy(shift={"site": 0.9}).setup("fit")
    with pytest.raises(DataError, match="cannot draw the train part: the ratios"):
        Toy(shift={"sex": 1.0}).setup("fit")


def test_a_saved_shifted_split_is_used_again(tmp_path) -> None:
    data = Toy(shift={"sex": 0.9, "view": 0.8})
    data.split.save(tmp_path / "split.json")
    again = Toy(shift={"sex": 0.9, "view": 0.8}, split_file=str(tmp_path / "split.json"))
    assert again.split.fingerprint == data.split.fingerprint and again.test_sets == data.test_sets
