"""Figures of latent blocks: where samples lie, coloured by factor, and how well each block tells each factor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from medprism.cohort import UNKNOWN, Cohort, Factor
from medprism.explain.brain import GREY, LABEL, headed, save
from medprism.explain.regions import NothingToShow

Array = NDArray[Any]

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
"""Okabe and Ito's colours, safe for colour-blind readers; classes beyond them are drawn in grey as `other`."""

MOST_POINTS = 1000
"""Samples in an embedding; more, drawn at random, would only cover each other."""

MEASURES = {"knn": "30 nearest neighbours", "linear": "linear probe", "mlp": "nonlinear probe (MLP)"}


class Latents:
    """The latent blocks and labels of tested samples, collected a batch at a time."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.subjects: list[str] = []
        self.blocks: dict[str, list[Array]] = {}
        self.codes: dict[str, list[Array]] = {}

    def add(self, outputs: Any, cohort: Cohort) -> None:
        """Add what a test step returned; steps without blocks add nothing.

        Args:
            outputs: with `id`, `subject`, `blocks`, and `target` and `attributes` where they are known.
            cohort: names the factors.
        """
        if not isinstance(outputs, dict) or not outputs.get("blocks"):
            return
        self.ids += outputs["id"]
        self.subjects += outputs["subject"]
        for name, block in outputs["blocks"].items():
            self.blocks.setdefault(name, []).append(block.detach().float().cpu().numpy())
        codes = dict(outputs.get("attributes", {}))
        if cohort.target_kind == "classes" and "target" in outputs:
            codes = {cohort.target.name: outputs["target"], **codes}
        for name, values in codes.items():
            self.codes.setdefault(name, []).append(values.detach().cpu().numpy())

    @classmethod
    def merge(cls, parts: Sequence[Latents], only: Collection[str] | None = None) -> Latents:
        """The samples of all processes, sorted by id, each once.

        Args:
            parts: of each process; distributed samplers pad with copies.
            only: ids to keep; all when left out.
        """
        whole = cls()
        whole.ids = [name for part in parts for name in part.ids]
        whole.subjects = [name for part in parts for name in part.subjects]
        _, first = np.unique(np.array(whole.ids, dtype=object), return_index=True)
        kept = [row for row in first if only is None or whole.ids[row] in only]
        for own, name in ((whole.blocks, "blocks"), (whole.codes, "codes")):
            for key in next((getattr(part, name) for part in parts if part.ids), {}):
                own[key] = [np.concatenate([each for part in parts for each in getattr(part, name).get(key, [])])[kept]]
        whole.ids, whole.subjects = [whole.ids[row] for row in kept], [whole.subjects[row] for row in kept]
        return whole

    def block(self, name: str) -> Array:
        """`(n, d)` latent vectors."""
        return np.concatenate(self.blocks[name])

    def factor(self, name: str) -> Array:
        """`(n,)` class codes, -1 where unknown."""
        return np.concatenate(self.codes[name])


def latent_figures(
    latents: Latents, cohort: Cohort, where: str, found: Mapping[str, Any] | None
) -> Iterator[tuple[str, Callable[[Path], list[Path]]]]:
    """File stem and what draws it.

    Args:
        latents: samples to draw.
        cohort: names data and factors.
        where: which samples these are, such as `test set balanced`.
        found: the `latent` part of the evaluator's metrics, where it was measured.
    """

    def embeddings(path: Path, method: Literal["pca", "tsne"]) -> list[Path]:
        return save(embedding_figure(latents, cohort, where, method), path)

    def heat(path: Path) -> list[Path]:
        if not found:
            raise NothingToShow("the block x factor matrix was not measured; set --evaluator.latent true")
        return save(matrix_figure(found, cohort), path, vector=True)

    yield "latent_matrix", heat
    yield "latent_pca", partial(embeddings, method="pca")
    yield "latent_tsne", partial(embeddings, method="tsne")


def embed(x: Array, method: Literal["pca", "tsne"], seed: int = 0) -> tuple[Array, tuple[str, str]]:
    """`(n, 2)` places of n samples and the names of both axes.

    Args:
        x: `(n, d)` latent vectors. One or two dimensions are shown as they are by `pca`.
        method: principal components; or t-SNE (van der Maaten & Hinton, JMLR 2008), whose distances between clusters
            mean nothing.
        seed: of t-SNE.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "tsne":
        model = TSNE(2, perplexity=min(30.0, (len(x) - 1) / 3), init="random", max_iter=500, random_state=seed)
        return model.fit_transform(x), ("t-SNE 1", "t-SNE 2")
    if x.shape[1] == 1:
        return np.column_stack([x[:, 0], np.random.default_rng(seed).uniform(size=len(x))]), ("dimension 1", "(spread)")
    if x.shape[1] == 2:
        return x, ("dimension 1", "dimension 2")
    components = PCA(2)
    places = components.fit_transform(x)
    first, second = (f"PC {k + 1} ({100 * part:.0f} %)" for k, part in enumerate(components.explained_variance_ratio_))
    return places, (first, second)


def embedding_figure(
    latents: Latents, cohort: Cohort, where: str, method: Literal["pca", "tsne"] = "pca", seed: int = 0
) -> Figure:
    """One row a block, one column a factor: the same places, coloured by the classes of the factor.

    Raises:
        NothingToShow: when there are fewer than five samples, or no factor.
    """
    factors = [factor for factor in (cohort.target, *cohort.attributes) if factor.name in latents.codes]
    rows = np.arange(len(latents.ids))
    if len(rows) < 5 or not factors:
        raise NothingToShow(f"an embedding needs five samples with blocks and a factor; {where} has {len(rows)}")
    shuffled = np.random.default_rng(seed).permutation(rows)[:MOST_POINTS]  # no class covers the others
    figure = Figure(figsize=(1 + 3.2 * len(factors), 1.4 + 3.1 * len(latents.blocks)), layout="constrained")
    grid = figure.subplots(len(latents.blocks), len(factors), squeeze=False)
    for line, block in zip(grid, latents.blocks, strict=True):
        places, names = embed(latents.block(block)[shuffled], method, seed)
        for axes, factor in zip(line, factors, strict=True):
            _scatter(axes, places, latents.factor(factor.name)[shuffled], factor)
            axes.set_xlabel(names[0], fontsize=LABEL - 1)
            axes.set_ylabel(names[1], fontsize=LABEL - 1)
            axes.set_title(f"block {block}, by {factor.name}", fontsize=LABEL)
    called = {"pca": "principal components", "tsne": "t-SNE"}[method]
    drawn = f"{len(shuffled)} of {len(rows)}" if len(shuffled) < len(rows) else str(len(rows))
    what = f"Latent blocks by {called}, coloured by factor ({where}, {drawn} samples)"
    headed(figure, cohort, what, len(set(latents.subjects)))
    for axes in figure.axes:
        axes.tick_params(labelsize=LABEL - 3)
    return figure


def matrix_figure(found: Mapping[str, Any], cohort: Cohort) -> Figure:
    """The block x factor matrix as heat maps, one a measure.

    Numbers are balanced accuracies; colours say how far they are from chance (0) to no error (1), as chance depends
    on the number of classes. A frame marks a block's own factor.

    Args:
        found: the `latent` part of the evaluator's metrics.
        cohort: names data and factors.

    Raises:
        NothingToShow: when nothing was measured.
    """
    blocks = [block for block, row in found["matrix"].items() if row]
    factors = [factor.name for factor in (cohort.target, *cohort.attributes)]
    factors = [name for name in factors if any(name in found["matrix"][block] for block in blocks)]
    if not blocks:
        raise NothingToShow("no block could be probed for any factor")
    cell = max(1.15, 1.9 - 0.2 * len(factors))
    figure = Figure(
        figsize=(2.2 + len(MEASURES) * (cell * len(factors) + 0.7), 2.9 + 0.8 * len(blocks)), layout="constrained"
    )
    grid = figure.subplots(1, len(MEASURES), squeeze=False)[0]
    scale = ScalarMappable(Normalize(0, 1), "viridis")
    for axes, (measure, title) in zip(grid, MEASURES.items(), strict=True):
        for i, block in enumerate(blocks):
            for j, factor in enumerate(factors):
                number = found["matrix"][block].get(factor, {}).get(measure)
                _cell(axes, (j, i), number)
                if found["own"].get(block) == factor:
                    axes.add_patch(Rectangle((j - 0.47, i - 0.46), 0.94, 0.92, fill=False, edgecolor="#D55E00", lw=3))
        axes.set(xlim=(-0.5, len(factors) - 0.5), ylim=(len(blocks) - 0.5, -0.5))
        axes.set_xticks(range(len(factors)), [_with_chance(found, name, measure) for name in factors])
        axes.set_yticks(
            range(len(blocks)), [f"block {block}" for block in blocks] if axes is grid[0] else [""] * len(blocks)
        )
        axes.tick_params(left=axes is grid[0])
        value = found["dominance"][measure]["value"]
        axes.set_title(title + ("" if value is None else f"\ndiagonal dominance {value:.2f}"), fontsize=LABEL, pad=8)
    bar = figure.colorbar(scale, ax=list(grid), shrink=0.9)
    bar.set_label("from chance (0)\nto no error (1)", fontsize=LABEL)
    where = "whole test" if found["set"] == "test" else f"test set {found['set']}"
    what = f"Balanced accuracy with which each block tells each factor ({where}, {found['n']} samples)"
    headed(figure, cohort, what, found["subjects"])
    return figure


def _with_chance(found: Mapping[str, Any], factor: str, measure: str) -> str:
    entries = [row.get(factor, {}).get(measure) for row in found["matrix"].values()]
    chance = sorted({f"{entry['chance']:.2f}" for entry in entries if entry})
    return f"{factor}\n(chance {', '.join(chance)})" if chance else factor


def _cell(axes: Axes, place: tuple[int, int], number: Mapping[str, float] | None) -> None:
    x, y = place
    text, colour, dark = "-", "#EEEEEE", False
    if number is not None:
        above = np.clip((number["value"] - number["chance"]) / (1 - number["chance"]), 0, 1)
        text, dark = f"{number['value']:.2f}", bool(above < 0.55)
        colour = to_hex(ScalarMappable(Normalize(0, 1), "viridis").to_rgba(np.array([above]))[0])
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white"))
    axes.text(x, y, text, ha="center", va="center", fontsize=LABEL + 1, color="white" if dark else "black")


def _scatter(axes: Axes, places: Array, codes: Array, factor: Factor) -> None:
    counts = np.bincount(codes[codes != UNKNOWN], minlength=len(factor.classes))
    shown = sorted(np.argsort(-counts, kind="stable")[: len(PALETTE)].tolist())
    colours = {code: PALETTE[k] for k, code in enumerate(shown)}
    other = ~np.isin(codes, shown)
    dots = [colours.get(code, GREY) for code in codes.tolist()]
    axes.scatter(places[:, 0], places[:, 1], s=9, linewidth=0, alpha=0.75, c=dots)
    names = [(factor.classes[code], colours[code]) for code in shown if counts[code]]
    names += [("unknown or other", GREY)] if other.any() else []
    handles = [axes.scatter([], [], s=30, linewidth=0, color=colour, label=name) for name, colour in names]
    axes.legend(handles=handles, fontsize=LABEL - 3, loc="upper right", framealpha=0.7)
