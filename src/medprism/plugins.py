"""Methods and cohorts of other packages: what their entry points name is imported, so that its short name works."""

from __future__ import annotations

import inspect
import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType

METHODS, DATAMODULES = "medprism.methods", "medprism.datamodules"
"""The entry-point groups; an entry names a class, or a module that defines some."""


class PluginWarning(UserWarning):
    """An installed package registers something that cannot be used."""


@cache
def load_plugins(group: str, base: type) -> tuple[type, ...]:
    """Import what the installed packages register; done once in a process.

    A package that cannot be imported gives a `PluginWarning` with its name and the error, and nothing else happens.

    Args:
        group: `METHODS` or `DATAMODULES`.
        base: the class that all of it must descend from.

    Returns:
        The classes.
    """
    found: dict[type, None] = {}
    for entry in sorted(entry_points(group=group), key=lambda entry: (entry.name, entry.value)):
        where = f"{_package(entry)} registers {entry.name} = {entry.value} under {group}"
        try:
            loaded = entry.load()
        except Exception as error:  # a stranger's module may raise anything, and must not take the program along
            warnings.warn(
                f"{where}, which cannot be imported: {type(error).__name__}: {error}. Mend, update or uninstall that "
                "package; everything else works without it.",
                PluginWarning,
                stacklevel=2,
            )
            continue
        classes = _classes(loaded, base)
        if not classes:
            warnings.warn(
                f"{where}, which is no subclass of {base.__module__}.{base.__name__}, nor a module that defines one. "
                "Mend the entry point of that package; everything else works without it.",
                PluginWarning,
                stacklevel=2,
            )
        found |= dict.fromkeys(classes)
    _warn_of_names(found, base)
    return tuple(found)


def _classes(loaded: object, base: type) -> list[type]:
    """The classes that an entry point means."""
    if isinstance(loaded, ModuleType):
        own = [each for each in vars(loaded).values() if isinstance(each, type) and each.__module__ == loaded.__name__]
        return [each for each in own if issubclass(each, base) and not inspect.isabstract(each)]
    return [loaded] if isinstance(loaded, type) and issubclass(loaded, base) else []


def _warn_of_names(found: dict[type, None], base: type) -> None:
    """A short name that two classes have means neither."""
    taken: dict[str, list[type]] = {}
    for cls in (*found, *_descendants(base)):
        same = taken.setdefault(cls.__name__, [])
        if cls not in same:
            same.append(cls)
    for name, classes in taken.items():
        if len(classes) > 1 and any(cls in found for cls in classes):
            paths = ", ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in classes)
            warnings.warn(
                f"{name} is the name of {len(classes)} classes ({paths}): in class_path give one of these in full.",
                PluginWarning,
                stacklevel=3,
            )


def _descendants(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [each for child in children for each in (child, *_descendants(child))]


def _package(entry: EntryPoint) -> str:
    return f"the package {entry.dist.name} {entry.dist.version}" if entry.dist is not None else "a package"
