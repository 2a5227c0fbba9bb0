"""Means over the samples of an epoch are those that Lightning would have logged."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from medprism.terms import EpochMeans, NamedTerms

VALUES, SIZES = [1.0, 4.0, 2.0], [3, 1, 4]


def test_means_weigh_batches_by_their_size():
    means = EpochMeans()
    for value, size in zip(VALUES, SIZES, strict=True):
        means.add({"train/a": torch.tensor(value, requires_grad=True)}, size)
    means.add({"val/a": torch.tensor(9.0)}, 1)
    ((name, mean, size),) = means.take("train/")
    assert (name, size, mean.requires_grad) == ("train/a", 8, False)
    assert float(mean) == pytest.approx((3 + 4 + 8) / 8)
    assert not list(means.take("train/")) and len(list(means.take("val/"))) == 1


class Both(NamedTerms):
    """Logs the same scalar in both ways."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch, index):
        value, size = torch.tensor(VALUES[index]), SIZES[index]
        self.note("train", {"ours": value}, size)
        self.log("train/theirs", value, on_step=False, on_epoch=True, batch_size=size)
        return (self.weight * batch.float()).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def test_lightning_logs_the_same_mean():
    trainer = pl.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Both(), DataLoader(torch.arange(3), batch_size=1))
    found = trainer.callback_metrics
    assert float(found["train/ours"]) == pytest.approx(float(found["train/theirs"])) == pytest.approx(15 / 8)
