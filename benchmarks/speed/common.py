"""What the speed scripts share: clocks, memory in a process of its own, results with a description of the machine."""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results" / "speed"


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.process_time) -> float:
    """Time of one call; by default of the processor, on one thread that of an idle machine, whatever else runs."""
    started = clock()
    work()
    return clock() - started


def highest() -> float:
    """Peak memory of this process in MB; not `ru_maxrss`, which a child inherits from its parent."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def megabytes(measure: Callable[..., float], *arguments: object) -> float:
    """What a function returns in a process of its own, such as the memory that a step adds."""
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.SimpleQueue[float] = context.SimpleQueue()
    process = context.Process(target=_put, args=(results, measure, *arguments))
    process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process of `{measure.__name__}{arguments}` ended with {process.exitcode}")
    return results.get()


def _put(results: multiprocessing.SimpleQueue[float], measure: Callable[..., float], *arguments: object) -> None:
    results.put(measure(*arguments))


def machine() -> dict[str, Any]:
    """What a reader must know of the machine, without its name."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu",
        "load": os.getloadavg()[0],  # other work lengthens wall-clock times
    }


def write(name: str, result: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Write a result as JSON; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path
