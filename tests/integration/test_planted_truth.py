"""The planted truth: disease in one network, sex in another, correlated in training and not in the test.

The fairness terms must turn phrases away from the sex network: the disease map's mass lies on the disease network, the
equalized odds difference falls, and the AUROC holds. Form and strength of the terms were picked on cohorts of seeds 0
to 2, so this guards the behaviour there and is no evidence for others; docs/methods/neurolip.md says what fresh seeds
gave.
"""

from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml

from medprism.datamodules import SimulatedConnectomes
from medprism.evaluation import Evaluator
from medprism.explain.regions import mean_maps
from medprism.methods import NeuroLIP

CONFIG = Path(__file__).parents[2] / "configs" / "methods" / "neurolip_shared.yaml"
SEEDS = (0, 1)


def trained(seed: int, folder: Path, **changes: float) -> dict:
    """The shipped method after a fixed number of epochs: no selection, so nothing but the terms differs."""
    data = SimulatedConnectomes(seed=seed, split="holdout", standardize=True, cache_dir=str(folder))
    options = yaml.safe_load(CONFIG.read_text())["init_args"] | changes
    settings = options.pop("optimizer")["init_args"]
    pl.seed_everything(seed, verbose=False)
    method = NeuroLIP(data.cohort.to_dict(), optimizer=lambda p: torch.optim.AdamW(p, **settings), **options)
    evaluator = Evaluator(bootstrap=0, leakage=False, folder=str(folder))
    trainer = pl.Trainer(
        max_epochs=60,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[evaluator],
    )
    trainer.fit(method, datamodule=data)
    trainer.test(method, datamodule=data, verbose=False)
    measured = evaluator.metrics["test"]
    disease = np.asarray(mean_maps(method.represent, data.test_dataloader(), data.cohort)["disease"].weights)[1]
    blocks = {factor: list(data.planted[factor]) for factor in ("disease", "sex")}
    return {
        "auroc": measured["performance"]["auroc"]["value"],
        "gap": measured["fairness"]["sex"]["equalized_odds_difference"]["value"],
        # Mass over its value for a uniform map.
        **{name: disease[rows].sum() / (len(rows) / len(disease)) for name, rows in blocks.items()},
    }


@pytest.mark.filterwarnings("ignore")
def test_fairness_terms_find_the_planted_truth(tmp_path):
    plain = [trained(seed, tmp_path, lambda_dis=0.0, lambda_neg=0.0) for seed in SEEDS]
    fair = [trained(seed, tmp_path) for seed in SEEDS]
    mean = {name: [np.mean([run[name] for run in runs]) for runs in (plain, fair)] for name in plain[0]}
    print(plain, fair)
    for run in fair:
        assert run["disease"] > 1.6
        assert run["disease"] > 1.5 * run["sex"]
    assert mean["gap"][1] < mean["gap"][0] - 0.05
    assert mean["auroc"][1] > mean["auroc"][0] - 0.02
    assert mean["disease"][1] > mean["disease"][0]
