"""Brain volumes from NIfTI, Analyze or MGH files: orientation, spacing, size and intensity, always in this order.

Every function takes and returns whole volumes. Axes of an array in canonical orientation are x (left to right), y
(posterior to anterior) and z (inferior to superior), the RAS+ convention of nibabel and NIfTI.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from medprism.data.errors import DataError

Volume = npt.NDArray[np.float32]
Plane = Literal["axial", "coronal", "sagittal"]

NORMAL: dict[Plane, int] = {"sagittal": 0, "coronal": 1, "axial": 2}
"""The canonical axis that a plane is cut across."""


@dataclass(frozen=True)
class Preparation:
    """How the volume of a file becomes the array that a model sees.

    Attributes:
        spacing: distance of voxel centres along x, y, z in mm.
        shape: voxels along x, y, z; more is cut off, and less is filled with zeros, alike on both sides.
        percentiles: intensities are clipped to these percentiles of the non-zero voxels.
        orientation: sides that the axes of the stored array run to, such as `LAS`, for files whose header does not say.
        plane: cut slices across this plane instead of keeping the volume.
        slices: number of slices.

    Raises:
        DataError: when a value cannot be meant.
    """

    spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)
    shape: tuple[int, int, int] = (96, 112, 96)
    percentiles: tuple[float, float] = (1.0, 99.0)
    orientation: str | None = None
    plane: Plane | None = None
    slices: int = 1

    def __post_init__(self) -> None:
        """Refuse what would fail later, in the middle of reading."""
        if min(self.spacing) <= 0 or min(self.shape) < 1 or len(self.spacing) != 3 or len(self.shape) != 3:
            raise DataError(f"spacing {self.spacing} mm and shape {self.shape} must each be three positive numbers")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise DataError(f"percentiles {self.percentiles} must increase within 0 to 100, such as [1, 99]")
        if self.orientation is not None:
            axes_towards(self.orientation)
        if self.plane is not None and not 1 <= self.slices <= self.shape[NORMAL[self.plane]]:
            raise DataError(
                f"slices is {self.slices}; of {self.shape[NORMAL[self.plane]]} {self.plane} slices take at least one"
            )

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the result: `(1, x, y, z)`, or `(slices, rows, columns)` with a plane."""
        if self.plane is None:
            return (1, *self.shape)
        columns, rows = (length for axis, length in enumerate(self.shape) if axis != NORMAL[self.plane])
        return (self.slices, rows, columns)

    @property
    def key(self) -> dict[str, Any]:
        """Plain values that determine the result, for the cache."""
        return asdict(self)

    def __call__(self, path: str | os.PathLike[str], name: str) -> Volume:
        """Read and prepare the file at `path`, which errors call `name`.

        Returns:
            float32 array of `output_shape`.

        Raises:
            DataError: when the file cannot be used.
        """
        volume = resampled(read_volume(path, name, self.orientation), self.spacing, self.shape)
        try:
            volume = scaled(volume, self.percentiles)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        return volume[None] if self.plane is None else cut(volume, self.plane, self.slices)


def read_volume(path: str | os.PathLike[str], name: str, orientation: str | None = None) -> Any:
    """Read one three-dimensional image and turn it to canonical orientation.

    Args:
        path: `.nii`, `.nii.gz`, Analyze or NIfTI `.hdr` / `.img`, or `.mgz`.
        name: how errors name the file, with its row.
        orientation: see `Preparation`; the header's word counts where there is one.

    Returns:
        nibabel image of float32 data in RAS+ orientation.

    Raises:
        DataError: when the file is unreadable or truncated, is not three-dimensional, has voxels that are not single
            finite numbers, or does not say how it is oriented.
    """
    import nibabel as nib
    from nibabel.filebasedimages import ImageFileError

    try:
        image = nib.squeeze_image(nib.load(path))
        if len(image.shape) != 3:
            raise DataError(
                f"{name}: has {len(image.shape)} dimensions {tuple(image.shape)}, expected three; give one volume, "
                "such as the T1 image or the mean over time"
            )
        if image.get_data_dtype().kind not in "iuf":
            raise DataError(f"{name}: voxels are of type {image.get_data_dtype()}, expected one real number each")
        data = image.get_fdata(dtype=np.float32)
    except (OSError, EOFError, ValueError, zlib.error, ImageFileError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{name}: cannot be read as a volume ({error}); expected a whole NIfTI, Analyze or MGH file, so copy it "
            "again or leave it out"
        ) from error
    bad = int((~np.isfinite(data)).sum())
    if bad:
        raise DataError(f"{name}: {bad} voxels are not finite numbers; set them to 0 (background) or leave it out")
    affine = image.affine
    if not says_orientation(image.header):
        if orientation is None:
            raise DataError(
                f"{name}: orientation without a header: neither sform nor qform says where left and right are; save "
                "it with one of them, or give orientation, such as LAS, the sides that its axes run to"
            )
        affine = affine_towards(orientation, image.header.get_zooms()[:3])
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise DataError(f"{name}: the header's affine {affine[:3].tolist()} is singular; mend its sform or qform")
    return nib.as_closest_canonical(nib.Nifti1Image(data, affine))


def says_orientation(header: Any) -> bool:
    """Whether a nibabel header says how the array lies in the head; an Analyze header never does."""
    fields = set(header.keys())
    if "sform_code" in fields:
        return int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return "goodRASFlag" in fields and int(header["goodRASFlag"]) > 0


def axes_towards(orientation: str) -> list[tuple[int, int]]:
    """For each axis of an array, the axis of the head it runs along (x 0, y 1, z 2) and in which direction (1 or -1).

    Args:
        orientation: three letters, one each of R or L, A or P, and S or I.

    Raises:
        DataError: when it is something else.
    """
    sides = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    found = [sides[letter] for letter in orientation if letter in sides]
    if len(orientation) != 3 or sorted(axis for axis, _ in found) != [0, 1, 2]:
        raise DataError(f"orientation '{orientation}' must have one letter each of R or L, A or P, S or I, such as LAS")
    return found


def affine_towards(orientation: str, zooms: Sequence[float]) -> npt.NDArray[np.float64]:
    """The affine `(4, 4)` of an array whose axes run to the sides of `orientation`, with `zooms` mm between voxels."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for axis, (head, sign) in enumerate(axes_towards(orientation)):
        affine[head, axis] = sign * zooms[axis]
    return affine


def resampled(image: Any, spacing: Sequence[float], shape: Sequence[int]) -> Volume:
    """Linear interpolation on a grid of `shape` voxels around the centre of the image.

    The grid keeps the axes of the image, so a slightly tilted scan is not rotated. Where it is coarser than the image,
    the image is smoothed first, to a resolution (FWHM) of the new spacing, so that fine structure does not alias.

    Args:
        image: nibabel image in canonical orientation.
        spacing: mm along x, y, z.
        shape: voxels along x, y, z.

    Returns:
        `shape` float32 array; 0 outside the image.
    """
    from nibabel.processing import conform, smooth_image

    zooms = np.asarray(image.header.get_zooms()[:3], dtype=float)
    blur = np.sqrt(np.clip(np.square(spacing) - zooms**2, 0, None))
    if (blur > 0.1 * zooms).any():
        image = smooth_image(image, blur)
    return np.asarray(conform(image, tuple(shape), tuple(spacing), order=1).dataobj, dtype=np.float32)


def scaled(volume: Volume, percentiles: tuple[float, float] = (1.0, 99.0)) -> Volume:
    """Clip outliers, and give the non-zero voxels mean 0 and standard deviation 1.

    Args:
        volume: `(x, y, z)`; zero is background, which is clipped too, and so takes the lowest value of the head.
        percentiles: bounds of the clipping, among the non-zero voxels.

    Raises:
        DataError: when the voxels do not differ.
    """
    inside = volume != 0
    low, high = np.percentile(volume[inside], percentiles) if inside.any() else (0.0, 0.0)
    if not high > low:
        raise DataError("the volume is constant after cropping; check the file, spacing and shape")
    clipped = np.clip(volume, low, high)
    values = clipped[inside]
    return np.asarray((clipped - values.mean(dtype=np.float64)) / values.std(dtype=np.float64), dtype=np.float32)


def cut(volume: Volume, plane: Plane, slices: int = 1) -> Volume:
    """Evenly spaced slices; a single one is the middle one.

    Args:
        volume: `(x, y, z)` in canonical orientation.
        plane: `axial`, `coronal` or `sagittal`.
        slices: number k of slices, at the fractions 1 / (k + 1), ..., k / (k + 1) of the axis.

    Returns:
        `(slices, rows, columns)` with the superior (in axial slices the anterior) side on top, and on the left side of
        the picture the left (in sagittal slices the posterior) side of the head.
    """
    axis = NORMAL[plane]
    places = [volume.shape[axis] * (k + 1) // (slices + 1) for k in range(slices)]
    return np.ascontiguousarray(np.rot90(np.moveaxis(volume, axis, 0)[places], axes=(1, 2)))
