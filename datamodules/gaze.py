"""What cohorts of readings share: images, what was said about them, where people looked, and located phrases."""

from __future__ import annotations

import hashlib
import json
import math
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from medprism.data.errors import DataError
from medprism.data.gaze import Reading, boxed, gaze_maps
from medprism.data.imaging import FloatArray
from medprism.data.texts import Box, Texts
from medprism.datamodules.images import Images
from medprism.datamodules.xray import XrayDataModule


class GazeDataModule(XrayDataModule):
    """Base of the cohorts of readings; a sample is one reading of one image by one person.

    A subclass gives `labels` and `readings` in the same order, and `regions` where phrases are located. Gaze maps are
    drawn once and kept in the folder of the cache.

    Args:
        gaze_size: height and width of the gaze maps in pixels; methods average them down to their grid of patches.
        lookback: seconds before a sentence of which the gaze also counts for it; eyes are ahead of the voice.
        gaze_ratio: share of the training readings with gaze whose gaze may be used; 0 for none, 1 for all. A smaller
            share lies within a larger one, and validation and test readings keep theirs.
        gaze_seed: another seed, another choice of these readings.
        sigma_degrees: width of the Gaussian around a fixation in degrees, where the pixels per degree are known.
        sigma_px: the same in pixels of the original image, where they are not.
        **base: arguments of `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    def __init__(
        self,
        gaze_size: int = 56,
        lookback: float = 0.0,
        gaze_ratio: float = 1.0,
        gaze_seed: int = 0,
        sigma_degrees: float = 1.0,
        sigma_px: float = 150.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if gaze_size < 2 or not 0 <= gaze_ratio <= 1:
            raise DataError(
                f"gaze_size is {gaze_size}, gaze_ratio {gaze_ratio}; take at least 2 pixels, and a share from 0 to 1"
            )
        wrong = {
            name: value
            for name, value in {"lookback": lookback, "sigma_degrees": sigma_degrees, "sigma_px": sigma_px}.items()
            if not (math.isfinite(value) and value >= 0 and (value > 0 or name == "lookback"))
        }
        if wrong:
            raise DataError(f"{wrong} cannot be used: a lookback is 0 s or more, and the widths are above 0")
        self.gaze_size = gaze_size
        self.lookback = lookback
        self.gaze_ratio = gaze_ratio
        self.gaze_seed = gaze_seed
        self.sigma_degrees = sigma_degrees
        self.sigma_px = sigma_px

    @property
    @abstractmethod
    def readings(self) -> tuple[Reading, ...]:
        """The reading of every sample, in the order of `labels.samples`; read once."""

    @property
    def regions(self) -> tuple[tuple[Box, ...], ...] | None:
        """The located phrases of every reading, in pixels of the original image; none unless a cohort has any."""
        return None

    def files(self) -> tuple[list[Path], list[str]]:
        """The pictures that the readings name."""
        return [Path(reading.image) for reading in self.readings], [reading.source for reading in self.readings]

    def images(self) -> Images:
        """As of all X-rays; a picture of another shape than its reading tells is refused like an unreadable one."""
        images, (files, _) = super().images(), self.files()
        sizes = [reading.size for reading in self.readings]

        def read(row: int) -> FloatArray:
            # First the picture: a missing or broken one has its own message.
            picture = images.read(row)
            check_size(picture_size(files[row]), sizes[row], images.names[row])
            return picture

        key = None if images.key is None else {**images.key, "sizes": sizes}
        return Images(images.names, read, key, images.storage)

    @cached_property
    def texts(self) -> Texts:
        """Sentences, a gaze map for each, and the located phrases."""
        ids = tuple(reading.id for reading in self.readings)
        if ids != self.labels.samples.id:
            raise DataError(f"{self.name}: readings and labels differ in their ids or order; give both alike")
        gaze, left_out = gaze_maps(self.readings, self.gaze_size, self.square, self.cache_dir, self.lookback)
        self.skipped |= left_out
        sentences = tuple(tuple(sentence.text for sentence in reading.sentences) for reading in self.readings)
        return Texts(sentences, gaze, self._boxes())

    def use_gaze(self, training: bool) -> npt.NDArray[np.bool_] | None:
        """In training the share `gaze_ratio` of the training readings with gaze; all others as they are."""
        if not training or self.gaze_ratio == 1:
            return None
        samples, known = self.samples, self._known
        rows = [row for row in self.rows("train") if known[row]]
        ranked = sorted(rows, key=lambda row: _rank(self.gaze_seed, samples.id[row]))
        allowed = np.ones(len(samples), dtype=bool)
        allowed[ranked[math.ceil(round(self.gaze_ratio * len(rows), 9)) :]] = False
        return allowed

    @cached_property
    def _known(self) -> npt.NDArray[np.bool_]:
        """`(samples,)` whether the sample has gaze."""
        assert self.texts.gaze is not None
        return self.texts.gaze.known[self._kept]

    def _boxes(self) -> tuple[tuple[Box, ...], ...] | None:
        if self.regions is None:
            return None
        boxes, outside = [], 0
        for reading, regions in zip(self.readings, self.regions, strict=True):
            found = [boxed(region, reading.size, self.square) for region in regions]
            boxes.append(tuple(box for box in found if box is not None))
            outside += len(found) - len(boxes[-1])
        if outside:
            self.skipped["box outside of the image"] = outside
        return tuple(boxes)


def picture_size(file: Path, source: str | None = None) -> tuple[int, int]:
    """Width and height in pixels of a PNG, JPEG or DICOM file, from its head alone.

    Args:
        file: its path.
        source: how an error names it; the path when left out.

    Raises:
        DataError: when the file is missing, or no picture.
    """
    source = source or str(file)
    try:
        if file.suffix.lower() in (".dcm", ".dicom"):
            from pydicom import dcmread

            head = dcmread(file, stop_before_pixels=True)
            return int(head.Columns), int(head.Rows)
        with Image.open(file) as image:
            return image.size
    except FileNotFoundError:
        raise DataError(f"{source} does not exist; mend the path, or set unreadable to skip") from None
    except ModuleNotFoundError as error:
        raise DataError(f"{source}: reading DICOM needs pydicom; pip install 'medprism[xray]'") from error
    except Exception as error:  # Pillow and pydicom raise errors of many kinds
        raise DataError(
            f"{source} cannot be read as a picture ({error}); copy it again, or set unreadable to skip"
        ) from error


def check_size(found: tuple[int, int], recorded: tuple[int, int], source: str, slack: float = 0.0) -> None:
    """Refuse a picture whose shape is not that of the image that was read; a smaller copy is as good.

    Args:
        found: width and height of the file.
        recorded: width and height of the image on which gaze and boxes were recorded.
        source: how the error names the picture.
        slack: how far off the recorded proportions may be themselves.

    Raises:
        DataError: when the proportions differ by more than a rounded pixel and the slack.
    """
    expected = recorded[1] * found[0] / recorded[0]
    if abs(found[1] - expected) > 1 + found[1] / found[0] + slack * expected:
        raise DataError(
            f"{source}: is {found[0]} x {found[1]} pixels, but gaze was recorded on {recorded[0]} x {recorded[1]}; "
            "give the original image, or a copy in its proportions, neither cropped nor padded"
        )


def _rank(seed: int, name: str) -> str:
    return hashlib.sha256(json.dumps([seed, name]).encode()).hexdigest()
