"""Cross-modality mapping of EGMA (Ma et al., NeurIPS 2024): each modality rebuilt from the other, within a sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.losses.finegrained import ABSENT, at_least_float32, info_nce
from medprism.losses.reduction import mean_over_samples

CUT_WITH_GAZE, CUT_WITHOUT = 3 / 7, 1 / 7
"""Weights below these become 0 before the floor."""

FLOOR = 0.01
"""What every weight gets on top, so that no row is empty."""

FLAT = 1e-4
"""A row of logits that spans less has no order: all of it is 0 after min-max, without gradient."""


def mapping_weights(
    logits: Tensor, gaze: Tensor, mask: Tensor, has_gaze: Tensor, released: bool = False
) -> tuple[Tensor, Tensor]:
    """How much of each sentence a patch is made of, and of each patch a sentence.

    With M the min-max of a row of logits over its own sentences or patches: M is averaged with the gaze GS, what is
    below 3/7 becomes 0, .01 is added, and rows are divided by their sum. Without gaze M stays as it is and the limit
    is 1/7.

    Args:
        logits: `(B, M, n)` t cos(S, P) of sentences and patches.
        gaze: `(B, M, n)` GS in [0, 1] on the grid of patches.
        mask: `(B, M)` bool, sentences that exist.
        has_gaze: `(B,)` bool; the gaze of the others is not looked at.
        released: whether the image side has M + GS/2, as in the code released with EGMA.

    Returns:
        W^{I2T} `(B, n, M)` and W^{T2I} `(B, M, n)`; rows sum to 1. Sentences that do not exist have weight 0, and rows
        of 0.
    """
    logits, gaze = at_least_float32(logits), at_least_float32(gaze)
    exists, looked = mask[:, :, None], has_gaze[:, None, None]
    own_patches = _min_max(logits, exists.expand_as(logits))  # (B, M, n)
    own_sentences = _min_max(logits.mT, exists.mT.expand_as(logits.mT))  # (B, n, M)
    fused_patches = torch.where(looked, (own_patches + gaze) / 2, own_patches)
    with_gaze = own_sentences + gaze.mT / 2 if released else (own_sentences + gaze.mT) / 2
    fused_sentences = torch.where(looked, with_gaze, own_sentences)
    cut = torch.where(looked, CUT_WITH_GAZE, CUT_WITHOUT)
    return _shares(fused_sentences, cut, exists.mT), _shares(fused_patches, cut, exists)


def cross_mapping_loss(
    patches: Tensor,
    sentences: Tensor,
    gaze: Tensor,
    mask: Tensor,
    has_gaze: Tensor,
    scale: Tensor | float,
    released: bool = False,
) -> Tensor:
    """The contrast of patches with what the sentences say of them, and of sentences with what the patches show.

        CrossP = W^{I2T} S,   CrossS = W^{T2I} P
        L = 1/2 [InfoNCE(CrossP, P) + InfoNCE(CrossS, S)]

    with logits t cos and both directions of InfoNCE averaged, within each sample; the mean over the samples of all
    ranks that have a sentence. A single sentence has nothing to be told apart from: its text side is `1 - cos(CrossS,
    S)`, and its image side is left out, since every patch is made of the same sentence.

    Args:
        patches: `(B, n, d)` P, L2-normalised.
        sentences: `(B, M, d)` S, L2-normalised.
        gaze: `(B, M, n)` GS in [0, 1] on the grid of patches.
        mask: `(B, M)` bool, sentences that exist.
        has_gaze: `(B,)` bool.
        scale: t, the exponential of the logit scale.
        released: whether to follow the code released with EGMA: weights of the image side, .7 for the image and .3
            for the text where there is gaze, products instead of cosines, and the squared distance for one sentence.

    Returns:
        Scalar; 0 with its graph intact when no sample has a sentence.
    """
    if mask.shape[1] == 0:  # a row of nothing has no minimum
        sentences, gaze, mask = F.pad(sentences, (0, 0, 0, 1)), F.pad(gaze, (0, 0, 0, 1)), F.pad(mask, (0, 1))
    patches, sentences = at_least_float32(patches), at_least_float32(sentences).masked_fill(~mask[..., None], 0)
    with torch.autocast(patches.device.type, enabled=False):
        to_text, to_image = mapping_weights(scale * sentences @ patches.mT, gaze, mask, has_gaze, released)
        cross_patches, cross_sentences = to_text @ sentences, to_image @ patches  # (B, n, d), (B, M, d)
        distance = (cross_sentences - sentences).square().sum(-1)  # (B, M), of the released code
        if not released:
            cross_patches, cross_sentences = F.normalize(cross_patches, dim=-1), F.normalize(cross_sentences, dim=-1)
            distance = 1 - (cross_sentences * sentences).sum(-1)
        image_logits = scale * cross_patches @ patches.mT  # (B, n, n)
        text_logits = scale * cross_sentences @ sentences.mT  # (B, M, M)
    several = mask.sum(1) > 1
    pairs = mask[:, :, None] & mask[:, None, :]
    image = (info_nce(image_logits) + info_nce(image_logits.mT)) / 2  # (B,)
    text_logits = text_logits.masked_fill(~pairs, ABSENT)
    text = (info_nce(text_logits, mask) + info_nce(text_logits.mT, mask)) / 2
    single = distance.masked_fill(~mask, 0).sum(1)
    share = torch.where(has_gaze, 0.3, 0.5) if released else 0.5
    each = share * torch.where(several, text, single) + (1 - share) * image.masked_fill(~several, 0)
    return mean_over_samples(each, mask.any(1))


def _min_max(rows: Tensor, mask: Tensor) -> Tensor:
    """`(x - min) / (max - min)` of each row over its masked-in entries; 0 elsewhere and in flat rows."""
    low = rows.masked_fill(~mask, -ABSENT).amin(-1, keepdim=True)
    spread = rows.masked_fill(~mask, ABSENT).amax(-1, keepdim=True) - low
    flat = spread < FLAT  # also rows without entries
    return ((rows - low) / spread.masked_fill(flat, 1)).masked_fill(flat | ~mask, 0)


def _shares(weights: Tensor, cut: Tensor, mask: Tensor) -> Tensor:
    """Rows with what is below the cut at 0, the floor on top, and sum 1."""
    weights = (weights.masked_fill(weights < cut, 0) + FLOOR) * mask
    return weights / weights.sum(-1, keepdim=True).clamp(min=FLOOR)
