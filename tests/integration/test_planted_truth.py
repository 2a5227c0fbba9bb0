"""The planted truth: disease in one network, sex in another, correlated in training and not in the test.

The fairness terms must turn phrases away from the sex network: the disease map's mass lies on the disease network, the
equalized odds difference falls, and the AUROC holds. The form of the terms was picked on seeds 100 to 104. On seeds 0
to 9, benchmarks/results/planted/ has: equalized odds difference .12 to .43 without the terms, .09 to .18 with them,
lower by .13 +- .08; AUROC higher by .02 +- .02; disease map on the sex network .15 to .30 without and 0.00 with them;
on the disease network .76 to 1.00 in nine seeds and .25 in seed 1. Two of the nine are trained again here.
"""

import contextlib
import io
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

CONFIGS = Path(__file__).parents[2] / "configs"
SEEDS = (2, 3)


def trained(data: SimulatedConnectomes, epochs: int, folder: Path, **changes: float) -> dict:
    """The shipped method after a fixed number of epochs: no selection, so nothing but the terms differs."""
    options = yaml.safe_load((CONFIGS / "methods" / "neurolip_shared.yaml").read_text())["init_args"] | changes
    settings = options.pop("optimizer")["init_args"]
    pl.seed_everything(data.seed, verbose=False)
    method = NeuroLIP(data.cohort.to_dict(), optimizer=lambda p: torch.optim.AdamW(p, **settings), **options)
    evaluator = Evaluator(bootstrap=0, leakage=False, folder=str(folder))
    trainer = pl.Trainer(
        max_epochs=epochs,
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
    disease = np.asarray(mean_maps(method.represent, data.test_dataloader(), data.cohort)["disease"].weights)[1]
    return {
        "auroc": measured["performance"]["auroc"]["value"],
        "gap": measured["fairness"]["sex"]["equalized_odds_difference"]["value"],
        **{network: disease[list(data.planted[network])].sum() for network in ("disease", "sex")},
    }


@pytest.mark.filterwarnings("ignore")
def test_fairness_terms_find_the_planted_truth(tmp_path):
    experiment = yaml.safe_load((CONFIGS / "neurolip_simulated.yaml").read_text())
    epochs, options = experiment["trainer"]["max_epochs"], experiment["data"]["init_args"]
    plain, fair = [], []
    for seed in SEEDS:
        data = SimulatedConnectomes(**options | {"seed": seed})
        plain.append(trained(data, epochs, tmp_path, lambda_dis=0.0, lambda_neg=0.0))
        fair.append(trained(data, epochs, tmp_path))
    print(plain, fair)
    for without, run in zip(plain, fair, strict=True):
        assert run["disease"] > 0.6
        assert run["sex"] < 0.05 < without["sex"]
        assert run["gap"] < 0.2
        assert run["gap"] < without["gap"] - 0.05
        assert run["auroc"] > max(0.9, without["auroc"] - 0.02)
