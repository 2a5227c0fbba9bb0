import numpy as np
import pytest

from medprism.data.errors import DataError
from medprism.data.samples import Samples, binned, coded, inferred_classes


def test_duplicate_ids_are_named() -> None:
    with pytest.raises(DataError, match="1 sample ids occur more than once: b"):
        Samples(("a", "b", "b"), ("a", "b", "b"), np.zeros(3, dtype=np.int64), {})


def test_lengths_must_agree() -> None:
    with pytest.raises(DataError, match="sex"):
        Samples(("a", "b"), ("a", "b"), np.zeros(2, dtype=np.int64), {"sex": np.zeros(3, dtype=np.int64)})


def test_subject_counts_with_its_largest_code() -> None:
    samples = Samples(("a1", "a2", "b1"), ("a", "a", "b"), np.array([0, 1, 0]), {"sex": np.array([-1, 0, -1])})
    assert samples.strata(["sex"]).to_dict("index") == {"a": {"target": 1, "sex": 0}, "b": {"target": 0, "sex": -1}}
    assert samples.rows(["a"]).tolist() == [0, 1]


def test_many_labels_count_with_the_rarest_one() -> None:
    labels = np.array([[1, 1], [1, 0], [1, 0], [0, 0]], dtype=np.float32)
    samples = Samples(tuple("abcd"), tuple("abcd"), labels, {})
    assert samples.strata([])["target"].tolist() == [1, 0, 0, 2]


def test_values_count_with_their_quartile() -> None:
    samples = Samples(tuple("abcdefgh"), tuple("abcdefgh"), np.arange(8, dtype=np.float32), {})
    assert samples.strata([])["target"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_unknown_class_names_its_row() -> None:
    assert coded(["F", "", "M", "n/a"], ["M", "F"], "sex", "t.csv").tolist() == [1, -1, 0, -1]
    with pytest.raises(DataError, match=r"t\.csv, row 3: column 'sex' holds 'X'"):
        coded(["F", "X"], ["M", "F"], "sex", "t.csv")


def test_numbers_sort_as_numbers() -> None:
    assert inferred_classes(["10", "9", "", "10"]) == ("9", "10")
    assert inferred_classes(["b", "a", "10"]) == ("10", "a", "b")


def test_bins_are_half_open_but_the_last() -> None:
    codes, names = binned([5.9, 6, 11.9, 12, 18, 65, 65.1, None, "x"], [6, 12, 18, 65])
    assert codes.tolist() == [-1, 0, 0, 1, 2, 2, -1, -1, -1]
    assert names == ("6 to 12", "12 to 18", "18 to 65")
    with pytest.raises(DataError, match="increasing"):
        binned([1], [6, 6])
