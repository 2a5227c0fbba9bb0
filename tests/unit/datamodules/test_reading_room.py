from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.data.transcripts import split_text
from medprism.datamodules.gaze import GazeDataModule
from medprism.datamodules.gaze_released import EGDCXR, MIMICEYE, REFLACX
from medprism.datamodules.reading_room import SimulatedReadingRoom
from medprism.datamodules.reading_room_cases import SEXES, Case, read_again, simulated_cases, without_finding
from medprism.datamodules.reading_room_files import write_egd, write_mimic_eye, write_reflacx
from medprism.datamodules.reading_room_layouts import film, film_size
from medprism.datamodules.reading_room_pictures import LOOKS, Ellipse, Mark
from medprism.datamodules.reading_room_words import DEVICES, FINDINGS, SEVERITIES, prompts

GOLDEN = {
    "egd": (write_egd, "bf6f5d7e04b21a5d407e9eb75281a7770dbe96a11215cd26979e94e1da13049e"),
    "reflacx": (write_reflacx, "7c51cd2076057fe4cbfd494d91790c476fed497ba9fce9e40d648b7c4449635b"),
    "mimic_eye": (write_mimic_eye, "3f1078cc013fb7a741a0e68c44e9a7f2bfab4933fad20236a835dec641b7cf17"),
}
READERS = {"egd": EGDCXR, "reflacx": REFLACX, "mimic_eye": MIMICEYE}


def room(folder: Path, **options: object) -> SimulatedReadingRoom:
    given = {"people": 60, "size": 32, "cache_dir": str(folder), "jobs": 1, "split": "holdout", "gaze_size": 16}
    return SimulatedReadingRoom(**(given | options))


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> SimulatedReadingRoom:
    """A small room that no test changes."""
    data = room(tmp_path_factory.mktemp("cache"))
    data.setup("fit")
    return data


def whole(data: CohortDataModule) -> dict:
    return dict(data.reader(False)(torch.arange(len(data.samples))))


# ------------------------------------------------------------------------------------------------------------ in memory
def test_cohort_declares_what_batches_have(made: SimulatedReadingRoom) -> None:
    cohort, batch = made.cohort, next(iter(made.train_dataloader()))
    assert cohort.simulated and "simulated" in cohort.name and "SIMULATED" in (SimulatedReadingRoom.__doc__ or "")
    assert set(batch) == set(cohort.fields) >= {"image", "sentences", "gaze", "has_gaze", "boxes"}
    assert batch["image"].shape[1:] == cohort.input_shape == (1, 32, 32)
    most = max(map(len, batch["sentences"]))
    assert batch["gaze"].shape == (len(batch["id"]), most, 16, 16) and cohort.grid == (16, 16)
    assert batch["gaze"].min() >= 0 and batch["gaze"].max() == 1
    assert cohort.target.classes == tuple(FINDINGS) and [f.name for f in cohort.attributes] == ["view", "sex"]
    assert cohort.attribute("sex").role == "sensitive" and cohort.target.phrases[0] == prompts("Atelectasis")
    json.dumps(cohort.to_dict())


def test_simulation_depends_on_its_seed_alone(made: SimulatedReadingRoom, tmp_path: Path) -> None:
    again, other = room(tmp_path), room(tmp_path, seed=1)
    assert again.cohort.fingerprint == made.cohort.fingerprint != other.cohort.fingerprint
    assert again.texts.sentences == made.texts.sentences != other.texts.sentences
    np.testing.assert_array_equal(again.texts.gaze.maps, made.texts.gaze.maps)


def test_labels_are_balanced_and_independent() -> None:
    cases = simulated_cases(200, seed=2)
    for finding in FINDINGS:
        assert sum(case.finding == finding for case in cases) == 40
    assert sum(case.view == "AP" for case in cases) == sum(case.sex == SEXES[0] for case in cases) == 100
    both = sum((case.view == "AP") == (case.sex == SEXES[0]) for case in cases)
    assert abs(both - 100) < 30
    assert sum(case.fixations is None for case in cases) == 20
    assert 30 < sum(len(case.lesions) == 2 for case in cases) < 90  # several findings of one kind


def test_reports_name_finding_severity_and_place(made: SimulatedReadingRoom) -> None:
    for case in made.cases:
        said = " ".join(sentence.text for sentence in case.sentences).lower()
        words = FINDINGS[case.finding]
        assert any(name in said for name in words.names) and 3 <= len(case.sentences) <= 14
        for lesion in case.lesions:
            assert any(place in said for place in words.places[lesion.place][1])
            assert any(word in said for word in SEVERITIES[lesion.severity])
            assert lesion.phrase == f"{lesion.severity} {words.names[0]} {words.places[lesion.place][1][0]}"
        # One splitter: the report as text has the same sentences.
        text = " ".join(sentence.text for sentence in case.sentences)
        assert split_text(text) == [sentence.text for sentence in case.sentences]
        other = set(FINDINGS) - {case.finding}
        assert not any(FINDINGS[name].names[0] in said.replace("no pleural effusion", "") for name in other)


def test_words_follow_each_other(made: SimulatedReadingRoom) -> None:
    for case in made.cases:
        times = np.array([[word.start, word.end] for words in case.spoken for word in words])
        assert (np.diff(times.ravel()) >= 0).all() and times[0, 0] > 0.4
        for words, sentence in zip(case.spoken, case.sentences, strict=True):
            assert (sentence.start, sentence.end) == (words[0].start, words[-1].end)
        if case.fixations is not None:
            assert (np.diff(case.fixations[:, 2:].ravel()) > 0).all()
            assert case.fixations[-1, 3] > times[-1, 1]


def test_readers_look_at_what_they_say(made: SimulatedReadingRoom) -> None:
    batch, hits, chance = whole(made), [], []
    for row, case in enumerate(made.cases):
        if case.fixations is None:
            assert not batch["has_gaze"][row] and not batch["gaze"][row].any()
            continue
        for k, sentence in enumerate(case.sentences):
            for lesion in case.lesions:
                if FINDINGS[case.finding].places[lesion.place][1][0] in sentence.text.lower():
                    x, y, rx, ry = lesion.where
                    ys, xs = np.divmod(int(batch["gaze"][row, k].argmax()), 16)
                    hits.append(abs((xs + 0.5) / 16 - x) < rx + 0.05 and abs((ys + 0.5) / 16 - y) < ry + 0.05)
                    chance.append(4 * rx * ry)
    assert len(hits) > 30 and np.mean(hits) > 0.85 > 3 * np.mean(chance)


def test_attention_decides_where_they_look() -> None:
    def inside(attention: float) -> float:
        found = []
        for case in simulated_cases(30, attention=attention, without_gaze=0):
            x, y, start, end = case.fixations.T
            for words, sentence in zip(case.spoken, case.sentences, strict=True):
                if sentence.text.split()[-1] in ("view.", "radiograph."):
                    during = (start > words[0].start) & (end < words[-1].end)
                    found += (np.hypot(x[during] - 0.08, y[during] - 0.06) < 0.15).tolist()
        return float(np.mean(found))

    assert inside(1.0) > 0.95 and 0.6 < inside(0.7) < 0.85 and inside(0.0) < 0.15


def test_some_fixations_lie_off_the_film(made: SimulatedReadingRoom) -> None:
    outside = sum((case.fixations[:, 0] < 0).sum() for case in made.cases if case.fixations is not None)
    assert outside and made.skipped["fixation off the image, clipped away"] >= outside


def test_boxes_bound_the_findings(made: SimulatedReadingRoom) -> None:
    boxes = whole(made)["boxes"]
    for case, found in zip(made.cases, boxes, strict=True):
        assert [box.phrase for box in found] == [lesion.phrase for lesion in case.lesions]
        for box, lesion in zip(found, case.lesions, strict=True):
            x, y, rx, ry = lesion.where
            assert box[1:] == pytest.approx((x - rx, y - ry, min(x + rx, 1), min(y + ry, 1)))


@pytest.mark.parametrize("kind", LOOKS)
def test_marks_stay_in_their_place_and_differ(kind: str) -> None:
    where = Ellipse(0.3, 0.6, 0.12, 0.1)
    look = LOOKS[kind](64, Mark(kind, where, 1.0, (0.2, 0.4)))
    rows, columns = (np.mgrid[:64, :64] + 0.5) / 64
    far = (np.abs(columns - 0.3) > 0.15) | (np.abs(rows - 0.6) > 0.13)
    assert look.shape == (64, 64) and look.max() > 0.5 and np.abs(look[far]).max() < 0.05 and look.min() >= 0


def test_findings_view_and_sex_are_seen_on_the_film(made: SimulatedReadingRoom) -> None:
    case = made.cases[0]
    plain = without_finding(case, 0)
    assert plain.finding == "" and plain.lesions == () and plain.fixations is not None
    assert not any(name in " ".join(s.text for s in plain.sentences).lower() for name in FINDINGS[case.finding].names)
    difference = np.abs(case.picture(64, 0.0, 0) - plain.picture(64, 0.0, 0))
    rows, columns = (np.mgrid[:64, :64] + 0.5) / 64
    near = np.any([(abs(columns - w.x) < w.rx) & (abs(rows - w.y) < w.ry) for _, _, w, _ in case.lesions], axis=0)
    assert difference[near].max() > 0.05 and difference[~near].max() < 0.02
    for name, value in {"view": "PA" if case.view == "AP" else "AP", "sex": SEXES[case.sex == SEXES[0]]}.items():
        other = replace(case, **{name: value}).picture(64, 0.0, 0)
        assert np.abs(other - case.picture(64, 0.0, 0)).max() > 0.05


def test_attributes_can_be_confounded(tmp_path: Path) -> None:
    data = room(
        tmp_path,
        people=200,
        shift={"view": 0.8},
        shift_classes={"finding": ["Consolidation", "Pleural Effusion"]},
    )
    data.setup("fit")
    codes = data.samples.attributes["view"][data.rows("train")]
    target = data.samples.target[data.rows("train")]
    assert set(target.tolist()) == {2, 4} and ((target == 4) == codes).mean() == pytest.approx(0.8, abs=0.07)
    assert set(data.test_sets) == {"same", "inverted", "balanced", "native"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"people": 5}, "take at least 20 people"),
        ({"size": 16}, "films of 16 pixels"),
        ({"attention": 1.5}, "attention is 1.5"),
        ({"without_gaze": -0.1}, "without_gaze -0.1"),
        ({"noise": -1.0}, "noise -1.0"),
    ],
)
def test_impossible_rooms_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        room(tmp_path, **options)


# ------------------------------------------------------------------------------------------------------------- as files
@pytest.fixture(scope="module", params=list(GOLDEN))
def written(request, tmp_path_factory) -> tuple[str, Path, dict[str, Case]]:
    """24 cases in one layout."""
    folder = tmp_path_factory.mktemp(request.param)
    planted = GOLDEN[request.param][0](folder, simulated_cases(24, seed=5), 5)
    return request.param, folder, planted


def test_golden_files(written) -> None:
    """Names and contents of all files of text; pictures and sound may be encoded otherwise by other libraries."""
    kind, folder, _ = written
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*"), key=lambda file: file.relative_to(folder).as_posix()):
        if file.is_file():
            digest.update(f"{file.relative_to(folder).as_posix()}\n".encode())
            if file.suffix in (".csv", ".json", ".txt"):
                digest.update(file.read_bytes())
    assert digest.hexdigest() == GOLDEN[kind][1]


def test_golden_films() -> None:
    """Films are sums of floating-point numbers: pinned to a thousandth, not to the bit."""
    seen = [
        (0.2648, 0.1282, 0.110, 0.083, 0.335, 0.185),
        (0.2457, 0.1378, 0.256, 0.109, 0.080, 0.219),
        (0.2896, 0.1345, 0.280, 0.106, 0.178, 0.269),
    ]
    for case, expected in zip(simulated_cases(24, seed=5), seen, strict=False):
        film_of = case.picture(64, 0.05, 5)
        values = [film_of.mean(), film_of.std(), *film_of[[10, 30, 45, 50], [20, 20, 45, 15]]]
        np.testing.assert_allclose(values, expected, atol=1e-3)


def test_layouts_have_their_columns_and_line_ends(written) -> None:
    kind, folder, _ = written
    for file in folder.rglob("*.csv"):
        content = file.read_bytes()
        windows = b"\r\n" in content
        of_reading = file.name in ("fixations.csv", "gaze.csv") and "REFLACX" in str(file)
        if kind == "reflacx":
            assert windows and content.count(b"\n") == content.count(b"\r\n")
        elif kind == "egd":
            assert not windows
        elif not windows and not of_reading:
            assert content.startswith(b",")  # an unnamed index
    gaze = {"egd": "fixations.csv", "mimic_eye": "patient_10000000/EyeGaze/fixations.csv"}
    if kind in gaze:
        header = (folder / gaze[kind]).read_text().splitlines()[0].split(",")
        assert len([name for name in header if name]) == 37 and header[-2:] == ["X_ORIGINAL", "Y_ORIGINAL"]
        home = folder if kind == "egd" else folder / "patient_10000000" / "EyeGaze"
        boxes = (home / "bounding_boxes.csv").read_text().splitlines()[0]
        assert boxes.endswith("dicom_id,bbox_name,x1,x2,y1,y2")
        transcript = next((home / "audio_segmentation_transcripts").iterdir())
        names = {
            "audio.wav",
            "transcript.json",
            "left_lung.png",
            "right_lung.png",
            "mediastanum.png",
            "aortic_knob.png",
        }
        assert len(transcript.name) == 44 and {file.name for file in transcript.iterdir()} == names
    assert any("SIMULATED" in file.read_text() for file in folder.rglob("README.txt"))


def reader(kind: str, folder: Path, cache: Path, **options: object) -> GazeDataModule:
    given = {"size": 32, "gaze_size": 16, "sigma_px": 5.0, "cache_dir": str(cache), "jobs": 1, "split": "holdout"}
    if kind == "reflacx":
        given["finding"] = "Consolidation"
    return READERS[kind](str(folder), **(given | options))


def test_round_trip(written, tmp_path: Path) -> None:
    kind, folder, planted = written
    options = {"uncertain": "u_ones"} if kind == "mimic_eye" else {"attributes": ()} if kind == "egd" else {}
    data = reader(kind, folder, tmp_path, **options)
    discarded = [name for name, case in planted.items() if case.fixations is None and kind != "egd"]
    assert sorted(data.samples.id) == sorted(set(planted) - set(discarded))
    for reading, regions in zip(data.readings, data.regions, strict=True):
        case = planted[reading.id]
        width, height = reading.size
        assert (width, height) == film_size(case)
        assert [s.text for s in reading.sentences] == [s.text for s in case.sentences]
        times = [[s.start, s.end] for s in case.sentences]
        np.testing.assert_allclose([[s.start, s.end] for s in reading.sentences], times, atol=1e-6)
        boxes = [(w.x - w.rx, w.y - w.ry, w.x + w.rx, w.y + w.ry) for _, _, w, _ in case.lesions]
        found = np.array([region[1:] for region in regions]).reshape(-1, 4) / [width, height, width, height]
        np.testing.assert_allclose(found, np.array(boxes).reshape(-1, 4), atol=0.51 / min(width, height))
        if kind == "egd":
            assert [region.phrase for region in regions] == [lesion.phrase for lesion in case.lesions]
        if case.fixations is None:
            assert reading.fixations is None
            continue
        seen = reading.fixations
        x, y, start, end = case.fixations.T
        np.testing.assert_allclose(seen.start, start, atol=1e-5)
        np.testing.assert_allclose(seen.end, end, atol=2e-5)
        clear = (x * width >= 1) & (x < 1) & (y * height >= 1) & (y < 1)  # EGD's 0 may be the first pixel or none
        np.testing.assert_allclose(seen.x[clear], (x * width - 0.5)[clear], atol=0.51)
        np.testing.assert_allclose(seen.y[clear], (y * height - 0.5)[clear], atol=0.51)
        assert (seen.x[x < 0] < 0).all()


def test_films_are_found(written, tmp_path: Path) -> None:
    kind, folder, planted = written
    options = {"attributes": ()} if kind == "egd" else {}
    data = reader(kind, folder, tmp_path, **options)
    for reading in data.readings[:6]:
        values = np.asarray(Image.open(reading.image), dtype=float) / 255
        assert values.shape == reading.size[::-1]
        assert np.abs(values - film(planted[reading.id], 5)).mean() < (0.003 if kind == "egd" else 0.03)


def test_another_reading_is_of_the_same_film() -> None:
    case = simulated_cases(20, seed=1)[3]
    again = read_again(case, 1, "two")
    assert again.lesions == case.lesions and again.marks == case.marks and again.spoken != case.spoken
    assert read_again(case, 1, "two").spoken == again.spoken != read_again(case, 1, "three").spoken
    assert all(set(DEVICES) >= {device.kind} for device in again.devices)
