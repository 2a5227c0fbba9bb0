"""Drawings of images beside their texts; what they show is chosen and prepared in `medprism.explain.alignment`.

Marks never rely on colour alone: right finds have a tick and a thick frame, finds of the same class a dashed frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import NDArray

from medprism.cohort import Cohort
from medprism.explain.brain import BLUE, GREY, LABEL, headed, heading

Array = NDArray[Any]

GREEN = "#009E73"
COLOURS = matplotlib.colormaps["viridis"]
OPACITY = 0.75
"""Of a map on an image where it is highest; where it is lowest the image is bare."""

SIDE = 2.2
"""Height of a small picture in inches."""

LARGE = 3.0
"""Width of a large picture in inches."""

GAP = 0.08
"""Between pictures that belong together, in inches."""

LINE = 0.165
"""Height of a line of small text in inches."""

SMALL = LABEL - 1
CHARACTERS = 13.5
"""Small letters in an inch."""

OUTLINE: list[AbstractPathEffect] = [withStroke(linewidth=2.6, foreground="black")]
"""Keeps white lines visible on white."""


@dataclass(frozen=True)
class Reading:
    """A sample with S sentences, as it is drawn.

    Attributes:
        id: its name.
        picture: `(H, W)` grey or `(H, W, 3)` colour in [0, 1].
        sentences: S texts.
        left_out: further sentences that are not drawn.
        cosines: `(S, rows, columns)` of each sentence with each patch; NaN for a sentence without a vector.
        maps: `(S, H, W)` those cosines at the pixels.
        gaze: `(S, H, W)` in [0, 1]; None without gaze.
        boxes: phrases and their places: left, top, right and bottom in shares of the image.
    """

    id: str
    picture: Array
    sentences: list[str]
    left_out: int
    cosines: Array
    maps: Array
    gaze: Array | None
    boxes: list[tuple[str, float, float, float, float]]


@dataclass(frozen=True)
class Similarity:
    """Cosines of n images with the texts of the same samples.

    Attributes:
        cosines: `(n, n)`; row: image, column: text.
        alike: `(n, n)` whether the text is the image's own, or equal to it.
        classes: n names of classes, sorted, empty where unknown; no names where no class is known.
        subjects: number of people.
    """

    cosines: Array
    alike: Array
    classes: list[str]
    subjects: int


@dataclass(frozen=True)
class Hit:
    """What a query found.

    Attributes:
        id: the sample that it belongs to.
        text: sentences of that sample.
        label: its class in words, empty where unknown; several for a text that samples of several classes share.
        score: cosine with the query.
        right: whether it is the query's own, or its text is equal.
        same_class: whether it has the query's class; None where one of the two is unknown.
    """

    id: str
    text: tuple[str, ...]
    label: str
    score: float
    right: bool
    same_class: bool | None


@dataclass(frozen=True)
class Query:
    """An image that looks for its text, or a text that looks for its image.

    Attributes:
        id: its sample.
        text: sentences of that sample.
        label: its class in words, empty where unknown.
        hits: the best ones, best first.
        rank: place of the first right one; wrong ones with the same score come before it.
        of: number that were ranked.
    """

    id: str
    text: tuple[str, ...]
    label: str
    hits: tuple[Hit, ...]
    rank: int
    of: int


def overlay(picture: Array, share: Array) -> Array:
    """`(H, W, 3)` image with a map on it, opaque where the map is high.

    Args:
        picture: `(H, W)` or `(H, W, 3)` in [0, 1].
        share: `(H, W)` in [0, 1]; nothing is drawn where it is NaN.
    """
    colour = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
    opacity = np.where(np.isnan(share), 0, OPACITY * share)[..., None]
    found: Array = (1 - opacity) * colour + opacity * COLOURS(np.nan_to_num(share))[..., :3]
    return found


def reading_figure(reading: Reading, cohort: Cohort, label: str) -> Figure:
    """An image, and for each of its sentences where the reader looked and where the model sees it.

    Args:
        reading: what is drawn.
        cohort: names the data.
        label: class of the reading in words; empty where unknown.
    """
    rows, columns = reading.picture.shape[:2]
    width = SIDE * float(np.clip(columns / rows, 0.5, 2))
    kinds = ["model"] if reading.gaze is None else ["gaze", "model"]
    count = len(reading.sentences)
    across = min(count, 4 // len(kinds))
    block = len(kinds) * (width + GAP)
    titles = [_wrapped([text], block, 4) for text in reading.sentences]
    above = LINE * max(title.count("\n") + 1 for title in titles) + 0.3
    step = above + SIDE + 0.15

    named = f"{short(reading.id)} ({label})" if label else short(reading.id)
    first = f"the first {count} of {count + reading.left_out} sentences" if reading.left_out else "each sentence"
    what = f"Reading {named}: {first} and the model's patch map"
    what += "" if reading.gaze is None else ", beside the reader's gaze"
    across_all = LARGE + 0.6 + across * (block + 0.25) + 1.1
    top = 0.4 + 0.22 * sum(len(wrap(line, int(9 * across_all))) for line in heading(cohort, what, 1).split("\n"))
    legend = _legend(reading)
    large = LARGE * min(rows / columns, 1.5)
    beside = 0.3 + large + LINE * (legend.count("\n") + 1) + 0.35
    figure = Figure(figsize=(across_all, top + max(step * -(-count // across), beside)))

    axes = _axes(figure, 0.25, top + 0.3, LARGE, large)
    _picture(axes, reading.picture)
    axes.set_title("image", fontsize=SMALL)
    _boxes(axes, reading, numbered=True)
    _note(figure, 0.25, top + 0.3 + large + 0.12, legend, fontsize=SMALL - 1, va="top", linespacing=1.25)

    finite = reading.cosines[np.isfinite(reading.cosines)]
    scale = Normalize(*((finite.min(), finite.max()) if len(finite) else (0.0, 1.0)))
    for k, title in enumerate(titles):
        left, upper = LARGE + 0.6 + k % across * (block + 0.25), top + k // across * step + above
        _note(figure, left, upper - 0.24, title, fontsize=SMALL, va="bottom")
        for place, kind in enumerate(kinds):
            axes = _axes(figure, left + place * (width + GAP), upper, width, SIDE)
            axes.set_title({"gaze": "reader's gaze", "model": "model"}[kind], fontsize=SMALL - 1, pad=3)
            _sentence(axes, reading, k, kind, scale)

    bars = {"gaze": (Normalize(0, 1), "gaze, peak 1"), "model": (scale, "cosine")}
    tall = min(2.6, (figure.get_figheight() - top - above) / len(kinds) - 0.35)
    for place, kind in enumerate(kinds):
        bar = _axes(figure, across_all - 0.95, top + above + place * (tall + 0.35), 0.16, tall)
        figure.colorbar(ScalarMappable(bars[kind][0], _on_grey()), cax=bar).set_label(bars[kind][1], fontsize=SMALL)
    headed(figure, cohort, what, 1)
    return figure


def similarity_figure(found: Similarity, cohort: Cohort) -> Figure:
    """The matrix of cosines, with class boundaries and the best text of each image marked."""
    n = len(found.cosines)
    figure = Figure(figsize=(11, 9.8), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(found.cosines, cmap=COLOURS, interpolation="nearest", aspect="equal")
    figure.colorbar(image, ax=axes, shrink=0.8).set_label("cosine of image and text", fontsize=LABEL)
    best = found.cosines.argmax(axis=1)
    size = min(8.0, 300 / n)
    axes.plot(
        best, np.arange(n), "o", color="white", markeredgecolor="black", markersize=size, scalex=False, scaley=False
    )
    names = np.array(found.classes or [""] * n)
    edges = [0, *(np.flatnonzero(names[1:] != names[:-1]) + 1).tolist(), n]
    for edge in edges[1:-1]:
        for draw in (axes.axhline, axes.axvline):
            draw(edge - 0.5, color="white", linewidth=1.6, path_effects=OUTLINE)
    middles = [(low + high - 1) / 2 for low, high in pairwise(edges)]
    ticks = [names[low] or "unknown" for low in edges[:-1]] if found.classes else []
    axes.set_xticks(middles if ticks else [], ticks, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(middles if ticks else [], ticks)
    order = "sorted by class" if ticks else "sorted by id"
    axes.set_ylabel(f"images, {order}", fontsize=LABEL)
    same = (names[:, None] == names[None]) & (names != "")[:, None]
    groups = {"own text": found.alike, "same class": same & ~found.alike, "other class": ~same & ~found.alike}
    groups = groups if ticks else {"own text": found.alike, "other texts": ~found.alike}
    means = ", ".join(f"{name} {found.cosines[mask].mean():.3f}" for name, mask in groups.items() if mask.any())
    axes.set_xlabel(
        f"texts of the same samples, in the same order\nwhite dot: best text of each image; mean cosine: {means}",
        fontsize=LABEL,
    )
    headed(figure, cohort, f"Similarity of {n} test images with their texts", found.subjects)
    return figure


def texts_figure(queries: Sequence[Query], pictures: Mapping[str, Array], cohort: Cohort, subjects: int) -> Figure:
    """Images and the texts that they find.

    Args:
        queries: one row each.
        pictures: by id.
        cohort: names the data.
        subjects: number of people whose texts were ranked.
    """
    cell, line = 3.5, SIDE + 0.75
    most = max(len(query.hits) for query in queries)
    figure = Figure(figsize=(0.5 + SIDE + most * (cell + 0.2), 1.45 + len(queries) * line))
    for k, query in enumerate(queries):
        top = 1.4 + k * line
        axes = _axes(figure, 0.2, top, SIDE, SIDE)
        _picture(axes, pictures[query.id])
        _caption(axes, short(query.id), f"own text: rank {query.rank} of {query.of}", query.label)
        for place, hit in enumerate(query.hits):
            axes = _axes(figure, 0.5 + SIDE + place * (cell + 0.2), top, cell, SIDE)
            _text(axes, hit.text, cell, SIDE)
            _marked(axes, hit, place, "its own text")
    what = f"Texts with the highest cosine to each image, of {queries[0].of} different texts of the test"
    headed(figure, cohort, what, subjects)
    return figure


def images_figure(queries: Sequence[Query], pictures: Mapping[str, Array], cohort: Cohort, subjects: int) -> Figure:
    """Texts and the images that they find; see `texts_figure`."""
    cell, line = 3.8, SIDE + 0.75
    most = max(len(query.hits) for query in queries)
    figure = Figure(figsize=(0.6 + cell + most * (SIDE + 0.35), 1.45 + len(queries) * line))
    for k, query in enumerate(queries):
        top = 1.4 + k * line
        axes = _axes(figure, 0.2, top, cell, SIDE)
        _text(axes, query.text, cell, SIDE)
        axes.set_facecolor("#F2F2F2")
        _caption(axes, f"text of {short(query.id)}", f"first right image: rank {query.rank} of {query.of}", query.label)
        for place, hit in enumerate(query.hits):
            axes = _axes(figure, 0.5 + cell + place * (SIDE + 0.35), top, SIDE, SIDE)
            _picture(axes, pictures[hit.id])
            _marked(axes, hit, place, "its own image" if hit.id == query.id else "image of an equal text")
    what = f"Images with the highest cosine to each text, of {queries[0].of} images of the test"
    headed(figure, cohort, what, subjects)
    return figure


def short(name: str, longest: int = 26) -> str:
    """A name with its middle left out where it is long."""
    half = (longest - 1) // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[-half:]}"


def _sentence(axes: Axes, reading: Reading, k: int, kind: str, scale: Normalize) -> None:
    gaze = None if reading.gaze is None else reading.gaze[k]
    if kind == "gaze" and gaze is not None:
        _picture(axes, overlay(reading.picture, gaze))
    else:
        span = (scale.vmax or 0.0) - (scale.vmin or 0.0)
        share = np.clip((reading.maps[k] - (scale.vmin or 0.0)) / (span or 1.0), 0, 1)
        _picture(axes, overlay(reading.picture, share))
        if np.isfinite(reading.cosines[k]).all():
            row, column = np.unravel_index(reading.cosines[k].argmax(), reading.cosines[k].shape)
            height, width = (
                size / cells for size, cells in zip(reading.maps[k].shape, reading.cosines[k].shape, strict=True)
            )
            place = ((column + 0.5) * width - 0.5, (row + 0.5) * height - 0.5)
            axes.plot(*place, "X", color="white", markeredgecolor="black", markersize=9)
        else:
            axes.text(0.5, 0.5, "no vector", transform=axes.transAxes, ha="center", color="white", path_effects=OUTLINE)
    if gaze is not None and gaze.max() > 0:
        lines = axes.contour(gaze, levels=[gaze.max() / 2], colors="white", linestyles="dashed", linewidths=1.3)
        lines.set_path_effects(OUTLINE)
    _boxes(axes, reading, numbered=False)


def _boxes(axes: Axes, reading: Reading, numbered: bool) -> None:
    rows, columns = reading.picture.shape[:2]
    for number, (_, left, top, right, bottom) in enumerate(reading.boxes, 1):
        corner = (left * columns - 0.5, top * rows - 0.5)
        box = Rectangle(corner, (right - left) * columns, (bottom - top) * rows, fill=False, edgecolor="white", lw=1.3)
        box.set_path_effects(OUTLINE)
        axes.add_patch(box)
        if numbered:
            x, y = corner[0] + 0.01 * columns, corner[1] + 0.01 * rows
            axes.text(x, y, str(number), va="top", fontsize=LABEL, color="white", path_effects=OUTLINE)


def _legend(reading: Reading) -> str:
    lines = ["model: cosine with each patch, one scale", "cross: patch with the highest cosine"]
    lines += ["dashed: gaze above half of its peak"] if reading.gaze is not None else []
    lines += [f"box {number}: {phrase}" for number, (phrase, *_) in enumerate(reading.boxes, 1)]
    return _wrapped(lines, LARGE, 14)


def _marked(axes: Axes, hit: Hit, place: int, right: str) -> None:
    """Say and frame what a find is worth; `right` says why it is right, if it is."""
    style: str | tuple[int, tuple[int, int]] = "solid"
    if hit.right:
        words = f"✓ {right}"
        colour, width = GREEN, 4.0
    elif hit.same_class:
        words, colour, width, style = "same class", BLUE, 3.0, (0, (3, 2))
    else:
        words, colour, width = "another sample" if hit.same_class is None else "other class", GREY, 1.0
    _caption(axes, f"{place + 1}. cosine {hit.score:.3f}", words, hit.label)
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=width, linestyle=style)


def _caption(axes: Axes, first: str, second: str, label: str) -> None:
    axes.set_title(f"{first}\n{second}", fontsize=SMALL, loc="left", parse_math=False)
    axes.set_xlabel(label, fontsize=SMALL - 1, labelpad=4, parse_math=False)


def _text(axes: Axes, sentences: Sequence[str], width: float, height: float) -> None:
    text = _wrapped(sentences, width - 0.2, int((height - 0.15) / LINE), CHARACTERS * SMALL / (SMALL - 1))
    axes.text(
        0.1 / width, 1 - 0.08 / height, text, transform=axes.transAxes, va="top", fontsize=SMALL - 1, parse_math=False
    )


def _wrapped(texts: Sequence[str], width: float, most: int, characters: float = CHARACTERS) -> str:
    """Each text on lines of its own that are `width` inches wide, `most` lines in all."""
    lines = [line for text in texts for line in wrap(text, int(characters * width))]
    return "\n".join(lines if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1]} …"])


def _picture(axes: Axes, picture: Array) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes without ticks, in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    axes = figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _note(figure: Figure, left: float, top: float, text: str, **style: Any) -> None:
    """Text in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    figure.text(left / across, 1 - top / down, text, parse_math=False, **style)


def _on_grey() -> ListedColormap:
    """The colours of a map as they look on an image that is grey."""
    return ListedColormap(overlay(np.full((1, 256), 0.5), np.linspace(0, 1, 256)[None])[0])
