from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.data.splits import Split
from medprism.datamodules.mri import MriManifest, OasisSlices
from medprism.datamodules.mri_bids import MriBids

from layouts import OASIS_PEOPLE as PEOPLE
from layouts import write_oasis, write_volume


def write_manifest(folder: Path) -> pd.DataFrame:
    """Two scans each of 20 people."""
    rows = []
    for k in range(2 * PEOPLE):
        person = k % PEOPLE
        write_volume(folder / "scans" / f"{k}.nii.gz", k)
        rows.append(
            {
                "id": f"scan{k}",
                "subject": f"p{person}",
                "volume": f"scans/{k}.nii.gz",
                "target": ["control", "patient"][person % 2],
                "sex": ["F", "M", "F", "M", ""][person % 5],
                "age": str(41 + 2 * person),
            }
        )
    table = pd.DataFrame(rows)
    table.to_csv(folder / "table.csv", index=False)
    return table


def write_bids(folder: Path) -> pd.DataFrame:
    """20 people with one to two sessions, and one of each thing that may be wrong."""
    rows = []
    for k in range(PEOPLE):
        name = f"sub-{k:02d}"
        if k % 2:
            for session in ("ses-1", "ses-2"):
                write_volume(folder / name / session / "anat" / f"{name}_{session}_T1w.nii", k)
        else:
            write_volume(folder / name / "anat" / f"{name}_T1w.nii.gz", k)
        write_volume(folder / name / "anat" / f"{name}_T2w.nii.gz", k)
        rows.append(
            {
                "participant_id": name,
                "cdr": "n/a" if k == 4 else str([0, 0.5, 1][k % 3]),
                "sex": ["F", "M", "n/a", "M"][k % 4],
                "age": str(55 + k),
            }
        )
    rows.append({**rows[0]})
    rows.append({"participant_id": "sub-absent", "cdr": "1", "sex": "M", "age": "61"})
    write_volume(folder / "sub-stranger" / "anat" / "sub-stranger_T1w.nii", 99)
    write_volume(folder / "sub-00" / "anat" / "sub-00_T1w.nii", 0)
    lost = folder / "sub-01" / "ses-2" / "anat" / "sub-01_ses-2_T1w.nii"
    lost.unlink()
    lost.symlink_to(folder / "annex" / "not-fetched.nii")
    table = pd.DataFrame(rows)
    table.to_csv(folder / "participants.tsv", index=False, sep="\t")
    return table


def settings(folder: Path, options: dict) -> dict:
    cache = {"cache_dir": str(folder / "cache"), "jobs": 1, "folds": 3, "batch_size": 4}
    return {**cache, "shape": (6, 8, 6), "attributes": ["sex", "age"], "cuts": {"age": [60]}, **options}


def manifest(folder: Path, **options: object) -> MriManifest:
    return MriManifest(str(folder / "table.csv"), **settings(folder, options))


def bids(folder: Path, **options: object) -> MriBids:
    given = {"target": "cdr", "cuts": {"age": [60], "cdr": [0.5]}, "cohort_name": "tiny BIDS"} | options
    return MriBids(str(folder), **settings(folder, given))


def oasis(folder: Path, **options: object) -> OasisSlices:
    return OasisSlices(str(folder), cache_dir=str(folder / "cache"), jobs=1, folds=3, **options)


def inputs(data: CohortDataModule, field: str = "volume") -> np.ndarray:
    return data.reader(False)(torch.arange(len(data.samples)))[field].numpy()


def test_manifest_becomes_a_cohort(tmp_path) -> None:
    write_manifest(tmp_path)
    data = manifest(tmp_path)
    cohort = data.cohort
    assert cohort.input_field == "volume" and cohort.input_shape == (1, 6, 8, 6)
    assert cohort.target.classes == ("control", "patient")
    assert cohort.attribute("age").classes == ("below 60", "60 and above")
    assert cohort.attribute("age").role == "sensitive" and data.samples.attributes["sex"][4] == -1
    assert data.samples.attributes["age"][:20].tolist() == [0] * 10 + [1] * 10
    data.setup("fit")
    for part in ("train", "validation", "test"):
        people = {data.samples.subject[row] for row in data.rows(part)}
        assert len(data.rows(part)) == 2 * len(people)
    volume = next(iter(data.train_dataloader()))["volume"]
    assert volume.dtype == torch.float32 and volume.shape == (4, 1, 6, 8, 6)
    # Every volume has mean 0 and standard deviation 1, up to the half precision it is kept in.
    assert volume.mean(dim=(1, 2, 3, 4)).numpy() == pytest.approx(np.zeros(4), abs=2e-3)
    assert volume.std(dim=(1, 2, 3, 4), correction=0).numpy() == pytest.approx(np.ones(4), abs=2e-3)


def test_second_start_reads_no_nifti(tmp_path, monkeypatch) -> None:
    write_manifest(tmp_path)
    opened: list[str] = []
    load = nib.load
    monkeypatch.setattr(nib, "load", lambda path: opened.append(str(path)) or load(path))
    first = inputs(manifest(tmp_path))
    assert set(opened) == {str(tmp_path / "scans" / f"{k}.nii.gz") for k in range(40)}
    opened.clear()
    again = manifest(tmp_path)
    again.setup("fit")
    for _ in range(2):
        for loader in (again.train_dataloader(), again.val_dataloader(), again.test_dataloader()):
            list(loader)
    np.testing.assert_array_equal(inputs(again), first)
    assert opened == []
    # Another spacing, or a changed file, is another matter.
    assert not np.allclose(inputs(manifest(tmp_path, spacing=(2, 2, 3))), first) and len(set(opened)) == 40
    opened.clear()
    write_volume(tmp_path / "scans" / "3.nii.gz", 77, (8, 10, 9))
    changed = inputs(manifest(tmp_path))
    assert len(set(opened)) == 40 and [k for k in range(40) if not np.array_equal(first[k], changed[k])] == [3]


def test_voxels_beside_a_header_are_watched_too(tmp_path) -> None:
    table = write_manifest(tmp_path)
    for k in range(40):
        nib.save(nib.load(tmp_path / table.loc[k, "volume"]), tmp_path / f"{k}.img")
        table.loc[k, "volume"] = f"{k}.hdr"
    table.to_csv(tmp_path / "table.csv", index=False)
    first = inputs(manifest(tmp_path))
    (tmp_path / "7.img").write_bytes((tmp_path / "8.img").read_bytes())
    changed = inputs(manifest(tmp_path))
    np.testing.assert_array_equal(changed[7], first[8])
    np.testing.assert_array_equal(changed[:7], first[:7])


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_slices_are_images(tmp_path, plane: str) -> None:
    write_manifest(tmp_path)
    data = manifest(tmp_path, plane=plane, slices=2)
    assert data.cohort.fields == ("id", "subject", "image", "target", "attributes")
    shape = {"axial": (2, 8, 6), "coronal": (2, 6, 6), "sagittal": (2, 6, 8)}[plane]
    assert data.cohort.input_shape == shape and inputs(data, "image").shape == (40, *shape)
    if plane == "sagittal":
        with pytest.raises(DataError, match="augment_flip mirrors left and right"):
            manifest(tmp_path, plane=plane, augment_flip=True)


def test_augmentation_brings_in_background(tmp_path) -> None:
    write_manifest(tmp_path)
    rows = torch.arange(40)
    plain = manifest(tmp_path).reader(True)(rows)["volume"]
    torch.manual_seed(0)
    moved = manifest(tmp_path, augment_shift=0.4).reader(True)(rows)["volume"]
    lowest = plain.amin(dim=(1, 2, 3, 4))
    assert (moved.amin(dim=(1, 2, 3, 4)) >= lowest - 1e-3).all()
    assert moved.mean() < -0.3  # zeros would keep the mean near 0
    torch.manual_seed(0)
    flipped = manifest(tmp_path, augment_flip=True).reader(True)(rows)["volume"]
    mirrored = [not torch.allclose(flipped[k], plain[k], atol=1e-3) for k in range(40)]
    assert 5 < sum(mirrored) < 35
    for k in np.flatnonzero(mirrored):
        assert torch.allclose(flipped[k], plain[k].flip(1), atol=1e-3)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("truncated", "cannot be read as a volume"),
        ("text", "cannot be read as a volume"),
        ("4D", "has 4 dimensions"),
        ("silent", "orientation without a header"),
        ("zero", "constant"),
    ],
)
def test_bad_volume_is_named_with_its_row(tmp_path, content: str, message: str) -> None:
    write_manifest(tmp_path)
    file = tmp_path / "scans" / "5.nii.gz"
    if content == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    elif content == "text":
        file.write_text("no image")
    elif content == "4D":
        write_volume(file, 0, (8, 10, 8, 3))
    elif content == "silent":
        image = nib.Nifti1Image(np.random.default_rng(0).random((8, 10, 8), np.float32), None)
        nib.save(image, file)
    else:
        nib.save(nib.Nifti1Image(np.zeros((8, 10, 8), np.float32), np.eye(4)), file)
    with pytest.raises(DataError, match=rf"5\.nii\.gz \(table\.csv, row 7\).*{message}"):
        _ = manifest(tmp_path).cohort
    skipping = manifest(tmp_path, unreadable="skip")
    assert len(skipping.samples) == 39 and skipping.skipped == {"unreadable": 1}
    if content == "silent":
        assert manifest(tmp_path, orientation="RAS").cohort.input_shape == (1, 6, 8, 6)


def test_bad_manifest_is_explained(tmp_path) -> None:
    table = write_manifest(tmp_path)
    cases = [
        (table.drop(columns="volume"), {}, r"lacks the columns \['volume'\]"),
        (table, {"target": "diagnosis"}, r"lacks the columns \['diagnosis'\]"),
        (table, {"cuts": {"iq": [100]}, "attributes": ["sex"]}, r"lacks the columns \['iq'\]"),
        (table.assign(id=["a", "a", *table["id"][2:]]), {}, "1 sample ids occur more than once: a"),
        (table.assign(volume=["b", "b", *table["volume"][2:]]), {}, "rows 2 and 3 both name b"),
        (
            table.assign(volume=["b", *table["volume"][1:]]),
            {},
            r"1 of 40 volumes do not exist, .*b \(table\.csv, row 2",
        ),
        (table.assign(target=["", *table["target"][1:]]), {}, "row 2: column 'target' is empty"),
        (table.assign(age=["old", *table["age"][1:]]), {}, "row 2: column 'age' holds 'old', expected a number"),
        (table.assign(sex="F"), {}, "column 'sex' has no rows for a second class"),
        (table, {"cuts": {"age": [99]}}, r"column 'age' has no rows for \['99 and above'\]"),
        (table, {"cuts": {"age": []}}, "at least one threshold"),
        (table, {"cuts": {"age": [70, 60]}}, "increasing"),
        (table, {"attribute_classes": {"sex": ["F"]}}, "row 3: column 'sex' holds 'M'"),
    ]
    for changed, options, message in cases:
        changed.to_csv(tmp_path / "table.csv", index=False)
        with pytest.raises(DataError, match=message):
            _ = manifest(tmp_path, **options).cohort
    (tmp_path / "table.csv").unlink()
    with pytest.raises(DataError, match=r"table\.csv does not exist"):
        _ = manifest(tmp_path).cohort


def test_a_person_in_two_parts_is_refused(tmp_path) -> None:
    write_manifest(tmp_path)
    data = manifest(tmp_path)
    data.split.save(tmp_path / "split.json")
    assert manifest(tmp_path, split_file=str(tmp_path / "split.json")).split == data.split
    text = (tmp_path / "split.json").read_text()
    name = data.split.test[0]
    (tmp_path / "split.json").write_text(text.replace('"train": [', f'"train": [\n  "{name}",'))
    with pytest.raises(DataError, match=f"stand in the split more than once.*{name}"):
        _ = manifest(tmp_path, split_file=str(tmp_path / "split.json")).split
    with pytest.raises(DataError, match="more than once"):
        Split(("a",), ("b",), ("a",))


def test_bids_folder_becomes_a_cohort(tmp_path, caplog) -> None:
    write_bids(tmp_path)
    data = bids(tmp_path)
    data.setup("fit")
    assert data.skipped == {
        "participants listed twice": 1,
        "participants without a scan": 1,
        "scans stored twice": 1,
        "scans without a row in the table": 1,
        "scans with unknown target": 1,
        "scans whose link leads nowhere": 1,
    }
    assert caplog.text.count("tiny BIDS: 28 samples; left out: participants listed twice: 1") == 1
    samples = data.samples
    assert samples.id[:3] == ("sub-00_T1w", "sub-01_ses-1_T1w", "sub-02_T1w")
    assert "sub-03_ses-2_T1w" in samples.id and samples.subject.count("sub-03") == 2
    for k, person in enumerate(samples.subject):
        number = int(person[4:])
        assert samples.target[k] == (number % 3 > 0)
        assert samples.attributes["sex"][k] == [0, 1, -1, 1][number % 4]
        assert samples.attributes["age"][k] == (55 + number >= 60)
    assert data.cohort.target.classes == ("below 0.5", "0.5 and above")
    assert {data.samples.subject[row] for row in data.rows("train")}.isdisjoint(
        {data.samples.subject[row] for row in data.rows("test")}
    )


def test_bids_pattern_and_participants_may_be_given(tmp_path) -> None:
    table = write_bids(tmp_path)
    table.assign(participant_id=table["participant_id"].str.removeprefix("sub-")).to_csv(
        tmp_path / "other.tsv", index=False, sep="\t"
    )
    data = bids(tmp_path, pattern="*_T2w", participants=str(tmp_path / "other.tsv"))
    assert data.samples.id[0] == "sub-00_T2w" and len(data.samples) == 19
    with pytest.raises(DataError, match=r"no usable scan sub-\*/\[ses-\*/\]anat/\*_FLAIR\.nii.*for the 21 people"):
        _ = bids(tmp_path, pattern="*_FLAIR").samples


def test_bad_bids_folder_is_explained(tmp_path) -> None:
    table = write_bids(tmp_path)
    cases = [
        (table.drop(columns="participant_id"), {}, r"lacks the columns \['participant_id'\]"),
        (table, {"attributes": ["site"]}, r"participants\.tsv lacks the columns \['site'\]"),
        (
            table.assign(age=[*table["age"][:20], "99", "61"]),
            {},
            "rows 2 and 22: sub-00 is listed twice with different",
        ),
        (
            table.assign(sex=["X", *table["sex"][1:20], "X", "M"]),
            {"attribute_classes": {"sex": ["F", "M"]}},
            "row 2: col",
        ),
    ]
    for changed, options, message in cases:
        changed.to_csv(tmp_path / "participants.tsv", index=False, sep="\t")
        with pytest.raises(DataError, match=message):
            _ = bids(tmp_path, **options).labels
    table.to_csv(tmp_path / "participants.tsv", index=False, sep="\t")
    file = tmp_path / "sub-07" / "ses-2" / "anat" / "sub-07_ses-2_T1w.nii"
    file.write_bytes(file.read_bytes()[:600])
    with pytest.raises(DataError, match=r"sub-07_ses-2_T1w\.nii \(participants\.tsv, row 9\).*cannot be read"):
        _ = bids(tmp_path).cohort
    (tmp_path / "participants.tsv").unlink()
    with pytest.raises(DataError, match=r"participants\.tsv does not exist"):
        _ = bids(tmp_path).cohort


def test_oasis_slices_of_each_plane(tmp_path) -> None:
    write_oasis(tmp_path)
    data = oasis(tmp_path, plane="all", size=104)
    cohort = data.cohort
    assert cohort.input_shape == (3, 104, 104) and cohort.target.classes == ("none", "dementia")
    assert data.samples.target[:8].tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    assert data.samples.attributes["sex"][:4].tolist() == [0, 1, 0, 1]
    assert data.samples.attributes["age"].tolist() == [0] * 14 + [1] * 6
    assert data.samples.subject[0] == "OAS1_0000"
    stacked = inputs(data, "image")
    for channel, plane in enumerate(("axial", "coronal", "sagittal")):
        alone = inputs(oasis(tmp_path, plane=plane, size=104), "image")
        np.testing.assert_array_equal(alone[:, 0], stacked[:, channel])
    # All planes are shown at one scale: 208 mm on 104 pixels, black where a slice has ended.
    filled = stacked[0] > 0.2  # the last pixels are half black
    sizes = [(int(f.any(axis=1).sum()), int(f.any(axis=0).sum())) for f in filled]
    assert sizes == [(104, 88), (88, 88), (88, 104)]


def test_bad_oasis_folder_is_explained(tmp_path) -> None:
    table = write_oasis(tmp_path)
    file = tmp_path / table.loc[3, "coronal"]
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    with pytest.raises(DataError, match=r"MR1_coronal\.png.*oasis1_cross_sectional\.csv, row 5"):
        _ = oasis(tmp_path).cohort
    Image.fromarray(np.zeros((300, 300), np.uint8)).save(file)
    with pytest.raises(DataError, match=r"row 5.*300 x 300 pixels, expected at most 208"):
        _ = oasis(tmp_path).cohort
    file.unlink()
    with pytest.raises(DataError, match="1 slices do not exist"):
        _ = oasis(tmp_path).cohort
    table.drop(columns="cdr").to_csv(tmp_path / "oasis1_cross_sectional.csv", index=False)
    with pytest.raises(DataError, match=r"lacks the columns \['cdr'\]"):
        _ = oasis(tmp_path).cohort
    file.write_bytes(whole)
    table = table.assign(cdr=["", *table["cdr"][1:]])
    table.assign(sex=["F", "X", *table["sex"][2:]]).to_csv(tmp_path / "oasis1_cross_sectional.csv", index=False)
    with pytest.raises(DataError, match="row 3: column 'sex' holds 'X'"):
        _ = oasis(tmp_path).cohort
    table.to_csv(tmp_path / "oasis1_cross_sectional.csv", index=False)
    data = oasis(tmp_path)
    assert len(data.samples) == 19 and data.skipped == {"unknown clinical dementia rating": 1}
    with pytest.raises(DataError, match="augment_flip"):
        oasis(tmp_path, plane="sagittal", augment_flip=True)


def test_real_oasis(real_data, tmp_path) -> None:
    folder = real_data / "oasis1"
    if not folder.is_dir():
        pytest.skip("needs OASIS-1 slices in MEDPRISM_DATA/oasis1")
    data = OasisSlices(str(folder), plane="all", cache_dir=str(tmp_path), jobs=1)
    assert data.cohort.input_shape == (3, 96, 96) and len(data.samples) == 196
    samples = data.samples
    sex, age = samples.attributes["sex"], samples.attributes["age"]
    assert samples.target.sum() == 98 and samples.target[sex == 1].sum() == 40 and (sex == 1).sum() == 66
    assert (age == 1).sum() == 105 and (age == 0).sum() == 91
    pictures = inputs(data, "image")
    assert pictures.min() >= 0 and 0.5 < pictures.max() <= 1
    # Coronal and axial slices are nearly mirror-symmetric between left and right.
    for channel in (0, 1):
        mean = pictures[:, channel].mean(axis=0)
        assert np.corrcoef(mean.ravel(), mean[:, ::-1].ravel())[0, 1] > 0.95


def test_real_volumes_by_manifest(real_data, tmp_path) -> None:
    files = sorted((real_data / "ixi").glob("*_T1.nii.gz"))
    if len(files) < 2:
        pytest.skip("needs the two IXI volumes in MEDPRISM_DATA/ixi")
    table = pd.DataFrame({"id": ["a", "b"], "volume": list(map(str, files)), "target": ["0", "1"]})
    table.to_csv(tmp_path / "table.csv", index=False)
    data = manifest(tmp_path, shape=(48, 56, 48), spacing=4.0, attributes=[], cuts=None)
    assert data.cohort.input_shape == (1, 48, 56, 48)
    volumes = inputs(data)
    # Two heads in the same orientation agree, roughly.
    assert np.corrcoef(volumes[0].ravel(), volumes[1].ravel())[0, 1] > 0.6
