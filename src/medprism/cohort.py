"""The ground floor: every name that data, methods and evaluators share.

A datamodule yields `Batch` dictionaries and declares one `Cohort`; a method turns a batch into a `Representation`.
Nothing here computes: these are plain values that travel between the packages and into checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Required, TypedDict

from torch import Tensor

UNKNOWN = -1
"""The code of an attribute or target class whose value is not known; such samples are masked."""

INPUT_FIELDS = ("connectome", "image", "volume")
"""The batch fields that a model can read; every cohort has exactly one."""


class Batch(TypedDict, total=False):
    """One batch of B samples; the only names that cross the border between data and methods.

    Attributes:
        id: B names, unique in the cohort.
        subject: B names of people; the unit of splitting and of the bootstrap.
        connectome: `(B, R, R)` float32 connectivity of R regions; row r holds the features of region r.
        image: `(B, C, H, W)` float32.
        volume: `(B, 1, D, H, W)` float32.
        target: `(B,)` long classes, `(B, K)` float labels, or `(B,)` float values.
        attributes: attribute name to `(B,)` long classes, -1 where unknown.
        sentences: for each sample its sentences, as raw text.
        gaze: `(B, S, H, W)` in [0, 1], one map a sentence, padded with zeros over S.
        has_gaze: `(B,)` bool.
        boxes: for each sample its located phrases, `(phrase, left, top, right, bottom)` in shares of the image.
        weight: `(B,)` float32 weights of the samples in the training loss; their mean over the training part is 1.
    """

    id: Required[list[str]]
    subject: list[str]
    connectome: Tensor
    image: Tensor
    volume: Tensor
    target: Tensor
    attributes: dict[str, Tensor]
    sentences: list[list[str]]
    gaze: Tensor
    has_gaze: Tensor
    boxes: list[list[tuple[str, float, float, float, float]]]
    weight: Tensor


@dataclass(frozen=True)
class Factor:
    """A categorical variable of a cohort: its target, or one of its attributes.

    Attributes:
        name: column name, such as `sex`.
        classes: class names; class k has code k in the batch. The last class of a binary target is the positive one.
        phrases: for each class the phrases that say it in words (at least one); the class names when left out.
        role: `target`, `sensitive` (a property of the person, to be treated fairly), or `nuisance` (a property of
            the acquisition, such as site or scanner).
    """

    name: str
    classes: tuple[str, ...]
    phrases: tuple[tuple[str, ...], ...] = ()
    role: Literal["target", "sensitive", "nuisance"] = "nuisance"

    def __post_init__(self) -> None:
        """Check the classes, and fill in the phrases."""
        if len(set(self.classes)) != len(self.classes):
            raise ValueError(f"factor '{self.name}' names a class twice: {list(self.classes)}; give each class once")
        if not self.phrases:
            object.__setattr__(self, "phrases", tuple((name,) for name in self.classes))
        if len(self.phrases) != len(self.classes) or not all(self.phrases):
            raise ValueError(
                f"factor '{self.name}' has {len(self.classes)} classes but phrases for "
                f"{sum(map(bool, self.phrases))}; give at least one phrase for each of {list(self.classes)}"
            )


@dataclass(frozen=True)
class Cohort:
    """What a datamodule declares once, before training; methods and evaluators build themselves from it.

    Attributes:
        name: name of the data set, used in tables and figures.
        fields: the `Batch` fields that every batch has.
        input_shape: shape of one sample of the input field, such as `(200, 200)`.
        target: the factor to predict; `classes` is empty for a regression target.
        target_kind: `classes` (one of several), `labels` (any of several), or `value` (regression).
        attributes: sensitive and nuisance factors.
        regions: names of the R regions of a connectome.
        coordinates: MNI coordinates in mm of those regions, for the brain figures.
        atlas: name of the parcellation.
        grid: rows and columns of the gaze maps, of cohorts that have gaze.
        simulated: whether the data are simulated; shown wherever results are shown.
        fingerprint: hash of the input data, for the record of a run.
    """

    name: str
    fields: tuple[str, ...]
    input_shape: tuple[int, ...]
    target: Factor
    target_kind: Literal["classes", "labels", "value"] = "classes"
    attributes: tuple[Factor, ...] = ()
    regions: tuple[str, ...] = ()
    coordinates: tuple[tuple[float, float, float], ...] = ()
    atlas: str = ""
    grid: tuple[int, ...] = ()
    simulated: bool = False
    fingerprint: str = ""

    def __post_init__(self) -> None:
        """Check that the declaration is one that a batch can follow."""
        unknown = set(self.fields) - set(Batch.__annotations__)
        if unknown:
            raise ValueError(f"cohort '{self.name}' declares fields {sorted(unknown)}, which no Batch has")
        if len([name for name in INPUT_FIELDS if name in self.fields]) != 1:
            raise ValueError(f"cohort '{self.name}' must have exactly one of the fields {', '.join(INPUT_FIELDS)}")
        for names, what in ((self.regions, "regions"), (self.coordinates, "coordinates")):
            if names and len(names) != self.input_shape[0]:
                raise ValueError(f"cohort '{self.name}' has {len(names)} {what} for {self.input_shape[0]} inputs")

    @property
    def input_field(self) -> str:
        """The batch field that a model reads: `connectome`, `image` or `volume`."""
        return next(name for name in INPUT_FIELDS if name in self.fields)

    def attribute(self, name: str) -> Factor:
        """The attribute called `name`.

        Raises:
            KeyError: when the cohort has no such attribute.
        """
        for factor in self.attributes:
            if factor.name == name:
                return factor
        known = [factor.name for factor in self.attributes]
        raise KeyError(f"cohort '{self.name}' has no attribute '{name}'; it has {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values (str, int, float, bool, dict, list), as checkpoints and configs hold them."""
        plain = _listed(asdict(self))
        assert isinstance(plain, dict)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cohort:
        """The inverse of `to_dict`."""
        given = {key: _tupled(value) for key, value in values.items() if key not in ("target", "attributes")}
        factors = [Factor(**{k: _tupled(v) for k, v in f.items()}) for f in (values["target"], *values["attributes"])]
        return cls(**given, target=factors[0], attributes=tuple(factors[1:]))


@dataclass
class Representation:
    """What a method makes of a batch; with the labels it is all that losses and evaluators see.

    Attributes:
        logits: factor name to `(B, classes)` scores (`(B, K)` for labels, `(B, 1)` for a value); the target's entry
            is the prediction, those of attributes are auxiliary heads.
        blocks: block name to `(B, d)` latent vectors; leakage probes read these.
        tokens: token set name to `(B, N, d)` embeddings. Image-text methods give, with unit length, `patches`,
            `sentences` (zeros after the last one of a sample), and `phrases` of a batch's boxes (likewise).
        maps: factor name to `(B, classes, N)` attention over those tokens, rows summing to 1.
        grid: rows and columns of the patches, row by row.
    """

    logits: dict[str, Tensor]
    blocks: dict[str, Tensor] = field(default_factory=dict)
    tokens: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, ...] = ()


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list | tuple) else value


def _listed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _listed(item) for key, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, list | tuple) else value
