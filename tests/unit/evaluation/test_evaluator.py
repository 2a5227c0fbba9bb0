from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from medprism.cohort import Cohort, Factor
from medprism.evaluation import Evaluator, Predictions, StepOutput, evaluate, flatten
from medprism.evaluation.report import scores

COHORT = Cohort(
    "toy", ("image", "target", "attributes"), (1, 1, 1), Factor("disease", ("control", "autism"), role="target"),
    attributes=(Factor("sex", ("female", "male")), Factor("site", ("A", "B"))), simulated=True,
)  # fmt: skip


class Samples(Dataset[dict[str, Any]]):
    def __init__(self, n: int, start: int = 0) -> None:
        self.n, self.start = n, start

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, Any]:
        k = self.start + i
        return {
            "id": f"s{k}",
            "subject": f"p{k // 2}",
            "image": torch.tensor([((k * 7) % 10) / 10]),
            "target": k % 2,
            "attributes": {"sex": (k // 2) % 2, "site": (k // 3) % 2},
        }


class Toy(pl.LightningModule):
    """Elementwise arithmetic only, so that a batch's size cannot change a bit of its result."""

    def __init__(self) -> None:
        super().__init__()
        self.cohort = COHORT
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return (self.weight * batch["image"]).mean()

    def validation_step(self, batch: dict[str, Any], index: int) -> StepOutput:
        positive = (0.8 * batch["image"] * self.weight + 0.2 * batch["target"][:, None]).clamp(0, 1)
        return {
            "id": batch["id"],
            "subject": batch["subject"],
            "probabilities": torch.cat([1 - positive, positive], dim=1),
            "target": batch["target"],
            "attributes": batch["attributes"],
            "blocks": {"z": torch.cat([positive, batch["image"] ** 2], dim=1)},
        }

    def test_step(self, batch: dict[str, Any], index: int) -> StepOutput:
        return self.validation_step(batch, index)

    def predict_step(self, batch: dict[str, Any], index: int) -> StepOutput:
        assert not self.training and not torch.is_grad_enabled()
        return self.validation_step(batch, index)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(Samples(8, 100), batch_size=4)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(Samples(9), batch_size=4)

    test_dataloader = predict_dataloader = val_dataloader

    def reference_dataloader(self) -> DataLoader[dict[str, Any]]:
        return DataLoader(Samples(30, 200), batch_size=4)


def trainer_for(folder: Path, evaluator: Evaluator, **settings: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=folder, callbacks=[evaluator, *settings.pop("callbacks", [])],
        **({"enable_checkpointing": False} | settings),
    )  # fmt: skip


def scored(folder: Path, **settings: Any) -> Evaluator:
    evaluator = Evaluator(bootstrap=50)
    trainer_for(folder, evaluator, **settings).test(Toy(), datamodule=Data(), verbose=False)
    return evaluator


@pytest.mark.filterwarnings("ignore")
def test_a_test_logs_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluator = Evaluator(bootstrap=50)
    trainer = trainer_for(tmp_path, evaluator)
    trainer.test(Toy(), datamodule=Data(), verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["test"] == evaluator.metrics["test"] and metrics["test"]["n"] == 9
    assert metrics["settings"]["bootstrap"] == 50
    value = metrics["test"]["performance"]["auroc"]["value"]
    assert float(trainer.callback_metrics["test/auroc"]) == pytest.approx(value)
    assert "test/sex/equalized_odds_difference" in trainer.callback_metrics
    assert metrics["test"]["leakage"]["z"]["sex"]["n_reference"] == 30
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 9
    assert "toy (simulated): disease, positive class autism" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
def test_files_keep_what_other_stages_wrote(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_text('{"other": {"n": 1}}')
    evaluator = Evaluator(bootstrap=0, leakage=False, folder=str(tmp_path))
    trainer = trainer_for(tmp_path / "elsewhere", evaluator)
    trainer.predict(Toy(), datamodule=Data(), return_predictions=False)
    assert list(pd.read_csv(tmp_path / "predictions.csv")["stage"].unique()) == ["predict"]
    trainer.test(Toy(), datamodule=Data(), verbose=False)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["other"] == {"n": 1} and metrics["test"]["leakage"] == {}
    assert metrics["test"]["performance"]["auroc"]["low"] is None
    stages = pd.read_csv(tmp_path / "predictions.csv")["stage"].value_counts().to_dict()
    assert stages == {"predict": 9, "test": 9}
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.filterwarnings("ignore")
def test_validation_logs_what_a_checkpoint_selects_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(predictions: Predictions, *args: Any, **settings: Any) -> dict[str, float]:
        sizes.append(len(predictions))
        found = scores(predictions, *args, **settings)
        assert found == pytest.approx(flatten(evaluate(predictions, args[0], bootstrap=0)), abs=1e-9)
        return found

    monkeypatch.setattr("medprism.evaluation.evaluator.scores", counted)
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/worst_group_accuracy", mode="max")
    evaluator = Evaluator()
    trainer = trainer_for(
        tmp_path, evaluator, callbacks=[checkpoint], enable_checkpointing=True, max_epochs=2, num_sanity_val_steps=1
    )
    trainer.fit(Toy(), datamodule=Data())
    assert sizes == [9, 9]  # two epochs: the sanity check is neither measured nor added
    assert checkpoint.best_model_score is not None and "val/sex/equalized_odds_difference" in trainer.callback_metrics
    assert not (tmp_path / "metrics.json").exists() and not (tmp_path / "predictions.csv").exists()


@pytest.mark.filterwarnings("ignore")
def test_validate_measures_as_a_test_does(tmp_path: Path) -> None:
    evaluator = Evaluator(bootstrap=10)
    trainer_for(tmp_path, evaluator).validate(Toy(), datamodule=Data())
    found = json.loads((tmp_path / "metrics.json").read_text())["val"]
    assert found == evaluator.metrics["val"] and found["leakage"]
    assert (tmp_path / "predictions.csv").exists()


def test_steps_that_return_something_else_are_refused(tmp_path: Path) -> None:
    class Silent(Toy):
        def test_step(self, batch: dict[str, Any], index: int) -> Any:
            return None

    with pytest.raises(TypeError, match=r"Silent\.test_step returned NoneType; the Evaluator needs a dict"):
        trainer_for(tmp_path, Evaluator()).test(Silent(), DataLoader(Samples(4)), verbose=False)
    with pytest.raises(ValueError, match="confidence=95"):
        Evaluator(confidence=95)


@pytest.mark.filterwarnings("ignore")
def test_without_a_datamodule_nothing_is_probed(tmp_path: Path) -> None:
    evaluator = Evaluator(bootstrap=0)
    trainer_for(tmp_path, evaluator).test(Toy(), DataLoader(Samples(4), batch_size=2), verbose=False)
    assert evaluator.metrics["test"]["notes"][-1] == "leakage: not probed, no datamodule has reference_dataloader()"


@pytest.mark.filterwarnings("ignore")
def test_two_processes_write_the_numbers_of_one(tmp_path: Path) -> None:
    scored(tmp_path / "one")
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_evaluator import scored\n"
        f"scored(Path({str(tmp_path / 'two')!r}), strategy='ddp', devices=2)\n"
    )
    script = tmp_path / "run.py"
    script.write_text(code)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "It is recommended to use" not in done.stderr
    one, two = ((tmp_path / which / "metrics.json").read_text() for which in ("one", "two"))
    assert json.loads(one)["test"]["n"] == 9  # 9 samples on 2 processes: the sampler pads to 10
    assert one == two
    assert (tmp_path / "one" / "predictions.csv").read_text() == (tmp_path / "two" / "predictions.csv").read_text()
