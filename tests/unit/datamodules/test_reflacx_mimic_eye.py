from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from medprism.data.errors import DataError
from medprism.datamodules.reading_room_layouts import image_id, study_path

from readings import CASES, SEED, edited, make


# ------------------------------------------------------------------------------------------------------------- REFLACX
def test_reflacx_follows_its_tables(written, tmp_path: Path) -> None:
    data = make("reflacx", written("reflacx"), tmp_path, certainty=4)
    data.setup("fit")
    assert data.cohort.target.classes == ("no pleural abnormality", "Pleural abnormality")
    cases = {case.number: case for case in CASES}
    severe = {"moderate", "severe"}
    for name, code in zip(data.samples.id, data.samples.target, strict=True):
        case = cases[int(name[-6:])]
        sure = case.finding == "Pleural Effusion" and any(lesion.severity in severe for lesion in case.lesions)
        assert code == sure  # phase 1 calls it pleural effusion
    discarded = sum(case.fixations is None for case in CASES if case.number % 8 > 1)
    again = sum(case.fixations is None for case in CASES if case.number % 8 < 2)
    reason = "reading whose eye tracking was discarded, without a transcript"
    assert data.skipped.get(reason, 0) == discarded + again == 2
    readings = pd.Series(data.samples.subject).value_counts()
    assert readings.max() == 2  # several readings of one image are several samples of one subject
    for part in ("train", "validation", "test"):
        names = set(data.split.part(part))
        assert {data.samples.subject[row] for row in data.rows(part)} == names


def test_reflacx_labels_differ_between_phases(written, tmp_path: Path) -> None:
    folder = written("reflacx")
    late = make("reflacx", folder, tmp_path, finding="Enlarged hilum")
    with pytest.raises(DataError, match=r"column 'finding' has no rows for \['present'\]"):
        _ = late.labels
    assert late.skipped["reading of a phase without this label"] == 6
    with pytest.raises(
        DataError, match=r"main_data: no table has the label 'edema'; choose one of \['Airway wall thick"
    ):
        _ = make("reflacx", folder, tmp_path, finding="edema").labels
    with pytest.raises(DataError, match="certainty is 6; REFLACX's certainties are 1 to 5"):
        make("reflacx", folder, tmp_path, certainty=6)


def test_bad_metadata_is_explained(copied) -> None:
    folder = copied("reflacx")
    file = folder / "main_data" / "metadata_phase_3.csv"
    original = file.read_text()
    cases = [
        (
            lambda t: t.assign(Consolidation="maybe"),
            r"metadata_phase_3\.csv, row 2: column 'Consolidation' holds 'maybe'",
        ),
        (lambda t: t.drop(columns="image_size_x"), r"metadata_phase_3\.csv lacks the columns \['image_size_x'\]"),
        (
            lambda t: t.assign(image_size_x="0"),
            r"metadata_phase_3\.csv, row \d+: the image has no size \(0\.0 x 120\.0\)",
        ),
        (lambda t: t.assign(image_size_y="wide"), r"metadata_phase_3\.csv, row 2: column 'image_size_y' holds 'wide'"),
        (lambda t: t.assign(dicom_id=""), r"metadata_phase_3\.csv, row 2: column 'dicom_id' is empty"),
    ]
    for change, message in cases:
        edited(file, change)
        with pytest.raises(DataError, match=message):
            _ = make("reflacx", folder, finding="Consolidation").labels
        file.write_text(original)
    file.write_bytes(original.replace("split", "splüt").encode("latin-1"))
    with pytest.raises(DataError, match=r"metadata_phase_3\.csv cannot be read"):
        _ = make("reflacx", folder).labels
    with pytest.raises(DataError, match=r"main_data holds no metadata_phase_1\.csv, _2 or _3"):
        _ = make("reflacx", folder / "main_data").labels


def test_reflacx_images_must_have_the_recorded_size(copied, tmp_path: Path) -> None:
    folder = copied("reflacx")
    case = CASES[2]
    file = folder / "files" / study_path(case) / f"{image_id(case, SEED)}.jpg"
    with Image.open(file) as film:
        film.crop((0, 0, film.width, film.height - 20)).save(file)
    match = r"P300R000002|metadata_phase_3\.csv, row 2\): is 104 x 100 pixels, but gaze was recorded on 104 x 120"
    with pytest.raises(DataError, match=match):
        _ = make("reflacx", folder, finding="Consolidation").cohort
    data = make("reflacx", folder, finding="Consolidation", unreadable="skip")
    whole = len(data.readings)
    data.setup("fit")
    assert data.skipped["unreadable"] == 1 and len(data.samples) == whole - 1 and "P300R000002" not in data.samples.id
    # Gaze and sentences stay with their images.
    row = data.samples.id.index("P300R000003")
    batch = data.reader(False)(torch.tensor([row]))
    assert batch["sentences"][0] == [sentence.text for sentence in CASES[3].sentences]


def test_missing_gaze_leaves_a_reading_without(copied) -> None:
    folder = copied("reflacx")
    (folder / "main_data" / "P300R000002" / "fixations.csv").unlink()
    (folder / "main_data" / "P300R000003" / "timestamps_transcription.csv").unlink()
    data = make("reflacx", folder, finding="Consolidation")
    assert data.skipped == {} and data.labels
    assert data.skipped["reading without fixations, kept without gaze"] == 1
    assert data.skipped["transcript without times, read as text"] == 1
    row = [reading.id for reading in data.readings].index("P300R000002")
    assert data.readings[row].fixations is None and data.readings[row].sentences


def test_damaged_words_are_mended_and_counted(copied) -> None:
    folder = copied("reflacx")
    file = folder / "main_data" / "P300R000002" / "timestamps_transcription.csv"

    def unsorted(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[0, ["timestamp_start_word", "timestamp_end_word"]] = ["", ""]
        return table.iloc[[0, 2, 1, *range(3, len(table))]]

    edited(file, unsorted)
    data = make("reflacx", folder, finding="Consolidation")
    assert data.labels and data.skipped["word that begins before the one before it, sorted"] == 1
    assert data.skipped["word without a time, kept as text"] == 1
    edited(file, lambda table: table.assign(timestamp_end_word="-1000"))
    with pytest.raises(DataError, match=r"P300R000002/timestamps_transcription\.csv, word \d+ .*ends before that"):
        _ = make("reflacx", folder, finding="Consolidation").labels


def mimic_tables(folder: Path, views: tuple[str, str] = ("AP", "PA")) -> Path:
    """MIMIC-CXR-JPG's tables beside the films, and MIMIC-IV's patients."""
    rows = [[image_id(c, SEED), str(10000000 + c.number), views[c.number % 2], "21600101"] for c in CASES]
    columns = ["dicom_id", "subject_id", "ViewPosition", "StudyDate"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "mimic-cxr-2.0.0-metadata.csv.gz", index=False)
    people = [[10000000 + c.number, "MF"[c.number % 2], 30 + 2 * c.number, 2150] for c in CASES]
    columns = ["subject_id", "gender", "anchor_age", "anchor_year"]
    pd.DataFrame(people, columns=columns).to_csv(folder / "patients.csv", index=False)
    split = [[image_id(c, SEED), ["train", "train", "validate", "test"][c.number % 4]] for c in CASES]
    pd.DataFrame(split, columns=["dicom_id", "split"]).to_csv(folder / "mimic-cxr-2.0.0-split.csv.gz", index=False)
    return folder / "patients.csv"


def test_mimic_tables_tell_view_sex_and_age(copied) -> None:
    folder = copied("reflacx")
    with pytest.raises(DataError, match=r"nothing tells \['view'\]"):
        _ = make("reflacx", folder, attributes=("view",)).labels
    with pytest.raises(
        DataError, match=r"holds no mimic-cxr-\*-metadata\.csv, .* set images to the folder of MIMIC-CXR-JPG"
    ):
        _ = make("reflacx", folder, patients=str(folder / "patients.csv")).labels
    patients = mimic_tables(folder)
    data = make("reflacx", folder, finding="Consolidation", attributes=None, patients=str(patients))
    for row, name in enumerate(data.samples.id):
        number = int(name[-6:])
        assert data.samples.attributes["view"][row] == data.samples.attributes["sex"][row] == number % 2
        assert data.samples.attributes["age"][row] == (40 + 2 * number >= 60)
    mimic_tables(folder, ("AP", "LATERAL"))
    lateral = make("reflacx", folder, finding="Consolidation")
    assert all(int(name[-6:]) % 2 == 0 for name in lateral.samples.id)
    assert lateral.skipped["view not in ['AP', 'PA']"] > 10


def test_official_split(written, copied, tmp_path: Path) -> None:
    data = make("reflacx", written("reflacx"), tmp_path, finding="Consolidation", official_split=True)
    parts = {8: "validation", 9: "test"}
    for part in ("train", "validation", "test"):
        numbers = {int(name[1:]) - 10000000 for name in data.split.part(part)}
        assert numbers and all(parts.get(number % 10, "train") == part for number in numbers)
    folder = copied("egd")
    with pytest.raises(
        DataError, match=r"master_sheet\.csv, row 2: the official split of image .* is '', expected one of"
    ):
        _ = make("egd", folder, official_split=True).split
    mimic_tables(folder)
    split = make("egd", folder, official_split=True).split
    assert (len(split.train), len(split.validation), len(split.test)) == (12, 6, 6)

    case = next(case for case in CASES if case.number % 8 == 0 and case.fixations is not None)

    def torn(table: pd.DataFrame) -> None:
        table.loc[table["id"] == f"P101R{case.number:06d}", "split"] = "other"

    folder = copied("reflacx")
    edited(folder / "main_data" / "metadata_phase_1.csv", torn)
    with pytest.raises(DataError, match=r"official split of image .* is 'other', expected one of"):
        _ = make("reflacx", folder, finding="Consolidation", official_split=True).split
    edited(folder / "main_data" / "metadata_phase_1.csv", lambda table: table.replace({"split": {"other": "test"}}))
    with pytest.raises(
        DataError, match=rf"patient p{10000000 + case.number} is in \['t.*\]; a patient has one part only"
    ):
        _ = make("reflacx", folder, finding="Consolidation", official_split=True).split


# ------------------------------------------------------------------------------------------------------------ MIMIC-EYE
def test_mimic_eye_holds_both(written, tmp_path: Path) -> None:
    folder = written("mimic_eye")
    data = make("mimic_eye", folder, tmp_path, attributes=("view", "sex"))
    data.setup("fit")
    cases = {f"p{10000000 + case.number}": case for case in CASES}
    by_image: dict[str, set[str]] = {}
    for row, reading in enumerate(data.readings):
        case = cases[reading.subject]
        by_image.setdefault(reading.image, set()).add("EGD" if reading.id.startswith("EGD-") else "REFLACX")
        assert data.samples.target[row] == (case.finding == "Pleural Effusion")
        assert data.samples.attributes["view"][row] == ("AP", "PA").index(case.view)
        assert data.samples.attributes["sex"][row] == ("male", "female").index(case.sex)
        assert Path(reading.image).is_file() and f"patient_{reading.subject[1:]}" in reading.source
    assert sum(len(origins) == 2 for origins in by_image.values()) >= 6
    for part in ("train", "validation", "test"):
        assert {data.samples.subject[row] for row in data.rows(part)} == set(data.split.part(part))
    egd = make("mimic_eye", folder, tmp_path, sources=("EGD",))
    assert egd.samples.id and all(name.startswith("EGD-") for name in egd.samples.id)
    assert make("mimic_eye", folder, tmp_path, official_split=True).split.test
    ignored = make("mimic_eye", folder, tmp_path, uncertain="u_ignore")
    uncertain = sum(case.finding == "Pleural Effusion" and case.number % 10 == 7 for case in CASES)
    assert (len(ignored.samples) < len(data.samples)) == bool(uncertain)


def test_mimic_eye_with_readings_beside_the_table(copied) -> None:
    folder = copied("mimic_eye")
    names = [reading.id for reading in make("mimic_eye", folder).readings]
    for home in folder.glob("patient_*/REFLACX"):
        for reading in (home / "main_data").iterdir():
            shutil.move(reading, home / reading.name)
        (home / "main_data").rmdir()
    assert [reading.id for reading in make("mimic_eye", folder).readings] == names


def test_bad_mimic_eye_is_explained(copied) -> None:
    folder = copied("mimic_eye")
    home = folder / "patient_10000000" / "CXR-JPG"
    with pytest.raises(DataError, match="there is no finding 'Effusion'"):
        make("mimic_eye", folder, finding="Effusion")
    with pytest.raises(DataError, match=r"sources are \['MIMIC'\]; choose REFLACX, EGD, or both"):
        make("mimic_eye", folder, sources=("MIMIC",))
    with pytest.raises(DataError, match=r"CXR-JPG holds no folder patient_\*"):
        _ = make("mimic_eye", home).labels
    labels = (home / "cxr_chexpert.csv").read_text()
    edited(home / "cxr_chexpert.csv", lambda table: table.assign(**{"Pleural Effusion": "2.0"}))
    with pytest.raises(
        DataError, match=r"patient_10000000/CXR-JPG/cxr_chexpert\.csv, row 2: column 'Pleural Effusion' ho"
    ):
        _ = make("mimic_eye", folder).labels
    edited(home / "cxr_chexpert.csv", lambda table: table.assign(study_id="1"))
    data = make("mimic_eye", folder)
    assert data.labels and data.skipped["study without chexpert labels"] >= 1
    edited(home / "cxr_chexpert.csv", lambda table: table.drop(columns="Pleural Effusion"))
    with pytest.raises(DataError, match=r"cxr_chexpert\.csv lacks the columns \['Pleural Effusion'\]"):
        _ = make("mimic_eye", folder).labels
    (home / "cxr_chexpert.csv").write_text(labels)
    edited(home / "cxr_meta.csv", lambda table: table.assign(dicom_id="another"))
    with pytest.raises(
        DataError, match=r"cxr_meta\.csv lacks the image .* of patient_10000000/REFLACX/metadata\.csv, row 2"
    ):
        _ = make("mimic_eye", folder).labels
    (home / "cxr_meta.csv").unlink()
    with pytest.raises(DataError, match=r"cxr_meta\.csv cannot be read"):
        _ = make("mimic_eye", folder).labels
