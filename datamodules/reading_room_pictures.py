"""What a SIMULATED radiograph shows: anatomy, view and sex, findings of five looks, devices, and clutter.

Places and radii are shares of the image, x from the left and y from the top; the patient's right is on the left.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from medprism.data.imaging import FloatArray
from medprism.datamodules.simulated_xray import bump, thorax


class Ellipse(NamedTuple):
    """Where something is: centre and half axes, as shares of the image."""

    x: float
    y: float
    rx: float
    ry: float


class Mark(NamedTuple):
    """Something to draw.

    Attributes:
        kind: a key of `LOOKS`.
        where: its place; it fades out towards the ellipse.
        strength: brightness; lungs have about 0.2, the body 0.5.
        phase: two numbers in [0, 1) that vary its texture.
    """

    kind: str
    where: Ellipse
    strength: float
    phase: tuple[float, float]


MARKER = Ellipse(0.08, 0.06, 0.07, 0.05)
"""Where the view is written on the film."""
BREASTS = (Ellipse(0.27, 0.72, 0.17, 0.13), Ellipse(0.73, 0.72, 0.17, 0.13))
LETTERS = {
    "AP": ("0100111", "1010101", "1110111", "1010100", "1010100"),
    "PA": ("1110010", "1010101", "1110111", "1000101", "1000101"),
}
"""The markers, much simplified, as rows of dark and bright squares."""


def _blob(size: int, where: Ellipse) -> FloatArray:
    return bump(size, (where.y, where.x), (where.ry, where.rx))


def _axes(size: int, where: Ellipse) -> tuple[FloatArray, FloatArray]:
    """Columns and rows of every pixel, as shares of the image from the centre of the ellipse."""
    rows, columns = (np.mgrid[:size, :size] + 0.5) / size
    return columns - where.x, rows - where.y


def _bands(size: int, mark: Mark) -> FloatArray:
    """Atelectasis: thin parallel plates, rising or falling."""
    x, y = _axes(size, mark.where)
    tilt = 0.5 * (mark.phase[0] - 0.5)
    across = y * np.cos(tilt) + x * np.sin(tilt)
    plates = np.cos(2 * np.pi * (across / 0.075 + mark.phase[1])) > 0.35
    look: FloatArray = np.sqrt(_blob(size, mark.where)) * plates
    return look


def _patchy(size: int, mark: Mark) -> FloatArray:
    """Consolidation: a dense, uneven patch."""
    x, y = _axes(size, mark.where)
    uneven = np.cos(2 * np.pi * (9 * x + mark.phase[0])) * np.cos(2 * np.pi * (7 * y + mark.phase[1]))
    look: FloatArray = np.sqrt(_blob(size, mark.where)) * (0.7 + 0.3 * uneven)
    return look


def _net(size: int, mark: Mark) -> FloatArray:
    """Edema: a fine net over a wide area."""
    x, y = _axes(size, mark.where)
    mesh = np.cos(2 * np.pi * (14 * x + mark.phase[0])) * np.cos(2 * np.pi * (14 * y + mark.phase[1]))
    look: FloatArray = np.sqrt(_blob(size, mark.where)) * (0.5 + 0.5 * np.sign(mesh))
    return look


def _level(size: int, mark: Mark) -> FloatArray:
    """Pleural effusion: even, below a line that climbs towards the chest wall."""
    x, y = _axes(size, mark.where)
    outward = np.sign(mark.where.x - 0.5) * x / mark.where.rx
    height = y / mark.where.ry + 0.6 * outward
    inside = np.maximum(np.abs(x) / mark.where.rx, np.abs(y) / mark.where.ry) < 1
    look: FloatArray = inside / (1 + np.exp(-8 * (height + 0.1 * (mark.phase[0] - 0.5))))
    return look


def _bulge(size: int, mark: Mark) -> FloatArray:
    """Cardiomegaly: the heart reaches further, smooth and with a sharp border."""
    look: FloatArray = np.sqrt(np.sqrt(_blob(size, mark.where)))
    return look


def _box(size: int, mark: Mark) -> FloatArray:
    """A pacemaker: a bright box."""
    x, y = _axes(size, mark.where)
    return np.asarray((np.abs(x) < 0.7 * mark.where.rx) & (np.abs(y) < 0.7 * mark.where.ry), dtype=float)


def _line(size: int, mark: Mark) -> FloatArray:
    """A catheter: a thin line, nearly upright."""
    x, y = _axes(size, mark.where)
    bent = x - 0.3 * (mark.phase[0] - 0.5) * y
    look: FloatArray = np.exp(-((bent / 0.012) ** 2)) * (np.abs(y) < mark.where.ry)
    return look


def _ring(size: int, mark: Mark) -> FloatArray:
    """An electrode: a ring."""
    x, y = _axes(size, mark.where)
    radius = np.hypot(x / mark.where.rx, y / mark.where.ry)
    look: FloatArray = np.exp(-(((radius - 0.7) / 0.25) ** 2))
    return look


def _dots(size: int, mark: Mark) -> FloatArray:
    """Surgical clips: a few points in a row."""
    x, y = _axes(size, mark.where)
    along = np.abs(np.mod(x / mark.where.rx * 1.5 + 0.5, 1) - 0.5) < 0.25
    return np.asarray(along & (np.abs(x) < mark.where.rx) & (np.abs(y) < 0.35 * mark.where.ry), dtype=float)


def _round(size: int, mark: Mark) -> FloatArray:
    """A granuloma: small, round and dense."""
    return np.sqrt(_blob(size, mark.where))


def _haze(size: int, mark: Mark) -> FloatArray:
    """Clutter that nobody speaks of."""
    return _blob(size, mark.where)


LOOKS: Mapping[str, Callable[[int, Mark], FloatArray]] = {
    "Atelectasis": _bands,
    "Cardiomegaly": _bulge,
    "Consolidation": _patchy,
    "Edema": _net,
    "Pleural Effusion": _level,
    "pacemaker": _box,
    "catheter": _line,
    "electrode": _ring,
    "clips": _dots,
    "granuloma": _round,
    "clutter": _haze,
}
"""How each kind of mark looks: `(size, size)` in about [0, 1], 0 outside of its ellipse or box."""


def drawn(
    size: int, marks: tuple[Mark, ...], view: str, sex: str, noise: float, generator: np.random.Generator
) -> FloatArray:
    """A picture `(size, size)` in [0, 1].

    Args:
        size: side in pixels.
        marks: what it shows beside anatomy.
        view: AP or PA; it stands on the film, and from the front the heart looks larger.
        sex: female or male.
        noise: standard deviation of the noise of a pixel.
        generator: draws the anatomy and the noise.
    """
    picture = thorax(size, generator)
    picture = picture + noise * generator.standard_normal((size, size))
    if view == "AP":
        picture += 0.04 + 0.08 * _blob(size, Ellipse(0.56, 0.6, 0.26, 0.26))
    if sex == "female":
        picture += sum(0.09 * np.sqrt(_blob(size, breast)) for breast in BREASTS)
    for mark in marks:
        picture += mark.strength * LOOKS[mark.kind](size, mark)
    _write(picture, LETTERS[view])
    return np.clip(picture, 0, 1).astype(np.float32)


def _write(picture: FloatArray, letters: tuple[str, ...]) -> None:
    """Write the marker, as squares of a 64th of the side or one pixel."""
    square = max(1, len(picture) // 64)
    stencil = np.array([[int(dot) for dot in row] for row in letters])
    stencil = np.kron(stencil, np.ones((square, square)))
    top, left = int(0.04 * len(picture)), int(0.04 * len(picture))
    place = picture[top : top + len(stencil), left : left + stencil.shape[1]]
    np.maximum(place, 0.9 * stencil, out=place)
