"""Pictures as arrays: decoding, window, contrast, shape, and augmentation; every function is pure.

A picture is `(H, W)` float32 grey in [0, 1], bright on dark as it is shown; a colour picture is `(H, W, 3)`.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from medprism.data.errors import DataError

FloatArray = npt.NDArray[np.floating[Any]]
Square = Literal["pad", "crop", "stretch"]

DEEP = frozenset({"I", "I;16", "I;16B", "I;16L", "F"})
"""Pillow's modes with more than 8 bits of grey."""


def read_picture(file: str | os.PathLike[str], source: str | None = None) -> FloatArray:
    """A PNG, JPEG or DICOM file as grey picture `(H, W)` in [0, 1].

    Colours become grey by luminance. Pictures of more than 8 bits are stretched from their smallest to their largest
    value; DICOM follows its window, see `read_dicom`.

    Args:
        file: its path.
        source: how an error names it, such as with its row in a table; the path when left out.

    Raises:
        DataError: when the file is missing, truncated, or holds no picture.
    """
    path, source = Path(file), source or str(file)
    return read_dicom(path, source) if path.suffix.lower() in (".dcm", ".dicom") else _decoded(path, source, "L")


def read_colour(file: str | os.PathLike[str], source: str | None = None) -> FloatArray:
    """A PNG or JPEG file as colour picture `(H, W, 3)`: red, green and blue in [0, 1], equal where it is grey.

    Args:
        file: its path.
        source: how an error names it, such as with its row in a table; the path when left out.

    Raises:
        DataError: when the file is missing, truncated, or holds no picture.
    """
    picture = _decoded(Path(file), source or str(file), "RGB")
    return picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)


def _decoded(path: Path, source: str, mode: Literal["L", "RGB"]) -> FloatArray:
    """A picture in one of Pillow's modes; pictures of more than 8 bits stay grey and fill the range."""
    try:
        with Image.open(path) as image:
            if image.mode not in DEEP:
                return np.asarray(image.convert(mode), dtype=np.float32) / 255
            values = np.asarray(image, dtype=np.float32)
    except FileNotFoundError:
        raise DataError(f"{source} does not exist; mend the path, or leave the row out") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # a broken PNG is a SyntaxError
        raise DataError(
            f"{source} cannot be read as a picture ({error}); copy it again, or set unreadable to skip"
        ) from error
    return windowed(values, float(values.min()), float(values.max()))


def read_dicom(file: str | os.PathLike[str], source: str | None = None) -> FloatArray:
    """A DICOM radiograph as grey picture `(H, W)` in [0, 1].

    The stored values are rescaled, then shown in the file's (first) window, or from the smallest to the largest value
    where it has none. MONOCHROME1, in which the largest value is black, is inverted.

    Args:
        file: its path.
        source: how an error names it; the path when left out.

    Raises:
        DataError: when pydicom is not installed, or the file is no single grey picture.
    """
    source = source or str(file)
    try:
        from pydicom import dcmread
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ModuleNotFoundError as error:
        raise DataError(f"{source}: reading DICOM needs pydicom; pip install 'medprism[xray]'") from error
    try:
        scan = dcmread(file)
        stored = scan.pixel_array
        interpretation = str(scan.PhotometricInterpretation)
        raw = apply_modality_lut(stored, scan)
        has_window = "WindowWidth" in scan or "VOILUTSequence" in scan
        shown = np.asarray(apply_voi_lut(raw, scan) if has_window else raw, dtype=np.float32)
    except Exception as error:  # pydicom and its decoders raise errors of many kinds
        raise DataError(
            f"{source} cannot be read as DICOM ({error}); copy it again, or set unreadable to skip"
        ) from error
    if shown.ndim != 2 or not interpretation.startswith("MONOCHROME"):
        raise DataError(
            f"{source}: expected one grey picture, found shape {shown.shape} {interpretation}; leave it out"
        )
    picture = windowed(shown, float(shown.min()), float(shown.max()))
    return 1 - picture if interpretation == "MONOCHROME1" else picture


def windowed(values: FloatArray, low: float, high: float) -> FloatArray:
    """Values cut to the window `[low, high]` and mapped to [0, 1]; 0 everywhere if the window has no width."""
    if high <= low:
        return np.zeros(values.shape, dtype=np.float32)
    scaled: FloatArray = np.clip((values - low) / (high - low), 0, 1).astype(np.float32)
    return scaled


def equalized(picture: FloatArray, clip: float = 0.01) -> FloatArray:
    """Contrast-limited adaptive histogram equalisation (CLAHE) by scikit-image, on an 8 by 8 grid.

    Args:
        picture: `(H, W)` in [0, 1].
        clip: contrast limit in (0, 1]; larger for more contrast.

    Raises:
        DataError: when scikit-image is not installed.
    """
    try:
        from skimage.exposure import equalize_adapthist
    except ModuleNotFoundError as error:
        raise DataError("clahe needs scikit-image; pip install 'medprism[xray]'") from error
    return np.asarray(equalize_adapthist(picture, clip_limit=clip), dtype=np.float32)


def resized(picture: FloatArray, size: int, square: Square = "pad") -> FloatArray:
    """A square picture `(size, size)`, or `(size, size, 3)` in colour, by area-weighted bilinear interpolation.

    Args:
        picture: `(H, W)`, or `(H, W, 3)`.
        size: side in pixels.
        square: what to do with other shapes: `pad` with black to a square, `crop` the centre, or `stretch`.

    Raises:
        DataError: when the picture has another shape.
    """
    if not (picture.ndim == 2 or (picture.ndim == 3 and picture.shape[2] == 3)) or not picture.size:
        raise DataError(f"expected a picture (H, W) or (H, W, 3), found shape {picture.shape}")
    rows, columns = picture.shape[:2]
    if square == "crop":
        side = min(rows, columns)
        top, left = (rows - side) // 2, (columns - side) // 2
        picture = picture[top : top + side, left : left + side]
    elif square == "pad":
        side = max(rows, columns)
        around = [((side - n) // 2, side - n - (side - n) // 2) for n in (rows, columns)]
        picture = np.pad(picture, [*around, (0, 0)][: picture.ndim])
    if picture.ndim == 3:
        return np.stack([_scaled(picture[:, :, channel], size) for channel in range(3)], axis=2)
    return _scaled(picture, size)


def _scaled(channel: FloatArray, size: int) -> FloatArray:
    if channel.shape == (size, size):
        return channel.astype(np.float32)
    # Pillow interpolates floating-point values in one channel at a time only.
    image = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)


@dataclass(frozen=True)
class Motion:
    """A shift, rotation and reflection of each image of a batch, which also moves whatever lies on the images.

    Attributes:
        theta: `(B, dims, dims + 1)` affine maps in the coordinates of `torch.nn.functional.affine_grid`.
    """

    theta: Tensor

    @classmethod
    def draw(cls, images: Tensor, shift: float = 0.0, rotation: float = 0.0, flip_axis: int | None = None) -> Motion:
        """A random motion for each image, from torch's global generator.

        Args:
            images: `(B, C, H, W)` or `(B, C, D, H, W)`.
            shift: largest shift along each axis, as a share of its length.
            rotation: largest angle in degrees, in each plane of two axes.
            flip_axis: spatial axis, from 0, that is mirrored in half of the images; None for none.
        """
        batch, dims = len(images), images.ndim - 2
        lengths = torch.tensor(images.shape[2:], dtype=torch.float32)
        linear = torch.eye(dims).expand(batch, dims, dims)
        for first, second in itertools.combinations(range(dims), 2):
            angle = torch.deg2rad((2 * torch.rand(batch) - 1) * rotation)
            turn = torch.eye(dims).repeat(batch, 1, 1)
            turn[:, first, first] = turn[:, second, second] = angle.cos()
            turn[:, first, second], turn[:, second, first] = -angle.sin(), angle.sin()
            linear = linear @ turn
        if flip_axis is not None:
            mirror = torch.ones(batch, dims)
            mirror[:, flip_axis] = 1 - 2 * torch.randint(2, (batch,)).float()
            linear = linear * mirror[:, None, :]
        # affine_grid works in [-1, 1] along every axis: rotate in pixels, so that oblong images are not sheared.
        linear = linear * lengths[None, None, :] / lengths[None, :, None]
        offset = (2 * torch.rand(batch, dims) - 1) * 2 * shift
        # affine_grid counts the axes from the last one.
        return cls(torch.cat([linear.flip(1, 2), offset.flip(1)[:, :, None]], dim=2).to(images))

    def __call__(self, images: Tensor) -> Tensor:
        """The moved images, by one linear interpolation; zeros come in from outside.

        Args:
            images: `(B, C, H, W)` or `(B, C, D, H, W)` with any number of channels, and any size in the same
                proportions as the images that the motion was drawn for.
        """
        grid = F.affine_grid(self.theta, list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
