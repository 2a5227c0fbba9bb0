"""Dropout from 16 random bits an entry."""

import pytest
import torch

from medprism.encoders.dropout import InputDropout


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.75])
def test_rate_scale_and_gradient(probability):
    torch.manual_seed(0)
    x = torch.full((300, 1001), 3.0, requires_grad=True)  # an odd number of entries
    y = InputDropout(probability)(x)
    dropped = y == 0
    n = x.numel()
    assert abs(float(dropped.float().mean()) - probability) < 5 * (probability * (1 - probability) / n) ** 0.5
    assert torch.allclose(y[~dropped], torch.tensor(3 / (1 - probability)), rtol=1e-4)
    y.sum().backward()
    assert torch.equal(x.grad == 0, dropped)


def test_neighbours_are_independent():
    torch.manual_seed(0)
    kept = (InputDropout(0.5)(torch.ones(2**18)) > 0).float()
    for lag in (1, 2, 3, 4, 8):
        assert abs(float(torch.corrcoef(torch.stack([kept[:-lag], kept[lag:]]))[0, 1])) < 0.01


def test_seeded_and_off_in_evaluation():
    x, drop = torch.randn(50, 7), InputDropout(0.5)
    torch.manual_seed(1)
    first = drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert not torch.equal(drop(x), first)
    assert drop.eval()(x) is x
    assert InputDropout(0.0)(x) is x


def test_a_probability_next_to_one_keeps_finite():
    assert InputDropout(1 - 1e-9)(torch.ones(10_000)).isfinite().all()


@pytest.mark.parametrize("probability", [-0.1, 1.0])
def test_bad_probability(probability):
    with pytest.raises(ValueError, match="from 0 to below 1"):
        InputDropout(probability)
