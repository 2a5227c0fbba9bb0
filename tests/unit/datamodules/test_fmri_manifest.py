from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from medprism.data.errors import DataError
from medprism.datamodules.manifest import FmriManifest

from layouts import MANIFEST_SCANS as N
from layouts import write_manifest as write


def module(folder: Path, **options: object) -> FmriManifest:
    given = {"bins": {"age": [20, 40, 80]}, "cache_dir": str(folder / "cache"), "folds": 3, "jobs": 1} | options
    return FmriManifest(str(folder), str(folder / "participants.csv"), **given)


def connectomes(data: FmriManifest) -> np.ndarray:
    return data.reader(False)(torch.arange(len(data.samples)))["connectome"].numpy()


def test_cohort_follows_the_table(tmp_path) -> None:
    write(tmp_path)
    data = module(tmp_path, phrases={"patient": "major depression"})
    cohort = data.cohort
    assert cohort.input_shape == (6, 6) and not cohort.simulated
    assert cohort.target.classes == ("control", "patient")
    assert cohort.target.phrases == (("control",), ("major depression",))
    assert cohort.attribute("sex").classes == ("F", "M") and cohort.attribute("sex").role == "sensitive"
    assert cohort.attribute("age").classes == ("20 to 40", "40 to 80")
    assert data.samples.attributes["sex"][:3].tolist() == [0, 1, -1]
    assert data.samples.target[:3].tolist() == [0, 1, 0]
    assert set(data.split.test) <= {f"p{k}" for k in range(12)}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".1D", ".txt"])
def test_every_format_reads_the_same_numbers(tmp_path, suffix: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write(tmp_path / "a")
    write(tmp_path / "b", suffix)
    first, second = module(tmp_path / "a"), module(tmp_path / "b")
    np.testing.assert_allclose(connectomes(first), connectomes(second), atol=1e-6)
    # The same values and labels are the same data, wherever and however they are stored.
    assert first.cohort.fingerprint == second.cohort.fingerprint


def test_fingerprint_follows_data_and_labels(tmp_path) -> None:
    table = write(tmp_path)
    first = module(tmp_path).cohort.fingerprint
    assert module(tmp_path, connectivity="covariance").cohort.fingerprint == first
    table.sample(frac=1, random_state=0).to_csv(tmp_path / "participants.csv", index=False)
    assert module(tmp_path).cohort.fingerprint == first
    table["target"] = table["target"].to_list()[::-1]
    table.to_csv(tmp_path / "participants.csv", index=False)
    assert module(tmp_path).cohort.fingerprint != first
    write(tmp_path, seed=1)
    assert module(tmp_path).cohort.fingerprint != first


def test_second_start_reads_the_cache(tmp_path, monkeypatch) -> None:
    write(tmp_path)
    first = connectomes(module(tmp_path))
    monkeypatch.setattr(FmriManifest, "_build", lambda self: pytest.fail("computed again"))
    assert (connectomes(module(tmp_path)) == first).all()


def test_changed_file_is_computed_again(tmp_path) -> None:
    write(tmp_path)
    first = connectomes(module(tmp_path))
    np.save(tmp_path / "scan3.npy", np.random.default_rng(9).standard_normal((31, 6)))
    changed = connectomes(module(tmp_path))
    assert [k for k in range(N) if not np.array_equal(first[k], changed[k])] == [3]


def test_two_threads_compute_what_one_does(tmp_path, monkeypatch) -> None:
    write(tmp_path)
    one = connectomes(module(tmp_path, cache_dir=str(tmp_path / "one")))
    monkeypatch.setattr("medprism.datamodules.fmri.CHUNK", 7)
    two = connectomes(module(tmp_path, cache_dir=str(tmp_path / "two"), jobs=2))
    np.testing.assert_array_equal(one, two)


def test_tangent_sees_training_subjects_alone(tmp_path) -> None:
    write(tmp_path)
    data = module(tmp_path, connectivity="tangent")
    first, train, test = connectomes(data), data.rows("train"), data.rows("test")
    for row in test:
        np.save(tmp_path / f"scan{row}.npy", 50 * np.random.default_rng(row).standard_normal((30, 6)))
    changed = module(tmp_path, connectivity="tangent")
    np.testing.assert_array_equal(first[train], connectomes(changed)[train])
    assert all(not np.allclose(first[row], connectomes(changed)[row]) for row in test)
    # Another fold has another reference.
    other = module(tmp_path, connectivity="tangent", fold=1)
    assert not np.allclose(connectomes(other)[0], connectomes(changed)[0])


def test_constant_region_is_zero_with_one_warning_or_an_error(tmp_path, caplog) -> None:
    write(tmp_path)
    series = np.load(tmp_path / "scan4.npy")
    series[:, [1, 2]] = 3.0
    np.save(tmp_path / "scan4.npy", series)
    data = module(tmp_path)
    assert (connectomes(data)[4, 1] == 0).all() and data.cohort
    assert caplog.text.count("1 of 24 scans have constant regions (2 in all)") == 1
    with pytest.raises(DataError, match=r"scan4\.npy \(participants\.csv, row 6\): regions \[2, 3\] never change"):
        _ = module(tmp_path, constant_regions="error").cohort


def test_matrices_are_taken_as_they_are(tmp_path) -> None:
    write(tmp_path)
    matrices = []
    for k in range(N):
        matrices.append(np.corrcoef(np.random.default_rng(k).standard_normal((6, 30))))
        np.save(tmp_path / f"scan{k}.npy", matrices[-1])
    np.testing.assert_allclose(connectomes(module(tmp_path, content="matrix")), matrices, atol=1e-6)
    z = connectomes(module(tmp_path, content="matrix", fisher_z=True))
    assert z[0, 0, 0] == 0 and z[0, 0, 1] == pytest.approx(np.arctanh(matrices[0][0, 1]), abs=1e-5)
    with pytest.raises(DataError, match="content is matrix"):
        module(tmp_path, content="matrix", connectivity="tangent")


@pytest.mark.parametrize(
    ("array", "content", "message"),
    [
        (np.ones((30, 5)), "timeseries", r"has 5 regions, expected 6"),
        (np.ones((19, 6)), "timeseries", r"has 19 volumes, fewer than min_volumes = 20"),
        (np.where(np.eye(30, 6, -2), np.nan, 1.0), "timeseries", r"volume 3, region 1 \(6 such values\)"),
        (np.ones(6), "timeseries", r"found shape \(6,\)"),
        (np.array([None, {}], dtype=object), "timeseries", r"cannot be read as numbers"),
        (np.ones((30, 6)), "matrix", r"expected a square matrix, found shape \(30, 6\)"),
        (np.eye(5), "matrix", r"has 5 regions, expected 6"),
        (np.arange(36.0).reshape(6, 6), "matrix", r"is not symmetric: \(1, 6\) holds 5, the other side 30"),
        (np.full((6, 6), np.nan), "matrix", r"row 1, column 1"),
    ],
)
def test_bad_file_is_named(tmp_path, array: np.ndarray, content: str, message: str) -> None:
    write(tmp_path)
    if content == "matrix":
        for k in range(N):
            np.save(tmp_path / f"scan{k}.npy", np.eye(6))
    np.save(tmp_path / "scan7.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=r"scan7\.npy \(participants\.csv, row 9\).*" + message):
        _ = module(tmp_path, content=content).cohort


def test_unreadable_text_is_named(tmp_path) -> None:
    write(tmp_path, ".csv")
    (tmp_path / "scan7.csv").write_text("a,b\n1,2\n3,x\n")
    with pytest.raises(DataError, match=r"scan7\.csv .*row 9.*cannot be read as numbers"):
        _ = module(tmp_path).cohort
    (tmp_path / "scan7.csv").unlink()
    with pytest.raises(DataError, match=r"1 of 24 files do not exist, the first is .*scan7\.csv"):
        _ = module(tmp_path).cohort


def test_bad_table_is_explained(tmp_path) -> None:
    table = write(tmp_path)
    cases = [
        (table.drop(columns="path"), {}, r"lacks the columns \['path'\]"),
        (table, {"target": "diagnosis"}, r"lacks the columns \['diagnosis'\]"),
        (table, {"attributes": ["site"]}, r"lacks the columns \['site'\]"),
        (table.iloc[:0], {}, "has no rows"),
        (table.assign(id="x"), {}, "occur more than once: x"),
        (table.assign(target=["", *table["target"][1:]]), {}, "row 2: column 'target' is empty"),
        (table, {"target_classes": ["control", "ill"]}, r"row 3: column 'target' holds 'patient'"),
        (table, {"target_classes": ["control", "patient", "other"]}, r"no rows for \['other'\]"),
        (table, {"attribute_classes": {"sex": ["F"]}}, r"row 3: column 'sex' holds 'M'"),
        (table.assign(target="control"), {}, "no rows for a second class"),
        (table, {"bins": {"age": [20, 80, 90]}}, r"no rows for \['80 to 90'\]"),
        (table.assign(iq=[str(k) for k in range(N)]), {}, None),
    ]
    for changed, options, message in cases:
        changed.to_csv(tmp_path / "participants.csv", index=False)
        if message is None:
            assert len(module(tmp_path, **options).labels.attributes) == 3
            continue
        with pytest.raises(DataError, match=message):
            _ = module(tmp_path, **options).labels
    (tmp_path / "participants.csv").unlink()
    with pytest.raises(DataError, match=r"participants\.csv does not exist"):
        _ = module(tmp_path).labels


def test_number_column_without_bins_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medprism.data.tables.MOST_CLASSES", 5)
    write(tmp_path)
    with pytest.raises(DataError, match="column 'age' has 12 different values"):
        _ = module(tmp_path, bins=None).labels


def test_atlas_table_names_the_regions(tmp_path) -> None:
    write(tmp_path)
    atlas = pd.DataFrame({"roi": range(1, 7), "x": 1.5, "y": 2.0, "z": -3.0, "name": ["Insula"] * 5 + [""]})
    atlas.to_csv(tmp_path / "atlas.csv", index=False)
    cohort = module(tmp_path, atlas_table=str(tmp_path / "atlas.csv")).cohort
    assert cohort.regions[0] == "Insula" and cohort.regions[5] == "atlas 6"
    assert cohort.coordinates[0] == (1.5, 2.0, -3.0)
    atlas[:5].to_csv(tmp_path / "atlas.csv", index=False)
    with pytest.raises(DataError, match="names 5 regions, the data have 6"):
        _ = module(tmp_path, atlas_table=str(tmp_path / "atlas.csv")).cohort
    atlas.drop(columns="x").to_csv(tmp_path / "atlas.csv", index=False)
    with pytest.raises(DataError, match=r"lacks the columns \['x'\]"):
        _ = module(tmp_path, atlas_table=str(tmp_path / "atlas.csv")).cohort


def test_fisher_z_needs_a_correlation(tmp_path) -> None:
    with pytest.raises(DataError, match="not for connectivity 'covariance'"):
        module(tmp_path, connectivity="covariance", fisher_z=True)
