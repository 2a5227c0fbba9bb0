"""Runs on a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medprism.benchmark.backends import BackendError, Request, Work, work
from medprism.benchmark.runner import Outcome, lost
from medprism.benchmark.suite import Job

_QUIET = {"include_dashboard": False, "log_to_driver": False}

_GRACE = 60.0  # seconds that interrupted runs have to end their processes, before Ray ends theirs


@dataclass(frozen=True)
class Ray:
    """One Ray task a run.

    It joins the cluster of `RAY_ADDRESS` or of this machine, and begins one on this machine where there is none; a
    program that has called `ray.init` itself keeps its cluster.

    Attributes:
        request: its options go to `ray.init`, such as `address`.
        work: what a task does.
    """

    request: Request
    work: Work = work

    def __call__(self, jobs: Sequence[Job], runs: Path) -> Iterator[Outcome]:
        """Do the jobs, and yield each outcome as it comes."""
        import ray

        begun = not ray.is_initialized()
        if begun:
            try:
                ray.init(**{**_QUIET, **self.request.options})
            except (TypeError, ValueError, RuntimeError, ConnectionError) as error:
                raise BackendError(f"ray.init({dict(self.request.options)}): {error}") from error
        try:
            yield from self._outcomes(ray, jobs, runs)
        finally:
            if begun:
                ray.shutdown()

    def _outcomes(self, ray: Any, jobs: Sequence[Job], runs: Path) -> Iterator[Outcome]:
        cpus, gpus = self.request.cpus, self.request.gpus
        gpus = int(ray.cluster_resources().get("GPU", 0) >= 1) if gpus is None else gpus
        # a lost run is recorded, as on every backend, and left to the next command
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(self.work)
        waiting = list(jobs)
        under_way: dict[Any, Job] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < (self.request.workers or len(jobs)):
                    job = waiting.pop(0)
                    under_way[task.remote(job, runs.absolute(), Path.cwd(), cpus)] = job
                for done in ray.wait(list(under_way), num_returns=1)[0]:
                    job = under_way.pop(done)
                    try:
                        yield ray.get(done)
                    except ray.exceptions.RayError as error:
                        yield lost(job, runs, str(error))
        finally:
            for each in under_way:
                ray.cancel(each)
            if under_way:
                ray.wait(list(under_way), num_returns=len(under_way), timeout=_GRACE)
