"""Chest X-rays of CheXpert, MIMIC-CXR-JPG, NIH ChestX-ray14 and the COVID-19 image collection."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from medprism.cohort import Factor
from medprism.data.cache import stamps
from medprism.data.errors import DataError
from medprism.data.imaging import FloatArray, Square, equalized, read_picture, resized
from medprism.data.samples import Labels
from medprism.data.tables import Columns
from medprism.data.texts import Texts
from medprism.datamodules import xray_tables
from medprism.datamodules.images import ImageDataModule, Images
from medprism.datamodules.reports import COVID_PROMPTS, Notes, covid_notes, mimic_reports, texts_of
from medprism.datamodules.xray_tables import Labeler, Uncertain

ATTRIBUTES = ("view", "sex", "age")
SEXES = ("male", "female")
PHRASES = {"AP": "anteroposterior view", "PA": "posteroanterior view"}


class XrayDataModule(ImageDataModule):
    """Base of the X-ray cohorts: PNG, JPEG or DICOM files become grey squares in [0, 1].

    Args:
        size: height and width in pixels.
        square: how pictures become square: `pad` with black, `crop` the centre, or `stretch`.
        clahe: contrast limit of an adaptive histogram equalisation before resizing, such as 0.01; none for 0. Needs
            the extra `xray`.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    def __init__(self, size: int = 96, square: Square = "pad", clahe: float = 0.0, **base: Any) -> None:
        super().__init__(**base)
        if size < 8:
            raise DataError(f"size is {size}; take at least 8 pixels")
        if not 0 <= clahe <= 1:
            raise DataError(f"clahe is {clahe}; its contrast limit lies between 0 (none) and 1")
        self.size = size
        self.square: Square = square
        self.clahe = clahe

    @abstractmethod
    def files(self) -> tuple[list[Path], list[str]]:
        """The file of every sample, in the order of the labels, and the table and row that name it."""

    def prepared(self, file: Path, source: str) -> FloatArray:
        """The sample `(C, size, size)` in [0, 1] of a file: decoding, contrast, shape and size, in this order.

        Args:
            file: its path.
            source: how an error names it.
        """
        picture = read_picture(file, source)
        if self.clahe:
            picture = equalized(picture, self.clahe)
        return resized(picture, self.size, self.square)[None]

    def images(self) -> Images:
        """The prepared files."""
        files, where = self.files()
        names = tuple(f"{file} ({row})" for file, row in zip(files, where, strict=True))
        there = [file.is_file() for file in files]
        missing = [name for name, is_there in zip(names, there, strict=True) if not is_there]
        if missing and (self.unreadable == "error" or len(missing) == len(files)):
            raise DataError(
                f"{len(missing)} of {len(files)} files do not exist, the first is {missing[0]}; mend root or the "
                "paths, or set unreadable to skip"
            )
        key = {
            "files": stamps(file for file, is_there in zip(files, there, strict=True) if is_there),
            "missing": missing,
            "size": self.size,
            "square": self.square,
            "clahe": self.clahe,
            "pillow": version("pillow"),
        }
        return Images(names, lambda row: self.prepared(files[row], names[row]), key)


class ReleasedXrays(XrayDataModule):
    """Base of the released chest X-ray cohorts: a finding as target; all splits are by patient.

    Args:
        attributes: which of view, sex and age the cohort has; all that its tables tell when left out.
        age_cuts: ages in years that divide the age classes; the median of the cohort when empty.
        views: views of the images that are used, next to those without a known view.
        **base: arguments of `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    cells: tuple[str, ...] = ("absent", "present")
    """What the column `finding` of the table can hold, in the order of `classes`."""

    def __init__(
        self,
        attributes: tuple[str, ...] | None = None,
        age_cuts: tuple[float, ...] = (60,),
        views: tuple[str, ...] = ("AP", "PA"),
        **base: Any,
    ) -> None:
        super().__init__(**base)
        unknown = [name for name in attributes or () if name not in ATTRIBUTES]
        if unknown:
            raise DataError(f"{self.name} has no attributes {unknown}; choose among {list(ATTRIBUTES)}")
        self.attributes = attributes
        self.age_cuts = age_cuts
        self.views = views

    @abstractmethod
    def table(self) -> pd.DataFrame:
        """The columns of `medprism.datamodules.xray_tables`, one row an image."""

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """What the classes of the finding are called, such as its absence and its presence."""

    @property
    def prompts(self) -> tuple[tuple[str, ...], ...]:
        """What the classes are in words: phrases for each."""
        return tuple((name,) for name in self.classes)

    def with_texts(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table with the columns of `medprism.datamodules.reports`, in cohorts that have texts."""
        return table

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The rows that can be used; what is left out is counted in `skipped`."""
        table = self.table()
        other_view = (table["view"] != "") & ~table["view"].isin(self.views)
        table["left_out"] = table["left_out"].mask(other_view, f"view not in {list(self.views)}")
        table = self.with_texts(table)  # after that, so that the reports of other views need not be read
        reason = table["left_out"]
        for text, n in reason[reason != ""].value_counts().items():
            self.skipped[str(text)] = int(n)
        kept = table[reason == ""].reset_index(drop=True)
        if kept.empty:
            raise DataError(
                f"{self.name}: none of {len(table)} images can be used ({self.skipped}); mend finding or views"
            )
        return kept

    @cached_property
    def labels(self) -> Labels:
        """Finding, view, sex and age class of every image."""
        table = self._table
        told = [name for name in ATTRIBUTES if name in table and (table[name] != "").any()]
        names = told if self.attributes is None else list(self.attributes)
        absent = [name for name in names if name not in told]
        if absent:
            raise DataError(
                f"{self.name}: nothing tells {absent}, only {told}; give the table of patients, or leave it out"
            )
        ages = pd.to_numeric(table["age"], errors="coerce") if "age" in names else pd.Series(dtype=float)
        if "age" in names and not ages.notna().any():
            raise DataError(f"{self.name}: no image has a known age; leave age out of attributes")
        columns = Columns(
            "finding",
            self.cells,
            names,
            attribute_classes={"view": self.views, "sex": SEXES},
            cuts={"age": self.age_cuts or (float(ages.median()),)} if "age" in names else {},
            phrases=PHRASES,
        )
        labels = columns.labels(table, self.name, table["id"].tolist(), table["subject"].tolist(), ())
        target = Factor("finding", self.classes, self.prompts, "target")
        return Labels(labels.samples, target, labels.attributes)

    def files(self) -> tuple[list[Path], list[str]]:
        """The files that the table names."""
        return [Path(file) for file in self._table["file"]], self._table["where"].tolist()

    @cached_property
    def texts(self) -> Texts | None:
        """What reports or notes say of each image, if they are read."""
        return texts_of(self._table)


class CheXpert(ReleasedXrays):
    """A finding in chest X-rays of Stanford (224,316 of 65,240 patients). Irvin et al., AAAI 2019.

    The layout is that of `CheXpert-v1.0-small`; both of its tables are read and divided anew by patient. A finding
    that a report does not mention counts as absent.

    Args:
        root: folder of `train.csv`, `valid.csv`, `train/` and `valid/`.
        finding: one of the 14 columns of findings.
        uncertain: what an uncertain label means: present (`u_ones`), absent (`u_zeros`), or leave the image out.
        tables: the tables that are read.
        **base: arguments of `ReleasedXrays`, `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    name = "CheXpert"

    def __init__(
        self,
        root: str,
        finding: str = "Pleural Effusion",
        uncertain: Uncertain = "u_ignore",
        tables: tuple[str, ...] = ("train.csv", "valid.csv"),
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.root = Path(root)
        self.finding = xray_tables.known_finding(finding)
        self.uncertain: Uncertain = uncertain
        self.tables = tables

    @property
    def classes(self) -> tuple[str, str]:
        """Named after the finding."""
        return f"no {self.finding.lower()}", self.finding

    def table(self) -> pd.DataFrame:
        """Both tables."""
        return xray_tables.chexpert(self.root, self.tables, self.finding, self.uncertain)


class MimicCXR(ReleasedXrays):
    """A finding in chest X-rays of the Beth Israel Deaconess Medical Center. Johnson et al., arXiv 1901.07042.

    The layout is that of MIMIC-CXR-JPG: `mimic-cxr-2.0.0-metadata.csv.gz`, `mimic-cxr-2.0.0-chexpert.csv.gz` (or
    negbio), and `files/p10/p10000032/s50414267/<dicom_id>.jpg`.

    Args:
        root: folder of the tables and of `files`.
        finding: one of the 14 columns of findings.
        uncertain: what an uncertain label means: present (`u_ones`), absent (`u_zeros`), or leave the image out.
        labeler: whose labels of the reports.
        patients: `patients.csv` (or `.csv.gz`) of MIMIC-IV, which tells sex and age; only the view is known without.
        reports: folder of MIMIC-CXR's report files, `files/p10/p10000032/s50414267.txt`; their findings and impression
            become sentences, and studies without are left out. No text when left out.
        **base: arguments of `ReleasedXrays`, `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    name = "MIMIC-CXR"

    def __init__(
        self,
        root: str,
        finding: str = "Pleural Effusion",
        uncertain: Uncertain = "u_ignore",
        labeler: Labeler = "chexpert",
        patients: str | None = None,
        reports: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.root = Path(root)
        self.finding = xray_tables.known_finding(finding)
        self.uncertain: Uncertain = uncertain
        self.labeler: Labeler = labeler
        self.patients = None if patients is None else Path(patients)
        self.reports = None if reports is None else Path(reports)

    @property
    def classes(self) -> tuple[str, str]:
        """Named after the finding."""
        return f"no {self.finding.lower()}", self.finding

    def table(self) -> pd.DataFrame:
        """Metadata, labels, and patients where given."""
        return xray_tables.mimic_cxr(self.root, self.finding, self.uncertain, self.labeler, self.patients)

    def with_texts(self, table: pd.DataFrame) -> pd.DataFrame:
        """With the sentences of the reports, where they are given."""
        return table if self.reports is None else mimic_reports(table, self.root, self.reports)


class NIHChestXray(ReleasedXrays):
    """A finding in chest X-rays of the NIH Clinical Center (112,120 of 30,805 patients). Wang et al., CVPR 2017.

    Args:
        root: folder of `Data_Entry_2017.csv` and `images`, or `images_001/images` and so on.
        finding: one of the finding labels, such as Effusion.
        **base: arguments of `ReleasedXrays`, `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    name = "NIH ChestX-ray14"

    def __init__(self, root: str, finding: str = "Effusion", **base: Any) -> None:
        super().__init__(**base)
        self.root = Path(root)
        self.finding = finding

    @property
    def classes(self) -> tuple[str, str]:
        """Named after the finding."""
        return f"no {self.finding.lower()}", self.finding

    def table(self) -> pd.DataFrame:
        """The one table."""
        return xray_tables.nih(self.root, self.finding)


class CovidXray(ReleasedXrays):
    """COVID-19 against other findings in the COVID-19 image data collection. Cohen et al., arXiv 2006.11988.

    A small collection from many publications; images without a finding (`todo`, `Unknown`) are left out and counted,
    `AP Supine` is taken as AP.

    Args:
        root: folder of `metadata.csv` and `images`.
        notes: sentences of the clinical notes: `masked`, in which names of disease and pathogen are replaced, or `raw`;
            images without a note are then left out, and both lungs have boxes where the table gives them.
        **base: arguments of `ReleasedXrays`, `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    name = "COVID-19 chest X-rays"

    def __init__(self, root: str, notes: Notes = "none", **base: Any) -> None:
        super().__init__(**base)
        self.root = Path(root)
        self.notes: Notes = notes

    @property
    def classes(self) -> tuple[str, str]:
        """Other findings include none."""
        return "other finding", "COVID-19"

    def table(self) -> pd.DataFrame:
        """The one table."""
        return xray_tables.covid(self.root)

    @property
    def prompts(self) -> tuple[tuple[str, ...], ...]:
        """The names of the classes; with notes what the findings look like, in words that are not masked."""
        return super().prompts if self.notes == "none" else COVID_PROMPTS

    def with_texts(self, table: pd.DataFrame) -> pd.DataFrame:
        """With notes and lungs, where they are asked for."""
        return table if self.notes == "none" else covid_notes(table, self.root, self.notes, self.square)
