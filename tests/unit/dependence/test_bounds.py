"""Bounds with the best critic against closed forms, on the mean of 200 batches of 500."""

import math

import pytest
import torch

from medprism.dependence.bounds import (
    BOUNDS,
    contrastive_log_ratio,
    donsker_varadhan,
    info_nce,
    jensen_shannon,
    log_mean_exp,
    nguyen_wainwright_jordan,
)

BATCHES, N, K = 200, 500, 8
INFORMATION = [0.0, 0.1, 0.368, 1.0, 2.0]


def gaussians(information: float, d: int, batches: int = BATCHES) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Standard normal a, b whose d dimensions share a correlation; together they have that mutual information."""
    rho = math.sqrt(1 - math.exp(-2 * information / d))
    generator = torch.Generator().manual_seed(d)
    a, noise = torch.randn(2, batches, N, d, generator=generator)
    return a, rho * a + math.sqrt(1 - rho**2) * noise, rho


def log_ratio(a: torch.Tensor, b: torch.Tensor, rho: float) -> torch.Tensor:
    """log p(a, b) / p(a) p(b)."""
    quadratic = (rho**2 * (a.square() + b.square()) - 2 * rho * a * b) / (2 * (1 - rho**2))
    return -(quadratic + math.log(1 - rho**2) / 2).sum(-1)


def scores(a: torch.Tensor, b: torch.Tensor, rho: float, k: int = K) -> tuple[torch.Tensor, torch.Tensor]:
    others = torch.stack([log_ratio(a, b.roll(shift, 1), rho) for shift in range(1, k + 1)], -1)
    return log_ratio(a, b, rho), others


def close(mean: float, true: float) -> bool:
    return abs(mean - true) <= max(0.03, 0.08 * true)


@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("information", INFORMATION)
def test_closed_forms(information, d):
    a, b, rho = gaussians(information, d)
    joint, product = scores(a, b, rho)
    assert close(donsker_varadhan(joint, product).mean().item(), information)  # dv, and the value of js
    assert close(nguyen_wainwright_jordan(joint + 1, product + 1).mean().item(), information)
    assert close(BOUNDS["smile"][0](joint, product, None, None).mean().item(), information)


@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("information", INFORMATION)
def test_info_nce_needs_negatives(information, d):
    a, b, rho = gaussians(information, d)
    # Its bias is about (e^{2I} - 1) / 2K. Negatives come from the own block of the batch.
    size = 10 if information < 0.2 else 50 if information < 0.5 else 100 if information < 1.5 else 250
    a, b = a.reshape(-1, size, d), b.reshape(-1, size, d)
    squares = a.square().sum(-1)[..., None] + b.square().sum(-1)[:, None]
    every = (2 * rho * a @ b.mT - rho**2 * squares) / (2 * (1 - rho**2)) - d * math.log(1 - rho**2) / 2
    value = info_nce(every.diagonal(dim1=1, dim2=2), every, None, 1 - torch.eye(size))
    assert close(value.mean().item(), information)


def test_info_nce_is_bounded_by_its_negatives():
    joint, product = torch.full((1, 5), 50.0), torch.zeros(1, 5, 3)
    assert info_nce(joint, product).item() == pytest.approx(math.log(4))


@pytest.mark.parametrize("d", [1, 2, 8])
@pytest.mark.parametrize("information", INFORMATION)
def test_club_with_the_true_conditional_is_above(information, d):
    a, b, rho = gaussians(information, d)

    def likelihood(b):
        return torch.distributions.Normal(rho * a, math.sqrt(1 - rho**2)).log_prob(b).sum(-1)

    product = torch.stack([likelihood(b.roll(shift, 1)) for shift in range(1, K + 1)], -1)
    value = contrastive_log_ratio(likelihood(b), product).mean().item()
    assert close(value, d * rho**2 / (1 - rho**2))
    assert value > information - 0.03


def test_jensen_shannon_is_greatest_at_the_log_ratio():
    joint, product = scores(*gaussians(1.0, 2, batches=50))
    best = jensen_shannon(joint, product).mean()
    for change in (lambda t: t + 0.2, lambda t: t - 0.2, lambda t: 1.2 * t, lambda t: 0.8 * t):
        assert jensen_shannon(change(joint), change(product)).mean() < best - 1e-3


@pytest.mark.parametrize("name", BOUNDS)
def test_shuffled_pairs_have_none_and_are_not_clamped(name):
    a, b, rho = gaussians(1.0, 2)
    value, _ = BOUNDS[name]
    shift = 1.0 if name == "nwj" else 0.0
    joint, product = scores(a, b[:, torch.randperm(N, generator=torch.Generator().manual_seed(0))], rho)
    assert value(joint + shift, product + shift, None, None).mean() < -0.3  # a critic that is wrong about them
    zero = torch.full_like(joint, shift), torch.full_like(product, shift)
    assert value(*zero, None, None).abs().max() < 1e-5  # the best one


def test_invariance_under_invertible_maps():
    a, b, rho = gaussians(0.368, 2, batches=20)
    covariance = torch.eye(4)
    covariance[[0, 1, 2, 3], [2, 3, 0, 1]] = rho
    mixing = torch.tensor([[2.0, 0.3, 0, 0], [-1.0, 0.7, 0, 0], [0, 0, 0.1, 0.4], [0, 0, 3.0, 1.0]])
    moved = mixing @ covariance @ mixing.T
    whole = torch.distributions.MultivariateNormal(torch.zeros(4), moved)
    parts = [torch.distributions.MultivariateNormal(torch.zeros(2), moved[s, s]) for s in (slice(0, 2), slice(2, 4))]

    def ratio(a, b):
        return whole.log_prob(torch.cat([a, b], -1)) - parts[0].log_prob(a) - parts[1].log_prob(b)

    x, y = a @ mixing[:2, :2].T, b @ mixing[2:, 2:].T
    product = torch.stack([ratio(x, y.roll(shift, 1)) for shift in range(1, K + 1)], -1)
    plain = donsker_varadhan(*scores(a, b, rho))
    assert torch.allclose(donsker_varadhan(ratio(x, y), product), plain, atol=1e-3)


def test_additivity_over_independent_pairs():
    (a, b, rho), (x, y, other) = gaussians(0.368, 2), gaussians(1.0, 1)
    first, second = scores(a, b, rho), scores(x, y, other)
    both = donsker_varadhan(first[0] + second[0], first[1] + second[1])
    assert close(both.mean().item(), 1.368)
    assert close((both - donsker_varadhan(*first) - donsker_varadhan(*second)).mean().item(), 0)


@pytest.mark.parametrize("name", [*BOUNDS, "club"])
def test_weights_are_repeats(name):
    generator = torch.Generator().manual_seed(0)
    joint, product = torch.randn(2, 6, generator=generator), torch.randn(2, 6, 4, generator=generator)
    times = torch.tensor([1, 2, 0, 3, 1, 1])
    value = contrastive_log_ratio if name == "club" else BOUNDS[name][0]
    repeated = value(joint.repeat_interleave(times, 1), product.repeat_interleave(times, 1), None, None)
    weighted = value(joint, product, times.float(), times.float()[:, None].expand(6, 4))
    if name == "infonce":  # weights of negatives are relative within a row
        weighted = value(joint, product, times.float(), torch.ones(6, 4))
    assert torch.allclose(weighted, repeated, atol=1e-5)


def test_large_scores_do_not_overflow():
    product = torch.full((3, 2), 500.0, requires_grad=True)
    assert log_mean_exp(product).item() == pytest.approx(500)
    assert log_mean_exp(product, torch.tensor([[1.0, 0.0]] * 3)).item() == pytest.approx(500)
    donsker_varadhan(torch.zeros(3), product).backward()
    assert torch.allclose(product.grad, torch.full((3, 2), -1 / 6), atol=1e-4)
