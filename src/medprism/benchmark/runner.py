"""Runs of a suite: each a process of the same command, kept when finished, recorded when failed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from medprism.benchmark.suite import Job
from medprism.evaluation.evaluator import PREDICTIONS
from medprism.evaluation.predictions import write_whole

_PARTS = tuple(
    f"{part}/*.py" for part in ("data", "datamodules", "dependence", "encoders", "evaluation", "losses", "methods")
)

DONE, FAILED, CONFIG, LOG = "done.json", "failed.json", "job.yaml", "log.txt"


@dataclass(frozen=True)
class Outcome:
    """What became of a job.

    Attributes:
        job: the job.
        folder: of the run.
        state: `finished`, `kept` (it was finished before), `stale` (finished, but by other code), or `failed`.
        seconds: of the run.
        error: the last words of a failed run.
    """

    job: Job
    folder: Path
    state: str
    seconds: float = 0.0
    error: str = ""


@cache
def code_fingerprint() -> str:
    """SHA-256 of the package's source, so that a run of other code shows as stale."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(file for part in ("*.py", *_PARTS) for file in root.glob(part)):
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return digest.hexdigest()


def state_of(job: Job, runs: Path) -> Outcome:
    """What a former command left of a job; `missing` where there is nothing."""
    folder = runs / job.name
    if (folder / DONE).exists():
        record = json.loads((folder / DONE).read_text(encoding="utf-8"))
        state = "kept" if record["code"] == code_fingerprint() else "stale"
        return Outcome(job, folder, state, record["seconds"])
    if (folder / FAILED).exists():
        record = json.loads((folder / FAILED).read_text(encoding="utf-8"))
        return Outcome(job, folder, "failed", record["seconds"], record["error"])
    return Outcome(job, folder, "missing")


def run_all(jobs: Sequence[Job], runs: Path, workers: int, again: bool = False) -> Iterator[Outcome]:
    """Run what is missing or failed, several at a time; yields each outcome as it comes.

    Args:
        jobs: the runs.
        runs: folder of all runs.
        workers: processes at a time; each has one thread when there are several.
        again: whether to run stale runs again.
    """
    waiting = []
    for job in jobs:
        known = state_of(job, runs)
        if known.state == "kept" or (known.state == "stale" and not again):
            yield known
        else:
            waiting.append(job)
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run, job, runs, workers) for job in waiting]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True, wait=False)
            raise


def run(job: Job, runs: Path, workers: int = 1) -> Outcome:
    """One `lightning fit` in a process of its own; its words go to log.txt."""
    folder = runs / job.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in (DONE, FAILED):
        (folder / old).unlink(missing_ok=True)
    (folder / CONFIG).write_text(yaml.safe_dump(dict(job.config), sort_keys=False), encoding="utf-8")
    words = [sys.executable, "-m", "medprism", "fit", "--config", str(folder / CONFIG), "--run_folder", str(folder)]
    threads = {} if workers == 1 else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    started = time.perf_counter()
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, env=os.environ | threads)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            raise
    seconds = round(time.perf_counter() - started, 1)
    record: dict[str, Any] = {"seconds": seconds, "code": code_fingerprint()}
    if status or not (folder / PREDICTIONS).exists():
        error = _last_words(folder / LOG) or f"ended with status {status}"
        (folder / FAILED).write_text(json.dumps({**record, "error": error}), encoding="utf-8")
        return Outcome(job, folder, "failed", seconds, error)
    record["peak_memory_mb"] = round(usage.ru_maxrss / 1024)  # kilobytes on Linux
    text = json.dumps(record)
    write_whole(folder / DONE, lambda part: part.write_text(text, encoding="utf-8"))
    return Outcome(job, folder, "finished", seconds)


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""
