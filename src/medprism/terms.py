"""Named scalars of a training: their means over an epoch, and what to say when one is not finite.

Lightning's own way of logging a mean shows in short steps: it copies the description of every name each time.
`benchmarks/speed/step.py` measures a whole step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import lightning.pytorch as pl
import torch
from torch import Tensor


class NonFiniteLossError(RuntimeError):
    """A named loss term became NaN or infinite."""


class EpochMeans:
    """Means of named scalars over the samples of an epoch, kept on their device."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, int]] = {}

    def add(self, values: Mapping[str, Tensor], size: int) -> None:
        """Take in the values of a batch of that many samples."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value.detach().float() * size, count + size)

    def take(self, prefix: str) -> Iterator[tuple[str, Tensor, int]]:
        """Name, mean and number of samples of all that begin with the prefix; they begin anew."""
        for name in [name for name in self._sums if name.startswith(prefix)]:
            total, count = self._sums.pop(name)
            yield name, total / count, count


class NamedTerms(pl.LightningModule):
    """A module that logs named scalars as means over the samples of an epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.means = EpochMeans()

    def note(self, stage: str, values: Mapping[str, Tensor], size: int) -> None:
        """Log scalars of a batch of `size` samples as `<stage>/<name>`, for `train` and `val`."""
        self.means.add({f"{stage}/{name}": value for name, value in values.items()}, size)

    def on_train_epoch_end(self) -> None:
        """Log the means of the epoch; a subclass with a hook of its own calls this one."""
        self._log_means("train/")

    def on_validation_epoch_end(self) -> None:
        """Likewise."""
        self._log_means("val/")

    def _log_means(self, prefix: str) -> None:
        # Terms that couple samples are equal on every rank already; the mean over ranks leaves them as they are.
        for name, mean, size in self.means.take(prefix):
            self.log(name, mean, on_epoch=True, sync_dist=True, batch_size=size)


def refuse_non_finite(terms: Mapping[str, Tensor], where: str, ids: Sequence[str]) -> None:
    """Stop with the names of the terms that are not finite.

    Args:
        terms: scalars.
        where: method, stage, epoch and step.
        ids: of the batch.

    Raises:
        NonFiniteLossError: when a term is NaN or infinite.
    """
    if torch.stack(list(terms.values())).isfinite().all():
        return
    bad = [name for name, term in terms.items() if not term.isfinite()]
    raise NonFiniteLossError(
        f"loss term{'s' if len(bad) > 1 else ''} {', '.join(bad)} of {where}; "
        f"all terms: {', '.join(f'{name} {float(term):.4g}' for name, term in terms.items())}; first ids of the "
        f"batch: {', '.join(ids[:3])}. Lower the learning rate, clip gradients "
        f"(--trainer.gradient_clip_val 1), or look at these samples."
    )
