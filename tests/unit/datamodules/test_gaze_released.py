from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.datamodules.gaze_tables import image_file, middle
from medprism.datamodules.reading_room_layouts import image_id

from readings import CASES, SEED, WRITERS, edited, make

CONFIGS = Path(__file__).parents[3] / "configs" / "data"


@pytest.mark.parametrize("kind", [*WRITERS, "reading_room"])
def test_shipped_config_reads_the_layout(written, tmp_path: Path, kind: str) -> None:
    parser = ArgumentParser()
    parser.add_subclass_arguments(CohortDataModule, "data")
    flags = [f"--data={CONFIGS / kind}.yaml", f"--data.cache_dir={tmp_path}", "--data.batch_size=4", "--data.size=32"]
    if kind in WRITERS:
        flags += [f"--data.root={written(kind)}", "--data.gaze_size=16"]
    if kind in ("egd", "reflacx"):
        flags += ["--data.images=null", "--data.attributes=[]"]
    if kind == "mimic_eye":
        flags += ["--data.sigma_px=5"]
    if kind == "reading_room":
        flags += ["--data.people=40"]
    data = parser.instantiate_classes(parser.parse_args(flags)).data
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (4, *data.cohort.input_shape) and set(batch) == set(data.cohort.fields)
    assert batch["gaze"].shape[2:] == data.cohort.grid and batch["has_gaze"].any()
    assert len(data.cohort.target.phrases[0]) >= 3 and data.cohort.simulated == (kind == "reading_room")


# ------------------------------------------------------------------------------------------------------------- EGD-CXR
def test_egd_diagnoses(written, tmp_path: Path) -> None:
    data = make("egd", written("egd"), tmp_path, attributes=("sex", "age"))
    data.setup("fit")
    assert data.cohort.target.classes == ("normal", "congestive heart failure", "pneumonia")
    by_image = {image_id(case, SEED): case for case in CASES}
    for row, name in enumerate(data.samples.id):
        case = by_image[name]
        expected = 0 if case.number % 4 == 3 else 2 if case.finding == "Consolidation" else 1
        assert data.samples.target[row] == expected and data.samples.subject[row] == f"p{10000000 + case.number}"
        assert data.samples.attributes["sex"][row] == ["male", "female"].index(case.sex)
        assert data.samples.attributes["age"][row] == (case.age // 10 * 10 + 5 >= 60)
    assert data.skipped["gaze row of a calibration image"] == 3 * 24
    assert data.skipped["gaze row that the eye tracker calls invalid"] == sum(
        r.fixations is not None for r in data.readings
    )
    assert data.skipped["reading without fixations, kept without gaze"] == 2
    known = [reading.fixations is not None for reading in data.readings]
    np.testing.assert_array_equal(data.texts.gaze.known, known)


def test_egd_labels_of_the_report(written, tmp_path: Path) -> None:
    folder = written("egd")
    data = make("egd", folder, tmp_path, target="Consolidation", uncertain="u_zeros")
    present = {
        image_id(c, SEED) for c in CASES if c.finding == "Consolidation" and c.number % 10 != 7 and c.number % 4 != 3
    }
    assert {name for name, code in zip(data.samples.id, data.samples.target, strict=True) if code} == present
    assert data.cohort.target.classes == ("no consolidation", "consolidation")
    same = make("egd", folder, tmp_path, target="consolidation__chx", uncertain="u_zeros")
    assert same.samples.target.tolist() == data.samples.target.tolist()
    with pytest.raises(
        DataError, match=r"no label is called 'Plague'; choose diagnosis, or one of \['no_finding__chx'"
    ):
        _ = make("egd", folder, tmp_path, target="Plague").labels


def test_egd_needs_exactly_one_diagnosis(copied) -> None:
    folder = copied("egd")

    def change(table: pd.DataFrame) -> None:
        table.loc[0, ["Normal", "CHF", "pneumonia"]] = ["0", "0", "0"]
        table.loc[1, ["Normal", "CHF", "pneumonia"]] = ["0", "1", "1"]

    edited(folder / "master_sheet.csv", change)
    data = make("egd", folder)
    assert len(data.samples) == 22 and data.skipped["image without exactly one diagnosis"] == 2
    edited(folder / "master_sheet.csv", lambda table: table.drop(columns="CHF"))
    with pytest.raises(DataError, match=r"master_sheet\.csv lacks the columns \['CHF'\]"):
        _ = make("egd", folder).labels


def test_samples_of_gaze_give_the_fixations(written, tmp_path: Path) -> None:
    fine = make("egd", written("egd"), tmp_path, gaze_file="eye_gaze")
    for a, b in zip(fine.readings, make("egd", written("egd"), tmp_path).readings, strict=True):
        if a.fixations is not None:
            np.testing.assert_allclose(a.fixations.end, b.fixations.end, atol=2e-5)
            np.testing.assert_array_equal(a.fixations.x, b.fixations.x)


def test_egd_transcripts_can_be_missing_empty_or_untimed(copied) -> None:
    folder = copied("egd")
    home = folder / "audio_segmentation_transcripts"
    first, second, third, fourth = (image_id(case, SEED) for case in CASES[:4])
    (home / first / "transcript.json").unlink()
    (home / second / "transcript.json").write_text('{"full_text": " ", "time_stamped_text": []}')
    (home / third / "transcript.json").write_text('{"full_text": "Edema. No effusion.", "time_stamped_text": []}')
    data = make("egd", folder)
    assert len(data.samples) == 22
    assert data.skipped["reading without a transcript"] == data.skipped["reading whose report has no sentence"] == 1
    assert data.skipped["transcript without times, read as text"] == 1
    row = data.samples.id.index(third)
    first_map, second_map = data.texts.gaze.maps[data.texts.gaze.start[row] :][:2]
    assert first_map.max() == 255 and (first_map == second_map).all()  # that of the whole reading
    (home / fourth / "transcript.json").write_bytes(b"\xff")
    with pytest.raises(DataError, match=rf"{fourth}/transcript\.json: byte 0 is not UTF-8"):
        _ = make("egd", folder).labels
    shutil.rmtree(home)
    with pytest.raises(DataError, match=r"none of 24 images can be used .*reading without a transcript"):
        _ = make("egd", folder).labels


def test_another_clock_is_reported(copied, caplog) -> None:
    folder = copied("egd")
    row, name = next((r, image_id(case, SEED)) for r, case in enumerate(CASES, 2) if case.fixations is not None)
    file = folder / "audio_segmentation_transcripts" / name / "transcript.json"
    content = json.loads(file.read_text())
    for phrase in content["time_stamped_text"]:
        phrase["begin_time"] += 1000
        phrase["end_time"] += 1000
    file.write_text(json.dumps(content))
    data = make("egd", folder)
    data.setup("fit")
    assert f"master_sheet.csv, row {row}: all gaze" in caplog.text and "is one of their clocks wrong?" in caplog.text
    assert data.skipped["reading whose gaze lies outside of all its sentences (wrong clock?)"] == 1


def test_egd_images_must_be_those_of_the_gaze(copied, tmp_path: Path) -> None:
    folder = copied("egd")
    whole = make("egd", folder)
    name = next(reading.id for reading in whole.readings if reading.fixations is not None)
    file = folder / "images" / f"{name}.png"
    with Image.open(file) as film:
        smaller, cropped = film.resize((film.width // 2, film.height // 2)), film.crop((0, 0, film.width, 70))
    smaller.save(file)
    again = make("egd", folder)
    row = again.samples.id.index(name)
    np.testing.assert_allclose(again.readings[row].size, whole.readings[row].size, atol=2)
    change = np.abs(again.texts.gaze.maps.astype(int) - whole.texts.gaze.maps).max()
    assert change < 20 and again.cohort.input_shape == (1, 32, 32)
    cropped.save(file)
    with pytest.raises(
        DataError, match=rf"{name}\.png \(master_sheet\.csv, row \d+\): is .* pixels, but gaze was recorded"
    ):
        _ = make("egd", folder).labels
    data = make("egd", folder, unreadable="skip")
    data.setup("fit")
    assert data.skipped["reading of an image that cannot be read, or is not the one that was read"] == 1
    assert len(data.samples) == 23
    file.unlink()
    with pytest.raises(DataError, match=rf"{name}\.jpg \(master_sheet\.csv, row \d+\) does not exist"):
        _ = make("egd", folder).labels


def test_images_are_found_by_path_or_name(tmp_path: Path) -> None:
    name = "0123abcd-" * 5
    expected = tmp_path / "files" / "p10" / "p10000032" / "s50414267" / f"{name}.jpg"
    assert image_file(tmp_path, "10000032", "50414267", name) == expected  # for the message
    for place in (f"images/{name}.png", f"{name}.dcm", f"{name}.jpg", f"p10/p10000032/s50414267/{name}.jpg", expected):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
        assert image_file(tmp_path, "10000032", "50414267", name) == tmp_path / place


def test_ages_can_be_ranges() -> None:
    assert [middle(cell) for cell in ("50 - 60", "71", "", "> 80")] == ["55", "71", "", "> 80"]
