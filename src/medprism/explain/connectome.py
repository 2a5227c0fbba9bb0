"""Figures and tables of what a connectome method attends to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from medprism.cohort import Batch, Cohort, Representation
from medprism.explain import brain
from medprism.explain.brain import Drawing, Panel, phrase_of, slug
from medprism.explain.deletion import deletion_curve, deletion_figure, ranking_map
from medprism.explain.regions import MeanMaps, NothingToShow, difference, overlap, region_name, top_regions

MOST_PANELS = 6
"""Maps in one figure; a factor with more classes, such as site, shows those with most subjects. Tables have all."""


@dataclass(frozen=True)
class ConnectomeFigures:
    """Draws mean maps over brain regions; see `medprism.explain.figures.Figures`.

    Attributes:
        represent: what the method makes of a batch.
        batches: the test set, once more.
        top: regions in tables and bar charts.
        deletion_draws: random orders beside the deletion curve; 0 for none.
        atlas_image: label image of the atlas, for volumes.
    """

    represent: Callable[[Batch], Representation]
    batches: Callable[[], Iterable[Batch]]
    top: int = 20
    deletion_draws: int = 10
    atlas_image: str | None = None

    def figures(self, cohort: Cohort, maps: dict[str, MeanMaps]) -> Iterator[Drawing]:
        """File stem and what draws it, one figure or table at a time.

        Args:
            cohort: names the data and places the regions.
            maps: mean maps of the target and the attributes.
        """
        yield "maps", partial(_all_maps, cohort=cohort, maps=maps)
        for each in maps.values():
            yield f"{slug(each.factor.name)}_maps", partial(self._maps, cohort=cohort, maps=each)
            yield f"{slug(each.factor.name)}_top_regions", partial(self._regions, cohort=cohort, maps=each)
        target = maps.get(cohort.target.name)
        if target is None:
            rank_zero_info(
                f"Figures: no maps of the target '{cohort.target.name}': no difference, overlap or deletion."
            )
            return
        yield f"{slug(cohort.target.name)}_difference", partial(self._difference, cohort=cohort, maps=target)
        for factor in cohort.attributes:
            if factor.role == "sensitive" and factor.name in maps:
                draw = partial(self._overlap, cohort=cohort, target=target, attribute=maps[factor.name])
                yield f"overlap_{slug(factor.name)}", draw
        if self.deletion_draws:
            yield "deletion", partial(self._deletion, cohort=cohort, target=target)

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

    def _deletion(self, path: Path, cohort: Cohort, target: MeanMaps) -> Iterator[Path]:
        def predict(batch: Batch) -> Tensor:
            return self.represent(batch).logits[cohort.target.name]

        curve = deletion_curve(predict, self.batches(), ranking_map(target), draws=self.deletion_draws)
        yield _table(curve, path)
        yield from brain.save(deletion_figure(curve, cohort, _disease(target)), path, vector=True)


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
    return path.with_name("_".join([path.name, *map(slug, names), slug(stem)]) + dot + suffix)
