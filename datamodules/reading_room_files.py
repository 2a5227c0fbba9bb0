"""SIMULATED readings as files, in exactly the layouts of EGD-CXR, REFLACX and MIMIC-EYE.

Whoever has no access to those data can try the readers on them, and whoever has can see what they expect. Every name is
made up: no file says anything of a real person. The films themselves do not say that they are simulated, so keep them
in their folder, beside its README.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medprism.datamodules.reading_room_cases import Case, read_again, without_finding
from medprism.datamodules.reading_room_columns import EARLY_LABELS, LATE_LABELS
from medprism.datamodules.reading_room_layouts import (
    chexpert_labels,
    egd_tables,
    film_size,
    image_id,
    official_split,
    reflacx_metadata,
    reflacx_reading,
    reflacx_readings,
    report_text,
    study_id,
    study_path,
    subject_id,
    write_csv,
    write_film,
)
from medprism.datamodules.xray_tables import CHEXPERT_FINDINGS

NOTICE = "SIMULATED readings of phantom films; no file holds data of a real person.\n"


# ------------------------------------------------------------------------------------------------------------- layouts
def write_egd(folder: Path, cases: Sequence[Case], seed: int = 0) -> dict[str, Case]:
    """Write SIMULATED readings in the layout of EGD-CXR, with the films in `images`.

    Every fourth film has no finding. Consolidations are written as pneumonia, the other findings as CHF.

    Args:
        folder: new folder.
        cases: their people and readings.
        seed: seed of what the layout asks for beyond them.

    Returns:
        Image id to the case that was written for it.
    """
    planted = {image_id(case, seed): _egd_case(case, seed) for case in cases}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.txt").write_text(NOTICE, encoding="utf-8")
    egd_tables(folder, planted, seed)
    for name, case in planted.items():
        write_film(folder / "images" / f"{name}.png", case, seed)
    return planted


def write_reflacx(folder: Path, cases: Sequence[Case], seed: int = 0) -> dict[str, Case]:
    """Write SIMULATED readings in the layout of REFLACX, with the films in `files`, as in MIMIC-CXR-JPG.

    Of eight films one is read twice in phase 1, one twice in phase 2, and the others once in phase 3. Readings without
    gaze are the discarded ones: nothing but their ellipses is written.

    Args:
        folder: new folder.
        cases: their people and readings.
        seed: seed of what the layout asks for beyond them.

    Returns:
        Id of each reading to the case that was written for it.
    """
    planted: dict[str, Case] = {}
    for case in cases:
        planted |= reflacx_readings(case, seed)
        write_film(folder / "files" / study_path(case) / f"{image_id(case, seed)}.jpg", case, seed)
    (folder / "README.txt").write_text(NOTICE, encoding="utf-8")
    for phase in "123":
        of_phase = {name: case for name, case in planted.items() if name[1] == phase}
        header, rows = reflacx_metadata(of_phase, seed, EARLY_LABELS if phase == "1" else LATE_LABELS)
        write_csv(folder / "main_data" / f"metadata_phase_{phase}.csv", header, rows, end="\r\n")
    for name, case in planted.items():
        reflacx_reading(folder, name, case, seed)
    return planted


def write_mimic_eye(folder: Path, cases: Sequence[Case], seed: int = 0) -> dict[str, Case]:
    """Write SIMULATED readings in the layout of MIMIC-EYE.

    Of three people one has readings in REFLACX and EGD of the same film, one in REFLACX, and one in EGD.

    Args:
        folder: new folder.
        cases: their people and readings.
        seed: seed of what the layout asks for beyond them.

    Returns:
        Id of each reading, with `EGD-` before those of EGD, to the case that was written for it.
    """
    planted: dict[str, Case] = {}
    for case in cases:
        home = folder / f"patient_{subject_id(case)}"
        jpg = home / "CXR-JPG"
        write_film(jpg / f"s{study_id(case)}" / f"{image_id(case, seed)}.jpg", case, seed)
        for name, (header, row) in _mimic_tables(case, seed).items():
            write_csv(jpg / f"{name}.csv", header, [row], index=True)
        person = [subject_id(case), case.sex[0].upper(), case.age, 2150, "2011 - 2013", ""]
        columns = ["subject_id", "gender", "anchor_age", "anchor_year", "anchor_year_group", "dod"]
        write_csv(home / "Core" / "patients.csv", columns, [person], index=True)
        report = home / "CXR-DICOM" / f"s{study_id(case)}.txt"
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(f" FINAL REPORT\n FINDINGS: {report_text(case)}\n", encoding="utf-8")
        if case.number % 3 != 2:
            readings = reflacx_readings(case, seed)
            labels = list(dict.fromkeys([*EARLY_LABELS, *LATE_LABELS]))
            write_csv(home / "REFLACX" / "metadata.csv", *reflacx_metadata(readings, seed, labels), index=True)
            for name, reading in readings.items():
                reflacx_reading(home / "REFLACX", name, reading, seed)
            planted |= readings
        if case.number % 3 != 1:
            reading = read_again(case, seed, "EGD")
            egd_tables(home / "EyeGaze", {image_id(case, seed): reading}, seed, index=True)
            planted[f"EGD-{image_id(case, seed)}"] = reading
    (folder / "spreadsheets").mkdir(exist_ok=True)
    (folder / "spreadsheets" / "README.txt").write_text(NOTICE, encoding="utf-8")
    return planted


# ------------------------------------------------------------------------------------------------------------- MIMIC
def _mimic_tables(case: Case, seed: int) -> dict[str, tuple[list[str], list[Any]]]:
    """The one row of each table in the folder of a patient's images."""
    name, (width, height) = image_id(case, seed), film_size(case)
    labels = ["subject_id", "study_id", *sorted(CHEXPERT_FINDINGS)]
    values = dict(zip(CHEXPERT_FINDINGS, chexpert_labels(case), strict=True))
    labelled = [subject_id(case), study_id(case), *(values[label] for label in labels[2:])]
    meta = {
        "dicom_id": name, "subject_id": subject_id(case), "study_id": study_id(case),
        "PerformedProcedureStepDescription": "CHEST (SIMULATED)", "ViewPosition": case.view, "Rows": height,
        "Columns": width, "StudyDate": 21500506, "StudyTime": "101112.000",
    }  # fmt: skip
    split = [name, study_id(case), subject_id(case), official_split(case)]
    return {
        "cxr_chexpert": (labels, labelled),
        "cxr_negbio": (labels, labelled),
        "cxr_meta": (list(meta), list(meta.values())),
        "cxr_split": (["dicom_id", "study_id", "subject_id", "split"], split),
    }


def _egd_case(case: Case, seed: int) -> Case:
    return without_finding(case, seed) if case.number % 4 == 3 else case
