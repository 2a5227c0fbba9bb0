"""The front door: `lightning fit | validate | test | predict --config configs/<experiment>.yaml`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

HELP = """\
usage: lightning COMMAND --config configs/<experiment>.yaml [--key value ...]

medprism: medical models that do not lean on shortcuts or sensitive attributes.

commands:
  fit        train; with --test_after_fit true also test the best checkpoint
  validate   measure on the validation part
  test       measure on the test part: metrics.json, predictions.csv, figures
  predict    write predictions.csv alone
  benchmark  compare methods over cohorts and seeds: a suite of benchmarks/
  report     rebuild the tables and the page of a suite without training
  new-method write the files of a method of your own: lightning new-method MyMethod

examples:
  lightning fit --config configs/neurolip_simulated.yaml
  lightning fit --config configs/neurolip_abide.yaml --data.init_args.root DATA --trainer.max_epochs 20
  lightning test --ckpt_path runs/neurolip_abide/<date>/checkpoints/best.ckpt

more help:
  lightning fit --help                    all settings of a run
  lightning fit --model.help NeuroLIP     the arguments of a method
  lightning fit --data.help ABIDE         the arguments of a cohort
  lightning --version                     versions of medprism, lightning and torch
"""
"""What `lightning --help` prints, at once: importing torch and lightning takes seconds."""


def main(args: Sequence[str] | None = None) -> Any:
    """Run one command.

    Args:
        args: words of the command line; those of the process when left out.

    Returns:
        The command line object, whose `trainer`, `model` and `datamodule` a caller may look at, when `args` is given.
    """
    words = list(sys.argv[1:] if args is None else args)
    # A console script does not look for modules where it is called, and a user's own class lies there.
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    if words[:1] == ["--version"]:
        print(f"medprism {version('medprism')} (lightning {version('lightning')}, torch {version('torch')})")
        return None
    if words in ([], ["-h"], ["--help"]):
        print(HELP, end="")
        return None
    if words[:1] == ["benchmark"]:
        from medprism.benchmark.command import benchmark

        status = benchmark(words[1:])
        return status if args is not None else sys.exit(min(1, status))
    if words[:1] == ["new-method"]:
        from medprism.scaffold.command import new_method

        new_method(words[1:])
        return None
    if words[:1] == ["report"]:
        from medprism.benchmark.report import report

        status = report(words[1:])
        return status if args is not None else sys.exit(status)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from medprism.commands import EXPLAINED, run

    if args is not None:
        return run(words)
    try:
        run(words)
    except Exception as error:
        # The parser wraps what a class says when it is made into an error of its own; the reason lies beneath.
        reason: BaseException | None = error
        while isinstance(reason, ValueError) and not isinstance(reason, EXPLAINED):
            reason = reason.__cause__ or reason.__context__
        if not isinstance(reason, EXPLAINED):
            raise
        sys.exit(f"{type(reason).__name__}: {reason}")  # it says what to do; a traceback would bury it
    return None


if __name__ == "__main__":
    main()
