from __future__ import annotations

import numpy as np
import pytest
import torch
from fairlearn.metrics import equalized_odds_difference
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medprism.data.errors import DataError
from medprism.datamodules.simulated import SimulatedConnectomes, crossed


def small(**options: object) -> SimulatedConnectomes:
    return SimulatedConnectomes(**{"subjects": 60, "regions": 20, "volumes": 40, "split": "holdout"} | options)


def edges(data: SimulatedConnectomes, regions: tuple[int, ...] | None = None) -> np.ndarray:
    matrices = data.reader(False)(torch.arange(len(data.samples)))["connectome"].numpy()
    chosen = np.array(regions if regions is not None else range(matrices.shape[1]))
    rows, columns = np.triu_indices(len(chosen), 1)
    return matrices[:, chosen[rows], chosen[columns]]


def phi(data: SimulatedConnectomes, part: str) -> float:
    rows = data.rows(part)
    return float(np.corrcoef(data.samples.target[rows], data.samples.attributes["sex"][rows])[0, 1])


@pytest.mark.parametrize("correlation", [-1, -0.5, 0, 0.8, 1])
def test_crossed_variables_are_balanced_with_the_asked_phi(correlation: float) -> None:
    first, second = crossed(400, correlation, np.random.default_rng(0))
    assert first.mean() == second.mean() == 0.5
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(correlation, abs=0.01)


@pytest.mark.parametrize(
    "options", [{}, {"split": "kfold", "fold": 2}, {"split": "leave_group_out", "held_out": "site 2"}]
)
def test_correlation_is_as_asked_in_each_part(options: dict) -> None:
    data = small(subjects=600, regions=12, volumes=20, correlation_train=0.8, correlation_test=-0.2, **options)
    assert phi(data, "train") == pytest.approx(0.8, abs=0.03)
    assert phi(data, "validation") == pytest.approx(0.8, abs=0.08)
    assert phi(data, "test") == pytest.approx(-0.2, abs=0.05)
    assert abs(data.samples.target[data.rows("test")].mean() - 0.5) < 0.02


def test_plain_model_predicts_disease_and_leans_on_sex() -> None:
    data = SimulatedConnectomes(split="holdout")
    x, y, sex = edges(data), data.samples.target, data.samples.attributes["sex"]
    train, test = data.rows("train"), data.rows("test")

    def scores(x: np.ndarray) -> np.ndarray:
        x = (x - x[train].mean(0)) / x[train].std(0)
        return LogisticRegression(C=0.01, max_iter=1000).fit(x[train], y[train]).decision_function(x[test])

    whole, block = scores(x), scores(edges(data, data.planted["disease"]))
    bias = [equalized_odds_difference(y[test], s > 0, sensitive_features=sex[test]) for s in (whole, block)]
    assert 0.82 < roc_auc_score(y[test], whole) < 0.96
    assert bias[0] > 0.25
    # The truth is in block P: who looks there alone is better and fairer.
    assert roc_auc_score(y[test], block) > roc_auc_score(y[test], whole)
    assert bias[1] < bias[0]


@pytest.mark.parametrize("factor", ["disease", "sex"])
def test_each_factor_changes_its_block_alone(factor: str) -> None:
    data = small(subjects=400, correlation_train=0.0, effect=0.4, sex_effect=0.4, site_effect=0.0)
    matrices = data.reader(False)(torch.arange(400))["connectome"].numpy()
    codes = data.samples.target if factor == "disease" else data.samples.attributes["sex"]
    difference = np.abs(matrices[codes == 1].mean(0) - matrices[codes == 0].mean(0))
    inside = np.zeros((20, 20), dtype=bool)
    block = data.planted[factor]
    inside[np.ix_(block, block)] = True
    off = ~np.eye(20, dtype=bool)
    assert difference[inside & off].min() > 2 * difference[~inside & off].max()
    assert not set(data.planted["disease"]) & set(data.planted["sex"])


def test_cohort_says_that_it_is_simulated() -> None:
    cohort = small().cohort
    assert cohort.simulated and "simulated" in cohort.name and "simulated" in cohort.atlas
    assert cohort.input_shape == (20, 20) and len(cohort.regions) == len(cohort.coordinates) == 20
    assert len(set(cohort.regions)) == 20
    assert cohort.attribute("sex").role == "sensitive" and cohort.attribute("site").role == "nuisance"


def test_seed_decides_everything() -> None:
    first, again, other = small(seed=1), small(seed=1), small(seed=2)
    assert first.cohort.fingerprint == again.cohort.fingerprint != other.cohort.fingerprint
    assert (edges(first) == edges(again)).all()


def test_tangent_is_cached_by_content(tmp_path) -> None:
    options = {"subjects": 20, "regions": 12, "connectivity": "tangent", "cache_dir": str(tmp_path)}
    first, other = edges(small(**options)), edges(small(**options, effect=1.0))
    assert np.abs(first - other).max() > 0.01
    assert (edges(small(**options)) == first).all()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(DataError, match="12 to 160"):
        small(regions=161)
    with pytest.raises(DataError, match="between -1 and 1"):
        small(correlation_train=1.2)
    with pytest.raises(DataError, match="at least 20"):
        small(subjects=3)
