"""Five-fold comparison on ABIDE: linear models, ERM with each encoder, NeuroLIP and its parts.

    python benchmarks/abide.py --root DATA            # DATA holds ABIDE_pcp; about 4 CPU hours, minutes on a GPU
    python benchmarks/abide.py --root DATA --only ridge_correlation neurolip --seeds 0

Every run has a folder below --runs and is skipped when it is finished there, so an interrupted comparison goes on.
Writes summary.csv, summary.md, differences.csv, leakage.csv and environment.json into benchmarks/results/abide/.
Predictions are of people, and stay in the runs' folders.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

HERE = Path(__file__).parent
PROJECT = HERE.parent
REFERENCE = "erm_region"
METRICS = {
    ("auroc",): "AUROC",
    ("accuracy",): "accuracy",
    ("balanced_accuracy",): "balanced accuracy",
    ("sensitivity",): "sensitivity",
    ("specificity",): "specificity",
    ("sex", "equalized_odds_difference"): "equalized odds difference, sex",
    ("sex", "equal_opportunity_difference"): "TPR gap, sex",
    ("sex", "demographic_parity_difference"): "demographic parity difference, sex",
    ("sex", "equity_scaled_auroc"): "equity-scaled AUROC, sex",
    ("site", "demographic_parity_difference"): "demographic parity difference, site",
    ("site", "worst_group", "accuracy"): "worst site accuracy",
}


# ------------------------------------------------------------------------------------------------------------- runs
def run(job: tuple[str, dict[str, Any], int, int], root: str, runs: Path, folds: int, arguments: list[str]) -> str:
    """Train and test one model on one fold with one seed; a finished run is left as it is."""
    name, variant, seed, fold = job
    folder = runs / name / f"seed{seed}_fold{fold}"
    if (folder / "done").exists():
        return f"{folder}: kept"
    started = time.perf_counter()
    if "model" in variant:
        linear(variant, seed, fold, root, folds, folder)
    else:
        trained(variant, seed, fold, root, folds, folder, arguments)
    (folder / "done").write_text(f"{time.perf_counter() - started:.1f} s\n")
    return f"{folder}: {time.perf_counter() - started:.0f} s"


def trained(
    variant: dict[str, Any], seed: int, fold: int, root: str, folds: int, folder: Path, arguments: list[str]
) -> None:
    """One `lightning fit`, tested at its best validation epoch."""
    import torch

    from medprism.cli import main

    torch.set_num_threads(1)
    overlay = ["--config", str(PROJECT / variant["overlay"])] if "overlay" in variant else []
    settings = {
        "seed_everything": seed,
        "data.init_args.root": root,
        "data.init_args.folds": folds,
        "data.init_args.fold": fold,
        "data.init_args.split_seed": seed,
        "run_folder": folder,
        "test_after_fit": "true",
        "evaluator.bootstrap": 0,
        "figures.enabled": "false",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
    }
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    main(
        [
            "fit",
            "--config",
            str(PROJECT / variant["config"]),
            *overlay,
            *words,
            *variant.get("arguments", []),
            *arguments,
        ]
    )


def linear(variant: dict[str, Any], seed: int, fold: int, root: str, folds: int, folder: Path) -> None:
    """A linear model on standardised edges; its strength is chosen on the validation part, as epochs are elsewhere."""
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    from medprism.datamodules import ABIDE
    from medprism.evaluation import Predictions, evaluate

    data = ABIDE(root=root, connectivity=variant["connectivity"], folds=folds, fold=fold, split_seed=seed)
    data.setup("fit")
    upper = np.triu_indices(data.cohort.input_shape[0], k=0 if variant["connectivity"] == "tangent" else 1)
    matrices = {part: next(iter(_whole(data, part))) for part in ("train", "validation", "test")}
    x = {part: batch["connectome"].numpy()[:, upper[0], upper[1]] for part, batch in matrices.items()}
    y = {part: batch["target"].numpy() for part, batch in matrices.items()}
    candidates = {
        "ridge": [RidgeClassifier(alpha=a) for a in np.logspace(2, 6, 9)],
        "logistic": [LogisticRegression(C=c, max_iter=2000) for c in np.logspace(-6, -2, 9)],
    }[variant["model"]]
    scored = []
    with threadpool_limits(1):
        for model in candidates:
            pipeline = make_pipeline(StandardScaler(), model).fit(x["train"], y["train"])
            score = roc_auc_score(y["validation"], pipeline.decision_function(x["validation"]))
            scored.append((score, len(scored), pipeline))
    chosen = max(scored)[2]
    # A ridge score is on the scale of the labels -1 and 1; this map puts its threshold at one half.
    positive = 1 / (1 + np.exp(-2 * chosen.decision_function(x["test"])))
    batch = matrices["test"]
    predictions = Predictions(
        ids=batch["id"],
        subjects=batch["subject"],
        probabilities=np.stack([1 - positive, positive], 1),
        target=y["test"],
        attributes={name: codes.numpy() for name, codes in batch["attributes"].items()},
        blocks={},
    )
    folder.mkdir(parents=True, exist_ok=True)
    predictions.save(folder / "predictions.csv", "test", data.cohort)
    (folder / "metrics.json").write_text(json.dumps({"test": evaluate(predictions, data.cohort, bootstrap=0)}))


def _whole(data: Any, part: str) -> Any:
    """All samples of a part as one batch."""
    data.batch_size = len(data.samples)
    loaders = {"train": data.reference_dataloader, "validation": data.val_dataloader, "test": data.test_dataloader}
    return loaders[part]()


# ---------------------------------------------------------------------------------------------------------- results
class OverSeeds:
    """The mean over seeds of every pooled out-of-fold metric, as a function of how often each subject was drawn."""

    def __init__(self, pooled: list[Any], cohort: Any) -> None:
        from medprism.evaluation.bootstrap import statistic
        from medprism.evaluation.decisions import group
        from medprism.evaluation.weighted import subject_codes

        self.parts = []
        for predictions in pooled:
            codes, names = subject_codes(predictions.subjects)
            groups = group(predictions, cohort, 1)[0]
            self.parts.append(statistic(predictions, cohort, groups, codes, len(names)))
            self.sizes = np.bincount(codes)

    def __call__(self, counts: Any) -> dict[tuple[str, ...], Any]:
        """Metrics of `(b, subjects)` counts, `(b,)` each."""
        each = [part(counts) for part in self.parts]
        return {path: np.mean([found[path] for found in each], axis=0) for path in METRICS}

    def of_each_seed(self) -> dict[tuple[str, ...], list[float]]:
        """The metrics on the subjects as they are."""
        ones = np.ones((1, len(self.sizes)))
        each = [part(ones) for part in self.parts]
        return {path: [float(found[path][0]) for found in each] for path in METRICS}


def collect(names: list[str], seeds: list[int], folds: int, runs: Path, cohort: Any, target: Path) -> None:
    """Tables over the seeds of each variant that are complete; a variant without any is named and left out."""
    from medprism.evaluation.bootstrap import intervals
    from medprism.evaluation.predictions import Predictions
    from medprism.runs import environment

    rows, paired, leaks, found = [], [], [], {}
    for name in names:
        folders = [[runs / name / f"seed{seed}_fold{fold}" for fold in range(folds)] for seed in seeds]
        folders = [group for group in folders if all((folder / "done").exists() for folder in group)]
        if not folders:
            rows.append({"model": name, "note": "incomplete: no seed has all of its folds"})
            continue
        pooled = [_pool([Predictions.load(f / "predictions.csv", "test", cohort) for f in group]) for group in folders]
        found[name] = OverSeeds(pooled, cohort)
        ends = intervals(found[name], found[name].sizes)
        row: dict[str, Any] = {"model": name, "n": len(pooled[0].ids), "seeds": len(folders)}
        for path, values in found[name].of_each_seed().items():
            label = METRICS[path]
            row |= {label: np.mean(values), f"{label} low": ends[path].low, f"{label} high": ends[path].high}
            row[f"{label} sd over seeds"] = np.std(values, ddof=1) if len(values) > 1 else None
        documents = [json.loads((f / "metrics.json").read_text())["test"] for group in folders for f in group]
        row["AUROC, mean of folds"] = np.mean([d["performance"]["auroc"]["value"] for d in documents])
        chosen = [f / "selection.json" for g in folders for f in g if (f / "selection.json").exists()]
        if chosen:
            row["validation AUROC, chosen epoch"] = np.mean([json.loads(path.read_text())["value"] for path in chosen])
        row["seconds a run"] = np.mean([float((f / "done").read_text().split()[0]) for g in folders for f in g])
        rows.append(row)
        for block in documents[0]["leakage"]:
            for factor in ("sex", "site"):
                values = [d["leakage"][block][factor]["auroc"]["value"] for d in documents]
                leaks.append(
                    {"model": name, "block": block, "factor": factor, "AUROC": np.mean(values), "runs": len(values)}
                    | {"sd over runs": np.std(values, ddof=1)}
                )
    if REFERENCE in found:
        for name, values in found.items():
            if name != REFERENCE:
                paired += _differences(name, values, found[REFERENCE])
    target.mkdir(parents=True, exist_ok=True)
    tables = {"summary": rows, "differences": paired, "leakage": leaks}
    for title, table in tables.items():
        pd.DataFrame(table).to_csv(target / f"{title}.csv", index=False, float_format="%.4f")
    record = environment(cohort.fingerprint)
    records = [json.loads(path.read_text()) for path in sorted(runs.glob("*/*/environment.json"))]
    record["git_commits_of_runs"] = sorted({entry["git"]["commit"] for entry in records})
    (target / "environment.json").write_text(json.dumps(record, indent=2) + "\n")
    (target / "summary.md").write_text(_markdown(rows, paired, leaks, folds))
    print((target / "summary.md").read_text())


def _pool(parts: list[Any]) -> Any:
    from medprism.evaluation.predictions import Predictions

    return Predictions(
        ids=[name for part in parts for name in part.ids],
        subjects=[name for part in parts for name in part.subjects],
        probabilities=np.concatenate([part.probabilities for part in parts]),
        target=np.concatenate([part.target for part in parts]),
        attributes={name: np.concatenate([p.attributes[name] for p in parts]) for name in parts[0].attributes},
        blocks={},
    )


def _differences(name: str, values: OverSeeds, reference: OverSeeds) -> list[dict[str, Any]]:
    from medprism.evaluation.bootstrap import intervals

    def difference(counts: Any) -> dict[tuple[str, ...], Any]:
        left, right = values(counts), reference(counts)
        return {path: left[path] - right[path] for path in left}

    point, ends = difference(np.ones((1, len(values.sizes)))), intervals(difference, values.sizes)
    return [
        {"model": name, "minus": REFERENCE, "metric": METRICS[path], "difference": float(point[path][0])}
        | {"low": ends[path].low, "high": ends[path].high}
        for path in METRICS
    ]


def _markdown(rows: list[dict[str, Any]], paired: list[Any], leaks: list[Any], folds: int) -> str:
    shown = ["AUROC", "accuracy", "sensitivity", "specificity", "equalized odds difference, sex",
             "demographic parity difference, site"]  # fmt: skip
    probes = {(entry["model"], entry["block"], entry["factor"]): entry["AUROC"] for entry in leaks}
    against = {entry["model"]: entry for entry in paired if entry["metric"] == "AUROC"}
    lines = [
        "Written by `python benchmarks/abide.py`. ABIDE I, 871 people, positive class autism; pooled out-of-fold "
        f"predictions of {folds} folds by subject, mean over seeds of split and training, [95 % bootstrap interval "
        "over subjects]. Epochs and strengths are chosen on validation AUROC. Leakage: AUROC of a linear probe fitted "
        "on training subjects and scored on test subjects, mean over runs; chance is .5.",
        "",
        "| model | seeds | "
        + " | ".join(shown)
        + f" | AUROC minus {REFERENCE} | leakage of sex: target block / regions "
        "| leakage of site: target block / regions |",
        "|---" * (len(shown) + 5) + "|",
    ]
    for row in rows:
        if "note" in row:
            lines.append(f"| {row['model']} | 0 | {row['note']} |" + " |" * (len(shown) + 2))
            continue
        cells = [str(row["seeds"])]
        cells += [f"{row[m]:.3f} [{row[f'{m} low']:.3f}, {row[f'{m} high']:.3f}]" for m in shown]
        gap = against.get(row["model"])
        cells.append(f"{gap['difference']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}]" if gap else "")
        for factor in ("sex", "site"):
            values = [probes.get((row["model"], block, factor)) for block in ("disease", "regions", "pooled")]
            cells.append(" / ".join(f"{value:.3f}" for value in values if value is not None))
        lines.append(f"| {row['model']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that holds ABIDE_pcp")
    parser.add_argument("--runs", type=Path, default=Path("runs", "abide"), help="where runs are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "abide")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--suite", type=Path, default=HERE / "abide_rows.yaml", help="what to compare")
    parser.add_argument("--only", nargs="+", help="names of variants; all, when left out")
    parser.add_argument("--tables", action="store_true", help="run nothing: write the tables of what is finished")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time")
    parser.add_argument("--arguments", nargs=argparse.REMAINDER, default=[], help="further words for `lightning fit`")
    options = parser.parse_args()
    if not options.root or not Path(options.root, "ABIDE_pcp").is_dir():
        parser.error(f"there is no ABIDE_pcp in '{options.root}'; give the folder that holds it")
    suite = yaml.safe_load(options.suite.read_text())
    variants = {**suite.get("linear", {}), **suite.get("trained", {})}
    names = options.only or list(variants)
    unknown = set(names) - set(variants)
    if unknown:
        parser.error(f"unknown variants {sorted(unknown)}; the suite has {list(variants)}")
    from medprism.datamodules import ABIDE

    data = ABIDE(root=options.root)
    data.setup("fit")  # fills the cache before several processes want it
    folds = range(options.folds)
    jobs = [(name, variants[name], seed, fold) for seed in options.seeds for name in names for fold in folds]
    work = partial(run, root=options.root, runs=options.runs, folds=options.folds, arguments=options.arguments)
    failed = 0
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        results = [] if options.tables else pool.imap_unordered(partial(_safely, work), jobs)
        for number, done in enumerate(results, 1):
            failed += done.startswith("FAILED")
            print(f"[{number}/{len(jobs)}] {done}", file=sys.stderr, flush=True)
    collect(names, options.seeds, options.folds, options.runs, data.cohort, options.results)
    sys.exit(1 if failed else 0)


def _safely(work: Any, job: Any) -> str:
    """A run that fails is reported, and does not stop the others."""
    try:
        return str(work(job))
    except (Exception, SystemExit) as error:
        return f"FAILED {job[0]}, seed {job[2]}, fold {job[3]}: {error!r}"


if __name__ == "__main__":
    main()
