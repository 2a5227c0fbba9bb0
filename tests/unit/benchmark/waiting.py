"""Waiting for what other processes do."""

import fcntl
import time
from pathlib import Path


def until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.02)


def free(folder: Path) -> bool:
    """Whether no process of the run is left: it would hold the lock."""
    if not (folder / "lock").exists():
        return True
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True
