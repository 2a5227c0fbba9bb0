import numpy as np
import pytest
from made_results import results_of

from medprism.benchmark.fronts import PARETO_COLUMNS, SHIFT, fronts, pareto_front

ODDS = "sex/equalized_odds_difference"


def plain_front(performance, gap) -> list[bool]:
    """The definition, word for word."""
    found = []
    for p, g in zip(performance, gap, strict=True):
        beaten = False
        for q, h in zip(performance, gap, strict=True):
            if q >= p and h <= g and (q > p or h < g):
                beaten = True
        found.append(not beaten)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_as_defined(seed):
    # few distinct values, so that there are ties
    performance, gap = np.random.default_rng(seed).integers(0, 4, (2, 12)).astype(float)
    assert pareto_front(performance, gap).tolist() == plain_front(performance, gap)


def test_closed_examples():
    assert pareto_front(np.array([0.9, 0.8, 0.7]), np.array([0.3, 0.1, 0.2])).tolist() == [True, True, False]
    assert pareto_front(np.array([0.9, 0.9]), np.array([0.1, 0.1])).tolist() == [True, True]  # twins beat neither
    assert pareto_front(np.array([0.9, 0.9]), np.array([0.1, 0.2])).tolist() == [True, False]
    assert pareto_front(np.array([]), np.array([])).tolist() == []


def with_gaps(values: dict[str, tuple[float, float]], metric="accuracy", gap=ODDS, **options):
    means = {("a", "test", m, metric): v for m, (v, _) in values.items()}
    means |= {("a", "test", m, gap): g for m, (_, g) in values.items()}
    return fronts(results_of(means, shown=(metric,), **options)).set_index("method")


def test_incomplete_cells_and_the_ceiling_are_shown_and_not_compared():
    values = {"oracle": (0.99, 0.0), "half": (0.95, 0.01), "erm": (0.9, 0.3), "fair": (0.8, 0.1), "poor": (0.7, 0.2)}
    found = with_gaps(values, ceiling="oracle", incomplete=[("a", "half")])
    assert found["front"].to_dict() == {"oracle": False, "half": False, "erm": True, "fair": True, "poor": False}
    assert found["compared"].to_dict() == {"oracle": False, "half": False, "erm": True, "fair": True, "poor": True}
    assert (found["gap"] == ODDS).all() and found["gap value"]["fair"] == 0.1


def test_of_errors_less_is_better():
    found = with_gaps({"erm": (4.0, 0.3), "fair": (5.0, 0.1), "poor": (6.0, 0.2)}, "mae", "sex/mae_difference")
    assert found["front"].to_dict() == {"erm": True, "fair": True, "poor": False}


@pytest.mark.parametrize("third", ["balanced", "native"])
def test_the_gap_of_shifted_sets(third):
    sets = {"same": (0.95, 0.9, 0.5), "inverted": (0.3, 0.8, 0.6), third: (0.7, 0.85, 0.55)}
    means = {("a", s, m, "accuracy"): v for s, row in sets.items() for m, v in zip("xyz", row, strict=True)}
    del means["a", "inverted", "z", "accuracy"]  # what is not defined on one of the sets has no gap
    found = fronts(results_of(means))
    assert found["method"].tolist() == ["x", "y"] and (found["gap"] == SHIFT).all()
    assert found["gap value"].tolist() == pytest.approx([0.65, 0.1])
    where = "balanced" if third == "balanced" else "inverted"
    assert (found["set"] == where).all() and found["value"].tolist() == list(sets[where][:2])
    assert found["front"].tolist() == [False, True]


def test_a_method_that_is_better_where_the_shortcut_is_turned_round_has_a_gap_too():
    means = {("a", s, m, "accuracy"): v for s, row in {"same": (0.5, 0.7), "inverted": (0.8, 0.7)}.items()
             for m, v in zip("xy", row, strict=True)}  # fmt: skip
    assert fronts(results_of(means))["gap value"].tolist() == pytest.approx([0.3, 0.0])


def test_without_gaps_there_is_nothing():
    found = fronts(results_of({("a", "test", "erm", "accuracy"): 0.5}))
    assert found.empty and list(found.columns) == list(PARETO_COLUMNS)
