"""`lightning new-method NAME`; it imports nothing that takes long."""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from string import Template

ALONE: Mapping[str, str] = {
    "{stem}.py": "method.py",
    "{stem}.yaml": "experiment.yaml",
    "{stem}_suite.yaml": "suite.yaml",
    "test_{stem}.py": "test.py",
    "{stem}.md": "card.md",
}
"""File to template, in a folder of one's own."""

CHECKOUT: Mapping[str, str] = {
    "methods/{stem}.py": "method.py",
    "configs/methods/{stem}.yaml": "checkout_model.yaml",
    "configs/{stem}_simulated.yaml": "checkout_experiment.yaml",
    "benchmarks/{stem}.yaml": "suite.yaml",
    "tests/unit/methods/test_{stem}.py": "test.py",
    "docs/methods/{stem}.md": "card.md",
}
"""The same in a checkout of medprism."""

REGISTRY = "methods/__init__.py"


def new_method(words: Sequence[str]) -> list[Path]:
    """Write the files of a new method, and say what to do with them.

    Args:
        words: what follows `new-method` on the command line.

    Returns:
        The files that were written.

    Raises:
        SystemExit: when the name cannot be one, or a file is there already; nothing is written then.
    """
    parser = argparse.ArgumentParser(
        "lightning new-method",
        description="Writes the class of a method, an experiment, a suite that compares it with ERM, a test of what "
        "every method promises, and a page of documentation. All of them run as they are.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the class, such as MyMethod")
    parser.add_argument(
        "--into",
        type=Path,
        default=Path(),
        help="folder to write to; the working directory when left out. In a checkout of medprism the files go where "
        "those of the other methods are.",
    )
    options = parser.parse_args(words)
    name, folder = options.name, options.into
    within = (folder / "src/medprism/cli.py").is_file() and (folder / REGISTRY).is_file()
    stem = name.lower()
    layout = CHECKOUT if within else ALONE
    files = {folder / place.format(stem=stem): template for place, template in layout.items()}
    if there := [str(file) for file in files if file.exists()]:
        parser.error(f"there already: {', '.join(there)}; nothing was written. Choose another name or --into")
    if reason := _refusal(name, within):
        parser.error(reason)
    experiment, suite = ("configs/{}_simulated.yaml", "benchmarks/{}.yaml") if within else ("{}.yaml", "{}_suite.yaml")
    own = f"from {'medprism.methods' if within else stem} import {name}"
    checker = "from medprism.testing import check_method"
    values = {
        "name": name,
        "stem": stem,
        "imports": "\n".join([*([own] if within else []), checker, *([] if within else ["", own])]),
        "path": name if within else f"{stem}.{name}",
        "config": experiment.format(stem),
        "suite": suite.format(stem),
    }
    registry = _registered((folder / REGISTRY).read_text(encoding="utf-8"), name, stem) if within else None
    for file, template in files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_filled(template, values), encoding="utf-8")
    written = list(files)
    if registry is not None:
        (folder / REGISTRY).write_text(registry, encoding="utf-8")
        written.append(folder / REGISTRY)
    print("Written:", *(f"  {file}" for file in written), sep="\n")
    test = next(place for place in layout if "test_" in place).format(stem=stem)
    where = "" if folder.resolve() == Path().resolve() else f" (in {folder})"
    print(f"Next{where}:")
    print(f"  lightning fit --config {values['config']}")
    print(f"  lightning benchmark --config {values['suite']}")
    print(f"  python -m pytest {test}")
    return written


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = resources.files("medprism.scaffold").joinpath(f"templates/{template}.txt").read_text(encoding="utf-8")
    return Template(text).substitute(values)


def _refusal(name: str, within: bool) -> str | None:
    """Why this cannot be the name of a new method, if so."""
    if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name) or not re.search("[a-zA-Z]{2}", name):
        parts = [part for part in re.split(r"[^A-Za-z0-9]+", name) if part]
        better = "".join(part[0].upper() + part[1:] for part in parts).lstrip("0123456789")
        better = better if len(better) > 1 else "MyMethod"
        return (
            f"'{name}' is no name of a class: begin with a capital and use letters and digits alone, such as {better}"
        )
    if name in (known := [*_known(), "Method"]):
        return f"{name} is there already ({', '.join(sorted(known))}); choose another name"
    stem = name.lower()
    if not within and (stem in sys.stdlib_module_names or find_spec(stem) is not None):
        return f"there is a module '{stem}' already, which {stem}.py would hide or be hidden by; choose another name"
    return None


def _known() -> list[str]:
    """The methods of medprism, read from the source, since importing them takes seconds."""
    source = resources.files("medprism").joinpath(REGISTRY).read_text(encoding="utf-8")
    return _exported(source)


def _exported(source: str) -> list[str]:
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def _registered(source: str, name: str, stem: str) -> str:
    """The source of methods/__init__.py with one class more, sorted as ruff does."""
    lines = source.splitlines()
    imports = [line for line in lines if line.startswith("from medprism.methods.")]
    added = sorted([*imports, f"from medprism.methods.{stem} import {name}"], key=lambda line: line.split()[1])
    names = sorted([*_exported(source), name], key=lambda each: (not each.isupper(), each))
    listing = ", ".join(f'"{each}"' for each in names)
    exported = f"__all__ = [{listing}]"
    if len(exported) > 120:
        exported = "\n".join(["__all__ = [", *(f'    "{each}",' for each in names), "]"])
    head = lines[: lines.index(imports[0])]
    return "\n".join([*head, *added, "", exported, ""])
