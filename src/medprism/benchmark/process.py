"""A run in a process of its own, forked from one that has imported the program already.

Importing torch and lightning takes longer than a small run. So Python's fork server imports them once for all runs of
a command. It computes nothing, so no threads and no device are at work when it forks.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import resource
import runpy
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

PRELOADED = ["medprism.commands"]

_LOST = 255  # what multiprocessing says of a process whose server is gone

_lock = threading.Lock()  # whenever a process begins, multiprocessing also looks at all others, and may do so once
_server: tuple[str, dict[str, str]] | None = None  # the code and environment with which the fork server began


def run_module(
    words: Sequence[str],
    log: Path,
    lock: int,
    settings: Mapping[str, str],
    code: str,
    stop: threading.Event,
    device: str | None = None,
) -> tuple[int, int] | None:
    """What `python -m` does with these words, in a session of its own, so that Ctrl-C reaches it from here alone.

    Args:
        words: name of the module, and its arguments.
        log: file of what the process writes to stdout and stderr; what it held is lost.
        lock: descriptor of a locked file; the process holds the lock as well.
        settings: environment variables, beside those of this process.
        code: fingerprint of the code; the process is forked only if the server has imported the same.
        stop: ends the process, and those that it has started, when it is set; so does an error here.
        device: the GPU that the process may use, as CUDA_VISIBLE_DEVICES has it; those of this process when left out.

    Returns:
        Exit status (negative: the signal that killed it) and peak memory in the unit of `ru_maxrss`; None when stopped.
        A forked process counts no pages of libraries that the server alone has read.
    """
    log.write_bytes(b"")
    memory = multiprocessing.RawValue("l", 0)
    process: BaseProcess | None = None
    stopped = False
    try:
        with _interrupted_later():
            process = _start((list(words), log.absolute(), _Open(lock), memory, device), settings, code)
        while (status := _status(process)) is None:
            if stop.wait(0.1):
                stopped = True
                _kill(process)
    except BaseException:  # Ray and submitit interrupt a worker so
        if process is not None:
            _kill(process)
        raise
    if status == _LOST:
        _kill(process)
    with _lock:
        process.close()
    return None if stopped else (status, memory.value)


@contextmanager
def _interrupted_later() -> Iterator[None]:
    """Put Ctrl-C off until the block has ended: a process that has begun and has no name yet would be left alone."""
    if threading.current_thread() is not threading.main_thread():  # which gets all signals
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def _start(args: tuple[Any, ...], settings: Mapping[str, str], code: str) -> BaseProcess:
    """Fork from the server, or begin with a fresh interpreter where the server would not do the same."""
    global _server
    with _lock, _environment(settings):
        now = (code, dict(os.environ))
        _server = _server or now
        if sys.platform == "linux" and _server == now:  # elsewhere system libraries do not survive a fork
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(PRELOADED)
            forked = context.Process(target=_child, args=args)
            try:
                forked.start()
            except (EOFError, OSError):
                pass  # the server could not import the program; a fresh process writes into its log why
            else:
                return forked
        fresh = multiprocessing.get_context("spawn").Process(target=_child, args=args)
        fresh.start()
        return fresh


def _child(words: list[str], log: Path, lock: int, memory: Any, device: str | None) -> None:
    os.setsid()
    if device is not None:  # only here, so that runs on different GPUs are forked from one server
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = words
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # a forked process ends without them
        peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        memory.value = max(peaks)


class _Open:
    """A descriptor on its way to a child, which has the same open file, and thus its lock, under another number."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (DupFd(self.descriptor),)


def _received(passed: Any) -> int:
    return int(passed.detach())


def _kill(process: BaseProcess) -> None:
    """End a process and all that it has started."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has only just begun, and is no session yet
        process.kill()


def _status(process: BaseProcess) -> int | None:
    with _lock:
        process.join(0.01)
        return process.exitcode


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
