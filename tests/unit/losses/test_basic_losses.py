"""Masked means, supervised losses, gradient reversal."""

import pytest
import torch
from torch.nn import functional as F

from medprism.losses.gradient import reverse_gradient
from medprism.losses.reduction import mean_over_samples
from medprism.losses.supervised import target_loss


def test_masked_mean_ignores_even_infinite_values():
    values = torch.tensor([1.0, float("inf"), 3.0], requires_grad=True)
    mean = mean_over_samples(values, torch.tensor([True, False, True]))
    mean.backward()
    assert float(mean) == 2
    assert values.grad.tolist() == [0.5, 0, 0.5]
    assert float(mean_over_samples(torch.ones(3), torch.zeros(3, dtype=torch.bool))) == 0


def test_target_losses_equal_torch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(9, 3, generator=generator)
    target = torch.randint(0, 3, (9,), generator=generator)
    assert torch.allclose(target_loss(logits, target), F.cross_entropy(logits, target))
    masked = target.clone()
    masked[::3] = -1
    assert torch.allclose(target_loss(logits, masked), F.cross_entropy(logits[masked >= 0], target[masked >= 0]))
    labels = torch.rand(9, 3, generator=generator).round()
    assert torch.allclose(target_loss(logits, labels, "labels"), F.binary_cross_entropy_with_logits(logits, labels))
    assert torch.allclose(target_loss(logits[:, :1], labels[:, 0], "value"), F.mse_loss(logits[:, 0], labels[:, 0]))


def test_weights_multiply_each_sample_and_leave_the_count():
    values, weight = torch.tensor([1.0, float("inf"), 3.0]), torch.tensor([0.5, 9.0, 2.0])
    assert float(mean_over_samples(values, torch.tensor([True, False, True]), weight)) == (0.5 * 1 + 2 * 3) / 2
    assert float(mean_over_samples(values[::2], weight=weight[::2])) == (0.5 * 1 + 2 * 3) / 2
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(3, 3, generator=generator), torch.tensor([0, -1, 2])
    expected = (0.5 * F.cross_entropy(logits[:1], target[:1]) + 2 * F.cross_entropy(logits[2:], target[2:])) / 2
    assert torch.allclose(target_loss(logits, target, weight=weight), expected)
    labels = torch.rand(3, 3, generator=generator).round()
    each = F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    assert torch.allclose(target_loss(logits, labels, "labels", weight=weight), (each * weight).mean())
    squares = (logits[:, 0] - labels[:, 0]).square()
    assert torch.allclose(target_loss(logits[:, :1], labels[:, 0], "value", weight=weight), (squares * weight).mean())


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
def test_reversal_keeps_the_value_and_turns_the_gradient(strength):
    x = torch.randn(4, requires_grad=True)
    y = reverse_gradient(x, strength)
    assert torch.equal(y, x)
    (y**2).sum().backward()
    assert torch.allclose(x.grad, -strength * 2 * x.detach())
