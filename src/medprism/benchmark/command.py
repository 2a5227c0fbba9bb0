"""`lightning benchmark`."""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.markdown import Markdown

from medprism.benchmark.backends import BACKENDS, BackendError, Request, backend_of
from medprism.benchmark.runner import Backend, Fingerprints, Outcome, run_all, state_of
from medprism.benchmark.suite import PLACE, Job, Suite, SuiteError


def benchmark(words: Sequence[str]) -> int:
    """Run what is missing of a suite, then write its tables and page; the number of failed runs decides the status."""
    parser = argparse.ArgumentParser(
        "lightning benchmark",
        description="Runs methods x cohorts x seeds x folds of a suite, each in its own process, and writes tables. "
        "Finished runs are kept: after an interruption the same command goes on.",
    )
    parser.add_argument("--config", type=Path, required=True, help="suite file, such as benchmarks/shortcuts.yaml")
    parser.add_argument("--data", type=Path, help="folder of data sets; cohorts that need one are left out without it")
    parser.add_argument("--runs", type=Path, help="folder of the runs; runs/benchmark/<suite> when left out")
    parser.add_argument("--results", type=Path, help="folder of the tables; <runs>/results when left out")
    parser.add_argument(
        "--backend", choices=BACKENDS, default="local", help="what does the runs; this machine when left out"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="runs at a time; when left out one on this machine, and on a cluster as many as there is room for",
    )
    parser.add_argument("--cpus", type=int, default=1, help="processors of a run, on a cluster")
    parser.add_argument(
        "--gpus", type=int, help="GPUs of a run, on a cluster; one on a Ray cluster that has any, when left out"
    )
    parser.add_argument(
        "--backend-option",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="settings of ray.init, or of submitit: slurm_partition=gpu timeout_min=240",
    )
    parser.add_argument("--cohorts", nargs="+", help="only these cohorts of the suite")
    parser.add_argument("--methods", nargs="+", help="only these methods of the suite")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds")
    parser.add_argument("--dry-run", action="store_true", help="list the runs and their state, and run nothing")
    parser.add_argument("--tables-only", action="store_true", help="run nothing, and write the tables of what is there")
    parser.add_argument("--again", action="store_true", help="run again what finished with other code or data")
    options = parser.parse_args(words)
    try:
        suite = Suite.read(options.config, options.data)
        every = suite.jobs()
    except SuiteError as error:
        parser.error(str(error))
    for name in ("workers", "cpus"):
        if (number := getattr(options, name)) is not None and number < 1:
            parser.error(f"--{name} is {number}; expected at least 1")
    runs = options.runs or Path("runs", "benchmark", suite.name)
    console = Console(stderr=True)
    if suite.without_data:
        console.print(f"Left out, as --data names no folder of data sets: {', '.join(suite.without_data)}")
    for chosen, known, what in (
        (options.cohorts, suite.cohorts, "cohorts"),
        (options.methods, suite.methods, "methods"),
        (options.seeds, sorted({job.seed for job in every}), "seeds"),
    ):
        if wrong := set(chosen or []) - set(known):
            parser.error(f"the suite has no {what} {sorted(wrong)}; it has {list(known)}")
    jobs = [job for job in every if _wanted(job, options)]
    if not jobs:
        parser.error("no run is asked for: cohorts may need --data, and a method may be limited to other cohorts")
    if options.dry_run:
        now = Fingerprints()
        _list([state_of(job, runs, now) for job in jobs], console, options.workers or 1, suite.trials)
        return 0
    try:
        request = Request(options.workers, options.cpus, options.gpus, _pairs(options.backend_option))
        backend = backend_of(options.backend, request)
    except BackendError as error:
        parser.error(str(error))
    # before the runs, so that what ends them is the code that began them
    from medprism.benchmark.collect import write
    from medprism.benchmark.plan import Plan

    data = " --data DATA" if options.data and PLACE in options.config.read_text(encoding="utf-8") else ""
    plan = Plan.of(suite, f"lightning benchmark --config {options.config.as_posix()}{data}")
    plan.save(runs)
    try:
        with _ended_by_sigterm():
            failed = [] if options.tables_only else _run(jobs, runs, backend, options.again, console)
    except BackendError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        console.print("Interrupted. Finished runs are kept: the same command goes on.")
        return 128 + signal.SIGINT
    now, results = Fingerprints(), options.results or runs / "results"
    text = write(plan, [state_of(job, runs, now) for job in every], results)
    Console().print(Markdown(text))
    console.print(f"Page: {results / 'report.html'}", markup=False, highlight=False, soft_wrap=True)
    return len(failed)


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """A scheduler's SIGTERM ends the runs as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _wanted(job: Job, options: argparse.Namespace) -> bool:
    return (
        job.cohort in (options.cohorts or [job.cohort])
        and job.method in (options.methods or [job.method])
        and job.seed in (options.seeds or [job.seed])
    )


def _pairs(words: Sequence[str]) -> dict[str, Any]:
    """`["a=1", "b=x"]` as `{"a": 1, "b": "x"}`."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not key or not equals:
            raise BackendError(f"--backend-option {word}: expected KEY=VALUE, such as slurm_partition=gpu")
        found[key] = yaml.safe_load(value)
    return found


def _run(jobs: Sequence[Job], runs: Path, backend: Backend, again: bool, console: Console) -> list[Outcome]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    failed = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("runs", total=len(jobs))
        for outcome in run_all(jobs, runs, backend, again):
            progress.advance(bar)
            if outcome.state == "failed":
                failed.append(outcome)
                progress.console.print(f"failed: {outcome.job.name}: {outcome.error}", markup=False)
            elif outcome.state == "finished":
                progress.console.print(f"{outcome.job.name}: {outcome.seconds:.0f} s", markup=False, highlight=False)
    return failed


def _list(states: Sequence[Outcome], console: Console, workers: int, trials: int) -> None:
    """The runs, and an estimate of the time from the finished ones of the same cell, or of all."""
    known = [each.seconds for each in states if each.seconds and each.state != "failed"]
    missing, seconds = 0, 0.0
    for each in states:
        settings = " ".join(f"{name}={value}" for name, value in each.job.settings.items())
        print(f"{each.state:8} {each.job.name} {settings}".rstrip())
        if each.state in ("missing", "failed"):
            same = [o.seconds for o in states if o.seconds and _cell(o) == _cell(each)] or known
            missing, seconds = missing + 1, seconds + (sum(same) / len(same) if same else 0)
    among = f", {trials} trials of every method for each seed and fold" if trials > 1 else ""
    text = f"{len(states)} runs{among}, {missing} to do"
    console.print(
        f"{text}, about {seconds / workers / 60:.0f} minutes" if known else f"{text}; no run to estimate from"
    )


def _cell(outcome: Outcome) -> tuple[str, str]:
    return outcome.job.cohort, outcome.job.method
