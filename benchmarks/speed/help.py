"""Time until help is printed, against a Python that imports torch and lightning: in turns, each in a new process.

python benchmarks/speed/help.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any

from common import machine, seconds, write

REFERENCE = 'python -c "import torch, lightning"'
COMMANDS: dict[str, list[str]] = {
    REFERENCE: ["-c", "import torch, lightning"],
    "lightning --help": ["-m", "medprism", "--help"],
    "lightning fit --help": ["-m", "medprism", "fit", "--help"],
}
"""What a user types to what Python is given; `-m medprism` is the program that `lightning` starts."""


def once(words: list[str]) -> float:
    """Wall-clock seconds of a process.

    Raises:
        RuntimeError: when it fails, with what it said.
    """

    def work() -> None:
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            raise RuntimeError(f"python {' '.join(words)} ended with {done.returncode}: {done.stderr[-500:]}")

    return seconds(work, time.perf_counter)


def measure(repeats: int, commands: dict[str, list[str]] = COMMANDS) -> dict[str, Any]:
    """Median seconds of each command, and the ratio to the reference, the first of them."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(repeats):
        for name, words in commands.items():
            times[name].append(once(words))
    median = {name: statistics.median(found) for name, found in times.items()}
    reference = next(iter(commands))
    return {
        "reference": reference,
        "repeats": repeats,
        "seconds": median,
        "all seconds": times,
        "ratio to the reference": {name: value / median[reference] for name, value in median.items()},
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="processes of each command; their median counts")
    options = parser.parse_args()
    once(COMMANDS[REFERENCE])  # files of the libraries are read from disk once
    result = measure(options.repeats)
    for name, value in result["seconds"].items():
        print(f"{name}: {value:.2f} s, ratio {result['ratio to the reference'][name]:.2f}")
    write("help", {**result, "environment": machine()})


if __name__ == "__main__":
    main()
