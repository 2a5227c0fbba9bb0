"""What a method predicted for a set of samples: the only input of every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Required, TypedDict

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from torch import Tensor

from medprism.cohort import UNKNOWN, Cohort, Factor
from medprism.distributed import gather_objects
from medprism.files import write_whole

Array = NDArray[Any]


class StepOutput(TypedDict, total=False):
    """What the validation, test and predict steps of a method return for B samples.

    Attributes:
        id: B names, unique in the cohort.
        subject: B names of people.
        probabilities: `(B, K)` class or label probabilities; `(B, 1)` predicted values for regression.
        target: `(B,)` long classes, `(B, K)` float labels, or `(B,)` float values.
        attributes: attribute name to `(B,)` long classes, -1 where unknown.
        blocks: block name to `(B, d)` latent vectors.
        heads: attribute name to `(B, classes)` probabilities of an auxiliary head.
        tokens: token set name to `(B, N, d)` embeddings of image-text methods; see `Representation`.
        grid: rows and columns of the tokens `patches`.
    """

    id: Required[list[str]]
    subject: Required[list[str]]
    probabilities: Required[Tensor]
    target: Tensor
    attributes: dict[str, Tensor]
    blocks: dict[str, Tensor]
    heads: dict[str, Tensor]
    tokens: dict[str, Tensor]
    grid: tuple[int, ...]


@dataclass(frozen=True)
class Predictions:
    """Predictions for n samples.

    Attributes:
        ids: n names, unique in the cohort.
        subjects: n names of people; the unit of the bootstrap.
        probabilities: `(n, K)` float64.
        target: `(n,)` int64 classes, `(n, K)` float64 labels or `(n,)` float64 values (negative or NaN labels are
            unknown); `None` where there is no truth.
        attributes: attribute name to `(n,)` int64 classes, -1 where unknown.
        blocks: block name to `(n, d)` float32 latent vectors.
        heads: attribute name to `(n, classes)` float64 probabilities of an auxiliary head.
    """

    ids: list[str]
    subjects: list[str]
    probabilities: Array
    target: Array | None = None
    attributes: dict[str, Array] = field(default_factory=dict)
    blocks: dict[str, Array] = field(default_factory=dict)
    heads: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that everything has one row a sample."""
        rows = {"subjects": len(self.subjects), "probabilities": len(self.probabilities)}
        rows |= {} if self.target is None else {"target": len(self.target)}
        rows |= {f"attributes['{name}']": len(values) for name, values in self.attributes.items()}
        rows |= {f"blocks['{name}']": len(values) for name, values in self.blocks.items()}
        rows |= {f"heads['{name}']": len(values) for name, values in self.heads.items()}
        wrong = {name: count for name, count in rows.items() if count != len(self.ids)}
        if wrong:
            raise ValueError(f"{len(self.ids)} ids, but {wrong} rows; give one row for each id")
        if self.probabilities.ndim != 2:
            raise ValueError(f"probabilities have shape {self.probabilities.shape}; expected (samples, classes)")

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def collect(cls, outputs: Sequence[StepOutput]) -> Predictions:
        """Join the outputs of the steps of one process; no outputs make an empty set.

        Raises:
            ValueError: when one id comes twice, or batches disagree in what they hold.
        """
        if not outputs:
            return cls([], [], np.zeros((0, 0)))
        ids = [name for output in outputs for name in output["id"]]
        if len(set(ids)) != len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise ValueError(
                f"id '{twice}' comes twice in one process: ids must be unique in the cohort, and a sample must stand "
                "in one dataloader of a stage only"
            )
        first = outputs[0]
        for output in outputs:
            for name in ("target", "attributes", "blocks", "heads"):
                if (name in output) != (name in first):
                    raise ValueError(f"some batches have '{name}' and some have not; return it from every step")
        return cls(
            ids=ids,
            subjects=[name for output in outputs for name in output["subject"]],
            probabilities=_joined([o["probabilities"] for o in outputs]).astype(np.float64),
            target=_joined([o["target"] for o in outputs]) if "target" in first else None,
            attributes={
                name: _joined([o["attributes"][name] for o in outputs]).astype(np.int64)
                for name in first.get("attributes", {})
            },
            blocks={
                name: _joined([o["blocks"][name] for o in outputs]).astype(np.float32)
                for name in first.get("blocks", {})
            },
            heads={
                name: _joined([o["heads"][name] for o in outputs]).astype(np.float64) for name in first.get("heads", {})
            },
        )

    def gather(self) -> Predictions:
        """The predictions of all ranks, each id once, sorted by id: the same on every rank and for every world size.

        Distributed samplers pad with copies of samples; the copy of the lowest rank stays.

        Raises:
            ValueError: when one id stands for samples of different subjects, targets or attributes.
        """
        parts = [part for part in gather_objects(self) if len(part)]
        if not parts:
            return self
        first = parts[0]
        if len(parts) == 1:
            return first.take(np.argsort(np.array(first.ids, dtype=object), kind="stable"))
        joined = Predictions(
            ids=[name for part in parts for name in part.ids],
            subjects=[name for part in parts for name in part.subjects],
            probabilities=np.concatenate([part.probabilities for part in parts]),
            target=None if first.target is None else np.concatenate([_present(part.target) for part in parts]),
            attributes={name: np.concatenate([part.attributes[name] for part in parts]) for name in first.attributes},
            blocks={name: np.concatenate([part.blocks[name] for part in parts]) for name in first.blocks},
            heads={name: np.concatenate([part.heads[name] for part in parts]) for name in first.heads},
        )
        seen: dict[str, int] = {}
        for row, name in enumerate(joined.ids):
            if seen.setdefault(name, row) != row and not joined._same(seen[name], row):
                raise ValueError(
                    f"id '{name}' stands for two different samples (subject, target or attributes differ between "
                    "processes); ids must be unique in the cohort"
                )
        return joined.take(np.array([seen[name] for name in sorted(seen)]))

    def _same(self, one: int, other: int) -> bool:
        columns = [np.array(self.subjects, dtype=object), *self.attributes.values()]
        columns += [] if self.target is None else [np.nan_to_num(self.target, nan=UNKNOWN)]
        return all(np.array_equal(column[one], column[other]) for column in columns)

    def take(self, rows: Array) -> Predictions:
        """The given rows: indices, or a boolean mask."""
        index = np.flatnonzero(rows) if rows.dtype == bool else rows
        return Predictions(
            ids=[self.ids[row] for row in index],
            subjects=[self.subjects[row] for row in index],
            probabilities=self.probabilities[index],
            target=None if self.target is None else self.target[index],
            attributes={name: values[index] for name, values in self.attributes.items()},
            blocks={name: values[index] for name, values in self.blocks.items()},
            heads={name: values[index] for name, values in self.heads.items()},
        )

    def to_frame(self, cohort: Cohort) -> pd.DataFrame:
        """A table for people, one row a sample.

        Columns: `id`, `subject`, `target` (class name; the number for regression; one column `target_<class>` of 0
        and 1 a label), `prob_<class>`, `predicted`, and each attribute (class name) with the columns
        `prob_<attribute>=<class>` of its head where it has one. What is unknown is empty.

        Raises:
            ValueError: when an attribute has the name of another column.
        """
        kind, classes = cohort.target_kind, cohort.target.classes
        columns: dict[str, Any] = {"id": self.ids, "subject": self.subjects}
        if self.target is not None:
            if kind == "classes":
                columns["target"] = _named(self.target, cohort.target)
            elif kind == "value":
                columns["target"] = self.target
            else:
                for k, name in enumerate(classes):
                    known = self.target[:, k] >= 0
                    columns[f"target_{name}"] = np.where(known, np.where(self.target[:, k] >= 0.5, "1", "0"), "")
        if kind != "value":
            columns |= {f"prob_{name}": self.probabilities[:, k] for k, name in enumerate(classes)}
        if kind == "classes":
            columns["predicted"] = [classes[k] for k in self.probabilities.argmax(axis=1)]
        elif kind == "value":
            columns["predicted"] = self.probabilities[:, 0]
        else:
            chosen = self.probabilities >= 0.5
            columns["predicted"] = [";".join(np.array(classes)[row]) for row in chosen]
        for factor in cohort.attributes:
            found: dict[str, Any] = {}
            if factor.name in self.attributes:
                found[factor.name] = _named(self.attributes[factor.name], factor)
            if factor.name in self.heads:
                check_probabilities(self.heads[factor.name], factor)
                found |= dict(zip(_head_columns(factor), self.heads[factor.name].T, strict=True))
            if {factor.name, *found} & {"stage", "sets", *columns}:
                raise ValueError(f"attribute '{factor.name}' has the name of a column of predictions.csv; rename it")
            columns |= found
        return pd.DataFrame(columns)

    def save(
        self, path: str | Path, stage: str, cohort: Cohort, sets: Mapping[str, Collection[str]] | None = None
    ) -> None:
        """Write the table with a first column `stage`; rows of that stage are replaced, other stages stay.

        Args:
            path: of the file.
            stage: of these rows.
            cohort: names classes and attributes.
            sets: test set to the ids in it; adds a column `sets` with the names that a sample is in, joined by `;`.
        """
        path = Path(path)
        frame = self.to_frame(cohort).astype(object)
        if sets:
            members = {name: set(ids) for name, ids in sets.items()}
            frame["sets"] = [";".join(name for name, ids in members.items() if i in ids) for i in self.ids]
        frame.insert(0, "stage", stage)
        if path.exists():
            old = pd.read_csv(path, dtype=str, keep_default_na=False)
            frame = pd.concat([old[old["stage"] != stage].astype(object), frame], ignore_index=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: frame.to_csv(part, index=False, na_rep=""))

    @classmethod
    def load(cls, path: str | Path, stage: str, cohort: Cohort) -> Predictions:
        """Read the rows of one stage, as `save` wrote them; latent blocks are not in the file.

        Raises:
            ValueError: when the file has no such stage, or a name that is no class of the cohort.
        """
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        stages = sorted(set(frame["stage"]))
        frame = frame[frame["stage"] == stage]
        if frame.empty:
            raise ValueError(f"{path} has no rows of stage '{stage}'; it has {stages}")
        classes, kind = cohort.target.classes, cohort.target_kind
        columns = ["predicted"] if kind == "value" else [f"prob_{name}" for name in classes]
        target: Array | None = None
        if kind == "labels" and f"target_{classes[0]}" in frame:
            labels = frame[[f"target_{name}" for name in classes]]
            target = labels.replace("", str(UNKNOWN)).to_numpy(dtype=np.float64)
        elif "target" in frame and (frame["target"] != "").any():
            if kind == "classes":
                target = _coded(frame["target"], cohort.target, path)
            else:
                target = frame["target"].replace("", "nan").to_numpy(dtype=np.float64)
        return cls(
            ids=list(frame["id"]),
            subjects=list(frame["subject"]),
            probabilities=frame[columns].to_numpy(dtype=np.float64),
            target=target,
            attributes={
                factor.name: _coded(frame[factor.name], factor, path)
                for factor in cohort.attributes
                if factor.name in frame
            },
            heads={
                factor.name: frame[_head_columns(factor)].to_numpy(dtype=np.float64)
                for factor in cohort.attributes
                if set(_head_columns(factor)) <= set(frame) and (frame[_head_columns(factor)[0]] != "").all()
            },
        )


def _joined(parts: Sequence[Tensor]) -> Array:
    arrays = [part.detach().cpu() for part in parts]
    # numpy has no bfloat16; float64 holds every narrower number exactly
    joined = np.concatenate([(a.double() if a.is_floating_point() else a).numpy() for a in arrays])
    return joined if joined.dtype == np.float64 else joined.astype(np.int64)


def _present(target: Array | None) -> Array:
    if target is None:
        raise ValueError("some processes have targets and some have not; return 'target' from every step")
    return target


def _named(codes: Array, factor: Factor) -> list[str]:
    check_codes(codes, factor)
    return ["" if code == UNKNOWN else factor.classes[code] for code in codes]


def _coded(names: pd.Series[str], factor: Factor, path: str | Path) -> Array:
    codes: Mapping[str, int] = {"": UNKNOWN} | {name: k for k, name in enumerate(factor.classes)}
    wrong = sorted(set(names) - set(codes))
    if wrong:
        raise ValueError(f"{path}: column of '{factor.name}' holds {wrong[:3]}; its classes are {list(factor.classes)}")
    return np.array([codes[name] for name in names], dtype=np.int64)


def _head_columns(factor: Factor) -> list[str]:
    return [f"prob_{factor.name}={name}" for name in factor.classes]


def check_probabilities(head: Array, factor: Factor) -> None:
    """Refuse what is no probability of a factor's classes.

    Raises:
        ValueError: naming the factor.
    """
    # half precision rounds sums of probabilities by about a hundredth; NaN fails every comparison
    right = head.ndim == 2 and head.shape[1] == len(factor.classes)
    if not right or not (head.min(initial=0) >= 0 and (np.abs(head.sum(axis=1) - 1) <= 0.02).all()):
        raise ValueError(
            f"the head of '{factor.name}' gave {head[:1].tolist()} in the first row; expected {len(factor.classes)} "
            f"probabilities that sum to 1, for {list(factor.classes)}"
        )


def check_codes(codes: Array, factor: Factor) -> None:
    """Refuse codes that name no class.

    Raises:
        ValueError: naming the factor and the code.
    """
    wrong = codes[(codes < UNKNOWN) | (codes >= len(factor.classes))]
    if len(wrong):
        raise ValueError(
            f"'{factor.name}' has code {wrong[0]}, but its {len(factor.classes)} classes have codes 0 to "
            f"{len(factor.classes) - 1} (-1 where unknown)"
        )
