"""The tables of EGD-CXR, REFLACX and MIMIC-EYE, each made into the same columns, one row a reading.

The columns are those of `medprism.datamodules.xray_tables`, and `image_id` (44 characters), `origin` (EGD or REFLACX),
`folder` (with the files of the reading), `split` (MIMIC-CXR's own; empty where unknown), and `width` and `height` of
the original image in pixels or `pads` of it on the screen, where a table tells them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from medprism.data.errors import DataError
from medprism.data.samples import as_text
from medprism.data.tables import read_table
from medprism.datamodules.gaze_files import numbers, read_columns, truth
from medprism.datamodules.xray_tables import (
    Uncertain,
    known_age,
    known_sex,
    mimic_people,
    only,
    rows_of,
    uncertain_finding,
)

DIAGNOSES = ("Normal", "CHF", "pneumonia")
PADS = ("image_top_pad", "image_bottom_pad", "image_left_pad", "image_right_pad")
REFLACX_IDS = ("id", "split", "eye_tracking_data_discarded", "dicom_id", "subject_id", "image_size_x", "image_size_y")
OTHER_NAMES: Mapping[str, tuple[str, ...]] = {
    "Abnormal mediastinal contour": ("Wide mediastinum",),
    "Acute fracture": ("Fracture",),
    "High lung volume / emphysema": ("Emphysema",),
    "Lung nodule or mass": ("Nodule", "Mass"),
    "Pleural abnormality": ("Pleural effusion", "Pleural thickening"),
}
"""Labels of REFLACX's phases 2 and 3, and those of phase 1 that say the same, of which the surest counts."""
UNLABELLED = "reading of a phase without this label"


def egd(root: Path, images: Path, target: str, uncertain: Uncertain) -> pd.DataFrame:
    """EGD-CXR: `master_sheet.csv`; the finding is a diagnosis or one of the labels that end in `__chx`.

    Raises:
        DataError: when the table is missing or lacks a column, or a label is none of 1, 0, -1 and empty.
    """
    file = root / "master_sheet.csv"
    needed = ["dicom_id", "study_id", "patient_id", "gender", "anchor_age", *PADS]
    table = read_table(file, needed, ["dicom_id", "study_id", "patient_id"])
    where = rows_of(table, file)
    if target == "diagnosis":
        absent = [name for name in DIAGNOSES if name not in table]
        if absent:
            raise DataError(f"{file} lacks the columns {absent}; it has {list(table.columns)}")
        given = np.column_stack([[truth(cell) for cell in table[name]] for name in DIAGNOSES])
        one = given.sum(axis=1) == 1
        found: dict[str, Any] = {
            "finding": np.where(one, np.array(DIAGNOSES)[given.argmax(axis=1)], ""),
            "left_out": np.where(one, "", "image without exactly one diagnosis"),
        }
    else:
        column = _chx_column(target, table.columns, file)
        found = uncertain_finding(table[column], where, column, uncertain)
    ids = zip(table["patient_id"], table["study_id"], table["dicom_id"], strict=True)
    return pd.DataFrame(
        {
            "id": table["dicom_id"],
            "image_id": table["dicom_id"],
            "origin": "EGD",
            "discarded": False,
            "folder": [str(root / "audio_segmentation_transcripts" / name) for name in table["dicom_id"]],
            "file": [str(image_file(images, *each)) for each in ids],
            "subject": "p" + table["patient_id"],
            "where": where,
            "sex": known_sex(table["gender"]),
            "age": known_age(pd.Series([middle(cell) for cell in table["anchor_age"]]), file),
            "pads": list(np.column_stack([numbers(table[name].tolist(), file, name) for name in PADS])),
            **found,
            **_of_image(images, table["dicom_id"]),
        }
    )


def reflacx(root: Path, images: Path, finding: str, certainty: float, patients: Path | None) -> pd.DataFrame:
    """REFLACX: `main_data/metadata_phase_*.csv`; a finding is present from a certainty on.

    Raises:
        DataError: when the tables are missing or lack a column, or no phase has the finding.
    """
    home = root / "main_data"
    files = sorted(home.glob("metadata_phase_[123].csv"))
    if not files:
        raise DataError(f"{home} holds no metadata_phase_1.csv, _2 or _3; set root to the folder of the release")
    phases = [
        (file, read_table(file, [*REFLACX_IDS, "image"], [*REFLACX_IDS[:1], *REFLACX_IDS[3:5]])) for file in files
    ]
    check_label(finding, {name: None for _, table in phases for name in table.columns}, home)
    parts = []
    for file, table in phases:
        studies = table["image"].str.extract(r"/s(\d+)(?:/|$)", expand=False).fillna("")
        ids = zip(table["subject_id"], studies, table["dicom_id"], strict=True)
        parts.append(
            pd.DataFrame(
                {
                    "file": [str(image_file(images, *each)) for each in ids],
                    "id": table["id"],
                    "image_id": table["dicom_id"],
                    "origin": "REFLACX",
                    "discarded": [truth(cell) for cell in table["eye_tracking_data_discarded"]],
                    "folder": [str(home / name) for name in table["id"]],
                    "subject": "p" + table["subject_id"],
                    "where": rows_of(table, file),
                    "width": numbers(table["image_size_x"].tolist(), file, "image_size_x"),
                    "height": numbers(table["image_size_y"].tolist(), file, "image_size_y"),
                    **sure_finding(table, rows_of(table, file), finding, certainty),
                    **_of_image(images, table["dicom_id"], patients),
                    "split": table["split"].map(as_text),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def mimic_eye(root: Path, origins: Sequence[str], finding: str, uncertain: Uncertain) -> pd.DataFrame:
    """MIMIC-EYE: the tables in the folder of each patient; the finding is CheXpert's label of the report.

    Sex and age are those of `Core/patients.csv` or of `EyeGaze/master_sheet.csv`, where there is one.

    Raises:
        DataError: when there is no patient, a table is missing or lacks a column, or a label is none of 1, 0, -1 and
            empty.
    """
    homes = sorted(path for path in root.glob("patient_*") if path.is_dir())
    if not homes:
        raise DataError(f"{root} holds no folder patient_*; set root to the folder of the release")
    rows = [row for home in homes for row in _patient(home, origins, finding)]
    if not rows:
        raise DataError(f"{root}: none of {len(homes)} patients has readings of {list(origins)}; mend sources")
    table = pd.DataFrame(rows)
    labels = uncertain_finding(table.pop("label"), table.pop("label_where").tolist(), finding, uncertain)
    unlabelled = ~table.pop("labelled")
    left_out = pd.Series(labels["left_out"]).mask(unlabelled, "study without chexpert labels")
    return table.assign(finding=labels["finding"], left_out=left_out)


def _patient(home: Path, origins: Sequence[str], finding: str) -> Iterator[dict[str, Any]]:
    """The readings of one patient of MIMIC-EYE; there are thousands, so that no data frame is made of each."""
    jpg, master = home / "CXR-JPG", home / "EyeGaze" / "master_sheet.csv"
    images = _by(jpg / "cxr_meta.csv", "dicom_id", ("study_id", "ViewPosition", "Columns", "Rows"))
    labels = _by(jpg / "cxr_chexpert.csv", "study_id", (finding,))
    splits = _by(jpg / "cxr_split.csv", "dicom_id", ("split",))
    sex, age = _person(home / "Core" / "patients.csv", master)
    for row in _rows(home, origins, master):
        name = row["image_id"]
        if name not in images:
            raise DataError(f"{jpg / 'cxr_meta.csv'} lacks the image {name} of {row['where']}; copy it again")
        study, view, width, height = images[name][1]
        label_where, (label,) = labels.get(study, ("", ("",)))
        size = (numbers([cell], jpg / "cxr_meta.csv", "Rows and Columns")[0] for cell in (width, height))
        yield {
            "file": str(jpg / f"s{study}" / f"{name}.jpg"),
            "subject": f"p{home.name.removeprefix('patient_')}",
            "view": as_text(view),
            **dict(zip(("width", "height"), size, strict=True)),
            "sex": sex,
            "age": age,
            "split": splits.get(name, ("", ("",)))[1][0],
            "label": label,
            "label_where": label_where,
            "labelled": study in labels,
            **row,
        }


def _rows(home: Path, origins: Sequence[str], master: Path) -> Iterator[dict[str, Any]]:
    """What the tables of readings say, REFLACX first."""
    file = home / "REFLACX" / "metadata.csv"
    if "REFLACX" in origins and file.is_file():
        for name, (where, (image, discarded)) in _by(file, "id", ("dicom_id", "eye_tracking_data_discarded")).items():
            folder = _first(home / "REFLACX" / "main_data" / name, home / "REFLACX" / name)
            row = {"id": name, "image_id": image, "origin": "REFLACX", "discarded": truth(discarded)}
            yield {**row, "folder": str(folder), "where": where}
    if "EGD" in origins and master.is_file():
        for image, (where, _) in _by(master, "dicom_id", ()).items():
            folder = home / "EyeGaze" / "audio_segmentation_transcripts" / image
            row = {"id": f"EGD-{image}", "image_id": image, "origin": "EGD", "discarded": False}
            yield {**row, "folder": str(folder), "where": where}


def _by(file: Path, key: str, columns: Sequence[str]) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Name of the row, and cells, by the cell of `key`; of several rows the first. The unnamed index is not read."""
    table = read_columns(file, (key, *columns))
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for row, (name, *cells) in enumerate(zip(*table.values(), strict=True), 2):
        found.setdefault(name, (f"{file.parents[1].name}/{file.parent.name}/{file.name}, row {row}", tuple(cells)))
    return found


def check_label(finding: str, columns: Iterable[str], source: Path) -> None:
    """Refuse a finding that no REFLACX table has.

    Raises:
        DataError: names the labels that there are.
    """
    labels = [name for name in columns if name and name not in (*REFLACX_IDS, "image", "Other")]
    if finding not in labels and not set(OTHER_NAMES.get(finding, ())) & set(labels):
        raise DataError(f"{source}: no table has the label '{finding}'; choose one of {labels}")


def sure_finding(table: pd.DataFrame, where: list[str], finding: str, certainty: float) -> dict[str, Any]:
    """The columns `finding` and `left_out` of labels with certainties from 0 to 5, or True and False.

    Raises:
        DataError: when a cell holds something else; names its row.
    """
    names = [name for name in (finding, *OTHER_NAMES.get(finding, ())) if name in table]
    found, left_out = [], []
    for row, cells in enumerate(zip(*(table[name] for name in names), strict=True) if names else [()] * len(table)):
        values = [
            _certainty(cell, name, where[row]) for cell, name in zip(map(as_text, cells), names, strict=True) if cell
        ]
        present = "present" if max(values, default=0) >= certainty else "absent"
        found.append(present if values else "")
        left_out.append("" if values else UNLABELLED)
    return {"finding": found, "left_out": left_out}


def _certainty(text: str, column: str, where: str) -> float:
    if text.lower() in ("true", "false"):
        return 5.0 if text.lower() == "true" else 0.0
    if not re.fullmatch(r"[0-5](\.0*)?", text):
        raise DataError(
            f"{where}: column '{column}' holds '{text}', expected a certainty from 0 to 5, or True or False"
        )
    return float(text)


def image_file(folder: Path, subject: str, study: str, image: str) -> Path:
    """Where an image of MIMIC-CXR lies: by its path in MIMIC-CXR-JPG, or as `{image}.jpg`, `.png` or `.dcm`.

    Returns:
        The first that is there; the path in MIMIC-CXR-JPG when there is none, for the message.
    """
    below = Path(f"p{subject[:2]}") / f"p{subject}" / f"s{study}" / f"{image}.jpg"
    flat = [base / f"{image}{suffix}" for base in (folder, folder / "images") for suffix in (".jpg", ".png", ".dcm")]
    return _first(folder / "files" / below, folder / below, *flat)


def middle(cell: Any) -> str:
    """An age, or the middle of a range of ages such as `50 - 60`; as it is otherwise."""
    text = as_text(cell)
    ends = re.fullmatch(r"(\d+) *- *(\d+)", text)
    return f"{(int(ends[1]) + int(ends[2])) / 2:g}" if ends else text


def _chx_column(target: str, columns: Iterable[str], file: Path) -> str:
    """The column of a label: `edema__chx` for itself and for Edema."""
    labels = [name for name in columns if name.endswith("__chx")]
    asked = target.removesuffix("__chx").lower().replace(" ", "_")
    for name in labels:
        if name.removesuffix("__chx").lower().replace(" ", "_") == asked:
            return name
    raise DataError(f"{file}: no label is called '{target}'; choose diagnosis, or one of {labels}")


def _of_image(images: Path, names: pd.Series[str], patients: Path | None = None) -> dict[str, Any]:
    """View, split, sex and age by MIMIC-CXR-JPG's own tables, as far as they lie in the folder of the images."""
    found: dict[str, Any] = {"view": "", "split": ""}
    if any(images.glob("mimic-cxr-*-metadata.csv*")):
        file = only(images, "mimic-cxr-*-metadata.csv*")
        table = read_table(file, ["dicom_id", "subject_id", "ViewPosition"], ["dicom_id"])
        rows = table.drop_duplicates("dicom_id").set_index("dicom_id").reindex(names).reset_index().fillna("")
        found["view"] = rows["ViewPosition"].map(as_text)
        if patients is not None:
            found |= mimic_people(patients, rows, file)
    elif patients is not None:
        raise DataError(
            f"{images} holds no mimic-cxr-*-metadata.csv, which tells when the people of {patients} were examined; set "
            "images to the folder of MIMIC-CXR-JPG, or leave patients out"
        )
    if any(images.glob("mimic-cxr-*-split.csv*")):
        table = read_table(only(images, "mimic-cxr-*-split.csv*"), ["dicom_id", "split"], ["dicom_id"])
        by_image = table.drop_duplicates("dicom_id").set_index("dicom_id")["split"]
        found["split"] = by_image.reindex(names).fillna("").tolist()
    return found


def _person(core: Path, master: Path) -> tuple[str, str]:
    """Sex and age of a patient of MIMIC-EYE; empty where unknown."""
    for file in (core, master):
        table = read_columns(file, ("gender", "anchor_age")) if file.is_file() else {}
        if table.get("gender"):
            age = middle(table["anchor_age"][0])
            return known_sex(table["gender"][:1])[0], known_age([age], file)[0]
    return "", ""


def _first(*paths: Path) -> Path:
    return next((path for path in paths if path.exists()), paths[0])
