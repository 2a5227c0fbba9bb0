"""Cross-modal alignment via localized tokens (CALT): labelled contrast of samples with the phrases of a factor.

The published description of CALT is an abstract without equations; the forms here are a reconstruction.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.cohort import UNKNOWN
from medprism.distributed import gather_with_grad

Contrast = Literal["sigmoid", "softmax"]


def alignment_loss(scores: Tensor, mask: Tensor, classes: Tensor, kind: Contrast = "sigmoid") -> Tensor:
    """CALT of one factor over the samples of all ranks.

    Label-aware on purpose: with two disease phrases an instance-level InfoNCE would call half of the batch false
    negatives and could not fall below ln(B / 2).

    `sigmoid` (SigLIP's form): the mean over phrase tokens of softplus(-m s), m = +1 where the sample has the phrase's
    class and -1 elsewhere; for every class its matches and its non-matches weigh one half each (all of the weight is
    on one side where the other is empty), so that constant scores of 0 give ln 2 whatever the class balance.

    `softmax` (multi-positive): the mean of two cross-entropies of the class scores (mean over a class's tokens): over
    the classes of each sample, balanced by class; and over the samples of each class, with its excess over the
    smallest possible value ln(number of matches).

    Args:
        scores: `(B, C, L)` scaled similarity of each sample to token l of class c.
        mask: `(C, L)` bool, tokens that exist; or `(B, C, L)` where samples have texts of their own.
        classes: `(B,)` class of each sample, -1 where unknown; those samples are left out.
        kind: `sigmoid` or `softmax`.

    Returns:
        Scalar; 0 with its graph intact when no class is known.
    """
    scores, classes = gather_with_grad(scores.float()), gather_with_grad(classes)
    known = classes != UNKNOWN
    match = F.one_hot(classes.clamp(min=0), scores.shape[1]).bool() & known[:, None]
    tokens = mask.to(scores.dtype)
    tokens = gather_with_grad(tokens) if mask.dim() == 3 else tokens
    if kind == "sigmoid":
        signs = torch.where(match, 1.0, -1.0)
        each = F.softplus(-signs[:, :, None] * scores)
        each = (each * tokens).sum(-1) / tokens.sum(-1)
        return (each * _balanced(match, known)).sum()
    if kind == "softmax":
        by_class = (scores * tokens).sum(-1) / tokens.sum(-1)
        return (_over_classes(by_class, match, known) + _over_samples(by_class, match, known)) / 2
    raise ValueError(f"unknown contrast '{kind}'; choose sigmoid or softmax")


def _balanced(match: Tensor, known: Tensor) -> Tensor:
    """`(B, C)` weights: 1/2 for the matches and 1/2 for the non-matches of a class; 1 in all, over the classes."""
    positive, negative = match, ~match & known[:, None]
    counts = torch.stack([positive.sum(0), negative.sum(0)]).float()
    share = counts.clamp(max=1) / counts.clamp(max=1).sum(0).clamp(min=1)
    each = share / counts.clamp(min=1) / match.shape[1]
    return positive * each[0] + negative * each[1]


def _over_classes(scores: Tensor, match: Tensor, known: Tensor) -> Tensor:
    counts = match.sum(0).float()
    weights = (match / counts.clamp(min=1)) / (counts > 0).sum().clamp(min=1)
    return -(weights * scores.log_softmax(1)).sum()


def _over_samples(scores: Tensor, match: Tensor, known: Tensor) -> Tensor:
    counts = match.sum(0).float()
    logs = scores.masked_fill(~known[:, None], -1e4).log_softmax(0)
    each = -(match * logs).sum(0) / counts.clamp(min=1) - counts.clamp(min=1).log()
    return (each * (counts > 0)).sum() / (counts > 0).sum().clamp(min=1)
