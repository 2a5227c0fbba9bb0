"""Grounding: whether a sentence looks at the place that its reader looked at, or that its box marks.

The map of a sentence is its cosine with every patch; the truth is brought down to the patches: a gaze map by averaging
over the area of each patch, a box to the patches whose centre it holds (or, without one, the patch that it covers
most). The region of a gaze map are the patches above half of its peak. The scores of one sentence are

- `pointing`: whether the highest patch lies in the region (the pointing game; Zhang et al., Top-down neural attention
  by excitation backprop, IJCV 2018);
- `iou`: intersection over union of the region of k patches with the k highest patches, so that no threshold is chosen;
- `cc`: correlation of the two maps; `nss`: mean of the standardised map, weighted by gaze; `auc`: area under the ROC of
  the map for the patches of the region against all others (after Judd). For gaze alone; see Bylinskii et al., What do
  different evaluation metrics tell us about saliency models?, PAMI 2019.

Where patches tie, `pointing` and the intersection are expectations over a random order of the tied ones: a constant map
is at chance. People look at the middle of an image whatever is said, so every score stands beside that of the centre
bias, one map for all sentences: the mean truth of the training readings, or a Gaussian in the centre.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from medprism.cohort import Batch
from medprism.distributed import gather_objects
from medprism.evaluation.averages import averages
from medprism.evaluation.decisions import ratio
from medprism.evaluation.predictions import Array
from medprism.evaluation.ranking import TIE
from medprism.evaluation.weighted import Path

Kind = Literal["gaze", "boxes"]

SCORES = ("pointing", "iou", "cc", "nss", "auc")
SHOWN: Mapping[Kind, tuple[str, ...]] = {"gaze": SCORES, "boxes": SCORES[:2]}
"""Which scores mean something: a box says where, not how much."""

WHAT: Mapping[Kind, str] = {"gaze": "sentences with gaze", "boxes": "phrases with a box"}

CENTRE_SIGMA = 0.25
"""Standard deviation of the centred Gaussian, as a share of the side."""


@dataclass(frozen=True)
class Grounded:
    """Scores of r sentences (or phrases) of some samples.

    Attributes:
        ids: r names of samples.
        subjects: r names of people.
        number: `(r,)` number of the sentence in its sample, from 1.
        scores: `(r, 5)` in the order of `SCORES`, NaN where undefined.
        truth: `(r, n)` float32 truth on the patches; zeros where there is none.
    """

    ids: list[str] = field(default_factory=list)
    subjects: list[str] = field(default_factory=list)
    number: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: Array = field(default_factory=lambda: np.zeros((0, len(SCORES))))
    truth: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def joined(cls, parts: Sequence[Grounded]) -> Grounded:
        """All rows of several parts."""
        parts = [part for part in parts if len(part)]
        if not parts:
            return cls()
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in ("number", "scores", "truth"))
        return cls(
            [name for part in parts for name in part.ids], [name for part in parts for name in part.subjects], *arrays
        )

    def take(self, rows: Sequence[int] | Array) -> Grounded:
        """The rows at some positions."""
        index = np.asarray(rows, dtype=np.int64)
        ids, subjects = ([each[row] for row in index] for each in (self.ids, self.subjects))
        return Grounded(ids, subjects, self.number[index], self.scores[index], self.truth[index])


def ground(
    kind: Kind, batch: Batch, subjects: Sequence[str], patches: Tensor, phrases: Tensor, grid: tuple[int, ...]
) -> Grounded:
    """Score every sentence of a batch that has gaze, or every phrase that has a box.

    Args:
        kind: what the truth is.
        batch: of B samples.
        subjects: B names of people.
        patches: `(B, n, d)` with unit length.
        phrases: `(B, M, d)` sentences, or phrases of the boxes, with unit length; zeros where there is none.
        grid: rows and columns of the patches.

    Raises:
        ValueError: when a map is not finite.
    """
    where, truth = truths(kind, batch, grid)
    if not len(where):
        return Grounded()
    sample, number = where.T
    given = number < phrases.shape[1]
    maps = np.zeros_like(truth)
    with torch.autocast(patches.device.type, enabled=False):
        cosines = torch.einsum("bmd,bnd->bmn", phrases.detach().float(), patches.detach().float()).cpu().numpy()
    maps[given] = cosines[sample[given], number[given]]
    length = phrases.detach().float().norm(dim=-1).cpu().numpy()
    given[given] = length[sample[given], number[given]] > 0
    if not np.isfinite(maps).all():
        row = int(np.argmin(np.isfinite(maps).all(axis=1)))
        raise ValueError(f"the patch map of sample '{batch['id'][sample[row]]}' is not finite: did training diverge?")
    scores = score(maps, truth)
    scores[~given] = np.nan
    ids = [batch["id"][b] for b in sample]
    return Grounded(ids, [subjects[b] for b in sample], number + 1, scores, truth)


def truths(kind: Kind, batch: Batch, grid: tuple[int, ...]) -> tuple[Array, Array]:
    """Where a batch says that its sentences are true.

    Args:
        kind: `gaze` of sentences, or `boxes` of phrases.
        batch: of B samples.
        grid: rows and columns of the patches.

    Returns:
        `(r, 2)` sample and sentence, and `(r, n)` float32 truth, which is 0 everywhere where nobody looked and where
        a box lies outside of the image.
    """
    size = int(np.prod(grid))
    if kind == "boxes":
        boxes = batch.get("boxes", [])
        where = [(b, k) for b, each in enumerate(boxes) for k in range(len(each))]
        found = [inside(boxes[b][k][1:], grid) for b, k in where]
        truth = np.array(found, dtype=np.float32).reshape(-1, size)
    elif "gaze" in batch and "sentences" in batch:
        known = batch["has_gaze"].tolist()
        where = [(b, s) for b, texts in enumerate(batch["sentences"]) if known[b] for s in range(len(texts))]
        index = torch.tensor(where, dtype=torch.long, device=batch["gaze"].device).reshape(-1, 2)
        truth = on_patches(batch["gaze"][index[:, 0], index[:, 1]].float(), grid).cpu().numpy()
    else:
        where, truth = [], np.zeros((0, size), np.float32)
    return np.array(where, dtype=np.int64).reshape(-1, 2), truth


def on_patches(maps: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Mean over the area of each patch, `(r, G, H)` to `(r, n)`, also where the sides are no multiples."""
    rows, columns = (
        _averaging(source, target).to(maps.device) for source, target in zip(maps.shape[1:], grid, strict=True)
    )
    with torch.autocast(maps.device.type, enabled=False):
        return torch.einsum("sgh,rg,ch->src", maps, rows, columns).flatten(1)


def inside(box: Sequence[float], grid: tuple[int, ...]) -> Array:
    """`(n,)` 1 for the patches whose centre a box holds, or the one that it covers most; 0 if it covers none.

    Args:
        box: left, top, right and bottom in shares of the image.
        grid: rows and columns of the patches.
    """
    left, top, right, bottom = box
    sides = []
    for low, high, cells in ((top, bottom, grid[0]), (left, right, grid[1])):
        edges = np.arange(cells + 1) / cells
        covered = np.clip(np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1]), 0, None)
        middle = (edges[1:] + edges[:-1]) / 2
        sides.append(((middle >= low) & (middle <= high), covered))
    held = np.outer(sides[0][0], sides[1][0])
    area = np.outer(sides[0][1], sides[1][1])
    if not held.any() and area.any():
        held.flat[area.argmax()] = True
    return held.reshape(-1).astype(np.float32)


def score(maps: Array, truth: Array) -> Array:
    """The scores of r maps, `(r, n)`, for r truths, `(r, n)`: `(r, 5)`, NaN where one is not defined."""
    from scipy.stats import rankdata

    maps, truth = np.asarray(maps, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    maps = np.where(np.ptp(maps, axis=1, keepdims=True) <= TIE, 0, maps)  # constant, up to rounding
    peak = truth.max(axis=1, keepdims=True)
    region = truth > peak / 2
    size, n = region.sum(axis=1), maps.shape[1]
    seen = peak[:, 0] > 0

    highest = maps >= maps.max(axis=1, keepdims=True) - TIE
    pointing = ratio((highest & region).sum(axis=1), highest.sum(axis=1))

    cut = np.take_along_axis(-np.sort(-maps, axis=1), np.maximum(size - 1, 0)[:, None], axis=1)
    above, level = maps > cut + TIE, np.abs(maps - cut) <= TIE
    share = ratio((level & region).sum(axis=1), level.sum(axis=1))
    common = (above & region).sum(axis=1) + (size - above.sum(axis=1)) * share
    iou = ratio(common, 2 * size - common)

    standard, gaze = (_standardised(each) for each in (maps, truth))
    cc = (standard * gaze).mean(axis=1)
    nss = ratio((standard * truth).sum(axis=1), truth.sum(axis=1))
    wins = np.where(region, rankdata(maps, axis=1), 0).sum(axis=1) - size * (size + 1) / 2
    auc = ratio(wins, size * (n - size))
    return np.where(seen[:, None], np.column_stack([pointing, iou, cc, nss, auc]), np.nan)


def centred(grid: tuple[int, ...]) -> Array:
    """`(n,)` Gaussian in the middle of the image."""
    sides = [np.exp(-(((np.arange(cells) + 0.5) / cells - 0.5) ** 2) / (2 * CENTRE_SIGMA**2)) for cells in grid]
    return np.outer(*sides).reshape(-1)


class CentreBias:
    """The mean truth of training readings on the patches, gathered over processes."""

    def __init__(self) -> None:
        self._sums: dict[Kind, tuple[Array, int]] = {}

    def add(self, batch: Batch, grid: tuple[int, ...]) -> None:
        """Take in a batch of training readings."""
        for kind in SHOWN:
            truth = truths(kind, batch, grid)[1]
            truth = truth[truth.max(axis=1, initial=0) > 0]
            if len(truth):
                # sums of whole numbers do not depend on their order, so on the number of processes
                whole = np.rint(truth.astype(np.float64) * 2**20).astype(np.int64).sum(axis=0)
                old, count = self._sums.get(kind, (np.zeros_like(whole), 0))
                self._sums[kind] = (old + whole, count + len(truth))

    def gather(self, grid: tuple[int, ...]) -> dict[Kind, tuple[Array, str]]:
        """For each kind of truth the map `(n,)` and where it is from, in words; every process must call it."""
        found: dict[Kind, tuple[Array, str]] = {}
        everybody = gather_objects(self._sums)
        for kind, what in WHAT.items():
            parts = [each[kind] for each in everybody if kind in each]
            count = sum(number for _, number in parts)
            if count:
                mean = np.sum([sums for sums, _ in parts], axis=0) / (count * 2**20)
                found[kind] = (mean, f"mean of {count} training {what}")
            else:
                found[kind] = (centred(grid), f"Gaussian in the centre, sigma {CENTRE_SIGMA} of the side")
        return found


def grounding(
    kind: Kind,
    rows: Grounded,
    centre: Array,
    centre_is: str,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Any], list[str]]:
    """Mean scores over sentences, beside those of the centre bias.

    Args:
        kind: what the truth is.
        rows: r sentences.
        centre: `(n,)` map of the centre bias.
        centre_is: where that map is from, in words.
        resamples: bootstrap resamples of subjects; 0 for no intervals.
        confidence: of the intervals.
        seed: of the resamples.

    Returns:
        The scores that `SHOWN` names, `centre_bias` and `above_centre_bias` (the paired difference) with the same
        ones, `centre_is`, and the numbers of sentences `n` and of `samples` and `subjects`. And sentences on what was
        left out.
    """
    seen = rows.truth.max(axis=1, initial=0) > 0
    given = ~np.isnan(rows.scores[:, 0]) & seen
    what = WHAT[kind]
    notes = []
    if not seen.all():
        why = "nobody looked" if kind == "gaze" else "the box lies outside of the image"
        notes.append(f"grounding: {int((~seen).sum())} of {len(rows)} {what}: {why}; left out")
    if (given != seen).any():
        notes.append(f"grounding: {int((seen & ~given).sum())} of {len(rows)} {what} have no vector; left out")
    rows = rows.take(np.flatnonzero(given))
    if not len(rows):
        return {}, [*notes, f"grounding: none of the {what} can be scored"]
    bias = centre_scores(rows, centre)
    columns = [SCORES.index(name) for name in SHOWN[kind]]
    scores: dict[Path, Array] = {}
    for column in columns:
        scores[SCORES[column],] = rows.scores[:, column]
        scores["centre_bias", SCORES[column]] = bias[:, column]
        scores["above_centre_bias", SCORES[column]] = rows.scores[:, column] - bias[:, column]
    lost = {SCORES[k]: int(np.isnan(rows.scores[:, k]).sum()) for k in columns}
    notes += [
        f"grounding: {name} is not defined for {count} of {len(rows)} {what} (a constant map or truth); left out"
        for name, count in lost.items()
        if count
    ]
    found: dict[str, Any] = {}
    for path, number in averages(scores, rows.subjects, resamples, confidence, seed).items():
        branch = found.setdefault(path[0], {}) if len(path) > 1 else found
        branch[path[-1]] = number
    people = {"n": len(rows), "samples": len(set(rows.ids)), "subjects": len(set(rows.subjects))}
    return {**found, "centre_is": centre_is, **people}, notes


def centre_scores(rows: Grounded, centre: Array) -> Array:
    """`(r, 5)` scores of one map for all sentences."""
    return score(np.broadcast_to(centre, rows.truth.shape), rows.truth)


def _averaging(source: int, target: int) -> Tensor:
    """`(target, source)` matrix that averages cells of one division of a line over those of another; rows sum to 1."""
    fine, coarse = torch.arange(source + 1) * target, torch.arange(target + 1) * source  # whole numbers: exact edges
    low = torch.maximum(fine[None, :-1], coarse[:-1, None])
    high = torch.minimum(fine[None, 1:], coarse[1:, None])
    return (high - low).clamp(min=0).float() / source


def _standardised(maps: Array) -> Array:
    """Each row with mean 0 and standard deviation 1; NaN where it is constant."""
    centred = maps - maps.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return ratio(centred, np.where(np.ptp(maps, axis=1, keepdims=True) > TIE, spread, 0))
