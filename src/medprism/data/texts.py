"""What lies beside an image: the sentences that speak of it, where a reader looked meanwhile, and located phrases.

Plain values, made by datamodules; `TextReader` puts them into batches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medprism.data.errors import DataError
from medprism.data.samples import IntArray


class Box(NamedTuple):
    """A phrase and where it is true, origin top left.

    In batches edges are shares of the prepared (square, resized) image; tables tell them in pixels of the original one.

    Attributes:
        phrase: what is there, in words.
        left: smallest x.
        top: smallest y.
        right: largest x.
        bottom: largest y.
    """

    phrase: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class GazeMaps:
    """One map a sentence, for n samples with S_1 ... S_n sentences.

    Attributes:
        maps: `(S_1 + ... + S_n, G, G)` uint8 on the prepared image, of which 255 means 1; zeros where nobody looked.
        start: `(n + 1,)` position of the first map of each sample, and the number of maps at the end.
        known: `(n,)` whether the sample has gaze at all.

    Raises:
        DataError: when the parts do not fit each other.
    """

    maps: npt.NDArray[np.uint8]
    start: IntArray
    known: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        """Check that every sample has its maps."""
        if len(self.start) != len(self.known) + 1 or self.start[0] != 0 or self.start[-1] != len(self.maps):
            raise DataError(
                f"{len(self.maps)} gaze maps, {len(self.known)} samples, and starts from {self.start[:1]} to "
                f"{self.start[-1:]}: the first must be 0, the last the number of maps, with one more than samples"
            )

    def __len__(self) -> int:
        return len(self.known)


@dataclass(frozen=True)
class Texts:
    """Sentences of n samples, and what is known of where they are true.

    Attributes:
        sentences: for each sample its sentences, as raw text; possibly none.
        gaze: a map for each sentence; None for cohorts without gaze.
        boxes: for each sample its located phrases; None for cohorts without.

    Raises:
        DataError: when the parts do not fit each other.
    """

    sentences: tuple[tuple[str, ...], ...]
    gaze: GazeMaps | None = None
    boxes: tuple[tuple[Box, ...], ...] | None = None

    def __post_init__(self) -> None:
        """Check that every sentence has its map, and every sample its boxes."""
        if self.gaze is not None:
            counts = [len(each) for each in self.sentences]
            if np.diff(self.gaze.start).tolist() != counts:
                raise DataError("gaze must have one map for each sentence; drop the sentence or give it an empty map")
        if self.boxes is not None and len(self.boxes) != len(self.sentences):
            raise DataError(f"{len(self.sentences)} samples with sentences, but {len(self.boxes)} with boxes")

    @property
    def fields(self) -> tuple[str, ...]:
        """The `Batch` fields that they give."""
        return ("sentences", *(("gaze", "has_gaze") if self.gaze else ()), *(("boxes",) if self.boxes else ()))

    def digest(self, row: int) -> str:
        """SHA-256 of all that lies beside the image at `row`."""
        digest = hashlib.sha256(json.dumps(self.sentences[row]).encode())
        if self.gaze is not None:
            digest.update(self.gaze.maps[self.gaze.start[row] : self.gaze.start[row + 1]].tobytes())
            digest.update(bytes([int(self.gaze.known[row])]))
        if self.boxes is not None:
            digest.update(json.dumps(self.boxes[row]).encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class TextReader:
    """A `Reader` of texts: sentences, gaze maps padded to the batch's longest sample, and boxes.

    Attributes:
        texts: of the source's samples.
        kept: `(samples,)` position in the source of each sample of the cohort.
        use_gaze: `(samples,)` whether a sample's gaze may be used; all when left out. A sample whose gaze may not be
            used looks like one that was read without an eye tracker.
    """

    texts: Texts
    kept: IntArray
    use_gaze: npt.NDArray[np.bool_] | None = None

    def __call__(self, rows: Tensor) -> dict[str, Any]:
        """`sentences`, and `gaze` `(B, S, G, G)`, `has_gaze` `(B,)` and `boxes` where there are any."""
        positions = rows.numpy()
        source = self.kept[positions]
        found: dict[str, Any] = {"sentences": [list(self.texts.sentences[row]) for row in source]}
        if self.texts.gaze is not None:
            allowed = self.texts.gaze.known[source]
            if self.use_gaze is not None:
                allowed = allowed & self.use_gaze[positions]
            found["gaze"] = _padded(self.texts.gaze, source, allowed)
            found["has_gaze"] = torch.from_numpy(allowed)
        if self.texts.boxes is not None:
            found["boxes"] = [list(self.texts.boxes[row]) for row in source]
        return found


def _padded(gaze: GazeMaps, source: Sequence[int] | IntArray, allowed: npt.NDArray[np.bool_]) -> Tensor:
    counts = np.diff(gaze.start)[source]
    side = gaze.maps.shape[1:]
    maps = np.zeros((len(counts), int(counts.max(initial=0)), *side), dtype=np.float32)
    for k, (row, count, use) in enumerate(zip(source, counts, allowed, strict=True)):
        if use and count:
            first = gaze.start[row]
            maps[k, :count] = gaze.maps[first : first + count]
    return torch.from_numpy(maps) / 255
