import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from medprism.data.connectivity import check_series, connectomes, constant_regions
from medprism.data.errors import DataError


def series(n: int = 6, volumes: int = 50, regions: int = 8, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((regions, regions))
    scale = np.geomspace(1, 100, regions)
    return [generator.standard_normal((volumes + k, regions)) @ mix * scale + 7 for k in range(n)]


def ledoit_wolf_correlation(x: np.ndarray) -> np.ndarray:
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    covariance = LedoitWolf().fit(z).covariance_
    return covariance / np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))


def test_correlation_is_that_of_standardised_series() -> None:
    # The scales differ a hundredfold, so shrinkage without z-scoring would give other values.
    found = connectomes(series())
    assert found.dtype == np.float32
    for matrix, x in zip(found, series(), strict=True):
        np.testing.assert_allclose(matrix, ledoit_wolf_correlation(x), atol=1e-5)


def test_partial_correlation_follows_from_the_precision() -> None:
    partial = connectomes(series(), "partial correlation")
    precision = connectomes(series(), "precision").astype(float)
    covariance = connectomes(series(), "covariance").astype(float)
    for k in range(len(partial)):
        d = np.sqrt(np.diag(precision[k]))
        expected = -precision[k] / np.outer(d, d)
        np.fill_diagonal(expected, 1)
        np.testing.assert_allclose(partial[k], expected, atol=1e-4)
        np.testing.assert_allclose(covariance[k] @ precision[k], np.eye(8), atol=1e-2)


def test_fisher_z_is_artanh_off_the_diagonal() -> None:
    r, z = connectomes(series()), connectomes(series(), fisher_z=True)
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_allclose(np.tanh(z[:, off]), r[:, off], atol=1e-5)
    assert (z[:, ~off] == 0).all() and np.isfinite(z).all()
    twins = [np.repeat(x[:, :4], 2, axis=1) for x in series()]
    assert np.isfinite(connectomes(twins, fisher_z=True)).all()
    with pytest.raises(DataError, match="fisher_z"):
        connectomes(series(), "covariance", fisher_z=True)


def test_constant_regions_are_zero_and_leave_the_others_alone() -> None:
    data = series()
    data[2][:, 3] = 5.0
    assert constant_regions(data[2]).tolist() == [k == 3 for k in range(8)]
    found = connectomes(data)
    assert np.isfinite(found).all()
    assert (found[2, 3] == 0).all() and (found[2, :, 3] == 0).all()
    assert (found[2][np.ix_([0, 1], [0, 1])] != 0).all()
    assert not (found[1] == 0).any()


def test_tangent_is_fitted_on_training_subjects_only() -> None:
    data, train = series(), np.array([0, 1, 2, 3])
    first = connectomes(data, "tangent", fit_on=train)
    data[5] = data[5] * 30 + data[4][:50].mean()
    changed = connectomes(data, "tangent", fit_on=train)
    np.testing.assert_array_equal(first[:5], changed[:5])
    assert np.abs(first[5] - changed[5]).max() > 0.1
    data[0] = data[0] * 30
    assert np.abs(connectomes(data, "tangent", fit_on=train)[1] - first[1]).max() > 0.1
    with pytest.raises(DataError, match="fitted"):
        connectomes(data, "tangent")


def test_tangent_of_training_subjects_averages_to_zero() -> None:
    # The reference is their geometric mean, whose tangent vectors sum to zero.
    found = connectomes(series(), "tangent", fit_on=np.arange(6))
    assert np.abs(found.mean(0)).max() < 1e-4


@pytest.mark.parametrize("regions", [2, 190])
def test_any_number_of_regions(regions: int) -> None:
    assert connectomes(series(2, 40, regions)).shape == (2, regions, regions)


def test_bad_series_are_refused_with_file_and_place() -> None:
    good = series(1)[0]
    check_series(good, "a.1D", 8)
    with pytest.raises(DataError, match=r"a\.1D: has 8 regions, expected 9"):
        check_series(good, "a.1D", 9)
    with pytest.raises(DataError, match=r"a\.1D: has 19 volumes, fewer than min_volumes = 20"):
        check_series(good[:19], "a.1D", 8)
    with pytest.raises(DataError, match=r"a\.1D: .*shape \(50,\)"):
        check_series(good[:, 0], "a.1D")
    good[4, 2] = np.nan
    with pytest.raises(DataError, match=r"a\.1D: .*volume 5, region 3"):
        check_series(good, "a.1D", 8)
