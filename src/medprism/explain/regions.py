"""What a method attends to, as numbers: mean attention maps, their leading regions, and how far two maps overlap.

Pure functions of tensors; the figures of `medprism.explain.brain` draw what is computed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.spatial.distance import jensenshannon
from torch import Tensor

from medprism.cohort import UNKNOWN, Batch, Cohort, Factor, Representation


class NothingToShow(ValueError):
    """The data hold nothing for a figure to show, such as a class without subjects; not an error of the figure."""


@dataclass(frozen=True)
class MeanMaps:
    """The mean attention maps of one factor.

    Attributes:
        factor: the factor whose classes were asked for.
        weights: `(classes, N)` float64 mean attention, rows summing to 1; NaN for a class without subjects.
        subjects: for each class the number of subjects in its mean.
    """

    factor: Factor
    weights: Tensor
    subjects: tuple[int, ...]

    def of(self, code: int) -> Tensor:
        """`(N,)` mean map of class `code`.

        Raises:
            NothingToShow: when no subject is in the mean of that class.
        """
        if not self.subjects[code]:
            raise NothingToShow(
                f"no subject is in the mean map of {self.factor.name} = {self.factor.classes[code]}: "
                "none of that class was tested, or none was classified correctly"
            )
        return self.weights[code]

    @property
    def shown(self) -> list[int]:
        """Codes of the classes that have subjects."""
        return [code for code, count in enumerate(self.subjects) if count]


@dataclass
class _Rows:
    """One batch: for each factor the class that each sample counts for (-1: none) and its `(B, N)` map of it."""

    ids: list[str]
    codes: dict[str, Tensor]
    maps: dict[str, Tensor]


class MapSums:
    """Running sums of attention maps over batches and processes.

    The map of a class is averaged over the subjects of that class: for the target over those that are also
    classified correctly, so that the map belongs to decisions that were right; for an attribute, which a method need
    not predict, over all subjects that have the class. Unknown values (-1) count nowhere. Only sums are kept, and the
    rows of the newest batch: distributed samplers pad their last batch with samples of other processes, and
    `merge` leaves those repeats out.

    Args:
        cohort: the cohort of the batches.
    """

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, Tensor] = {}
        self._ids: set[str] = set()
        self._newest = _Rows([], {}, {})

    def add(self, batch: Batch, representation: Representation) -> None:
        """Add one batch.

        Raises:
            ValueError: when a map is not `(B, classes, N)` with N regions, or its rows do not sum to 1.
        """
        self._close(self._newest)
        codes: dict[str, Tensor] = {}
        maps: dict[str, Tensor] = {}
        for factor in (self.cohort.target, *self.cohort.attributes):
            if factor.name not in representation.maps:
                continue
            code = _codes(factor, self.cohort, batch, representation)
            if code is not None:
                every = self._checked(factor, representation.maps[factor.name].detach().cpu().double())
                codes[factor.name] = code
                maps[factor.name] = every[torch.arange(len(code)), code.clamp_min(0)]
        self._newest = _Rows(list(batch["id"]), codes, maps)

    @classmethod
    def merge(cls, parts: Sequence[MapSums]) -> MapSums:
        """The sums of all processes, each sample counted once.

        Raises:
            ValueError: when processes share samples outside their last batches, which would count twice.
        """
        total = cls(parts[0].cohort)
        for part in parts:
            repeated = total._ids & part._ids
            if repeated:
                raise ValueError(
                    f"{len(repeated)} samples (such as '{min(repeated)}') were tested by several processes; "
                    "give the test dataloader a DistributedSampler, as Lightning does by default"
                )
            total._ids |= part._ids
            for name in part.sums:
                total._add(name, part.sums[name], part.counts[name])
        for part in parts:
            total._close(part._newest)
        return total

    def means(self) -> dict[str, MeanMaps]:
        """Factor name to mean maps, in the order of the cohort; factors without maps are left out."""
        self._close(self._newest)
        self._newest = _Rows([], {}, {})
        factors = [factor for factor in (self.cohort.target, *self.cohort.attributes) if factor.name in self.sums]
        return {
            factor.name: MeanMaps(
                factor,
                self.sums[factor.name] / self.counts[factor.name].unsqueeze(1),
                tuple(int(count) for count in self.counts[factor.name]),
            )
            for factor in factors
        }

    def _checked(self, factor: Factor, maps: Tensor) -> Tensor:
        regions = self.cohort.input_shape[0]
        if maps.ndim != 3 or maps.shape[1:] != (len(factor.classes), regions):
            raise ValueError(
                f"maps['{factor.name}'] has shape {tuple(maps.shape)}; expected (B, {len(factor.classes)}, {regions}): "
                f"one weight for each class of {list(factor.classes)} and each region of '{self.cohort.name}'"
            )
        # Half precision leaves row sums up to about a percent from 1.
        if not torch.allclose(maps.sum(-1), maps.new_ones(()), atol=0.02):
            raise ValueError(f"the rows of maps['{factor.name}'] do not sum to 1; apply the softmax over the regions")
        return maps

    def _close(self, rows: _Rows) -> None:
        first = {sample: position for position, sample in reversed(list(enumerate(rows.ids)))}
        fresh = torch.tensor(
            [sample not in self._ids and first[sample] == position for position, sample in enumerate(rows.ids)],
            dtype=torch.bool,
        )
        for name, maps in rows.maps.items():
            classes = len(_factor(self.cohort, name).classes)
            counted = fresh & (rows.codes[name] != UNKNOWN)
            codes = rows.codes[name][counted]
            sums = maps.new_zeros(classes, maps.shape[-1]).index_add_(0, codes, maps[counted])
            self._add(name, sums, torch.bincount(codes, minlength=classes))
        self._ids |= set(rows.ids)

    def _add(self, name: str, sums: Tensor, counts: Tensor) -> None:
        self.sums[name] = self.sums[name] + sums if name in self.sums else sums.clone()
        self.counts[name] = self.counts[name] + counts if name in self.counts else counts.clone()


def mean_maps(
    represent: Callable[[Batch], Representation], batches: Iterable[Batch], cohort: Cohort
) -> dict[str, MeanMaps]:
    """Mean attention maps of every factor and class, in one pass that holds one batch at a time.

    For the target the map of a class is averaged over the correctly classified subjects of that class; for an
    attribute over all subjects that have the class.

    Args:
        represent: a method's `represent`.
        batches: batches of B samples.
        cohort: the cohort of the batches.

    Returns:
        Factor name to `MeanMaps`; empty when the method has no maps.
    """
    sums = MapSums(cohort)
    with torch.no_grad():
        for batch in batches:
            sums.add(batch, represent(batch))
    return sums.means()


def difference(maps: MeanMaps, positive: int = -1, control: int = 0) -> Tensor:
    """`(N,)` mean map of class `positive` minus that of class `control`; for a binary target disease minus control.

    Raises:
        NothingToShow: when one of the two classes has no subject.
    """
    return maps.of(positive) - maps.of(control)


def top_regions(weights: Tensor, cohort: Cohort, k: int = 20) -> pd.DataFrame:
    """The k regions with the largest weights by magnitude, largest first; ties in the order of the regions.

    Args:
        weights: `(N,)` attention of N regions, or a difference of two such maps.
        cohort: names and coordinates of the regions; a region without a name is called by its number.
        k: number of rows; all N where N is smaller.

    Returns:
        Columns `rank` (from 1), `region` (number from 1, the label in the atlas image), `name`, `x`, `y`, `z` (MNI,
        mm; NaN without coordinates), `weight`, and `ratio_to_uniform` (weight times N).
    """
    n = len(weights)
    order = torch.argsort(weights.abs(), descending=True, stable=True)[:k].tolist()
    places = cohort.coordinates or ((float("nan"),) * 3,) * n
    return pd.DataFrame(
        {
            "rank": range(1, len(order) + 1),
            "region": [index + 1 for index in order],
            "name": [region_name(cohort, index) for index in order],
            "x": [places[index][0] for index in order],
            "y": [places[index][1] for index in order],
            "z": [places[index][2] for index in order],
            "weight": [float(weights[index]) for index in order],
            "ratio_to_uniform": [float(weights[index]) * n for index in order],
        }
    )


def region_name(cohort: Cohort, index: int) -> str:
    """Name of the region at `index` (from 0), or `region <number from 1>`."""
    name = cohort.regions[index] if cohort.regions else ""
    return name or f"region {index + 1}"


def overlap(a: Tensor, b: Tensor, k: int = 20) -> dict[str, float]:
    """How far two attention maps look at the same regions.

    Two near-uniform maps have cosine and Jensen-Shannon similarity near 1 whatever they prefer; Dice compares only
    what leads, and is k/N on average for unrelated maps.

    Args:
        a: `(N,)` non-negative weights that sum to 1.
        b: `(N,)` likewise.
        k: number of leading regions that Dice compares; at most N.

    Returns:
        `cosine` in [0, 1]; `jensen_shannon`, 1 minus the Jensen-Shannon divergence in bits, in [0, 1]; `dice`,
        |top-k of a and of b| / k, in [0, 1]. All are 1 for equal maps.

    Raises:
        ValueError: when a map is negative somewhere, does not sum to 1, or has another length.
    """
    for weights in (a, b):
        if weights.shape != a.shape or bool((weights < 0).any()) or abs(float(weights.sum()) - 1) > 0.02:
            raise ValueError(
                "overlap compares two attention maps over the same regions: non-negative weights that sum to 1; "
                f"got shape {tuple(weights.shape)} with sum {float(weights.sum()):.3g}"
            )
    p, q = (weights.double().numpy(force=True) for weights in (a, b))
    k = min(k, len(p))
    leading = [set(torch.argsort(weights, descending=True, stable=True)[:k].tolist()) for weights in (a, b)]
    return {
        "cosine": float(p @ q / (np.linalg.norm(p) * np.linalg.norm(q))),
        "jensen_shannon": float(1 - jensenshannon(p, q, base=2) ** 2),
        "dice": len(leading[0] & leading[1]) / k,
    }


def _factor(cohort: Cohort, name: str) -> Factor:
    return cohort.target if name == cohort.target.name else cohort.attribute(name)


def _codes(factor: Factor, cohort: Cohort, batch: Batch, representation: Representation) -> Tensor | None:
    """`(B,)` class whose mean each sample enters, -1 for none; None where the batch cannot say."""
    if factor is not cohort.target:
        codes = batch.get("attributes", {}).get(factor.name)
        return None if codes is None else codes.detach().cpu()
    if cohort.target_kind != "classes" or "target" not in batch:
        return None
    target = batch["target"].detach().cpu()
    predicted = representation.logits[factor.name].detach().argmax(-1).cpu()
    return torch.where(predicted == target, target, UNKNOWN)
