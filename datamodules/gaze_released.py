"""Readings of chest X-rays with gaze: EGD-CXR, REFLACX, and MIMIC-EYE, which holds both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.progress import track

from medprism.data.errors import DataError
from medprism.data.gaze import Fixations, Reading
from medprism.data.splits import PARTS, Split
from medprism.data.texts import Box
from medprism.data.transcripts import Sentence
from medprism.datamodules import gaze_tables
from medprism.datamodules.gaze import GazeDataModule, check_size, picture_size
from medprism.datamodules.gaze_files import (
    ScreenGaze,
    egd_gaze,
    egd_regions,
    egd_words,
    reflacx_fixations,
    reflacx_regions,
    reflacx_words,
)
from medprism.datamodules.xray import ReleasedXrays
from medprism.datamodules.xray_tables import Uncertain, known_finding

OFFICIAL = {"train": "train", "validate": "validation", "test": "test"}
NO_TRANSCRIPT = "reading without a transcript"
NO_SENTENCE = "reading whose report has no sentence"
NO_GAZE = "reading without fixations, kept without gaze"
NO_SIZE = "reading of an image that cannot be read, or is not the one that was read"
DISCARDED = "reading whose eye tracking was discarded, without a transcript"


class ReleasedReadings(GazeDataModule, ReleasedXrays):
    """Base of the released cohorts of readings; all splits are by patient.

    A subclass gives `table`, as `medprism.datamodules.gaze_tables` makes it, and `classes`.

    Args:
        root: folder of the release.
        images: folder of the images: MIMIC-CXR-JPG, or a folder of files that are named by the image's id; `root`
            when left out. MIMIC-CXR-JPG's tables of metadata and split are read where they lie there.
        official_split: divide as MIMIC-CXR does, instead of anew.
        **base: arguments of `GazeDataModule`, `ReleasedXrays`, `XrayDataModule`, `ImageDataModule` and
            `CohortDataModule`.
    """

    gaze_file: Literal["fixations", "eye_gaze"] = "fixations"
    certainty: float = 3.0

    def __init__(self, root: str, images: str | None = None, official_split: bool = False, **base: Any) -> None:
        super().__init__(**base)
        self.root = Path(root)
        self.image_root = self.root if images is None else Path(images)
        self.official_split = official_split
        self._egd_gaze: dict[Path, dict[str, ScreenGaze]] = {}
        self._egd_regions: dict[Path, dict[str, list[Box]]] = {}

    def said(self, row: Mapping[str, Any]) -> tuple[list[Sentence], dict[str, int]] | None:
        """The sentences of a reading, and what was mended; None when there is no transcript."""
        folder = Path(row["folder"])
        return egd_words(folder / "transcript.json") if row["origin"] == "EGD" else reflacx_words(folder)

    def seen(self, row: Mapping[str, Any]) -> Fixations | None:
        """Where the reader looked; None when nobody knows."""
        if row["origin"] == "EGD":
            gaze = self.screen_gaze(row)
            return None if gaze is None else gaze.fixations(self.sigma_px)
        file = Path(row["folder"]) / "fixations.csv"
        if row["discarded"] or not file.is_file():
            return None
        return reflacx_fixations(file, self.sigma_degrees, self.sigma_px)

    def located(self, row: Mapping[str, Any]) -> list[Box]:
        """Phrases with places, on the original image."""
        folder = Path(row["folder"])
        if row["origin"] == "REFLACX":
            return reflacx_regions(folder / "anomaly_location_ellipses.csv", self.certainty)
        home = folder.parents[1]
        if home not in self._egd_regions:
            self._egd_regions[home] = egd_regions(home / "bounding_boxes.csv")
        return self._egd_regions[home].get(row["image_id"], [])

    def screen_gaze(self, row: Mapping[str, Any]) -> ScreenGaze | None:
        """The gaze of a reading of EGD-CXR; its table is read once."""
        home = Path(row["folder"]).parents[1]
        if home not in self._egd_gaze:
            self._egd_gaze[home], left_out = egd_gaze(home / f"{self.gaze_file}.csv")
            for reason, n in left_out.items():
                self.skipped[reason] = self.skipped.get(reason, 0) + n
        return self._egd_gaze[home].get(row["image_id"])

    def size_of(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """Width and height in pixels of the image that gaze and regions were recorded on."""
        if not (row["width"] >= 1 and row["height"] >= 1):
            raise DataError(f"{row['where']}: the image has no size ({row['width']} x {row['height']}); mend the table")
        return int(row["width"]), int(row["height"])

    def with_texts(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns `reading` and `regions`; what cannot be used says why."""
        found: list[tuple[Reading | None, list[Box], str]] = []
        mended: Counter[str] = Counter()
        rows = [{str(name): cell for name, cell in row.items()} for row in table.to_dict("records")]
        for row in track(rows, f"{self.name}: readings", transient=True, disable=len(rows) < 100):
            reading: Reading | str = row["left_out"] or self._reading(row, mended)
            if isinstance(reading, Reading):
                found.append((reading, self.located(row), ""))
            else:
                found.append((None, [], reading))
        self.skipped |= mended
        columns = zip(("reading", "regions", "left_out"), zip(*found, strict=True), strict=True)
        return table.assign(**{name: pd.Series(cells, dtype=object, index=table.index) for name, cells in columns})

    def _reading(self, row: Mapping[str, Any], mended: Counter[str]) -> Reading | str:
        """The reading of a row, or why it cannot be used."""
        said = self.said(row)
        if said is None:
            return DISCARDED if row["discarded"] else NO_TRANSCRIPT
        sentences, counts = said
        if not sentences:
            return NO_SENTENCE
        try:
            size = self.size_of(row)
        except DataError:
            if self.unreadable == "error":
                raise
            return NO_SIZE
        fixations = self.seen(row)
        mended.update(counts)
        if fixations is None or not len(fixations):
            mended[NO_GAZE] += 1
            fixations = None
        return Reading(row["id"], row["subject"], row["file"], size, tuple(sentences), fixations, row["where"])

    @property
    def readings(self) -> tuple[Reading, ...]:
        """The readings that can be used."""
        return tuple(self._table["reading"])

    @property
    def regions(self) -> tuple[tuple[Box, ...], ...]:
        """What the release located in their images."""
        return tuple(map(tuple, self._table["regions"]))

    @property
    def prompts(self) -> tuple[tuple[str, ...], ...]:
        """As many phrases for the absence of the finding as for its presence."""
        name = self.classes[1].lower()
        return (
            (f"no {name}", f"there is no evidence of {name}", f"no {name} is seen"),
            (name, f"there is {name}", f"{name} is seen"),
        )

    @cached_property
    def partition(self) -> Split:
        """MIMIC-CXR's own split, when it is asked for."""
        if not self.official_split:
            return super().partition
        table, known = self._table, set(self.samples.subject)
        unknown = ~table["split"].isin(list(OFFICIAL))
        if unknown.any():
            row = table[unknown].iloc[0]
            raise DataError(
                f"{row['where']}: the official split of image {row['image_id']} is '{row['split']}', expected one of "
                f"{list(OFFICIAL)}; put mimic-cxr-*-split.csv into {self.image_root}, or set official_split to false"
            )
        parts = {str(name): sorted(set(names)) for name, names in table.groupby("subject")["split"]}
        torn = [name for name, names in parts.items() if len(names) > 1]
        if torn:
            raise DataError(f"{self.name}: patient {torn[0]} is in {parts[torn[0]]}; a patient has one part only")
        official = {name: OFFICIAL[names[0]] for name, names in parts.items() if name in known}
        return Split(*(tuple(name for name, given in official.items() if given == part) for part in PARTS))


class EGDCXR(ReleasedReadings):
    """Chest X-rays read aloud by one radiologist under an eye tracker: 1,083 images. Karargyris et al., 2021.

    The images are those of MIMIC-CXR. Boxes are those of `bounding_boxes.csv`, which name anatomy.

    Args:
        root: folder of `master_sheet.csv` and the other files.
        target: `diagnosis` (normal, congestive heart failure, pneumonia), or a label of the report such as
            `Edema` (the column `edema__chx`).
        uncertain: what an uncertain label of the report means: present (`u_ones`), absent (`u_zeros`), or leave the
            image out.
        gaze_file: the table that gaze is read from; the larger `eye_gaze` gives the same fixations.
        **base: arguments of `ReleasedReadings`, `GazeDataModule`, `ReleasedXrays`, `XrayDataModule`,
            `ImageDataModule` and `CohortDataModule`.
    """

    name = "EGD-CXR"

    def __init__(
        self,
        root: str,
        target: str = "diagnosis",
        uncertain: Uncertain = "u_ignore",
        gaze_file: Literal["fixations", "eye_gaze"] = "fixations",
        **base: Any,
    ) -> None:
        super().__init__(root=root, **base)
        self.target = target
        self.uncertain: Uncertain = uncertain
        self.gaze_file = gaze_file
        if target == "diagnosis":
            self.cells = gaze_tables.DIAGNOSES

    @property
    def classes(self) -> tuple[str, ...]:
        """Diagnoses, or absence and presence of the finding."""
        if self.target == "diagnosis":
            return ("normal", "congestive heart failure", "pneumonia")
        name = self.target.removesuffix("__chx").replace("_", " ").lower()
        return f"no {name}", name

    @property
    def prompts(self) -> tuple[tuple[str, ...], ...]:
        """Phrases for each class, as many for one as for the other."""
        if self.target != "diagnosis":
            return super().prompts
        return (
            ("normal chest", "clear lungs without acute abnormality", "normal heart size and clear lungs"),
            ("congestive heart failure", "enlarged heart and vascular congestion", "pulmonary edema and effusions"),
            ("pneumonia", "focal consolidation of the lung", "patchy airspace opacity"),
        )

    def table(self) -> pd.DataFrame:
        """The one table."""
        return gaze_tables.egd(self.root, self.image_root, self.target, self.uncertain)

    def size_of(self, row: Mapping[str, Any]) -> tuple[int, int]:
        """As the file has it: no table tells, but the gaze on screen and image must fit it."""
        source = f"{row['file']} ({row['where']})"
        width, height = picture_size(Path(row["file"]), source)
        gaze = self.screen_gaze(row)
        mapped = None if gaze is None else gaze.image_size(row["pads"])
        if mapped is None:
            return width, height
        check_size((width, height), mapped, source, slack=0.02)
        if abs(mapped[0] - width) <= 0.02 * mapped[0]:
            return width, height
        return mapped[0], round(mapped[0] * height / width)  # a smaller copy


class REFLACX(ReleasedReadings):
    """Dictated readings of chest X-rays by five radiologists: 3,052 of 2,616 images. Bigolin Lanfredi et al., 2022.

    The images are those of MIMIC-CXR; several readings of one image are several samples of one subject. Boxes bound the
    ellipses around findings.

    Args:
        root: folder of `main_data`.
        finding: a label of phases 2 and 3, or one that phase 1 shares; phase 1's own names for it count too, and
            readings of a phase without it are left out.
        certainty: smallest certainty, 1 (unlikely) to 5 (consistent with), of a finding that counts as present.
        patients: `patients.csv` of MIMIC-IV, which tells sex and age, for images with MIMIC-CXR-JPG's metadata.
        **base: arguments of `ReleasedReadings`, `GazeDataModule`, `ReleasedXrays`, `XrayDataModule`,
            `ImageDataModule` and `CohortDataModule`.
    """

    name = "REFLACX"

    def __init__(
        self,
        root: str,
        finding: str = "Pleural abnormality",
        certainty: float = 3.0,
        patients: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(root=root, **base)
        if not 0 < certainty <= 5:
            raise DataError(f"certainty is {certainty}; REFLACX's certainties are 1 to 5")
        self.finding = finding
        self.certainty = certainty
        self.patients = None if patients is None else Path(patients)

    @property
    def classes(self) -> tuple[str, ...]:
        """Named after the finding."""
        return f"no {self.finding.lower()}", self.finding

    def table(self) -> pd.DataFrame:
        """The tables of all phases."""
        return gaze_tables.reflacx(self.root, self.image_root, self.finding, self.certainty, self.patients)


class MIMICEYE(ReleasedReadings):
    """REFLACX and EGD-CXR, patient by patient, with images and labels of MIMIC-CXR. Hsieh et al., PhysioNet 2023.

    An image may have readings of both; each is a sample of its own.

    Args:
        root: folder of `patient_*`.
        finding: one of the 14 findings of CheXpert's labeler.
        uncertain: what an uncertain label means: present (`u_ones`), absent (`u_zeros`), or leave the image out.
        sources: whose readings are used, of REFLACX and EGD.
        certainty: smallest certainty, 1 to 5, of an ellipse that counts as box.
        gaze_file: the table that EGD's gaze is read from.
        **base: arguments of `ReleasedReadings`, `GazeDataModule`, `ReleasedXrays`, `XrayDataModule`,
            `ImageDataModule` and `CohortDataModule`.
    """

    name = "MIMIC-EYE"

    def __init__(
        self,
        root: str,
        finding: str = "Pleural Effusion",
        uncertain: Uncertain = "u_ignore",
        sources: tuple[str, ...] = ("REFLACX", "EGD"),
        certainty: float = 3.0,
        gaze_file: Literal["fixations", "eye_gaze"] = "fixations",
        **base: Any,
    ) -> None:
        super().__init__(root=root, **base)
        if not sources or set(sources) - {"REFLACX", "EGD"}:
            raise DataError(f"sources are {list(sources)}; choose REFLACX, EGD, or both")
        self.finding = known_finding(finding)
        self.uncertain: Uncertain = uncertain
        self.sources = sources
        self.certainty = certainty
        self.gaze_file = gaze_file

    @property
    def classes(self) -> tuple[str, ...]:
        """Named after the finding."""
        return f"no {self.finding.lower()}", self.finding

    def table(self) -> pd.DataFrame:
        """The tables of every patient."""
        return gaze_tables.mimic_eye(self.root, self.sources, self.finding, self.uncertain)
