"""What a run was made of: the code, and the files that its cohort reads."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_PARTS = tuple(
    f"{part}/*.py" for part in ("data", "datamodules", "dependence", "encoders", "evaluation", "losses", "methods")
)


def code_fingerprint() -> str:
    """SHA-256 of the package's source as it is now, so that a run of other code shows as stale."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(file for part in ("*.py", *_PARTS) for file in root.glob(part)):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def data_fingerprint(paths: Sequence[str]) -> str:
    """SHA-256 of name, size and time of change of every file there, so that a run of other data shows as stale.

    Nothing is read: a folder of 100,000 images takes seconds. So files that were only touched or copied count as other
    data, which costs a run and never mixes two.

    Args:
        paths: files or folders; one that is not there counts as such.
    """
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path}\0".encode())
        for name, status in sorted(_files(Path(path).expanduser())):
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest() if paths else ""


def _files(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    if path.is_file():
        yield "", path.stat()
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            file = Path(folder, name)
            if file.exists():  # a broken link is no file
                yield str(file.relative_to(path)), file.stat()
