"""Sentences told by gaze which patches they mean: multi-label cross-entropy of EGMA (Ma et al., NeurIPS 2024)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.losses.finegrained import at_least_float32
from medprism.losses.reduction import mean_over_samples


def multilabel_cross_entropy(scores: Tensor, labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """`log(1 + sum_{y=0} exp(s)) + log(1 + sum_{y=1} exp(-s))`: every positive above 0, every negative below it.

    Args:
        scores: `(..., n)`.
        labels: `(..., n)` bool.
        mask: `(..., n)` bool, entries that take part; all, when left out.

    Returns:
        `(...)`, finite also where all labels are equal; 0 where no entry takes part.
    """
    scores = at_least_float32(scores)
    mask = torch.ones_like(labels) if mask is None else mask
    negative = scores.masked_fill(labels | ~mask, -math.inf)
    positive = (-scores).masked_fill(~labels | ~mask, -math.inf)
    # The appended 0 is the 1 in the logarithm; it keeps rows of -inf finite, value and gradient.
    return F.pad(negative, (0, 1)).logsumexp(-1) + F.pad(positive, (0, 1)).logsumexp(-1)


def gaze_label_loss(
    logits: Tensor,
    labels: Tensor,
    sentence_mask: Tensor,
    has_gaze: Tensor,
    weights: tuple[float, float] = (0.5, 0.5),
) -> Tensor:
    """Gaze labels as targets of the similarity of sentences and patches, over the samples of all ranks.

        f^{S2P} = 1/m sum_j mlce(x_j., GL_j.)        f^{P2S} = 1/n sum_i mlce(x_.i, GL_.i)

    with x = t cos(S, P), of m sentences and n patches. The loss is the mean of `w_1 f^{S2P} + w_2 f^{P2S}` over the
    samples that have gaze and a sentence.

    Args:
        logits: `(B, M, n)` x.
        labels: `(B, M, n)` bool GL, the patches that were looked at during the sentence.
        sentence_mask: `(B, M)` bool, sentences that exist.
        has_gaze: `(B,)` bool.
        weights: `(w_1, w_2)`; the code released with EGMA has (.8, .2).

    Returns:
        Scalar; 0 with its graph intact when no sample has gaze.
    """
    exists = sentence_mask[:, :, None].expand_as(labels)
    by_sentence = multilabel_cross_entropy(logits, labels, exists).sum(1) / sentence_mask.sum(1).clamp(min=1)
    by_patch = multilabel_cross_entropy(logits.mT, labels.mT, exists.mT).mean(1)
    each = weights[0] * by_sentence + weights[1] * by_patch  # (B,)
    return mean_over_samples(each, has_gaze & sentence_mask.any(1))
