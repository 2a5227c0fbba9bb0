"""What image and volume cohorts share: labels and a reader of single files become one array, mapped from disk."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from filelock import FileLock
from torch import Tensor

from medprism.cohort import Cohort
from medprism.data.base import CohortDataModule, Reader
from medprism.data.cache import cache_folder
from medprism.data.errors import DataError, report
from medprism.data.imaging import FloatArray, Motion
from medprism.data.samples import IntArray, Labels, Samples
from medprism.data.texts import TextReader, Texts

CHUNK = 16
"""Samples that a thread reads at a time: few enough for a lively bar and for large volumes."""
SAMPLE_AXES = {"image": "(C, H, W)", "volume": "(1, D, H, W)"}
LARGEST = {"uint8": 1.0, "float16": 60000.0}
"""Largest value of a sample that each storage can hold."""


@dataclass(frozen=True)
class Images:
    """Where the images or volumes of a cohort come from.

    Attributes:
        names: file and row of each sample, as errors name it.
        read: position of a sample to the preprocessed sample, float32 `(C, H, W)` or `(1, D, H, W)`, all of one shape;
            called from several threads. A `DataError` says that the sample is unreadable.
        key: plain values that determine the result (`stamps` of the files, options), for the disk cache; None keeps
            everything in memory instead, for data that are quicker to make than to find.
        storage: type on disk; `uint8` (in steps of 1/255) needs samples in [0, 1].
    """

    names: tuple[str, ...]
    read: Callable[[int], FloatArray]
    key: Mapping[str, Any] | None
    storage: Literal["uint8", "float16"] = "uint8"


@dataclass(frozen=True)
class Stored:
    """All samples of the source, as they are kept.

    Attributes:
        pixels: `(n, C, H, W)` or `(n, 1, D, H, W)` uint8 or float16; zeros where unreadable.
        digest: `(n,)` SHA-256 of each sample, in hexadecimal; empty where unreadable.
    """

    pixels: npt.NDArray[Any]
    digest: npt.NDArray[np.bytes_]


@dataclass(frozen=True)
class PixelReader:
    """A `Reader` of the stored array: one index operation a batch.

    Attributes:
        field: `image` or `volume`.
        pixels: `(n, ...)` uint8, of which 255 means 1, or float16.
        kept: position in `pixels` of each sample of the cohort.
        beside: reads what lies beside the images, if anything; see `medprism.data.texts`.
        change: augmentation of a batch, if any: the moved images and their motion, with which gaze maps move along.
        mean: subtracted at last.
        spread: divided by at last.
    """

    field: str
    pixels: Tensor
    kept: Tensor
    beside: Reader | None = None
    change: Callable[[Tensor], tuple[Tensor, Motion]] | None = None
    mean: float = 0.0
    spread: float = 1.0

    def __call__(self, rows: Tensor) -> dict[str, Any]:
        """The samples at `rows`."""
        batch = decoded(self.pixels[self.kept[rows]])
        beside = dict(self.beside(rows)) if self.beside is not None else {}
        if self.change is not None:
            batch, motion = self.change(batch)
            beside.pop("boxes", None)  # they are for tests, where nothing moves
            if beside.get("gaze") is not None and beside["gaze"].numel():
                beside["gaze"] = motion(beside["gaze"])
        if (self.mean, self.spread) != (0.0, 1.0):
            batch = (batch - self.mean) / self.spread
        return {self.field: batch, **beside}


class ImageDataModule(CohortDataModule):
    """Base of the image and volume cohorts; a subclass says what its table holds and how one sample is read.

    Every file is read once, by several threads, into one array on disk that later starts map into memory.

    Args:
        cache_dir: folder of that array; the environment's MEDPRISM_CACHE or ~/.cache/medprism when left out.
        jobs: threads that read on the first start; -1 for one a core.
        intensity: `unit` leaves values as they are stored, in [0, 1] for pictures; `standard` gives them mean 0 and
            standard deviation 1 over all pixels of the training samples.
        unreadable: what to do with an unreadable or truncated file: `error` stops, `skip` leaves the sample out and
            counts it.
        augment_shift: largest random shift of training samples along each axis, as a share of its length.
        augment_rotation: largest random rotation of training samples, in degrees.
        augment_flip: mirror half of the training samples, left to right.
        **base: arguments of `CohortDataModule`.
    """

    name: str
    simulated: bool = False
    field: Literal["image", "volume"] = "image"
    left_right: int = -1
    """The spatial axis that `augment_flip` mirrors."""

    def __init__(
        self,
        cache_dir: str | None = None,
        jobs: int = -1,
        intensity: Literal["unit", "standard"] = "unit",
        unreadable: Literal["error", "skip"] = "error",
        augment_shift: float = 0.0,
        augment_rotation: float = 0.0,
        augment_flip: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        if not 0 <= augment_shift < 1 or not 0 <= augment_rotation <= 180:
            raise DataError(
                f"augment_shift is {augment_shift}, augment_rotation {augment_rotation}; the shift is a share of the "
                "image from 0 to below 1, the rotation an angle of 0 to 180 degrees"
            )
        self.cache_dir = cache_dir
        self.jobs = jobs
        self.intensity = intensity
        self.unreadable = unreadable
        self.augment_shift = augment_shift
        self.augment_rotation = augment_rotation
        self.augment_flip = augment_flip

    @property
    @abstractmethod
    def labels(self) -> Labels:
        """What the cohort's table says; read once."""

    @abstractmethod
    def images(self) -> Images:
        """How the samples are read, in the order of `labels.samples`."""

    @cached_property
    def texts(self) -> Texts | None:
        """Sentences, gaze and boxes of the samples, in the order of `labels.samples`; none unless a cohort has any."""
        return None

    def use_gaze(self, training: bool) -> npt.NDArray[np.bool_] | None:
        """`(samples,)` whose gaze may be used; all for None."""
        return None

    @cached_property
    def samples(self) -> Samples:
        """The labels of every readable sample, in the order of the table."""
        samples = self.labels.samples
        if self.unreadable == "error":  # then all are kept, and nothing need be read to know it
            return samples
        kept = self._kept
        return Samples(
            tuple(samples.id[row] for row in kept),
            tuple(samples.subject[row] for row in kept),
            samples.target[kept],
            {name: codes[kept] for name, codes in samples.attributes.items()},
        )

    @cached_property
    def cohort(self) -> Cohort:
        """What the data are; reads them, or their cache, on first use."""
        return Cohort(
            name=self.name,
            fields=(*self.batch_fields(self.field), *(self.texts.fields if self.texts else ())),
            input_shape=self._stored.pixels.shape[1:],
            target=self.labels.target,
            attributes=self.labels.attributes,
            grid=self.texts.gaze.maps.shape[1:] if self.texts and self.texts.gaze else (),
            simulated=self.simulated,
            fingerprint=self._fingerprint(),
        )

    def reader(self, training: bool) -> Reader:
        """Samples from the mapped array; augmented for training, where that is asked for."""
        mean, spread = self._scale
        augmented = training and (self.augment_shift or self.augment_rotation or self.augment_flip)
        change = self._moved if augmented else None
        beside = TextReader(self.texts, self._kept, self.use_gaze(training)) if self.texts else None
        return PixelReader(self.field, self._pixels, torch.from_numpy(self._kept), beside, change, mean, spread)

    def _moved(self, batch: Tensor) -> tuple[Tensor, Motion]:
        flip = self.left_right % (batch.ndim - 2) if self.augment_flip else None
        motion = Motion.draw(batch, self.augment_shift, self.augment_rotation, flip)
        return motion(batch), motion

    @cached_property
    def _images(self) -> Images:
        return self.images()

    @cached_property
    def _pixels(self) -> Tensor:
        return torch.from_numpy(self._stored.pixels)

    @cached_property
    def _kept(self) -> IntArray:
        """Positions in the source of the samples of the cohort."""
        kept = np.flatnonzero(self._stored.digest != b"").astype(np.int64)
        if len(kept) < len(self._stored.digest):
            self.skipped["unreadable"] = len(self._stored.digest) - len(kept)
        return kept

    @cached_property
    def _scale(self) -> tuple[float, float]:
        """Mean and standard deviation that `intensity` asks for."""
        if self.intensity == "unit":
            return 0.0, 1.0
        total = squares = 0.0
        rows = self._kept[self.rows("train")]
        for chunk in np.array_split(rows, -(-len(rows) // 256)):
            values = decoded(self._pixels[torch.from_numpy(chunk)]).double()
            total += float(values.sum())
            squares += float(values.square().sum())
        count = len(rows) * self._pixels[0].numel()
        variance = squares / count - (total / count) ** 2
        if variance <= 1e-12:
            raise DataError(
                f"{self.name}: all training samples have one value, which has no spread; use intensity unit"
            )
        return total / count, variance**0.5

    @cached_property
    def _stored(self) -> Stored:
        images = self._images
        if images.key is None:
            return self._read_all(lambda shape: np.zeros(shape, dtype=images.storage))
        key = {
            "cohort": self.name,
            "ids": self.labels.samples.id,
            "storage": images.storage,
            "unreadable": self.unreadable,
            **images.key,
        }
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
        name = re.sub(r"[^a-z0-9]+", "-", f"{self.name}-{self.field}s".lower())
        return mapped(cache_folder(self.cache_dir) / f"{name}-{digest}", images.storage, self._read_all)

    def _read_all(self, create: Callable[[tuple[int, ...]], npt.NDArray[Any]]) -> Stored:
        """Read every sample into the array that `create` makes, on all cores, with a progress bar."""
        from joblib import Parallel, delayed
        from rich.progress import track

        images, skip = self._images, self.unreadable == "skip"
        n = len(images.names)
        shape = next((sample.shape for row in range(n) if (sample := self._sample(row, skip)) is not None), None)
        if shape is None:
            raise DataError(
                f"{self.name}: none of {n} files can be read, the first is {images.names[0]}; mend the paths"
            )
        pixels = create((n, *shape))

        def fill(rows: Sequence[int]) -> list[bytes]:
            digests = []
            for row in rows:
                sample = self._sample(row, skip, shape)
                if sample is not None:
                    pixels[row] = np.rint(sample * 255) if images.storage == "uint8" else sample
                digests.append(b"" if sample is None else hashlib.sha256(pixels[row].tobytes()).hexdigest().encode())
            return digests

        chunks = [range(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
        # Threads: decoding and resizing release Python's lock, and they write to one array.
        results = Parallel(n_jobs=self.jobs, prefer="threads", return_as="generator")(delayed(fill)(c) for c in chunks)
        bar = track(results, f"{self.name}: {self.field}s", len(chunks), transient=True, disable=len(chunks) < 3)
        return Stored(pixels, np.array([digest for part in bar for digest in part], dtype="S64"))

    def _sample(self, row: int, skip: bool, shape: tuple[int, ...] | None = None) -> FloatArray | None:
        """One checked sample; None if it is unreadable and may be skipped."""
        try:
            sample = self._images.read(row)
        except DataError as error:
            if skip:
                return None
            name = self._images.names[row]
            raise DataError(str(error) if name in str(error) else f"{name}: {error}") from error
        check_sample(sample, self._images.names[row], self.field, self._images.storage, shape)
        return sample

    def _fingerprint(self) -> str:
        """SHA-256 of preprocessed data and labels, whatever their folder and order."""
        samples = self.samples
        codes = np.column_stack([samples.target, *samples.attributes.values()]).tolist()
        digests = [
            image.decode() + (self.texts.digest(int(row)) if self.texts else "")
            for image, row in zip(self._stored.digest[self._kept], self._kept, strict=True)
        ]
        rows = sorted(
            f"{name} {subject} {digest} {code}"
            for name, subject, digest, code in zip(samples.id, samples.subject, digests, codes, strict=True)
        )
        return hashlib.sha256("\n".join(rows).encode()).hexdigest()


def check_sample(
    sample: FloatArray, source: str, field: str, storage: str, shape: tuple[int, ...] | None = None
) -> None:
    """Refuse a sample that the others cannot be stacked with.

    Args:
        sample: what was read.
        source: how an error names it.
        field: `image` or `volume`.
        storage: see `Images`.
        shape: shape that it must have, if known.

    Raises:
        DataError: when its shape is another, or a value is not finite or cannot be stored.
    """
    axes = SAMPLE_AXES[field]
    if sample.ndim != axes.count(",") + 1:
        raise DataError(f"{source}: expected a sample of shape {axes}, found {sample.shape}; is it an {field}?")
    if shape is not None and sample.shape != shape:
        raise DataError(
            f"{source}: has shape {sample.shape}, expected {shape} as the first; resize or crop to one size"
        )
    low, high = float(sample.min()), float(sample.max())
    if not np.isfinite([low, high]).all():
        raise DataError(f"{source}: holds values that are not finite; repair the file, or leave it out")
    if max(abs(low), high) > LARGEST[storage] or (storage == "uint8" and low < 0):
        raise DataError(f"{source}: values from {low:g} to {high:g} cannot be kept as {storage}; scale them to [0, 1]")


def decoded(stored: Tensor) -> Tensor:
    """Stored values as float32; 255 of uint8 is 1."""
    return stored.float() / 255 if stored.dtype == torch.uint8 else stored.float()


def mapped(stem: Path, dtype: str, build: Callable[[Callable[[tuple[int, ...]], npt.NDArray[Any]]], Stored]) -> Stored:
    """What `build` makes, mapped from disk; built if it is not there.

    Unlike `medprism.data.cache.cached` it never holds the whole array in memory. One process builds, the others wait;
    files are written under another name and then moved, so that nobody maps half a file.

    Args:
        stem: beginning of the paths; it must change with whatever determines the array.
        dtype: type of the array.
        build: fills an array that its argument makes from a shape.
    """
    files = {part: stem.with_name(f"{stem.name}.{part}.npy") for part in ("pixels", "digest")}
    partial = {part: file.with_name(f"{file.name}.{os.getpid()}.partial") for part, file in files.items()}
    stem.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(stem.with_name(f"{stem.name}.lock")):
        found = _mapped(files)
        if found is not None:
            return found
        try:
            made = build(lambda shape: np.lib.format.open_memmap(partial["pixels"], "w+", np.dtype(dtype), shape))
            assert isinstance(made.pixels, np.memmap)
            made.pixels.flush()
            with partial["digest"].open("wb") as stream:
                np.save(stream, made.digest)
            for part, file in files.items():
                partial[part].replace(file)
        finally:
            for file in partial.values():
                file.unlink(missing_ok=True)
        found = _mapped(files)
    if found is None:
        raise DataError(f"{files['pixels']} was written but cannot be read; is the disk of the cache full?")
    return found


def _mapped(files: Mapping[str, Path]) -> Stored | None:
    """The two arrays, or None when one of them is not there or not whole."""
    if not all(file.is_file() for file in files.values()):
        return None
    try:
        # Copy on write: torch asks for a writable array, and the file stays as it is.
        return Stored(np.load(files["pixels"], mmap_mode="c"), np.load(files["digest"], allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        report(f"cache file {files['pixels']} cannot be read ({error}); it is built again")
        return None
