"""NeuroLIP on SIMULATED connectomes with a planted truth: what each fairness term does, over many cohorts.

    python benchmarks/planted.py                     # seeds 0 to 9; about ten minutes of one core

Disease is planted in one network and sex in another; they go together in training (phi .8) and not in the test. Every
seed is another cohort and another start. Method, data and epochs are those of configs/neurolip_simulated.yaml, without
selection of an epoch, so that nothing but the terms differs. Each run leaves a JSON below --runs and is skipped when it
is there with the same settings. Writes runs.csv, summary.md and environment.json into benchmarks/results/planted/.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
REFERENCE = "terms off"
ARMS: dict[str, dict[str, Any]] = {
    REFERENCE: {"lambda_dis": 0.0, "lambda_neg": 0.0},
    "distance only": {"lambda_neg": 0.0},
    "negative gradient only": {"lambda_dis": 0.0},
    "both": {},
    "both, cosine distance": {"distance": "cosine"},
    "both, sex aligned over everybody": {"within_target": False},
    "both, clamped": {"negative": "clamped"},
    "terms off, standardised edges": {"lambda_dis": 0.0, "lambda_neg": 0.0},
    "both, standardised edges": {},
}
"""Name to the options of NeuroLIP that differ from configs/methods/neurolip_shared.yaml."""
BASELINES = ("ERM", "edges of the disease network")
METRICS = {
    "auroc": "AUROC",
    "worst_sex_auroc": "AUROC, worse-served sex",
    "equalized_odds_difference": "equalized odds difference, sex",
    "sex_in_score": "sex read from the score",
    "disease_map_on_disease": "disease map on disease network",
    "disease_map_on_sex": "disease map on sex network",
    "sex_map_on_sex": "sex map on sex network",
    "sex_leakage_target": "leakage of sex, target block",
    "sex_leakage_regions": "leakage of sex, regions",
}


def settings(name: str, seed: int) -> dict[str, Any]:
    """What a run depends on, as plain values."""
    experiment = yaml.safe_load((CONFIGS / "neurolip_simulated.yaml").read_text())
    method = yaml.safe_load((CONFIGS / "methods" / "neurolip_shared.yaml").read_text())
    data = experiment["data"]["init_args"] | {"seed": seed}
    epochs = experiment["trainer"]["max_epochs"]
    if name in BASELINES:  # edges of mean 0 and variance 1, which serve these two better
        method = yaml.safe_load((CONFIGS / "methods" / "erm.yaml").read_text())
        method["init_args"]["optimizer"]["init_args"]["lr"] = 3.0e-3
        data, epochs = data | {"standardize": True}, 2 * epochs
    else:
        method["init_args"] |= ARMS[name]
        data = data | {"standardize": name.endswith("standardised edges")}
    return {"seed": seed, "data": data, "method": method, "epochs": epochs}


@lru_cache(maxsize=2)
def cohort(arguments: str) -> Any:
    """The cohort of some arguments, as JSON."""
    from medprism.datamodules import SimulatedConnectomes

    return SimulatedConnectomes(**json.loads(arguments))


def trained(options: dict[str, Any], folder: Path) -> dict[str, float]:
    """Train on one cohort for a fixed number of epochs, and measure on its test part."""
    import lightning.pytorch as pl
    import torch

    from medprism import methods
    from medprism.evaluation import Evaluator, Predictions
    from medprism.explain.regions import mean_maps

    torch.set_num_threads(1)
    data = cohort(json.dumps(options["data"]))
    arguments = dict(options["method"]["init_args"])
    adamw = arguments.pop("optimizer")["init_args"]
    pl.seed_everything(options["seed"], verbose=False)
    method = getattr(methods, options["method"]["class_path"])(
        data.cohort.to_dict(), optimizer=lambda parameters: torch.optim.AdamW(parameters, **adamw), **arguments
    )
    evaluator = Evaluator(bootstrap=0, folder=str(folder))
    trainer = pl.Trainer(
        max_epochs=options["epochs"],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[evaluator],
    )
    trainer.fit(method, datamodule=data)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.test(method, datamodule=data, verbose=False)
    measured = evaluator.metrics["test"]
    sex = measured["fairness"]["sex"]
    found = Predictions.load(folder / "predictions.csv", "test", data.cohort)
    values = {
        "auroc": measured["performance"]["auroc"]["value"],
        "worst_sex_auroc": sex["worst_group"]["auroc"]["value"],
        "equalized_odds_difference": sex["equalized_odds_difference"]["value"],
        "sex_in_score": sex_in_score(found.probabilities[:, 1], found.target, found.attributes["sex"]),
    }
    for block, label in (("disease", "target"), ("pooled", "target"), ("regions", "regions")):
        if block in measured["leakage"]:
            values[f"sex_leakage_{label}"] = measured["leakage"][block]["sex"]["auroc"]["value"]
    maps = mean_maps(method.represent, data.test_dataloader(), data.cohort)
    for network, phrase in (("disease", "disease"), ("sex", "disease"), ("sex", "sex")):
        if phrase in maps:
            # The disease phrase; of sex the mean over both phrases.
            weights = np.asarray(maps[phrase].weights)[slice(1, 2) if phrase == "disease" else slice(None)].mean(0)
            values[f"{phrase}_map_on_{network}"] = weights[list(data.planted[network])].sum()
    return {name: float(value) for name, value in values.items()}


def planted_edges(options: dict[str, Any]) -> dict[str, float]:
    """Logistic regression on the edges within the disease network: what a model that knows the truth can reach."""
    import torch
    from fairlearn.metrics import equalized_odds_difference
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from threadpoolctl import threadpool_limits

    data = cohort(json.dumps(options["data"]))
    network = np.array(data.planted["disease"])
    rows, columns = np.triu_indices(len(network), 1)
    whole = data.reader(False)(torch.arange(len(data.samples)))["connectome"].numpy()
    edges, target = whole[:, network[rows], network[columns]], np.asarray(data.samples.target)
    train, test = data.rows("train"), data.rows("test")
    with threadpool_limits(1):
        model = LogisticRegression(C=0.01, max_iter=1000).fit(edges[train], target[train])
    score, y, sex = model.decision_function(edges[test]), target[test], data.samples.attributes["sex"][test]
    return {
        "auroc": float(roc_auc_score(y, score)),
        "worst_sex_auroc": float(min(roc_auc_score(y[sex == s], score[sex == s]) for s in (0, 1))),
        "equalized_odds_difference": float(equalized_odds_difference(y, score > 0, sensitive_features=sex)),
        "sex_in_score": sex_in_score(score, y, sex),
    }


def sex_in_score(score: Any, target: Any, sex: Any) -> float:
    """AUROC of the disease score for sex among people of one class, mean over the classes; .5 where it says nothing.

    The equalized odds difference looks at one threshold; this looks at all of them.
    """
    from sklearn.metrics import roc_auc_score

    return float(np.mean([roc_auc_score(sex[target == c], score[target == c]) for c in np.unique(target)]))


def interval(values: Any, confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean over seeds, and its t interval."""
    from scipy.stats import t

    values = np.asarray(values, dtype=float)
    half = t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5
    return float(values.mean()), float(values.mean() - half), float(values.mean() + half)


def summary(table: pd.DataFrame, seeds: list[int]) -> str:
    """Markdown: means with their spread, and paired differences to the terms off."""
    example = settings("both", seeds[0])["data"]
    uniform = {name: len(regions) / example["regions"] for name, regions in cohort(json.dumps(example)).planted.items()}
    people = f"{example['subjects']} people, {example['test_fraction']:.0%} of them tested on"
    names = [name for name in (*ARMS, *BASELINES) if name in set(table["arm"])]
    wide = {metric: table.pivot(index="seed", columns="arm", values=metric) for metric in METRICS}
    lines = [
        f"Written by `python benchmarks/planted.py`. SIMULATED connectomes, cohorts and starts of seeds {seeds} "
        f"({people}); disease and sex go together in training (phi {example['correlation_train']}) and not in the "
        f"test. Mean +- standard deviation over {len(seeds)} seeds (ddof 1). Maps: mass of the mean map on a network; "
        f"a uniform map has {uniform['disease']:.2f} on the disease and {uniform['sex']:.2f} on the sex network. "
        "*Sex read from the score*: AUROC of the disease score for sex within a class, .5 is none. *Edges of the "
        "disease network*: logistic regression that knows where the disease is planted; sex reaches these edges "
        "through the shrinkage of the Ledoit-Wolf covariance, so its gap is a floor.",
        "",
        "| model | " + " | ".join(METRICS.values()) + " |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for name in names:
        each = [wide[metric][name] for metric in METRICS]
        cells = ["" if v.isna().any() else f"{v.mean():.3f} +- {v.std(ddof=1):.3f}" for v in each]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"Paired difference to *{REFERENCE}*, mean over seeds [95 % t interval], and in how many seeds it is below 0:",
        "",
        "| model | " + " | ".join(METRICS.values()) + " |",
        "|---" * (len(METRICS) + 1) + "|",
    ]
    for name in names:
        if name == REFERENCE:
            continue
        cells = []
        for metric in METRICS:
            difference = wide[metric][name] - wide[metric][REFERENCE]
            mean, low, high = interval(difference)
            below = f"{int((difference < 0).sum())}/{len(difference)}"
            cells.append("" if difference.isna().any() else f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {below}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, then write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs", "planted"), help="where runs are kept")
    parser.add_argument("--results", type=Path, default=HERE / "results" / "planted")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(10)), help="at least two")
    options = parser.parse_args()
    if len(options.seeds) < 2:
        parser.error("intervals over seeds need at least two")
    rows = []
    for seed in options.seeds:
        for name in (*ARMS, *BASELINES):
            path = options.runs / name.replace(", ", "-").replace(" ", "_") / f"seed{seed}.json"
            wanted = settings(name, seed)
            known = json.loads(path.read_text()) if path.exists() else {}
            if known.get("settings") != wanted:
                started = time.perf_counter()
                folder = path.with_suffix("")
                values = planted_edges(wanted) if name == BASELINES[1] else trained(wanted, folder)
                known = {"settings": wanted, "values": values, "seconds": time.perf_counter() - started}
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(known, indent=1) + "\n")
                print(f"{name}, seed {seed}: {known['seconds']:.0f} s", flush=True)
            rows.append({"arm": name, "seed": seed, **known["values"]})
    from medprism.runs import environment

    table = pd.DataFrame(rows)
    options.results.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.results / "runs.csv", index=False, float_format="%.4f")
    record = environment() | {"settings": {name: settings(name, options.seeds[0]) for name in ("both", "ERM")}}
    (options.results / "environment.json").write_text(json.dumps(record | {"arms": ARMS}, indent=2) + "\n")
    (options.results / "summary.md").write_text(summary(table, options.seeds))
    print((options.results / "summary.md").read_text())


if __name__ == "__main__":
    main()
