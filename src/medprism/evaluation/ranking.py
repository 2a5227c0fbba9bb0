"""Ranking a gallery by cosine similarity, for many queries, where nothing depends on an accident of order.

Where similarities tie, every number is the expectation over a random order of the tied ones, and a rank is an expected
rank: a method that gives everybody the same vector is at chance. A gallery item may stand for several samples, such as
a text that was written of several images. Queries are compared in chunks, so that memory grows with the gallery alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from medprism.evaluation.decisions import ratio
from medprism.evaluation.predictions import Array
from medprism.evaluation.weighted import Path

DEPTHS = (1, 5, 10)
"""The numbers k of the first results that are looked at."""

CHUNK = 512
"""Queries that are compared with all of a gallery at once."""

TIE = 1e-6
"""Cosines that are no farther apart are tied: float32 has hardly more digits, and rounding must not order equals."""


class Ranks(NamedTuple):
    """Where the best right item of each of q queries stands; `(q,)` each.

    Attributes:
        before: samples that are more similar than it.
        tied: wrong samples that are as similar.
        right: right samples that are as similar.
    """

    before: Array
    tied: Array
    right: Array

    @property
    def expected(self) -> Array:
        """`(q,)` expected rank, from 1, of the first right sample."""
        rank: Array = self.before + (self.tied + self.right + 1) / (self.right + 1)
        return rank

    @property
    def reciprocal(self) -> Array:
        """`(q,)` expectation of 1 / rank of the first right sample."""
        cases, which = np.unique(np.column_stack(self), axis=0, return_inverse=True)
        return np.array([_reciprocal(*case) for case in cases])[which.reshape(-1)]

    def recall(self, depth: int) -> Array:
        """`(q,)` probability that a right sample is among the first `depth`."""
        missed = np.ones(len(self.before))
        for drawn in range(depth):  # from the tied ones, without replacement, as long as there is room
            room = self.before + drawn < depth
            miss = np.maximum(self.tied - drawn, 0) / np.maximum(self.tied + self.right - drawn, 1)
            missed *= np.where(room, miss, 1)
        return 1 - missed


def ranks(queries: Array, gallery: Array, query_keys: Array, gallery_keys: Array, weight: Array) -> Ranks:
    """Rank a gallery for every query; right are the items with the query's key, at least one for each.

    Args:
        queries: `(q, d)`.
        gallery: `(m, d)`.
        query_keys: `(q,)` codes.
        gallery_keys: `(m,)` codes.
        weight: `(m,)` how many samples each item stands for.
    """
    items, weights = _unit(gallery), torch.from_numpy(weight).float()
    order = np.argsort(gallery_keys, kind="stable")
    first, last = (np.searchsorted(gallery_keys[order], query_keys, side=side) for side in ("left", "right"))
    parts = []
    for rows in _chunks(len(queries)):
        similar = _unit(queries[rows]) @ items.T
        counts = last[rows] - first[rows]
        query = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
        steps = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        item = torch.from_numpy(order[np.repeat(first[rows], counts) + steps])  # the right items of each query
        to_right = similar[query, item]
        best = torch.full((len(counts),), -torch.inf).scatter_reduce(0, query, to_right, "amax")
        level = torch.where(to_right >= best[query] - TIE, weights[item], 0)
        right = torch.zeros(len(counts)).scatter_add(0, query, level)
        masks = (similar > (best + TIE)[:, None], similar >= (best - TIE)[:, None])
        before, reached = (mask.float() @ weights for mask in masks)
        parts.append((before, reached - before - right, right))
    return Ranks(*(torch.cat(each).double().numpy() for each in zip(*parts, strict=True)))


def precision(queries: Array, gallery: Array, classes: Array, mass: Array) -> Array:
    """Share of the first k samples that have the query's class.

    Args:
        queries: `(q, d)`.
        gallery: `(m, d)`.
        classes: `(q,)` class of each query.
        mass: `(m, C)` samples of each class that an item stands for; at least one an item.

    Returns:
        `(q, depths)`; NaN at depths that the gallery does not have.
    """
    items, of_class = _unit(gallery), torch.from_numpy(mass).float()
    weight = of_class.sum(dim=1)
    found = np.full((len(queries), len(DEPTHS)), np.nan)
    for rows in _chunks(len(queries)):
        similar = _unit(queries[rows]) @ items.T
        top, index = similar.topk(min(max(DEPTHS) + 1, len(items)), dim=1)
        reached, near = weight[index].cumsum(dim=1), of_class[index]
        own = torch.from_numpy(classes[rows])[:, None]
        for column, depth in enumerate(DEPTHS):
            if depth > weight.sum():
                continue
            cut = top.gather(1, (reached < depth).sum(dim=1, keepdim=True))
            above, level = (_masked(mask, near) for mask in (top > cut + TIE, (top - cut).abs() <= TIE))
            wide = (top[:, -1] >= cut[:, 0] - TIE).nonzero()[:, 0]  # ties may go on behind those looked at
            level[wide] = ((similar[wide] - cut[wide]).abs_() <= TIE).float() @ of_class
            share = level.gather(1, own) / level.sum(dim=1, keepdim=True)
            hits = above.gather(1, own) + (depth - above.sum(dim=1, keepdim=True)) * share
            found[rows, column] = (hits[:, 0].double() / depth).numpy()
    return found


class QueryPrecision:
    """Mean over queries of the share of their class among the first k images, for many resamples of people.

    Args:
        queries: `(q, d)`.
        images: `(m, d)`.
        query_classes: `(q,)`.
        image_classes: `(m,)`.
        subjects: `(m,)` subject codes of the images.
    """

    def __init__(
        self, queries: Array, images: Array, query_classes: Array, image_classes: Array, subjects: Array
    ) -> None:
        self.subjects = subjects
        similar = (_unit(queries) @ _unit(images).T).numpy()
        self.orders = np.argsort(-similar, axis=1, kind="stable")
        levels = np.take_along_axis(similar, self.orders, axis=1)
        self.last = np.column_stack([levels[:, :-1] - levels[:, 1:] > TIE, np.ones(len(levels), dtype=bool)])
        self.right = image_classes[self.orders] == query_classes[:, None]

    def __call__(self, counts: Array) -> dict[Path, Array]:
        """`(B, S)` counts to named `(B,)` values; NaN where a resample has fewer images than k."""
        found = np.mean([self._of(query, counts) for query in range(len(self.orders))], axis=0)
        return {(f"precision_at_{depth}",): found[:, column] for column, depth in enumerate(DEPTHS)}

    def _of(self, query: int, counts: Array) -> Array:
        """`(B, depths)` of one query."""
        order, last, right = self.orders[query], self.last[query], self.right[query]
        found = np.full((len(counts), len(DEPTHS)), np.nan)
        # a resample hardly ever lacks all of so many images; where one does, all are looked at
        for length in sorted({min(20 * max(DEPTHS), len(order)), len(order)}):
            stop = length + int(np.argmax(last[length - 1 :]))  # to the end of those that tie with the last one
            ends = np.flatnonzero(last[:stop])
            weights = counts.take(self.subjects[order[:stop]], axis=1).astype(np.float64)
            total, hits = (np.cumsum(each, axis=1)[:, ends] for each in (weights, weights * right[:stop]))
            for column, depth in enumerate(DEPTHS):
                at = (total < depth).sum(axis=1)
                rows = np.flatnonzero(at < len(ends))
                here = at[rows]
                seen, old = (np.where(here > 0, each[rows, here - 1], 0) for each in (total, hits))
                share = ratio(hits[rows, here] - old, total[rows, here] - seen)
                found[rows, column] = (old + (depth - seen) * share) / depth
            if not np.isnan(found).any():
                break
        return found


def _reciprocal(before: float, tied: float, right: float) -> float:
    """Expectation of 1 / rank of the first of `right` samples among `tied` wrong ones, in a random order."""
    passed = np.arange(tied + 1)
    missed = np.concatenate([[1.0], np.cumprod((tied - passed) / (tied + right - passed))])
    return float((-np.diff(missed) / (before + passed + 1)).sum())


def _masked(mask: Tensor, mass: Tensor) -> Tensor:
    """`(q, C)` sums over the K items that a `(q, K)` mask picks from `(q, K, C)`."""
    return torch.einsum("qk,qkc->qc", mask.float(), mass)


def _unit(vectors: Array) -> Tensor:
    found: Tensor = torch.nn.functional.normalize(torch.from_numpy(np.asarray(vectors, dtype=np.float32)), dim=-1)
    return found


def _chunks(n: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK)]
