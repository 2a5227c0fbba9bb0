"""Encoders by name: short names of the shipped ones, or the dotted import path of a user's own class."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any, Final

from torch import nn

from medprism.cohort import Cohort
from medprism.encoders.base import Encoder

ENCODERS: Final[dict[str, dict[str, str]]] = {
    "connectome": {
        "region": "medprism.encoders.connectome.RegionProjection",
        "transformer": "medprism.encoders.connectome.ConnectomeTransformer",
        "graph": "medprism.encoders.graph.GraphEncoder",
        "mlp": "medprism.encoders.connectome.MLPEncoder",
    },
    "image": {
        "small": "medprism.encoders.image.SmallCNN",
        "patches": "medprism.encoders.patches.PatchCNN",
        "timm": "medprism.encoders.trunks.TimmEncoder",
        "open_clip": "medprism.encoders.trunks.OpenCLIPImageEncoder",
    },
    "volume": {
        "small": "medprism.encoders.volume.SmallCNN3D",
        "resnet18": "medprism.encoders.volume.ResNet18",
        "densenet": "medprism.encoders.volume.DenseNet",
    },
}
"""Input field to short name to import path; nothing is imported before it is asked for."""


def build_encoder(cohort: Cohort, name: str, options: Mapping[str, Any] | None = None) -> Encoder:
    """Build the encoder of a cohort's input field.

    Args:
        cohort: the cohort whose inputs it reads; sets `regions` (connectomes) or `input_shape` (other inputs).
        name: a short name of `ENCODERS`, or the import path of your own class, such as `my_package.MyEncoder`: a
            subclass of `Encoder`, or any module that returns `Encoded` and has the token width as attribute `dim`.
        options: the other constructor arguments, as plain values.

    Returns:
        the encoder; its attribute `dim` is the token width.

    Raises:
        ValueError: when the name is unknown, an option does not fit, or the encoder is for another input field.
        TypeError: when your own class is no module, or has no `dim`.
    """
    field = cohort.input_field
    _refuse_other_field(name, cohort)
    cls = resolve(name, ENCODERS.get(field, {}), f"encoder of a {field}")
    if getattr(cls, "input_field", field) != field:
        raise ValueError(f"encoder '{name}' reads a {cls.input_field}, but cohort '{cohort.name}' has a {field}")
    given: dict[str, Any] = {"input_shape": tuple(cohort.input_shape)}
    if field == "connectome":
        if len(cohort.input_shape) != 2 or cohort.input_shape[0] != cohort.input_shape[1]:
            raise ValueError(
                f"cohort '{cohort.name}' declares connectomes of shape {tuple(cohort.input_shape)}; "
                "expected (R, R) for R regions: correct `input_shape` in its datamodule"
            )
        given = {"regions": cohort.input_shape[0]}
    check_options(cls, name, options or {}, fixed=given)
    encoder = cls(**given, **(options or {}))
    if not isinstance(encoder, nn.Module) or not isinstance(getattr(encoder, "dim", None), int):
        raise TypeError(f"encoder '{name}' must be a torch.nn.Module with its token width as attribute `dim` (int)")
    return encoder  # type: ignore[return-value] # a user's own module need not subclass Encoder


def resolve(name: str, known: Mapping[str, str], what: str) -> Any:
    """The class behind a short name or a dotted import path.

    Args:
        name: short name, or `package.module.Class`.
        known: short names and their import paths.
        what: the kind of thing, for the error message.

    Returns:
        the class.

    Raises:
        ValueError: when there is no such short name, module, or class in the module.
    """
    module_name, _, class_name = known.get(name, name).rpartition(".")
    hint = f"the known names are {sorted(known)}, or give the import path of your own class (package.module.Class)"
    if not module_name:
        raise ValueError(f"unknown {what} '{name}': {hint}")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses something of its own: that message is the better one
        raise ValueError(f"{what} '{name}': there is no module '{error.name}' on the Python path; {hint}") from error
    if not isinstance(found := getattr(module, class_name, None), type):
        raise ValueError(f"{what} '{name}': module '{module_name}' has no class '{class_name}'; {hint}")
    return found


def check_options(cls: type, name: str, options: Mapping[str, Any], fixed: Mapping[str, Any] | None = None) -> None:
    """Refuse options that do not fit the constructor of a class.

    Args:
        cls: the class.
        name: what the user called it.
        options: the user's options.
        fixed: arguments that are filled in and therefore not the user's to give.

    Raises:
        ValueError: when an option is unknown, missing, or filled in already; names the options that there are.
    """
    fixed = fixed or {}
    parameters = inspect.signature(cls).parameters
    own = {key: parameter for key, parameter in parameters.items() if key not in fixed}
    known = "; ".join(map(_shown, own.values()))
    if taken := sorted(set(options) & set(fixed)):
        raise ValueError(f"options {taken} of '{name}' are set from the cohort: leave them out")
    if missing := [key for key, parameter in own.items() if _required(parameter) and key not in options]:
        raise ValueError(f"'{name}' needs options {missing}; its options are: {known}")
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    if refused := sorted(set(fixed) - set(parameters)):
        raise ValueError(f"the constructor of '{name}' must take {refused}, which are set from the cohort")
    if unknown := sorted(set(options) - set(own)):
        raise ValueError(f"'{name}' has no options {unknown}; its options are: {known}")


def _required(parameter: inspect.Parameter) -> bool:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return parameter.default is inspect.Parameter.empty and parameter.kind not in variadic


def _shown(parameter: inspect.Parameter) -> str:
    kind = (
        parameter.annotation
        if isinstance(parameter.annotation, str)
        else inspect.formatannotation(parameter.annotation)
    )
    return f"{parameter.name}: {kind}" + ("" if _required(parameter) else f" = {parameter.default!r}")


def _refuse_other_field(name: str, cohort: Cohort) -> None:
    field = cohort.input_field
    others = [other for other, names in ENCODERS.items() if name in names]
    if others and field not in others:
        raise ValueError(
            f"encoder '{name}' reads a {others[0]}, but cohort '{cohort.name}' has a {field}; "
            f"the encoders of a {field} are {sorted(ENCODERS.get(field, {}))}"
        )
