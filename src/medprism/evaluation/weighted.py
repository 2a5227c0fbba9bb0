"""Metrics of many resamples at once: a resample is a vector of how often each subject was drawn.

Nothing is sorted per resample. Scores are sorted once; the AUROC of every resample then needs one
cumulative sum of its counts (O(n log n + B n) for B resamples), and threshold metrics need the counts of a few cells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from medprism.evaluation.cells import CellAccuracy, Cells
from medprism.evaluation.decisions import Bools, Counts, Decisions, Groups, distinct_rows, mean, ratio
from medprism.evaluation.predictions import Array

Path = tuple[str, ...]
"""Where a number stands in the nested metrics, such as `("sex", "groups", "female", "auroc")`."""

Statistic = Callable[[Array], dict[Path, Array]]
"""From `(B, S)` counts of S subjects in B resamples to named `(B,)` values, NaN where a resample defines none."""

CALIBRATION_BINS = 15


def subject_codes(subjects: Sequence[str]) -> tuple[Array, list[str]]:
    """The number of the subject of each sample, `(n,)`, and the sorted distinct subjects."""
    names = sorted(set(subjects))
    code = {name: k for k, name in enumerate(names)}
    return np.array([code[name] for name in subjects], dtype=np.int64), names


class GroupedAuroc:
    """Weighted AUROC within each group, ties counted half (Mann-Whitney).

    With the negatives of a group sorted by score and C the cumulative sum of their weights,
    AUROC = sum over positives i of w_i (C[below i] + C[below or tied with i]) / 2, over (sum w_i)(sum of negatives).

    Args:
        scores: `(n,)`.
        positives: `(n,)`.
        negatives: `(n,)`.
        groups: `(n,)` codes from 0 to `count` - 1; -1 leaves a sample out.
        count: number of groups G.
        subjects: `(n,)` subject codes.
    """

    def __init__(
        self, scores: Array, positives: Bools, negatives: Bools, groups: Array, count: int, subjects: Array
    ) -> None:
        self.count = count
        both = [g for g in range(count) if (groups[positives] == g).any() and (groups[negatives] == g).any()]
        self.groups = np.array(both, dtype=np.int64)
        distinct, levels = np.unique(scores, return_inverse=True)
        keys = groups * len(distinct) + levels  # orders by group, then by score
        eligible = np.isin(groups, self.groups)
        pos, neg = np.flatnonzero(positives & eligible), np.flatnonzero(negatives & eligible)
        pos, neg = pos[np.argsort(keys[pos], kind="stable")], neg[np.argsort(keys[neg], kind="stable")]
        self.pos, self.neg = subjects[pos], subjects[neg]
        self.below = np.searchsorted(keys[neg], keys[pos], side="left")
        self.tied = np.searchsorted(keys[neg], keys[pos], side="right")
        self.pos_start = np.searchsorted(groups[pos], self.groups, side="left")
        self.neg_start = np.searchsorted(groups[neg], self.groups, side="left")
        self.neg_stop = np.searchsorted(groups[neg], self.groups, side="right")

    def __call__(self, counts: Array) -> Array:
        """`(B, S)` counts to `(B, G)` values, NaN where a group has no positive or no negative."""
        values = np.full((len(counts), self.count), np.nan)
        if not len(self.groups):
            return values
        cumulative = np.zeros((len(counts), len(self.neg) + 1), counts.dtype)
        np.cumsum(counts.take(self.neg, axis=1), axis=1, out=cumulative[:, 1:])
        weights = counts.take(self.pos, axis=1)
        ranked = cumulative.take(self.below, axis=1)
        ranked += cumulative.take(self.tied, axis=1)
        wins = np.add.reduceat(np.multiply(ranked, weights, dtype=np.float64), self.pos_start, axis=1) / 2
        positives = np.add.reduceat(weights, self.pos_start, axis=1).astype(np.float64)
        before = cumulative[:, self.neg_start]
        negatives = cumulative[:, self.neg_stop] - before
        values[:, self.groups] = ratio(wins - positives * before, positives * negatives)
        return values


class AveragePrecision:
    """Weighted average precision: sum over thresholds of precision times the gain in recall, ties taken together.

    Args:
        scores: `(n,)`.
        positives: `(n,)`.
        negatives: `(n,)`.
        subjects: `(n,)` subject codes.
    """

    def __init__(self, scores: Array, positives: Bools, negatives: Bools, subjects: Array) -> None:
        rows = np.flatnonzero(positives | negatives)
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        hits = np.flatnonzero(positives[rows])
        last = np.searchsorted(-scores[rows], -scores[rows[hits]], side="right")  # samples at the threshold or above
        self.all, self.last = subjects[rows], last
        self.hits, self.hits_last = subjects[rows[hits]], np.searchsorted(hits, last, side="left")

    def __call__(self, counts: Array) -> Array:
        """`(B, S)` counts to `(B,)` values, NaN without positives."""
        if not len(self.hits):
            return np.full(len(counts), np.nan)
        chosen = np.cumsum(counts.take(self.all, axis=1), axis=1, dtype=counts.dtype)
        weights = counts.take(self.hits, axis=1)
        true = np.cumsum(weights, axis=1, dtype=counts.dtype)
        above, below = true.take(self.hits_last - 1, axis=1), chosen.take(self.last - 1, axis=1)
        precision = np.divide(above, below, out=np.zeros(above.shape), where=below > 0, dtype=np.float64)
        return ratio(np.einsum("bi,bi->b", weights, precision), true[:, -1])


class CalibrationError:
    """Weighted expected calibration error (L1, equal-width bins), as torchmetrics bins confidences.

    Args:
        confidence: `(n, E)`, NaN where the truth is unknown.
        hit: `(n, E)`.
        subjects: `(n,)` subject codes.
        count: number of subjects S.
    """

    def __init__(self, confidence: Array, hit: Bools, subjects: Array, count: int) -> None:
        from scipy.sparse import (
            csr_array,
        )  # imported here: only evaluation needs it, and every command would wait for it

        known = ~np.isnan(confidence)
        rows = np.broadcast_to(subjects[:, None], confidence.shape)[known]
        # torch's edges, not numpy's: they differ in the last bit, and scores such as 0.2 lie on an edge
        edges = torch.linspace(0, 1, CALIBRATION_BINS + 1, dtype=torch.float64).numpy()
        bins = np.searchsorted(edges, confidence[known], side="right") - 1
        shape = (count, len(edges))
        # sparse: a subject has a sample or a few, each in one bin
        self.error = csr_array(_sums(rows, bins, confidence[known] - hit[known], shape).T)
        self.known = _sums(rows, np.zeros_like(bins), np.ones(len(bins)), (count, 1))[:, 0]

    def __call__(self, counts: Array) -> Array:
        """`(B, S)` counts to `(B,)` values."""
        # one resample at a time: the product with a matrix strides over memory, four times as long
        errors = np.stack([self.error @ resample for resample in counts])
        return ratio(np.abs(errors).sum(axis=1), counts @ self.known)


class Tally:
    """Weighted counts of outcomes, in all and in every group.

    Samples that agree in all groups and outcomes fall into one cell; a resample is first summed over cells.

    Args:
        decisions: n samples, C classes.
        groups: attributes.
        subjects: `(n,)` subject codes.
    """

    def __init__(self, decisions: Decisions, groups: Sequence[Groups], subjects: Array) -> None:
        self.kind = decisions.kind
        d = decisions
        outcome = np.column_stack(
            [
                np.ones(len(d)),
                d.correct,
                d.positives,
                d.negatives,
                d.positives & d.predicted,
                d.negatives & d.predicted,
            ]
        )
        codes = np.column_stack([np.zeros(len(d)), *(g.codes for g in groups)])
        cells, cell, _ = distinct_rows(np.column_stack([codes, outcome]))
        order = np.argsort(cell, kind="stable")
        self.order = subjects[order]
        self.starts = np.searchsorted(cell[order], np.arange(len(cells)))
        width = codes.shape[1]
        self.tables = []
        for column, size in enumerate([1, *(len(g.classes) for g in groups)]):
            member = (cells[:, [column]] == np.arange(size)).astype(np.float64)
            self.tables.append(np.einsum("cg,cf->cgf", member, cells[:, width:]))

    def __call__(self, counts: Array) -> list[Counts]:
        """`(B, S)` counts to the outcome counts in all, `(B, 1)`, and in the G groups of each attribute, `(B, G)`."""
        sums = np.add.reduceat(counts.take(self.order, axis=1), self.starts, axis=1)
        found = []
        for table in self.tables:
            total = (sums @ table.reshape(len(table), -1)).reshape(len(counts), *table.shape[1:])
            pos, neg, tp, fp = np.split(total[..., 2:], 4, axis=-1)
            found.append(Counts(self.kind, total[..., 0], total[..., 1], pos, neg, tp, fp))
        return found


class ClassificationStatistic:
    """Every performance and fairness number of a classification, for many resamples at once.

    The definitions are those of `performance` and `fairness`; within a resample, groups that lack a class are left
    out of the gaps just as they are left out of the metrics of a whole set.

    Args:
        decisions: n samples.
        groups: attributes.
        subjects: `(n,)` subject codes.
        count: number of subjects S.
        cells: of those samples, for the accuracy in the worst cell.
    """

    def __init__(
        self,
        decisions: Decisions,
        groups: Sequence[Groups],
        subjects: Array,
        count: int,
        cells: Cells | None = None,
    ) -> None:
        d, everyone = decisions, np.zeros(len(decisions), dtype=np.int64)
        self.groups = groups
        self.tally = Tally(d, groups, subjects)
        columns = range(d.scores.shape[1])
        self.precision = [
            AveragePrecision(d.scores[:, c], d.positives[:, c], d.negatives[:, c], subjects) for c in columns
        ]
        self.auroc = [
            [GroupedAuroc(d.scores[:, c], d.positives[:, c], d.negatives[:, c], codes, size, subjects) for c in columns]
            for codes, size in [(everyone, 1), *((g.codes, len(g.classes)) for g in groups)]
        ]
        self.calibration = CalibrationError(d.confidence, d.hit, subjects, count)
        self.cells = CellAccuracy(cells, subjects) if cells else None

    def __call__(self, counts: Array) -> dict[Path, Array]:
        """`(B, S)` counts to named `(B,)` values."""
        overall, *tables = self.tally(counts)
        aurocs = [mean(np.stack([score(counts) for score in scores], axis=-1)) for scores in self.auroc]
        values: dict[Path, Array] = {
            ("auroc",): aurocs[0][:, 0],
            ("auprc",): mean(np.stack([score(counts) for score in self.precision], axis=-1)),
            **{(name,): value[:, 0] for name, value in overall.metrics().items()},
            ("calibration_error",): self.calibration(counts),
        }
        if self.cells is not None:
            values["worst_cell", "accuracy"], values["mean_cell", "accuracy"] = self.cells(counts)
        for groups, table, auroc in zip(self.groups, tables, aurocs[1:], strict=True):
            values |= {(groups.name, *path): value for path, value in gaps(table).items()}
            distance = np.nansum(np.abs(auroc - aurocs[0]), axis=1)
            scaled = np.where(np.isnan(auroc).all(axis=1), np.nan, aurocs[0][:, 0] / (1 + distance))
            values[groups.name, "equity_scaled_auroc"] = scaled
            values[groups.name, "worst_group", "accuracy"] = lowest(table.accuracy)
            values[groups.name, "worst_group", "auroc"] = lowest(auroc)
            values[groups.name, "worst_group", "cell_accuracy"] = lowest(cell_accuracy(table).reshape(len(counts), -1))
            metrics = table.metrics()
            for g, name in enumerate(groups.classes):
                at = (groups.name, "groups", name)
                values[*at, "auroc"] = auroc[:, g]
                for metric in ("accuracy", "sensitivity", "specificity"):
                    values[*at, metric] = metrics[metric][:, g]
        return values


class RegressionStatistic:
    """Errors of a regression in all and by group, for many resamples at once.

    Args:
        predicted: `(n,)`.
        target: `(n,)`.
        groups: attributes.
        subjects: `(n,)` subject codes.
        count: number of subjects S.
    """

    def __init__(self, predicted: Array, target: Array, groups: Sequence[Groups], subjects: Array, count: int) -> None:
        self.groups = groups
        error = np.abs(predicted - target)
        y, p = target - target.mean(), predicted - target.mean()  # centred: variances come as differences of sums
        moments = np.column_stack([np.ones(len(y)), error, y, p, y * y, y * p, p * p])
        self.moments = np.column_stack([np.bincount(subjects, weights=column, minlength=count) for column in moments.T])
        self.tables = []
        for g in groups:
            rows, size = g.codes >= 0, (count, len(g.classes))
            at = subjects[rows], g.codes[rows]
            self.tables.append((_sums(*at, error[rows], size), _sums(*at, np.ones(rows.sum()), size)))

    def __call__(self, counts: Array) -> dict[Path, Array]:
        """`(B, S)` counts to named `(B,)` values."""
        n, error, y, p, yy, yp, pp = (counts @ self.moments).T
        spread_y, spread_p = yy - y * y / n, pp - p * p / n
        tiny = 1e-12 * np.maximum(yy, 1e-300)  # what rounding leaves of the variance of a constant
        spread_y = np.where(spread_y > tiny, spread_y, 0)
        spread_p = np.where(spread_p > 1e-12 * np.maximum(pp, 1e-300), spread_p, 0)
        values: dict[Path, Array] = {
            ("mae",): error / n,
            ("r2",): 1 - ratio(yy - 2 * yp + pp, spread_y),
            ("pearson",): ratio(yp - y * p / n, np.sqrt(spread_y * spread_p)),
        }
        for groups, (errors, sizes) in zip(self.groups, self.tables, strict=True):
            mae = ratio(counts @ errors, counts @ sizes)
            values[groups.name, "mae_difference"] = spread(mae)
            values[groups.name, "worst_group", "mae"] = -lowest(-mae)
            for g, name in enumerate(groups.classes):
                values[groups.name, "groups", name, "mae"] = mae[:, g]
        return values


def gaps(table: Counts) -> dict[Path, Array]:
    """The three group gaps, from counts of shape `(B, G)`; over several classes the largest one."""
    by_class = (np.moveaxis(rate, -1, 1) for rate in (table.selected, table.tpr, table.fpr))  # each (B, C, G)
    selected, tpr, fpr = by_class
    both = ~np.isnan(tpr) & ~np.isnan(fpr)
    odds = np.fmax(spread(np.where(both, tpr, np.nan)), spread(np.where(both, fpr, np.nan)))
    return {
        ("demographic_parity_difference",): -lowest(-spread(selected)),
        ("equalized_odds_difference",): -lowest(-odds),
        ("equal_opportunity_difference",): -lowest(-spread(tpr)),
    }


def cell_accuracy(table: Counts) -> Array:
    """`(..., cells)` accuracy of each class of the target within a group, from `(...)` counts."""
    return table.tpr if table.kind == "classes" else np.concatenate([1 - table.fpr, table.tpr], axis=-1)


def spread(x: Array) -> Array:
    """Largest minus smallest of the last axis, NaN left out; NaN unless two are defined."""
    top, bottom = -lowest(-x), lowest(x)
    return np.where((~np.isnan(x)).sum(axis=-1) >= 2, top - bottom, np.nan)


def lowest(x: Array) -> Array:
    """Smallest of the last axis, NaN left out; NaN where nothing is defined."""
    found: Array = np.fmin.reduce(x, axis=-1, initial=np.nan)
    return found


def _sums(rows: Array, columns: Array, values: Array, shape: tuple[int, int]) -> Array:
    """`shape` matrix of the sums of values by row and column."""
    flat = np.bincount(rows * shape[1] + columns, weights=values, minlength=shape[0] * shape[1])
    return flat.reshape(shape)
