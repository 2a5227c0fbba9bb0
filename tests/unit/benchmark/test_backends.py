"""Ray with a cluster of this machine, and submitit with its local executor: the same contract as on one machine.

What is started costs seconds, so that each engine has one test of what it does with runs, and one of interruptions.
"""

import json
import re
from pathlib import Path

import pytest
import yaml
from fake_worker import fake_fit, fake_work, on_the_workers_path
from waiting import free, until

from medprism.benchmark import backends
from medprism.benchmark.backends import BackendError, Request, backend_of
from medprism.benchmark.backends.ray import Ray
from medprism.benchmark.backends.slurm import Slurm
from medprism.benchmark.runner import run_all, state_of
from medprism.benchmark.suite import Suite

RUNS = Path("runs")
METHODS = {"erm": {}, "bad": {"exit": 3}, "lost": {"worker": True}}
STATES = {"erm": "finished", "bad": "failed", "lost": "failed"}


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of this machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        on_the_workers_path(patch)
        patch.setenv("RAY_worker_niceness", "0")  # else workers wait for whatever else the machine does
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False, object_store_memory=80 * 2**20)
        yield
        ray.shutdown()


@pytest.fixture(params=["ray", "slurm"])
def engine(request, monkeypatch, tmp_path):
    """Makes backends of an engine with the script in place of `lightning fit`."""
    fake_fit(monkeypatch, tmp_path)
    if request.param == "ray":
        request.getfixturevalue("cluster")
        return lambda: Ray(Request(workers=2), fake_work)
    pytest.importorskip("submitit")
    on_the_workers_path(monkeypatch)
    return lambda: Slurm(Request(workers=2, options={"cluster": "local", "timeout_min": 5}), fake_work, poll=0.05)


def jobs_of(folder: Path, methods: dict):
    """Two folds of each method."""
    content = {
        "reference": next(iter(methods)),
        "seeds": [0],
        "cohorts": {"made": {"folds": 2, "data": {"class_path": "Made"}}},
        "methods": {name: {"model": {"class_path": "M", "name": name, **how}} for name, how in methods.items()},
    }
    (folder / "made.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return Suite.read(folder / "made.yaml").jobs()


def test_options_that_ray_refuses_are_named(tmp_path):
    ray = pytest.importorskip("ray")
    assert not ray.is_initialized(), "a cluster that is there already is taken as it is; keep this test first"
    with pytest.raises(BackendError, match=r"ray\.init\(\{'adress': 'auto'\}\): .*adress"):
        list(run_all(jobs_of(tmp_path, METHODS), tmp_path, backend_of("ray", Request(options={"adress": "auto"}))))


def test_finished_runs_are_kept_and_failures_are_recorded_and_stop_nobody(tmp_path, engine):
    jobs = jobs_of(tmp_path, METHODS)
    found = {outcome.job.name: outcome for outcome in run_all(jobs, RUNS, engine())}
    assert {job.name: found[job.name].state for job in jobs} == {job.name: STATES[job.method] for job in jobs}
    for job in jobs:
        known = state_of(job, RUNS)
        assert known.state == {"finished": "kept"}.get(STATES[job.method], "failed")
        assert known.error == found[job.name].error and bool(known.error) == (job.method != "erm")
        if job.method == "bad":
            assert known.error == "ValueError: the scanner is on fire: call the fire brigade"
    done = {path: path.stat().st_mtime_ns for path in RUNS.rglob("done.json")}
    again = [job for job in jobs if job.method == "erm"]
    assert [outcome.state for outcome in run_all(again, RUNS, engine())] == ["kept"] * 2
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("done.json")} == done
    threads = [json.loads((RUNS / job.name / "metrics.json").read_text())["test"]["threads"] for job in again]
    assert threads == [{"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}] * 2


def test_interrupted_runs_are_ended_and_done_by_the_next_command(tmp_path, engine):
    jobs = jobs_of(tmp_path, {"quick": {}, "slow": {"until": "go"}})
    outcomes = run_all(jobs, RUNS, engine())
    first = [next(outcomes), next(outcomes)]
    assert [(outcome.job.method, outcome.state) for outcome in first] == [("quick", "finished")] * 2
    slow = [job for job in jobs if job.method == "slow"]
    until(lambda: any((RUNS / job.name / "started").exists() for job in slow))
    outcomes.close()  # what an error or Ctrl-C in the command does
    until(lambda: all(free(RUNS / job.name) for job in slow))
    assert [state_of(job, RUNS).state for job in jobs] == ["kept"] * 2 + ["missing"] * 2
    Path("go").touch()
    assert sorted(outcome.state for outcome in run_all(jobs, RUNS, engine())) == ["finished"] * 2 + ["kept"] * 2


def test_a_missing_extra_says_what_to_install(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"ray needs ray, which is missing: pip install 'medprism\[ray\]'"):
        backend_of("ray", Request())
    with pytest.raises(BackendError, match=r"slurm needs submitit, .* pip install 'medprism\[slurm\]'"):
        backend_of("slurm", Request())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"cluster": "local", "slurm_partitoin": "gpu"}, "Unknown argument 'partitoin' for executor 'slurm'"),
        ({"cluster": "local", "timeout_min": "long"}, 'Parameter "timeout_min" expected type'),
        ({"cluster": "slurm"}, "submitit refuses {'cluster': 'slurm'}"),
    ],
)
def test_options_that_submitit_refuses_are_named(tmp_path, monkeypatch, options, says):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))  # no SLURM there
    jobs = jobs_of(tmp_path, METHODS)
    with pytest.raises(BackendError, match=re.escape(says)):
        list(run_all(jobs, tmp_path / "runs", backend_of("slurm", Request(options=options))))
