"""Prompts: the phrases that say each class in words, from files that a user can replace.

A file is YAML: class names, and for each a list of phrases, or parts whose every combination is a phrase:

    Edema:
      severity: ["", mild, severe]
      subtype: [interstitial edema, alveolar edema]
      location: ["", in both lungs]
    no finding:
      - the lungs are clear

`severity`, `subtype` and `location` may have any name; their values are joined by spaces in the order of the file, and
an empty one leaves its part out. The files that come with the package lie in the folder that is named like this module.
"""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medprism.data.errors import DataError

FOLDER = Path(__file__).with_suffix("")

Prompts = dict[str, tuple[str, ...]]


def prompt_sets() -> tuple[str, ...]:
    """Names of the prompt sets that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load_prompts(name_or_path: str | Path, classes: Sequence[str] | None = None, most: int | None = None) -> Prompts:
    """Read the phrases of each class.

    Args:
        name_or_path: one of `prompt_sets()`, or the path of a YAML file of your own.
        classes: the classes of a cohort, in the order of their codes; the file must have exactly these.
        most: phrases of a class at most, drawn with a fixed seed; all when left out. Where the best phrase speaks
            for a class, one with more phrases has more chances: a bound that all classes reach evens them out.

    Returns:
        Class to phrases, in the order of `classes`, or else of the file.

    Raises:
        DataError: when there is no such file, it is no UTF-8 or no YAML of this form, a class has no phrase, a phrase
            comes twice, or the classes are others.
    """
    if most is not None and most < 1:
        raise DataError(f"most is {most}; keep at least 1 phrase a class")
    file = _file(name_or_path)
    found = {name: _phrases(value, name, file) for name, value in _entries(file).items()}
    seen: dict[str, str] = {}
    for name, phrases in found.items():
        for phrase in phrases:
            if phrase in seen:
                where = f"twice in class '{name}'" if seen[phrase] == name else f"in '{seen[phrase]}' and '{name}'"
                raise DataError(f"{file}: phrase '{phrase}' stands {where}; say each class in words of its own")
            seen[phrase] = name
    if classes is not None:
        unknown, missing = [n for n in found if n not in classes], [n for n in classes if n not in found]
        if unknown or missing:
            raise DataError(
                f"{file}: unknown classes {unknown}, missing classes {missing}; the classes are {list(classes)}, "
                "spelled like this"
            )
        found = {name: found[name] for name in classes}
    return {name: _at_most(phrases, most) for name, phrases in found.items()}


def _file(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    shipped = FOLDER / f"{name_or_path}.yaml"
    if str(name_or_path) in prompt_sets():
        return shipped
    if not path.is_file():
        raise DataError(
            f"there is no prompt set '{name_or_path}': name one of {', '.join(prompt_sets())}, or an existing file"
        )
    return path


def _entries(file: Path) -> dict[str, Any]:
    """Class name to what stands there."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {error.start} is not UTF-8; save the file as UTF-8") from error
    try:
        entries = yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        raise DataError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(entries, dict) or not entries:
        raise DataError(f"{file}: expected classes, each with its phrases, found {type(entries).__name__}")
    odd = [name for name in entries if not isinstance(name, str) or not name.strip()]
    if odd:
        raise DataError(f"{file}: class name {odd[0]!r} is not text; put it in quotes")
    return entries


def _phrases(value: Any, name: str, file: Path) -> tuple[str, ...]:
    """The phrases of one class: a list as it is, parts in every combination."""
    if isinstance(value, dict) and value:
        parts = [_texts(part, f"{file}: class '{name}', part '{key}'") for key, part in value.items()]
        phrases = [" ".join(" ".join(chosen).split()) for chosen in itertools.product(*parts)]
    else:
        phrases = [" ".join(text.split()) for text in _texts(value, f"{file}: class '{name}'")]
    if not all(phrases):
        raise DataError(f"{file}: class '{name}' has an empty phrase; write it, or take the line out")
    return tuple(phrases)


def _texts(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not value:
        raise DataError(f"{where}: expected a list of at least one text, found {value!r}")
    odd = [text for text in value if not isinstance(text, str)]
    if odd:
        raise DataError(f"{where}: {odd[0]!r} is not text; put it in quotes")
    return value


def _at_most(phrases: tuple[str, ...], most: int | None) -> tuple[str, ...]:
    if most is None or len(phrases) <= most:
        return phrases
    drawn = np.random.default_rng(0).choice(len(phrases), most, replace=False)
    return tuple(phrases[k] for k in sorted(drawn))


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that refuses a key that comes twice, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                raise yaml.constructor.ConstructorError(
                    None, None, f"'{key}' comes twice; give each class once", node.value[position][0].start_mark
                )
        return super().construct_mapping(node, deep)
