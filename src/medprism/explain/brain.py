"""Figures of attention maps on the brain, with nilearn and matplotlib.

Figures are built without pyplot, so they need no display and change no global state. Weights are drawn as multiples
of uniform attention (weight times N): 1 is what every region would get from a method without preference. Colours are
safe for colour-blind readers (viridis, blue-to-red, Okabe and Ito's palette).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize, to_hex
from matplotlib.figure import Figure
from torch import Tensor

from medprism.cohort import Cohort, Factor
from medprism.explain.regions import overlap, region_name, top_regions

LABEL = 11
"""Font size of labels in points; titles are larger by 2, ticks smaller by 1."""

BLUE, VERMILLION, PURPLE, GREY = "#0072B2", "#D55E00", "#CC79A7", "#8C8C8C"

DPI = 150

Drawing = tuple[str, Callable[[Path], Iterable[Path]]]
"""File stem of a figure, and what writes files that begin with it."""

FAINT = 0.05
"""Volumes leave regions below this share of the maximum unpainted, so that the anatomy shows."""


@dataclass(frozen=True)
class Panel:
    """One map to draw.

    Attributes:
        label: what the map belongs to, such as `“autism spectrum disorder”, n = 80 subjects`.
        values: `(N,)` attention weights, or a difference of them.
    """

    label: str
    values: Tensor


def phrase_of(factor: Factor, code: int) -> str:
    """The class in words: its first phrase in quotes, and its name where that says something else."""
    name, phrase = factor.classes[code], factor.phrases[code][0]
    return f"“{phrase}”" if name.lower() == phrase.lower() else f"“{phrase}” ({name})"


def heading(cohort: Cohort, what: str, subjects: int) -> str:
    """Two lines: the cohort, whether it is simulated, the number of subjects; and what is shown."""
    simulated = ", simulated data" if cohort.simulated else ""
    return f"{cohort.name}{simulated}, n = {subjects} subject{'s' * (subjects != 1)}\n{what}"


def headed(figure: Figure, cohort: Cohort, what: str, subjects: int) -> None:
    """Set the title that every figure has, and the size of the tick labels."""
    # 13 point letters are about a ninth of an inch wide; a longer line would leave the figure.
    lines = [fill(line, int(9 * figure.get_figwidth())) for line in heading(cohort, what, subjects).split("\n")]
    # A layout engine makes room for the title only while its place is the default.
    place = {} if figure.get_layout_engine() else {"y": 1 - 0.12 / figure.get_figheight()}
    figure.suptitle("\n".join(lines), fontsize=LABEL + 2, va="top", **place)
    for axes in figure.axes:
        axes.tick_params(labelsize=LABEL - 1)


def save(figure: Figure, path: Path, *, vector: bool = False) -> list[Path]:
    """Write `<path>.png` (150 dpi), with `vector` also `<path>.svg`; returns what was written."""
    paths = [path.with_name(f"{path.name}.{kind}") for kind in (["png", "svg"] if vector else ["png"])]
    with matplotlib.rc_context({"svg.fonttype": "none"}):  # text stays text, to search and to edit
        for each in paths:
            figure.savefig(each, dpi=DPI)
    return paths


def slug(name: str) -> str:
    """A name as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_").lower() or "unnamed"


def glass_brain(
    panels: Sequence[Panel], cohort: Cohort, what: str, subjects: int, *, diverging: bool = False
) -> Figure:
    """One row of glass brains a panel (left, top, right, back), all on one colour scale.

    A region is a marker whose colour shows its weight, and whose area grows with its square. Lateral views show their
    own hemisphere.

    Args:
        panels: maps to draw, from top to bottom.
        cohort: names the data and places the regions.
        what: second line of the title.
        subjects: number of subjects behind the figure.
        diverging: for differences: a colour scale symmetric about 0.

    Raises:
        ValueError: when the cohort has no coordinates.
    """
    height = 3.3 * len(panels) + 1.0
    figure = Figure(figsize=(12, height))
    scale = _scale([panel.values for panel in panels], diverging)
    for row, panel in enumerate(panels):
        top = 1 - (1.0 + 3.3 * row) / height
        figure.text(0.02, top, panel.label, fontsize=LABEL + 1, va="center")
        _markers(figure.add_axes((0.01, top - 3.0 / height, 0.86, 2.85 / height)), panel.values, cohort, scale)
    bar_height = min(3.0, height - 1.7) / height
    bar = figure.add_axes((0.91, (1 - 0.8 / height - bar_height) / 2, 0.014, bar_height))
    figure.colorbar(scale, cax=bar).set_label(_unit(cohort, diverging, "\n"), fontsize=LABEL)
    headed(figure, cohort, what, subjects)
    return figure


def bars(panels: Sequence[Panel], cohort: Cohort, what: str, subjects: int, *, top: int = 20) -> Figure:
    """Ranked bar chart of the leading regions with their names and numbers, one panel a map, two panels a row.

    Bars of a difference point left in blue where it is negative. A dotted line marks uniform attention.
    """
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    shown = min(top, cohort.input_shape[0])
    figure = Figure(figsize=(2.5 + 5.6 * columns, 1 + rows * (1.1 + 0.27 * shown)), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        table = top_regions(panel.values, cohort, top)
        signed = bool((panel.values < 0).any())
        ratio = table["ratio_to_uniform"].to_numpy()
        axes.barh(table["rank"], ratio, color=np.where(ratio < 0, BLUE, VERMILLION if signed else BLUE).tolist())
        names = [f"{_shorten(name)} [{region}]" for name, region in zip(table["name"], table["region"], strict=True)]
        axes.set_yticks(table["rank"], names)
        axes.set_ylim(shown + 0.7, 0.3)
        axes.axvline(0 if signed else 1, color=GREY, linestyle=":", linewidth=1.2)
        axes.set_xlabel(_unit(cohort, signed), fontsize=LABEL)
        axes.set_title(fill(panel.label, 56), fontsize=LABEL)
        axes.spines[["top", "right"]].set_visible(False)
    headed(figure, cohort, what, subjects)
    return figure


def overlap_figure(a: Panel, b: Panel, cohort: Cohort, what: str, subjects: int, *, top: int = 20) -> Figure:
    """Two maps against each other region by region, beside their glass brains, with the numbers of `overlap`.

    Args:
        a: the first map (horizontal), usually of the disease.
        b: the second map (vertical), usually of a sensitive attribute.
        cohort: names the data; without coordinates the scatter stands alone.
        what: second line of the title.
        subjects: number of subjects behind the figure.
        top: number of leading regions that are marked and compared by Dice.
    """
    placed = bool(cohort.coordinates)
    figure = Figure(figsize=(14 if placed else 7.5, 6.6))
    axes = figure.add_axes((0.06, 0.12, 0.36, 0.64) if placed else (0.13, 0.12, 0.82, 0.68))
    n = len(a.values)
    top = min(top, n)
    x, y = (panel.values.numpy(force=True) * n for panel in (a, b))
    leads = [np.isin(np.arange(n), torch.argsort(p.values, descending=True, stable=True)[:top]) for p in (a, b)]
    for mask, colour, marker, name in (
        (~leads[0] & ~leads[1], GREY, ".", "neither"),
        (leads[0] & ~leads[1], VERMILLION, "^", "only the horizontal map"),
        (~leads[0] & leads[1], BLUE, "v", "only the vertical map"),
        (leads[0] & leads[1], PURPLE, "D", "both"),
    ):
        axes.scatter(x[mask], y[mask], c=colour, marker=marker, s=36, label=f"{name} ({mask.sum()})")
    axes.set_xlabel(f"{fill(a.label, 60)}\nrelative to uniform", fontsize=LABEL)
    axes.set_ylabel(f"{fill(b.label, 60)}\nrelative to uniform", fontsize=LABEL)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title=f"among the top {top} of", fontsize=LABEL - 2, title_fontsize=LABEL - 2)
    numbers = overlap(a.values, b.values, top)
    axes.set_title(
        f"cosine {numbers['cosine']:.2f}   Jensen-Shannon similarity {numbers['jensen_shannon']:.2f}\n"
        f"Dice of the top {top}: {numbers['dice']:.2f} (unrelated maps: {top / n:.2f})",
        fontsize=LABEL,
    )
    if placed:
        scale = _scale([a.values, b.values], diverging=False)
        for panel, bottom in ((a, 0.46), (b, 0.04)):
            figure.text(0.46, bottom + 0.38, panel.label, fontsize=LABEL)
            _markers(figure.add_axes((0.45, bottom, 0.46, 0.36)), panel.values, cohort, scale, views="lzr")
        bar = figure.add_axes((0.935, 0.2, 0.012, 0.46))
        figure.colorbar(scale, cax=bar).set_label(_unit(cohort, False, "\n"), fontsize=LABEL)
    headed(figure, cohort, what, subjects)
    return figure


def interactive(
    panel: Panel, cohort: Cohort, what: str, subjects: int, *, diverging: bool = False, top: int = 10
) -> str:
    """A page with a brain to turn by hand, in one file that needs no network; the leading regions are named.

    nilearn puts its scripts and the brain surface into the page itself. Its icon is the one link to the outside, and
    is taken out; the title and a colour scale, which nilearn's markers lack, are put in.
    """
    from nilearn.plotting import view_markers

    scale = _scale([panel.values], diverging)
    values, size = _sized(panel.values, scale, smallest=3.0, largest=14.0)
    table = top_regions(panel.values, cohort, top)
    leading = set(table["region"])
    view: Any = view_markers(
        np.array(cohort.coordinates),
        marker_color=[to_hex(colour) for colour in scale.to_rgba(values)],
        marker_size=size.tolist(),
        marker_labels=[
            escape(f"{region_name(cohort, index)} [{index + 1}]") if index + 1 in leading else ""
            for index in range(len(values))
        ],
    )
    page: str = re.sub(r'<link rel="icon".*?>', "", view.get_standalone(), flags=re.DOTALL)
    first, second = heading(cohort, what, subjects).split("\n", 1)
    stops = ", ".join(to_hex(scale.cmap(step)) for step in np.linspace(0, 1, 9))
    low, high = scale.norm.vmin or 0.0, scale.norm.vmax or 1.0
    header = (
        '<body style="font-family: sans-serif; margin: 0; overflow-x: hidden"><header style="padding: 16px">'
        '<h2 style="margin: 0; font-size: 20px">'
        f'{escape(first)}</h2><p style="margin: 4px 0; font-size: 16px">{escape(second)}: {escape(panel.label)}. '
        f"Names mark the {len(leading)} leading regions; the grey surface is the cortex only.</p>"
        f'<div style="font-size: 14px">{low:.2g} <span style="display: inline-block; width: 240px; height: 12px; '
        f'background: linear-gradient(to right, {stops})"></span> {high:.2g} &nbsp; '
        f"{escape(_unit(cohort, diverging))}</div></header>"
    )
    page = page.replace("<title>Nilearn - Connectome plot</title>", f"<title>{escape(first)}</title>")
    return page.replace("<body>", header, 1)


def volume(
    panel: Panel, cohort: Cohort, what: str, subjects: int, atlas_image: Path, *, diverging: bool = False
) -> Figure:
    """The map painted into the voxels of an atlas, on axial slices of the MNI template.

    Args:
        panel: the map to draw.
        cohort: names the data.
        what: second line of the title.
        subjects: number of subjects behind the figure.
        atlas_image: NIfTI label image in MNI space; label i is the i-th region of the cohort, 0 is background.
        diverging: for differences: a colour scale symmetric about 0.

    Raises:
        ValueError: when the labels of the image are not 1 to N.
    """
    import nibabel
    from nilearn.plotting import plot_stat_map

    atlas = nibabel.load(atlas_image)
    labels = np.rint(np.asarray(atlas.dataobj)).astype(int)
    n = len(panel.values)
    if set(np.unique(labels)) - {0} != set(range(1, n + 1)):
        raise ValueError(
            f"{atlas_image} has {len(np.unique(labels[labels != 0]))} labels up to {labels.max()}; expected the labels "
            f"1 to {n} in the order of the regions of '{cohort.name}'. Give the label image of the same atlas"
        )
    painted = np.concatenate([[0.0], panel.values.numpy(force=True) * n])[labels]
    scale = _scale([panel.values], diverging)
    figure = Figure(figsize=(13, 3.9))
    plot_stat_map(
        nibabel.Nifti1Image(painted, atlas.affine),
        display_mode="z",
        cut_coords=[-36, -18, -4, 10, 24, 40, 56],
        axes=figure.add_axes((0.01, 0.03, 0.89, 0.7)),
        cmap=scale.cmap,
        vmin=scale.norm.vmin,
        vmax=scale.norm.vmax,
        symmetric_cbar=diverging,
        resampling_interpolation="nearest",
        colorbar=False,
        black_bg=False,
        threshold=FAINT * float(np.abs(painted).max()),
    )
    figure.text(
        0.02, 0.76, f"{panel.label}; below {FAINT:.0%} of the maximum not painted; z in mm (MNI)", fontsize=LABEL
    )
    bar = figure.add_axes((0.92, 0.1, 0.012, 0.6))
    figure.colorbar(scale, cax=bar).set_label(_unit(cohort, diverging, "\n"), fontsize=LABEL)
    headed(figure, cohort, what, subjects)
    return figure


def _markers(axes: Axes, values: Tensor, cohort: Cohort, scale: ScalarMappable, views: str = "lzry") -> None:
    if not cohort.coordinates:
        raise ValueError(f"cohort '{cohort.name}' has no coordinates of its regions; use `bars`, which needs none")
    from nilearn.plotting import plot_markers

    ratios, size = _sized(values, scale, smallest=5.0, largest=130.0)
    order = np.argsort(np.abs(ratios))  # the strongest are drawn last, on top
    plot_markers(
        ratios[order],
        np.array(cohort.coordinates)[order],
        node_size=size[order],
        node_cmap=scale.cmap,
        node_vmin=scale.norm.vmin,
        node_vmax=scale.norm.vmax,
        node_kwargs={"edgecolors": "#555555", "linewidths": 0.4},
        alpha=0.85,
        display_mode=views,
        axes=axes,
        colorbar=False,
    )


def _sized(values: Tensor, scale: ScalarMappable, smallest: float, largest: float) -> tuple[Any, Any]:
    """Multiples of uniform attention, and marker sizes that grow with their squares, so that what leads stands out."""
    ratios = values.numpy(force=True) * len(values)
    return ratios, smallest + (largest - smallest) * (ratios / (scale.norm.vmax or 1.0)) ** 2


def _scale(maps: Sequence[Tensor], diverging: bool) -> ScalarMappable:
    """A colour scale for all maps: from 0 to their maximum, or symmetric about 0."""
    largest = max(float(values.abs().max()) * len(values) for values in maps) or 1.0
    colours: Colormap = matplotlib.colormaps["RdBu_r" if diverging else "viridis_r"]
    return ScalarMappable(Normalize(-largest if diverging else 0.0, largest), colours)


def _unit(cohort: Cohort, diverging: bool, space: str = " ") -> str:
    what = "attention difference" if diverging else "attention"
    return f"{what}{space}relative to uniform (1/{cohort.input_shape[0]})"


def _shorten(name: str, longest: int = 34) -> str:
    return name if len(name) <= longest else name[: longest - 1] + "…"
