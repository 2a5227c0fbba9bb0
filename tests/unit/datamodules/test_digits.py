from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medprism.data.errors import DataError
from medprism.datamodules.confounding import apportioned, confounded
from medprism.datamodules.digits import ConfoundedDigits, DigitsDataModule, MorphoMNIST

from layouts import write_morpho_mnist

SMALL = {"train": 100, "validation": 40, "same": 20, "inverted": 40, "balanced": 40}
RATIOS = {"train": 0.9, "validation": 0.9, "same": 0.9, "inverted": 0.1, "balanced": 0.5}


def pictures(data: DigitsDataModule) -> np.ndarray:
    return data.reader(False)(torch.arange(len(data.samples)))["image"].numpy()


def rows_of(data: DigitsDataModule, part: str) -> np.ndarray:
    names = data.test_sets[part] if part in data.test_sets else data.split.part(part)
    return data.samples.rows(names)


def check_assignment(data: DigitsDataModule, ratios: dict[str, float]) -> None:
    """Exact sizes, balanced classes, exact ratios, independence given the class, no digit twice."""
    samples = data.samples
    for part, ratio in ratios.items():
        rows = rows_of(data, part)
        assert len(rows) == data.sizes[part]
        target = samples.target[rows]
        assert target.mean() == 0.5
        agrees = np.column_stack([codes[rows] == target for codes in samples.attributes.values()])
        for label in (0, 1):
            of_class = agrees[target == label]
            n = len(of_class)
            for pattern in ((1, 1), (1, 0), (0, 1), (0, 0)):
                share = np.prod([ratio if agree else 1 - ratio for agree in pattern])
                assert abs((of_class == pattern).all(axis=1).sum() - n * share) <= 1, (part, pattern)
    assert len(set(samples.subject)) == len(samples) == sum(data.sizes.values())
    sets = [set(data.split.train), set(data.split.validation), *map(set, data.test_sets.values())]
    assert len(set.union(*sets)) == sum(map(len, sets))
    assert set(data.split.test) == {name for names in data.test_sets.values() for name in names}


@pytest.mark.parametrize("ratio", [0.9, 0.95, 0.3])
def test_embedded_digits_have_the_asked_confounding(ratio: float) -> None:
    data = ConfoundedDigits(ratio=ratio)
    check_assignment(data, {"train": ratio, "validation": ratio, "same": ratio, "inverted": 1 - ratio, "balanced": 0.5})
    assert data.cohort.input_shape == (1, 28, 28) and data.cohort.target.classes == ("low", "high")
    assert [factor.role for factor in data.cohort.attributes] == ["nuisance", "nuisance"]


def test_labels_say_what_the_pictures_show() -> None:
    data = ConfoundedDigits()
    values = pictures(data)
    assert values.dtype == np.float32 and values.min() == 0 and 0.9 < values.max() <= 1
    digits, samples = data.digits, data.samples
    position = {name: k for k, name in enumerate(digits.names)}
    order = [position[name] for name in samples.id]
    np.testing.assert_array_equal(samples.target, digits.digit[order] >= 5)
    for k in range(0, len(samples), 37):
        expected = digits.versions[samples.attributes["stroke"][k], order[k]] / 255
        if samples.attributes["rotation"][k]:
            expected = np.rot90(expected)
        np.testing.assert_allclose(values[k, 0], expected, atol=1e-6)


def test_strokes_are_clearly_separable_and_digits_stay_readable() -> None:
    from sklearn.linear_model import RidgeClassifier

    data = ConfoundedDigits(oracle=True)
    flat = pictures(data).reshape(len(data.samples), -1)
    train, test = data.rows("train"), rows_of(data, "balanced")
    scores = {}
    for name, codes in {"digit": data.samples.target, **data.samples.attributes}.items():
        model = RidgeClassifier(alpha=10).fit(flat[train], codes[train])
        scores[name] = model.score(flat[test], codes[test])
    assert scores["stroke"] > 0.97 and scores["rotation"] > 0.9 and scores["digit"] > 0.7
    thin, thick = data.digits.versions.mean(axis=(1, 2, 3)) / 255
    assert thin < 0.25 < 0.4 < thick
    assert (data.digits.versions[0] <= data.digits.versions[1]).all() and data.digits.versions[0].any((1, 2)).all()


def test_a_confounded_model_falls_and_the_oracle_does_not() -> None:
    from sklearn.linear_model import RidgeClassifier

    scores = {}
    for oracle in (False, True):
        data = ConfoundedDigits(oracle=oracle)
        flat = pictures(data).reshape(len(data.samples), -1)
        train, test = data.rows("train"), rows_of(data, "inverted")
        model = RidgeClassifier(alpha=10).fit(flat[train], data.samples.target[train])
        scores[oracle] = model.score(flat[test], data.samples.target[test])
    assert scores[False] < 0.55 and scores[True] > 0.65


def test_oracle_changes_training_alone() -> None:
    plain, oracle = ConfoundedDigits(), ConfoundedDigits(oracle=True)
    check_assignment(oracle, {**RATIOS, "train": 0.5})
    assert plain.split == oracle.split and plain.cohort.fingerprint != oracle.cohort.fingerprint


def test_seed_decides_everything() -> None:
    first, again, other = (ConfoundedDigits(split_seed=seed) for seed in (0, 0, 1))
    assert first.cohort.fingerprint == again.cohort.fingerprint != other.cohort.fingerprint
    assert first.split == again.split and set(first.split.test) != set(other.split.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio is 1.0; it must lie between 0 and 1"),
        ({"ratio": 0.0}, "ratio is 0.0"),
        ({"train": 101}, r"sizes \{'train': 101\} cannot be had"),
        ({"validation": 0}, r"sizes \{'validation': 0\}"),
        ({"same": 0, "inverted": 0, "balanced": 0}, "cannot be had"),
        ({"fold": 1}, "leave out fold"),
        ({"split_file": "split.json"}, "leave out fold"),
        ({"shift": {"stroke": 0.9}}, "and shift"),
    ],
)
def test_impossible_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        ConfoundedDigits(**options)


def test_too_few_digits_are_explained() -> None:
    with pytest.raises(DataError, match=r"has 901 low digits, 901 of them for training, too few"):
        _ = ConfoundedDigits(train=1700).split


def test_a_test_set_may_be_left_out() -> None:
    data = ConfoundedDigits(same=0)
    assert list(data.test_sets) == ["inverted", "balanced"] and len(data.split.test) == 480


@pytest.mark.parametrize("released", [False, True])
def test_morpho_mnist_layouts_agree(tmp_path: Path, released: bool, caplog) -> None:
    arrays = write_morpho_mnist(tmp_path, released)
    data = MorphoMNIST(str(tmp_path), **SMALL)
    check_assignment(data, RATIOS)
    values, samples = pictures(data), data.samples
    for k, name in enumerate(samples.id):
        part, index = name.split("-")
        version = arrays[f"{part}_{('thin', 'thick')[samples.attributes['stroke'][k]]}"][int(index)]
        picture = np.rot90(version) if samples.attributes["rotation"][k] else version
        np.testing.assert_allclose(values[k, 0], picture / 255, atol=1e-6)
    assert all(name.startswith("train-") for name in (*data.split.train, *data.split.validation))
    assert all(name.startswith("test-") for name in data.split.test) and "unused" not in caplog.text


def test_tests_fill_up_with_unused_training_digits(tmp_path: Path, caplog) -> None:
    write_morpho_mnist(tmp_path)
    data = MorphoMNIST(str(tmp_path), **{**SMALL, "same": 60})
    check_assignment(data, RATIOS)
    assert sum(name.startswith("train-") for name in data.split.test) == 40
    assert caplog.text.count("40 of 140 test digits are unused training digits") == 1
    with pytest.raises(DataError, match="too few for the sizes"):
        _ = MorphoMNIST(str(tmp_path), **{**SMALL, "same": 100}).split


def test_damaged_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds neither morpho_mnist_thin_thick\.npz nor the folders"):
        _ = MorphoMNIST(str(tmp_path), **SMALL).digits
    arrays = write_morpho_mnist(tmp_path)
    archive = tmp_path / "morpho_mnist_thin_thick.npz"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"thin_thick\.npz: the train arrays cannot be read"):
        _ = MorphoMNIST(str(tmp_path), **SMALL).digits
    for change, message in [
        ({"train_thin": arrays["train_thin"][:, :27]}, r"shapes \{'thin': \(200, 27, 28\)\}"),
        ({"test_digit": arrays["test_digit"] + 5}, "a digit is 14, expected 0 to 9"),
    ]:
        np.savez(archive, **{**arrays, **change})
        with pytest.raises(DataError, match=message):
            _ = MorphoMNIST(str(tmp_path), **SMALL).digits
    np.savez(archive, **{name: array for name, array in arrays.items() if name != "test_thick"})
    with pytest.raises(DataError, match=r"the test arrays cannot be read .*test_thick"):
        _ = MorphoMNIST(str(tmp_path), **SMALL).digits


@pytest.mark.parametrize("damage", [lambda b: b[:-40], lambda b: b"", lambda b: b"plain text", None])
def test_damaged_idx_file_is_named(tmp_path: Path, damage) -> None:
    write_morpho_mnist(tmp_path, released=True)
    file = tmp_path / "thic" / "t10k-images-idx3-ubyte.gz"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"thic/t10k-images-idx3-ubyte\.gz (does not exist|cannot be read as an idx)"):
        _ = MorphoMNIST(str(tmp_path), **SMALL).digits


def test_confounded_counts_are_exact() -> None:
    generator = np.random.default_rng(0)
    target = generator.permutation(np.arange(1000) % 2)
    codes = confounded(target, 0.8, 3, generator)
    agrees = codes == target[:, None]
    np.testing.assert_allclose(agrees.mean(axis=0), 0.8)
    for label in (0, 1):
        np.testing.assert_allclose(np.corrcoef(agrees[target == label].T), np.eye(3), atol=0.01)
    assert confounded(target, 0.8, 0, generator).shape == (1000, 0)
    with pytest.raises(DataError, match="ratio is -1"):
        confounded(target, -1, 2, generator)


def test_apportioned_sums_up() -> None:
    assert apportioned(10, [0.25, 0.25, 0.5]).tolist() == [3, 2, 5]
    assert apportioned(7, [1, 1, 1]).sum() == 7 and apportioned(0, [0.5, 0.5]).tolist() == [0, 0]
    assert apportioned(1000, [0.81, 0.09, 0.09, 0.01]).tolist() == [810, 90, 90, 10]


def test_real_morpho_mnist(real_data: Path) -> None:
    root = real_data / "morpho_mnist"
    if not root.is_dir():
        pytest.skip("needs morpho_mnist in MEDPRISM_DATA")
    data = MorphoMNIST(str(root))
    check_assignment(data, RATIOS)
    assert [len(data.split.part(part)) for part in ("train", "validation")] == [19502, 3194]
    values = pictures(data)[:, 0].mean(axis=(1, 2))
    thick = data.samples.attributes["stroke"] == 1
    assert values[~thick].mean() == pytest.approx(0.056, abs=0.005)
    assert values[thick].mean() == pytest.approx(0.251, abs=0.01)
