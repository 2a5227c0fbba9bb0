import numpy as np
import pytest
from made_results import results_of

from medprism.benchmark.ranks import HEADLINE, RANK_COLUMNS, alike, critical_difference, friedman, mean_ranks, ranks


@pytest.mark.parametrize(
    ("methods", "quantile"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (10, 3.164)]
)
def test_the_critical_difference_has_the_published_quantiles(methods, quantile):
    """Table 5 of Demsar (JMLR 7, 2006)."""
    found = critical_difference(methods, 30) / np.sqrt(methods * (methods + 1) / (6 * 30))
    assert found == pytest.approx(quantile, abs=1e-3)


def plain_ranks(values: np.ndarray) -> list[float]:
    """A method's rank is one more than the number of better ones, and half a place for each other with the same."""
    sums = [0.0] * values.shape[1]
    for row in values:
        for j, own in enumerate(row):
            sums[j] += 1 + sum(other > own for other in row) + (sum(other == own for other in row) - 1) / 2
    return [total / len(values) for total in sums]


@pytest.mark.parametrize("seed", range(5))
def test_mean_ranks_and_friedman_by_hand(seed):
    values = np.random.default_rng(seed).integers(0, 5, (6, 4)).astype(float)
    assert mean_ranks(values).tolist() == pytest.approx(plain_ranks(values))
    assert mean_ranks(values, lower=True).tolist() == pytest.approx(plain_ranks(-values))
    values = np.random.default_rng(seed).random((6, 4))  # without ties Friedman's statistic is a plain sum
    n, k = values.shape
    plain = 12 * n / (k * (k + 1)) * (sum(r**2 for r in plain_ranks(values)) - k * (k + 1) ** 2 / 4)
    assert friedman(values)[0] == pytest.approx(plain)


def test_friedman_of_ties_everywhere_is_not_defined():
    assert np.isnan(friedman(np.ones((4, 3)))).all()


def test_runs_of_methods_that_do_not_differ():
    assert alike(np.array([1.0, 1.5, 2.0, 4.0]), 1.0) == [(0, 2)]
    assert alike(np.array([1.0, 2.5, 4.0]), 1.0) == []
    assert alike(np.array([1.0, 1.8, 2.6, 3.4]), 1.0) == [(0, 1), (1, 2), (2, 3)]


METHODS = ("erm", "fair", "good")


def over(cohorts: str, where="test", methods=METHODS, values=(0.5, 0.6, 0.7)):
    return {(c, where, m, "accuracy"): v + ord(c) / 1e4 for c in cohorts for m, v in zip(methods, values, strict=True)}


def test_ranks_over_cohorts():
    table, notes = ranks(results_of(over("abcd")))
    assert list(table.columns) == list(RANK_COLUMNS) and not notes
    assert table["method"].tolist() == ["good", "fair", "erm"] and table["mean rank"].tolist() == [1, 2, 3]
    first = table.iloc[0]
    assert (first["methods"], first["cohorts"], first["friedman"]) == (3, 4, pytest.approx(8))
    assert first["critical difference"] == pytest.approx(2.343 * np.sqrt(12 / 24), abs=1e-3)


def test_incomplete_cohorts_are_left_out_and_named():
    table, notes = ranks(results_of(over("abcd"), incomplete=[("b", "fair")]))
    assert (table["cohorts"] == 3).all()
    assert notes == ["test: accuracy: without b, where not all methods are complete."]
    table, notes = ranks(results_of(over("abc"), incomplete=[("b", "fair")]))
    assert table.empty and list(table.columns) == list(RANK_COLUMNS)
    assert notes == ["test: accuracy: 2 cohorts with 3 methods that all of them have complete; ranks need 3 of each."]


def test_the_ceiling_and_methods_of_some_cohorts_alone_are_not_ranked():
    means = over("abc", methods=("oracle", "erm", "fair"), values=(0.9, 0.5, 0.6)) | over(
        "abc", methods=("good",), values=(0.7,)
    )
    means |= over("ab", methods=("special",), values=(0.8,))
    table, _ = ranks(results_of(means, ceiling="oracle"))
    assert table["method"].tolist() == ["good", "fair", "erm"]


def test_cohorts_with_and_without_shifted_sets_are_ranked_on_the_set_that_says_most():
    means = over("abc") | over("de", "balanced") | over("de", "inverted", values=(0.1, 0.3, 0.2))
    table, notes = ranks(results_of(means))
    assert table.groupby("set")["cohorts"].first().to_dict() == {HEADLINE: 5, "test": 3}
    assert [note.split(":")[0] for note in notes] == ["balanced", "inverted"]


def test_of_errors_less_is_better():
    means = {(c, s, m, "mae"): v for (c, s, m, _), v in over("abc").items()}
    assert ranks(results_of(means, shown=("mae",)))[0]["method"].tolist() == ["erm", "fair", "good"]
