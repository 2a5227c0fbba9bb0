from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from readings import CASES, SEED, WRITERS


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Callable[[str], Path]:
    """The folder of a layout, written once; no test changes it."""
    folders: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = tmp_path_factory.mktemp(kind)
            WRITERS[kind](folders[kind], CASES, SEED)
        return folders[kind]

    return folder


@pytest.fixture
def copied(written, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of such a folder that a test may damage."""
    return lambda kind: Path(shutil.copytree(written(kind), tmp_path / kind))
