"""`Figures`: the callback that draws, after a test, what a method attends to, and its latent blocks."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_info

from medprism.cohort import Cohort
from medprism.distributed import barrier, gather_objects, rank
from medprism.explain.aligned import Aligned
from medprism.explain.alignment import alignment_figures
from medprism.explain.brain import Drawing
from medprism.explain.connectome import ConnectomeFigures
from medprism.explain.latent import Latents, latent_figures
from medprism.explain.passes import all_batches, represent
from medprism.explain.regions import MapSums, NothingToShow


class FigureWarning(UserWarning):
    """A figure could not be drawn; the metrics of the run are not touched."""


class Figures(pl.Callback):
    """Draw after a test what a method attends to.

    Methods with maps over brain regions get attention maps, their overlap and a deletion curve; image-text methods
    (steps with the tokens `patches` and `sentences`) readings with gaze and patch maps, a similarity matrix and
    examples of retrieval. Every process collects sums of maps, or vectors, during the test; process zero draws. Any
    other method gets one sentence in the log. With `latent` the latent blocks are drawn too, for every cohort. A
    figure that fails becomes a `FigureWarning`, and the others are still drawn.

    Args:
        enabled: whether to draw anything.
        top: regions in tables and bar charts, and those that the Dice overlap compares.
        deletion_draws: random orders that the deletion curve is compared with; 0 leaves the curve out. Every draw is
            ten more passes over the test set.
        atlas_image: NIfTI label image of the cohort's atlas in MNI space (label i is region i); adds volume figures.
        latent: whether to draw the latent blocks of the test set `balanced` (of the whole test, where there is none):
            embeddings coloured by factor, and the block x factor matrix where the evaluator measured it
            (`--evaluator.latent true`).
        readings: test readings of an image-text method that are drawn sentence by sentence: the first ones by id that
            have gaze, or sentences where none has gaze.
        folder: where to write; `figures` in the trainer's root directory when left out.

    Attributes:
        written: the files of the last test, in the order of writing; empty on other processes than zero.

    Raises:
        ValueError: when `top` is below 1, `deletion_draws` or `readings` below 0.
    """

    def __init__(
        self,
        enabled: bool = True,
        top: int = 20,
        deletion_draws: int = 10,
        atlas_image: str | None = None,
        latent: bool = False,
        readings: int = 4,
        folder: str | None = None,
    ) -> None:
        if top < 1 or deletion_draws < 0 or readings < 0:
            raise ValueError(
                f"Figures needs top >= 1, deletion_draws >= 0 and readings >= 0; got {top}, {deletion_draws} and "
                f"{readings}"
            )
        self.enabled = enabled
        self.top = top
        self.deletion_draws = deletion_draws
        self.atlas_image = atlas_image
        self.latent = latent
        self.readings = readings
        self.folder = folder
        self.written: list[Path] = []
        self._sums: MapSums | None = None
        self._latents = Latents()
        self._aligned = Aligned()
        self._skip = ""
        self._failure: Exception | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse a missing atlas image before anything runs.

        Raises:
            FileNotFoundError: when `atlas_image` is not a file.
        """
        if self.enabled and self.atlas_image and not Path(self.atlas_image).is_file():
            raise FileNotFoundError(
                f"Figures: atlas_image '{self.atlas_image}' is not a file; give the path of a NIfTI label image, "
                "or leave it out to draw without volumes"
            )

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start empty sums."""
        self.written, self._failure, self._skip = [], None, "" if self.enabled else "switched off"
        self._latents, self._aligned = Latents(), Aligned()
        if not self.enabled:
            return
        cohort: Cohort = pl_module.cohort  # type: ignore[assignment] # the contract of a method
        self._sums = MapSums(cohort)
        if cohort.input_field != "connectome":
            self._skip = f"'{cohort.name}' has inputs of kind {cohort.input_field}; brain figures need connectomes"

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the maps and vectors of one batch; with several test dataloaders only those of the first are drawn."""
        if not self.enabled or self._failure or dataloader_idx or self._sums is None:
            return
        try:
            if self.latent:
                self._latents.add(outputs, self._sums.cohort)
            self._aligned.add(outputs, batch, self._sums.cohort)
            if self._skip:
                return
            representation = represent(trainer, pl_module, batch)
            if representation.maps:
                self._sums.add(batch, representation)
            else:
                self._skip = f"{type(pl_module).__name__} has no attention maps"
        except Exception as error:
            self._failure = error

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Gather the sums of all processes and draw on process zero."""
        if not self.enabled:
            return
        # Every process gathers, whatever happened to it: a process that stays away would block the others.
        gathered = gather_objects((self._sums, self._skip, self._failure))
        latents = gather_objects(self._latents) if self.latent else []
        aligned = gather_objects(self._aligned)
        if rank() == 0:
            reason = next((skip for _, skip, _ in gathered if skip), "")
            failure = next((error for _, _, error in gathered if error), None)
            if failure:
                _warn("all figures", failure)
            elif any(part.ids for part in aligned):
                self._draw_alignment(trainer, pl_module, aligned)
            elif reason:
                rank_zero_info(f"Figures: {'no maps' if self.latent else 'none'} drawn: {reason}.")
            else:
                self._draw(trainer, pl_module, [sums for sums, _, _ in gathered if sums is not None])
            if self.latent and not failure:
                self._draw_latent(trainer, pl_module, latents)
        barrier()

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, sums: Sequence[MapSums]) -> None:
        cohort = sums[0].cohort
        try:
            maps = MapSums.merge(sums).means()
        except Exception as error:
            _warn("all figures", error)
            return
        if not cohort.coordinates:
            rank_zero_info(
                f"Figures: '{cohort.name}' has no coordinates of its regions: bar charts replace the brains."
            )
        again = partial(represent, trainer, pl_module), partial(all_batches, trainer)
        draws = ConnectomeFigures(*again, self.top, self.deletion_draws, self.atlas_image)
        self._write(trainer, draws.figures(cohort, maps))

    def _draw_alignment(self, trainer: pl.Trainer, pl_module: pl.LightningModule, aligned: Sequence[Aligned]) -> None:
        try:
            merged = Aligned.merge(aligned)
        except Exception as error:
            _warn("all figures", error)
            return
        again = partial(represent, trainer, pl_module), partial(all_batches, trainer)
        cohort: Cohort = pl_module.cohort  # type: ignore[assignment]
        self._write(trainer, alignment_figures(merged, cohort, *again, self.readings))

    def _draw_latent(self, trainer: pl.Trainer, pl_module: pl.LightningModule, latents: Sequence[Latents]) -> None:
        sets = getattr(getattr(trainer, "datamodule", None), "test_sets", None) or {}
        try:
            merged = Latents.merge(latents, set(sets["balanced"]) if "balanced" in sets else None)
            # An evaluator is known by its metrics: this package looks at no neighbour.
            measured = (getattr(callback, "metrics", {}).get("test", {}) for callback in trainer.callbacks)  # type: ignore[attr-defined]
            found = next((metrics["latent"] for metrics in measured if "latent" in metrics), None)
        except Exception as error:
            _warn("latent figures", error)
            return
        if not merged.ids:
            rank_zero_info(
                f"Figures: no latent blocks drawn: the test steps of {type(pl_module).__name__} return none."
            )
            return
        where = "test set balanced" if "balanced" in sets else "whole test"
        self._write(trainer, latent_figures(merged, pl_module.cohort, where, found))  # type: ignore[arg-type]

    def _write(self, trainer: pl.Trainer, figures: Iterable[Drawing]) -> None:
        folder = Path(self.folder) if self.folder else Path(trainer.default_root_dir) / "figures"
        for name, draw in figures:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for path in draw(folder / name):  # one by one: what a broken figure wrote before it broke counts
                    self.written.append(path)
            except NothingToShow as reason:
                rank_zero_info(f"Figures: no {name}: {reason}.")
            except Exception as error:
                _warn(name, error)
        rank_zero_info(f"Figures: {len(self.written)} files in {folder}")


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"the figure '{name}' failed ({type(error).__name__}: {error}); metrics and the other figures are unaffected",
        FigureWarning,
        stacklevel=2,
    )
