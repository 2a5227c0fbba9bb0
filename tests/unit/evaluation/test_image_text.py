from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from rich.console import Console
from test_evaluator import trainer_for
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from medprism.cohort import Cohort, Factor
from medprism.evaluation import Evaluator, Predictions, StepOutput
from medprism.evaluation.alignment import Alignment, alignment_table, embedded, merged
from medprism.evaluation.grounding import Grounded
from medprism.evaluation.retrieval import Pairs

WORDS = {"edema": 0, "mass": 1, "tube": 2}
COHORT = Cohort(
    "toy", ("image", "target", "attributes", "sentences", "gaze", "has_gaze", "boxes"), (4, 2, 2),
    Factor("finding", ("edema", "mass", "tube"), role="target"), attributes=(Factor("sex", ("female", "male")),),
    simulated=True,
)  # fmt: skip


class Readings(Dataset[dict[str, Any]]):
    """A picture of 2 x 2 patches, one of which shows the finding; the reader names it and looks at it."""

    def __init__(self, n: int, start: int = 0) -> None:
        self.n, self.start = n, start

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        k = self.start + index
        finding, place = (k // 2) % 3, (k * 7) % 4
        image, gaze = torch.zeros(4, 2, 2), torch.zeros(2, 8, 8)
        image[3] = 1
        image[3, place // 2, place % 2] = 0
        image[finding, place // 2, place % 2] = 1
        rows, columns = slice(4 * (place // 2), 4 * (place // 2) + 4), slice(4 * (place % 2), 4 * (place % 2) + 4)
        gaze[0, rows, columns] = 1
        gaze[1, :2, :2] = 0.5
        word = list(WORDS)[finding]
        left, top = (place % 2) / 2, (place // 2) / 2
        return {
            "id": f"s{k:03d}",
            "subject": f"p{k // 2}",
            "image": image,
            "target": finding,
            "sex": (k // 2) % 2,
            "sentences": [[word, "nothing else"], [word], []][k % 3],
            "gaze": gaze,
            "has_gaze": k % 4 != 0,
            "boxes": [(word, left, top, left + 0.5, top + 0.5)],
        }


def together(samples: list[dict[str, Any]]) -> dict[str, Any]:
    batch = {name: [sample[name] for sample in samples] for name in samples[0]}
    for name in ("image", "gaze"):
        batch[name] = torch.stack(batch[name])
    batch["target"], batch["has_gaze"] = torch.tensor(batch["target"]), torch.tensor(batch["has_gaze"])
    batch["attributes"] = {"sex": torch.tensor(batch.pop("sex"))}
    return batch


class Reader(pl.LightningModule):
    """Knows the three words; vectors are exact in float32, so that a batch's size cannot change a bit."""

    def __init__(self, cohort: Cohort = COHORT, constant: bool = False) -> None:
        super().__init__()
        self.cohort, self.constant = cohort, constant
        self.weight = torch.nn.Parameter(torch.ones(1))

    def embed_texts(self, texts: list[str]) -> Tensor:
        codes = torch.tensor([WORDS.get(text.split()[-1], 3) for text in texts])
        return F.one_hot(codes, 4).float() * (0 if self.constant else 1) + torch.eye(4)[3] * self.constant

    def validation_step(self, batch: dict[str, Any], index: int) -> StepOutput:
        patches = batch["image"].flatten(2).transpose(1, 2) * self.weight
        if self.constant:
            patches = torch.eye(4)[3].expand_as(patches)
        prompts = torch.stack([self.embed_texts(list(each)).amax(0) for each in self.cohort.target.phrases])
        image = patches.amax(1)
        groups = {"sentences": batch["sentences"], "phrases": [[box[0] for box in each] for each in batch["boxes"]]}
        tokens = {"patches": patches}
        for name, group in groups.items():
            tokens[name] = torch.zeros(len(group), 2, 4)
            for row, texts in enumerate(group):
                if texts:
                    tokens[name][row, : len(texts)] = self.embed_texts(texts)
        return {
            "id": batch["id"],
            "subject": batch["subject"],
            "probabilities": (3 * image @ prompts.T).softmax(1),
            "target": batch["target"],
            "attributes": batch["attributes"],
            "blocks": {"image": image, "text": tokens["sentences"].sum(1)},
            "tokens": {name: each.bfloat16() for name, each in tokens.items()},
            "grid": (2, 2),
        }

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        return self.weight.sum()

    test_step = predict_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Data(pl.LightningDataModule):
    queries = {"mass": ("a mass", "large mass"), "tube": ("tube",)}  # noqa: RUF012

    def _loader(self, n: int, start: int) -> DataLoader[dict[str, Any]]:
        return DataLoader(Readings(n, start), batch_size=4, collate_fn=together)

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(8, 100)

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(21, 0)

    test_dataloader = predict_dataloader = val_dataloader

    def reference_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader(60, 200)


def measured(folder: Path, module: Reader | None = None, **settings: Any) -> tuple[pl.Trainer, dict[str, Any]]:
    evaluator = Evaluator(bootstrap=30, leakage=False)
    trainer = trainer_for(folder, evaluator, **settings)
    trainer.test(module or Reader(), datamodule=Data(), verbose=False)
    return trainer, evaluator.metrics["test"]


@pytest.mark.filterwarnings("ignore")
def test_a_test_measures_logs_writes_and_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, metrics = measured(tmp_path)
    found = metrics["alignment"]
    assert json.loads((tmp_path / "metrics.json").read_text())["test"]["alignment"] == found
    assert found["zero_shot"]["accuracy"]["value"] == found["zero_shot"]["macro_f1"]["value"] == 1.0
    retrieval = found["retrieval"]
    assert retrieval["n"] == 14  # every third sample has no sentence
    assert retrieval["image_to_text"]["precision_at_1"]["value"] == 1.0
    assert retrieval["query_to_image"]["precision_at_5"]["value"] == 1.0 and retrieval["query_to_image"]["queries"] == 3
    assert found["linear_probe"]["percent_100"]["auroc"]["value"] == 1.0
    assert found["linear_probe"]["percent_1"]["auroc"]["value"] is None
    gaze, boxes = found["grounding"]["gaze"], found["grounding"]["boxes"]
    assert boxes["pointing"]["value"] == boxes["iou"]["value"] == 1.0 and boxes["n"] == 21
    assert 0.5 < gaze["pointing"]["value"] < 1.0 and gaze["centre_is"].startswith("mean of ")
    assert gaze["above_centre_bias"]["iou"]["value"] == pytest.approx(
        gaze["iou"]["value"] - gaze["centre_bias"]["iou"]["value"]
    )
    logged = trainer.callback_metrics
    assert float(logged["test/alignment/grounding/gaze/pointing"]) == pytest.approx(gaze["pointing"]["value"])
    assert float(logged["test/alignment/retrieval/text_to_image/recall_at_1"]) == pytest.approx(
        retrieval["text_to_image"]["recall_at_1"]["value"]
    )
    assert "retrieval: 7 of 21 samples have no text; left out" in metrics["notes"]
    table = pd.read_csv(tmp_path / "grounding.csv")
    assert list(table.columns) == [
        *("stage", "id", "subject", "truth", "number", "pointing", "iou", "cc", "nss", "auc"),
        *(f"centre_bias_{name}" for name in ("pointing", "iou", "cc", "nss", "auc")),
    ]
    assert (table["truth"] == "boxes").sum() == 21 and (table["truth"] == "gaze").sum() == gaze["n"]
    rows = table[table["truth"] == "gaze"]
    assert rows["pointing"].mean() == pytest.approx(gaze["pointing"]["value"])
    assert rows[rows["number"] == 1]["pointing"].tolist() == [1.0] * (rows["number"] == 1).sum()
    printed = capsys.readouterr().out
    assert "toy (simulated): images and texts" in printed and "percent 1" in printed


@pytest.mark.filterwarnings("ignore")
def test_inverted_classes_and_constant_methods_are_exposed(tmp_path: Path) -> None:
    turned = Reader(dataclasses.replace(COHORT, target=Factor("finding", ("edema", "mass", "tube"), (("tube",), ("edema",), ("mass",)), "target")))  # fmt: skip # noqa: E501
    _, metrics = measured(tmp_path / "turned", turned)
    assert metrics["alignment"]["zero_shot"]["accuracy"]["value"] == 0.0
    assert any("the scores rank the classes backwards" in note for note in metrics["notes"])
    assert metrics["alignment"]["retrieval"]["query_to_image"]["precision_at_1"]["value"] == 1.0  # asks by name
    _, metrics = measured(tmp_path / "constant", Reader(constant=True))
    found = metrics["alignment"]
    assert any("(nearly) a constant predictor" in note for note in metrics["notes"])
    for way in ("image_to_text", "text_to_image"):
        for name, level in found["retrieval"][way]["chance"].items():
            assert found["retrieval"][way][name]["value"] == pytest.approx(level["value"])
    assert found["grounding"]["boxes"]["pointing"]["value"] == 0.25
    assert found["grounding"]["gaze"]["cc"]["value"] is None
    assert any("cc is not defined for" in note for note in metrics["notes"])


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_may_select_on_it(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path, monitor="val/alignment/retrieval/reciprocal_rank", mode="max")
    trainer = trainer_for(
        tmp_path, Evaluator(), callbacks=[checkpoint], enable_checkpointing=True, max_epochs=2, num_sanity_val_steps=1
    )
    trainer.fit(Reader(), datamodule=Data())
    _, metrics = measured(tmp_path / "test")
    found, logged = metrics["alignment"], trainer.callback_metrics
    value = found["retrieval"]["reciprocal_rank"]["value"]
    assert checkpoint.best_model_score is not None and float(checkpoint.best_model_score) == pytest.approx(value)
    for kind in ("gaze", "boxes"):
        name = f"val/alignment/grounding/{kind}/pointing"
        assert float(logged[name]) == pytest.approx(found["grounding"][kind]["pointing"]["value"])
    assert not (tmp_path / "grounding.csv").exists()


@pytest.mark.filterwarnings("ignore")
def test_predictions_and_other_methods_go_without(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path, Evaluator())
    (first, *_) = trainer.predict(Reader(), datamodule=Data())
    assert "tokens" not in first and "blocks" in first
    evaluator = Evaluator(bootstrap=0, alignment=False, queries={"mass": ["mass"]})
    trainer_for(tmp_path, evaluator).test(Reader(), datamodule=Data(), verbose=False)
    assert evaluator.metrics["test"]["alignment"] == {} and not (tmp_path / "grounding.csv").exists()
    assert evaluator.metrics["test"]["leakage"]
    settings = json.loads((tmp_path / "metrics.json").read_text())["settings"]
    assert settings["alignment"] is False and settings["queries"] == {"mass": ["mass"]}


def output(ids: list[str], batch: dict[str, Any]) -> StepOutput:
    return {**Reader().validation_step(batch, 0), "id": ids, "subject": ids}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grid": (3, 2)}, r"4 patches, but the grid \(3, 2\); return `grid`"),
        ({"grid": ()}, "4 patches, but the grid"),
        ({"blocks": {"image": torch.full((2, 4), torch.nan)}}, "block 'image' of sample 's000' is not finite"),
    ],
)
def test_what_a_method_returns_wrongly_is_named(change: dict[str, Any], message: str) -> None:
    batch = together([Readings(2)[0], Readings(2)[1]])
    with pytest.raises(ValueError, match=message):
        Alignment().add({**output(batch["id"], batch), **change}, batch)  # type: ignore[typeddict-item, arg-type]


def test_a_method_without_blocks_or_texts_is_measured_as_far_as_it_goes() -> None:
    batch = together([Readings(8)[k] for k in range(8)])
    plain = Predictions(batch["id"], batch["id"], np.full((8, 3), 1 / 3), batch["target"].numpy())
    performance = {name: {"value": 0.5, "low": None, "high": None} for name in ("accuracy", "auroc")}
    alignment = Alignment()
    alignment.add({**output(batch["id"], batch), "blocks": {}}, batch)  # type: ignore[arg-type]
    assert alignment.gather()
    found, notes = alignment.result(plain, COHORT, performance, bootstrap=0)
    assert found["retrieval"] == found["linear_probe"] == {} and found["grounding"]["gaze"]["n"] > 0
    assert "alignment: the steps return no block 'image'; no retrieval, no linear probe" in notes
    assert found["grounding"]["gaze"]["centre_is"].startswith("Gaussian")
    assert alignment.scores().keys() == {"alignment/grounding/boxes/pointing", "alignment/grounding/gaze/pointing"}
    with pytest.raises(ValueError, match="8 of 2 samples came with the tokens"):
        alignment.result(plain.take(np.arange(2)), COHORT, performance)
    silent = Alignment()
    silent.add({"id": ["a"], "subject": ["a"], "probabilities": torch.ones(1, 3)}, batch)  # type: ignore[arg-type]
    assert not silent.gather() and silent.scores() == {}


def test_queries_without_a_text_are_refused() -> None:
    with pytest.raises(ValueError, match=r"queries have no text for \['mass'\]"):
        embedded(Reader(), {"mass": []})
    assert embedded(pl.LightningModule(), {"mass": ["mass"]}) == {}
    assert embedded(Reader(), {"mass": ["a mass"]})["mass"].tolist() == [[0, 1, 0, 0]]


def test_two_ranks_are_merged_by_id() -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    ranks = [Pairs(["c", "a", "b"], ["p"] * 3, ["k"] * 3, vectors, vectors), Pairs(["d", "c"], ["p"] * 2, ["k"] * 2, vectors[:2] + 9, vectors[:2])]  # fmt: skip # noqa: E501
    both = merged(ranks)
    assert both.ids == ["a", "b", "c", "d"] and both.image[:, 0].tolist() == [2, 4, 0, 9]  # the first rank's "c"
    rows = [
        Grounded(["c", "c"], ["p"] * 2, np.array([1, 2]), np.zeros((2, 5)), np.zeros((2, 4))),
        Grounded(["a", "c", "c"], ["p"] * 3, np.array([1, 1, 2]), np.ones((3, 5)), np.zeros((3, 4))),
        Grounded(),
    ]
    both_rows = merged(rows)
    assert both_rows.ids == ["a", "c", "c"] and both_rows.number.tolist() == [1, 1, 2]
    assert both_rows.scores[:, 0].tolist() == [1, 0, 0]
    assert len(merged([Grounded(), Grounded()])) == 0


def test_two_simulated_ranks_measure_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def collected(rows: list[int]) -> Alignment:
        alignment = Alignment()
        for start in range(0, len(rows), 3):
            batch = together([Readings(40)[k] for k in rows[start : start + 3]])
            alignment.add(Reader().validation_step(batch, 0), batch)  # type: ignore[arg-type]
            alignment.learn(Reader().validation_step(batch, 0), batch)  # type: ignore[arg-type]
        return alignment

    one, first = collected(list(range(15))), collected([*range(0, 15, 2)])
    second = collected([*range(1, 15, 2)])
    padded = together([Readings(1)[0]])
    second.add(Reader().validation_step(padded, 0), padded)  # type: ignore[arg-type]  # as a sampler pads
    batch = together([Readings(40)[k] for k in range(15)])
    predictions = Predictions(batch["id"], batch["subject"], np.eye(3)[batch["target"]], batch["target"].numpy())
    performance = {name: {"value": 1.0, "low": None, "high": None} for name in ("accuracy", "auroc")}

    def result(alignment: Alignment) -> Any:
        assert alignment.gather()
        return alignment.result(predictions, COHORT, performance, None, {"mass": np.eye(4)[1:2]}, bootstrap=20)

    expected = result(one)
    mine: list[Any] = []
    monkeypatch.setattr("medprism.evaluation.alignment.gather_objects", lambda value: mine.append(value) or [value])
    first.gather()
    monkeypatch.setattr("medprism.evaluation.alignment.gather_objects", lambda value: [mine[0], value])
    sums = first._training._sums
    monkeypatch.setattr("medprism.evaluation.grounding.gather_objects", lambda value: [sums, value])
    assert result(second) == expected
    assert second.rows["gaze"].ids == one.rows["gaze"].ids and second.pairs.ids == one.pairs.ids


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_write_the_numbers_of_one(tmp_path: Path) -> None:
    measured(tmp_path / "one")
    script = tmp_path / "run.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\nfrom test_image_text import measured\n"
        f"measured(Path({str(tmp_path / 'two')!r}), strategy='ddp', devices=2)\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for name in ("metrics.json", "grounding.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


def test_the_table_says_what_stands_beside(predictions_of: Callable[..., Predictions]) -> None:
    number = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {
        "cohort": "toy",
        "simulated": False,
        "alignment": {
            "retrieval": {},
            "linear_probe": {},
            "grounding": {},
            "zero_shot": {"accuracy": number, "constant": {"class": "mass", "accuracy": {**number, "value": 0.25}}},
        },
    }
    file = io.StringIO()
    Console(file=file, width=150).print(alignment_table(metrics))
    assert "0.400 to 0.600" in file.getvalue() and "0.250" in file.getvalue()
    assert "zero shot without a model: always 'mass'" in file.getvalue() and "simulated" not in file.getvalue()


def test_other_runs_stand_beside_if_they_measured_the_same(tmp_path: Path) -> None:
    def made(value: float, n: int = 7) -> dict:
        zero_shot = {"accuracy": {"value": value, "low": None, "high": None}}
        parts = {"zero_shot": zero_shot, "retrieval": {}, "linear_probe": {}, "grounding": {}}
        return {"cohort": "toy", "simulated": True, "n": n, "subjects": n, "alignment": parts}

    paths = {}
    for label, other in {
        "CLIP": made(0.125),
        "longer": made(0.375, 8),
        "plain": {**made(0.625), "alignment": {}},
    }.items():
        paths[label] = str(tmp_path / f"{label}.json")
        Path(paths[label]).write_text(json.dumps({"test": other}))
    file = io.StringIO()
    Console(file=file, width=250).print(alignment_table(made(0.875), {**paths, "lost": str(tmp_path / "no.json")}))
    text = " ".join(file.getvalue().split())
    assert "CLIP" in text and "0.125" in text and "0.875" in text
    assert "0.375" not in text and "0.625" not in text
    for label, why in (
        ("longer", "measured other samples"),
        ("plain", "measured"),
        ("lost", "has no metrics of a test"),
    ):
        assert f"{label} is not shown" in text and why in text
