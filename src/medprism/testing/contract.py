"""Checks of what a method declares and returns."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from medprism.cohort import INPUT_FIELDS, Batch, Cohort, Representation
from medprism.method import CohortMismatchError
from medprism.testing.batches import same
from medprism.testing.report import CheckFailure, described
from medprism.testing.trial import MethodTrial, part_of, with_unknown, without

ALWAYS = frozenset({"id", "subject"})
OTHER_INPUT: Mapping[str, tuple[str, tuple[int, ...]]] = {
    "connectome": ("image", (1, 16, 16)),
    "image": ("connectome", (16, 16)),
    "volume": ("image", (1, 16, 16)),
}


def check_construct(trial: MethodTrial) -> None:
    """The class can be built from a cohort and declares batch fields that exist."""
    cls = trial.cls
    unknown = sorted(set(cls.requires) - set(Batch.__annotations__))
    if not isinstance(cls.requires, frozenset) or unknown:
        raise CheckFailure(
            "`requires` to be a frozenset of batch fields",
            f"{cls.requires!r}",
            f"write requires: ClassVar[frozenset[str]] = frozenset({{...}}) with some of {list(Batch.__annotations__)}",
        )
    try:
        method = trial.build()
    except Exception as error:
        raise CheckFailure(
            f"{cls.__name__}(cohort) to build for `{trial.cohort.name}` with {dict(trial.init_args)}",
            described(error),
            "give arguments (check_method(..., name=value)) or a cohort (cohort=...) with which it can be built",
        ) from error
    if getattr(method, "cohort", None) != trial.cohort:
        raise CheckFailure("`self.cohort` to be the cohort given", "another", "call super().__init__(cohort) first")


def check_arguments(trial: MethodTrial) -> None:
    """Every argument has a type and a line in the docstring: both become the command line's help."""
    refuse_unexplained(trial.cls, {"cohort"})


def refuse_unexplained(cls: type, without_type: set[str]) -> None:
    """Refuse a constructor with arguments that the command line could not read or explain.

    Args:
        cls: the class.
        without_type: arguments that need no type.

    Raises:
        CheckFailure: names the arguments.
    """
    parameters = inspect.signature(cls).parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    untyped = [p.name for p in named if p.annotation is p.empty and p.name not in without_type]
    text = inspect.getdoc(cls) or ""
    silent = [p.name for p in named if not re.search(rf"^\s*{re.escape(p.name)}\s*(\(.*\))?:\s*\S", text, re.M)]
    if untyped or silent:
        raise CheckFailure(
            "a type and a line under `Args:` of the class's docstring for every argument of the constructor",
            f"no type for {untyped}, no line for {silent}",
            "add them: the command line reads values by their types, and its help shows the lines",
        )


def check_contract(trial: MethodTrial) -> None:
    """`represent`, `losses` and `critic_losses` return what they should, and leave the batch as it is."""
    method, batch = trial.build().eval(), trial.batch()
    before = _copied(batch)
    with torch.no_grad():
        rep = method.represent(batch)
    if not isinstance(rep, Representation):
        raise CheckFailure("represent to return a Representation", type(rep).__name__, "return Representation(...)")
    _check_representation(rep, trial.cohort, len(batch["id"]))
    method.train()
    rep = method.represent(batch)
    losses, critics = method.losses(batch, rep), method.critic_losses(batch, rep)
    for where, terms in (("losses", losses), ("critic_losses", critics)):
        _check_terms(where, terms)
    if not losses and not critics:
        raise CheckFailure("at least one loss term", "none", "return a dictionary of named terms from losses")
    if twice := sorted(set(losses) & set(critics)):
        raise CheckFailure("names of terms to differ", f"{twice} in losses and critic_losses", "rename one of each")
    if changed := [name for name in before if not same(before[name], batch.get(name))]:
        raise CheckFailure(
            "the batch to stay as it is, since evaluators read it too",
            f"{changed} changed by represent or losses",
            "change a copy, and use no operation in place on what the batch holds",
        )


def _check_representation(rep: Representation, cohort: Cohort, n: int) -> None:
    classes = {factor.name: max(1, len(factor.classes)) for factor in (cohort.target, *cohort.attributes)}
    target = cohort.target.name
    if target not in rep.logits:
        raise CheckFailure(
            f"logits of the target '{target}' outside of training",
            f"logits of {sorted(rep.logits)}",
            "fill Representation.logits[self.cohort.target.name]",
        )
    for name, logits in rep.logits.items():
        if name not in classes or tuple(logits.shape) != (n, classes[name]) or not logits.is_floating_point():
            raise CheckFailure(
                f"logits of factors {classes} (name: classes), each a float tensor (B, classes) with B = {n}",
                f"logits['{name}'] of shape {tuple(logits.shape)}, {logits.dtype}",
                "take names and class counts from self.cohort.target and self.cohort.attributes",
            )
    for name, block in rep.blocks.items():
        if block.ndim != 2 or len(block) != n or not block.is_floating_point():
            raise CheckFailure(
                f"blocks to be float tensors (B, d) with B = {n}",
                f"blocks['{name}'] of shape {tuple(block.shape)}, {block.dtype}",
                "pool over tokens or flatten; token embeddings belong into tokens",
            )
    for name, tokens in rep.tokens.items():
        if tokens.ndim < 3 or len(tokens) != n:
            raise CheckFailure(
                f"tokens to be (B, N, d) with B = {n}",
                f"tokens['{name}'] of shape {tuple(tokens.shape)}",
                "vectors of whole samples belong into blocks",
            )
    for name, maps in rep.maps.items():
        if maps.ndim != 3 or tuple(maps.shape[:2]) != (n, classes.get(name, -1)):
            raise CheckFailure(
                f"maps of factors {classes} (name: classes) of shape (B, classes, N) with B = {n}",
                f"maps['{name}'] of shape {tuple(maps.shape)}",
                "give one map of the tokens for each class of a factor",
            )
        rows = maps.float().sum(-1)
        if (maps < 0).any() or not torch.allclose(rows, torch.ones_like(rows), atol=1e-3):
            raise CheckFailure(
                "rows of maps to be shares of attention, which sum to 1",
                f"maps['{name}'] with sums from {float(rows.min()):.3g} to {float(rows.max()):.3g}",
                "normalise over the last axis, for example by softmax(-1)",
            )
    patches = rep.grid and rep.tokens.get("patches")
    if isinstance(patches, Tensor) and patches.shape[1] != torch.Size(rep.grid).numel():
        raise CheckFailure("as many patches as the grid has places", f"{patches.shape[1]} for {rep.grid}", "mend grid")


def _check_terms(where: str, terms: Any) -> None:
    if not isinstance(terms, dict):
        raise CheckFailure(
            f"{where} to return a dict of named terms", type(terms).__name__, "return {'name': term, ...}"
        )
    for name, term in terms.items():
        if not isinstance(name, str) or not isinstance(term, Tensor) or term.ndim or not term.is_floating_point():
            kind = f"a tensor of shape {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise CheckFailure(
                f"{where} to map names to scalar float tensors",
                f"{name!r}: {kind}",
                "reduce each term over the samples, for example by mean_over_samples",
            )


def check_requires(trial: MethodTrial) -> None:
    """A cohort that lacks a required field is refused, and nothing else is read."""
    cls, cohort = trial.cls, trial.cohort
    for name in sorted(cls.requires - ALWAYS):
        lacking = _lacking(cohort, name)
        try:
            cls(lacking.to_dict(), **trial.init_args)
        except CohortMismatchError as error:
            if name in str(error):
                continue
            found = f"a CohortMismatchError that does not name it: {error}"
        except Exception as error:
            found = described(error)
        else:
            found = "no error"
        raise CheckFailure(
            f"a cohort without '{name}' to be refused with a CohortMismatchError that names it",
            found,
            "call super().__init__(cohort, ...) before anything else: it compares `requires` with the cohort",
        )
    needed = {*cls.requires, *ALWAYS, cohort.input_field}
    attributes = cohort.attributes if "attributes" in needed else ()
    least = replace(cohort, fields=tuple(f for f in cohort.fields if f in needed), attributes=attributes)
    batch = without(trial.batch(), [name for name in Batch.__annotations__ if name not in needed])
    try:
        method = trial.build(least)
        for training in (True, False):
            method.train(training)
            rep = method.represent(batch)
            method.losses(batch, rep), method.critic_losses(batch, rep)
    except CohortMismatchError:
        return  # with these arguments it needs more, and says so
    except Exception as error:
        raise CheckFailure(
            f"the fields {sorted(needed)} to be enough, as `requires` says",
            described(error),
            "add what is read to `requires`, or read it with batch.get(...) and do without",
        ) from error


def _lacking(cohort: Cohort, name: str) -> Cohort:
    """The cohort without a field; another input takes the place of its input."""
    if name in INPUT_FIELDS:
        other, shape = OTHER_INPUT[name]
        fields = tuple(other if field == name else field for field in cohort.fields)
        return replace(cohort, fields=fields, input_shape=shape, regions=(), coordinates=())
    attributes = () if name == "attributes" else cohort.attributes
    return replace(cohort, fields=tuple(field for field in cohort.fields if field != name), attributes=attributes)


def check_target_unseen(trial: MethodTrial) -> None:
    """Outside of training, predictions do not depend on the target that the batch has."""
    batch = trial.batch()
    if "target" not in batch:
        return
    _compare(trial, batch, "target", batch["target"].roll(1, 0))


def check_attributes_unseen(trial: MethodTrial) -> None:
    """Outside of training, predictions do not depend on the attributes that the batch has."""
    batch = trial.batch()
    if "attributes" not in batch:
        return
    turned = {name: codes.clamp(min=0).roll(1, 0) for name, codes in batch["attributes"].items()}
    _compare(trial, batch, "attributes", turned)


def _compare(trial: MethodTrial, batch: Batch, field: str, other_values: Any) -> None:
    method = trial.after_training[0]  # before it, a path that leans on labels may still be closed
    given = trial.predictions(method, batch)
    variants = {f"another {field}": cast(Batch, {**batch, field: other_values})}
    if field == "attributes":
        unknown = with_unknown(batch, 1)["attributes"]
        variants["unknown attributes"] = cast(Batch, {**batch, "attributes": unknown})
    else:
        variants[f"no {field}"] = without(batch, [field])
    for what, other in variants.items():
        try:
            found = trial.predictions(method, other)
        except Exception as error:
            raise CheckFailure(
                f"predictions for samples with {what}",
                described(error),
                f"read batch['{field}'] in losses, not in represent: at test time it may be unknown",
            ) from error
        _refuse_other(given, found, what, f"read batch['{field}'] in losses, not in represent")


def check_samples_alone(trial: MethodTrial) -> None:
    """Outside of training, the prediction for a sample does not depend on the other samples of the batch."""
    method, batch = trial.after_training[0], trial.batch()
    half = slice(0, len(batch["id"]) // 2)
    alone = trial.predictions(method, part_of(batch, half))
    together = trial.predictions(method, batch)
    cut: Any = {**together, "probabilities": together["probabilities"][half]}
    cut["blocks"] = {name: block[half] for name, block in together["blocks"].items()}
    _refuse_other(cut, alone, "fewer samples beside it", "use no statistics of the batch outside of training")


def _refuse_other(given: Any, found: Any, what: str, mend: str) -> None:
    pairs = {"probabilities": (given["probabilities"], found["probabilities"])}
    pairs |= {f"block '{name}'": (block, found["blocks"][name]) for name, block in given["blocks"].items()}
    for name, (one, other) in pairs.items():
        if one.shape != other.shape or not torch.allclose(one, other, atol=1e-4, rtol=1e-3):
            apart = float((one - other).abs().max()) if one.shape == other.shape else float("nan")
            raise CheckFailure(
                f"the same {name} for a sample with {what}", f"a difference of {apart:.3g}", f"{mend}; dropout is off"
            )


def _copied(batch: Batch) -> dict[str, Any]:
    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.clone()
        if isinstance(value, dict):
            return {key: copied(item) for key, item in value.items()}
        return [copied(item) for item in value] if isinstance(value, list) else value

    return {name: copied(value) for name, value in batch.items()}
