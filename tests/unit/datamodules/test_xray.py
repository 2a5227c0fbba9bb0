from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser

from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.data.imaging import read_picture, resized
from medprism.datamodules.images import ImageDataModule
from medprism.datamodules.simulated_xray import PLACES, SimulatedXray
from medprism.datamodules.xray import CheXpert, CovidXray, MimicCXR, NIHChestXray
from medprism.datamodules.xray_manifest import XrayManifest

from layouts import (
    XRAY_PATIENTS,
    write_chexpert,
    write_covid,
    write_dicom,
    write_mimic_cxr,
    write_morpho_mnist,
    write_nih,
    write_picture,
    write_xray_manifest,
)

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
WRITERS = {
    "chexpert": write_chexpert,
    "mimic_cxr": write_mimic_cxr,
    "nih_chestxray": write_nih,
    "covid": write_covid,
    "xray_manifest": write_xray_manifest,
    "morpho_mnist": write_morpho_mnist,
    "digits": lambda folder: None,
    "simulated_xray": lambda folder: None,
}


def small(folder: Path, **options: object) -> dict:
    return {"size": 16, "cache_dir": str(folder / "cache"), "jobs": 1, "folds": 3} | options


def chexpert(folder: Path, **options: object) -> CheXpert:
    return CheXpert(str(folder / "CheXpert-v1.0-small"), **small(folder, **options))


def manifest(folder: Path, **options: object) -> XrayManifest:
    given = {"cuts": {"age": [50]}} | options
    return XrayManifest(str(folder), str(folder / "images.csv"), **small(folder, **given))


def pictures(data: ImageDataModule) -> np.ndarray:
    return data.reader(False)(torch.arange(len(data.samples)))["image"].numpy()


@pytest.mark.parametrize("name", WRITERS)
def test_shipped_config_reads_the_layout(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(CohortDataModule, "data")
    flags = [f"--data={CONFIGS / name}.yaml", f"--data.cache_dir={tmp_path / 'cache'}", "--data.batch_size=8"]
    if name not in ("digits", "simulated_xray"):
        flags.append(f"--data.root={tmp_path / 'CheXpert-v1.0-small' if name == 'chexpert' else tmp_path}")
    if name == "xray_manifest":
        flags += [f"--data.manifest={tmp_path / 'images.csv'}", "--data.bins={age: [20, 50, 80]}"]
    if name == "morpho_mnist":
        sizes = {"train": 100, "validation": 40, "same": 20, "inverted": 40, "balanced": 40}
        flags += [f"--data.{part}={n}" for part, n in sizes.items()]
    data = parser.instantiate_classes(parser.parse_args(flags)).data
    data.setup("fit")
    cohort = data.cohort
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, *cohort.input_shape) and batch["image"].isfinite().all()
    assert set(batch["attributes"]) == {factor.name for factor in cohort.attributes}
    assert cohort.simulated == (name == "simulated_xray")
    people = [set(data.split.part(part)) for part in ("train", "validation", "test")]
    assert len(set.union(*people)) == sum(map(len, people))


def test_chexpert_labels_follow_the_tables(tmp_path: Path) -> None:
    table = write_chexpert(tmp_path)
    data = chexpert(tmp_path)
    data.setup("fit")
    frontal = table[table["Frontal/Lateral"] == "Frontal"]
    known = frontal[frontal["Pleural Effusion"] != "-1.0"].set_index("Path")
    assert len(data.samples) == len(known) == 21
    assert data.skipped == {"view not in ['AP', 'PA']": XRAY_PATIENTS, "Pleural Effusion uncertain": 3}
    for k, name in enumerate(data.samples.id):
        row = known.loc[f"CheXpert-v1.0-small/{name}"]
        assert data.samples.target[k] == (row["Pleural Effusion"] == "1.0")  # not mentioned counts as absent
        assert data.samples.subject[k] == name.split("/")[1]
        assert data.samples.attributes["sex"][k] == {"Male": 0, "Female": 1, "Unknown": -1}[row["Sex"]]
        assert data.samples.attributes["age"][k] == (row["Age"] >= 60)
        assert data.samples.attributes["view"][k] == ["AP", "PA"].index(row["AP/PA"])
        file = tmp_path / "CheXpert-v1.0-small" / name
        np.testing.assert_allclose(pictures(data)[k, 0], resized(read_picture(file), 16), atol=1 / 255)
    assert data.cohort.target.classes == ("no pleural effusion", "Pleural Effusion")


@pytest.mark.parametrize(("policy", "samples", "present"), [("u_ones", 24, 15), ("u_zeros", 24, 12)])
def test_uncertain_findings_follow_the_policy(tmp_path: Path, policy: str, samples: int, present: int) -> None:
    write_chexpert(tmp_path)
    data = chexpert(tmp_path, uncertain=policy)
    assert (len(data.samples), data.samples.target.sum()) == (samples, present)


def test_lateral_views_can_be_had(tmp_path: Path) -> None:
    write_chexpert(tmp_path)
    data = chexpert(tmp_path, views=("AP", "PA", "lateral"), uncertain="u_zeros")
    assert len(data.samples) == 2 * XRAY_PATIENTS and data.cohort.attribute("view").classes[2] == "lateral"
    # Both images of a patient stay together.
    for part in ("train", "validation", "test"):
        assert len(data.rows(part)) == 2 * len(data.split.part(part))


def test_mimic_follows_its_tables(tmp_path: Path) -> None:
    table = write_mimic_cxr(tmp_path)
    data = MimicCXR(str(tmp_path), patients=str(tmp_path / "patients.csv.gz"), **small(tmp_path))
    data.setup("fit")
    assert data.skipped["view not in ['AP', 'PA']"] == XRAY_PATIENTS
    assert data.skipped["study without chexpert labels"] == 1 and data.skipped["Pleural Effusion uncertain"] == 1
    assert len(data.samples) == XRAY_PATIENTS - 2
    subject = table.set_index("dicom_id")["subject_id"]
    for k, name in enumerate(data.samples.id):
        person = (subject[name] - 10000032) // 1000
        assert data.samples.subject[k] == f"p{subject[name]}"
        assert data.samples.target[k] == (person % 4 in (0, 3))
        assert data.samples.attributes["sex"][k] == [1, 0][person // 2 % 2]
        age = 40 + person + (2 if person else 3)  # studied in 2180 or 2181, 40 + person years old in 2178
        assert data.samples.attributes["age"][k] == (age >= 60)
    assert [f.name for f in MimicCXR(str(tmp_path), **small(tmp_path)).cohort.attributes] == ["view"]
    with pytest.raises(DataError, match=r"nothing tells \['sex'\], only \['view'\]; give the table of patients"):
        _ = MimicCXR(str(tmp_path), attributes=("view", "sex"), **small(tmp_path)).labels


def test_nih_follows_its_table(tmp_path: Path, caplog) -> None:
    write_nih(tmp_path)
    data = NIHChestXray(str(tmp_path), **small(tmp_path))
    data.setup("fit")
    assert len(data.samples) == 2 * XRAY_PATIENTS and not data.skipped
    patient = np.arange(2 * XRAY_PATIENTS) // 2
    np.testing.assert_array_equal(data.samples.target, np.isin(patient % 4, (1, 2)))
    np.testing.assert_array_equal(data.samples.attributes["sex"], patient // 2 % 2)
    np.testing.assert_array_equal(data.samples.attributes["view"], 1 - np.arange(2 * XRAY_PATIENTS) % 2)
    age = np.where(np.arange(2 * XRAY_PATIENTS) == 6, -1, 38 + 2 * patient >= 60)
    np.testing.assert_array_equal(data.samples.attributes["age"], age)
    assert caplog.text.count("1 ages are below 0 or above 120 years") == 1
    with pytest.raises(DataError, match=r"no image has the finding 'effusion'; choose one of \['Cardiomegaly', 'Effus"):
        _ = NIHChestXray(str(tmp_path), finding="effusion", **small(tmp_path)).labels


def test_covid_leaves_unlabelled_out(tmp_path: Path) -> None:
    write_covid(tmp_path)
    data = CovidXray(str(tmp_path), **small(tmp_path))
    data.setup("fit")
    assert data.skipped == {"no finding given": 1} and len(data.samples) == 2 * XRAY_PATIENTS - 1
    patient = np.arange(1, 2 * XRAY_PATIENTS) // 2
    np.testing.assert_array_equal(data.samples.target, np.isin(patient % 4, (0, 2)))
    view = data.samples.attributes["view"]
    assert view[0] == -1 and (view[1:] == np.array([1, 0, 0] * 16)[2:][:46] % 2).all()
    assert data.samples.attributes["age"][1] == -1
    median = CovidXray(str(tmp_path), age_cuts=(), **small(tmp_path))
    codes = median.samples.attributes["age"]
    assert abs((codes == 0).sum() - (codes == 1).sum()) <= 2


def test_real_covid_images(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "covid_chestxray"
    if not root.is_dir():
        pytest.skip("needs covid_chestxray in MEDPRISM_DATA")
    data = CovidXray(str(root), cache_dir=str(tmp_path), jobs=2)
    data.setup("fit")
    assert data.skipped == {"no finding given": 85} and len(data.samples) == 268
    assert data.samples.target.sum() == 194
    assert data.cohort.input_shape == (1, 96, 96) and 0.2 < pictures(data).mean() < 0.7


def test_manifest_follows_its_table(tmp_path: Path) -> None:
    write_xray_manifest(tmp_path)
    data = manifest(tmp_path)
    cohort = data.cohort
    assert cohort.target.classes == ("healthy", "ill") and cohort.attribute("age").classes == (
        "below 50",
        "50 and above",
    )
    assert [(f.name, f.role) for f in cohort.attributes] == [
        ("sex", "sensitive"),
        ("age", "sensitive"),
        ("scanner", "nuisance"),
    ]
    assert data.samples.id[0] == "scan0.png" and data.samples.subject[12] == "p0"


def test_manifest_reads_jpeg_and_dicom(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    write_xray_manifest(tmp_path)
    table = pd.read_csv(tmp_path / "images.csv")
    write_picture(tmp_path / "a.jpg", 1)
    write_dicom(tmp_path / "b.dcm", np.arange(1200).reshape(30, 40))
    table.loc[0, "image"], table.loc[1, "image"] = "a.jpg", "b.dcm"
    table.to_csv(tmp_path / "images.csv", index=False)
    values = pictures(manifest(tmp_path))
    np.testing.assert_allclose(values[1, 0], resized(np.arange(1200).reshape(30, 40) / 1199, 16), atol=1 / 255)


def test_preparation_changes_the_pictures_and_the_cache(tmp_path: Path) -> None:
    write_xray_manifest(tmp_path)
    seen = [pictures(manifest(tmp_path, square=square)) for square in ("pad", "crop", "stretch", "pad")]
    assert not np.allclose(seen[0], seen[1]) and not np.allclose(seen[0], seen[2])
    np.testing.assert_array_equal(seen[0], seen[3])
    assert (seen[0][:, :, :1] == 0).all()  # 40 by 50 pixels are padded above and below
    assert pictures(manifest(tmp_path, size=20)).shape[2:] == (20, 20)


def test_clahe_is_applied_before_resizing(tmp_path: Path) -> None:
    pytest.importorskip("skimage")
    write_xray_manifest(tmp_path)
    plain, equal = pictures(manifest(tmp_path)), pictures(manifest(tmp_path, clahe=0.02))
    assert not np.allclose(plain, equal, atol=0.02) and equal.min() >= 0 and equal.max() <= 1


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"no picture", None])
def test_unreadable_picture_is_named_or_skipped(tmp_path: Path, damage) -> None:
    write_xray_manifest(tmp_path)
    file = tmp_path / "scan5.png"
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=r"scan5\.png \(images\.csv, row 7\)"):
        _ = manifest(tmp_path).cohort
    data = manifest(tmp_path, unreadable="skip")
    data.setup("fit")
    assert data.skipped == {"unreadable": 1} and len(data.samples) == 23 and "scan5.png" not in data.samples.id


def test_bad_manifest_is_explained(tmp_path: Path) -> None:
    table = write_xray_manifest(tmp_path)
    cases = [
        (table.drop(columns="image"), {}, r"lacks the columns \['image'\]"),
        (table, {"target": "diagnosis"}, r"lacks the columns \['diagnosis'\]"),
        (table.assign(scanner="A"), {}, "column 'scanner' has no rows for a second class"),
        (table.assign(target="ill"), {}, "column 'target' has no rows for a second class"),
        (table, {"target_classes": ["healthy", "sick"]}, r"row 3: column 'target' holds 'ill'"),
        (table, {"attribute_classes": {"scanner": ["A"]}}, "holds 'B'"),
        (table.assign(image="scan0.png"), {}, "occur more than once: scan0.png"),
        (table.assign(age="old"), {}, "row 2: column 'age' holds 'old', expected a number"),
    ]
    for changed, options, message in cases:
        changed.to_csv(tmp_path / "images.csv", index=False)
        with pytest.raises(DataError, match=message):
            _ = manifest(tmp_path, **options).labels


def test_bad_release_is_explained(tmp_path: Path) -> None:
    table = write_chexpert(tmp_path)
    train = tmp_path / "CheXpert-v1.0-small" / "train.csv"
    original = pd.read_csv(train, dtype=str, keep_default_na=False)
    cases = [
        (original.drop(columns="AP/PA"), {}, r"train\.csv lacks the columns \['AP/PA'\]"),
        (original, {"finding": "Edema"}, r"lacks the columns \['Edema'\]"),
        (original.assign(**{"Pleural Effusion": "2.0"}), {}, r"train\.csv, row 2: column 'Pleural Effusion' holds '2"),
        (original.assign(Path="x/y.jpg"), {}, r"train\.csv, row 2: path 'x/y\.jpg' names no patient"),
        (original.assign(Sex="Male"), {"tables": ("train.csv",)}, r"'sex' has no rows for \['female'\]"),
        (original, {"views": ("PA",)}, "column 'view' has no rows for a second class"),
        (original, {"views": ("LL",)}, "none of 48 images can be used"),
    ]
    for changed, options, message in cases:
        changed.to_csv(train, index=False)
        with pytest.raises(DataError, match=message):
            _ = chexpert(tmp_path, **options).labels
    original.to_csv(train, index=False)
    assert len(chexpert(tmp_path, attributes=("sex",), views=("PA",)).samples) < len(table) / 4
    train.unlink()
    with pytest.raises(DataError, match=r"train\.csv does not exist"):
        _ = chexpert(tmp_path).labels
    with pytest.raises(DataError, match=r"holds 0 files mimic-cxr-\*-metadata\.csv\*"):
        _ = MimicCXR(str(tmp_path)).labels


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finding": "Effusion"}, "there is no finding 'Effusion'; choose one of"),
        ({"attributes": ("race",)}, r"has no attributes \['race'\]"),
        ({"size": 2}, "size is 2"),
        ({"clahe": 2.0}, "clahe is 2.0"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        chexpert(tmp_path, **options)


def test_missing_files_are_counted(tmp_path: Path) -> None:
    write_nih(tmp_path)
    for file in sorted(tmp_path.glob("images_001/images/*.png"))[:5]:
        file.unlink()
    with pytest.raises(
        DataError, match=r"5 of 48 files do not exist, the first is .*_000\.png \(Data_Entry_2017\.csv, ro"
    ):
        _ = NIHChestXray(str(tmp_path), **small(tmp_path)).cohort


def test_planted_regions_hold_the_only_differences() -> None:
    plain = SimulatedXray(people=40, finding=0.0, attributes={"device": 0.0, "clip": 0.0}, split="holdout")
    planted = SimulatedXray(people=40, finding=0.4, attributes={"device": 0.3, "clip": 0.2}, split="holdout")
    samples, difference = planted.samples, np.abs(pictures(planted) - pictures(plain))[:, 0]
    codes = {"finding": samples.target, **samples.attributes}
    assert list(planted.planted) == ["finding", "device", "clip"]
    for name, mask in planted.planted.items():
        assert mask.shape == (48, 48) and 20 < mask.sum() < 100
        present = codes[name] == 1
        assert difference[present][:, mask].max(axis=1).min() > 0.05 and difference[~present][:, mask].max() == 0
    everywhere = np.any(list(planted.planted.values()), axis=0)
    assert difference[:, ~everywhere].max() == 0
    masks = list(planted.planted.values())
    assert sum(mask.sum() for mask in masks) == everywhere.sum()


def test_simulation_has_the_asked_ratios() -> None:
    data = SimulatedXray(people=400, ratio=0.8, test_ratio=0.2, split="holdout")
    assert data.cohort.simulated and "simulated" in data.cohort.name
    for part, ratio in {"train": 0.8, "validation": 0.8, "test": 0.2}.items():
        rows = data.rows(part)
        assert data.samples.target[rows].mean() == pytest.approx(0.5, abs=0.01)
        for codes in data.samples.attributes.values():
            assert (codes[rows] == data.samples.target[rows]).mean() == pytest.approx(ratio, abs=0.02)
    again = SimulatedXray(people=400, ratio=0.8, test_ratio=0.2, split="holdout")
    assert again.cohort.fingerprint == data.cohort.fingerprint
    assert SimulatedXray(people=400, seed=1).cohort.fingerprint != data.cohort.fingerprint


def test_any_number_of_attributes() -> None:
    names = {f"shortcut {k}": 0.3 for k in range(len(PLACES) - 1)}
    assert len(SimulatedXray(people=20, attributes=names, size=16).planted) == len(PLACES)
    assert SimulatedXray(people=20, attributes={}).cohort.attributes == ()
    with pytest.raises(DataError, match="take at most 7"):
        SimulatedXray(attributes={**names, "more": 0.3})
    with pytest.raises(DataError, match="none of them called finding"):
        SimulatedXray(attributes={"finding": 0.3})
    with pytest.raises(DataError, match=r"ratio is 1"):
        SimulatedXray(ratio=1.0)
