"""Runs as jobs of SLURM, by submitit."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medprism.benchmark.backends import BackendError, Request, Work, work
from medprism.benchmark.runner import Outcome, lost
from medprism.benchmark.suite import Job

FOLDER = "slurm_jobs"
"""Below the folder of the runs: what submitit writes, one folder a job of SLURM."""


@dataclass(frozen=True)
class Slurm:
    """One job of SLURM a run; those that are submitted together are a job array.

    Attributes:
        request: its options go to submitit's `update_parameters`, such as `slurm_partition` and `timeout_min`, but for
            `cluster`: `slurm`, or `local` for processes of this machine.
        work: what a job does.
        poll: seconds between two looks at the jobs.
    """

    request: Request
    work: Work = work
    poll: float = 5.0

    def __call__(self, jobs: Sequence[Job], runs: Path) -> Iterator[Outcome]:
        """Do the jobs, and yield each outcome as it comes."""
        executor = self._executor(runs.absolute() / FOLDER / "%j")
        waiting = list(jobs)
        under_way: dict[Any, Job] = {}
        try:
            while waiting or under_way:
                free = (self.request.workers or len(jobs)) - len(under_way)
                chosen, waiting = waiting[:free], waiting[free:]
                with executor.batch() if len(chosen) > 1 else nullcontext():
                    submitted = [
                        executor.submit(self.work, job, runs.absolute(), Path.cwd(), self.request.cpus)
                        for job in chosen
                    ]
                under_way |= dict(zip(submitted, chosen, strict=True))
                ended = [each for each in under_way if each.done()]
                for each in ended:
                    yield _outcome(each, under_way.pop(each), runs)
                if not ended:
                    time.sleep(self.poll)
        finally:
            for each in under_way:
                each.cancel(check=False)

    def _executor(self, folder: Path) -> Any:
        import submitit

        options = dict(self.request.options)
        try:
            executor = submitit.AutoExecutor(folder=folder, cluster=options.pop("cluster", "slurm"))
            executor.update_parameters(
                name="medprism",
                cpus_per_task=self.request.cpus,
                gpus_per_node=self.request.gpus or 0,
                **options,
            )
        except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
            raise BackendError(f"submitit refuses {dict(self.request.options)}: {error}") from error
        return executor


def _outcome(submitted: Any, job: Job, runs: Path) -> Outcome:
    try:
        outcome: Outcome = submitted.result()
    except Exception as error:  # whatever ended the job: no time left, no memory, an error
        return lost(job, runs, f"job {submitted.job_id}: {error}")
    return outcome
