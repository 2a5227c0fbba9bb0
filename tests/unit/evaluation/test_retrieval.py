from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from medprism.cohort import Cohort
from medprism.evaluation.averages import Median, averages
from medprism.evaluation.bootstrap import resample_counts
from medprism.evaluation.retrieval import Pairs, reciprocal_rank, retrieval

MakeCohort = Callable[..., Cohort]


def make_pairs(n: int = 60, d: int = 8, noise: float = 0.7, seed: int = 0) -> tuple[Pairs, np.ndarray]:
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, n)
    image = rng.normal(size=(n, d)).astype(np.float32) + 2 * np.eye(d, dtype=np.float32)[classes]
    text = image + noise * rng.normal(size=(n, d)).astype(np.float32)
    ids = [f"s{k:05d}" for k in range(n)]
    return Pairs(ids, [f"p{k // 2:05d}" for k in range(n)], list(ids), image, text), classes


def test_perfect_pairs(cohort_of: MakeCohort) -> None:
    n = 30
    vectors = np.eye(n, dtype=np.float32)
    names = [str(k) for k in range(n)]
    found, notes = retrieval(Pairs(names, names, names, vectors, vectors), cohort_of(), None, resamples=20)
    for way in ("image_to_text", "text_to_image"):
        for name in ("recall_at_1", "recall_at_10", "median_rank", "reciprocal_rank"):
            assert found[way][name] == {"value": 1.0, "low": 1.0, "high": 1.0}
        assert found[way]["precision_at_1"] == {"value": None, "low": None, "high": None}
        assert found[way]["chance"]["recall_at_5"]["value"] == pytest.approx(5 / n)
        assert found[way]["chance"]["median_rank"]["value"] == (n + 1) / 2
    assert found["reciprocal_rank"]["value"] == 1.0 and found["n"] == n
    assert notes == [f"retrieval: {n} of {n} samples have no known class; left out of precision"]


def test_against_loops_with_identical_texts_and_unknown_classes(cohort_of: MakeCohort) -> None:
    pairs, classes = make_pairs(40)
    keys = [f"text {k % 25}" for k in range(40)]  # 15 texts are written twice
    text = np.stack([pairs.text[int(key.split()[1])] for key in keys])
    pairs = Pairs(pairs.ids, pairs.subjects, keys, pairs.image, text)
    classes[::7] = -1
    found, notes = retrieval(pairs, cohort_of(("a", "b", "c")), classes, resamples=0)
    image = pairs.image / np.linalg.norm(pairs.image, axis=1, keepdims=True)
    unit = text / np.linalg.norm(text, axis=1, keepdims=True)
    similar = image @ unit.T
    for way, matrix in (("image_to_text", similar), ("text_to_image", similar.T)):
        hits, ranks, shares = [], [], []
        for q in range(40):
            # one of the two alike comes first, whichever: both are right
            order = np.argsort(-matrix[q], kind="stable")
            right = [keys[item] == keys[q] for item in order]
            ranks.append(right.index(True) + 1)
            hits.append(any(right[:5]))
            if classes[q] >= 0:
                known = [item for item in order if classes[item] >= 0]
                shares.append(np.mean([classes[item] == classes[q] for item in known[:1]]))
        if way == "text_to_image":  # no two images are alike, so that nothing ties
            assert found[way]["precision_at_1"]["value"] == pytest.approx(np.mean(shares))
        assert found[way]["recall_at_5"]["value"] == pytest.approx(np.mean(hits))
        assert found[way]["median_rank"]["value"] == np.median(ranks)
        # two texts alike tie with nothing else
        assert found[way]["reciprocal_rank"]["value"] == pytest.approx(np.mean(1 / np.array(ranks)))
    assert "retrieval: 15 of 40 texts read like an earlier one; any of those alike is right" in notes
    assert "retrieval: 6 of 40 samples have no known class; left out of precision" in notes


def test_constant_vectors_are_at_chance(cohort_of: MakeCohort) -> None:
    pairs, classes = make_pairs(50)
    same = np.ones((50, 4), np.float32) / 3
    blind = Pairs(pairs.ids, pairs.subjects, pairs.keys, same, same)
    found, _ = retrieval(blind, cohort_of(("a", "b", "c")), classes, {"b": same[:2]}, resamples=0)
    for branch in (found["image_to_text"], found["text_to_image"], found["query_to_image"]):
        for name, level in branch["chance"].items():
            assert branch[name]["value"] == pytest.approx(level["value"]), name
    assert found["reciprocal_rank"]["value"] == pytest.approx(found["chance"]["reciprocal_rank"]["value"])
    assert found["query_to_image"]["precision_at_5"]["value"] == pytest.approx((classes == 1).mean())


def test_what_cannot_be_measured_is_said(cohort_of: MakeCohort) -> None:
    pairs, classes = make_pairs(20)
    keys = ["" if k < 13 else key for k, key in enumerate(pairs.keys)]
    few = Pairs(pairs.ids, pairs.subjects, keys, pairs.image, pairs.text)
    cohort = cohort_of(("a", "b", "c"))
    found, notes = retrieval(few, cohort, classes, resamples=10)
    assert found["n"] == 7 and found["image_to_text"]["recall_at_10"]["value"] is None
    assert found["image_to_text"]["recall_at_5"]["value"] is not None
    assert notes[0] == "retrieval: 13 of 20 samples have no text; left out"
    assert "retrieval: only 7 samples, so that numbers at greater depths are not defined" in notes
    none = Pairs(pairs.ids, pairs.subjects, [""] * 20, pairs.image, np.zeros((20, 0), np.float32))
    found, notes = retrieval(none, cohort, classes, {"d": pairs.image[:1]}, resamples=10)
    assert found == {"query_to_image": {}} and reciprocal_rank(none) is None
    assert notes[0] == "retrieval: queries for ['d'] are left out; the classes are ['a', 'b', 'c']"
    assert notes[-1] == "retrieval: fewer than two samples have a text; pairs are not measured"


def test_intervals_are_over_subjects(cohort_of: MakeCohort) -> None:
    pairs, classes = make_pairs()
    found, _ = retrieval(pairs, cohort_of(("a", "b", "c")), classes, {"a": pairs.text[:3]}, resamples=200)
    sizes = np.full(30, 2)
    counts = resample_counts(sizes, range(200), seed=0)
    from medprism.evaluation.retrieval import both_ranks

    expected = both_ranks(pairs)[
        "image_to_text"
    ].expected  # nothing ties, so that 1 / rank is that of the expected rank
    drawn = [np.repeat(expected, np.repeat(row, 2).astype(int)) for row in counts]
    means, medians = [(1 / each).mean() for each in drawn], [np.median(each) for each in drawn]
    ends = np.quantile(means, [0.025, 0.975])
    number = found["image_to_text"]["reciprocal_rank"]
    assert (number["low"], number["high"]) == pytest.approx(tuple(ends))
    number = found["image_to_text"]["median_rank"]
    assert (number["low"], number["high"]) == pytest.approx(tuple(np.quantile(medians, [0.025, 0.975])))
    number = found["query_to_image"]["precision_at_10"]
    assert number["low"] < number["value"] < number["high"]
    assert found["reciprocal_rank"]["value"] == pytest.approx(reciprocal_rank(pairs))


def test_means_and_medians_of_resamples() -> None:
    scores, people = np.array([3.0, 1.0, 2.0, 5.0]), np.array([0, 1, 1, 2])
    counts = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 3]])
    assert Median(scores, people)(counts).tolist() == [2.5, 2.5, 5.0]
    found = averages({("x",): np.array([1, np.nan, 0]), ("y",): np.full(3, np.nan)}, ["a", "b", "c"], 50, 0.9, 0)
    assert found["x",]["value"] == 0.5 and found["x",]["low"] == 0
    assert found["y",] == {"value": None, "low": None, "high": None}


def test_five_thousand_pairs_are_quick(cohort_of: MakeCohort) -> None:
    pairs, classes = make_pairs(5000, 64)
    start = time.process_time()
    found, _ = retrieval(pairs, cohort_of(("a", "b", "c")), classes, {"a": pairs.text[:40]}, resamples=200)
    assert time.process_time() - start < 30  # about 4 s of one core, which others may share
    assert found["n"] == 5000
