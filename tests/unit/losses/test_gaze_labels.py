"""The loss of gaze labels against plain loops, closed values and symmetries."""

import math

import pytest
import torch

from medprism.losses.gaze import gaze_label_loss, multilabel_cross_entropy


def mlce(scores, labels):
    """The equation, one entry at a time."""
    negative = sum((s.exp() for s, y in zip(scores, labels, strict=True) if not y), torch.zeros(()).double())
    positive = sum(((-s).exp() for s, y in zip(scores, labels, strict=True) if y), torch.zeros(()).double())
    return (1 + negative).log() + (1 + positive).log()


def loop(logits, labels, mask, has_gaze, weights):
    """The mean over samples with gaze and sentences, one row at a time."""
    total, samples = 0 * logits.sum(), 0
    for b in range(len(logits)):
        rows = [j for j in range(logits.shape[1]) if mask[b, j]]
        if not has_gaze[b] or not rows:
            continue
        samples += 1
        for j in rows:
            total = total + weights[0] * mlce(logits[b, j], labels[b, j]) / len(rows)
        for i in range(logits.shape[2]):
            column = [logits[b, j, i] for j in rows], [labels[b, j, i] for j in rows]
            total = total + weights[1] * mlce(*column) / logits.shape[2]
    return total / max(samples, 1)


def example(B, M, n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(B, M, n, generator=generator, dtype=torch.float64)
    labels = torch.rand(B, M, n, generator=generator) < 0.4
    mask = torch.arange(M) < torch.randint(0, M + 1, (B, 1), generator=generator)
    mask[0] = True
    has_gaze = torch.rand(B, generator=generator) < 0.6
    has_gaze[0] = True
    return logits, labels, mask, has_gaze


def test_the_value_of_the_note():
    value = multilabel_cross_entropy(torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, False, False]))
    assert float(value) == pytest.approx(1.2310586, abs=1e-6)


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.2)])
@pytest.mark.parametrize(("B", "M", "n"), [(1, 1, 1), (1, 4, 3), (5, 1, 4), (4, 3, 5), (6, 5, 2)])
def test_equals_a_plain_loop_forward_and_backward(B, M, n, weights):
    logits, labels, mask, has_gaze = example(B, M, n, seed=B + M)
    logits.requires_grad_()
    ours = gaze_label_loss(logits, labels, mask, has_gaze, weights)
    plain = loop(logits, labels, mask, has_gaze, weights)
    assert torch.allclose(ours, plain, atol=1e-12)
    gradients = [torch.autograd.grad(value, logits)[0] for value in (ours, plain)]
    assert torch.allclose(*gradients, atol=1e-12) and gradients[0].abs().max() > 0


def test_order_and_padding_of_sentences_do_not_count():
    logits, labels, mask, has_gaze = example(5, 4, 6)
    loss = gaze_label_loss(logits, labels, mask, has_gaze)
    order = torch.tensor([2, 0, 3, 1])
    assert torch.allclose(gaze_label_loss(logits[:, order], labels[:, order], mask[:, order], has_gaze), loss)
    padded = torch.cat([logits, torch.full((5, 2, 6), torch.nan)], 1), torch.cat([labels, labels[:, :2]], 1)
    assert torch.allclose(gaze_label_loss(*padded, torch.cat([mask, torch.zeros(5, 2).bool()], 1), has_gaze), loss)


@pytest.mark.parametrize("label", [True, False])
def test_rows_of_equal_labels_stay_finite(label):
    scores = torch.tensor([[90.0, -90.0, 0.0], [100.0, 100.0, 100.0]], requires_grad=True)
    value = multilabel_cross_entropy(scores, torch.full((2, 3), label))
    (gradient,) = torch.autograd.grad(value.sum(), scores)
    assert value.isfinite().all() and gradient.isfinite().all()
    assert value[1].item() == pytest.approx(3 * math.exp(-100) if label else 100 + math.log(3))


def test_no_entry_costs_nothing():
    scores = torch.randn(2, 3, requires_grad=True)
    value = multilabel_cross_entropy(scores, torch.ones(2, 3).bool(), torch.zeros(2, 3).bool())
    assert torch.equal(value, torch.zeros(2))
    assert torch.equal(torch.autograd.grad(value.sum(), scores)[0], torch.zeros(2, 3))


@pytest.mark.parametrize("M", [0, 3])
@pytest.mark.parametrize("without", ["gaze", "sentences"])
def test_nothing_to_learn_from_gives_zero_with_a_graph(M, without):
    logits, labels, mask, has_gaze = example(4, max(M, 1), 5)
    logits = logits[:, :M].clone().requires_grad_()
    nothing = {"gaze": (mask[:, :M], has_gaze & False), "sentences": (mask[:, :M] & False, has_gaze)}[without]
    loss = gaze_label_loss(logits, labels[:, :M], *nothing)
    loss.backward()
    assert loss.item() == 0 and torch.equal(logits.grad, torch.zeros_like(logits))


def test_samples_without_gaze_are_not_looked_at():
    logits, labels, mask, has_gaze = example(6, 3, 4, seed=2)
    changed = torch.where(has_gaze[:, None, None], logits, torch.inf)
    assert not has_gaze.all() and torch.equal(
        gaze_label_loss(changed, labels, mask, has_gaze), gaze_label_loss(logits, labels, mask, has_gaze)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_in_is_single_precision_inside(dtype):
    logits, labels, mask, has_gaze = example(3, 4, 49)
    logits = (30 * logits).clamp(-100, 100).to(dtype).requires_grad_()  # exp(100) is beyond half precision
    loss = gaze_label_loss(logits, labels, mask, has_gaze)
    loss.backward()
    exact = gaze_label_loss(logits.detach().double(), labels, mask, has_gaze)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-5)
    assert logits.grad.dtype == dtype and logits.grad.isfinite().all()
