import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from fake_runs import write_suite
from fake_worker import fake_fit
from waiting import free, until

from medprism.benchmark import command, fingerprints, runner
from medprism.benchmark.backends.local import Local, visible_devices
from medprism.benchmark.runner import last_words, lost, run, run_all, state_of
from medprism.benchmark.statistics import Cell
from medprism.benchmark.suite import Suite, SuiteError

RUNS = Path("runs")


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    fake_fit(monkeypatch, tmp_path)


def jobs_of(folder: Path, **suite):
    return Suite.read(write_suite(folder / "made.yaml", **suite)).jobs()


def states(jobs, workers=1, again=False) -> list[str]:
    found = {outcome.job.name: outcome.state for outcome in run_all(jobs, RUNS, Local(workers), again)}
    return [found[job.name] for job in jobs]


def benchmark(folder: Path, *words: str, results: str = "results") -> int:
    return command.benchmark(["--config", str(folder / "made.yaml"), "--runs", "runs", "--results", results, *words])


def tables(results: str) -> dict[str, bytes]:
    files = {name: Path(results, name).read_bytes() for name in ("summary.csv", "summary.md")}
    return files | {"summary.md": files["summary.md"].split(b"Cost on")[0]}  # no two runs take the same time


def test_finished_runs_are_kept_and_failed_ones_stop_nobody(tmp_path):
    jobs = jobs_of(tmp_path, methods={"erm": {}, "bad": {"exit": 3}, "killed": {"signal": 9}, "idle": {"silent": True}})
    wanted = {"erm": "finished", "bad": "failed", "killed": "failed", "idle": "failed"}
    assert states(jobs) == [wanted[job.method] for job in jobs]
    errors = {job.method: state_of(job, RUNS).error for job in jobs}
    assert errors["bad"] == "ValueError: the scanner is on fire: call the fire brigade"
    assert errors["killed"] == "killed by SIGKILL after: begins"
    assert errors["idle"] == "ended without predictions.csv and metrics.json; a suite needs test_after_fit: true"
    kept = {job.name: (RUNS / job.name / "predictions.csv").stat() for job in jobs if job.method == "erm"}
    record = json.loads((RUNS / jobs[0].name / "done.json").read_text())
    assert record["code"] == fingerprints.code_fingerprint() and record["peak_memory_mb"] > 1 and record["seconds"] >= 0
    assert states(jobs) == ["kept" if wanted[job.method] == "finished" else "failed" for job in jobs]
    for name, stat in kept.items():
        assert (RUNS / name / "predictions.csv").stat().st_mtime_ns == stat.st_mtime_ns


def test_a_failed_run_that_works_the_next_time_leaves_no_failure(tmp_path, monkeypatch):
    job = jobs_of(tmp_path)[0]
    works = runner.words_of
    Path("mute.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(runner, "words_of", lambda folder: ["mute"])
    assert run(job, RUNS).error == "ended with status 1"
    monkeypatch.setattr(runner, "words_of", works)
    assert run(job, RUNS).state == "finished" and state_of(job, RUNS).state == "kept"
    assert not (RUNS / job.name / "failed.json").exists()


def test_runs_of_other_code_are_stale_and_run_again_only_when_asked(tmp_path, monkeypatch):
    jobs = jobs_of(tmp_path)[:2]
    monkeypatch.setattr(runner, "code_fingerprint", lambda: "old")
    assert states(jobs) == ["finished", "finished"]
    monkeypatch.setattr(runner, "code_fingerprint", lambda: "new")
    assert states(jobs) == ["stale", "stale"]
    assert states(jobs, again=True) == ["finished", "finished"]
    assert states(jobs, again=True) == ["kept", "kept"]


def test_the_code_is_that_of_the_start_of_a_run(tmp_path, monkeypatch):
    job = jobs_of(tmp_path, methods={"erm": {"sleep": 0.3}})[0]
    started = time.monotonic()
    monkeypatch.setattr(runner, "code_fingerprint", lambda: "begin" if time.monotonic() < started + 0.1 else "end")
    run(job, RUNS)
    assert json.loads((RUNS / job.name / "done.json").read_text())["code"] == "begin"


def test_the_fingerprint_sees_a_change_of_the_source_at_once(monkeypatch, tmp_path):
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "mine.py").write_text("a = 1")
    monkeypatch.setattr(fingerprints, "__file__", str(tmp_path / "benchmark" / "fingerprints.py"))
    before = fingerprints.code_fingerprint()
    assert fingerprints.code_fingerprint() == before
    (tmp_path / "methods" / "mine.py").write_text("a = 2")
    changed = fingerprints.code_fingerprint()
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "tables.py").write_text("b = 1")  # tables change no run
    assert before != changed == fingerprints.code_fingerprint()


def test_runs_of_other_data_are_stale_and_are_never_averaged_with_those_of_today(tmp_path):
    made = {"folds": 2, "data": {"class_path": "Made", "init_args": {"root": "scans", "size": 3, "plane": "axial"}}}
    scans = tmp_path / "scans" / "site"
    scans.mkdir(parents=True)
    (scans / "a.nii").write_text("a")
    jobs = jobs_of(tmp_path, cohorts={"made": made}, methods={"erm": {}})
    assert {job.reads for job in jobs} == {("scans",)}
    assert states(jobs) == ["finished"] * 4 and states(jobs) == ["kept"] * 4
    (scans / "b.nii").write_text("b")
    assert states(jobs) == ["stale"] * 4
    assert benchmark(tmp_path, "--seeds", "1", "--again") == 0
    assert states(jobs) == ["stale", "stale", "kept", "kept"]
    cell = Cell.read("made", "erm", [state_of(job, RUNS) for job in jobs])
    assert [run.seed for run in cell.runs] == [1, 1] and cell.state == "2 of 4 runs left out: other code or data"
    old = json.loads((RUNS / jobs[0].name / "done.json").read_text())
    del old["data"]  # a record of before data were watched
    (RUNS / jobs[0].name / "done.json").write_text(json.dumps(old))
    assert state_of(jobs[0], RUNS).state == "kept"


def test_what_is_read_can_be_named(tmp_path):
    Path("all", "mine").mkdir(parents=True)
    data = {"class_path": "Made", "init_args": {"root": "{data}"}}
    write_suite(tmp_path / "made.yaml", cohorts={"made": {"data": data, "reads": ["{data}/mine"]}})
    job = Suite.read(tmp_path / "made.yaml", Path("all")).jobs()[0]
    assert job.reads == ("all/mine",) and "reads" not in job.config
    run(job, RUNS)
    Path("all", "other.txt").write_text("x")
    assert state_of(job, RUNS).state == "kept"
    Path("all", "mine", "one.txt").write_text("x")
    assert state_of(job, RUNS).state == "stale"
    write_suite(tmp_path / "made.yaml", cohorts={"made": {"data": data, "reads": "mine"}})
    with pytest.raises(SuiteError, match="reads of made are 'mine'; expected a list"):
        Suite.read(tmp_path / "made.yaml")


def test_the_fingerprint_of_data_sees_names_sizes_and_times_of_files():
    folder = Path("scans")
    folder.mkdir()
    (folder / "a").write_text("1")
    (folder / "gone").symlink_to("nowhere")
    seen = [fingerprints.data_fingerprint(["scans"])]
    assert fingerprints.data_fingerprint(["scans"]) == seen[0] != fingerprints.data_fingerprint(["scans/a"])
    for change in (
        lambda: (folder / "a").write_text("12"),
        lambda: os.utime(folder / "a", ns=(0, 5)),
        lambda: (folder / "a").rename(folder / "b"),
    ):
        change()
        seen.append(fingerprints.data_fingerprint(["scans"]))
    assert len(set(seen)) == 4
    assert fingerprints.data_fingerprint([]) == ""


def test_a_worker_that_ended_without_a_word_leaves_a_failure_unless_the_run_is_done(tmp_path):
    first, second = jobs_of(tmp_path)[:2]
    assert lost(first, RUNS, "a\nOSError: node lost").state == "failed"
    assert state_of(first, RUNS).error == "OSError: node lost"
    run(second, RUNS)
    assert lost(second, RUNS, "node lost").state == "kept" and state_of(second, RUNS).state == "kept"


def test_each_of_several_workers_has_a_gpu_of_its_own_where_there_are_any(tmp_path, monkeypatch):
    def devices(workers: int, folder: str) -> list[str | None]:
        list(run_all(jobs, Path(folder), Local(workers)))
        return [json.loads((Path(folder) / j.name / "metrics.json").read_text())["test"]["device"] for j in jobs]

    jobs = jobs_of(tmp_path, methods={"erm": {"sleep": 0.3}})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a, 3")
    assert sorted(set(devices(2, "two"))) == ["3", "GPU-a"]
    assert visible_devices() == ["GPU-a", "3"]
    assert set(devices(1, "one")) == {"GPU-a, 3"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert set(devices(2, "none")) == {""} and visible_devices() == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert visible_devices() == ["0", "1"]


def test_a_half_written_folder_is_run_again_from_nothing(tmp_path):
    jobs = jobs_of(tmp_path, methods={"erm": {}, "idle": {"silent": True}})[:4]
    for job in jobs:
        (RUNS / job.name).mkdir(parents=True)
        for name in ("predictions.csv", "metrics.json", "done.json.part", "failed.json.part"):
            (RUNS / job.name / name).write_text("half a")
    assert {state_of(job, RUNS).state for job in jobs} == {"missing"}
    # what an earlier attempt left must not pass for what this one wrote
    assert states(jobs) == ["finished" if job.method == "erm" else "failed" for job in jobs]
    assert (RUNS / jobs[0].name / "predictions.csv").read_text().startswith("stage,id")


@pytest.mark.parametrize("workers", [1, 2])
def test_several_workers_have_one_thread_each(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    jobs = jobs_of(tmp_path)[:2]
    assert states(jobs, workers) == ["finished", "finished"]
    threads = json.loads((RUNS / jobs[0].name / "metrics.json").read_text())["test"]["threads"]
    one = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    assert threads == (one if workers == 2 else {"OMP_NUM_THREADS": "5", "MKL_NUM_THREADS": None})


def started(jobs) -> list[Path]:
    return [RUNS / job.name for job in jobs if "begins" in _text(RUNS / job.name / "log.txt")]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def test_kill_9_and_the_same_command_again_give_the_tables_of_an_uninterrupted_one(tmp_path, monkeypatch):
    jobs = jobs_of(tmp_path, methods={"erm": {"sleep": 0.3}, "other": {"sleep": 1}})
    process = multiprocessing.get_context("fork").Process(target=benchmark, args=(tmp_path,))
    process.start()
    until(lambda: len(started(jobs)) >= 3)
    process.kill()
    process.join()
    left = [folder for folder in started(jobs) if not (folder / "done.json").exists()]
    assert not free(left[-1]), "the run should have outlived its command"
    before = [state_of(job, RUNS).state for job in jobs]
    assert {"kept", "missing"} <= set(before), "killed too late or too early to show anything"
    assert benchmark(tmp_path) == 0
    assert benchmark(tmp_path, "--runs", "whole", "--workers", "4", results="uninterrupted") == 0
    assert tables("results") == tables("uninterrupted")
    assert len(tables("results")["summary.csv"].splitlines()) > 20


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_the_runs_and_mark_nothing(tmp_path, sign):
    jobs = jobs_of(tmp_path, methods={"erm": {"sleep": 30}})
    status = multiprocessing.Value("i", -1)

    def interrupted() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status.value = benchmark(tmp_path, "--workers", "2")

    process = multiprocessing.get_context("fork").Process(target=interrupted)
    process.start()
    until(lambda: len(started(jobs)) == 2)
    os.kill(process.pid, sign)
    process.join(10)
    assert status.value == 130 and not process.is_alive()
    assert all(free(folder) for folder in started(jobs)) and len(started(jobs)) == 2
    assert {state_of(job, RUNS).state for job in jobs} == {"missing"}
    assert not Path("results").exists()


def test_two_commands_at_once_do_each_run_once(tmp_path):
    jobs = jobs_of(tmp_path, methods={"erm": {"sleep": 0.2}})
    processes = [multiprocessing.get_context("fork").Process(target=states, args=(jobs,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert [(RUNS / job.name / "started").read_text() for job in jobs] == ["x"] * len(jobs)
    assert states(jobs) == ["kept"] * len(jobs)


def test_last_words():
    log = "step 1\nTraceback (most recent call last):\n  File x\npkg.DataError: row 3\n  expected: 1\n\n"
    assert last_words(log) == "pkg.DataError: row 3 expected: 1"
    assert last_words("usage: lightning\nerror: Parser key 'model':\n  no such class") == (
        "error: Parser key 'model': no such class"
    )
    assert last_words("ValueError: a\nIndexError: b") == "IndexError: b"
    assert last_words("1\n2\n\n") == "2" and last_words("") == ""
    assert len(last_words("x" * 9999)) == 500


def test_the_command_lists_and_chooses_runs_and_says_what_is_wrong(tmp_path, capsys):
    jobs = jobs_of(tmp_path, methods={"erm": {}, "bad": {"exit": 1}})
    assert benchmark(tmp_path, "--dry-run") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == [f"missing  {job.name}" for job in jobs]
    assert "8 runs, 8 to do; no run to estimate from" in captured.err and not RUNS.exists()
    assert benchmark(tmp_path, "--methods", "erm", "--seeds", "0") == 0
    assert benchmark(tmp_path, "--seeds", "0") == 2  # as many as failed
    assert "fire brigade" in capsys.readouterr().err
    benchmark(tmp_path, "--dry-run")
    captured = capsys.readouterr()
    assert captured.out.split()[::2] == ["kept"] * 2 + ["failed"] * 2 + ["missing"] * 4
    assert "8 runs, 6 to do, about 0 minutes" in captured.err
    for words, says in (
        (["--methods", "ermm"], "the suite has no methods ['ermm']; it has ['erm', 'bad']"),
        (["--cohorts", "x"], "the suite has no cohorts"),
        (["--seeds", "7"], "the suite has no seeds [7]; it has [0, 1]"),
        (["--workers", "0"], "--workers is 0; expected at least 1"),
        (["--cpus", "0"], "--cpus is 0; expected at least 1"),
        (["--cpus", "2"], "the local backend has --workers alone"),
        (["--backend-option", "a"], "--backend-option a: expected KEY=VALUE"),
        (["--config", "gone.yaml"], "there is no suite gone.yaml"),
    ):
        with pytest.raises(SystemExit):
            benchmark(tmp_path, *words)
        assert says in capsys.readouterr().err
    data = {"made": {"data": {"class_path": "Made", "init_args": {"root": "{data}"}}}}
    write_suite(tmp_path / "made.yaml", cohorts=data)
    with pytest.raises(SystemExit):
        benchmark(tmp_path)
    assert "no run is asked for: cohorts may need --data" in capsys.readouterr().err


@pytest.mark.parametrize(("root", "asked"), [("{data}", " --data DATA"), ("scans", "")])
def test_the_header_of_the_tables_names_the_folder_of_data_where_the_suite_reads_from_it(tmp_path, root, asked):
    """The command that a reader repeats: without `--data` this suite would plan no run."""
    Path("scans").mkdir()
    data = {"class_path": "Made", "init_args": {"root": root}}
    write_suite(tmp_path / "made.yaml", cohorts={"made": {"data": data}})
    assert benchmark(tmp_path, "--data", "scans", "--tables-only") == 0
    header = Path("results", "summary.md").read_text(encoding="utf-8")
    assert f"`lightning benchmark --config {(tmp_path / 'made.yaml').as_posix()}{asked}`" in header
