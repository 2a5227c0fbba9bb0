"""A script of milliseconds in place of `lightning fit`; light, as every worker of a cluster imports it."""

import os
import sys
from multiprocessing import forkserver
from pathlib import Path

from medprism.benchmark import process, runner
from medprism.benchmark.backends import work
from medprism.benchmark.runner import Outcome
from medprism.benchmark.suite import Job

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
who = [model["name"], model.get("value", 0), config["seed_everything"], config["data"]["init_args"].get("fold")]
draw = random.Random(str(who))
open(f"{folder}/cohort.json", "w").write(model.get("cohort", "{}"))
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
    sys.path.insert(0, str(here))  # where the script is
    return work(job, runs, here, threads)


def on_the_workers_path(monkeypatch) -> None:
    """Let processes that begin afresh find this module and the package."""
    package = Path(runner.__file__).parents[2]
    here = [str(Path(__file__).parent), str(package), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
