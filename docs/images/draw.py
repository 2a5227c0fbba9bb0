"""Draws the diagrams of the method cards: `python docs/images/draw.py` writes <method>.svg beside this file."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

INPUT, PART, TERM, OUTPUT = "#e8eaf6", "#e0f2f1", "#fff3e0", "#f3e5f5"
"""Fill of what comes in, what is trained, what is minimised, and what comes out."""
INK, PALE = "#263238", "#78909c"

Box = tuple[float, float, float, float]


def box(ax: Axes, x: float, y: float, w: float, h: float, text: str, fill: str, dashed: bool = False) -> Box:
    """A rounded box with a text in its middle; returns its place."""
    style = "round,pad=0,rounding_size=0.12"
    ax.add_patch(FancyBboxPatch((x, y), w, h, style, fc=fill, ec=INK, lw=1, ls="--" if dashed else "-"))
    ax.text(x + w / 2, y + h / 2, text, ha="center", va="center", color=INK, linespacing=1.35)
    return x, y, w, h


def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", dashed: bool = False) -> None:
    """An arrow, with words above its middle."""
    line = FancyArrowPatch(
        start, end, arrowstyle="-|>", mutation_scale=11, color=INK, lw=1.1,
        ls="--" if dashed else "-", shrinkA=1, shrinkB=1,
    )  # fmt: skip
    ax.add_patch(line)
    if text:
        ax.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1, text, ha="center", va="bottom", color=INK)


def right(b: Box) -> tuple[float, float]:
    """Middle of the right side."""
    return b[0] + b[2], b[1] + b[3] / 2


def left(b: Box) -> tuple[float, float]:
    """Middle of the left side."""
    return b[0], b[1] + b[3] / 2


def top(b: Box) -> tuple[float, float]:
    """Middle of the upper side."""
    return b[0] + b[2] / 2, b[1] + b[3]


def bottom(b: Box) -> tuple[float, float]:
    """Middle of the lower side."""
    return b[0] + b[2] / 2, b[1]


def erm(ax: Axes) -> None:
    """Input, encoder, embedding, head, loss."""
    row = [
        box(ax, 0, 1.2, 2.3, 1.1, "connectome,\nimage or volume", INPUT),
        box(ax, 3.0, 1.2, 1.7, 1.1, "encoder", PART),
        box(ax, 5.4, 1.2, 2.0, 1.1, "pooled\nembedding", OUTPUT),
        box(ax, 8.1, 1.2, 1.7, 1.1, "linear\nhead", PART),
        box(ax, 10.5, 1.2, 2.1, 1.1, "cross-entropy\nwith the target", TERM),
    ]
    for a, b in pairwise(row):
        arrow(ax, right(a), left(b))
    seen = box(ax, 10.2, 0, 2.7, 0.7, "groups, if GroupDRO", TERM, dashed=True)
    arrow(ax, top(seen), bottom(row[4]), dashed=True)
    drawn = box(ax, 0, 0, 2.3, 0.7, "cells, if balanced", INPUT, dashed=True)
    arrow(ax, top(drawn), bottom(row[0]), dashed=True)


def neurolip(ax: Axes) -> None:
    """Phrases ask regions; where they look, and what they find."""
    phrases = box(ax, 0, 3.3, 2.6, 1.3, "phrases of disease\nand of sex, age, ...", INPUT)
    connectome = box(ax, 0, 0.6, 2.6, 1.3, "connectome,\none row a region", INPUT)
    words = box(ax, 3.5, 3.3, 2.0, 1.3, "text tokens U", PART)
    regions = box(ax, 3.5, 0.6, 2.0, 1.3, "region tokens V", PART)
    box(ax, 6.5, 1.9, 2.1, 1.4, "attention:\neach phrase\nover regions", PART)
    find = box(ax, 9.5, 3.3, 2.3, 1.3, "what it finds, z\ncompared with U", OUTPUT)
    maps = box(ax, 9.5, 0.6, 2.3, 1.3, "where it looks,\nmaps A", OUTPUT)
    align = box(ax, 12.8, 4.1, 3.5, 0.9, "align: the disease phrase", TERM)
    against = box(ax, 12.8, 2.7, 3.5, 0.9, "negative: sensitive phrases", TERM)
    apart = box(ax, 12.8, 0.8, 3.5, 0.9, "distance: disease map\nfrom sensitive maps", TERM)
    arrow(ax, right(phrases), left(words))
    arrow(ax, right(connectome), left(regions))
    arrow(ax, right(words), (6.5, 2.9))
    arrow(ax, right(regions), (6.5, 2.3))
    arrow(ax, (8.6, 2.9), left(find))
    arrow(ax, (8.6, 2.3), left(maps))
    arrow(ax, right(find), left(align))
    arrow(ax, right(find), left(against))
    arrow(ax, right(maps), left(apart))


def mimmx(ax: Axes) -> None:
    """One encoder, a block and a head for each factor, critics between blocks."""
    image = box(ax, 0, 1.9, 2.3, 1.3, "image, volume\nor connectome", INPUT)
    encoder = box(ax, 3.1, 1.9, 1.6, 1.3, "encoder", PART)
    arrow(ax, right(image), left(encoder))
    names = (("F_Y", "target Y", 3.8), ("F_1", "attribute Z_1", 2.1), ("F_N", "attribute Z_N", 0.4))
    blocks = []
    for name, factor, y in names:
        block = box(ax, 5.8, y, 1.3, 0.9, f"${name}$", OUTPUT)
        head = box(ax, 7.9, y, 1.2, 0.9, "head", PART)
        loss = box(ax, 9.9, y, 2.8, 0.9, f"cross-entropy, {factor.split()[0]}", TERM)
        arrow(ax, right(encoder), left(block))
        arrow(ax, right(block), left(head))
        arrow(ax, right(head), left(loss))
        blocks.append(block)
    ax.text(8.5, 1.7, "...", ha="center", va="center", color=INK)
    critic = box(ax, 13.6, 1.6, 3.0, 1.9, "critics estimate\nthe information that\nblocks share", PART)
    ax.text(15.1, 4.55, "critics maximise it,", ha="center", color=INK)
    ax.text(15.1, 4.1, "the encoder minimises it", ha="center", color=INK)
    arrow(ax, top(critic), (15.1, 4.0))
    for block, y in zip(blocks, (3.1, 2.55, 2.0), strict=True):
        x = block[0] + block[2] / 2
        edge = block[1] + block[3] if y > 3 else block[1]
        height = 5.15 if y > 3 else -0.15 if y < 2.3 else 1.55
        ax.plot([x, x, 13.15, 13.15], [edge, height, height, y], color=PALE, lw=1.1, ls="--")
        arrow(ax, (13.15, y), (13.6, y), dashed=True)


def egma(ax: Axes) -> None:
    """Patches and sentences, gaze between them, three losses."""
    image = box(ax, 0, 3.5, 2.2, 1.0, "image", INPUT)
    gaze = box(ax, 0, 2.0, 2.2, 1.0, "gaze", INPUT, dashed=True)
    text = box(ax, 0, 0.5, 2.2, 1.0, "dictated report", INPUT)
    patches = box(ax, 3.1, 3.5, 2.2, 1.0, "patches P", PART)
    maps = box(ax, 3.1, 2.0, 2.2, 1.0, "maps GS,\none a sentence", INPUT, dashed=True)
    sentences = box(ax, 3.1, 0.5, 2.2, 1.0, "sentences S", PART)
    for a, b in ((image, patches), (gaze, maps), (text, sentences)):
        arrow(ax, right(a), left(b), dashed=a is gaze)
    arrow(ax, (2.2, 1.2), (3.1, 2.2), dashed=True)
    similar = box(ax, 6.5, 2.0, 2.6, 1.4, "similarity of\nevery sentence with\nevery patch", OUTPUT)
    arrow(ax, right(patches), (6.5, 3.1))
    arrow(ax, right(sentences), (6.5, 2.3))
    terms = [
        box(ax, 10.5, 3.5, 5.2, 1.0, "labels: a sentence goes with the\npatches that were looked at", TERM),
        box(ax, 10.5, 2.0, 5.2, 1.0, "contrast: best patch of each sentence,\nbest sentence of each patch", TERM),
        box(
            ax, 10.5, 0.5, 5.2, 1.0, "mapping: patches from sentences, and\nback, weighted by similarity and gaze", TERM
        ),
    ]
    for term in terms:
        arrow(ax, right(similar), left(term))
    ax.plot([4.2, 4.2, 10.0, 10.0], [1.99, 1.7, 1.7, 3.7], color=PALE, lw=1.1, ls="--")
    arrow(ax, (10.0, 3.7), (10.5, 3.7), dashed=True)
    arrow(ax, (10.0, 1.7), (10.5, 1.1), dashed=True)


def baselines(ax: Axes) -> None:
    """At which place of the training each baseline acts."""
    stages = (
        ("samples", INPUT, "resampling\nreweighting"),
        ("encoder", PART, "adversarial\n(reversed gradient)"),
        ("embedding", OUTPUT, "EnD\nMDN"),
        ("a block for\neach factor", OUTPUT, "multi-task\ndCor, HSIC, MMD"),
        ("loss", TERM, "GroupDRO"),
    )
    before: Box | None = None
    for k, (name, fill, acting) in enumerate(stages):
        stage = box(ax, 3.1 * k, 1.7, 2.3, 1.1, name, fill, dashed=name.startswith("a block"))
        if before:
            arrow(ax, right(before), left(stage))
        method = box(ax, 3.1 * k - 0.15, 0, 2.6, 1.0, acting, "white")
        arrow(ax, top(method), bottom(stage), dashed=True)
        before = stage


DIAGRAMS: dict[str, tuple[Callable[[Axes], None], tuple[float, float], tuple[float, float]]] = {
    "erm": (erm, (-0.2, 13.1), (-0.2, 2.5)),
    "neurolip": (neurolip, (-0.2, 16.5), (0.3, 5.2)),
    "mimmx": (mimmx, (-0.2, 16.8), (-0.4, 5.4)),
    "egma": (egma, (-0.2, 15.9), (0.2, 4.8)),
    "baselines": (baselines, (-0.4, 15.1), (-0.2, 3.0)),
}
"""Name to how it is drawn, and the part of the plane to show."""


def draw(name: str, folder: Path) -> Path:
    """Write one diagram as SVG, with the same bytes each time."""
    diagram, across, up = DIAGRAMS[name]
    settings = {"font.size": 9, "svg.fonttype": "path", "svg.hashsalt": "medprism", "mathtext.fontset": "dejavusans"}
    with plt.rc_context(settings):
        scale = 0.58  # inches a unit
        figure = plt.figure(figsize=(scale * (across[1] - across[0]), scale * (up[1] - up[0])))
        ax = figure.add_axes((0, 0, 1, 1))
        ax.set(xlim=across, ylim=up)
        ax.axis("off")
        diagram(ax)
        path = folder / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor="white")
        plt.close(figure)
    return path


if __name__ == "__main__":
    for each in DIAGRAMS:
        print(draw(each, Path(__file__).parent))
