"""The files of single readings in EGD-CXR, REFLACX and MIMIC-EYE: words, fixations, and located phrases.

Layouts as their authors describe them: Karargyris et al., Scientific Data 2021 (EGD-CXR); Bigolin Lanfredi et al.,
Scientific Data 2022 (REFLACX); Hsieh et al., PhysioNet 2023 (MIMIC-EYE). Every function reads files and knows no
cohort. Errors name the file and the row; 1 is the header.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from medprism.data.errors import DataError
from medprism.data.gaze import Fixations
from medprism.data.imaging import FloatArray
from medprism.data.samples import as_text
from medprism.data.texts import Box
from medprism.data.transcripts import Sentence, Word, sentences_of, split_text

SCREEN = (1920, 1080)
"""Width and height in pixels of the screen of EGD-CXR."""
DICOM_ID = 44
"""Characters of an image's id in MIMIC-CXR; EGD's calibration images have shorter ones."""
LARGE = 2**24
"""Bytes from which on a table is large."""
EGD_COLUMNS = ("FPOGX", "FPOGY", "FPOGS", "FPOGD", "FPOGID", "FPOGV", "X_ORIGINAL", "Y_ORIGINAL")
REFLACX_COLUMNS = ("timestamp_start_fixation", "timestamp_end_fixation", "x_position", "y_position")
RESOLUTION = ("angular_resolution_x_pixels_per_degree", "angular_resolution_y_pixels_per_degree")
CLOCK = ("begin_time", "end_time")
EDGES = ("xmin", "ymin", "xmax", "ymax")

CALIBRATION = "gaze row of a calibration image"
INVALID = "gaze row that the eye tracker calls invalid"
NO_TIMES = "transcript without times, read as text"


class ScreenGaze(NamedTuple):
    """Fixations on one image of EGD-CXR, as far as its table tells them.

    Attributes:
        x: `(F,)` pixels of the original image; negative off it.
        y: `(F,)` the same.
        start: `(F,)` seconds since the image was shown.
        end: `(F,)` seconds since the image was shown.
        screen_x: `(F,)` pixels of the screen.
        screen_y: `(F,)` pixels of the screen.
    """

    x: FloatArray
    y: FloatArray
    start: FloatArray
    end: FloatArray
    screen_x: FloatArray
    screen_y: FloatArray

    def fixations(self, sigma: float) -> Fixations:
        """The same with one width, in pixels of the original image, for each Gaussian."""
        return Fixations(self.x, self.y, self.start, self.end, np.full((len(self.x), 2), sigma))

    def image_size(self, pads: Sequence[float]) -> tuple[int, int] | None:
        """Width and height of the image that the gaze was mapped to, within about a pixel in a hundred.

        Args:
            pads: pixels of the screen above, below, left and right of the image.

        Returns:
            None when too little gaze lies on the image to tell.
        """
        top, bottom, left, right = pads
        found = []
        for original, screen, before, after, side in (
            (self.x, self.screen_x, left, right, SCREEN[0]),
            (self.y, self.screen_y, top, bottom, SCREEN[1]),
        ):
            shown, depth = side - before - after, screen - before
            inside = (self.x > 0) & (self.y > 0) & (depth > 0.2 * shown)  # where rounding matters least
            if inside.sum() < 3 or shown <= 0:
                return None
            found.append(round(float(np.median((original[inside] + 0.5) / depth[inside])) * shown))
        return found[0], found[1]


def read_text(file: Path) -> str:
    """The text of a file, with its line ends.

    Raises:
        DataError: when it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error}); mend root, or copy the file again") from error


def read_columns(file: Path, needed: Iterable[str], optional: Iterable[str] | None = ()) -> dict[str, list[str]]:
    """Columns of a small CSV, as text; line ends may be those of any system, and other columns are not looked at.

    Args:
        file: its path.
        needed: columns that it must have.
        optional: columns that are returned where there are any; None for all.

    Raises:
        DataError: when it cannot be read, lacks a column, or a row is shorter than the header.
    """
    rows = list(csv.reader(io.StringIO(read_text(file), newline="")))
    header = rows[0] if rows else []
    missing = [name for name in needed if name not in header]
    if missing:
        raise DataError(f"{file} lacks the columns {missing}; it has {header}")
    names = dict.fromkeys([*needed, *header] if optional is None else [*needed, *(set(optional) & set(header))])
    for row, cells in enumerate(rows[1:], 2):
        if cells and len(cells) != len(header):
            raise DataError(f"{file}, row {row}: {len(cells)} cells, but the header has {len(header)}; mend the row")
    filled = [cells for cells in rows[1:] if cells]
    return {name: [cells[header.index(name)] for cells in filled] for name in names}


def numbers(cells: Sequence[Any], file: Path, column: str) -> FloatArray:
    """A column of numbers; NaN where a cell is empty.

    Raises:
        DataError: when a cell is no number; names its row.
    """
    try:
        return np.array(cells, dtype=np.float64)
    except ValueError:  # a cell is empty, or no number
        pass
    found = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells):
        text = as_text(cell)
        try:
            found[row] = float(text) if text else np.nan
        except ValueError:
            raise DataError(
                f"{file}, row {row + 2}: column '{column}' holds '{text}', expected a number; mend the cell, or leave "
                "it empty if unknown"
            ) from None
    return found


# ------------------------------------------------------------------------------------------------------------- REFLACX
def reflacx_words(folder: Path) -> tuple[list[Sentence], dict[str, int]] | None:
    """The sentences of a REFLACX reading, and what was mended (reason -> count); None when there is no transcript.

    Times are those of `timestamps_transcription.csv`; the text of `transcription.txt` stands in when that is missing.

    Raises:
        DataError: when a file cannot be read.
    """
    timed, plain = folder / "timestamps_transcription.csv", folder / "transcription.txt"
    if timed.is_file():
        table = read_columns(timed, ("word", "timestamp_start_word", "timestamp_end_word"))
        start, end = (numbers(table[name], timed, name) for name in ("timestamp_start_word", "timestamp_end_word"))
        words = [Word(*each) for each in zip(table["word"], start.tolist(), end.tolist(), strict=True)]
        return sentences_of(words, str(timed))
    return _untimed(read_text(plain)) if plain.is_file() else None


def reflacx_fixations(file: Path, sigma_degrees: float, sigma_px: float) -> Fixations:
    """The fixations of a REFLACX reading, on the clock of its audio.

    Args:
        file: `fixations.csv`.
        sigma_degrees: width of the Gaussians in degrees; the file tells the pixels per degree.
        sigma_px: their width in pixels where it does not.

    Raises:
        DataError: when the file cannot be read.
    """
    table = read_columns(file, REFLACX_COLUMNS, RESOLUTION)
    start, end, x, y = (numbers(table[name], file, name) for name in REFLACX_COLUMNS)
    sigma = np.full((len(x), 2), float(sigma_px))
    for axis, name in enumerate(RESOLUTION):
        if name in table:
            per_degree = numbers(table[name], file, name)
            known = per_degree > 0
            sigma[known, axis] = sigma_degrees * per_degree[known]
    return Fixations(x, y, start, end, sigma)


def reflacx_regions(file: Path, certainty: float) -> list[Box]:
    """What a REFLACX reader located: the bounding box of each ellipse, once for each of its labels.

    Args:
        file: `anomaly_location_ellipses.csv`; no regions when it is missing.
        certainty: smallest certainty, 1 to 5, of a finding that counts.

    Raises:
        DataError: when the file cannot be read.
    """
    if not file.is_file():
        return []
    table = read_columns(file, (*EDGES, "certainty"), None)
    labels = [name for name in table if name and name not in (*EDGES, "certainty")]
    edges = np.column_stack([numbers(table[name], file, name) for name in EDGES])
    sure = numbers(table["certainty"], file, "certainty") >= certainty
    found = []
    for row in np.flatnonzero(sure & np.isfinite(edges).all(axis=1)):
        (left, right), (top, bottom) = sorted(edges[row, [0, 2]].tolist()), sorted(edges[row, [1, 3]].tolist())
        found += [Box(name, left, top, right, bottom) for name in labels if truth(table[name][row])]
    return found


def truth(cell: str) -> bool:
    """Whether a cell says yes: `True`, or a number above 0."""
    text = as_text(cell).lower()
    return text in ("true", "yes") or (text.replace(".", "", 1).isdigit() and float(text) > 0)


# ------------------------------------------------------------------------------------------------------------- EGD-CXR
def egd_words(file: Path) -> tuple[list[Sentence], dict[str, int]] | None:
    """The sentences of an EGD-CXR transcript, and what was mended (reason -> count); None when there is none.

    Raises:
        DataError: when the file is no such transcript.
    """
    if not file.is_file():
        return None
    try:
        content = json.loads(read_text(file))
        phrases = content.get("time_stamped_text") or []
        if not phrases:
            return _untimed(str(content.get("full_text") or ""))
        words = [
            Word(str(each["phrase"]), *(float("nan" if each.get(k) in (None, "") else each[k]) for k in CLOCK))
            for each in phrases
        ]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{file} is no transcript ({type(error).__name__}: {error}); expected JSON with full_text and "
            "time_stamped_text, a list of phrase, begin_time and end_time in seconds"
        ) from error
    return sentences_of(words, str(file))


def egd_gaze(file: Path) -> tuple[dict[str, ScreenGaze], dict[str, int]]:
    """The fixations of EGD-CXR's `fixations.csv` or `eye_gaze.csv`, image by image, and what is left out.

    Rows of calibration images and invalid rows are left out and counted. Consecutive rows of one fixation are one: it
    begins with the first, and lasts and lies as the last tells, which knows all of it.

    Args:
        file: its path.

    Raises:
        DataError: when the file is missing, is no such table, or a cell is no number.
    """
    if not file.is_file():
        raise DataError(f"{file} does not exist; mend root, it holds the files of the release")
    table = _gaze_table(file)
    image = np.array(table["DICOM_ID"], dtype=object)
    of_image = np.array([len(name) == DICOM_ID for name in image], dtype=bool)
    # What stands in the rows of other images does not matter; messages count rows as the file does.
    columns = {
        name: numbers([cell if use else "" for cell, use in zip(table[name], of_image, strict=True)], file, name)
        for name in EGD_COLUMNS
    }
    valid = of_image & (columns["FPOGV"] == 1)
    counts = {CALIBRATION: int((~of_image).sum()), INVALID: int((of_image & ~valid).sum())}
    left_out = {reason: n for reason, n in counts.items() if n}
    if not valid.any():
        return {}, left_out
    image = image[valid]
    seen = {name: column[valid] for name, column in columns.items()}
    begins = np.append(True, (image[1:] != image[:-1]) | (np.diff(seen["FPOGID"]) != 0))
    first = np.flatnonzero(begins)
    last = np.append(first[1:], len(image)) - 1
    off = (seen["X_ORIGINAL"] <= 0) | (seen["Y_ORIGINAL"] <= 0)
    fixations = np.stack(
        [
            np.where(off, -1, seen["X_ORIGINAL"])[last],
            np.where(off, -1, seen["Y_ORIGINAL"])[last],
            seen["FPOGS"][first],
            np.maximum.reduceat(seen["FPOGS"] + seen["FPOGD"], first),
            seen["FPOGX"][last] * SCREEN[0],
            seen["FPOGY"][last] * SCREEN[1],
        ]
    )
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(image[first]):
        rows.setdefault(name, []).append(row)
    return {name: ScreenGaze(*fixations[:, where]) for name, where in rows.items()}, left_out


def _gaze_table(file: Path) -> Mapping[str, Sequence[str]]:
    """The columns of gaze as text; large files are read by pandas, which holds no other column."""
    names = ["DICOM_ID", *EGD_COLUMNS]
    if file.stat().st_size < LARGE:
        return read_columns(file, names)
    try:
        table = pd.read_csv(file, usecols=names, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # also of what is not UTF-8
        raise DataError(f"{file} cannot be read ({error}); it must be a CSV with the columns {names}") from error
    return {name: table[name].tolist() for name in names}


def egd_regions(file: Path) -> dict[str, list[Box]]:
    """The located phrases of EGD-CXR's `bounding_boxes.csv`, image by image; none when it is missing.

    Raises:
        DataError: when the file cannot be read.
    """
    if not file.is_file():
        return {}
    table = read_columns(file, ("dicom_id", "bbox_name", "x1", "x2", "y1", "y2"))
    left, right, top, bottom = (numbers(table[name], file, name) for name in ("x1", "x2", "y1", "y2"))
    found: dict[str, list[Box]] = {}
    for row, image in enumerate(table["dicom_id"]):
        edges = (float(left[row]), float(top[row]), float(right[row]), float(bottom[row]))
        if np.isfinite(edges).all():
            found.setdefault(image, []).append(Box(table["bbox_name"][row].strip(), *edges))
    return found


def _untimed(text: str) -> tuple[list[Sentence], dict[str, int]]:
    """Sentences of which nobody knows when they were said."""
    return [Sentence(sentence, float("nan"), float("nan")) for sentence in split_text(text)], {NO_TIMES: 1}
