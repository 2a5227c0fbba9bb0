import json
import os
import signal
import threading
from multiprocessing import forkserver
from pathlib import Path

import pytest
from waiting import until

from medprism.benchmark import process

TELLS = """
import atexit, json, multiprocessing, os, subprocess, sys
atexit.register(print, "at the end")
print("out", flush=True)
print("err", file=sys.stderr)
subprocess.run(["echo", "from a child"])
told = {
    "argv": sys.argv[1:], "name": __name__, "main": sys.modules["__main__"].__spec__.name,
    "method": multiprocessing.current_process().name.split("-")[0], "preloaded": "heavy" in sys.modules,
    "leads": os.getpid() == os.getsid(0) == os.getpgid(0), "server": os.getppid(), "setting": os.environ["SETTING"],
}
json.dump(told, open("told.json", "w"))
"""


@pytest.fixture(autouse=True)
def server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the server takes no other path
    monkeypatch.setattr(process, "PRELOADED", ["heavy"])
    monkeypatch.setattr(process, "_server", None)
    Path("heavy.py").touch()
    Path("tells.py").write_text(TELLS)
    forkserver._forkserver._stop()
    yield
    forkserver._forkserver._stop()


def run(*words: str, code: str = "now", setting: str = "1", stop: threading.Event | None = None):
    with Path("lock").open("w") as lock:
        settings = {"SETTING": setting, "PYTHONUNBUFFERED": "1"}
        return process.run_module(words, Path("log.txt"), lock.fileno(), settings, code, stop or threading.Event())


def told() -> dict:
    return json.loads(Path("told.json").read_text())


def test_a_forked_run_is_as_python_m_would_start_it():
    status, memory = run("tells", "--a", "b")
    assert status == 0 and memory > 1024
    first = told()
    assert first.pop("server") != os.getpid()
    assert first == {
        "argv": ["--a", "b"],
        "name": "__main__",
        "main": "tells",
        "method": "ForkServerProcess",
        "preloaded": True,
        "leads": True,
        "setting": "1",
    }
    assert Path("log.txt").read_text().splitlines() == ["out", "err", "from a child", "at the end"]
    assert "SETTING" not in os.environ


@pytest.mark.parametrize("changed", [{"code": "later"}, {"setting": "2"}])
def test_a_run_of_other_code_or_environment_begins_afresh(changed):
    run("tells")
    run("tells", **changed)
    assert (told()["method"], told()["preloaded"]) == ("SpawnProcess", False)
    assert told()["setting"] == changed.get("setting", "1") and told()["leads"]
    run("tells")
    assert told()["method"] == "ForkServerProcess"


def test_a_program_that_cannot_be_imported_is_explained_in_the_log():
    Path("heavy.py").write_text("raise ValueError('half an edit')")
    Path("needs.py").write_text("import heavy")
    assert run("needs")[0] == 1
    assert Path("log.txt").read_text().endswith("ValueError: half an edit\n")


def alive(pid: str) -> bool:
    try:
        return Path("/proc", pid, "stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("lost", [False, True])
def test_nothing_is_left_of_a_run_that_is_stopped_or_whose_server_is_gone(lost):
    Path("sleeps.py").write_text("import os, time\nos.fork()\nprint(os.getpid(), flush=True)\ntime.sleep(600)")
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(run("sleeps", stop=stop)))
    thread.start()
    log = Path("log.txt")
    until(lambda: log.exists() and len(log.read_text().split()) == 2)
    if lost:
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
    else:
        stop.set()
    thread.join(20)
    assert ended == [(255, 0) if lost else None]
    until(lambda: not any(map(alive, log.read_text().split())))


def test_a_worker_that_is_interrupted_while_it_starts_a_process_ends_it(monkeypatch):
    Path("sleeps.py").write_text("import time\ntime.sleep(600)")  # longer than anybody waits: it does not end by itself
    begun, start = [], process._start

    def interrupted(*args):
        found = start(*args)
        begun.append(str(found.pid))
        signal.raise_signal(signal.SIGINT)  # before anybody knows the process
        return found

    monkeypatch.setattr(process, "_start", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run("sleeps")
    until(lambda: not alive(begun[0]))
    assert signal.getsignal(signal.SIGINT) is before
