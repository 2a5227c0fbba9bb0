"""Balanced training: weights of cells, resampled orders on one and several processes, weights in batches."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.data_connector import _get_distributed_sampler

from medprism.cohort import Cohort, Factor
from medprism.data.balance import cell_weights
from medprism.data.base import ArrayReader, CohortDataModule, EpochOrder, Reader
from medprism.data.errors import DataError
from medprism.data.samples import Samples
from medprism.methods import ERM

DISEASE, SEX = Factor("disease", ("no", "yes"), role="target"), Factor("sex", ("male", "female"), role="sensitive")
VIEW = Factor("view", ("PA", "AP"))


class Toy(CohortDataModule):
    """400 people, of whom the sick are mostly male; view is of no importance."""

    @property
    def cohort(self) -> Cohort:
        return Cohort("toy", self.batch_fields("connectome"), (2, 2), DISEASE, attributes=(SEX, VIEW))

    @property
    def samples(self) -> Samples:
        generator = np.random.default_rng(0)
        target = generator.integers(2, size=400)
        sex = np.where(generator.random(400) < 0.9, 1 - target, target)
        sex[:10] = -1
        names = tuple(f"p{k:03d}" for k in range(400))
        return Samples(names, names, target, {"sex": sex, "view": generator.integers(2, size=400)})

    def reader(self, training: bool) -> Reader:
        return ArrayReader({"connectome": torch.zeros(400, 2, 2)})


def cell_sums(codes: np.ndarray, weights: np.ndarray) -> dict[tuple[int, ...], float]:
    sums: Counter[tuple[int, ...]] = Counter()
    for code, weight in zip(codes.tolist(), weights.tolist(), strict=True):
        sums[tuple(code)] += weight
    return dict(sums)


def test_cells_weigh_alike_and_the_mean_is_one() -> None:
    codes = np.array([[0, 0]] * 7 + [[0, 1]] + [[1, 1]] * 4)
    weights = cell_weights(codes)
    assert weights.dtype == np.float32 and np.isclose(weights.mean(), 1)
    assert np.allclose(list(cell_sums(codes, weights).values()), 4)


def test_unknown_samples_keep_their_share() -> None:
    codes = np.array([[0, 0]] * 6 + [[1, 0]] * 2 + [[1, -1], [-1, 0]])
    weights = cell_weights(codes)
    assert weights[-2:].tolist() == [1, 1] and np.isclose(weights.mean(), 1)
    assert np.allclose([weights[:6].sum(), weights[6:8].sum()], 4)
    assert cell_weights(np.full((3, 1), -1)).tolist() == [1, 1, 1]


def test_resampled_epochs_have_equal_cells() -> None:
    torch.manual_seed(0)
    data = Toy(balance="resample", balance_by=["sex"], batch_size=1000)
    loader, seen = data.train_dataloader(), []
    for _ in range(30):
        for batch in loader:
            assert "weight" not in batch and len(batch["id"]) == len(data.rows("train"))
            seen += list(zip(batch["target"].tolist(), batch["attributes"]["sex"].tolist(), strict=True))
    shares = {cell: n / len(seen) for cell, n in Counter(seen).items() if cell[1] >= 0}
    known = sum(shares.values())
    assert len(shares) == 4 and all(abs(share / known - 0.25) < 0.02 for share in shares.values())
    unknown = np.mean(data.samples.attributes["sex"][data.rows("train")] == -1)
    assert abs(1 - known - unknown) < 0.01


def test_resampled_order_follows_seed_and_epoch_alone() -> None:
    weights = torch.rand(50, generator=torch.Generator().manual_seed(0))

    def order(seed: int, epoch: int, draws: int = 0) -> list[int]:
        torch.manual_seed(seed)
        sampler = EpochOrder(50, weights)
        torch.rand(draws)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 3) == order(1, 3, draws=10) and len(order(1, 3)) == 50
    assert order(1, 3) != order(1, 4) and order(1, 3) != order(2, 3)
    assert len(set(order(1, 3))) < 50


def test_each_of_two_processes_gets_its_share_of_one_order() -> None:
    def loader() -> torch.utils.data.DataLoader:
        torch.manual_seed(5)  # what seed_everything does in every process
        return Toy(balance="resample").train_dataloader()

    whole = loader().sampler
    whole.set_epoch(2)
    expected, shares = list(whole), []
    for rank in range(2):
        sampler = _get_distributed_sampler(loader(), shuffle=True, overfit_batches=0, num_replicas=2, rank=rank)
        assert isinstance(sampler, DistributedSamplerWrapper)
        sampler.set_epoch(2)
        shares.append(list(sampler))
    assert len(shares[0]) == len(shares[1]) == -(-len(expected) // 2)
    padding = Counter(shares[0] + shares[1]) - Counter(expected)
    assert not Counter(expected) - Counter(shares[0] + shares[1]) and padding.total() == len(expected) % 2


def test_reweighted_batches_carry_weights_of_the_training_part() -> None:
    data = Toy(balance="reweight")
    assert data.cohort.fields[-1] == "weight" and "weight" not in Toy().cohort.fields
    codes, weights = [], []
    for batch in data.reference_dataloader():
        assert batch["weight"].dtype == torch.float32
        codes.append(np.column_stack([batch["target"], batch["attributes"]["sex"]]))
        weights.append(batch["weight"].numpy())
    found = np.concatenate(weights)
    assert np.isclose(found.mean(), 1, atol=1e-6)
    sums = cell_sums(np.concatenate(codes), found)  # sensitive attributes, so not the view
    assert np.ptp([total for cell, total in sums.items() if cell[1] >= 0]) < 1e-3
    for loader in (data.val_dataloader(), data.test_dataloader()):
        assert all((batch["weight"] == 1).all() for batch in loader)
    assert all("weight" not in batch for batch in Toy().train_dataloader())


def test_default_attributes_are_the_shifted_ones_then_the_sensitive_ones_then_all() -> None:
    class NoneSensitive(Toy):
        cohort = replace(Toy(balance="reweight").cohort, attributes=(replace(SEX, role="nuisance"), VIEW))

    def weights(cls: type[Toy], **options) -> torch.Tensor:
        data = cls(balance="reweight", **options)
        return torch.cat([batch["weight"] for batch in data.reference_dataloader()])

    shifted = {"shift": {"view": 0.7}}
    assert torch.equal(weights(Toy, **shifted), weights(Toy, **shifted, balance_by=["view"]))
    assert torch.equal(weights(Toy), weights(Toy, balance_by=["sex"]))
    assert torch.equal(weights(NoneSensitive), weights(Toy, balance_by=["sex", "view"]))
    assert len(weights(Toy, balance_by=[]).unique()) == 2  # one a class


def test_a_training_run_uses_the_weights() -> None:
    torch.manual_seed(0)
    data = Toy(balance="reweight", batch_size=50)
    model = ERM(data.cohort.to_dict(), encoder="region", encoder_options={"dim": 4})
    trainer = Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    trainer.fit(model, datamodule=data)
    assert trainer.global_step == len(data.rows("train")) // 50


def test_refusals() -> None:
    with pytest.raises(DataError, match=r"cannot balance by \['age'\]: the attributes are \['sex', 'view'\]"):
        Toy(balance="resample", balance_by=["age"]).setup("fit")

    class Undeclared(Toy):
        cohort = Toy().cohort

    with pytest.raises(DataError, match=r"of Undeclared declares the fields.*self\.batch_fields\('connectome'\)"):
        Undeclared(balance="reweight").setup("fit")

    class Value(Toy):
        cohort = replace(Toy().cohort, target=Factor("score", (), role="target"), target_kind="value")

    with pytest.raises(DataError, match="balance needs a target of classes; 'score' is not one"):
        Value(balance="resample").setup("fit")
    with pytest.raises(DataError, match="shift needs a target of classes"):
        Value(shift={"sex": 0.9}).setup("fit")
