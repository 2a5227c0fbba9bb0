"""EGMA: images and sentences aligned where a reader looked.

Ma et al., "Eye-gaze Guided Multi-modal Alignment for Medical Representation Learning", NeurIPS 2024, arXiv 2403.12416.
Where the paper and its released code differ we say which we follow, see docs/methods/egma.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import Batch, Representation
from medprism.losses.finegrained import clip_loss, fine_grained_contrast
from medprism.losses.gaze import gaze_label_loss
from medprism.losses.mapping import cross_mapping_loss
from medprism.method import CohortMismatchError
from medprism.methods.clip import ImageTextMethod, sentence_mask

EQUAL, RELEASED = (0.5, 0.5), (0.8, 0.2)
"""Weights of the gaze labels from sentence to patch and from patch to sentence."""


class EGMA(ImageTextMethod):
    """Fine-grained contrast of patches and sentences, guided by eye gaze where there is any.

        L = lambda_gaze L_labels + lambda_contrast L_contrast + lambda_mapping L_mapping + lambda_global L_clip

    The first two are the paper's EGF: multi-label cross-entropy of the patches that were looked at during a sentence,
    over the samples with gaze, and InfoNCE of the mean of the best cosines, over the samples of all ranks. The third
    is its EGM: patches rebuilt from sentences and sentences from patches, with weights that gaze sharpens. Samples
    with and without gaze stand side by side; without any gaze all but the labels still train.

    Args:
        cohort: plain values of the cohort; the command line fills it in.
        lambda_gaze: weight of the gaze labels.
        lambda_contrast: weight of the fine-grained contrast.
        lambda_mapping: weight of the cross-modality mapping.
        lambda_global: weight of the contrast of whole images with whole texts, which the paper does not have.
        use_gaze: whether gaze is read; without it this is the fine-grained contrast of text alone, the control.
        released: follow the released code where it differs from the paper: weights .8 and .2 of the gaze labels, text
            to image contrasted over texts, padded sentences in the maximum, its fusion and weights of the mapping.
        pooling: what stands for the whole image: the mean of the `patches`, which the losses train, or the
            `encoder`'s own embedding; they are the same for Swin.
        **image_text: the other arguments of `ImageTextMethod`.

    Raises:
        CohortMismatchError: when the cohort's gaze maps do not fit the encoder's grid.
        ValueError: when a weight is negative, or all are 0.
    """

    def __init__(
        self,
        cohort: dict[str, Any],
        lambda_gaze: float = 1.0,
        lambda_contrast: float = 1.0,
        lambda_mapping: float = 1.0,
        lambda_global: float = 0.0,
        use_gaze: bool = True,
        released: bool = False,
        pooling: Literal["encoder", "patches"] = "patches",
        **image_text: Any,
    ) -> None:
        super().__init__(cohort, pooling=pooling, **image_text)
        self.reads_gaze = use_gaze and "gaze" in self.cohort.fields
        weights = {name: self.hparams[name] for name in self.hparams if name.startswith("lambda_")}
        trained = lambda_contrast + lambda_mapping + lambda_global + (lambda_gaze if self.reads_gaze else 0.0)
        if min(weights.values()) < 0 or trained <= 0:
            raise ValueError(
                f"the weights are {weights}, and gaze is {'' if self.reads_gaze else 'not '}read: weights are at "
                "least 0, and one of what can be trained is above 0"
            )
        if self.reads_gaze:
            self._check_grid()

    def losses(self, batch: Batch, rep: Representation) -> dict[str, Tensor]:
        """The terms that are switched on: `contrast`, `mapping`, `gaze`, `global`, `dependence`."""
        options, released = self.hparams, self.hparams["released"]
        patches, sentences, image = rep.tokens["patches"], rep.tokens["sentences"], rep.blocks["image"]
        mask, scale = sentence_mask(batch["sentences"], patches.device), self.scale()
        gaze, has_gaze = self._gaze(batch, mask)
        terms: dict[str, Tensor] = {}
        with torch.autocast(patches.device.type, enabled=False):  # half precision is too coarse for cosines
            if options["lambda_contrast"] > 0:
                choices = {"transpose_text": not released, "masked": not released}
                terms["contrast"] = fine_grained_contrast(patches, sentences, mask, scale, **choices)
            if options["lambda_mapping"] > 0:
                terms["mapping"] = cross_mapping_loss(patches, sentences, gaze, mask, has_gaze, scale, released)
            if options["lambda_gaze"] > 0 and self.reads_gaze:
                logits = scale * torch.einsum("bmd,bnd->bmn", sentences, patches)
                sides = RELEASED if released else EQUAL
                terms["gaze"] = gaze_label_loss(logits, gaze > 0, mask, has_gaze, sides)
            if options["lambda_global"] > 0:
                terms["global"] = clip_loss(image, rep.blocks["text"], scale, valid=mask.any(1))
            terms = {name: options[f"lambda_{name}"] * term for name, term in terms.items()}
            first = next(iter(terms))
            terms[first] = terms[first] + 0 * image.sum()  # plain DDP waits for every parameter of the image tower
            return {**terms, **self.dependence(batch, rep)}

    def _gaze(self, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Gaze `(B, M, n)` on the patches, and `(B,)` which samples have any."""
        if not self.reads_gaze:
            nothing = torch.zeros(*mask.shape, self.grid[0] * self.grid[1], device=mask.device)
            return nothing, torch.zeros_like(mask[:, 0])
        gaze = batch["gaze"]
        if gaze.shape[2:] != self.cohort.grid or gaze.shape[1] > mask.shape[1]:
            raise ValueError(
                f"gaze of shape {tuple(gaze.shape)} for {mask.shape[1]} sentences at most and maps of "
                f"{self.cohort.grid}: a batch has one map a sentence, of the size that its cohort declares as `grid`"
            )
        on_patches = patch_gaze(gaze, self.grid)
        return F.pad(on_patches, (0, 0, 0, mask.shape[1] - gaze.shape[1])), batch["has_gaze"]

    def _check_grid(self) -> None:
        """Refuse gaze maps that say less than the patches ask for."""
        cohort = self.cohort
        if len(cohort.grid) != 2 or cohort.grid[0] < self.grid[0] or cohort.grid[1] < self.grid[1]:
            raise CohortMismatchError(
                f"`{cohort.name}` has gaze maps of {' x '.join(map(str, cohort.grid)) or 'no declared size'}, the "
                f"image encoder has {self.grid[0]} x {self.grid[1]} patches: maps must be at least as fine. Choose a "
                "larger gaze_size of the cohort, an encoder with fewer patches, or use_gaze=false."
            )


def patch_gaze(gaze: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Gaze maps brought to the patches, by antialiased bilinear interpolation.

    Args:
        gaze: `(B, S, G, G)` in [0, 1].
        grid: rows and columns of the patches.

    Returns:
        `(B, S, n)` in [0, 1], the patches row by row.
    """
    if gaze.shape[1] == 0:
        return gaze.new_zeros(len(gaze), 0, grid[0] * grid[1])
    resized = F.interpolate(gaze.float(), size=list(grid), mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1).flatten(2)
