"""Contrast of images and texts over the batch of all ranks: global (CLIP) and fine-grained (patches and sentences)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from medprism.distributed import gather_with_grad, rows_of_all_ranks

ABSENT = -1e30
"""Similarity of what is not there: finite, so that a row without anything gives no NaN, and 0 after any softmax."""


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in float32, or in float64 if it is in float64: half precision has three digits of a cosine."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def info_nce(logits: Tensor, valid: Tensor | None = None) -> Tensor:
    """InfoNCE: the mean over rows i of `logsumexp_j logits_ij - logits_ii`.

    Args:
        logits: `(..., n, n)`; the match of row i is column i.
        valid: `(..., n)` bool, rows that count; all, when left out. Columns that do not exist hold `ABSENT`.

    Returns:
        `(...)`; 0 with its graph intact where no row counts.
    """
    logits = at_least_float32(logits)
    each = logits.logsumexp(-1) - logits.diagonal(dim1=-2, dim2=-1)  # (..., n)
    if valid is None:
        return each.mean(-1)
    return each.masked_fill(~valid, 0).sum(-1) / valid.sum(-1).clamp(min=1)


def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: Tensor | float,
    kind: Literal["softmax", "sigmoid"] = "softmax",
    bias: Tensor | float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The global contrast of N images with their N texts, over the samples of all ranks.

    `softmax` (CLIP, Radford et al., ICML 2021): 1/2 (InfoNCE over texts + InfoNCE over images) of `t x_i . y_j`.
    `sigmoid` (SigLIP, Zhai et al., ICCV 2023): `1/N sum_ij softplus(-z_ij (t x_i . y_j + b))`, z = 1 on the diagonal
    and -1 elsewhere.

    Args:
        image: `(B, d)` L2-normalised.
        text: `(B, d)` L2-normalised.
        scale: t, the exponential of the logit scale.
        kind: `softmax` or `sigmoid`.
        bias: b of `sigmoid`; 0 when left out.
        valid: `(B,)` bool, samples that have a text; all, when left out. The others stay as images that no text means.

    Returns:
        Scalar; 0 with its graph intact when no sample has a text.

    Raises:
        ValueError: for an unknown kind.
    """
    image, text = at_least_float32(image), at_least_float32(text)
    valid = torch.ones_like(image[:, 0], dtype=torch.bool) if valid is None else valid
    text, known = gather_with_grad(text), gather_with_grad(valid.float()) > 0
    with torch.autocast(image.device.type, enabled=False):
        # Each rank multiplies its own images only; what travels are the products.
        logits = scale * gather_with_grad(image @ text.T)  # (N, N) images by texts
    if kind == "softmax":
        return _both_ways(logits, logits.T, known)
    if kind == "sigmoid":
        logits = logits if bias is None else logits + bias
        signs = 2 * torch.eye(len(logits), device=logits.device, dtype=logits.dtype) - 1
        return F.softplus(-signs * logits).masked_fill(~known, 0).sum() / known.sum().clamp(min=1)
    raise ValueError(f"unknown contrast '{kind}'; choose softmax or sigmoid")


def fine_grained_scores(
    patches: Tensor, sentences: Tensor, mask: Tensor, chunk: int = 16, masked: bool = True
) -> tuple[Tensor, Tensor]:
    """Similarity of B images and C texts from their parts.

        s^{I2T}_{kl} = 1/n sum_i max_j P^i_k . S^j_l        s^{T2I}_{kl} = 1/m_l sum_j max_i S^j_l . P^i_k

    The `(B, n, C, M)` products exist for `chunk` images at a time. For backward only the winners of the maxima are
    kept, and gradients are sums over them; a tie goes to the first.

    Args:
        patches: `(B, n, d)` L2-normalised parts of the images.
        sentences: `(C, M, d)` L2-normalised parts of the texts.
        mask: `(C, M)` bool, sentences that exist.
        chunk: number of images whose products are in memory at once.
        masked: whether sentences that do not exist are left out; else they enter the maximum over sentences as 0, as
            in the code released with EGMA.

    Returns:
        `(B, C)` image to text and `(C, B)` text to image; 0 for a text without sentences.
    """
    if sentences.shape[1] == 0:  # a maximum over nothing does not exist
        sentences, mask = F.pad(sentences, (0, 0, 0, 1)), F.pad(mask, (0, 1))
    dtype = torch.promote_types(torch.promote_types(patches.dtype, sentences.dtype), torch.float32)
    patches = patches.to(dtype)
    sentences = sentences.to(dtype).masked_fill(~mask[..., None], 0).contiguous()
    absent = (~mask).to(dtype) * (ABSENT if masked else 0)
    share = mask.to(dtype) / mask.sum(1, keepdim=True).clamp(min=1)  # (C, M)
    with torch.autocast(patches.device.type, enabled=False):
        image_to_text, text_to_image = _MeanOfMaxima.apply(patches, sentences, absent, share, chunk)
    return image_to_text.masked_fill(~mask.any(1), 0), text_to_image.T


def fine_grained_contrast(
    patches: Tensor,
    sentences: Tensor,
    mask: Tensor,
    scale: Tensor | float,
    chunk: int = 16,
    transpose_text: bool = True,
    masked: bool = True,
) -> Tensor:
    """The fine-grained contrast of EGMA (Ma et al., NeurIPS 2024): `1/2 (InfoNCE(t s^{T2I}) + InfoNCE(t s^{I2T}))`.

    The softmax runs over the samples of all ranks. A sample without sentences takes no part as a text; as an image it
    stays among those that a text is held against.

    Args:
        patches: `(B, n, d)` L2-normalised patches of this rank's images.
        sentences: `(B, M, d)` L2-normalised sentences of their texts; M may differ between ranks.
        mask: `(B, M)` bool, sentences that exist.
        scale: t, the exponential of the logit scale.
        chunk: as in `fine_grained_scores`.
        transpose_text: whether the softmax of text to image runs over images; else over texts, as in the code released
            with EGMA.
        masked: as in `fine_grained_scores`.

    Returns:
        Scalar; 0 with its graph intact when no sample has a sentence.
    """
    longest = max(rows_of_all_ranks(sentences.shape[1], sentences.device))
    padding = longest - sentences.shape[1]
    every = gather_with_grad(F.pad(at_least_float32(sentences), (0, 0, 0, padding)))  # (N, M, d)
    exists = gather_with_grad(F.pad(mask.float(), (0, padding))) > 0  # (N, M)
    image_to_text, text_to_image = fine_grained_scores(patches, every, exists, chunk, masked)
    # Each rank scores its own images against all texts; what travels are the scores.
    image_to_text = scale * gather_with_grad(image_to_text)  # (N, N) images by texts
    text_to_image = scale * gather_with_grad(text_to_image.T.contiguous())  # likewise
    known = exists.any(1)
    return _both_ways(image_to_text, text_to_image.T if transpose_text else text_to_image, known, transpose_text)


def _both_ways(image_to_text: Tensor, text_to_image: Tensor, known: Tensor, transposed: bool = True) -> Tensor:
    """Mean of both InfoNCE; a text that is not known is neither a row nor a column."""
    image_to_text = image_to_text.masked_fill(~known, ABSENT)
    if not transposed:
        text_to_image = text_to_image.masked_fill(~known, ABSENT)
    return (info_nce(image_to_text, known) + info_nce(text_to_image, known)) / 2


class _MeanOfMaxima(torch.autograd.Function):
    """Weighted means of the maxima of P S^T + absent over sentences and over patches; see `fine_grained_scores`."""

    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, sentences: Tensor, absent: Tensor, share: Tensor, chunk: int
    ) -> tuple[Tensor, Tensor]:
        (B, n, d), (C, M, _) = patches.shape, sentences.shape
        small = torch.int16 if max(n, M) < 2**15 else torch.int32
        best_sentence = torch.empty(B, n, C, dtype=small, device=patches.device)
        best_patch = torch.empty(B, C, M, dtype=small, device=patches.device)
        image_to_text, text_to_image = patches.new_empty(B, C), patches.new_empty(B, C)
        columns, bias = sentences.view(C * M, d).T, absent.view(C * M)
        for start in range(0, B, chunk):
            rows = slice(start, start + chunk)
            products = torch.addmm(bias, patches[rows].reshape(-1, d), columns).view(-1, n, C, M)
            values, best_sentence[rows] = products.max(3)  # (b, n, C)
            image_to_text[rows] = values.mean(1)
            values, best_patch[rows] = products.max(1)  # (b, C, M)
            text_to_image[rows] = (values * share).sum(2)
        ctx.save_for_backward(patches, sentences, share, best_sentence, best_patch)
        ctx.chunk = chunk
        return image_to_text, text_to_image

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        patches, sentences, share, best_sentence, best_patch = ctx.saved_tensors
        (B, n, d), (C, M, _) = patches.shape, sentences.shape
        grad_patches, grad_sentences = patches.new_empty(B, n, d), sentences.new_zeros(C * M, d)
        theirs, columns = sentences.view(C * M, d), torch.arange(C * M, device=patches.device).view(C, M)
        for start in range(0, B, ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            own = patches[rows].reshape(-1, d)  # (b n, d)
            numbers = torch.arange(len(own), device=own.device).view(-1, n)  # (b, n)
            # Every patch met one sentence of each text, every sentence one patch of each image: which, and the
            # gradient of their product.
            sentence = (best_sentence[rows] + columns[:, 0]).view(-1, C)  # (b n, C)
            of_sentence = (grads[0][rows, None] / n).expand(-1, n, C).reshape(-1, C)
            patch = (best_patch[rows] + numbers[:, :1, None]).view(-1, C * M).T.contiguous()  # (C M, b)
            of_patch = (grads[1][rows, :, None] * share).reshape(-1, C * M).T.contiguous()
            gradient = _gathered(theirs, sentence, of_sentence) + _scattered(theirs, patch, of_patch, len(own))
            grad_patches[rows] = gradient.view(-1, n, d)
            grad_sentences += _gathered(own, patch, of_patch) + _scattered(own, sentence, of_sentence, C * M)
        return grad_patches, grad_sentences.view(C, M, d), None, None, None


def _gathered(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """`out[r] = sum_k weight[r, k] table[index[r, k]]`, `(rows, d)`."""
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weight)


def _scattered(table: Tensor, index: Tensor, weight: Tensor, size: int) -> Tensor:
    """`out[index[r, k]] += weight[r, k] table[r]`, `(size, d)`; sorted first, which is far faster than `index_add`."""
    target, order = index.flatten().sort()
    starts = torch.searchsorted(target, torch.arange(size, device=target.device))
    weight = weight.flatten()[order]
    return F.embedding_bag(order // index.shape[1], table, starts, mode="sum", per_sample_weights=weight)
