"""The contrasts of images and texts against plain loops, closed values and symmetries."""

import math
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from medprism.losses.finegrained import clip_loss, fine_grained_contrast, fine_grained_scores, info_nce


def cross_entropy(row, target):
    return sum(x.exp() for x in row).log() - row[target]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else torch.zeros((), dtype=torch.float64, requires_grad=True) * 0


def scores_loop(patches, sentences, mask, masked=True):
    """Both equations, one product at a time."""
    B, C, M = len(patches), len(sentences), sentences.shape[1]
    to_text, to_image = torch.zeros(B, C).double(), torch.zeros(C, B).double()
    for k, c in product(range(B), range(C)):
        exists = [j for j in range(M) if mask[c, j]]
        if not exists:
            continue
        other = [] if masked or len(exists) == M else [torch.zeros(()).double()]
        best = [max([p @ sentences[c, j] for j in exists] + other) for p in patches[k]]
        to_text[k, c] = mean(best)
        to_image[c, k] = mean(max(sentences[c, j] @ p for p in patches[k]) for j in exists)
    return to_text, to_image


def contrast_loop(patches, sentences, mask, scale, transpose_text=True, masked=True):
    to_text, to_image = (scale * scores for scores in scores_loop(patches, sentences, mask, masked))
    texts = [c for c in range(len(mask)) if mask[c].any()]
    image_to_text = mean(cross_entropy([to_text[k, c] for c in texts], texts.index(k)) for k in texts)
    if transpose_text:
        text_to_image = mean(cross_entropy([to_image[c, k] for k in range(len(mask))], c) for c in texts)
    else:
        text_to_image = mean(cross_entropy([to_image[c, k] for c in texts], texts.index(k)) for k in texts)
    return (image_to_text + text_to_image) / 2


def example(B, C, n, M, d, seed=0, empty=True):
    generator = torch.Generator().manual_seed(seed)
    patches = F.normalize(torch.randn(B, n, d, generator=generator, dtype=torch.float64), dim=-1)
    sentences = F.normalize(torch.randn(C, M, d, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.arange(M) < torch.randint(0 if empty else 1, M + 1, (C, 1), generator=generator)
    mask[0] = True
    return patches.requires_grad_(), (sentences * mask[..., None]).requires_grad_(), mask


SIZES = [(1, 1, 1, 1, 2), (2, 3, 1, 4, 3), (3, 2, 5, 1, 4), (4, 5, 6, 3, 8), (5, 4, 4, 5, 3)]


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("chunk", [1, 2, 100])
@pytest.mark.parametrize(("B", "C", "n", "M", "d"), SIZES)
def test_scores_equal_a_plain_loop_forward_and_backward(B, C, n, M, d, chunk, masked):
    patches, sentences, mask = example(B, C, n, M, d, seed=B)
    ours = fine_grained_scores(patches, sentences, mask, chunk, masked)
    plain = scores_loop(patches, sentences, mask, masked)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((B, C), (C, B))]
    gradients = []
    for scores in (ours, plain):
        value = sum((w * x).sum() for w, x in zip(weights, scores, strict=True))
        gradients.append(torch.autograd.grad(value, (patches, sentences)))
    for a, b in zip((*ours, *gradients[0]), (*plain, *gradients[1]), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_tokens_need_not_lie_in_one_piece():
    patches, sentences, mask = example(4, 4, 5, 3, 6)
    loss = fine_grained_contrast(patches, sentences, mask, 5.0)
    strided = [x.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_() for x in (patches, sentences)]
    again = fine_grained_contrast(*strided, mask, 5.0)
    assert not strided[0].is_contiguous() and torch.allclose(again, loss)
    pairs = zip(*(torch.autograd.grad(x, y) for x, y in ((loss, (patches, sentences)), (again, strided))), strict=True)
    assert all(torch.allclose(a, b) for a, b in pairs)


@pytest.mark.parametrize("frozen", [0, 1])
def test_one_side_may_be_frozen(frozen):
    inputs, mask = list(example(3, 3, 4, 2, 5)[:2]), torch.ones(3, 2).bool()
    (expected,) = torch.autograd.grad(fine_grained_scores(*inputs, mask)[0].sum(), inputs[1 - frozen])
    inputs[frozen] = inputs[frozen].detach()
    (gradient,) = torch.autograd.grad(fine_grained_scores(*inputs, mask)[0].sum(), inputs[1 - frozen])
    assert torch.equal(gradient, expected)


@pytest.mark.parametrize(("transpose_text", "masked"), list(product([True, False], [True, False])))
@pytest.mark.parametrize(("B", "n", "M", "d"), [(1, 1, 1, 2), (2, 3, 4, 5), (5, 4, 3, 6), (6, 1, 2, 4), (4, 6, 1, 3)])
def test_contrast_equals_a_plain_loop_forward_and_backward(B, n, M, d, transpose_text, masked):
    patches, sentences, mask = example(B, B, n, M, d, seed=B + n)
    scale = torch.tensor(7.0, dtype=torch.float64, requires_grad=True)
    ours = fine_grained_contrast(patches, sentences, mask, scale, 2, transpose_text, masked)
    plain = contrast_loop(patches, sentences, mask, scale, transpose_text, masked)
    assert torch.allclose(ours, plain, atol=1e-12)
    gradients = [torch.autograd.grad(x, (patches, sentences, scale)) for x in (ours, plain)]
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_one_patch_and_one_sentence_is_clip():
    patches, sentences, mask = example(6, 6, 1, 1, 8, empty=False)
    image, text = patches[:, 0], sentences[:, 0]
    to_text, to_image = fine_grained_scores(patches, sentences, mask)
    assert torch.allclose(to_text, image @ text.T) and torch.allclose(to_image, text @ image.T)
    assert torch.allclose(fine_grained_contrast(patches, sentences, mask, 9.0), clip_loss(image, text, 9.0))


def test_order_and_padding_of_sentences_do_not_count():
    patches, sentences, mask = example(5, 5, 4, 4, 6)
    loss = fine_grained_contrast(patches, sentences, mask, 5.0)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(fine_grained_contrast(patches, sentences[:, order], mask[:, order], 5.0), loss)
    garbage = torch.cat([sentences, torch.full((5, 2, 6), torch.nan)], 1)
    padded = torch.cat([mask, torch.zeros(5, 2).bool()], 1)
    assert torch.allclose(fine_grained_contrast(patches, garbage, padded, 5.0), loss)


def test_a_sample_without_sentences_is_an_image_only():
    patches, sentences, mask = example(5, 5, 4, 3, 6, empty=False)
    mask[1] = False
    loss = fine_grained_contrast(patches, sentences, mask, 5.0)
    grads = torch.autograd.grad(loss, (patches, sentences))
    assert torch.equal(grads[1][1], torch.zeros(3, 6)) and grads[0][1].abs().max() > 0
    others = torch.tensor([0, 2, 3, 4])
    without = fine_grained_contrast(patches[others], sentences[others], mask[others], 5.0)
    to_text, to_image = fine_grained_scores(patches, sentences, mask)
    extra = 5 * to_image[others]
    difference = (extra.logsumexp(1) - extra[:, others].logsumexp(1)).mean() / 2
    assert torch.allclose(loss, without + difference)
    assert torch.equal(to_text[:, 1], torch.zeros(5)) and torch.equal(to_image[1], torch.zeros(5))


@pytest.mark.parametrize("M", [0, 3])
@pytest.mark.parametrize(("transpose_text", "masked"), list(product([True, False], [True, False])))
def test_no_sentence_at_all_gives_zero_with_a_graph(M, transpose_text, masked):
    patches, sentences = torch.randn(4, 5, 6, requires_grad=True), torch.randn(4, M, 6, requires_grad=True)
    scale = torch.tensor(3.0, requires_grad=True)
    mask = torch.zeros(4, M).bool()
    loss = fine_grained_contrast(patches, sentences, mask, scale, transpose_text=transpose_text, masked=masked)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (patches, sentences, scale))


def test_perfect_matches_cost_nothing_and_equal_scores_cost_ln_of_the_number():
    directions = torch.eye(6)[:, None, :].expand(6, 3, 6)
    mask = torch.ones(6, 3).bool()
    assert float(fine_grained_contrast(directions, directions, mask, 100.0)) == pytest.approx(0, abs=1e-6)
    same = directions[:1].expand(6, 3, 6)
    assert float(fine_grained_contrast(same, same, mask, 100.0)) == pytest.approx(math.log(6), abs=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_is_single_precision_inside(dtype):
    patches, sentences, mask = example(6, 6, 9, 4, 16)
    half = [x.detach().to(dtype).requires_grad_() for x in (patches, sentences)]
    image_text = [half[0][:, 0], half[1][:, 0]]
    with torch.autocast("cpu", torch.bfloat16):
        losses = [fine_grained_contrast(*half, mask, 100.0), clip_loss(*image_text, 100.0)]
    exact = [fine_grained_contrast(half[0].double(), half[1].double(), mask, 100.0)]
    exact.append(clip_loss(*(x.double() for x in image_text), 100.0))
    for loss, value in zip(losses, exact, strict=True):
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(value.item(), rel=1e-4)
    for x, grad in zip(half, torch.autograd.grad(sum(losses), half), strict=True):
        assert grad.dtype == x.dtype and grad.isfinite().all()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize(("B", "d"), [(1, 3), (5, 4), (8, 2)])
def test_clip_equals_a_plain_loop_forward_and_backward(kind, B, d):
    patches, sentences, _ = example(B, B, 1, 1, d, empty=False)
    image, text = patches[:, 0].detach().requires_grad_(), sentences[:, 0].detach().requires_grad_()
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (6.0, -2.0))
    valid = torch.arange(B) != 2
    texts = [i for i in range(B) if valid[i]]
    logits = [[scale * (image[i] @ text[j]) for j in range(B)] for i in range(B)]
    if kind == "softmax":
        by_image = mean(cross_entropy([logits[i][j] for j in texts], texts.index(i)) for i in texts)
        plain = (by_image + mean(cross_entropy([logits[i][j] for i in range(B)], j) for j in texts)) / 2
    else:
        signs = {(i, j): 1 if i == j else -1 for i in range(B) for j in texts}
        plain = sum((1 + (-z * (logits[i][j] + bias)).exp()).log() for (i, j), z in signs.items()) / len(texts)
    ours = clip_loss(image, text, scale, kind, bias, valid)
    assert torch.allclose(ours, plain, atol=1e-12)
    inputs = (image, text, scale) if kind == "softmax" else (image, text, scale, bias)
    for a, b in zip(*(torch.autograd.grad(x, inputs) for x in (ours, plain)), strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_unknown_contrast_names_the_choices():
    with pytest.raises(ValueError, match="softmax or sigmoid"):
        clip_loss(torch.eye(2), torch.eye(2), 1.0, "hinge")


def test_info_nce_of_uniform_rows_and_of_no_row():
    logits = torch.zeros(3, 4, 4, requires_grad=True)
    assert torch.allclose(info_nce(logits), torch.full((3,), math.log(4)))
    nothing = info_nce(logits, torch.zeros(3, 4).bool())
    assert torch.equal(nothing, torch.zeros(3)) and nothing.requires_grad
