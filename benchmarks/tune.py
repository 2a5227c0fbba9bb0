"""Trials of settings on ABIDE, judged on validation subjects alone.

    python benchmarks/tune.py --root DATA               # every trial of benchmarks/tune.yaml; half an hour on one core
    python benchmarks/tune.py --root DATA --only graph

The split has a seed that no reported row uses, and nothing is tested. Every trial has a folder below --runs and is
skipped when it is finished there. Writes benchmarks/results/abide/trials.csv: for each trial its settings and, over
the folds, two means of validation AUROC: `validation AUROC`, the best mean over three successive epochs of a fold,
which ranks the trials, since a single epoch flatters settings whose epochs scatter; and `best epoch`, that of the
single best epoch, which is the one a run would keep.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

HERE = Path(__file__).parent
PROJECT = HERE.parent
SEED = 100


def train(config: str, settings: dict[str, Any], fold: int, root: str, folder: Path) -> None:
    """One `lightning fit` without a test; leaves `trial.json` in the folder."""
    import torch

    from medprism.cli import main

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trial.yaml").write_text(yaml.safe_dump(settings))
    words = {
        "seed_everything": SEED,
        "data.init_args.root": root,
        "data.init_args.split_seed": SEED,
        "data.init_args.fold": fold,
        "run_folder": folder,
        "evaluator.bootstrap": 0,
        "figures.enabled": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    started = time.perf_counter()
    files = [str(PROJECT / config), str(folder / "trial.yaml")]
    main(["fit", *[f"--config={file}" for file in files], *[f"--{key}={value}" for key, value in words.items()]])
    scores = pd.read_csv(folder / "logs" / "csv" / "metrics.csv")["val/auroc"].dropna().reset_index(drop=True)
    found = {
        "three_epochs": float(scores.rolling(3, min_periods=1).mean()[min(2, len(scores) - 1) :].max()),
        "best_epoch": float(scores.max()),
        "epoch": int(scores.idxmax()) + 1,
        "seconds": round(time.perf_counter() - started, 1),
    }
    (folder / "trial.json").write_text(json.dumps(found))


def table(suite: dict[str, Any], runs: Path) -> pd.DataFrame:
    """The finished trials, best of each group first."""
    rows = []
    for group, entry in suite.items():
        for settings in entry["trials"]:
            files = [_folder(runs, group, settings, fold) / "trial.json" for fold in entry["folds"]]
            if all(file.exists() for file in files):
                each = pd.DataFrame([json.loads(file.read_text()) for file in files])
                row = {"group": group, "validation AUROC": each["three_epochs"].mean()}
                row |= {"best epoch": each["best_epoch"].mean(), "folds": len(files)}
                row |= {"epochs to best": each["epoch"].mean(), "seconds a run": each["seconds"].mean()}
                rows.append(row | {"settings": json.dumps(settings)})
    return (
        pd.DataFrame(rows).sort_values(["group", "validation AUROC"], ascending=[True, False])
        if rows
        else pd.DataFrame()
    )


def _folder(runs: Path, group: str, settings: dict[str, Any], fold: int) -> Path:
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
    return runs / group / digest / f"fold{fold}"


def main() -> None:
    """Run the trials that are missing, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds ABIDE_pcp")
    parser.add_argument("--suite", type=Path, default=HERE / "tune.yaml", help="groups of trials")
    parser.add_argument("--only", nargs="+", help="names of groups; all, when left out")
    parser.add_argument("--runs", type=Path, default=Path("runs", "tune"), help="where trials are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "abide" / "trials.csv")
    options = parser.parse_args()
    suite = yaml.safe_load(options.suite.read_text())
    if unknown := set(options.only or []) - set(suite):
        parser.error(f"unknown groups {sorted(unknown)}; the suite has {list(suite)}")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for group in options.only or suite:
        for settings in suite[group]["trials"]:
            for fold in suite[group]["folds"]:
                folder = _folder(options.runs, group, settings, fold)
                if not (folder / "trial.json").exists():
                    train(suite[group]["config"], settings, fold, options.root, folder)
                    print(group, json.dumps(settings), fold, (folder / "trial.json").read_text(), file=sys.stderr)
            options.results.parent.mkdir(parents=True, exist_ok=True)
            table(suite, options.runs).to_csv(options.results, index=False, float_format="%.4f")
    print(table(suite, options.runs).to_string(max_colwidth=None))


if __name__ == "__main__":
    main()
