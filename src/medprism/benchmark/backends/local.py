"""Runs on this machine."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from medprism.benchmark.runner import Outcome, run
from medprism.benchmark.suite import Job


@dataclass(frozen=True)
class Local:
    """Several processes at a time on this machine.

    Attributes:
        workers: processes at a time. When there are several, each has one thread, and one GPU where there are GPUs;
            more workers than GPUs share them evenly. A single one has whatever the machine has.
    """

    workers: int = 1

    def __call__(self, jobs: Sequence[Job], runs: Path) -> Iterator[Outcome]:
        """Do the jobs, and yield each outcome as it comes."""
        alone = self.workers == 1
        devices = [] if alone else visible_devices()
        slots: SimpleQueue[str | None] = SimpleQueue()
        for slot in range(self.workers):
            slots.put(devices[slot % len(devices)] if devices else None)
        stop = threading.Event()

        def one(job: Job) -> Outcome:
            device = slots.get()
            try:
                return run(job, runs, None if alone else 1, device, stop)
            finally:
                slots.put(device)

        with ThreadPoolExecutor(self.workers) as pool:
            futures = [pool.submit(one, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                stop.set()
                pool.shutdown(cancel_futures=True, wait=False)
                raise


def visible_devices() -> list[str]:
    """Names of the GPUs that this process may use, as CUDA_VISIBLE_DEVICES has them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    import torch  # only now: it takes seconds, and a named list needs none of it

    return [str(number) for number in range(torch.cuda.device_count())]
