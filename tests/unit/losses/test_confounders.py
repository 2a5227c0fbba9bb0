import pytest
import torch

from medprism.losses.confounders import UNIFORM, ConfounderAttention, standardised


def attention(confounders=3, dim=2, tau=1.0):
    torch.manual_seed(0)
    made = ConfounderAttention(confounders, dim, tau=tau)
    torch.nn.init.normal_(made.out)
    torch.nn.init.normal_(made.bias)
    return made


def test_equals_its_equation_in_loops():
    made, blocks = attention(), torch.randn(20, 3, 2)
    weighted, alpha = made(blocks, frozen=False)
    normal = (blocks - blocks.mean(0)) / (blocks.var(0, unbiased=False) + 1e-5).sqrt()
    for n in range(20):
        scores = torch.stack([torch.tanh(made.weight.T @ normal[n, i] + made.bias[i]) @ made.out for i in range(3)])
        expected = 0.9 * torch.exp(scores) / torch.exp(scores).sum() + 0.1 / 3
        assert torch.allclose(alpha[n], expected, atol=1e-5)
        for i in range(3):
            assert torch.allclose(weighted[n, 2 * i : 2 * i + 2], 3 * expected[i] * blocks[n, i], atol=1e-5)


def test_weights_sum_to_one_and_none_vanishes():
    alpha = attention()(10 * torch.randn(50, 3, 2), frozen=True)[1]
    assert torch.allclose(alpha.sum(1), torch.ones(50))
    assert (alpha >= UNIFORM / 3).all()


def test_one_confounder_is_left_as_it_is():
    blocks = torch.randn(10, 1, 2)
    weighted, alpha = attention(confounders=1)(blocks, frozen=False)
    assert torch.equal(alpha, torch.ones(10, 1))
    assert torch.allclose(weighted, blocks[:, 0])


def test_a_high_temperature_concatenates_the_blocks():
    blocks = torch.randn(10, 3, 2)
    assert torch.allclose(attention(tau=1e9)(blocks, frozen=False)[0], blocks.flatten(1), atol=1e-5)


def test_it_starts_uniform():
    blocks = torch.randn(10, 3, 2)
    assert torch.allclose(ConfounderAttention(3, 2)(blocks, frozen=False)[0], blocks.flatten(1), atol=1e-5)


def test_gradient_goes_where_it_belongs():
    made, blocks = attention(), torch.randn(20, 3, 2, requires_grad=True)
    made(blocks, frozen=True)[0].sum().backward()
    assert blocks.grad is not None
    assert all(p.grad is None for p in made.parameters())
    made(blocks.detach(), frozen=False)[0].square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in made.parameters())


def test_scores_do_not_depend_on_the_unit_of_a_feature():
    made, blocks = attention(), torch.randn(50, 3, 2)
    scaled = blocks * torch.tensor([3.0, 0.5]) + torch.tensor([1.0, -2.0])
    assert torch.allclose(made(blocks, frozen=True)[1], made(scaled, frozen=True)[1], atol=1e-3)


def test_constant_features_stay_finite():
    blocks = torch.ones(10, 3, 2, requires_grad=True)
    standardised(blocks).sum().backward()
    assert blocks.grad.isfinite().all()


def test_bad_temperature():
    with pytest.raises(ValueError, match="tau is 0"):
        ConfounderAttention(2, 2, tau=0)
