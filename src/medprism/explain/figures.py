"""`Figures`: the callback that draws, after a test, what a connectome method attends to, and latent blocks."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.utils.data import DataLoader

from medprism.cohort import Batch, Cohort, Representation
from medprism.distributed import barrier, gather_objects, rank, world_size
from medprism.explain import brain
from medprism.explain.brain import Panel, phrase_of
from medprism.explain.deletion import deletion_curve, deletion_figure, ranking_map
from medprism.explain.latent import Latents, latent_figures
from medprism.explain.regions import MapSums, MeanMaps, NothingToShow, difference, overlap, region_name, top_regions

MOST_PANELS = 6
"""Maps in one figure; a factor with more classes, such as site, shows those with most subjects. Tables have all."""


class FigureWarning(UserWarning):
    """A figure could not be drawn; the metrics of the run are not touched."""


class Figures(pl.Callback):
    """Draw attention maps, their overlap and a deletion curve after a test, for methods with maps over brain regions.

    Every process collects sums of maps during the test; process zero draws. A method without maps, and a cohort of
    images or volumes, gets one sentence in the log. With `latent` the latent blocks are drawn too, for every cohort.
    A figure that fails becomes a `FigureWarning`, and the others are still drawn.

    Args:
        enabled: whether to draw anything.
        top: regions in tables and bar charts, and those that the Dice overlap compares.
        deletion_draws: random orders that the deletion curve is compared with; 0 leaves the curve out. Every draw is
            ten more passes over the test set.
        atlas_image: NIfTI label image of the cohort's atlas in MNI space (label i is region i); adds volume figures.
        latent: whether to draw the latent blocks of the test set `balanced` (of the whole test, where there is none):
            embeddings coloured by factor, and the block x factor matrix where the evaluator measured it
            (`--evaluator.latent true`).
        folder: where to write; `figures` in the trainer's root directory when left out.

    Attributes:
        written: the files of the last test, in the order of writing; empty on other processes than zero.

    Raises:
        ValueError: when `top` is below 1 or `deletion_draws` below 0.
    """

    def __init__(
        self,
        enabled: bool = True,
        top: int = 20,
        deletion_draws: int = 10,
        atlas_image: str | None = None,
        latent: bool = False,
        folder: str | None = None,
    ) -> None:
        if top < 1 or deletion_draws < 0:
            raise ValueError(f"Figures needs top >= 1 and deletion_draws >= 0; got {top} and {deletion_draws}")
        self.enabled = enabled
        self.top = top
        self.deletion_draws = deletion_draws
        self.atlas_image = atlas_image
        self.latent = latent
        self.folder = folder
        self.written: list[Path] = []
        self._sums: MapSums | None = None
        self._latents = Latents()
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
        self._latents = Latents()
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
        """Add the maps and blocks of one batch; with several test dataloaders only those of the first are drawn."""
        if self.enabled and self.latent and not self._failure and not dataloader_idx:
            try:
                self._latents.add(outputs, pl_module.cohort)  # type: ignore[arg-type]
            except Exception as error:
                self._failure = error
        if self._skip or self._failure or dataloader_idx or self._sums is None:
            return
        try:
            representation = _represent(trainer, pl_module, batch)
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
        if rank() == 0:
            reason = next((skip for _, skip, _ in gathered if skip), "")
            failure = next((error for _, _, error in gathered if error), None)
            if failure:
                _warn("all figures", failure)
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
        self._write(trainer, self._figures(trainer, pl_module, cohort, maps))

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

    def _write(self, trainer: pl.Trainer, figures: Iterable[tuple[str, Callable[[Path], Iterable[Path]]]]) -> None:
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

    def _figures(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, cohort: Cohort, maps: dict[str, MeanMaps]
    ) -> Iterator[tuple[str, Callable[[Path], Iterable[Path]]]]:
        """File stem and what draws it, one figure or table at a time."""
        yield "maps", partial(_all_maps, cohort=cohort, maps=maps)
        for each in maps.values():
            yield f"{_slug(each.factor.name)}_maps", partial(self._maps, cohort=cohort, maps=each)
            yield f"{_slug(each.factor.name)}_top_regions", partial(self._regions, cohort=cohort, maps=each)
        target = maps.get(cohort.target.name)
        if target is None:
            rank_zero_info(
                f"Figures: no maps of the target '{cohort.target.name}': no difference, overlap or deletion."
            )
            return
        yield f"{_slug(cohort.target.name)}_difference", partial(self._difference, cohort=cohort, maps=target)
        for factor in cohort.attributes:
            if factor.role == "sensitive" and factor.name in maps:
                draw = partial(self._overlap, cohort=cohort, target=target, attribute=maps[factor.name])
                yield f"overlap_{_slug(factor.name)}", draw
        if self.deletion_draws:
            yield (
                "deletion",
                partial(self._deletion, trainer=trainer, pl_module=pl_module, cohort=cohort, target=target),
            )

    def _maps(self, path: Path, cohort: Cohort, maps: MeanMaps) -> Iterator[Path]:
        panels, what = _panels(maps, cohort)
        subjects = sum(maps.subjects)
        if cohort.coordinates:
            yield from brain.save(brain.glass_brain(panels, cohort, what, subjects), path)
        else:
            yield from brain.save(brain.bars(panels, cohort, what, subjects, top=self.top), path, vector=True)
        if self.atlas_image and maps.factor.name == cohort.target.name:
            for panel, code in zip(panels, _most_seen(maps), strict=True):
                figure = brain.volume(panel, cohort, what, subjects, Path(self.atlas_image))
                yield from brain.save(figure, _extended(path, maps.factor.classes[code], "volume"))

    def _regions(self, path: Path, cohort: Cohort, maps: MeanMaps) -> Iterator[Path]:
        panels, what = _panels(maps, cohort)
        tables = {
            (maps.factor.name, maps.factor.classes[code], maps.subjects[code]): top_regions(
                maps.of(code), cohort, self.top
            )
            for code in maps.shown
        }
        table = pd.concat(tables, names=["factor", "class", "subjects"]).reset_index(["factor", "class", "subjects"])
        yield _table(table, path)
        if cohort.coordinates:  # without them the maps are bar charts already
            figure = brain.bars(panels, cohort, what, sum(maps.subjects), top=self.top)
            yield from brain.save(figure, path, vector=True)

    def _difference(self, path: Path, cohort: Cohort, maps: MeanMaps) -> Iterator[Path]:
        factor = maps.factor
        codes = [code for code in _most_seen(maps) if code > 0]
        if not codes:
            raise NothingToShow(f"only {factor.classes[0]} has correctly classified subjects")
        panels = [
            Panel(f"{phrase_of(factor, code)} minus {phrase_of(factor, 0)}", difference(maps, code)) for code in codes
        ]
        what = f"Difference of mean attention between classes of {factor.name} (correctly classified subjects)"
        subjects = sum(maps.subjects[code] for code in (0, *codes))
        tables = [
            top_regions(panel.values, cohort, self.top).assign(contrast=f"{factor.classes[code]} - {factor.classes[0]}")
            for panel, code in zip(panels, codes, strict=True)
        ]
        yield _table(pd.concat(tables, ignore_index=True), path)
        ranked = _extended(path, "top_regions") if cohort.coordinates else path
        yield from brain.save(brain.bars(panels, cohort, what, subjects, top=self.top), ranked, vector=True)
        if cohort.coordinates:
            yield from brain.save(brain.glass_brain(panels, cohort, what, subjects, diverging=True), path)
        for panel, code in zip(panels, codes, strict=True):
            if cohort.coordinates:
                page = _extended(path, f"{factor.classes[code]}.html")
                page.write_text(brain.interactive(panel, cohort, what, subjects, diverging=True), encoding="utf-8")
                yield page
            if self.atlas_image:
                figure = brain.volume(panel, cohort, what, subjects, Path(self.atlas_image), diverging=True)
                yield from brain.save(figure, _extended(path, factor.classes[code], "volume"))

    def _overlap(self, path: Path, cohort: Cohort, target: MeanMaps, attribute: MeanMaps) -> Iterator[Path]:
        disease, name = ranking_map(target), attribute.factor.name
        maps = {attribute.factor.classes[code]: attribute.of(code) for code in attribute.shown}
        if not maps:
            raise NothingToShow(f"no subject has a known {name}")
        every = torch.stack(list(maps.values())).mean(0)
        rows = [
            {"attribute": name, "class": of, **overlap(disease, weights, self.top), "top": self.top}
            for of, weights in {"mean of classes": every, **maps}.items()
        ]
        yield _table(pd.DataFrame(rows), path)
        figure = brain.overlap_figure(
            Panel(f"attention to {_disease(target)}, n = {sum(target.subjects[1:])}", disease),
            Panel(f"attention to {name} (mean of {len(maps)} classes), n = {sum(attribute.subjects)}", every),
            cohort,
            f"Do the attention maps of {cohort.target.name} and {name} overlap?",
            sum(attribute.subjects),
            top=self.top,
        )
        yield from brain.save(figure, path, vector=True)

    def _deletion(
        self, path: Path, trainer: pl.Trainer, pl_module: pl.LightningModule, cohort: Cohort, target: MeanMaps
    ) -> Iterator[Path]:
        def predict(batch: Batch) -> Tensor:
            return _represent(trainer, pl_module, batch).logits[cohort.target.name]

        curve = deletion_curve(predict, _all_batches(trainer), ranking_map(target), draws=self.deletion_draws)
        yield _table(curve, path)
        yield from brain.save(deletion_figure(curve, cohort, _disease(target)), path, vector=True)


def _represent(trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch) -> Representation:
    """What the method makes of the batch in testing: no gradients, no dropout, the trainer's precision."""
    training = pl_module.training
    pl_module.eval()
    try:
        with torch.no_grad(), trainer.precision_plugin.test_step_context():
            representation: Representation = pl_module.represent(batch)  # type: ignore[operator]
            return representation
    finally:
        pl_module.train(training)


def _all_batches(trainer: pl.Trainer) -> Iterator[Batch]:
    """The test set of all processes, in this process: the loader that Lightning holds has only a share of it."""
    loaders = trainer.test_dataloaders
    loader = loaders[0] if isinstance(loaders, list | tuple) else loaders
    assert loader is not None
    whole = DataLoader(loader.dataset, batch_size=loader.batch_size or 1, collate_fn=loader.collate_fn)
    limit = trainer.num_test_batches[0]
    for batch in islice(whole, None if limit == float("inf") else int(limit) * world_size()):
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _panels(maps: MeanMaps, cohort: Cohort) -> tuple[list[Panel], str]:
    """The maps of a factor as panels, and the line of the title that says over whom they were averaged."""
    factor, shown = maps.factor, _most_seen(maps)
    if not shown:
        raise NothingToShow(f"no class of '{factor.name}' has a subject")
    over = "correctly classified subjects" if factor.name == cohort.target.name else "subjects"
    what = f"Mean attention to each class of {factor.name} ({over} of that class)"
    if len(shown) < len(maps.shown):
        what += f"; {len(shown)} of {len(maps.shown)} classes, those with most subjects"
    return [Panel(f"{phrase_of(factor, code)}, n = {maps.subjects[code]}", maps.of(code)) for code in shown], what


def _most_seen(maps: MeanMaps) -> list[int]:
    """Codes of the classes to draw, in their order."""
    return sorted(sorted(maps.shown, key=lambda code: -maps.subjects[code])[:MOST_PANELS])


def _disease(target: MeanMaps) -> str:
    codes = [code for code in target.shown if code > 0]
    return phrase_of(target.factor, codes[0]) if len(codes) == 1 else f"{len(codes)} classes of {target.factor.name}"


def _all_maps(path: Path, cohort: Cohort, maps: dict[str, MeanMaps]) -> Iterator[Path]:
    """All maps: one row a region, one column `factor=class` a map."""
    n = cohort.input_shape[0]
    table = pd.DataFrame({"region": range(1, n + 1), "name": [region_name(cohort, index) for index in range(n)]})
    if cohort.coordinates:
        table[["x", "y", "z"]] = pd.DataFrame(list(cohort.coordinates))
    for name, each in maps.items():
        for code, label in enumerate(each.factor.classes):
            table[f"{name}={label}"] = each.weights[code].numpy()
    yield _table(table, path)


def _table(table: pd.DataFrame, path: Path) -> Path:
    path = path.with_name(f"{path.name}.csv")
    table.to_csv(path, index=False)
    return path


def _extended(path: Path, *parts: str) -> Path:
    """`<path>_<part>_...`, with the suffix of the last part kept."""
    *names, last = parts
    stem, dot, suffix = last.partition(".html")
    return path.with_name("_".join([path.name, *map(_slug, names), _slug(stem)]) + dot + suffix)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "_", name).strip("_").lower() or "unnamed"


def _warn(name: str, error: Exception) -> None:
    warnings.warn(
        f"the figure '{name}' failed ({type(error).__name__}: {error}); metrics and the other figures are unaffected",
        FigureWarning,
        stacklevel=2,
    )
