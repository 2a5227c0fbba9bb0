from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from medprism.cohort import Cohort, Factor
from medprism.data import base
from medprism.data.base import ArrayReader, CohortDataModule, Reader
from medprism.data.errors import DataError
from medprism.data.samples import Samples
from medprism.data.splits import Split


class Toy(CohortDataModule):
    """150 scans of 100 people; the connectome of scan k is filled with k."""

    cohort = Cohort(
        "toy",
        ("id", "subject", "connectome", "target", "attributes"),
        (2, 2),
        Factor("disease", ("no", "yes"), role="target"),
        attributes=(Factor("sex", ("male", "female")), Factor("site", ("A", "B", "C"))),
    )

    @property
    def samples(self) -> Samples:
        n = 150
        generator = np.random.default_rng(0)
        person = np.arange(n) % 100
        sex, site, target = generator.integers(2, size=100), generator.integers(3, size=100), np.arange(100) % 2
        sex[:3] = -1
        site[5] = -1
        return Samples(
            tuple(f"scan{k}" for k in range(n)),
            tuple(f"p{k:02d}" for k in person),
            target[person],
            {"sex": sex[person], "site": site[person]},
        )

    def reader(self, training: bool) -> Reader:
        return ArrayReader({"connectome": torch.arange(150.0)[:, None, None].expand(150, 2, 2)})


def test_batches_hold_the_right_rows() -> None:
    data = Toy(batch_size=16)
    data.setup("fit")
    samples = data.samples
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        for batch in loader:
            rows = [int(name.removeprefix("scan")) for name in batch["id"]]
            assert batch["connectome"].shape == (len(rows), 2, 2) and batch["connectome"].dtype == torch.float32
            assert batch["connectome"][:, 0, 0].tolist() == rows
            assert batch["subject"] == [samples.subject[row] for row in rows]
            assert batch["target"].dtype == torch.long and batch["target"].tolist() == samples.target[rows].tolist()
            for name, codes in batch["attributes"].items():
                assert codes.dtype == torch.long and codes.tolist() == samples.attributes[name][rows].tolist()


@pytest.mark.parametrize("options", [{}, {"split": "holdout"}, {"split": "leave_group_out", "held_out": "B"}])
def test_no_subject_is_in_two_parts_and_no_sample_is_lost(options: dict) -> None:
    data = Toy(**options)
    seen = [{data.samples.subject[row] for row in data.rows(part)} for part in ("train", "validation", "test")]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    assert sorted(np.concatenate([data.rows(p) for p in ("train", "validation", "test")])) == list(range(150))


def test_loaders_shuffle_training_alone_and_drop_only_there() -> None:
    data = Toy(batch_size=16)
    train = [name for batch in data.train_dataloader() for name in batch["id"]]
    fixed = [name for batch in data.reference_dataloader() for name in batch["id"]]
    assert len(train) == len(fixed) // 16 * 16 and len(set(train)) == len(train)
    assert train != fixed[: len(train)]
    assert fixed == [data.samples.id[row] for row in data.rows("train")]
    assert [b["id"] for b in data.predict_dataloader()] == [b["id"] for b in data.test_dataloader()]
    assert sum(len(b["id"]) for b in data.test_dataloader()) == len(data.rows("test"))
    whole = Toy(batch_size=1000)
    assert sum(len(b["id"]) for b in whole.train_dataloader()) == len(whole.rows("train"))


def test_ranks_with_less_than_a_batch_keep_it(monkeypatch) -> None:
    data = Toy(batch_size=64)
    assert data.train_dataloader().drop_last
    monkeypatch.setattr(base, "world_size", lambda: 4)
    assert not data.train_dataloader().drop_last


def test_order_follows_the_seed_and_not_what_was_drawn_before() -> None:
    def order(seed: int, draws: int) -> list[str]:
        torch.manual_seed(seed)
        torch.rand(draws)
        return [name for batch in Toy().train_dataloader() for name in batch["id"]]

    assert order(1, 0) == order(1, 10)
    assert order(1, 0) != order(2, 0)


def test_each_epoch_has_an_order_of_its_own() -> None:
    loader = Toy().train_dataloader()
    assert [b["id"] for b in loader] != [b["id"] for b in loader]


def test_workers_read_the_same() -> None:
    plain, parallel = Toy(), Toy(num_workers=1)
    assert [b["id"] for b in plain.val_dataloader()] == [b["id"] for b in parallel.val_dataloader()]


def test_batch_is_indexed_once(monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(ArrayReader, "__call__", lambda self, rows: calls.append(len(rows)) or {})
    list(Toy(batch_size=64).reference_dataloader())
    assert calls[0] == 64 and len(calls) == 2


def test_split_file_is_used_and_who_is_outside_is_reported(tmp_path, caplog) -> None:
    Split(("p00", "p01"), ("p02",), ("p03",)).save(tmp_path / "split.json")
    data = Toy(split_file=str(tmp_path / "split.json"))
    with caplog.at_level(logging.WARNING):
        data.setup("fit")
        data.setup("test")
    assert data.split.test == ("p03",)
    assert data.skipped == {"subject not in the split file": 96}
    assert caplog.text.count("left out: subject not in the split file: 96") == 1


def test_counts_add_up() -> None:
    counts = Toy().counts()
    assert sum(part["samples"] for part in counts.values()) == 150
    assert sum(part["subjects"] for part in counts.values()) == 100
    assert all(part["no"] + part["yes"] == part["samples"] for part in counts.values())


def test_target_and_sex_are_balanced_by_default() -> None:
    data = Toy()
    assert list(data.strata().columns) == ["target", "sex"]
    assert list(Toy(stratify=["site"]).strata().columns) == ["target", "site"]
    for name in ("train", "test"):
        target = data.samples.strata([]).loc[list(data.split.part(name)), "target"]
        assert abs(target.mean() - 0.5) < 0.03


def test_leave_group_out_needs_a_known_group(caplog) -> None:
    with pytest.raises(DataError, match=r"needs held_out, one of the site classes \['A', 'B', 'C'\]"):
        _ = Toy(split="leave_group_out").split
    with pytest.raises(DataError, match="group of 'scanner'"):
        _ = Toy(split="leave_group_out", group="scanner", held_out="A").split
    with pytest.raises(DataError, match="cannot stratify by"):
        _ = Toy(stratify=["age"]).split
    split = Toy(split="leave_group_out", held_out="A").split
    assert "p05" not in split.test and "1 subjects have no known site" in caplog.text


def test_lightning_takes_it() -> None:
    class Model(BoringModel):
        def training_step(self, batch, index):
            return self.layer(torch.nn.functional.pad(batch["connectome"].flatten(1), (0, 28))).mean()

        def validation_step(self, batch, index):
            return None

        test_step = predict_step = validation_step

    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.fit(Model(), datamodule=Toy(batch_size=16))
    assert trainer.global_step == len(Toy().rows("train")) // 16


def test_a_batch_is_moved_without_its_lists() -> None:
    data = Toy(batch_size=4)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["id"] is batch["id"] and list(moved) == list(batch)
    assert moved["connectome"].is_meta and moved["attributes"]["sex"].is_meta
