"""Distribution shifts by subject: parts in which attributes agree with the target at a chosen ratio.

A cell is one class of the target with one class of each shifted attribute. The share of a cell in a shifted part is
`p(Y) * product over attributes of (r if the attribute agrees with Y else 1 - r)`: attributes are independent of each
other given the target. A part is drawn at the largest size that its cells can fill, not at that of the smallest cell.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from medprism.cohort import UNKNOWN, Factor
from medprism.data.errors import DataError
from medprism.data.splits import Split

Cell = tuple[str, ...]
"""One class name of the target, then one of each shifted attribute."""


@dataclass(frozen=True)
class Shift:
    """A population in which attributes agree with a binary target.

    Attributes:
        classes: factor name to its two class names, the target first; the k-th class of an attribute agrees with the
            k-th class of the target.
        ratios: attribute name to the share r of people, in each class of the target, whose attribute agrees with it.
        prevalence: share of people with the second class of the target.
    """

    classes: Mapping[str, tuple[str, str]]
    ratios: Mapping[str, float]
    prevalence: float = 0.5

    @classmethod
    def of(
        cls,
        target: Factor,
        attributes: Sequence[Factor],
        ratios: Mapping[str, float],
        prevalence: float = 0.5,
        flip: Iterable[str] = (),
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> Shift:
        """The shift of a cohort.

        Args:
            target: the factor to predict.
            attributes: the shifted attributes.
            ratios: for each of them the share that agrees with the target.
            prevalence: share of people with the second class of the target.
            flip: attributes whose second class agrees with the target's first class.
            classes: two class names for a factor that has more; people of its other classes are left out.

        Raises:
            DataError: when a factor has not two classes.
        """
        pairs = {factor.name: _two_classes(factor, classes or {}) for factor in (target, *attributes)}
        for name in flip:
            pairs[name] = (pairs[name][1], pairs[name][0])
        return cls(pairs, ratios, prevalence)

    def tests(self) -> dict[str, Shift]:
        """The shifts of the test sets: `same` ratios, `inverted` ones (1 - r), and `balanced` (one half each)."""
        inverted = {name: 1 - ratio for name, ratio in self.ratios.items()}
        balanced = dict.fromkeys(self.ratios, 0.5)
        return {"same": self, "inverted": replace(self, ratios=inverted), "balanced": replace(self, ratios=balanced)}

    def shares(self) -> dict[Cell, float]:
        """The share of the population in each cell; the shares sum to 1."""
        target, *attributes = self.classes
        shares = {}
        for cell in itertools.product(*self.classes.values()):
            outcome = self.classes[target].index(cell[0])
            share = self.prevalence if outcome == 1 else 1 - self.prevalence
            for name, value in zip(attributes, cell[1:], strict=True):
                agrees = self.classes[name].index(value) == outcome
                share *= self.ratios[name] if agrees else 1 - self.ratios[name]
            shares[cell] = share
        return shares


@dataclass(frozen=True)
class Shifted:
    """What a shift makes of a split.

    Attributes:
        split: training and validation subjects that follow the shift, and the whole test part.
        test_sets: `same`, `inverted` and `balanced` to the subjects of the test part that follow it so.
        left_out: why subjects are not in a part, and how many.
    """

    split: Split
    test_sets: dict[str, tuple[str, ...]]
    left_out: dict[str, int]


def shifted(partition: Split, table: pd.DataFrame, shift: Shift, seed: int) -> Shifted:
    """Let the parts of a split follow a shift.

    Args:
        partition: who may be in which part.
        table: one row a subject of the cohort with class names, as `people` makes it.
        shift: the population of the training and validation part.
        seed: another seed, other people.

    Raises:
        DataError: when a part or a test set cannot be drawn; see `draw`.
    """
    drawn, left_out = {}, {}
    for part in ("train", "validation"):
        members = table.loc[list(partition.part(part))]
        drawn[part] = draw(members, shift, seed, f"the {part} part")
        inside = sum(cells(members, shift).values())
        left_out[f"{part} subjects whose class is unknown or not one of the shift's"] = len(members) - inside
        left_out[f"{part} subjects beyond the shift's ratios"] = inside - len(drawn[part])
    members = table.loc[list(partition.test)]
    test_sets = {name: draw(members, wanted, seed, f"the test set '{name}'") for name, wanted in shift.tests().items()}
    outside = len(members) - sum(cells(members, shift).values())
    left_out["test subjects whose class is unknown or not one of the shift's (in `native` alone)"] = outside
    split = replace(partition, train=drawn["train"], validation=drawn["validation"])
    return Shifted(split, test_sets, {reason: count for reason, count in left_out.items() if count})


def people(codes: pd.DataFrame, factors: Sequence[Factor]) -> pd.DataFrame:
    """Class names in place of class codes.

    Args:
        codes: one row a subject, one column a factor, as `Samples.strata` makes it.
        factors: what the columns mean, in their order.

    Returns:
        Table with the same rows, its columns named after the factors; None where unknown.
    """
    columns = {
        factor.name: [factor.classes[code] if code != UNKNOWN else None for code in codes.iloc[:, k]]
        for k, factor in enumerate(factors)
    }
    return pd.DataFrame(columns, index=codes.index, dtype=object)


def cells(table: pd.DataFrame, shift: Shift) -> dict[Cell, int]:
    """The number of people in each cell of a shift; who is in none of them is not counted.

    Args:
        table: one row a subject with class names, as `people` makes it.
        shift: names the classes.
    """
    found = table[list(shift.classes)].value_counts()
    return {cell: int(found.get(cell, 0)) for cell in itertools.product(*shift.classes.values())}


def feasible(counts: Mapping[Cell, int], shares: Mapping[Cell, float]) -> dict[Cell, int]:
    """The sizes of the cells at the best feasible scale.

    Sizes are `share * N`, rounded, for the largest N at which no cell that has people needs more than it has. To draw
    again from what was drawn therefore changes nothing.

    Args:
        counts: people in each cell.
        shares: wanted share of each cell, in (0, 1).

    Returns:
        Wanted people in each cell; more than there are only in a cell that is empty.
    """
    filled = [cell for cell, count in counts.items() if count > 0]
    total = min((math.floor((counts[cell] + 0.5) / shares[cell]) for cell in filled), default=0)
    while any(_rounded(shares[cell] * total) > counts[cell] for cell in filled):
        total -= 1  # a share of exactly one half more is rounded up
    return {cell: _rounded(share * total) for cell, share in shares.items()}


def draw(table: pd.DataFrame, shift: Shift, seed: int, part: str) -> tuple[str, ...]:
    """Draw people so that they follow a shift, as many as can be had.

    Args:
        table: one row a subject with class names, as `people` makes it; the order of the rows does not matter.
        shift: the population to follow; who is in none of its cells (unknown, or another class) is not drawn.
        seed: another seed, other people.
        part: what is drawn, for the message.

    Returns:
        Names of the subjects, sorted.

    Raises:
        DataError: when a ratio or the prevalence lies outside (0, 1), a cell that needs somebody is empty, or rounding
            leaves nobody with some class of an attribute in a class of the target, so that the attribute would agree
            with it always; shows the cells with their counts and shares.
    """
    counts, shares = cells(table, shift), shift.shares()
    outside = {name: ratio for name, ratio in shift.ratios.items() if not 0 < ratio < 1}
    if outside or not 0 < shift.prevalence < 1:
        wrong = f"ratios {outside}" if outside else f"prevalence {shift.prevalence}"
        raise DataError(
            f"cannot draw {part}: the {wrong} must lie between 0 and 1, both excluded\n{_table(shift, counts, shares)}"
        )
    wanted = feasible(counts, shares)
    empty = [cell for cell, count in counts.items() if count < wanted[cell]]
    lost = _lost_pairs(wanted)
    if empty or lost:
        reason = f"{len(empty)} of {len(counts)} cells have nobody but need somebody"
        if not empty:
            reason = f"it would be so small that nobody in it is {' and '.join(lost[0])}"
        raise DataError(
            f"cannot draw {part}: {reason}; take ratios nearer to 0.5, shift fewer attributes, or make the part "
            f"larger\n{_table(shift, counts, shares, wanted)}"
        )
    names = table.sort_index()
    shuffled = names.iloc[np.random.default_rng(seed).permutation(len(names))]
    drawn: list[str] = []
    for name, cell in zip(shuffled.index, map(tuple, shuffled[list(shift.classes)].to_numpy()), strict=True):
        if wanted.get(cell, 0) > 0:
            wanted[cell] -= 1
            drawn.append(str(name))
    return tuple(sorted(drawn))


def _two_classes(factor: Factor, classes: Mapping[str, Sequence[str]]) -> tuple[str, str]:
    chosen = tuple(classes.get(factor.name, factor.classes))
    if len(set(chosen)) != 2 or len(chosen) != 2 or not set(chosen) <= set(factor.classes):
        example = ", ".join(factor.classes[:2]) or "first, second"
        raise DataError(
            f"a shift needs two classes of '{factor.name}', found {list(chosen)}; its classes are "
            f"{list(factor.classes)}: name two of them, such as shift_classes {{{factor.name}: [{example}]}}"
        )
    return chosen[0], chosen[1]


def _lost_pairs(sizes: Mapping[Cell, int]) -> list[Cell]:
    """Classes of the target and of one attribute that nobody has together."""
    pairs: dict[tuple[int, Cell], int] = {}
    for cell, size in sizes.items():
        for k, value in enumerate(cell[1:]):
            pair = (k, (cell[0], value))
            pairs[pair] = pairs.get(pair, 0) + size
    return [pair for (_, pair), size in pairs.items() if size == 0]


def _rounded(value: float) -> int:
    # 0.05 * 30 is 1.4999999999999998 for a computer
    return math.floor(round(value, 9) + 0.5)


def _table(
    shift: Shift,
    counts: Mapping[Cell, int],
    shares: Mapping[Cell, float],
    wanted: Mapping[Cell, int] | None = None,
) -> str:
    rows = [
        [*cell, counts[cell], f"{shares[cell]:.4g}", *([wanted[cell]] if wanted is not None else [])] for cell in shares
    ]
    titles = [*shift.classes, "people", "wanted share", *(["wanted people"] if wanted is not None else [])]
    return pd.DataFrame(rows, columns=titles).to_string(index=False)
