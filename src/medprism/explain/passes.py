"""The test set once more, on one process, for figures that the steps of a test leave too little behind for."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from medprism.cohort import Batch, Representation
from medprism.distributed import world_size


def represent(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch) -> Representation:
    """What the method makes of the batch in testing: no gradients, no dropout, the trainer's precision."""
    training = pl_module.training
    pl_module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.test_step_context():
            representation: Representation = pl_module.represent(batch)  # type: ignore[operator]
            return representation
    finally:
        pl_module.train(training)


def all_batches(trainer: pl.Trainer) -> Iterator[Batch]:
    """The test set of all processes, in this process: the loader that Lightning holds has only a share of it."""
    loaders = trainer.test_dataloaders
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    assert loader is not None
    size = loader.batch_size or (1 if loader.batch_sampler else None)  # None: the data set's items are batches
    whole = DataLoader(loader.dataset, batch_size=size, collate_fn=loader.collate_fn)
    limit = trainer.num_test_batches[0]
    for batch in islice(whole, None if limit == float("inf") else int(limit) * world_size()):
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
