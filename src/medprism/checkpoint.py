"""From a checkpoint file back to a model."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch

from medprism.encoders.trunks import without_pretrained_weights
from medprism.method import Method
from medprism.plugins import METHODS, load_plugins


class CheckpointError(RuntimeError):
    """A file is no checkpoint of a method, or of a method that is not known here."""


def load_method(path: str | Path, module: str | None = None) -> Method:
    """A ready model in evaluation mode, on the CPU, from a checkpoint alone.

    The file is read with `weights_only=True`: it holds tensors and plain values, and no code of it is run. Its class
    is looked up by name among the methods that are imported, those of medprism and of packages that register theirs;
    it never decides what to import.

    Args:
        path: a checkpoint that `lightning fit` or a `Trainer` wrote.
        module: the module that defines the method, such as `my_method`, for one that no installed package registers;
            it may lie in the working directory.

    Raises:
        CheckpointError: when the file is missing, damaged, or of an unknown class.
    """
    checkpoint = read_checkpoint(path)
    import_module("medprism.methods")
    load_plugins(METHODS, Method)
    if module is not None:
        if str(Path.cwd()) not in sys.path:
            sys.path.insert(0, str(Path.cwd()))
        import_module(module)
    name = checkpoint.get("medprism_method")
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in _subclasses(Method)}  # type: ignore[type-abstract]
    if name not in known:
        raise CheckpointError(
            f"{path} holds a '{name}', which is not among the imported methods {sorted(known)}; name the module that "
            f"defines it: load_method({str(path)!r}, module=...)"
        )
    cls = known[name]
    given = checkpoint["hyper_parameters"]
    accepted = inspect.signature(cls).parameters
    every = any(parameter.kind is parameter.VAR_KEYWORD for parameter in accepted.values())
    # Those that begin with "_" are Lightning's own notes on how the class was made.
    own = {key: value for key, value in given.items() if key not in _CALLABLES and not key.startswith("_")}
    arguments = {key: value for key, value in own.items() if every or key in accepted}
    with without_pretrained_weights():
        model = cls(**arguments)
    try:
        model.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights in {path} do not fit {name} as it is defined here: {error}. Was the class changed since the "
            f"checkpoint was written? Use the version of the code that wrote it (environment.json of the run names it)."
        ) from error
    return model.eval()


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint: tensors and plain values.

    Raises:
        CheckpointError: when the file is missing or damaged, or no checkpoint of a method.
    """
    path = Path(path)
    if not path.is_file():
        there = sorted(str(file) for file in path.parent.glob("*.ckpt")) if path.parent.is_dir() else []
        raise CheckpointError(f"there is no checkpoint {path}; checkpoints in its folder: {there or 'none'}")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, BadZipFile, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint ({path.stat().st_size:,} bytes): {error}. It may be cut short by "
            f"an interrupted copy; take last.ckpt of the same run, or copy it again."
        ) from error
    if not isinstance(checkpoint, dict) or not {"state_dict", "hyper_parameters"} <= set(checkpoint):
        raise CheckpointError(f"{path} is no checkpoint of a method: it lacks state_dict or hyper_parameters")
    return checkpoint


# Optimizer and scheduler are made anew from the config when training goes on.
_CALLABLES = ("optimizer", "scheduler")


def _subclasses(cls: type[Method]) -> Iterator[type[Method]]:
    for child in cls.__subclasses__():
        yield child
        yield from _subclasses(child)
