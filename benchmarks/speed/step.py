"""A step of `lightning fit` against a plain PyTorch loop, on the same model, data and optimizer, in turns in one run.

The framework's step includes everything that it adds: fetching the batch, hooks, logging, the check that every term is
finite, the progress bar. Ratios are medians over pairs of turns; 1 means that nothing is added. Terms that a schedule
switches on late are on from the start, so that both sides do the same work. On one thread, the ratio of processor time
is that of an idle machine, whatever else runs.

    python benchmarks/speed/step.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from medprism.cli import main as lightning

from beside import Bare
from common import machine, write

ROOT = Path(__file__).parents[2]
RUNS: dict[str, list[str]] = {
    "ERM": ["--config", "configs/erm_digits.yaml"],
    "MIMMX": ["--config", "configs/mimmx_digits.yaml", "--model.init_args.critic_warmup", "0",
              "--model.init_args.ramp_share", "0", "--figures.latent", "false"],
    "NeuroLIP": ["--config", "configs/neurolip_simulated.yaml", "--model.init_args.warmup", "0",
                 "--data.init_args.regions", "160", "--data.init_args.test_fraction", "0.2",
                 "--data.init_args.batch_size", "128"],
    "EGMA": ["--config", "configs/egma_reading_room.yaml"],
}  # fmt: skip
"""For each method the words of `lightning fit`."""


def fit(words: list[str], epochs: int, callback: dict[str, Any], folder: str) -> Any:
    """Train with a callback, without validation; returns the command line object."""
    given = [ROOT / word if word.startswith("configs/") else word for word in words]
    quiet = {
        "trainer.max_epochs": epochs,
        "trainer.check_val_every_n_epoch": epochs + 1,
        "trainer.num_sanity_val_steps": 0,
        "trainer.enable_model_summary": "false",
        "trainer.callbacks": [callback],
        "test_after_fit": "false",
        "run_folder": folder,
    }
    return lightning(
        ["fit", *map(str, given), *(word for key, value in quiet.items() for word in (f"--{key}", as_text(value)))]
    )


def as_text(value: object) -> str:
    """A value as the command line takes it."""
    return str(value).replace("'", '"') if isinstance(value, list) else str(value)


def measure(words: list[str], epochs: int, steps: int) -> dict[str, Any]:
    """Seconds of a step on both sides, and their ratios."""
    with tempfile.TemporaryDirectory() as folder:
        done = fit(words, epochs, {"class_path": "beside.Bare", "init_args": {"steps": steps}}, folder)
    (callback,) = (each for each in done.trainer.callbacks if isinstance(each, Bare))
    if not callback.times:
        raise ValueError(
            f"an epoch of {' '.join(words)} has no {steps + 1} steps, so no turn fits in: give fewer --steps"
        )
    result: dict[str, Any] = {"command": " ".join(["lightning fit", *words]), "pairs": len(callback.times)}
    for index, clock in enumerate(("wall clock", "processor")):
        framework, bare = ([pair[side][index] for pair in callback.times] for side in ("framework", "bare"))
        ratios = [a / b for a, b in zip(framework, bare, strict=True)]
        result[clock] = {
            "lightning fit, seconds a step": statistics.median(framework),
            "plain loop, seconds a step": statistics.median(bare),
            "ratio": statistics.median(ratios),
            "quartiles of the ratio": statistics.quantiles(ratios, n=4)[::2] if len(ratios) > 1 else ratios * 2,
        }
    return result


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=40, help="epochs of each method")
    parser.add_argument("--steps", type=int, default=5, help="steps of a turn; an epoch has one more at least")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--methods", nargs="+", choices=list(RUNS), default=list(RUNS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = {name: measure(RUNS[name], options.epochs, options.steps) for name in options.methods}
    print()
    for name, each in found.items():
        wall, processor = each["wall clock"], each["processor"]
        print(
            f"{name}: {1e3 * wall['plain loop, seconds a step']:.1f} ms a step, ratio {wall['ratio']:.3f} "
            f"(processor time {processor['ratio']:.3f}), {each['pairs']} pairs"
        )
    write("step", {"reference": "plain PyTorch loop", "methods": found, "environment": machine()})


if __name__ == "__main__":
    main()
