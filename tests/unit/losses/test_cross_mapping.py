"""Cross-modality mapping against plain loops, closed values and symmetries."""

import math

import pytest
import torch
from torch.nn import functional as F

from medprism.losses.mapping import cross_mapping_loss, mapping_weights


def omega(row, gaze, cut):
    """Row min-max, fused with gaze, cut, on a floor, normalised: one entry at a time."""
    low, high = min(row), max(row)
    order = [(x - low) / (high - low) if high > low else 0 * x for x in row]
    fused = [m if g is None else g(m) for m, g in zip(order, gaze, strict=True)]
    kept = [(x if x >= cut else 0 * x) + 0.01 for x in fused]
    return [x / sum(kept) for x in kept]


def weights_loop(logits, gaze, has_gaze, released):
    """W of one sample, without padding: n x m and m x n lists."""
    m, n = logits.shape
    cut = 3 / 7 if has_gaze else 1 / 7

    def fuse(g, slip):
        if not has_gaze:
            return None
        return (lambda x: x + g / 2) if slip else (lambda x: (x + g) / 2)

    to_text = [
        omega([logits[j, i] for j in range(m)], [fuse(gaze[j, i], released) for j in range(m)], cut) for i in range(n)
    ]
    to_image = [omega(list(logits[j]), [fuse(gaze[j, i], False) for i in range(n)], cut) for j in range(m)]
    return to_text, to_image


def contrast(ours, theirs, scale):
    """Both directions of InfoNCE, averaged."""
    total = 0
    for a, b in ((ours, theirs), (theirs, ours)):
        for i in range(len(a)):
            row = [scale * (a[i] @ x) for x in b]
            total = total + (sum(x.exp() for x in row).log() - row[i]) / len(a) / 2
    return total


def loop(patches, sentences, gaze, mask, has_gaze, scale, released=False):
    total, samples = 0 * patches.sum() * sentences.sum() * scale, 0
    for b in range(len(patches)):
        P, S, GS = patches[b], sentences[b][mask[b]], gaze[b][mask[b]]
        m, n = len(S), len(P)
        if not m:
            continue
        samples += 1
        logits = torch.stack([torch.stack([scale * (s @ p) for p in P]) for s in S])
        to_text, to_image = weights_loop(logits, GS, has_gaze[b], released)
        cross_p = [sum(to_text[i][j] * S[j] for j in range(m)) for i in range(n)]
        cross_s = [sum(to_image[j][i] * P[i] for i in range(n)) for j in range(m)]
        if not released:  # the tokens themselves have length 1
            cross_p, cross_s = ([x / x.norm() for x in made] for made in (cross_p, cross_s))
        if m > 1:
            image, text = contrast(cross_p, P, scale), contrast(cross_s, S, scale)
        else:
            image, text = 0, ((cross_s[0] - S[0]) ** 2).sum() if released else 1 - cross_s[0] @ S[0]
        share = 0.3 if released and has_gaze[b] else 0.5
        total = total + share * text + (1 - share) * image
    return total / max(samples, 1)


def example(B, n, M, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    patches = F.normalize(torch.randn(B, n, d, generator=generator, dtype=torch.float64), dim=-1)
    sentences = F.normalize(torch.randn(B, M, d, generator=generator, dtype=torch.float64), dim=-1)
    mask = torch.arange(M) < torch.randint(0, M + 1, (B, 1), generator=generator)
    mask[0] = True
    gaze = torch.rand(B, M, n, generator=generator, dtype=torch.float64)
    gaze = (gaze * (gaze > 0.4)) * mask[..., None]
    has_gaze = torch.arange(B) % 2 == 0
    return patches.requires_grad_(), (sentences * mask[..., None]).requires_grad_(), gaze, mask, has_gaze


SIZES = [(1, 1, 1, 2), (2, 4, 1, 3), (1, 5, 3, 4), (5, 6, 4, 8), (6, 3, 5, 3)]


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("B", "n", "M", "d"), SIZES)
def test_equals_a_plain_loop_forward_and_backward(B, n, M, d, released):
    patches, sentences, gaze, mask, has_gaze = example(B, n, M, d, seed=B + n)
    scale = torch.tensor(6.0, dtype=torch.float64, requires_grad=True)
    ours = cross_mapping_loss(patches, sentences, gaze, mask, has_gaze, scale, released)
    plain = loop(patches, sentences, gaze, mask, has_gaze, scale, released)
    assert torch.allclose(ours, plain, atol=1e-12)
    for a, b in zip(*(torch.autograd.grad(x, (patches, sentences, scale)) for x in (ours, plain)), strict=True):
        assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize(("B", "n", "M", "d"), SIZES)
def test_weights_equal_a_plain_loop_and_rows_sum_to_1(B, n, M, d, released):
    patches, sentences, gaze, mask, has_gaze = example(B, n, M, d)
    logits = 6 * sentences @ patches.mT
    to_text, to_image = mapping_weights(logits, gaze, mask, has_gaze, released)
    for b, m in enumerate(mask.sum(1).tolist()):
        if m == 0:
            continue
        plain = weights_loop(logits[b, :m], gaze[b, :m], has_gaze[b], released)
        assert to_text[b, :, :m].tolist() == [pytest.approx([x.item() for x in row]) for row in plain[0]]
        assert to_image[b, :m].tolist() == [pytest.approx([x.item() for x in row]) for row in plain[1]]
    assert torch.allclose(to_text.sum(2), mask.any(1, keepdim=True).double().expand(B, n))
    assert torch.allclose(to_image.sum(2), mask.double())
    assert not to_text.masked_select(~mask[:, None]).any()


def test_gaze_decides_what_a_row_is_made_of():
    logits = torch.tensor([[[0.0, 1.0, 0.2, 0.9]]])
    gaze, mask = torch.tensor([[[1.0, 0.0, 0.0, 1.0]]]), torch.ones(1, 1).bool()
    _, seen = mapping_weights(logits, gaze, mask, torch.tensor([True]))
    _, blind = mapping_weights(logits, gaze, mask, torch.tensor([False]))
    assert torch.allclose(seen[0, 0], torch.tensor([0.51, 0.51, 0.01, 0.96]) / 1.99)
    assert torch.allclose(blind[0, 0], torch.tensor([0.01, 1.01, 0.21, 0.91]) / 2.14)


def test_no_gaze_anywhere_equals_removing_it():
    patches, sentences, gaze, mask, has_gaze = example(5, 6, 4, 8)
    nobody = torch.zeros_like(has_gaze)
    for released in (False, True):
        with_maps = cross_mapping_loss(patches, sentences, gaze, mask, nobody, 5.0, released)
        garbage = torch.full_like(gaze, torch.nan)
        assert torch.equal(with_maps, cross_mapping_loss(patches, sentences, garbage, mask, nobody, 5.0, released))
        assert not torch.allclose(
            with_maps, cross_mapping_loss(patches, sentences, gaze, mask, has_gaze, 5.0, released)
        )


@pytest.mark.parametrize("released", [False, True])
def test_order_and_padding_of_sentences_do_not_count(released):
    patches, sentences, gaze, mask, has_gaze = example(5, 6, 4, 8)
    loss = cross_mapping_loss(patches, sentences, gaze, mask, has_gaze, 5.0, released)
    order = torch.tensor([2, 0, 3, 1])
    moved = [x[:, order] for x in (sentences, gaze, mask)]
    assert torch.allclose(cross_mapping_loss(patches, *moved, has_gaze, 5.0, released), loss)
    garbage = torch.cat([sentences, torch.full((5, 2, 8), torch.nan)], 1), torch.cat([gaze, gaze[:, :2] + 0.1], 1)
    padded = torch.cat([mask, torch.zeros(5, 2).bool()], 1)
    again = cross_mapping_loss(patches, *garbage, padded, has_gaze, 5.0, released)
    assert torch.allclose(again, loss)
    (gradient,) = torch.autograd.grad(again, patches)
    assert torch.allclose(gradient, torch.autograd.grad(loss, patches)[0])


@pytest.mark.parametrize("M", [0, 3])
@pytest.mark.parametrize("released", [False, True])
def test_no_sentence_gives_zero_with_a_graph(M, released):
    patches, sentences = torch.randn(4, 5, 6, requires_grad=True), torch.randn(4, M, 6, requires_grad=True)
    scale, mask = torch.tensor(3.0, requires_grad=True), torch.zeros(4, M).bool()
    loss = cross_mapping_loss(patches, sentences, torch.rand(4, M, 5), mask, mask.any(1), scale, released)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.equal(x.grad, torch.zeros_like(x)) for x in (patches, sentences, scale))


@pytest.mark.parametrize("gaze", [0.0, 1.0])
@pytest.mark.parametrize("released", [False, True])
def test_equal_patches_and_equal_sentences_stay_finite(gaze, released):
    token = F.normalize(torch.randn(4, 1, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    patches, sentences = token.repeat(1, 9, 1).requires_grad_(), token.repeat(1, 3, 1).requires_grad_()
    maps, mask, has_gaze = (
        torch.full((4, 3, 9), gaze),
        torch.ones(4, 3).bool(),
        torch.tensor([True, True, False, False]),
    )
    loss = cross_mapping_loss(patches, sentences, maps, mask, has_gaze, 50.0, released)
    gradients = torch.autograd.grad(loss, (patches, sentences))
    assert loss.item() == pytest.approx(
        (math.log(3) + math.log(9)) / 2 if not released else 0.4 * math.log(3) + 0.6 * math.log(9), abs=1e-4
    )
    assert all(x.isfinite().all() and x.abs().max() < 100 for x in gradients)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_is_single_precision_inside(dtype, released):
    patches, sentences, gaze, mask, has_gaze = example(6, 9, 4, 16)
    half = [x.detach().to(dtype).requires_grad_() for x in (patches, sentences)]
    with torch.autocast("cpu", torch.bfloat16):
        loss = cross_mapping_loss(*half, gaze.float(), mask, has_gaze, 100.0, released)
    exact = cross_mapping_loss(*(x.double() for x in half), gaze, mask, has_gaze, 100.0, released)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-4)
    for x, grad in zip(half, torch.autograd.grad(loss, half), strict=True):
        assert grad.dtype == x.dtype and grad.isfinite().all()
