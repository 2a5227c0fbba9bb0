"""Reports and notes that lie beside X-rays: read, cut to what they say of the image, and divided into sentences.

Tables of one row an image, as `medprism.datamodules.xray_tables` makes them, get the column `sentences` (a tuple of
str) and perhaps `boxes` (a tuple of `Box`); rows without a sentence are left out and say why.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from rich.progress import track

from medprism.data.errors import DataError, report
from medprism.data.gaze import boxed
from medprism.data.imaging import Square
from medprism.data.samples import as_text
from medprism.data.tables import read_table
from medprism.data.texts import Box, Texts
from medprism.data.transcripts import split_text
from medprism.datamodules.xray_tables import rows_of

Notes = Literal["none", "masked", "raw"]

SECTION = re.compile(r"^[ \t]*([A-Z][A-Z0-9 ,()/&_-]*):(?=\s|$)", re.MULTILINE)
"""The name of a section: capitals at the beginning of a line, and a colon that no clock time follows."""
DESCRIBING = ("FINDING", "IMPRESSION", "CONCLUSION")
"""Names of the sections that describe the image contain one of these."""

NOTE_COLUMNS = {"masked": "note_masked", "raw": "clinical_notes"}
COVID_PROMPTS = (
    ("consolidation of a single lobe", "diffuse perihilar infiltrates", "lungs without consolidation"),
    (
        "bilateral peripheral ground-glass opacities",
        "patchy opacities in the lower zones of both lungs",
        "multifocal consolidation in both lungs",
    ),
)
"""What other findings and COVID-19 look like, in words that the masked notes may hold; chosen by us."""
LUNGS = ("right", "left")


def described(text: str) -> str | None:
    """The sections of a report that describe the image (findings, impression), in order; None when it names none.

    A section begins with its name in upper case and a colon, at the beginning of a line, and ends where the next one
    begins.
    """
    headings = list(SECTION.finditer(text))
    ends = [heading.start() for heading in headings[1:]] + [len(text)] * bool(headings)
    parts = [
        text[heading.end() : end]
        for heading, end in zip(headings, ends, strict=True)
        if any(name in heading[1] for name in DESCRIBING)
    ]
    return "\n\n".join(parts) if parts else None


def last_paragraph(text: str) -> str:
    """The last paragraph that holds a letter, without the name of its section; empty when there is none."""
    for paragraph in reversed(re.split(r"\n\s*\n", text)):
        said = SECTION.sub("", paragraph, count=1)
        if any(character.isalpha() for character in said):
            return said
    return ""


def read_text(file: Path, source: str) -> str:
    """The text of a UTF-8 file.

    Args:
        file: its path.
        source: how an error names it.

    Raises:
        DataError: when it cannot be read, or is not UTF-8.
    """
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{source}: line {line} is not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error.strerror}); mend the path, or leave the row out") from error


def with_sentences(table: pd.DataFrame, texts: Sequence[str], silent: str) -> pd.DataFrame:
    """The table with the column `sentences`.

    Args:
        table: one row an image.
        texts: of each row; empty for none.
        silent: why rows without a sentence are left out, unless they are left out already.
    """
    sentences = pd.Series([tuple(split_text(text)) for text in texts], index=table.index, dtype=object)
    left_out = table["left_out"].mask((table["left_out"] == "") & (sentences.str.len() == 0), silent)
    return table.assign(sentences=sentences, left_out=left_out)


def texts_of(table: pd.DataFrame) -> Texts | None:
    """What a table's columns `sentences` and `boxes` hold; None for a table without text."""
    if "sentences" not in table:
        return None
    return Texts(tuple(table["sentences"]), boxes=tuple(table["boxes"]) if "boxes" in table else None)


def mimic_reports(table: pd.DataFrame, root: Path, folder: Path) -> pd.DataFrame:
    """The findings and impressions of MIMIC-CXR, `files/p10/p10000032/s50414267.txt`, of all rows that are used.

    Of a report that names neither section the last paragraph is taken; such reports are counted.

    Args:
        table: with the column `file`, `files/p10/p10000032/s50414267/<dicom_id>.jpg` below `root`.
        root: folder of the images.
        folder: folder of the reports.

    Raises:
        DataError: when there is no such folder, or a report is not UTF-8.
    """
    if not (folder / "files").is_dir():
        raise DataError(f"{folder} holds no folder 'files'; set reports to the folder of MIMIC-CXR's report files")
    used = table["left_out"] == ""
    studies = pd.Series([Path(file).parent.relative_to(root) for file in table["file"]], index=table.index)
    texts: dict[Path, str | None] = {}
    unnamed = 0
    distinct = list(dict.fromkeys(studies[used]))
    for study in track(distinct, "MIMIC-CXR: reports", transient=True, disable=len(distinct) < 5000):
        file = folder / study.with_name(f"{study.name}.txt")
        whole = read_text(file, str(file)) if file.is_file() else None
        texts[study] = None if whole is None else described(whole)
        if whole is not None and texts[study] is None:
            texts[study] = last_paragraph(whole)
            unnamed += bool(texts[study])
    if unnamed:
        report(f"MIMIC-CXR: {unnamed} of {len(distinct)} reports name no findings or impression; last paragraph used")
    missing = used & studies.map(lambda study: texts.get(study) is None)
    there = table.assign(left_out=table["left_out"].mask(missing, "study without a report"))
    return with_sentences(there, [texts.get(study) or "" for study in studies], "empty report")


def covid_notes(table: pd.DataFrame, root: Path, notes: Literal["masked", "raw"], square: Square) -> pd.DataFrame:
    """The notes of the COVID-19 image data collection, and the boxes of both lungs where its table has them.

    Args:
        table: what `medprism.datamodules.xray_tables.covid` makes of the same file.
        root: folder of `metadata.csv`.
        notes: `masked` for notes in which disease and pathogen are replaced by `[finding]`, `raw` as published.
        square: how pictures become square.

    Raises:
        DataError: when the table has no such notes, or a box is none.
    """
    file, column = root / "metadata.csv", NOTE_COLUMNS[notes]
    cells = read_table(file, [column])
    told = with_sentences(table, cells[column].map(as_text).tolist(), "no note")
    boxes = lung_boxes(cells, file, square)
    return told if boxes is None else told.assign(boxes=pd.Series(boxes, index=told.index, dtype=object))


def lung_boxes(cells: pd.DataFrame, file: Path, square: Square) -> list[tuple[Box, ...]] | None:
    """The boxes `right lung` and `left lung` of each row, as far as they lie on the prepared image.

    The columns `right_x`, `right_y` (top left corner), `right_w`, `right_h` and those of `left` are in pixels of the
    image of `width` by `height` pixels; a lung whose cells are empty has no box.

    Returns:
        None when the table has no such columns.

    Raises:
        DataError: when a cell is no number, or a box has no extent; names the row.
    """
    names = [f"{side}_{part}" for side in LUNGS for part in "xywh"]
    if not {*names, "width", "height"} <= set(cells):
        return None
    where, found = rows_of(cells, file), []
    for row, (*corners, width, height) in enumerate(cells[[*names, "width", "height"]].itertuples(index=False)):
        boxes = []
        for lung, values in zip(LUNGS, (corners[:4], corners[4:]), strict=True):
            if not any(as_text(value) for value in values):
                continue
            left, top, across, down, columns, rows = _numbers([*values, width, height], where[row], f"{lung}_x,y,w,h")
            region = Box(f"{lung} lung", left, top, left + across, top + down)
            boxes.append(boxed(region, (round(columns), round(rows)), square))
        found.append(tuple(box for box in boxes if box is not None))  # it may lie in what was cropped
    return found


def _numbers(cells: Sequence[str], where: str, names: str) -> list[float]:
    values = pd.to_numeric(pd.Series(list(cells)), errors="coerce").tolist()
    if not np.isfinite(values).all() or min(values[2:]) <= 0:
        raise DataError(
            f"{where}: columns {names} and width, height hold {list(cells)}, expected six numbers, the last four above "
            "0; mend the cells, or leave all of the box empty"
        )
    return values


def manifest_reports(cells: Sequence[str], root: Path, where: Sequence[str]) -> list[tuple[str, ...]]:
    """The sentences of the reports in a column of a manifest.

    Where a report names findings or impression as MIMIC-CXR does, those are taken, otherwise all of it.

    Args:
        cells: the reports, or the paths of text files, which end in `.txt`, relative to `root`; empty for none.
        root: folder.
        where: how errors name the rows.

    Raises:
        DataError: when a text file cannot be read, or is not UTF-8; names the row.
    """
    found = []
    for cell, row in zip(cells, where, strict=True):
        text = as_text(cell)
        if text.lower().endswith(".txt") and "\n" not in text:
            text = read_text(root / text, f"{root / text} ({row})")
        sections = described(text)
        found.append(tuple(split_text(text if sections is None else sections)))
    return found
