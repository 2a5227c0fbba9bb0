"""The check that two processes with different shards train as one process with the whole batch does."""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from medprism.cohort import Batch
from medprism.distributed import mean_over_ranks, process_group, world_size
from medprism.method import Method
from medprism.testing.report import CheckFailure, NotApplicable, described
from medprism.testing.trial import MethodTrial, part_of, terms_of, total, with_unknown

RANKS, STEPS, PATIENCE = 2, 2, 200.0
"""Number of processes, training steps, and seconds from their start after which they are taken to hang."""

Steps = list[dict[str, dict[str, Tensor]]]
"""For each step the terms, gradients and buffers."""


def check_two_ranks(trial: MethodTrial) -> None:
    """Two processes with different shards have the terms, gradients and buffers of one with all samples."""
    cls = trial.cls
    if not _importable(cls):
        raise NotApplicable(
            f"other processes must import the class, and {cls.__module__}.{cls.__qualname__} cannot be imported: put "
            "it on the top level of a module"
        )
    method, batch = trial.build(), with_unknown(trial.batch(), 5)
    state = {name: value.clone() for name, value in method.state_dict().items()}
    expected = _train(method, batch)
    with tempfile.TemporaryDirectory(prefix="medprism-ranks-") as name:
        folder = Path(name)
        idle = any(p.requires_grad and p.grad is None for p in method.parameters())
        torch.save({"state": state, "batch": _plain(batch), "idle": idle}, folder / "job.pt")
        _in_processes((cls, trial.cohort.to_dict(), dict(trial.init_args), folder))
        for rank in range(RANKS):
            _compare(torch.load(folder / f"{rank}.pt", weights_only=True), expected)


class _Step(nn.Module):
    """What DistributedDataParallel wraps: the terms and their sum."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        terms = terms_of(self.method, batch)
        return total(terms), {name: term.detach() for name, term in terms.items()}


def _train(method: Method, batch: Batch, idle: bool = False) -> Steps:
    """Terms, gradients and buffers of each step; `idle` says that some trainable parameter gets no gradient."""
    method.train()
    for module in method.modules():
        # Dropout and batch statistics differ between processes, and are meant to.
        if isinstance(module, _BatchNorm) or "Dropout" in type(module).__name__:
            module.eval()
    step: nn.Module = _Step(method)
    if world_size() > 1:
        step = DistributedDataParallel(step, find_unused_parameters=idle)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.01)
    found: Steps = []
    for k in range(STEPS):
        optimizer.zero_grad()
        method.on_train_batch_start(batch, k)
        loss, terms = step(batch)
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}
        means = {name: mean_over_ranks(term) for name, term in terms.items()}  # as they are logged
        optimizer.step()
        buffers = {name: buffer.clone() for name, buffer in method.named_buffers()}
        found.append({"term": means, "gradient": gradients, "buffer": buffers})
    return found


def _compare(found: Steps, expected: Steps) -> None:
    for step, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        for kind, values in theirs.items():
            for name, value in values.items():
                other = ours[kind].get(name)
                if other is None or not _close(other, value):
                    raise CheckFailure(
                        f"the same {kind} of {name} in two processes as in one, on shards of unequal size with some "
                        "labels unknown",
                        f"{'none' if other is None else _shown(other, value)} in step {step + 1}",
                        "gather what couples samples with medprism.distributed.gather_with_grad, and take means with "
                        "mean_over_samples or target_loss; set a dropout that is no nn.Dropout to 0 for this check",
                    )


def _close(one: Tensor, other: Tensor) -> bool:
    if not other.is_floating_point():
        return torch.equal(one, other)
    largest = float(other.abs().max()) if other.numel() else 0.0
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-5 + 1e-3 * largest, rtol=0, equal_nan=True)


def _shown(one: Tensor, other: Tensor) -> str:
    if one.shape != other.shape:
        return f"a shape of {tuple(one.shape)} instead of {tuple(other.shape)}"
    return f"a difference of {float((one.float() - other.float()).abs().max()):.3g}"


def _importable(cls: type) -> bool:
    """Whether another process finds the class by its name."""
    module = sys.modules.get(cls.__module__)
    if "<locals>" in cls.__qualname__ or module is None or getattr(module, "__file__", None) is None:
        return False
    try:
        found: Any = importlib.import_module(cls.__module__)
        for part in cls.__qualname__.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return found is cls


def _in_processes(job: tuple[type[Method], Mapping[str, Any], Mapping[str, Any], Path]) -> None:
    # Forked from a process that has imported torch and computed nothing; elsewhere libraries do not survive a fork.
    if sys.platform == "linux":
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(["medprism.testing.ranks"])
        start = server.Process
    else:
        start = multiprocessing.get_context("spawn").Process
    processes: list[BaseProcess] = [start(target=_work, args=(rank, *job)) for rank in range(RANKS)]
    folder = job[-1]
    try:
        for process in processes:
            process.start()
        _wait(processes, folder)
    finally:
        for process in processes:
            if process.pid is not None:
                process.kill()
                process.join()


def _wait(processes: Sequence[BaseProcess], folder: Path) -> None:
    end = None
    while any(process.exitcode is None for process in processes):
        for rank, process in enumerate(processes):
            if process.exitcode not in (None, 0):
                _explain(rank, process, folder)
        if end is None and (folder / "meeting").exists():  # before that they import what takes long
            end = time.monotonic() + PATIENCE
        if end is not None and time.monotonic() > end:
            raise CheckFailure(
                "both processes to end",
                f"them still at work after {PATIENCE:g} s",
                "let every rank gather equally often, also one without known labels: no gathering inside of an `if` "
                "that depends on the batch",
            )
        time.sleep(0.02)
    for rank, process in enumerate(processes):
        if process.exitcode:
            _explain(rank, process, folder)


def _explain(rank: int, process: BaseProcess, folder: Path) -> None:
    error = folder / f"{rank}.txt"
    reason = error.read_text() if error.is_file() else f"exit status {process.exitcode} before it began"
    raise CheckFailure(
        "a training step in each of two processes",
        f"on rank {rank}: {reason}",
        "every rank must call the same collectives with its own rows; a script that calls check_method does so under "
        "`if __name__ == '__main__':`",
    )


def _work(rank: int, cls: type[Method], cohort: Mapping[str, Any], init_args: Mapping[str, Any], folder: Path) -> None:
    torch.set_num_threads(1)
    try:
        job = torch.load(folder / "job.pt", weights_only=True)
        n = len(job["batch"]["id"])
        cut = n * 2 // 5
        with process_group(rank, RANKS, folder / "meeting"):
            method = cls(dict(cohort), **init_args)
            method.setup("fit")
            method.load_state_dict(job["state"])
            rows = slice(0, cut) if rank == 0 else slice(cut, n)
            torch.save(_train(method, part_of(job["batch"], rows), job["idle"]), folder / f"{rank}.pt")
    except BaseException as error:
        (folder / f"{rank}.txt").write_text(described(error))
        sys.exit(1)  # the other process says what happened


def _plain(value: Any) -> Any:
    """Named tuples as tuples, which a file without pickles can hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return list(map(_plain, value)) if isinstance(value, list) else value
