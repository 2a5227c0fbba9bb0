"""Engines that do the runs of a suite: this machine, a Ray cluster, SLURM.

A backend is called with jobs and the folder of all runs, and yields each outcome as it comes. What a run is, and what
it leaves behind, is the same for all: `medprism.benchmark.runner.run`. When its outcomes are no longer asked for, a
backend ends what is under way. The folder of the runs must be one that every machine sees.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from medprism.benchmark.runner import Backend, Outcome, run
from medprism.benchmark.suite import Job

BACKENDS = ("local", "ray", "slurm")

_PACKAGES = {"ray": "ray", "slurm": "submitit"}

Work = Callable[[Job, Path, Path, int], Outcome]
"""Does a job, given the folder of all runs, the working directory, and the number of threads."""


class BackendError(ValueError):
    """A backend that cannot be used; the message says what to mend."""


@dataclass(frozen=True)
class Request:
    """What the command line asks of a backend.

    Attributes:
        workers: runs at a time; without it one on this machine, and as many as there is room for on a cluster.
        cpus: processors of a run, on a cluster.
        gpus: GPUs of a run, on a cluster; without it one on a Ray cluster that has any, and none on SLURM.
        options: further settings, which the engine explains.
    """

    workers: int | None = None
    cpus: int = 1
    gpus: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def backend_of(name: str, request: Request) -> Backend:
    """The backend of a name.

    Args:
        name: one of `BACKENDS`.
        request: what is asked of it.

    Raises:
        BackendError: when its package is not installed, or it has no such options.
    """
    package = _PACKAGES.get(name)
    if package and find_spec(package) is None:
        raise BackendError(f"the backend {name} needs {package}, which is missing: pip install 'medprism[{name}]'")
    if name == "ray":
        from medprism.benchmark.backends.ray import Ray

        return Ray(request)
    if name == "slurm":
        from medprism.benchmark.backends.slurm import Slurm

        return Slurm(request)
    from medprism.benchmark.backends.local import Local

    if request.options or request.gpus is not None or request.cpus != 1:
        raise BackendError("the local backend has --workers alone: a run has one GPU, where there are any")
    return Local(request.workers or 1)


def work(job: Job, runs: Path, here: Path, threads: int) -> Outcome:
    """Do a job on another machine, as this one would: paths in a suite are relative to the working directory."""
    if threading.current_thread() is threading.main_thread():
        # a shell lets what it starts in the background ignore Ctrl-C, by which engines end their workers
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(here)
    return run(job, runs, threads)
