"""Runs that cost nothing: a suite whose `lightning fit` is a script of milliseconds, and folders written by hand."""

import json
import os
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import yaml

from medprism.benchmark import process, runner
from medprism.benchmark.backends import work
from medprism.benchmark.runner import Outcome
from medprism.benchmark.suite import Job
from medprism.cohort import Cohort, Factor
from medprism.evaluation import Predictions

COHORT = Cohort(
    name="Made",
    fields=("id", "subject", "image", "target", "attributes"),
    input_shape=(1, 4, 4),
    target=Factor("disease", ("control", "case"), role="target"),
    attributes=(Factor("sex", ("female", "male"), role="sensitive"), Factor("site", ("A", "B"))),
    simulated=True,
)

FIT = """
import json, os, random, sys, time, yaml
folder = sys.argv[1]
config = yaml.safe_load(open(f"{folder}/job.yaml"))
model = config["model"]
print("begins", flush=True)
open(f"{folder}/started", "a").write("x")
if model.get("exit") is not None:
    print("unflushed words", file=sys.stdout)
    print("ValueError: the scanner is on fire:", "  call the fire brigade", sep="\\n", file=sys.stderr)
    sys.exit(model["exit"])
if model.get("signal"):
    os.kill(os.getpid(), model["signal"])
if model.get("silent"):
    sys.exit(0)
time.sleep(model.get("sleep", 0))
while model.get("until") and not os.path.exists(model["until"]):
    time.sleep(0.05)
draw = random.Random(f"{model['name']} {config['seed_everything']} {config['data']['init_args'].get('fold')}")
open(f"{folder}/cohort.json", "w").write(model["cohort"])
fold = config["data"]["init_args"].get("fold", 0)
with open(f"{folder}/predictions.csv", "w") as file:
    print("stage,id,subject,target,prob_control,prob_case,predicted,sex,site,sets", file=file)
    for k in range(24):
        p = draw.random()
        target, predicted = ("control", "case")[k % 2], ("control", "case")[p > 0.5]
        row = ["test", f"s{fold}_{k}", f"s{fold}_{k}", target, 1 - p, p, predicted,
               ("female", "male")[k // 2 % 2], ("A", "B")[k // 4 % 2], ("same", "inverted")[k % 3 == 0]]
        print(*row, sep=",", file=file)
chosen = {"metric": "val/auroc", "mode": model.get("mode", "max"), "value": model.get("value", draw.random())}
json.dump(chosen, open(f"{folder}/selection.json", "w"))
heads = {"heads": {"sex": {"accuracy": {"value": draw.random(), "low": None, "high": None}, "n": 24}}}
threads = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
device = os.environ.get("CUDA_VISIBLE_DEVICES")
metrics = {**heads, "threads": threads, "device": device, "sets": {"same": heads, "inverted": heads}}
with open(f"{folder}/metrics.json", "w") as file:
    json.dump({"test": metrics}, file)
"""


def fake_fit(monkeypatch, tmp_path: Path) -> None:
    """Let runs be the script above, in a working directory of their own."""
    (tmp_path / "fake_fit.py").write_text(FIT)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(runner, "words_of", fake_words)
    monkeypatch.setattr(process, "PRELOADED", [])
    # a server of an earlier test would be no child of a process that this one forks
    forkserver._forkserver._stop()
    monkeypatch.setattr(process, "_server", None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


def fake_words(folder: Path) -> list[str]:
    return ["fake_fit", str(folder)]


def fake_work(job: Job, runs: Path, here: Path, threads: int) -> Outcome:
    """What a worker of a cluster does, with the script in place of `lightning fit`."""
    if job.config["model"].get("worker"):
        os._exit(7)  # as a worker ends whose machine is lost
    runner.words_of, process.PRELOADED = fake_words, []
    return work(job, runs, here, threads)


def on_the_workers_path(monkeypatch, tmp_path: Path) -> None:
    """Let processes that begin afresh find this module and the script."""
    here = [str(Path(__file__).parent), str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))


def write_suite(path: Path, methods: dict | None = None, **changes) -> Path:
    """A suite of two methods on one cohort, two seeds and two folds; returns its path."""
    methods = methods or {"erm": {}, "other": {}}
    cohort = json.dumps(COHORT.to_dict())
    content = {
        "title": "Made up.",
        "reference": "erm",
        "seeds": [0, 1],
        "shown": ["accuracy", "worst_cell/accuracy"],
        "cohorts": {"made": {"folds": 2, "data": {"class_path": "Made"}}},
        "methods": {
            name: {"model": {"class_path": "M", "name": name, "cohort": cohort, **how}} for name, how in methods.items()
        },
        **changes,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def predictions_of(seed: int, skill: float = 1.0, n: int = 60, fold: str = "", heads: bool = False) -> Predictions:
    """Imperfect predictions of n subjects, who are the same for every seed and method."""
    target = np.random.default_rng(7).integers(0, 2, n)
    sex, site = np.random.default_rng(8).integers(0, 2, (2, n))
    positive = 1 / (1 + np.exp(-np.random.default_rng(seed).normal(skill * (2 * target - 1), 1)))
    names = [f"s{fold}{k:03d}" for k in range(n)]
    return Predictions(
        names,
        names,
        np.column_stack([1 - positive, positive]),
        target,
        {"sex": sex, "site": site},
        heads={"site": np.full((n, 2), 0.5)} if heads else {},
    )


def finished(
    runs: Path,
    method: str,
    seed: int,
    predictions: Predictions,
    fold: int | None = None,
    state: str = "kept",
    code: str = "now",
    sets: dict | None = None,
    metrics: dict | None = None,
    config: dict | None = None,
) -> Outcome:
    """A run as a finished `lightning fit` leaves it; a missing or failed one has no files."""
    job = Job("made", method, seed, fold, {"model": method, "seed": seed, "fold": fold, **(config or {})})
    folder = runs / job.name
    if state in ("missing", "failed"):
        return Outcome(job, folder, state)
    folder.mkdir(parents=True)
    (folder / "cohort.json").write_text(json.dumps(COHORT.to_dict()))
    (folder / "metrics.json").write_text(json.dumps({"test": metrics or {}}))
    (folder / "done.json").write_text(json.dumps({"seconds": 2.0 + seed, "code": code, "peak_memory_mb": 100}))
    predictions.save(folder / "predictions.csv", "test", COHORT, sets)
    return Outcome(job, folder, state, 2.0 + seed)
