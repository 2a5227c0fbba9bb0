"""From fixations to one heatmap a sentence, drawn on a small canvas.

While a sentence is spoken, its reader looks at the place that it speaks of. Each fixation is a Gaussian of one degree
of sight; the map of a sentence is their sum, weighted with the seconds that each fixation and the sentence overlap. The
maps lie on the prepared (square, resized) image, as `medprism.data.imaging.resized` makes it.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import erf

from medprism.data.cache import Arrays, cached
from medprism.data.errors import DataError, report
from medprism.data.imaging import FloatArray, Square
from medprism.data.samples import IntArray
from medprism.data.texts import Box, GazeMaps
from medprism.data.transcripts import Sentence

BLANK = "fixation without place, width or duration, left out"
OFF = "fixation off the image, clipped away"
WHOLE = "sentence without gaze of its own, given that of the whole reading"
UNSEEN = "reading without a usable fixation, taken as one without gaze"
CLOCK = "reading whose gaze lies outside of all its sentences (wrong clock?)"
REASONS = (BLANK, OFF, WHOLE, UNSEEN, CLOCK)
"""What is counted, in the order of the columns of the counts."""

REPORTED = 3
"""Readings with a wrong clock that are named one by one."""

DRAWING = 1
"""Version of the drawing; raise it when maps change, so that those on disk are drawn anew."""


@dataclass(frozen=True)
class Fixations:
    """F fixations of one reading, on the original image.

    Attributes:
        x: `(F,)` pixels of the original image from its left; whole numbers are pixel centres; may lie outside.
        y: `(F,)` the same from its top.
        start: `(F,)` seconds on the reading's clock.
        end: `(F,)` seconds on the reading's clock.
        sigma: `(F, 2)` width of the Gaussian in pixels of the original image, along x and y.

    Raises:
        DataError: when the lengths differ.
    """

    x: FloatArray
    y: FloatArray
    start: FloatArray
    end: FloatArray
    sigma: FloatArray

    def __post_init__(self) -> None:
        """Check the shapes."""
        n = len(self.x)
        shapes = {name: np.shape(getattr(self, name)) for name in ("x", "y", "start", "end", "sigma")}
        if shapes != {"x": (n,), "y": (n,), "start": (n,), "end": (n,), "sigma": (n, 2)}:
            raise DataError(f"fixations have shapes {shapes}; expected (F,) for each, and (F, 2) for sigma")

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: npt.NDArray[np.bool_] | IntArray) -> Fixations:
        """Some of them, chosen by a mask or by positions."""
        return Fixations(self.x[rows], self.y[rows], self.start[rows], self.end[rows], self.sigma[rows])


@dataclass(frozen=True)
class Reading:
    """One reading of one image by one person.

    Attributes:
        id: of the reading, unique in its cohort.
        subject: the patient, who is the unit of splitting.
        image: absolute path, or array key, of the picture.
        size: width and height of the original image in pixels.
        sentences: what was said, in order.
        fixations: where the reader looked; None for a reading without (usable) gaze.
        source: file and row, for messages.
    """

    id: str
    subject: str
    image: str
    size: tuple[int, int]
    sentences: tuple[Sentence, ...]
    fixations: Fixations | None
    source: str


# --------------------------------------------------------------------------------------------------------------- places
class Frame(NamedTuple):
    """The rectangle of the original image that fills the prepared one; with padding it is larger than the image.

    In pixels of the original, from its left and top edge: pixel k covers k to k + 1. An edge at `x` lies at the share
    `(x - left) / width` of the prepared image.

    Attributes:
        left: of the rectangle; negative with padding.
        top: of the rectangle; negative with padding.
        width: of the rectangle.
        height: of the rectangle.
    """

    left: float
    top: float
    width: float
    height: float


def frame(size: tuple[int, int], square: Square) -> Frame:
    """What `imaging.resized` cuts out of, or puts around, a picture before it resizes it.

    Args:
        size: width and height of the picture in pixels.
        square: `pad`, `crop` or `stretch`.

    Raises:
        DataError: when the picture has no pixels.
    """
    if min(size) < 1:
        raise DataError(f"an image of {size[0]} x {size[1]} pixels has no place for gaze; mend its recorded size")
    if square == "stretch":
        return Frame(0, 0, *size)
    side = max(size) if square == "pad" else min(size)
    left, top = ((side - n) // 2 if square == "pad" else (n - side) // 2 for n in size)
    return Frame(-left, -top, side, side) if square == "pad" else Frame(left, top, side, side)


class Placed(NamedTuple):
    """Fixations on a canvas of G x G pixels, of which pixel k covers k to k + 1.

    Attributes:
        x: `(F,)` canvas pixels from the left edge; a share of the prepared image when G is 1.
        y: `(F,)` canvas pixels from the top edge.
        sigma: `(F, 2)` canvas pixels, along x and y.
    """

    x: FloatArray
    y: FloatArray
    sigma: FloatArray


def placed(x: FloatArray, y: FloatArray, sigma: FloatArray, size: tuple[int, int], square: Square, grid: int) -> Placed:
    """Where `imaging.resized` puts points of the original image on a canvas.

    Args:
        x: `(F,)` pixels of the original image; whole numbers are pixel centres.
        y: `(F,)` the same.
        sigma: `(F, 2)` pixels of the original image.
        size: width and height of the original image in pixels.
        square: how the picture becomes square.
        grid: side of the canvas in pixels.
    """
    part = frame(size, square)
    across, down = grid / part.width, grid / part.height
    return Placed((x + 0.5 - part.left) * across, (y + 0.5 - part.top) * down, sigma * np.array([across, down]))


# -------------------------------------------------------------------------------------------------------------- weights
def boxed(region: Box, size: tuple[int, int], square: Square) -> Box | None:
    """Where a region of the original image lies on the prepared one; None if nothing of it is there.

    Args:
        region: in pixels of the original image.
        size: width and height of the original image.
        square: how it became square.
    """
    shown = frame(size, square)
    shares = []
    for edges, length, before, side in (
        ((region.left, region.right), size[0], shown.left, shown.width),
        ((region.top, region.bottom), size[1], shown.top, shown.height),
    ):
        on_image = (min(max(edge, 0.0), float(length)) for edge in edges)
        shares.append([min(max((edge - before) / side, 0.0), 1.0) for edge in on_image])
    (left, right), (top, bottom) = shares
    return Box(region.phrase, left, top, right, bottom) if left < right and top < bottom else None


def overlap_seconds(fixations: Fixations, sentences: Sequence[Sentence], lookback: float = 0.0) -> FloatArray:
    """Seconds that each fixation shares with `[start - lookback, end]` of each sentence.

    Args:
        fixations: F of them.
        sentences: S of them.
        lookback: seconds before its begin in which gaze counts for a sentence: the eye arrives before the word.

    Returns:
        `(S, F)`; 0 where a time is not known.
    """
    start, end = _times(sentences).T[:, :, None]
    shared = np.minimum(fixations.end, end) - np.maximum(fixations.start, start - lookback)
    seconds: FloatArray = np.where(shared > 0, shared, 0)  # also where it is NaN
    return seconds


def _times(sentences: Sequence[Sentence]) -> FloatArray:
    """`(S, 2)` begin and end of each sentence."""
    return np.array([sentence[1:] for sentence in sentences], dtype=np.float64).reshape(-1, 2)


# ----------------------------------------------------------------------------------------------------------------- maps
def heatmaps(
    reading: Reading, canvas: int, square: Square, lookback: float = 0.0, truncate: float = 3.0
) -> npt.NDArray[np.uint8]:
    """Where the reader looked during each sentence.

    The value of a canvas pixel is the mean over its area of sum_f w_sf exp(-dx^2 / 2 sigma_x^2 - dy^2 / 2 sigma_y^2),
    with w_sf the seconds of overlap, each Gaussian ending `truncate` sigma from its centre along either axis and at the
    border of the image. It is integrated (by the error function), not sampled: so it is what drawing on the original
    image and averaging over the pixels of the canvas give, also for Gaussians narrower than a canvas pixel. Each map is
    divided by its maximum, and values below 1/255 are 0.

    A sentence without gaze, or without times, has the map of the whole reading. Fixations whose centre lies off the
    image do not count. A reading whose gaze lies outside of all its sentences is reported. The order of the fixations
    does not matter.

    Args:
        reading: with S sentences.
        canvas: side of the maps in pixels.
        square: how the picture becomes square.
        lookback: see `overlap_seconds`.
        truncate: where Gaussians end, in sigma.

    Returns:
        `(S, canvas, canvas)`, of which 255 means 1; zeros for a reading without gaze.

    Raises:
        DataError: when an option or the size of the image is impossible.
    """
    maps, counts = _drawn(reading, canvas, square, lookback, truncate)
    if counts[REASONS.index(CLOCK)]:
        report(_wrong_clock(reading))
    return maps


def gaze_maps(
    readings: Sequence[Reading],
    canvas: int,
    square: Square,
    cache_dir: str | os.PathLike[str] | None = None,
    lookback: float = 0.0,
    truncate: float = 3.0,
) -> tuple[GazeMaps, dict[str, int]]:
    """The heatmaps of all readings, drawn once and kept on disk.

    Args:
        readings: of the cohort, in its order.
        canvas: see `heatmaps`, as for the options below.
        square: how the picture becomes square.
        cache_dir: see `medprism.data.cache.cache_folder`.
        lookback: seconds.
        truncate: sigma.

    Returns:
        The maps, of which a reading without a usable fixation has none, and how often each of `REASONS` occurred,
        without those that did not. Readings with a wrong clock are also reported with their source.

    Raises:
        DataError: as `heatmaps`.
    """
    start = np.concatenate([[0], np.cumsum([len(reading.sentences) for reading in readings], dtype=np.int64)])

    def build() -> Arrays:
        maps = np.zeros((int(start[-1]), canvas, canvas), dtype=np.uint8)
        counts = np.zeros((len(readings), len(REASONS)), dtype=np.int64)
        for k, reading in enumerate(readings):
            maps[start[k] : start[k + 1]], counts[k] = _drawn(reading, canvas, square, lookback, truncate)
        return {"maps": maps, "counts": counts}

    key = {
        "drawing": DRAWING,
        "readings": _fingerprint(readings),
        "canvas": canvas,
        "square": square,
        "lookback": lookback,
        "truncate": truncate,
    }
    found = cached("gaze", key, ["maps", "counts"], build, cache_dir)
    counts: IntArray = found["counts"]
    wrong = np.flatnonzero(counts[:, REASONS.index(CLOCK)])
    for k in wrong[:REPORTED]:
        report(_wrong_clock(readings[k]))
    if len(wrong) > REPORTED:
        report(f"{len(wrong) - REPORTED} further readings have all their gaze outside of their sentences")
    seen = np.array([reading.fixations is not None for reading in readings], dtype=bool)
    totals = {reason: int(n) for reason, n in zip(REASONS, counts.sum(axis=0), strict=True) if n}
    return GazeMaps(found["maps"], start, seen & (counts[:, REASONS.index(UNSEEN)] == 0)), totals


def _drawn(
    reading: Reading, canvas: int, square: Square, lookback: float, truncate: float
) -> tuple[npt.NDArray[np.uint8], IntArray]:
    """The maps of a reading, and how often each of `REASONS` occurred."""
    if canvas < 1 or lookback < 0 or not truncate > 0:
        raise DataError(
            f"canvas {canvas}, lookback {lookback}, truncate {truncate}: expected at least one pixel, no negative "
            "seconds, and more than 0 sigma"
        )
    part, size = frame(reading.size, square), reading.size
    maps = np.zeros((len(reading.sentences), canvas, canvas), dtype=np.uint8)
    counts = dict.fromkeys(REASONS, 0)
    if reading.fixations is None:
        return maps, np.array(list(counts.values()))
    fixations = _usable(reading.fixations, size, counts)
    on_canvas = placed(fixations.x, fixations.y, fixations.sigma, size, square, canvas)
    columns, rows = (
        _means(centre, sigma, canvas, truncate, -origin * canvas / length, (n - origin) * canvas / length)
        for centre, sigma, origin, length, n in zip(
            on_canvas[:2], on_canvas.sigma.T, part[:2], part[2:], size, strict=True
        )
    )
    weights = overlap_seconds(fixations, reading.sentences, lookback)
    weights = np.concatenate([weights, (fixations.end - fixations.start)[None]])  # the last is the whole reading
    # (S+1, 1, F) * (G, F) -> (S+1, G, F); @ (F, G) -> (S+1, G, G)
    drawn = (weights[:, None] * rows.T) @ columns
    peaks = drawn.max(axis=(1, 2), initial=0)
    if not peaks[-1]:
        counts[UNSEEN] = 1
        return maps, np.array(list(counts.values()))
    unseen = peaks[:-1] == 0
    counts[WHOLE] = int(unseen.sum())
    counts[CLOCK] = int(not weights[:-1].any() and bool(np.isfinite(_times(reading.sentences)).all(axis=1).any()))
    shares = drawn / np.where(peaks, peaks, 1)[:, None, None]
    grey = np.where(shares < 1 / 255, 0, np.rint(shares * 255)).astype(np.uint8)
    maps[:] = np.where(unseen[:, None, None], grey[-1], grey[:-1])
    return maps, np.array(list(counts.values()))


def _usable(fixations: Fixations, size: tuple[int, int], counts: dict[str, int]) -> Fixations:
    """Those with a place on the image, a width and a duration, in an order that does not depend on theirs."""
    numbers = np.column_stack([fixations.x, fixations.y, fixations.start, fixations.end, fixations.sigma])
    given = np.isfinite(numbers).all(axis=1)
    given &= (fixations.sigma > 0).all(axis=1) & (fixations.end > fixations.start)
    inside = (fixations.x >= -0.5) & (fixations.x <= size[0] - 0.5)
    inside &= (fixations.y >= -0.5) & (fixations.y <= size[1] - 0.5)
    counts[BLANK] = int((~given).sum())
    counts[OFF] = int((given & ~inside).sum())
    kept = np.flatnonzero(given & inside)
    return fixations.take(kept[np.lexsort(numbers[kept].T)])


def _means(centre: FloatArray, sigma: FloatArray, canvas: int, truncate: float, low: float, high: float) -> FloatArray:
    """`(F, G)` mean of exp(-(t - centre)^2 / 2 sigma^2) over each canvas pixel, 0 beyond its truncation and the image.

    Args:
        centre: `(F,)` canvas pixels.
        sigma: `(F,)` canvas pixels.
        canvas: G.
        truncate: sigma.
        low: where the image begins, in canvas pixels.
        high: where it ends.
    """
    reach = truncate * sigma
    begin, end = np.maximum(centre - reach, low)[:, None], np.minimum(centre + reach, high)[:, None]
    edges = np.clip(np.arange(canvas + 1), begin, end)  # (F, G + 1)
    width = (math.sqrt(2) * sigma)[:, None]
    areas: FloatArray = math.sqrt(math.pi) / 2 * width * np.diff(erf((edges - centre[:, None]) / width))
    return areas


def _wrong_clock(reading: Reading) -> str:
    """What a user should know of a reading whose gaze lies outside of all its sentences."""
    assert reading.fixations is not None
    spoken = _times(reading.sentences)
    return (
        f"{reading.source}: all gaze (from {np.nanmin(reading.fixations.start):.1f} to "
        f"{np.nanmax(reading.fixations.end):.1f} s) lies outside of all sentences (from {np.nanmin(spoken):.1f} to "
        f"{np.nanmax(spoken):.1f} s); is one of their clocks wrong? Each sentence gets the map of the whole reading"
    )


def _fingerprint(readings: Sequence[Reading]) -> str:
    """What the maps are drawn from, in short."""
    digest = hashlib.sha256()
    for reading in readings:
        seen = reading.fixations
        parts = [_times(reading.sentences)]
        if seen is not None:
            parts += [seen.x, seen.y, seen.start, seen.end, seen.sigma]
        digest.update(repr((reading.size, [part.shape for part in parts])).encode())
        for part in parts:
            digest.update(np.asarray(part, dtype=np.float64).tobytes())
    return digest.hexdigest()
