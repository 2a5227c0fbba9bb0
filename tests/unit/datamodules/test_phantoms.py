from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from medprism.data.errors import DataError
from medprism.datamodules.phantoms import SimulatedVolumes, balls, head


def volumes(data: SimulatedVolumes) -> np.ndarray:
    return data.reader(False)(torch.arange(len(data.samples)))["volume"].numpy()


def test_cohort_says_that_it_is_simulated() -> None:
    data = SimulatedVolumes(subjects=40, size=16, attributes={"sex": 1, "scanner": 1, "age": 1}, jobs=1)
    cohort = data.cohort
    assert cohort.simulated and cohort.input_field == "volume" and cohort.input_shape == (1, 16, 16, 16)
    assert cohort.target.classes == ("control", "disease")
    assert [(factor.name, factor.role) for factor in cohort.attributes] == [
        ("sex", "sensitive"),
        ("scanner", "nuisance"),
        ("age", "nuisance"),
    ]
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["volume"].dtype == torch.float32 and batch["volume"].shape[1:] == (1, 16, 16, 16)


@pytest.mark.parametrize("number", [1, 2, 3, 8])
def test_regions_lie_in_the_head_and_apart(number: int) -> None:
    regions = balls(24, number)
    assert np.sum(regions, axis=0).max() == 1 and all(region.sum() >= 8 for region in regions)
    assert all((region & ~head(24)).sum() == 0 for region in regions)


def test_each_factor_changes_its_region_and_nothing_else() -> None:
    data = SimulatedVolumes(subjects=200, jobs=1, effect=2.0, spread=0.0, noise=0.2, anatomy=0.0)
    arrays = volumes(data)[:, 0]
    codes = {"disease": data.samples.target, **data.samples.attributes}
    design = np.column_stack([np.ones(200), *codes.values()])

    def differences(region: np.ndarray) -> np.ndarray:
        """Of the mean intensity, for each factor while the others stay the same."""
        return np.linalg.lstsq(design, arrays[:, region].mean(axis=1))[0][1:]

    for place, region in data.planted.items():
        expected = [0.2 * effect if factor == place else 0.0 for factor, effect in data.effects.items()]
        assert differences(region) == pytest.approx(expected, abs=0.02)
    away = ~np.any(list(data.planted.values()), axis=0)
    assert differences(away) == pytest.approx([0, 0, 0], abs=0.002)


def test_ball_separates_as_well_as_it_says() -> None:
    data = SimulatedVolumes(subjects=1000, size=12, attributes={"sex": 1.5}, anatomy=0.0, noise=0.05, jobs=1)
    arrays = volumes(data)[:, 0]
    codes = {"disease": data.samples.target, **data.samples.attributes}
    for name, expected in {"disease": 0.921, "sex": 0.983}.items():  # Phi(2 / sqrt(2)), Phi(3 / sqrt(2))
        score = arrays[:, data.planted[name]].mean(axis=1)
        assert roc_auc_score(codes[name], score) == pytest.approx(expected, abs=0.025)


def test_labels_are_balanced_and_independent() -> None:
    samples = SimulatedVolumes(subjects=2000, size=12, jobs=1).labels.samples
    table = np.stack([samples.target, *samples.attributes.values()])
    assert (table.mean(axis=1) == 0.5).all()
    assert np.abs(np.corrcoef(table) - np.eye(3)).max() < 0.07


def test_same_seed_same_volumes_and_effects_leave_the_rest_alone() -> None:
    first = SimulatedVolumes(subjects=30, size=12, seed=3, jobs=1)
    again = SimulatedVolumes(subjects=30, size=12, seed=3, jobs=2)
    np.testing.assert_array_equal(volumes(first), volumes(again))
    assert first.cohort.fingerprint == again.cohort.fingerprint
    assert not np.allclose(volumes(first), volumes(SimulatedVolumes(subjects=30, size=12, seed=4, jobs=1)))
    without = SimulatedVolumes(subjects=30, size=12, seed=3, effect=0.0, jobs=1)
    changed = (volumes(first) != volumes(without)).any(axis=(0, 1))
    assert (changed <= first.planted["disease"]).all() and changed.any()


def test_shift_confounds_training_and_not_the_regions() -> None:
    data = SimulatedVolumes(subjects=400, size=12, jobs=1, split="holdout", test_fraction=0.4, shift={"sex": 0.9})
    data.setup("fit")
    samples, rows = data.samples, data.rows("train")
    assert (samples.attributes["sex"][rows] == samples.target[rows]).mean() == pytest.approx(0.9, abs=0.02)
    position = {name: row for row, name in enumerate(samples.id)}
    inverted = [position[name] for name in data.test_sets["inverted"]]
    assert (samples.attributes["sex"][inverted] == samples.target[inverted]).mean() == pytest.approx(0.1, abs=0.05)
    same = SimulatedVolumes(subjects=400, size=12, jobs=1)
    np.testing.assert_array_equal(volumes(data), volumes(same))


@pytest.mark.parametrize(
    "wrong",
    [
        {"subjects": 10},
        {"size": 8},
        {"noise": 0.0},
        {"attributes": {"disease": 1.0}},
        {"attributes": {f"factor {k}": 1.0 for k in range(60)}},
    ],
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(DataError):
        SimulatedVolumes(**wrong)
