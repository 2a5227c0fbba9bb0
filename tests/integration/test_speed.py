"""The speed scripts measure what they say, on tiny settings; how fast anything is, no test asks."""

import importlib
import json
import sys
from pathlib import Path

import pytest

SPEED = Path(__file__).parents[2] / "benchmarks" / "speed"
TINY = ["--data.init_args.train", "64", "--data.init_args.validation", "16", "--data.init_args.same", "16",
        "--data.init_args.inverted", "16", "--data.init_args.balanced", "16", "--data.init_args.batch_size", "16",
        "--trainer.enable_progress_bar", "false"]  # fmt: skip


@pytest.fixture
def script(monkeypatch):
    """Import a script as `python benchmarks/speed/<name>.py` finds it."""
    monkeypatch.syspath_prepend(SPEED)
    monkeypatch.setattr(sys, "argv", ["lightning"])
    return importlib.import_module


def test_both_loops_take_the_same_steps(script):
    step = script("step")
    found = step.measure([*step.RUNS["ERM"], *TINY], epochs=2, steps=2)
    assert found["pairs"] == 2  # one an epoch: four batches, of which the first only starts the clock
    for clock in ("wall clock", "processor"):
        each = found[clock]
        assert each["ratio"] > 0 and each["plain loop, seconds a step"] > 0
    json.dumps(found)


def test_a_turn_that_is_longer_than_an_epoch_is_refused(script):
    step = script("step")
    with pytest.raises(ValueError, match="has no 5 steps, so no turn fits in: give fewer --steps"):
        step.measure([*step.RUNS["ERM"], *TINY], epochs=1, steps=4)


def test_the_plain_loop_trains_as_the_framework_does(script, tmp_path):
    """From the same start, on batches that are equal in all epochs, both go the same way."""
    step, beside = script("step"), script("beside")
    words = [*step.RUNS["ERM"], *TINY, "--data.init_args.augment_shift", "0", "--data.init_args.augment_rotation", "0"]
    words[words.index("16", words.index("--data.init_args.batch_size"))] = "64"  # one batch an epoch
    done = step.fit(words, 3, {"class_path": "beside.Bare", "init_args": {"steps": 1}}, str(tmp_path))
    (callback,) = (each for each in done.trainer.callbacks if isinstance(each, beside.Bare))
    callback.run(1)  # it began with two steps, and one batch an epoch leaves no turns
    pairs = zip(callback.model.parameters(), done.model.parameters(), strict=True)
    assert all(ours.allclose(theirs, atol=1e-4) for ours, theirs in pairs)


def test_waiting_counts_from_the_second_epoch(script):
    step, loading = script("step"), script("loading")
    found = loading.measure([*step.RUNS["ERM"], *TINY], epochs=3, batches=3)
    assert found["steps"] == 6 and 0 < found["share of time waited"] < 1


def test_cohorts_without_their_files_are_left_out(script, tmp_path):
    rooted = script("loading").rooted
    (tmp_path / "oasis1").mkdir()
    assert rooted(["a"], None, None) == ["a"]
    assert rooted(["a"], "osie_gaze", tmp_path) is None and rooted(["a"], "oasis1", None) is None
    assert rooted(["a"], "oasis1", tmp_path) == ["a", "--data.init_args.root", str(tmp_path / "oasis1")]


def test_the_tables_are_those_of_the_committed_measurements(script):
    summary = script("summary")
    assert (summary.RESULTS / summary.SUMMARY).read_text() == summary.tables(summary.load()) + "\n"


def test_every_cohort_and_method_of_the_scripts_has_its_config(script):
    root = SPEED.parents[1]
    commands = [*script("step").RUNS.values(), *(words for words, _ in script("loading").COHORTS.values())]
    files = [word for words in commands for word in words if word.startswith("configs/")]
    assert files and all((root / file).is_file() for file in files)


def test_fairlearn_and_ours_agree(script):
    evaluation = script("evaluation")
    found = evaluation.measure(600, resamples=20, few=(1, 2))
    assert found["largest difference of a gap"] < 1e-9 and found["ours, seconds"] > 0
    wrong = {"sex": {"demographic_parity_difference": 2.0}}
    ours = {"fairness": {"sex": {"demographic_parity_difference": {"value": 0.1}}}}
    with pytest.raises(RuntimeError, match="differ by up to"):
        evaluation.differing(ours, wrong)


def test_help_is_timed_against_its_reference(script):
    helps = importlib.util.spec_from_file_location("help_speed", SPEED / "help.py")
    module = importlib.util.module_from_spec(helps)
    helps.loader.exec_module(module)
    found = module.measure(1, {"nothing": ["-c", ""], "also nothing": ["-c", ""]})
    assert found["ratio to the reference"]["nothing"] == 1 and found["seconds"]["also nothing"] > 0
    with pytest.raises(RuntimeError, match="ended with 3"):
        module.once(["-c", "raise SystemExit(3)"])


def test_results_are_written_without_the_name_of_the_machine(script, tmp_path):
    import platform

    common = script("common")
    text = common.write("name", {"environment": common.machine()}, tmp_path).read_text()
    assert set(json.loads(text)["environment"]) >= {"torch", "machine", "cores", "threads", "device"}
    assert platform.node() not in text
