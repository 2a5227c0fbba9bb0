"""What the Evaluator asks of every image-text method: zero-shot, retrieval, linear probe and grounding.

An image-text method is one whose steps return the tokens `patches` and `sentences`. Tokens are scored batch by batch
and not kept; what is kept of a sample are its image and text vectors, and of a sentence a few scores and its truth on
the patches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningModule
from rich.table import Table
from torch import Tensor

from medprism.cohort import Batch, Cohort
from medprism.distributed import gather_objects
from medprism.evaluation.grounding import SCORES, SHOWN, CentreBias, Grounded, Kind, centre_scores, ground, grounding
from medprism.evaluation.heads import Number
from medprism.evaluation.label_shares import label_shares
from medprism.evaluation.predictions import Array, Predictions, StepOutput
from medprism.evaluation.retrieval import Pairs, reciprocal_rank, retrieval
from medprism.evaluation.zero_shot import zero_shot
from medprism.files import write_whole

T = TypeVar("T", Pairs, Grounded)

TOKENS: Mapping[Kind, str] = {"gaze": "sentences", "boxes": "phrases"}
"""The tokens that are compared with each kind of truth."""

BESIDE = ("constant", "chance", "centre_bias")
"""Where the level that needs no model stands beside a number."""


class Alignment:
    """Collects an epoch of an image-text method, and measures it; of other methods it collects nothing.

    Attributes:
        pairs: samples, after `gather`.
        rows: sentences and phrases, after `gather`.
    """

    def __init__(self) -> None:
        self.pairs = Pairs()
        self.rows: dict[Kind, Grounded] = {kind: Grounded() for kind in SHOWN}
        self._grid: tuple[int, ...] = ()
        self._pairs: list[Pairs] = []
        self._rows: dict[Kind, list[Grounded]] = {kind: [] for kind in SHOWN}
        self._training = CentreBias()
        self._centre: dict[Kind, tuple[Array, str]] = {}

    def add(self, outputs: StepOutput, batch: Batch) -> None:
        """Score the sentences of a batch, and keep its image and text vectors.

        Raises:
            ValueError: when tokens and grid do not fit, or a vector is not finite.
        """
        if not _aligned(outputs):
            return
        tokens = outputs["tokens"]
        self._grid = _grid(outputs)
        self._pairs.append(_pairs(outputs, batch))
        for kind, name in TOKENS.items():
            if name in tokens:
                found = ground(kind, batch, outputs["subject"], tokens["patches"], tokens[name], self._grid)
                self._rows[kind].append(found)

    def learn(self, outputs: StepOutput, batch: Batch) -> None:
        """Take in a batch of training readings, for the centre bias."""
        if _aligned(outputs):
            self._training.add(batch, _grid(outputs))

    def gather(self) -> bool:
        """Join what all processes added, each id once, sorted; every process must call it.

        Returns:
            Whether the steps were those of an image-text method.
        """
        mine = (self._grid, Pairs.joined(self._pairs), {k: Grounded.joined(parts) for k, parts in self._rows.items()})
        everybody = gather_objects(mine)
        self._grid = next((grid for grid, _, _ in everybody if grid), ())
        self.pairs = merged([pairs for _, pairs, _ in everybody])
        self.rows = {kind: merged([rows[kind] for _, _, rows in everybody]) for kind in SHOWN}
        self._pairs, self._rows = [self.pairs], {kind: [rows] for kind, rows in self.rows.items()}
        return bool(self._grid)

    def scores(self) -> dict[str, float]:
        """Numbers that are quick enough for every validation epoch; every process must call it.

        They are `alignment/retrieval/reciprocal_rank`, and `alignment/grounding/gaze/pointing` and
        `alignment/grounding/boxes/pointing`, named as those of a test; without those that are not defined.
        """
        if not self.gather():
            return {}
        found = {"retrieval/reciprocal_rank": reciprocal_rank(self.pairs) if _has_images(self.pairs) else None}
        for kind, rows in self.rows.items():
            defined = rows.scores[~np.isnan(rows.scores[:, 0]), 0]
            found[f"grounding/{kind}/pointing"] = float(defined.mean()) if len(defined) else None
        return {f"alignment/{name}": value for name, value in found.items() if value is not None}

    def result(
        self,
        predictions: Predictions,
        cohort: Cohort,
        performance: Mapping[str, Number],
        reference: Predictions | None = None,
        queries: Mapping[str, Array] | None = None,
        bootstrap: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> tuple[dict[str, Any], list[str]]:
        """Everything, with intervals over subjects; every process must call it, after `gather`.

        Args:
            predictions: of the same samples.
            cohort: names the classes.
            performance: of those predictions, from `medprism.evaluation.report.evaluate`.
            reference: training samples with the block `image`, for the linear probe.
            queries: class name to vectors of texts that ask for it; see `embedded`.
            bootstrap: number of resamples of subjects; 0 for no intervals.
            confidence: of the intervals.
            seed: of all draws.

        Returns:
            `zero_shot`, `retrieval`, `linear_probe` and `grounding` (`gaze` and `boxes`), empty where nothing can be
            measured. And sentences on what was left out.

        Raises:
            ValueError: when only some of the steps returned tokens.
        """
        if self.pairs.ids != predictions.ids:
            raise ValueError(
                f"{len(self.pairs)} of {len(predictions)} samples came with the tokens patches and sentences; return "
                "them from every step"
            )
        draws = (bootstrap, confidence, seed)
        classified, notes = zero_shot(predictions, cohort, performance, *draws)
        found: dict[str, Any] = {"zero_shot": classified, "retrieval": {}, "linear_probe": {}, "grounding": {}}
        if _has_images(self.pairs):
            found["retrieval"], remarks = retrieval(self.pairs, cohort, predictions.target, queries, *draws)
            found["linear_probe"], more = self._linear_probe(predictions, cohort, reference, draws)
            notes += remarks + more
        else:
            notes.append("alignment: the steps return no block 'image'; no retrieval, no linear probe")
        self._centre = self._training.gather(self._grid)
        for kind, rows in self.rows.items():
            if len(rows):
                centre, centre_is = self._centre[kind]
                found["grounding"][kind], remarks = grounding(kind, rows, centre, centre_is, *draws)
                without = len(predictions) - len(set(rows.ids))
                notes += [f"grounding: {without} of {len(predictions)} samples have no {kind}"] if without else []
                notes += remarks
        return found, notes

    def save(self, path: Path, stage: str) -> None:
        """Write one row a sentence or phrase; rows of that stage are replaced, other stages stay. After `result`."""
        frames = []
        for kind, rows in self.rows.items():
            columns: dict[str, Any] = {"stage": stage, "id": rows.ids, "subject": rows.subjects, "truth": kind}
            columns["number"] = rows.number
            if len(rows):
                columns |= {name: rows.scores[:, SCORES.index(name)] for name in SHOWN[kind]}
                bias = centre_scores(rows, self._centre[kind][0])
                columns |= {f"centre_bias_{name}": bias[:, SCORES.index(name)] for name in SHOWN[kind]}
                frames.append(pd.DataFrame(columns).astype(object))
        if not frames:
            return
        if path.exists():
            old = pd.read_csv(path, dtype=str, keep_default_na=False)
            frames.insert(0, old[old["stage"] != stage].astype(object))
        frame = pd.concat(frames, ignore_index=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: frame.to_csv(part, index=False, na_rep=""))

    def _linear_probe(
        self, predictions: Predictions, cohort: Cohort, reference: Predictions | None, draws: tuple[int, float, int]
    ) -> tuple[dict[str, Any], list[str]]:
        if cohort.target_kind != "classes" or predictions.target is None:
            return {}, [f"linear probe: target {cohort.target.name} is not one of several classes; not probed"]
        if reference is None or "image" not in reference.blocks or reference.target is None:
            return {}, ["linear probe: not probed, no datamodule has reference_dataloader()"]
        training = (reference.blocks["image"], reference.target, reference.subjects)
        return label_shares(*training, self.pairs.image, predictions.target, self.pairs.subjects, cohort, *draws)


def embedded(module: LightningModule, queries: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """Class name to the vectors `(k, d)` of the texts that ask for it; empty for a method that embeds no texts.

    Raises:
        ValueError: when a class has no text.
    """
    embed = getattr(module, "embed_texts", None)
    empty = [name for name, texts in queries.items() if not texts]
    if empty:
        raise ValueError(f"queries have no text for {empty}; give at least one for each class")
    if embed is None:
        return {}
    with torch.no_grad():
        return {name: embed(list(texts)).detach().float().cpu().numpy() for name, texts in queries.items()}


def merged(parts: Sequence[T]) -> T:
    """The rows of all parts sorted by id, those of an id from the first part that has it."""
    owner: dict[str, int] = {}
    for number, part in enumerate(parts):
        for name in part.ids:
            owner.setdefault(name, number)
    kept = [
        part.take([row for row, name in enumerate(part.ids) if owner[name] == number])
        for number, part in enumerate(parts)
    ]
    joined = type(parts[0]).joined(kept)
    return joined.take(sorted(range(len(joined)), key=lambda row: joined.ids[row]))


def alignment_table(metrics: Mapping[str, Any], others: Mapping[str, str] | None = None, stage: str = "test") -> Table:
    """Every number beside what a constant predictor, a random order or the centre bias reaches, and other runs.

    Args:
        metrics: of a stage.
        others: label to the metrics.json of another run.
        stage: of the others.
    """
    simulated = " (simulated)" if metrics["simulated"] else ""
    shown = Table(title=f"{metrics['cohort']}{simulated}: images and texts")
    shown.add_column("what")
    shown.add_column("metric")
    found, left_out = _others(metrics, others or {}, stage)
    for column in ("value", "interval", "without a model", *found):
        shown.add_column(column, justify="right")
    for what, branch in metrics["alignment"].items():
        _add(shown, what.replace("_", " "), branch, [other.get(what, {}) for other in found.values()])
        if branch:
            shown.add_section()
    constant = metrics["alignment"]["zero_shot"].get("constant", {})
    captions = [f"zero shot without a model: always '{constant['class']}'"] if constant else []
    bias = sorted({each["centre_is"] for each in metrics["alignment"]["grounding"].values() if each})
    captions += [f"grounding without a model: {', '.join(bias)}"] if bias else []
    shown.caption = "; ".join([*captions, *left_out]) or None
    return shown


def _others(metrics: Mapping[str, Any], paths: Mapping[str, str], stage: str) -> tuple[dict[str, Any], list[str]]:
    """The `alignment` of other runs on the same samples; and why others are left out."""
    found, left_out = {}, []
    for label, path in paths.items():
        try:
            other = json.loads(Path(path).read_text(encoding="utf-8"))[stage]
        except (OSError, ValueError, KeyError) as error:
            left_out.append(f"{label} is not shown: {path} has no metrics of a {stage} ({type(error).__name__})")
            continue
        same = all(other.get(key) == metrics.get(key) for key in ("cohort", "n", "subjects"))
        if same and other.get("alignment"):
            found[label] = other["alignment"]
        else:
            left_out.append(f"{label} is not shown: {path} measured other samples, or no images and texts")
    return found, left_out


def _add(shown: Table, what: str, branch: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> None:
    blind: Mapping[str, Any] = next((branch[name] for name in BESIDE if name in branch), {})
    for name, number in branch.items():
        if name in (*BESIDE, "above_centre_bias") or not isinstance(number, dict):
            continue
        theirs = [other.get(name) or {} for other in others]
        if "value" in number:
            low, high = number["low"], number["high"]
            interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
            cells = [_shown(each if "value" in each else None) for each in (number, blind.get(name) or {}, *theirs)]
            shown.add_row(what, name.replace("_", " "), cells[0], interval, *cells[1:])
        else:
            _add(shown, f"{what}, {name.replace('_', ' ')}", number, theirs)


def _shown(number: Mapping[str, Any] | None) -> str:
    if number is None:
        return ""
    return "not defined" if number["value"] is None else f"{number['value']:.3f}"


def _aligned(outputs: StepOutput) -> bool:
    return {"patches", "sentences"} <= set(outputs.get("tokens", {}))


def _has_images(pairs: Pairs) -> bool:
    return bool(pairs.image.shape[1])


def _grid(outputs: StepOutput) -> tuple[int, ...]:
    """Rows and columns of the patches."""
    grid, n = tuple(outputs.get("grid", ())), outputs["tokens"]["patches"].shape[1]
    if len(grid) != 2 or grid[0] * grid[1] != n:
        raise ValueError(f"the steps return {n} patches, but the grid {grid}; return `grid`, their rows and columns")
    return grid


def _pairs(outputs: StepOutput, batch: Batch) -> Pairs:
    ids, blocks = outputs["id"], outputs.get("blocks", {})
    none: list[list[str]] = [[] for _ in ids]
    texts = batch.get("sentences", none) if "text" in blocks else none
    keys = [hashlib.sha256("\n".join(each).encode()).hexdigest()[:32] if each else "" for each in texts]
    image, text = (_vectors(blocks.get(name), name, ids) for name in ("image", "text"))
    return Pairs(list(ids), list(outputs["subject"]), keys, image, text)


def _vectors(block: Tensor | None, name: str, ids: Sequence[str]) -> Array:
    """`(B, d)` float32; no columns where there is no such block."""
    found: Array = np.zeros((len(ids), 0), np.float32) if block is None else block.detach().float().cpu().numpy()
    finite = np.isfinite(found).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"block '{name}' of sample '{ids[int(np.argmin(finite))]}' is not finite: did training diverge?"
        )
    return found
