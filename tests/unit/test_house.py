"""The house stays in order: imports run downwards, only one module talks to torch.distributed, files stay short."""

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "medprism"
FLOORS = [
    {"cohort", "distributed", "files", "plugins", "scaffold"},
    {"losses", "dependence", "encoders", "terms"},
    {"method", "data", "evaluation", "explain", "runs", "checkpoint"},
    {"methods", "datamodules", "benchmark", "testing"},
    {"commands"},
    {"cli", "__main__"},
]
FLOOR = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
# Within a floor: who may look at whom.
NEIGHBOURS = {
    "data": set(),
    "evaluation": set(),
    "explain": set(),
    "method": {"evaluation"},
    "checkpoint": {"method"},
    "runs": set(),
    "methods": set(),
    "datamodules": set(),
    "testing": {"datamodules"},
    "encoders": set(),
    "losses": set(),
    "terms": set(),
    "cohort": set(),
    "distributed": set(),
    "commands": set(),
    "cli": set(),
    "__main__": {"cli"},
}
FILES = sorted({*SOURCE.rglob("*.py"), *SOURCE.glob("methods/*.py"), *SOURCE.glob("datamodules/*.py")})


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        found |= {name.split(".")[1] for name in names if name.startswith("medprism.")}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_run_downwards(path):
    here = room(path)
    for other in imported(path) - {here}:
        down = FLOOR[other] < FLOOR[here] or other in NEIGHBOURS.get(here, set())
        assert down, f"{path.relative_to(SOURCE)} imports medprism.{other}, which is not below {here}"


def test_only_one_module_talks_to_torch_distributed():
    pattern = re.compile(r"^\s*(import torch\.distributed|from torch\.distributed|from torch import distributed)", re.M)
    assert {path.name for path in FILES if pattern.search(path.read_text())} == {"distributed.py"}


def test_files_stay_short():
    long = {str(p.relative_to(SOURCE)): n for p in FILES if (n := len(p.read_text().splitlines())) > 400}
    assert not long
    assert len((SOURCE / "method.py").read_text().splitlines()) < 200
