"""Pictures as arrays: decoding, window, contrast, shape, and augmentation; every function is pure.

A picture is `(H, W)` float32 grey in [0, 1], bright on dark as it is shown.
"""

from __future__ import annotations

import itertools
import os
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
    if path.suffix.lower() in (".dcm", ".dicom"):
        return read_dicom(path, source)
    try:
        with Image.open(path) as image:
            if image.mode not in DEEP:
                return np.asarray(image.convert("L"), dtype=np.float32) / 255
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
    """A square picture `(size, size)`, by area-weighted bilinear interpolation.

    Args:
        picture: `(H, W)`.
        size: side in pixels.
        square: what to do with other shapes: `pad` with black to a square, `crop` the centre, or `stretch`.

    Raises:
        DataError: when the picture is not two-dimensional.
    """
    if picture.ndim != 2 or not picture.size:
        raise DataError(f"expected a grey picture (H, W), found shape {picture.shape}")
    rows, columns = picture.shape
    if square == "crop":
        side = min(rows, columns)
        top, left = (rows - side) // 2, (columns - side) // 2
        picture = picture[top : top + side, left : left + side]
    elif square == "pad":
        side = max(rows, columns)
        picture = np.pad(picture, [((side - n) // 2, side - n - (side - n) // 2) for n in (rows, columns)])
    if picture.shape == (size, size):
        return picture.astype(np.float32)
    image = Image.fromarray(np.ascontiguousarray(picture, dtype=np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)


def moved(images: Tensor, shift: float = 0.0, rotation: float = 0.0, flip_axis: int | None = None) -> Tensor:
    """Every image shifted, rotated and mirrored at random, by one linear interpolation; zeros come in from outside.

    Draws from torch's global generator.

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
    theta = torch.cat([linear.flip(1, 2), offset.flip(1)[:, :, None]], dim=2).to(images)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
