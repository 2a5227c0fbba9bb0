"""Figures of image-text methods: readings with gaze and patch maps, a similarity matrix, and examples of retrieval.

A test leaves the image and text vectors of all samples (`medprism.explain.aligned`); the pictures and tokens of the few
that are drawn come from one more pass over the test set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import Batch, Cohort, Representation
from medprism.explain import image_text
from medprism.explain.aligned import WAYS, Aligned, Array, chosen_readings, class_name, similarity
from medprism.explain.brain import Drawing, save, slug
from medprism.explain.image_text import Reading
from medprism.explain.regions import NothingToShow

MOST_SENTENCES = 12
"""Sentences in the figure of one reading; of a longer one the first are drawn."""


def reading(batch: Batch, row: int, found: Representation) -> Reading:
    """One sample as it is drawn: its picture and, for each sentence, gaze and the model's cosines.

    Args:
        batch: B samples.
        row: which of them.
        found: what the method made of the batch.

    Raises:
        ValueError: when patches and grid do not fit, or a cosine is not finite.
    """
    patches, sentences = (found.tokens[name][row].detach().float().cpu() for name in ("patches", "sentences"))
    if len(found.grid) != 2 or int(np.prod(found.grid)) != len(patches):
        raise ValueError(f"there are {len(patches)} patches, but the grid {found.grid}; give their rows and columns")
    image = picture(batch["image"][row])
    texts = batch["sentences"][row]
    count = min(len(texts), len(sentences), MOST_SENTENCES)
    cosines = F.normalize(sentences[:count], dim=-1) @ F.normalize(patches, dim=-1).T  # (S, d), (d, n) -> (S, n)
    if not cosines.isfinite().all():
        raise ValueError(f"the patch maps of '{batch['id'][row]}' are not finite: did training diverge?")
    cosines[sentences[:count].norm(dim=-1) == 0] = torch.nan
    gaze = None
    if "gaze" in batch and bool(batch["has_gaze"][row]):
        gaze = upsampled(batch["gaze"][row, :count].float().cpu(), image.shape[:2])
    return Reading(
        id=batch["id"][row],
        picture=image,
        sentences=list(texts[:count]),
        left_out=len(texts) - count,
        cosines=cosines.reshape(-1, *found.grid).numpy(),
        maps=upsampled(cosines.reshape(-1, *found.grid), image.shape[:2]),
        gaze=gaze,
        boxes=list(batch["boxes"][row]) if "boxes" in batch else [],
    )


def picture(image: Tensor) -> Array:
    """`(C, H, W)` to `(H, W)` grey or `(H, W, 3)` colour in [0, 1].

    Values in [0, 1] stay as they are; others, such as standardised ones, run from their 0.5th to their 99.5th
    percentile. Images that are neither grey nor colour show the mean of their channels.
    """
    values = image.detach().float().cpu().numpy()
    if values.min() < 0 or values.max() > 1:
        low, high = np.percentile(values, [0.5, 99.5])
        values = np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)
    found: Array = values.transpose(1, 2, 0) if len(values) == 3 else values.mean(0)
    return found


def upsampled(maps: Tensor, size: tuple[int, ...]) -> Array:
    """`(S, rows, columns)` maps at the pixels of an image, `(S, H, W)`; linear: others make peaks between patches."""
    if not len(maps):
        return np.zeros((0, *size), np.float32)
    found: Array = F.interpolate(maps[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()
    return found


class SecondLook:
    """The pictures and readings that are drawn, from one pass over the test set when they are first asked for.

    Args:
        aligned: all samples of the test.
        cohort: names the classes.
        represent: what the method makes of a batch.
        batches: the test set, once more.
        readings: number of readings.
    """

    def __init__(
        self,
        aligned: Aligned,
        cohort: Cohort,
        represent: Callable[[Batch], Representation],
        batches: Callable[[], Iterable[Batch]],
        readings: int,
    ) -> None:
        self.aligned = aligned
        self.cohort = cohort
        self.represent = represent
        self.batches = batches
        self.chosen = [aligned.ids[row] for row in chosen_readings(aligned, readings)]

    @cached_property
    def found(self) -> tuple[dict[str, Array], dict[str, Reading]]:
        """Pictures and readings by id.

        Raises:
            RuntimeError: when the test set has other samples than before.
        """
        sought = set(self.chosen)
        for search in WAYS.values():
            with suppress(Exception):  # a search that fails says so when it is drawn
                for query in search(self.aligned, self.cohort):
                    sought |= {query.id, *(hit.id for hit in query.hits)}
        pictures: dict[str, Array] = {}
        readings: dict[str, Reading] = {}
        for batch in self.batches():
            rows = {name: row for row, name in enumerate(batch["id"]) if name in sought - set(pictures)}
            pictures |= {name: picture(batch["image"][row]) for name, row in rows.items()}
            read = [name for name in rows if name in self.chosen]
            if read:
                representation = self.represent(batch)
                readings |= {name: reading(batch, rows[name], representation) for name in read}
            if len(pictures) == len(sought):
                return pictures, readings
        missing = sorted(sought - set(pictures))
        raise RuntimeError(
            f"a second pass over the test set did not meet {missing[:3]}: do its samples have fixed ids?"
        )


def alignment_figures(
    aligned: Aligned,
    cohort: Cohort,
    represent: Callable[[Batch], Representation],
    batches: Callable[[], Iterable[Batch]],
    readings: int = 4,
) -> Iterator[Drawing]:
    """File stem and what draws it, one figure at a time: readings, similarity matrix, and retrieval both ways.

    Args:
        aligned: all samples of the test.
        cohort: names data and classes.
        represent: what the method makes of a batch.
        batches: the test set, once more.
        readings: number of readings.
    """
    look = SecondLook(aligned, cohort, represent, batches, readings)

    def draw_reading(path: Path, name: str) -> list[Path]:
        row = aligned.ids.index(name)
        label = class_name(cohort, aligned.classes[row])
        return save(image_text.reading_figure(look.found[1][name], cohort, label), path)

    def draw_nothing(path: Path) -> list[Path]:
        raise NothingToShow("no test sample has sentences")

    def draw_similarity(path: Path) -> list[Path]:
        return save(image_text.similarity_figure(similarity(aligned, cohort), cohort), path, vector=True)

    def draw_retrieval(path: Path, way: str) -> list[Path]:
        queries = WAYS[way](aligned, cohort)
        draw = {"image_to_text": image_text.texts_figure, "text_to_image": image_text.images_figure}[way]
        subjects = len({aligned.subjects[row] for row in aligned.written})
        return save(draw(queries, look.found[0], cohort, subjects), path, vector=True)

    for number, name in enumerate(look.chosen, 1):
        yield f"reading_{number}_{slug(name)}", partial(draw_reading, name=name)
    if readings and not look.chosen:
        yield "reading", draw_nothing
    yield "similarity", draw_similarity
    for way in WAYS:
        yield f"retrieval_{way}", partial(draw_retrieval, way=way)
