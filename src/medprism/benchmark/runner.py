"""Runs of a suite: each a process of the same command, kept when finished, recorded when failed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from medprism.benchmark.process import run_module
from medprism.benchmark.suite import Job
from medprism.evaluation.evaluator import METRICS, PREDICTIONS
from medprism.evaluation.predictions import write_whole

_PARTS = tuple(
    f"{part}/*.py" for part in ("data", "datamodules", "dependence", "encoders", "evaluation", "losses", "methods")
)

DONE, FAILED, CONFIG, LOG, LOCK = "done.json", "failed.json", "job.yaml", "log.txt", "lock"

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        folder: of the run.
        state: `finished`, `kept` (it was finished before), `stale` (finished, but by other code), `failed`, or
            `missing`.
        seconds: of the run.
        error: the last words of a failed run.
    """

    job: Job
    folder: Path
    state: str
    seconds: float = 0.0
    error: str = ""


def code_fingerprint() -> str:
    """SHA-256 of the package's source as it is now, so that a run of other code shows as stale."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(file for part in ("*.py", *_PARTS) for file in root.glob(part)):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def state_of(job: Job, runs: Path, code: str | None = None) -> Outcome:
    """What a former command left of a job; `missing` where there is nothing.

    Args:
        job: the run.
        runs: folder of all runs.
        code: the fingerprint of the code; taken now when left out.
    """
    folder = runs / job.name
    if (folder / DONE).exists():
        record = json.loads((folder / DONE).read_text(encoding="utf-8"))
        state = "kept" if record["code"] == (code or code_fingerprint()) else "stale"
        return Outcome(job, folder, state, record["seconds"])
    if (folder / FAILED).exists():
        record = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return Outcome(job, folder, "failed", record["seconds"], record["error"])
    return Outcome(job, folder, "missing")


def run_all(jobs: Sequence[Job], runs: Path, workers: int, again: bool = False) -> Iterator[Outcome]:
    """Run what is missing or failed, several at a time; yields each outcome as it comes.

    When it is interrupted, or no longer asked for outcomes, the runs that are under way are ended, and are missing.

    Args:
        jobs: the runs.
        runs: folder of all runs.
        workers: processes at a time; each has one thread when there are several.
        again: whether to run stale runs again.
    """
    waiting, code = [], code_fingerprint()
    for job in jobs:
        known = state_of(job, runs, code)
        if known.state == "kept" or (known.state == "stale" and not again):
            yield known
        else:
            waiting.append(job)
    stop = threading.Event()
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, job, runs, workers, stop) for job in waiting]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def words_of(folder: Path) -> list[str]:
    """The command of a run, as `python -m` would get it."""
    return ["medprism", "fit", "--config", str(folder / CONFIG), "--run_folder", str(folder)]


def run(job: Job, runs: Path, workers: int = 1, stop: threading.Event | None = None) -> Outcome:
    """One `lightning fit` in a process of its own; its words go to log.txt.

    Args:
        job: the run.
        runs: folder of all runs.
        workers: runs at a time.
        stop: ends the process when it is set; the run is `missing` then.
    """
    stop = stop or threading.Event()
    folder = runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as lock:
        if not _locked(lock.fileno(), stop):
            return Outcome(job, folder, "missing")
        code = code_fingerprint()  # of the code that the process imports
        known = state_of(job, runs, code)
        if known.state == "kept":  # by another command, while this one waited
            return known
        for old in (DONE, FAILED, PREDICTIONS, METRICS):
            (folder / old).unlink(missing_ok=True)
        (folder / CONFIG).write_text(yaml.safe_dump(dict(job.config), sort_keys=False), encoding="utf-8")
        started = time.perf_counter()
        settings = {"PYTHONUNBUFFERED": "1"}  # else an error would not be the last word in the log
        settings |= {} if workers == 1 else dict.fromkeys(_THREADS, "1")
        ended = run_module(words_of(folder), folder / LOG, lock.fileno(), settings, code, stop)
        if ended is None:
            return Outcome(job, folder, "missing")
        status, memory = ended
        seconds = round(time.perf_counter() - started, 1)
        record: dict[str, Any] = {"seconds": seconds, "code": code}
        error = _error(status, folder)
        if error:
            _write(folder / FAILED, {**record, "error": error})
            return Outcome(job, folder, "failed", seconds, error)
        _write(folder / DONE, {**record, "peak_memory_mb": round(memory / 1024)})  # from kilobytes on Linux
        return Outcome(job, folder, "finished", seconds)


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
