"""Structural MRI: volumes that a CSV manifest names, and the slices of OASIS-1. For BIDS folders see `mri_bids`."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import Tensor

from medprism.cohort import UNKNOWN, Factor
from medprism.data.cache import stamps
from medprism.data.errors import DataError, report
from medprism.data.imaging import FloatArray, Motion, read_picture, resized
from medprism.data.samples import Labels, Samples, binned, coded
from medprism.data.tables import Columns, read_table
from medprism.data.volumes import Plane, Preparation
from medprism.datamodules.images import ImageDataModule, Images

PLANES: tuple[Plane, ...] = ("axial", "coronal", "sagittal")
SIDE = 208
"""Pixels of 1 mm along the longest side of any slice of OASIS-1."""


@dataclass(frozen=True)
class Scans:
    """Which files hold the volumes of a cohort.

    Attributes:
        files: path of each sample.
        names: how errors name each sample: file, table and row.
    """

    files: tuple[Path, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class ReadVolumes:
    """Reads and prepares the volume of a sample.

    Attributes:
        scans: where they are.
        prepare: what is done with each.
    """

    scans: Scans
    prepare: Preparation

    def __call__(self, row: int) -> FloatArray:
        """The sample at `row`, of `prepare.output_shape`."""
        return self.prepare(self.scans.files[row], self.scans.names[row])


class VolumeDataModule(ImageDataModule):
    """Base of the cohorts of brain volumes; a subclass says what its table holds and where the files are.

    Volumes are turned to RAS+ orientation, resampled, cropped or padded around their centre, clipped and scaled, see
    `medprism.data.volumes`. This happens once: the results are kept on disk as float16.

    Args:
        spacing: voxel size in mm, one number or one for each of x (left to right), y (posterior to anterior) and z.
        shape: voxels along x, y and z.
        percentiles: intensities are clipped to these percentiles of the non-zero voxels, which then get mean 0 and
            standard deviation 1 in each volume.
        orientation: sides that the axes of the stored arrays run to, such as LAS, for files whose header does not say;
            without it such files are refused.
        plane: give two-dimensional images, cut across this plane, instead of volumes.
        slices: number of slices, evenly spaced, which become the channels of the image; one is the middle slice.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    field: Literal["image", "volume"] = "volume"
    left_right: int = 0

    def __init__(
        self,
        spacing: float | tuple[float, float, float] = 2.0,
        shape: tuple[int, int, int] = (96, 112, 96),
        percentiles: tuple[float, float] = (1.0, 99.0),
        orientation: str | None = None,
        plane: Literal["axial", "coronal", "sagittal"] | None = None,
        slices: int = 1,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        steps = (spacing, spacing, spacing) if isinstance(spacing, int | float) else spacing
        self.prepare = Preparation(steps, shape, percentiles, orientation, plane, slices)
        if plane is not None:
            if plane == "sagittal" and self.augment_flip:
                raise DataError(
                    "augment_flip mirrors left and right, which a sagittal slice does not show; leave it out"
                )
            self.field = "image"  # of this cohort, whatever its class
            self.left_right = -1

    @abstractmethod
    def scans(self) -> Scans:
        """The files, in the order of `labels.samples`."""

    def images(self) -> Images:
        """Prepared volumes, or slices of them.

        Raises:
            DataError: when a file does not exist.
        """
        scans = self.scans()
        missing = [name for name, file in zip(scans.names, scans.files, strict=True) if not file.is_file()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(scans.files)} volumes do not exist, the first is {missing[0]}; mend the path "
                "or fetch the file"
            )
        # Analyze and NIfTI pairs keep header and voxels in two files.
        pairs = [
            file.with_suffix(end) for file in scans.files for end in (".hdr", ".img") if file.suffix in (".hdr", ".img")
        ]
        found = stamps([*scans.files, *(file for file in pairs if file.is_file())])
        key = {"files": found, "nibabel": version("nibabel"), **self.prepare.key}
        return Images(scans.names, ReadVolumes(scans, self.prepare), key, "float16")

    def _moved(self, batch: Tensor) -> tuple[Tensor, Motion]:
        # What comes in from outside is background, the lowest value of a volume, not the 0 of its mean.
        lowest = batch.amin(dim=tuple(range(1, batch.ndim)), keepdim=True)
        moved, motion = super()._moved(batch - lowest)
        return moved + lowest, motion


class TableVolumeDataModule(VolumeDataModule):
    """Base of the cohorts of your own volumes, whose labels are columns of a table.

    Args:
        target: column to predict.
        target_classes: its classes in the order of their codes, the positive one last; sorted when left out.
        attributes: attribute columns; all columns that mean nothing else when left out.
        attribute_classes: classes of attribute columns; sorted values for those left out.
        bins: bounds for columns of numbers, such as {age: [40, 60, 80]}; outside of them the class is unknown.
        cuts: thresholds for columns of numbers, such as {age: [60]}: below 60, and 60 and above.
        sensitive: attributes that are properties of the person, to be treated fairly; the others are nuisance.
        phrases: for class names the phrase that says them in words, such as {AD: dementia of Alzheimer's type}.
        cohort_name: name of the data set in tables and figures.
        **base: arguments of `VolumeDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    def __init__(
        self,
        target: str = "target",
        target_classes: list[str] | None = None,
        attributes: list[str] | None = None,
        attribute_classes: dict[str, list[str]] | None = None,
        bins: dict[str, list[float]] | None = None,
        cuts: dict[str, list[float]] | None = None,
        sensitive: tuple[str, ...] = ("sex", "age"),
        phrases: dict[str, str] | None = None,
        cohort_name: str = "own MRI data",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.name = cohort_name
        self.columns = Columns(
            target,
            target_classes,
            attributes,
            attribute_classes or {},
            bins or {},
            cuts or {},
            sensitive,
            phrases or {},
        )


class MriManifest(TableVolumeDataModule):
    """A classification cohort from your own volumes and a table, such as UK Biobank, NAKO or OASIS volumes.

    The manifest is a CSV (or TSV) with one row a scan and the columns `id` (unique), `volume` (path of a NIfTI, Analyze
    or MGH file, relative to the manifest), the target, and optionally `subject` (`id` when left out) and any
    attributes. See docs/cohorts/mri.md.

    Args:
        manifest: path of the manifest.
        **base: arguments of `TableVolumeDataModule`, `VolumeDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    def __init__(self, manifest: str, **base: Any) -> None:
        super().__init__(**base)
        self.manifest = Path(manifest)

    @cached_property
    def _table(self) -> pd.DataFrame:
        needed = ["id", "volume", *self.columns.needed]
        return read_table(self.manifest, needed, filled=["id", "volume", self.columns.target, "subject"])

    @cached_property
    def labels(self) -> Labels:
        """Target and attributes of the manifest."""
        table = self._table
        subjects = table["subject"] if "subject" in table else table["id"]
        return self.columns.labels(table, str(self.manifest), table["id"], subjects, {"id", "volume", "subject"})

    def scans(self) -> Scans:
        """The files that the manifest names.

        Raises:
            DataError: when two rows name one file, which could put it into two parts of the split.
        """
        table = self._table
        again = np.flatnonzero(table["volume"].duplicated())
        if len(again):
            volume = table["volume"].iloc[again[0]]
            first = int(np.flatnonzero(table["volume"] == volume)[0])
            raise DataError(
                f"{self.manifest}, rows {first + 2} and {again[0] + 2} both name {volume}; one row a scan, so mend the "
                "path or take one of them out"
            )
        files = tuple(self.manifest.parent / volume for volume in table["volume"])
        names = tuple(f"{file} ({self.manifest.name}, row {row + 2})" for row, file in enumerate(files))
        return Scans(files, names)


@dataclass(frozen=True)
class ReadSlices:
    """Reads the slices of a person, all at one scale.

    Attributes:
        files: for each person the pictures that become channels.
        size: side of the result in pixels.
    """

    files: tuple[tuple[Path, ...], ...]
    size: int

    def __call__(self, row: int) -> FloatArray:
        """The slices `(C, size, size)` of the person at `row`, in [0, 1]."""
        return np.stack([resized(framed(read_picture(file), SIDE), self.size) for file in self.files[row]])


class OasisSlices(ImageDataModule):
    """Dementia (Clinical Dementia Rating above 0) from one slice a person of OASIS-1: 196 adults aged 60 to 96.

    Expects `oasis1_cross_sectional.csv` with the columns id, sex, age, cdr and one path for each plane. The pictures
    are skull-stripped, in atlas space and of 1 mm pixels. Marcus et al., Journal of Cognitive Neuroscience 19, 2007.

    Args:
        root: folder of the table and `images`.
        plane: which slice; `all` stacks the three as channels.
        size: side of the square image in pixels, which shows 208 mm whatever the plane.
        age_bins: bounds in years of the age classes; the default parts the group at its median of 75. Outside of them
            the age class is unknown.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    name = "OASIS-1 slices"

    def __init__(
        self,
        root: str = "data/oasis1",
        plane: Literal["axial", "coronal", "sagittal", "all"] = "coronal",
        size: int = 96,
        age_bins: tuple[float, ...] = (60, 75, 100),
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if size < 8:
            raise DataError(f"size is {size}; take at least 8 pixels")
        if self.augment_flip and plane in ("sagittal", "all"):
            raise DataError("augment_flip mirrors left and right, which a sagittal slice does not show; leave it out")
        self.table = Path(root) / "oasis1_cross_sectional.csv"
        self.planes = PLANES if plane == "all" else (plane,)
        self.size = size
        self.age_bins = age_bins

    @cached_property
    def _table(self) -> pd.DataFrame:
        """The rows with a known rating; their index counts the rows of the file from 0."""
        table = read_table(self.table, ["id", "sex", "age", "cdr", *self.planes], filled=["id", *self.planes])
        rating = pd.to_numeric(table["cdr"], errors="coerce")
        if rating.isna().any():
            self.skipped["unknown clinical dementia rating"] = int(rating.isna().sum())
        sex = coded(table["sex"].tolist(), ("F", "M"), "sex", str(self.table))
        return table.assign(cdr=rating, sex=sex)[rating.notna()]

    @cached_property
    def labels(self) -> Labels:
        """Dementia, sex and age class of the table."""
        table = self._table
        age, age_names = binned(table["age"].tolist(), self.age_bins)
        if (age == UNKNOWN).any():
            report(f"{self.name}: {int((age == UNKNOWN).sum())} people are outside the age bins {list(self.age_bins)}")
        # Ids are OAS1_<person>_MR<visit>.
        people = tuple(name.rsplit("_MR", 1)[0] for name in table["id"])
        dementia, sex = (table["cdr"] > 0).to_numpy(dtype=np.int64), table["sex"].to_numpy(dtype=np.int64)
        return Labels(
            Samples(tuple(table["id"]), people, dementia, {"sex": sex, "age": age}),
            Factor("dementia", ("none", "dementia"), (("no dementia",), ("very mild to moderate dementia",)), "target"),
            (
                Factor("sex", ("female", "male"), role="sensitive"),
                Factor("age", age_names, tuple((f"age {name}",) for name in age_names), "sensitive"),
            ),
        )

    def images(self) -> Images:
        """Slices of the asked planes, padded to one size in mm and resized."""
        table = self._table
        files = tuple(tuple(self.table.parent / path for path in row) for row in table[list(self.planes)].to_numpy())
        names = tuple(
            f"{row_files[0]} ({self.table.name}, row {row + 2})"
            for row, row_files in zip(table.index, files, strict=True)
        )
        missing = [file for row_files in files for file in row_files if not file.is_file()]
        if missing:
            raise DataError(f"{len(missing)} slices do not exist, the first is {missing[0]}; mend root or the table")
        key = {"files": stamps([file for row_files in files for file in row_files]), "size": self.size}
        return Images(names, ReadSlices(files, self.size), key)


def framed(picture: FloatArray, side: int) -> FloatArray:
    """A picture `(H, W)` in the middle of a black square of `side` pixels.

    Raises:
        DataError: when the picture is larger.
    """
    if max(picture.shape) > side:
        raise DataError(f"has {picture.shape[0]} x {picture.shape[1]} pixels, expected at most {side} a side")
    return np.pad(picture, [((side - n) // 2, side - n - (side - n) // 2) for n in picture.shape])
