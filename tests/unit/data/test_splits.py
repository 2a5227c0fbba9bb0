import json
import logging

import numpy as np
import pandas as pd
import pytest

from medprism.data.errors import DataError
from medprism.data.splits import Split, holdout, kfold, leave_group_out


def people(n: int = 200, seed: int = 0) -> pd.DataFrame:
    generator = np.random.default_rng(seed)
    codes = {"target": generator.integers(2, size=n), "sex": generator.integers(-1, 2, size=n)}
    return pd.DataFrame(codes, index=[f"s{k:03d}" for k in range(n)])


def everyone(split: Split) -> list[str]:
    return sorted((*split.train, *split.validation, *split.test))


def test_overlap_is_refused_and_named() -> None:
    with pytest.raises(DataError, match=r"s1.*\['train', 'test'\]"):
        Split(("s0", "s1"), ("s2",), ("s1",))
    with pytest.raises(DataError, match="s0"):
        Split(("s0", "s0"), ("s2",), ("s1",))


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_empty_part_is_refused(part: str) -> None:
    parts = {"train": ("a",), "validation": ("b",), "test": ("c",)} | {part: ()}
    with pytest.raises(DataError, match=part):
        Split(**parts)


def test_fingerprint_ignores_order_but_not_place() -> None:
    split = Split(("a", "b"), ("c",), ("d",))
    assert split.fingerprint == Split(("b", "a"), ("c",), ("d",)).fingerprint
    assert split.fingerprint != Split(("a", "b"), ("d",), ("c",)).fingerprint
    # The value itself is in saved files, so it must not drift from one version to the next.
    assert split.fingerprint == "27f03118175df38edfdb5332fee0ce455dc4ca0c8b75798d62138d8c586ea266"


def test_saved_split_comes_back(tmp_path) -> None:
    split = kfold(people())
    split.save(tmp_path / "deep" / "split.json")
    assert Split.load(tmp_path / "deep" / "split.json", people().index) == split


def test_changed_file_is_refused(tmp_path) -> None:
    path = tmp_path / "split.json"
    Split(("a", "b"), ("c",), ("d",)).save(path)
    content = json.loads(path.read_text())
    content["train"], content["test"] = ["a", "d"], ["b"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="was changed after it was saved"):
        Split.load(path, "abcd")


def test_unknown_subjects_are_refused_and_named(tmp_path) -> None:
    Split(("a", "b"), ("c",), ("d",)).save(tmp_path / "split.json")
    with pytest.raises(DataError, match="1 subjects that the cohort does not have: c"):
        Split.load(tmp_path / "split.json", "abd")


@pytest.mark.parametrize("text", ["not json", "[]", '{"train": ["a"]}'])
def test_other_files_are_refused(tmp_path, text: str) -> None:
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(DataError, match="is no saved split"):
        Split.load(tmp_path / "split.json", "a")
    with pytest.raises(DataError, match="does not exist"):
        Split.load(tmp_path / "none.json", "a")


def test_folds_cover_everybody_once() -> None:
    table = people()
    tests = [kfold(table, folds=5, fold=fold, seed=3) for fold in range(5)]
    assert sorted(name for split in tests for name in split.test) == sorted(table.index)
    assert all(everyone(split) == sorted(table.index) for split in tests)


@pytest.mark.parametrize("make", [holdout, kfold])
def test_parts_have_the_strata_of_the_whole(make) -> None:
    table = people(600)
    split = make(table, seed=1)
    whole = table.value_counts(normalize=True)
    for part in (split.train, split.validation, split.test):
        shares = table.loc[list(part)].value_counts(normalize=True)
        assert (shares - whole).abs().max() < 0.02
    # An unknown sex is a stratum of its own.
    assert {code for _, code in table.loc[list(split.test)].value_counts().index} == {-1, 0, 1}


@pytest.mark.parametrize("make", [holdout, kfold])
def test_split_depends_on_seed_and_not_on_row_order(make) -> None:
    table = people()
    assert make(table, seed=1) == make(table.sample(frac=1, random_state=0), seed=1)
    assert make(table, seed=1).test != make(table, seed=2).test


def test_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    kfold(people())
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002


def test_fractions_are_kept() -> None:
    split = holdout(people(200), test_fraction=0.2, validation_fraction=0.15)
    assert [len(part) for part in (split.train, split.validation, split.test)] == [136, 24, 40]


def test_small_strata_are_merged_and_reported(caplog) -> None:
    table = people(60)
    table["site"] = np.arange(60) % 29
    with caplog.at_level(logging.WARNING):
        split = kfold(table, folds=5)
    assert everyone(split) == sorted(table.index)
    assert "strata of target x sex x site" in caplog.text and "too few to stratify 5 folds" in caplog.text
    # The first column is kept balanced although the last one cannot be.
    whole = table["target"].mean()
    assert abs(table.loc[list(split.test), "target"].mean() - whole) < 0.1


@pytest.mark.parametrize("n", [6, 7, 9, 17])
@pytest.mark.parametrize("seed", range(5))
def test_tiny_cohorts_never_crash(n: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    table = pd.DataFrame({"target": generator.integers(3, size=n), "sex": generator.integers(-1, 2, size=n)})
    table.index = pd.Index([f"s{k}" for k in range(n)])
    assert everyone(holdout(table, seed=seed)) == sorted(table.index)
    assert everyone(holdout(table, 0.6, 0.4, seed=seed)) == sorted(table.index)
    tests = [kfold(table, folds=3, fold=fold, seed=seed).test for fold in range(3)]
    assert sorted(name for test in tests for name in test) == sorted(table.index)


def test_impossible_folds_are_refused() -> None:
    with pytest.raises(DataError, match="no fold 5 of 5"):
        kfold(people(), folds=5, fold=5)
    with pytest.raises(DataError, match="3 subjects cannot make 5 folds"):
        kfold(people(3))
    with pytest.raises(DataError, match="test_fraction is 1"):
        holdout(people(), test_fraction=1)
    with pytest.raises(DataError, match="s0"):
        holdout(pd.DataFrame({"target": [0, 1, 0]}, index=["s0", "s0", "s1"]))


def test_held_out_group_is_never_seen() -> None:
    table = people(90)
    groups = {name: {"ABC"[k % 3]} for k, name in enumerate(table.index)}
    groups["s000"] = {"B", "C"}  # scanned at two sites: seen at C, so never trained on
    split = leave_group_out(table, groups, "C")
    assert all("C" in groups[name] for name in split.test) and "s000" in split.test
    assert not any("C" in groups[name] for name in (*split.train, *split.validation))
    assert everyone(split) == sorted(table.index)
    with pytest.raises(DataError, match=r"group 'D'.*\['A', 'B', 'C'\]"):
        leave_group_out(table, groups, "D")
