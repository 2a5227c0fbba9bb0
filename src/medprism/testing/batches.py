"""Whether a batch is what its cohort declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from medprism.cohort import INPUT_FIELDS, Batch, Cohort
from medprism.testing.report import CheckFailure


def check_batches(batch: Batch, cohort: Cohort, loader: str) -> None:
    """Refuse a batch whose fields, shapes or types are not those that the cohort declares.

    Args:
        batch: the batch.
        cohort: the declaration.
        loader: where the batch comes from, for the message.

    Raises:
        CheckFailure: names the field.
    """
    # Boxes are for evaluation alone: where images are augmented, training batches lack them.
    optional = {"boxes"} if loader == "train" else set()
    lacking = sorted(set(cohort.fields) - set(batch) - optional)
    added = sorted(set(batch) - set(cohort.fields))
    if lacking or added:
        raise CheckFailure(
            f"batches of the {loader} loader with the declared fields {sorted(cohort.fields)}",
            f"{lacking} missing, {added} not declared",
            "let Cohort.fields name what the reader gives; self.batch_fields(input) has the common ones",
        )
    n = len(batch["id"])
    for name, value in batch.items():
        wrong = _wrong(name, value, n, cohort)
        if wrong:
            expected, found = wrong
            raise CheckFailure(
                f"{name} of the {loader} loader to be {expected}", found, "mend the reader or the cohort"
            )


def _wrong(name: str, value: Any, n: int, cohort: Cohort) -> tuple[str, str] | None:
    """What was expected of a field and what was found, if they differ."""
    if name in INPUT_FIELDS:
        return _tensor(value, (n, *cohort.input_shape), torch.float32, finite=True)
    if name == "target":
        if cohort.target_kind == "classes":
            return _tensor(value, (n,), torch.int64)
        shape = (n, len(cohort.target.classes)) if cohort.target_kind == "labels" else (n,)
        return _tensor(value, shape, torch.float32)
    if name == "attributes":
        expected = sorted(factor.name for factor in cohort.attributes)
        if not isinstance(value, dict) or sorted(value) != expected:
            return f"a dict with the attributes {expected}", repr(sorted(value) if isinstance(value, dict) else value)
        return next((w for codes in value.values() if (w := _tensor(codes, (n,), torch.int64))), None)
    if name == "gaze":
        maps = value.shape[1] if isinstance(value, Tensor) and value.ndim == 4 else 0
        wrong = _tensor(value, (n, maps, *cohort.grid), torch.float32, finite=True)
        if wrong is None and value.numel() and (value.min() < 0 or value.max() > 1):
            return "shares in [0, 1]", f"values from {float(value.min()):.3g} to {float(value.max()):.3g}"
        return wrong
    if name == "has_gaze":
        return _tensor(value, (n,), torch.bool)
    if name == "weight":
        wrong = _tensor(value, (n,), torch.float32, finite=True)
        return ("weights of at least 0", "a negative one") if wrong is None and (value < 0).any() else wrong
    return _lists(name, value, n)


def _tensor(value: Any, shape: tuple[int, ...], dtype: torch.dtype, finite: bool = False) -> tuple[str, str] | None:
    expected = f"a tensor {shape} of {dtype}"
    if not isinstance(value, Tensor):
        return expected, type(value).__name__
    if tuple(value.shape) != shape or value.dtype != dtype:
        return expected, f"{tuple(value.shape)} of {value.dtype}"
    if finite and not bool(value.isfinite().all()):
        return "finite", "NaN or infinite values"
    return None


_ITEMS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "id": ("names", lambda item: isinstance(item, str)),
    "subject": ("names", lambda item: isinstance(item, str)),
    "sentences": (
        "lists of sentences",
        lambda item: isinstance(item, list) and all(isinstance(text, str) for text in item),
    ),
    "boxes": (
        "lists of (phrase, left, top, right, bottom) in shares of the image",
        lambda item: (
            isinstance(item, list)
            and all(
                len(box) == 5 and isinstance(box[0], str) and all(0 <= edge <= 1 for edge in box[1:]) for box in item
            )
        ),
    ),
}


def _lists(name: str, value: Any, n: int) -> tuple[str, str] | None:
    what, right = _ITEMS[name]
    expected = f"a list of {n} {what}"
    if not isinstance(value, list) or len(value) != n:
        return expected, f"{type(value).__name__} of {len(value)}" if hasattr(value, "__len__") else repr(value)
    bad = [item for item in value if not right(item)]
    return (expected, f"{bad[0]!r}") if bad else None


def same(one: Any, other: Any) -> bool:
    """Whether two values of a batch, or dictionaries of tensors, are the same, number by number."""
    if isinstance(one, Tensor):
        alike = isinstance(other, Tensor) and one.shape == other.shape
        return alike and torch.equal(one.nan_to_num(), other.nan_to_num())
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    return bool(one == other)
