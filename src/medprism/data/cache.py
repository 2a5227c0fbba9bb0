"""Arrays on disk that need not be computed twice, found again by what they were computed from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from medprism.data.errors import report

Arrays = dict[str, npt.NDArray[Any]]


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """The folder of the cache: `folder`, else the environment's `MEDPRISM_CACHE`, else `~/.cache/medprism`."""
    return Path(folder or os.environ.get("MEDPRISM_CACHE") or Path.home() / ".cache" / "medprism").expanduser()


def stamps(files: Iterable[str | os.PathLike[str]]) -> list[tuple[str, int, int]]:
    """Name, size in bytes, and time of change in ns of each file: what changes when a file does."""
    found = []
    for file in map(Path, files):
        status = file.stat()
        found.append((file.name, status.st_size, status.st_mtime_ns))
    return found


def cached(
    name: str,
    key: Mapping[str, Any],
    arrays: Sequence[str],
    build: Callable[[], Arrays],
    folder: str | os.PathLike[str] | None = None,
) -> Arrays:
    """The arrays that `build` makes, from disk if they were made before from the same `key`.

    Several processes may call it at once: one builds, the others wait and read. Files are written under another
    name and then moved, so that nobody reads half a file.

    Args:
        name: beginning of the file names, for people.
        key: plain values (settings, and `stamps` of the input files) that determine the arrays.
        arrays: names of the arrays that `build` returns.
        build: computes them.
        folder: see `cache_folder`.

    Returns:
        Array name to array.
    """
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]
    home = cache_folder(folder)
    home.mkdir(parents=True, exist_ok=True)
    files = {array: home / f"{name}-{digest}.{array}.npy" for array in arrays}
    with FileLock(home / f"{name}-{digest}.lock"):
        found = _read(files)
        if found is None:
            found = build()
            for array, file in files.items():
                _write(file, found[array])
    return found


def _read(files: Mapping[str, Path]) -> Arrays | None:
    """The arrays, or None when one of them is not there or not readable."""
    if not all(file.is_file() for file in files.values()):
        return None
    found = {}
    for array, file in files.items():
        try:
            found[array] = np.load(file, allow_pickle=False)
        except (ValueError, EOFError, OSError) as error:
            report(f"cache file {file} cannot be read ({error}); it is built again")
            return None
    return found


def _write(file: Path, array: npt.NDArray[Any]) -> None:
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.save(stream, array, allow_pickle=False)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
