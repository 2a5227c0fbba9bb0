"""Tables and files of SIMULATED readings; `medprism.datamodules.reading_room_files` makes whole folders of them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import wave
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medprism.data.imaging import FloatArray
from medprism.datamodules.reading_room_cases import Case, generator, read_again
from medprism.datamodules.reading_room_columns import DEGREES, EARLY_LABELS, GAZE_COLUMNS, LATE_LABELS, WINDOW
from medprism.datamodules.reading_room_pictures import Ellipse
from medprism.datamodules.xray_tables import CHEXPERT_FINDINGS

Rows = list[list[Any]]

HEIGHT = 120
"""Height in pixels of the films; their width differs from case to case."""
NOISE = 0.05
SCREEN = (1920, 1080)
SHOWN = 1024
"""Longer side in pixels of a film on EGD's screen."""

MASKS = {
    "left_lung": Ellipse(0.7, 0.5, 0.2, 0.38),
    "right_lung": Ellipse(0.3, 0.5, 0.2, 0.38),
    "mediastanum": Ellipse(0.52, 0.5, 0.14, 0.38),
    "aortic_knob": Ellipse(0.57, 0.3, 0.05, 0.06),
}
CERTAINTY = {"mild": 3, "moderate": 4, "severe": 5}
REFLACX_NAMES = {"Cardiomegaly": "Enlarged cardiac silhouette", "Edema": "Pulmonary edema"}


def image_id(case: Case, seed: int) -> str:
    """The 44 characters that name an image of MIMIC-CXR; these are made up."""
    digest = hashlib.sha256(f"simulated film {seed} {case.number}".encode()).hexdigest()
    return "-".join(digest[k : k + 8] for k in range(0, 40, 8))


def study_path(case: Case) -> Path:
    """The folder of a study in MIMIC-CXR-JPG."""
    return Path(f"p{subject_id(case)[:2]}") / f"p{subject_id(case)}" / f"s{study_id(case)}"


def film_size(case: Case) -> tuple[int, int]:
    """Width and height of a film in pixels."""
    return 88 + 8 * (case.number % 6), HEIGHT


# ----------------------------------------------------------------------------------------------------------------- EGD
def egd_tables(folder: Path, planted: Mapping[str, Case], seed: int, index: bool = False) -> None:
    """Everything of EGD-CXR but the films."""
    gaze: dict[str, Rows] = {"fixations": [], "eye_gaze": []}
    boxes: Rows = []
    for name, case in planted.items():
        for table, rows in gaze.items():
            rows += _egd_gaze(name, case, seed, raw=table == "eye_gaze")
        boxes += [[name, phrase, x1, x2, y1, y2] for phrase, x1, y1, x2, y2 in _boxes(case)]
        _write_transcript(folder / "audio_segmentation_transcripts" / name, case)
    write_csv(folder / "master_sheet.csv", *_master_sheet(planted), index=index)
    write_csv(folder / "bounding_boxes.csv", ["dicom_id", "bbox_name", "x1", "x2", "y1", "y2"], boxes, index=index)
    for table, rows in gaze.items():
        write_csv(folder / f"{table}.csv", GAZE_COLUMNS, rows, index=index)


def _pads(case: Case) -> tuple[int, int, int, int]:
    """Pixels of the screen above, below, left and right of a film, whose longer side fills `SHOWN` of it."""
    width, height = (int(n * SHOWN / max(film_size(case))) for n in film_size(case))
    beside, above = SCREEN[0] - width, SHOWN - height
    return above // 2, above - above // 2, beside // 2, beside - beside // 2


def _egd_gaze(name: str, case: Case, seed: int, raw: bool) -> Rows:
    """The rows of a reading: a calibration image, then fixations, and samples of them when `raw`.

    Every fifth fixation takes two rows also otherwise, the first of which knows half of it; one row is invalid.
    """
    pick = generator(seed, f"eye tracker {case.number}")
    top, bottom, left, right = _pads(case)
    width, height = film_size(case)
    session = 1 + case.number // 30
    rows = [
        _gaze_row(session, name[:-5], k, 0.1 * k, (0.5, 0.5), (0.0, 0.1 * k), 1, 1, pick, (-1, -1)) for k in range(3)
    ]
    for number, (x, y, start, end) in enumerate(() if case.fixations is None else case.fixations, 1):
        inside = 0 < x < 1 and 0 < y < 1
        screen = (
            (left + x * (SCREEN[0] - left - right)) / SCREEN[0],
            (top + y * (SCREEN[1] - top - bottom)) / SCREEN[1],
        )
        original = (int(x * width), int(y * height)) if inside else (-1, -1)
        parts = (1 / 3, 2 / 3, 1.0) if raw else (0.5, 1.0) if number % 5 == 0 else (1.0,)
        for part in parts:
            seen = (start, part * (end - start))
            rows.append(_gaze_row(session, name, len(rows), sum(seen), screen, seen, number, 1, pick, original))
        if number == 4:
            rows.append(
                _gaze_row(session, name, len(rows), end + 0.01, (0.0, 0.0), (end, 0.01), number, 0, pick, (-1, -1))
            )
    return rows


def _gaze_row(
    session: int,
    image: str,
    count: int,
    time: float,
    screen: tuple[float, float],
    seen: tuple[float, float],
    number: int,
    valid: int,
    pick: np.random.Generator,
    original: tuple[int, int],
) -> list[Any]:
    """One row of EGD's 37 columns; what no reader of gaze needs is filled with plausible numbers."""
    x, y = (f"{share:.5f}" for share in screen)
    left_x, left_y, right_x, right_y, pupil = (f"{value:.5f}" for value in pick.uniform(0.4, 0.6, 5))
    return [
        session, 0, image, count, f"{time:.5f}", int(time * 1e7), x, y, f"{seen[0]:.5f}", f"{seen[1]:.5f}", number,
        valid, x, y, 1, left_x, left_y, "17.00000", "1.00000", 1, right_x, right_y, "17.00000", "1.00000", 1, 0,
        "0.00000", 12, pupil, 1, pupil, 1, "40.00000", "90.00000", int(time * 10), *original,
    ]  # fmt: skip


def _write_transcript(folder: Path, case: Case) -> None:
    """Speech in phrases of up to three words, silence for a voice, and masks of the anatomy."""
    phrases = []
    for words in case.spoken:
        for first in range(0, len(words), 3):
            part = words[first : first + 3]
            times = {"begin_time": part[0].start, "end_time": part[-1].end}
            phrases.append({"phrase": " ".join(word.text for word in part), **times})
    folder.mkdir(parents=True, exist_ok=True)
    content = {"full_text": report_text(case), "time_stamped_text": phrases}
    (folder / "transcript.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    with wave.open(str(folder / "audio.wav"), "wb") as audio:
        audio.setnchannels(1)
        audio.setsampwidth(2)
        audio.setframerate(8000)
        audio.writeframes(bytes(1600))
    width, height = film_size(case)
    rows, columns = np.mgrid[:height, :width]
    for name, where in MASKS.items():
        distance = (((columns + 0.5) / width - where.x) / where.rx) ** 2 + (
            ((rows + 0.5) / height - where.y) / where.ry
        ) ** 2
        Image.fromarray(np.where(distance < 1, 255, 0).astype(np.uint8)).save(folder / f"{name}.png")


def _master_sheet(planted: Mapping[str, Case]) -> tuple[list[str], Rows]:
    codes = [f"dx{k}{kind}" for k in range(1, 10) for kind in ("", "_icd")]
    chx = [f"{name.lower().replace(' ', '_')}__chx" for name in CHEXPERT_FINDINGS]
    header = ["dicom_id", "path", "study_id", "patient_id", "stay_id", "gender", "anchor_age"]
    header += [f"image_{side}_pad" for side in ("top", "bottom", "left", "right")]
    header += [*codes, "Normal", "CHF", "pneumonia", *chx, "cxr_exam_indication"]
    rows: Rows = []
    for name, case in planted.items():
        failing = case.finding not in ("", "Consolidation")
        decade = case.age // 10 * 10
        rows.append(
            [
                name, f"files/{study_path(case)}/{name}.dcm", study_id(case), subject_id(case), 30000000 + case.number,
                case.sex[0].upper(), f"{decade} - {decade + 10}", *_pads(case), *([""] * len(codes)),
                int(not case.finding), int(failing), int(case.finding == "Consolidation"), *chexpert_labels(case),
                "SIMULATED. Shortness of breath.",
            ]
        )  # fmt: skip
    return header, rows


# ------------------------------------------------------------------------------------------------------------- REFLACX
def reflacx_readings(case: Case, seed: int) -> dict[str, Case]:
    """The readings of a film by their ids."""
    phase = {0: 1, 1: 2}.get(case.number % 8, 3)
    if phase == 3:
        return {f"P300R{case.number:06d}": case}
    again = read_again(case, seed, "two")
    return {f"P{phase}01R{case.number:06d}": case, f"P{phase}02R{case.number:06d}": again}


def reflacx_metadata(planted: Mapping[str, Case], seed: int, labels: Sequence[str]) -> tuple[list[str], Rows]:
    """The table of readings; a label of another phase is empty."""
    header = [
        "id",
        "split",
        "eye_tracking_data_discarded",
        "image",
        "dicom_id",
        "subject_id",
        "image_size_x",
        "image_size_y",
    ]
    rows: Rows = []
    for name, case in planted.items():
        known = EARLY_LABELS if name[1] == "1" else LATE_LABELS
        sure = {_reflacx_label(case, known): max((CERTAINTY[each.severity] for each in case.lesions), default=0)}
        path = f"physionet.org/files/mimic-cxr/2.0.0/files/{study_path(case)}/{image_id(case, seed)}.dcm"
        rows.append(
            [
                name, official_split(case), case.fixations is None, path, image_id(case, seed), subject_id(case),
                *film_size(case), *(sure.get(label, 0) if label in known else "" for label in labels),
                any(device.kind != "granuloma" for device in case.devices), "",
            ]
        )  # fmt: skip
    return [*header, *labels, "Support devices", "Other"], rows


def _reflacx_label(case: Case, labels: Sequence[str]) -> str:
    effusion = "Pleural effusion" if "Pleural effusion" in labels else "Pleural abnormality"
    return effusion if case.finding == "Pleural Effusion" else REFLACX_NAMES.get(case.finding, case.finding)


def reflacx_reading(root: Path, name: str, case: Case, seed: int) -> None:
    """The files of one reading, with the line ends of Windows."""
    folder, labels = root / "main_data" / name, EARLY_LABELS if name[1] == "1" else LATE_LABELS
    width, height = film_size(case)
    label = _reflacx_label(case, labels)
    ellipses = [
        [*edges, CERTAINTY[lesion.severity], *(each == label for each in labels)]
        for lesion, (_, *edges) in zip(case.lesions, _boxes(case), strict=True)
    ]
    edges = ["xmin", "ymin", "xmax", "ymax"]
    write_csv(folder / "anomaly_location_ellipses.csv", [*edges, "certainty", *labels], ellipses, end="\r\n")
    chest = [[int(0.06 * width), int(0.08 * height), int(0.94 * width), int(0.92 * height)]]
    write_csv(folder / "chest_bounding_box.csv", edges, chest, end="\r\n")
    if case.fixations is None:
        return
    words = [row for sentence in case.spoken for word in sentence for row in _reflacx_words(word)]
    times = ["word", "timestamp_start_word", "timestamp_end_word"]
    write_csv(folder / "timestamps_transcription.csv", times, words, end="\r\n")
    (folder / "transcription.txt").write_bytes(report_text(case).encode())
    pick = generator(seed, f"pupil {name}")
    # A degree is a twentieth of the film.
    degree = [round(width / 20, 4), round(height / 20, 4)]
    shown = [1.0, 0.5, 0, 0, width, height, 460, 40, 1460, 1040]
    fixations: Rows = []
    samples: Rows = []
    for x, y, start, end in case.fixations.tolist():
        place = [round(x * width - 0.5), round(y * height - 0.5), round(float(pick.uniform(0.8, 1.2)), 4)]
        fixations.append([start, end, *place, *degree, *shown])
        samples += [[round(time, 3), *place, *degree, *shown] for time in np.arange(start, end, 0.1).tolist()]
    columns = ["x_position", "y_position", "pupil_area_normalized", *DEGREES, *WINDOW]
    header = ["timestamp_start_fixation", "timestamp_end_fixation", *columns]
    write_csv(folder / "fixations.csv", header, fixations, end="\r\n")
    write_csv(root / "gaze_data" / name / "gaze.csv", ["timestamp_sample", *columns], samples, end="\r\n")


def _reflacx_words(word: tuple[str, float, float]) -> Rows:
    """A word, and the mark behind it as a row of its own."""
    text, start, end = word
    if text[-1] not in ".,":
        return [[text, start, end]]
    return [[text[:-1], start, end], [text[-1], end, end]]


# -------------------------------------------------------------------------------------------------------------- shared
def chexpert_labels(case: Case) -> list[Any]:
    """CheXpert's 14 labels; one finding in ten is uncertain, and what is not mentioned is empty."""
    present = -1.0 if case.number % 10 == 7 else 1.0
    finding = case.finding or "No Finding"
    return [present if name == finding else "" for name in CHEXPERT_FINDINGS]


def official_split(case: Case) -> str:
    """MIMIC-CXR's part: eight people in ten train, one validates, one tests."""
    return {8: "validate", 9: "test"}.get(case.number % 10, "train")


def subject_id(case: Case) -> str:
    """The 8 digits that name a patient of MIMIC-CXR; these are made up."""
    return str(10000000 + case.number)


def study_id(case: Case) -> str:
    """The 8 digits that name a study of MIMIC-CXR; these are made up."""
    return str(50000000 + case.number)


def report_text(case: Case) -> str:
    """What is said, in one line."""
    return " ".join(sentence.text for sentence in case.sentences)


def _boxes(case: Case) -> list[tuple[str, int, int, int, int]]:
    """Phrase, left, top, right and bottom of each lesion in whole pixels."""
    width, height = film_size(case)
    return [
        (
            lesion.phrase,
            round((lesion.where.x - lesion.where.rx) * width),
            round((lesion.where.y - lesion.where.ry) * height),
            round((lesion.where.x + lesion.where.rx) * width),
            round((lesion.where.y + lesion.where.ry) * height),
        )
        for lesion in case.lesions
    ]


def film(case: Case, seed: int) -> FloatArray:
    """The film `(height, width)` in [0, 1], before it is written."""
    square = Image.fromarray(case.picture(HEIGHT, NOISE, seed))
    return np.asarray(square.resize(film_size(case), Image.Resampling.BILINEAR))


def write_film(file: Path, case: Case, seed: int) -> None:
    """The film as PNG or JPEG, by the suffix."""
    file.parent.mkdir(parents=True, exist_ok=True)
    picture = np.rint(film(case, seed) * 255).astype(np.uint8)
    Image.fromarray(picture).save(file, quality=95)  # PNG takes no heed of it


def write_csv(
    file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], end: str = "\n", index: bool = False
) -> None:
    """A CSV, with an unnamed index column in front when asked for."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator=end)
    table.writerow(["", *header] if index else header)
    table.writerows([k, *row] if index else row for k, row in enumerate(rows))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text.getvalue().encode())
