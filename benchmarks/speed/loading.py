"""How long training waits for its batches, for each cohort that is shipped or lies in a folder of data sets.

`lightning fit` trains two epochs, or more where an epoch is short; the first, which reads files and fills caches, does
not count. The share is that of waiting in waiting and working: between the end of a step and the arrival of the next
batch nothing else can be done, on a CPU without workers, and a GPU is idle. Each cohort has a method with a cheap step,
so that waiting shows.

    python benchmarks/speed/loading.py --data DATA
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from step import fit

from beside import Waiting
from common import machine, write

REGION = ["--model", "configs/methods/erm.yaml"]
IMAGE = ["--model", "configs/methods/erm_image.yaml"]
READING = ["--model", "configs/methods/egma_small.yaml"]
COHORTS: dict[str, tuple[list[str], str | None]] = {
    "SimulatedConnectomes": ([*REGION, "--data", "configs/data/simulated_connectomes.yaml"], None),
    "ConfoundedDigits": ([*IMAGE, "--data", "configs/data/digits.yaml"], None),
    "SimulatedXray": ([*IMAGE, "--data", "configs/data/simulated_xray.yaml"], None),
    "SimulatedVolumes": ([*IMAGE, "--data", "configs/data/simulated_volumes.yaml"], None),
    "SimulatedReadingRoom": ([*READING, "--data", "configs/data/reading_room.yaml"], None),
    "ABIDE": ([*REGION, "--data", "configs/data/abide.yaml"], "ABIDE_pcp"),
    "OasisSlices": ([*IMAGE, "--data", "configs/data/oasis_slices.yaml"], "oasis1"),
    "CovidXray": ([*IMAGE, "--data", "configs/data/covid.yaml"], "covid_chestxray"),
    "OSIE": ([*READING, "--data", "configs/data/osie.yaml"], "osie_gaze"),
    "MorphoMNIST": ([*IMAGE, "--data", "configs/data/morpho_mnist.yaml"], "morpho_mnist"),
}
"""For each cohort the words of `lightning fit`, and its folder in DATA; None for those that need no files."""


def measure(words: list[str], epochs: int, batches: int) -> dict[str, Any]:
    """The share of time that is waited for batches, from the second epoch on."""
    limit = ["--trainer.limit_train_batches", str(batches)]
    with tempfile.TemporaryDirectory() as folder:
        done = fit([*words, *limit], epochs, {"class_path": "beside.Waiting"}, folder)
    (callback,) = (each for each in done.trainer.callbacks if isinstance(each, Waiting))
    waited, worked = sum(callback.waited), sum(callback.worked)
    return {
        "command": " ".join(["lightning fit", *words]).replace(str(Path.cwd()), "."),
        "steps": len(callback.worked),
        "seconds a step": (waited + worked) / len(callback.worked),
        "share of time waited": waited / (waited + worked),
    }


def rooted(words: list[str], folder: str | None, data: Path | None) -> list[str] | None:
    """The words with the folder of the files; None where they are not there."""
    if folder is None:
        return words
    if data is None or not (data / folder).is_dir():
        return None
    return [*words, "--data.init_args.root", str(data if folder == "ABIDE_pcp" else data / folder)]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("MEDPRISM_DATA") or None, help="folder of data sets"
    )
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each cohort; the first does not count")
    parser.add_argument("--batches", type=int, default=12, help="batches of an epoch at most")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--cohorts", nargs="+", choices=list(COHORTS), default=list(COHORTS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, Any]] = {}
    missing = []
    for name in options.cohorts:
        words = rooted(*COHORTS[name], options.data)
        if words is None:
            missing.append(name)
            continue
        found[name] = measure(words, options.epochs, options.batches)
        found[name]["command"] = found[name]["command"].replace(str(options.data), "DATA")
    print()
    for name, each in found.items():
        print(f"{name}: {100 * each['share of time waited']:.1f} % of {1e3 * each['seconds a step']:.0f} ms a step")
    if missing:
        print(f"not measured, as their files are not there: {', '.join(missing)}")
    reference = "waiting and working together, after the first epoch"
    write("loading", {"reference": reference, "cohorts": found, "not measured": missing, "environment": machine()})


if __name__ == "__main__":
    main()
