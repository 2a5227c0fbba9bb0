"""Runs of a suite: each a process of the same command, kept when finished, recorded when failed."""

from __future__ import annotations

import fcntl
import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medprism.benchmark.fingerprints import code_fingerprint, data_fingerprint
from medprism.benchmark.process import run_module
from medprism.benchmark.suite import Job
from medprism.files import METRICS, PREDICTIONS, SELECTION, write_whole

DONE, FAILED, CONFIG, LOG, LOCK = "done.json", "failed.json", "job.yaml", "log.txt", "lock"

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        folder: of the run.
        state: `finished`, `kept` (it was finished before), `stale` (finished, but with other code or data), `failed`,
            or `missing`.
        seconds: of the run.
        error: the last words of a failed run.
    """

    job: Job
    folder: Path
    state: str
    seconds: float = 0.0
    error: str = ""


Backend = Callable[[Sequence[Job], Path], Iterator[Outcome]]
"""Does jobs, given the folder of all runs, and yields each outcome as it comes; see `medprism.benchmark.backends`."""


class Fingerprints:
    """Of the code and of every job's data as they are now, each taken once."""

    def __init__(self) -> None:
        self.code = code_fingerprint()
        self._data: dict[tuple[str, ...], str] = {}

    def data(self, job: Job) -> str:
        """The fingerprint of what a job reads."""
        if job.reads not in self._data:
            self._data[job.reads] = data_fingerprint(job.reads)
        return self._data[job.reads]

    def match(self, record: Mapping[str, Any], job: Job) -> bool:
        """Whether a finished run is of this code and these data; older records say nothing about data."""
        return bool(record["code"] == self.code and record.get("data", self.data(job)) == self.data(job))


def made_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """The code and data of a finished run; runs of which they differ are not averaged."""
    return record["code"], record.get("data", "")


def state_of(job: Job, runs: Path, now: Fingerprints | None = None) -> Outcome:
    """What a former command left of a job; `missing` where there is nothing.

    Args:
        job: the run.
        runs: folder of all runs.
        now: the code and data; looked at now when left out.
    """
    folder = runs / job.name
    if (folder / DONE).exists():
        record = json.loads((folder / DONE).read_text(encoding="utf-8"))
        state = "kept" if (now or Fingerprints()).match(record, job) else "stale"
        return Outcome(job, folder, state, record["seconds"])
    if (folder / FAILED).exists():
        record = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return Outcome(job, folder, "failed", record["seconds"], record["error"])
    return Outcome(job, folder, "missing")


def run_all(jobs: Sequence[Job], runs: Path, backend: Backend, again: bool = False) -> Iterator[Outcome]:
    """Run what is missing or failed; yields each outcome as it comes.

    When it is interrupted, or no longer asked for outcomes, the runs that are under way are ended, and are missing.

    Args:
        jobs: the runs.
        runs: folder of all runs.
        backend: does the runs.
        again: whether to run stale runs again.
    """
    waiting, now = [], Fingerprints()
    for job in jobs:
        known = state_of(job, runs, now)
        if known.state == "kept" or (known.state == "stale" and not again):
            yield known
        else:
            waiting.append(job)
    if waiting:
        yield from backend(waiting, runs)


def words_of(folder: Path) -> list[str]:
    """The command of a run, as `python -m` would get it."""
    return ["medprism", "fit", "--config", str(folder / CONFIG), "--run_folder", str(folder)]


def run(
    job: Job,
    runs: Path,
    threads: int | None = None,
    device: str | None = None,
    stop: threading.Event | None = None,
) -> Outcome:
    """One `lightning fit` in a process of its own; its words go to log.txt.

    Args:
        job: the run.
        runs: folder of all runs.
        threads: of the process; as many as its libraries like when left out.
        device: the GPU that the process may use; all that this process may when left out.
        stop: ends the process when it is set; the run is `missing` then.
    """
    stop = stop or threading.Event()
    folder = runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if not _locked(lock.fileno(), stop):
            return Outcome(job, folder, "missing")
        now = Fingerprints()  # of the code that the process imports, and the data that it reads
        known = state_of(job, runs, now)
        if known.state == "kept":  # by another command, while this one waited
            return known
        for old in (DONE, FAILED, PREDICTIONS, METRICS, SELECTION):
            (folder / old).unlink(missing_ok=True)
        (folder / CONFIG).write_text(yaml.safe_dump(dict(job.config), sort_keys=False), encoding="utf-8")
        started = time.perf_counter()
        settings = {"PYTHONUNBUFFERED": "1"}  # else an error would not be the last word in the log
        settings |= {} if threads is None else dict.fromkeys(_THREADS, str(threads))
        ended = run_module(words_of(folder), folder / LOG, lock.fileno(), settings, now.code, stop, device)
        if ended is None:
            return Outcome(job, folder, "missing")
        status, memory = ended
        seconds = round(time.perf_counter() - started, 1)
        record: dict[str, Any] = {"seconds": seconds, "code": now.code, "data": now.data(job)}
        error = _error(status, folder)
        if error:
            _write(folder / FAILED, {**record, "error": error})
            return Outcome(job, folder, "failed", seconds, error)
        _write(folder / DONE, {**record, "peak_memory_mb": round(memory / 1024)})  # from kilobytes on Linux
        return Outcome(job, folder, "finished", seconds)


def lost(job: Job, runs: Path, error: str) -> Outcome:
    """What became of a job whose worker ended without a word; where nothing is known, that is recorded as a failure."""
    known = state_of(job, runs)
    if known.state != "missing":
        return known
    folder = runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    error = last_words(error)
    _write(folder / FAILED, {"seconds": 0.0, "error": error})
    return Outcome(job, folder, "failed", 0.0, error)


def _locked(lock: int, stop: threading.Event) -> bool:
    """Take the lock of a folder; False when stopped before.

    The process of a run holds it as well. So a run whose command was killed is not started beside what is left of
    it, but after it.
    """
    while not stop.is_set():
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stop.wait(0.2)
        else:
            return True
    return False


def _error(status: int, folder: Path) -> str:
    """Why a run failed; nothing when it did not."""
    last = last_words((folder / LOG).read_text(encoding="utf-8", errors="replace"))
    if status < 0:
        return f"killed by {signal.Signals(-status).name}" + (f" after: {last}" if last else "")
    if status:
        return last or f"ended with status {status}"
    missing = [name for name in (PREDICTIONS, METRICS) if not (folder / name).exists()]
    return f"ended without {' and '.join(missing)}; a suite needs test_after_fit: true" if missing else ""


_ANNOUNCED = re.compile(r"^(\w+\.)*\w*(error|exception|exit|interrupt)\b", re.IGNORECASE)


def last_words(log: str) -> str:
    """The message of the last error in a log, else its last line; at most 500 characters."""
    lines = [line.rstrip() for line in log.splitlines() if line.strip()]
    starts = [k for k, line in enumerate(lines) if _ANNOUNCED.match(line)]
    return " ".join(line.strip() for line in lines[starts[-1] if starts else -1 :])[:500]


def _write(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
