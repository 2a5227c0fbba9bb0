from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from medprism.evaluation.ranking import DEPTHS, QueryPrecision, precision, ranks

Floats = np.ndarray


def tied_vectors(rng: np.random.Generator, n: int) -> Floats:
    """Few distinct directions, so that many similarities tie."""
    return np.eye(3, dtype=np.float32)[rng.integers(0, 3, n)] * rng.uniform(0.5, 2)


def by_every_order(similar: Floats, right: Floats) -> tuple[tuple[float, float], dict[int, float], dict[int, float]]:
    """Mean over all orders of the tied: rank and 1 / rank of the first right one, whether it is among k, share."""
    n = len(similar)
    first, recall, share = [], {k: [] for k in DEPTHS}, {k: [] for k in DEPTHS}
    for order in permutations(range(n)):
        ranked = sorted(order, key=lambda item: -similar[item])
        found = [right[item] for item in ranked]
        first.append(found.index(True) + 1 if any(found) else np.nan)
        for k in DEPTHS:
            recall[k].append(any(found[:k]))
            share[k].append(sum(found[:k]) / k if n >= k else np.nan)
    mean = {k: (float(np.mean(recall[k])), float(np.mean(share[k]))) for k in DEPTHS}
    ranked = float(np.mean(first)), float(np.mean(1 / np.array(first)))
    return ranked, {k: each[0] for k, each in mean.items()}, {k: each[1] for k, each in mean.items()}


@pytest.mark.parametrize("seed", range(3))
def test_ties_are_the_mean_over_every_order(seed: int) -> None:
    rng = np.random.default_rng(seed)
    queries, gallery, weight = tied_vectors(rng, 4), tied_vectors(rng, 4), rng.integers(1, 3, 4)
    expanded = np.repeat(np.arange(4), weight)[:6]
    weight = np.bincount(expanded, minlength=4)
    queries, gallery, weight = queries, gallery[weight > 0], weight[weight > 0]
    expanded = np.repeat(np.arange(len(weight)), weight)
    query_keys = rng.integers(0, len(weight), 4)
    keys = np.arange(len(weight))
    mass = np.zeros((len(weight), 2))
    sample_class = rng.integers(0, 2, len(expanded))
    np.add.at(mass, (expanded, sample_class), 1)
    found = ranks(queries, gallery, query_keys, keys, weight)
    shares = precision(queries, gallery, np.array([0, 1, 0, 1]), mass)
    for q in range(4):
        unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
        similar = (unit @ (queries[q] / np.linalg.norm(queries[q])))[expanded].round(4)
        rank, recall, _ = by_every_order(similar, keys[expanded] == query_keys[q])
        assert (found.expected[q], found.reciprocal[q]) == pytest.approx(rank)
        for k in DEPTHS:
            assert found.recall(k)[q] == pytest.approx(recall[k])
        share = by_every_order(similar, sample_class == q % 2)[2]
        np.testing.assert_allclose(shares[q], [share[k] for k in DEPTHS], atol=1e-12)


def test_several_right_items_of_one_query() -> None:
    rng = np.random.default_rng(5)
    queries, gallery = tied_vectors(rng, 3), tied_vectors(rng, 6)
    keys, query_keys = np.array([0, 1, 1, 0, 1, 0]), np.array([0, 1, 0])
    found = ranks(queries, gallery, query_keys, keys, np.ones(6))
    for q in range(3):
        similar = (gallery @ queries[q]).round(4)
        rank, recall, _ = by_every_order(similar, keys == query_keys[q])
        assert (found.expected[q], found.reciprocal[q]) == pytest.approx(rank)
        assert [found.recall(k)[q] for k in DEPTHS] == pytest.approx([recall[k] for k in DEPTHS])


def test_closed_forms() -> None:
    n = 40
    vectors = np.eye(n, dtype=np.float32)
    perfect = ranks(vectors, vectors, np.arange(n), np.arange(n), np.ones(n))
    assert perfect.expected.tolist() == [1.0] * n and perfect.recall(1).tolist() == [1.0] * n
    assert perfect.reciprocal.tolist() == [1.0] * n
    # constant vectors, up to rounding: the rank of a random order, and recall k / n
    constant = np.random.default_rng(0).normal(size=(1, 16)) + np.zeros((n, 1))
    constant = (constant * np.random.default_rng(1).uniform(0.1, 9, (n, 1))).astype(np.float32)
    blind = ranks(constant, constant, np.arange(n), np.arange(n), np.ones(n))
    np.testing.assert_allclose(blind.expected, (n + 1) / 2)
    np.testing.assert_allclose(blind.recall(5), 5 / n)
    np.testing.assert_allclose(blind.reciprocal, (1 / np.arange(1, n + 1)).mean())
    classes = np.arange(n) % 4
    np.testing.assert_allclose(precision(constant, constant, classes, np.eye(4)[classes]), 0.25)
    # too small a gallery has no precision at that depth
    small = precision(vectors[:, :4], np.eye(4, dtype=np.float32), classes, np.eye(4))
    assert np.isnan(small[:, 1:]).all() and small[:4, 0].tolist() == [1.0] * 4


def test_distinct_random_vectors_agree_with_sorting() -> None:
    rng = np.random.default_rng(3)
    queries, gallery = rng.normal(size=(530, 8)).astype(np.float32), rng.normal(size=(90, 8)).astype(np.float32)
    keys, classes, of_query = rng.integers(0, 90, 530), rng.integers(0, 3, 90), rng.integers(0, 3, 530)
    found = ranks(queries, gallery, keys, np.arange(90), np.ones(90))  # more than one chunk
    shares = precision(queries, gallery, of_query, np.eye(3)[classes])
    unit = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    for q in (0, 100, 511, 512, 529):
        order = np.argsort(-(unit @ queries[q]))
        assert found.expected[q] == order.tolist().index(keys[q]) + 1
        expected = [(classes[order[:k]] == of_query[q]).mean() for k in DEPTHS]
        np.testing.assert_allclose(shares[q], expected)


@pytest.mark.parametrize("n", [30, 450])
def test_queries_by_class_under_resampling(n: int) -> None:
    rng = np.random.default_rng(n)
    images = np.round(rng.normal(size=(n, 3)), 0).astype(np.float32) + 0.1  # on a grid: many ties
    classes, subjects = rng.integers(0, 3, n), np.arange(n) // 3
    queries, of_query = rng.normal(size=(4, 3)).astype(np.float32), np.array([0, 1, 2, 2])
    statistic = QueryPrecision(queries, images, of_query, classes, subjects)
    people = n // 3
    counts = np.stack([np.ones(people), np.bincount(rng.integers(0, people, people), minlength=people)])
    counts = np.vstack([counts, np.eye(people)[:1]])  # three images alone
    found = statistic(counts.astype(np.float32))
    plain = precision(queries, images, of_query, np.eye(3)[classes])
    for column, k in enumerate(DEPTHS):
        assert found[f"precision_at_{k}",][0] == pytest.approx(plain[:, column].mean())
        rows = np.repeat(np.arange(n), counts[1][subjects].astype(int))
        again = precision(queries, images[rows], of_query, np.eye(3)[classes[rows]])
        assert found[f"precision_at_{k}",][1] == pytest.approx(again[:, column].mean())
        assert np.isnan(found[f"precision_at_{k}",][2]) == (k > 3)
