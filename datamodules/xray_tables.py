"""The tables of the released chest X-ray data sets, each made into the same columns, one row an image.

The columns are `id`, `file`, `subject`, `where` (table and row, for errors), `finding` (absent, present), `view`,
`sex` (male, female), `age` (years), and `left_out` (why the image cannot be used; empty when it can). Empty cells are
unknown.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from medprism.data.errors import DataError, report
from medprism.data.samples import as_text
from medprism.data.tables import read_table

Uncertain = Literal["u_ones", "u_zeros", "u_ignore"]
Labeler = Literal["chexpert", "negbio"]

SEX = {"m": "male", "male": "male", "f": "female", "female": "female"}
OLDEST = 120
"""A higher age in years is a typing error."""

CHEXPERT_FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""The columns of findings of CheXpert and of MIMIC-CXR-JPG."""


def chexpert(root: Path, tables: Iterable[str], finding: str, uncertain: Uncertain) -> pd.DataFrame:
    """CheXpert: `train.csv` and `valid.csv`, with paths below the folder that holds `root`.

    Raises:
        DataError: when a table lacks a column, a path names no patient, or a label is none of 1, 0, -1 and empty.
    """
    parts = []
    for name in tables:
        file = root / name
        table = read_table(file, ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", finding], ["Path"])
        where = rows_of(table, file)
        patients = table["Path"].str.extract(r"(patient\d+)", expand=False)
        if patients.isna().any():
            row = int(patients.isna().to_numpy().argmax())
            raise DataError(
                f"{where[row]}: path '{table['Path'][row]}' names no patient, expected .../patient00001/..."
            )
        frontal = table["Frontal/Lateral"].str.strip().str.lower() != "lateral"
        labels = uncertain_finding(table[finding], where, finding, uncertain)
        parts.append(
            pd.DataFrame(
                {
                    # Paths begin with the name of the release, whatever the folder is called here.
                    "id": table["Path"].str.split("/", n=1).str[-1],
                    "file": [str(root / path.split("/", 1)[-1]) for path in table["Path"]],
                    "subject": patients,
                    "where": where,
                    "view": np.where(frontal, table["AP/PA"].map(as_text), "lateral"),
                    "sex": known_sex(table["Sex"]),
                    "age": known_age(table["Age"], file),
                    **labels,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def mimic_cxr(root: Path, finding: str, uncertain: Uncertain, labeler: Labeler, patients: Path | None) -> pd.DataFrame:
    """MIMIC-CXR-JPG: metadata and labels beside `files/p10/p10000032/s50414267/<dicom_id>.jpg`.

    Sex and age are those of MIMIC-IV's `patients.csv`, where it is given: age in the year of the study.

    Raises:
        DataError: when a table is missing or lacks a column, or a label is none of 1, 0, -1 and empty.
    """
    file = only(root, "mimic-cxr-*-metadata.csv*")
    table = read_table(file, ["dicom_id", "subject_id", "study_id", "ViewPosition"], ["dicom_id", "subject_id"])
    label_file = only(root, f"mimic-cxr-*-{labeler}.csv*")
    labels = read_table(label_file, ["study_id", finding], ["study_id"])
    found = uncertain_finding(labels[finding], rows_of(labels, label_file), finding, uncertain)
    by_study = pd.DataFrame({"study_id": labels["study_id"], **found}).drop_duplicates("study_id").set_index("study_id")
    of_image = by_study.reindex(table["study_id"]).reset_index(drop=True)
    unlabelled = of_image["finding"].isna()
    subject, study, name = table["subject_id"], table["study_id"], table["dicom_id"]
    paths = zip(subject, study, name, strict=True)
    columns: dict[str, Any] = {
        "id": name,
        "file": [str(root / "files" / f"p{p[:2]}" / f"p{p}" / f"s{s}" / f"{image}.jpg") for p, s, image in paths],
        "subject": "p" + subject,
        "where": rows_of(table, file),
        "view": table["ViewPosition"].map(as_text),
        "finding": of_image["finding"].fillna(""),
        "left_out": of_image["left_out"].mask(unlabelled, f"study without {labeler} labels"),
    }
    if patients is not None:
        columns |= mimic_people(patients, table, file)
    return pd.DataFrame(columns)


def mimic_people(patients: Path, images: pd.DataFrame, file: Path) -> dict[str, list[str]]:
    """Sex and age of the people on images of MIMIC-CXR, from MIMIC-IV's `patients.csv`: age in the year of the study.

    Args:
        patients: that table.
        images: the rows of MIMIC-CXR's metadata.
        file: where they come from.

    Raises:
        DataError: when a table lacks a column.
    """
    people = read_table(patients, ["subject_id", "gender", "anchor_age", "anchor_year"], ["subject_id"])
    by_subject = people.drop_duplicates("subject_id").set_index("subject_id")
    person = by_subject.reindex(images["subject_id"]).reset_index(drop=True)
    if "StudyDate" not in images:
        raise DataError(f"{file} lacks the column StudyDate, which ages need; it has {list(images.columns)}")
    age = pd.to_numeric(person["anchor_age"], errors="coerce")
    age += pd.to_numeric(images["StudyDate"].str[:4], errors="coerce").reset_index(drop=True)
    age -= pd.to_numeric(person["anchor_year"], errors="coerce")
    return {"sex": known_sex(person["gender"]), "age": known_age(age, patients)}


def nih(root: Path, finding: str) -> pd.DataFrame:
    """NIH ChestX-ray14: `Data_Entry_2017.csv`, and PNG files in `images` or `images_001/images` and so on.

    Raises:
        DataError: when the table is missing or lacks a column, or no image has the finding.
    """
    file = only(root, "Data_Entry_2017*.csv")
    needed = ["Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position"]
    table = read_table(file, needed, ["Image Index", "Finding Labels", "Patient ID"])
    labels = table["Finding Labels"].str.split("|").map(lambda names: {name.strip() for name in names})
    known = sorted(set().union(*labels))
    if finding not in known:
        raise DataError(f"{file}: no image has the finding '{finding}'; choose one of {known}")
    places = {path.name: path for path in sorted(root.glob("images*/**/*.png"))}
    return pd.DataFrame(
        {
            "id": table["Image Index"],
            "file": [str(places.get(name, root / "images" / name)) for name in table["Image Index"]],
            "subject": "patient" + table["Patient ID"],
            "where": rows_of(table, file),
            "finding": ["present" if finding in names else "absent" for names in labels],
            "view": table["View Position"].map(as_text),
            "sex": known_sex(table["Patient Gender"]),
            "age": known_age(table["Patient Age"].str.strip().str.removesuffix("Y"), file),  # 058Y in the first release
            "left_out": "",
        }
    )


def covid(root: Path) -> pd.DataFrame:
    """The COVID-19 image data collection: `metadata.csv`, finding COVID-19 against all others.

    Raises:
        DataError: when the table is missing or lacks a column.
    """
    file = root / "metadata.csv"
    table = read_table(file, ["image", "patientid", "sex", "age", "finding", "view"], ["image", "patientid"])
    labelled = ~table["finding"].str.strip().str.lower().isin(["", "todo", "unknown"])
    covid_19 = table["finding"].str.contains("COVID-19", case=False, regex=False)
    return pd.DataFrame(
        {
            "id": table["image"].map(lambda path: Path(path).name),
            "file": [str(root / path) for path in table["image"]],
            "subject": "patient" + table["patientid"],
            "where": rows_of(table, file),
            "finding": np.where(covid_19, "present", "absent"),
            "view": table["view"].map(as_text).replace("AP Supine", "AP"),
            "sex": known_sex(table["sex"]),
            "age": known_age(table["age"], file),
            "left_out": np.where(labelled, "", "no finding given"),
        }
    )


def known_finding(finding: str) -> str:
    """The finding, if it is a column of CheXpert and MIMIC-CXR-JPG.

    Raises:
        DataError: when it is not.
    """
    if finding not in CHEXPERT_FINDINGS:
        raise DataError(f"there is no finding '{finding}'; choose one of {list(CHEXPERT_FINDINGS)}")
    return finding


def uncertain_finding(
    cells: pd.Series[str], where: list[str], finding: str, uncertain: Uncertain
) -> dict[str, list[str]]:
    """The columns `finding` and `left_out` of labels 1, 0, -1 (uncertain) and empty (not mentioned).

    A finding that a report does not mention counts as absent.

    Raises:
        DataError: when a cell holds something else; names its row.
    """
    values = cells.map(as_text)
    meaning: Mapping[str, str] = {"1": "present", "0": "absent", "": "absent", "-1": "uncertain"}
    numbers = values.str.replace(r"\.0$", "", regex=True)
    wrong = ~numbers.isin(list(meaning))
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise DataError(f"{where[row]}: column '{finding}' holds '{values[row]}', expected 1, 0, -1 or nothing")
    found = numbers.map(meaning)
    unsure = found == "uncertain"
    found = found.mask(unsure, {"u_ones": "present", "u_zeros": "absent", "u_ignore": ""}[uncertain])
    ignored = unsure & (uncertain == "u_ignore")
    return {"finding": found.tolist(), "left_out": np.where(ignored, f"{finding} uncertain", "").tolist()}


def known_sex(cells: Iterable[str]) -> list[str]:
    """`male`, `female`, or empty for everything else."""
    return [SEX.get(as_text(cell).lower(), "") for cell in cells]


def known_age(cells: Iterable[Any], file: Path) -> list[str]:
    """Ages in years as text; empty where no number, negative, or above what a person reaches."""
    ages = pd.to_numeric(pd.Series(list(cells), dtype=object), errors="coerce")
    impossible = (ages < 0) | (ages > OLDEST)
    if impossible.any():
        report(f"{file}: {int(impossible.sum())} ages are below 0 or above {OLDEST} years and count as unknown")
    return ["" if pd.isna(age) else f"{age:g}" for age in ages.mask(impossible)]


def rows_of(table: pd.DataFrame, file: Path) -> list[str]:
    """How errors name each row; 1 is the header."""
    return [f"{file.name}, row {row + 2}" for row in range(len(table))]


def only(root: Path, pattern: str) -> Path:
    """The file of a pattern.

    Raises:
        DataError: when there is none, or more than one.
    """
    found = sorted(path for path in root.glob(pattern) if re.search(r"\.csv(\.gz)?$", path.name))
    if len(found) != 1:
        raise DataError(
            f"{root} holds {len(found)} files {pattern}, expected one ({[path.name for path in found]}); set root to "
            "the folder of the release"
        )
    return found[0]
