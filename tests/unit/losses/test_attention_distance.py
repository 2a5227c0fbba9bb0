"""Attention distances against closed values, a known calibration, and their bounds."""

import math

import pytest
import torch
from scipy.spatial.distance import cosine, jensenshannon

from medprism.losses.attention import attention_distance

KINDS = ["cosine", "jensen_shannon", "total_variation", "l2"]


def rows(n, regions, spread, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(n, regions, generator=generator)).softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_for_equal_one_for_disjoint_and_symmetric(kind):
    p, q = rows(5, 30, 2.0), rows(5, 30, 2.0, seed=1)
    assert torch.allclose(attention_distance(p, p, kind), torch.zeros(5), atol=2e-6)
    assert torch.allclose(attention_distance(p, q, kind), attention_distance(q, p, kind), atol=1e-6)
    one, other = torch.eye(4)[0], torch.eye(4)[2]
    assert float(attention_distance(one, other, kind)) == pytest.approx(1, abs=1e-5)
    assert ((attention_distance(p, q, kind) >= 0) & (attention_distance(p, q, kind) <= 1)).all()


def test_equals_scipy():
    p, q = rows(6, 50, 1.5), rows(6, 50, 1.5, seed=1)
    for i in range(6):
        assert float(attention_distance(p, q)[i]) == pytest.approx(cosine(p[i], q[i]), abs=1e-5)
        expected = jensenshannon(p[i], q[i], base=2) ** 2
        assert float(attention_distance(p, q, "jensen_shannon")[i]) == pytest.approx(expected, abs=1e-5)
        assert float(attention_distance(p, q, "total_variation")[i]) == pytest.approx(
            float((p[i] - q[i]).abs().sum()) / 2, abs=1e-6
        )
        assert float(attention_distance(p, q, "l2")[i]) == pytest.approx(math.dist(p[i], q[i]) / math.sqrt(2), abs=1e-5)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", (0.0099, 0.61, 0.95)),
        ("jensen_shannon", (0.0026, 0.19, 0.61)),
        ("total_variation", (0.056, 0.51, 0.96)),
    ],
)
def test_size_on_random_rows(kind, expected):
    """Random softmax rows of 200 regions with logits of standard deviation 0.1, 1 and 3.

    The expected Jensen-Shannon values are in nats; ours are in units of ln 2.
    """
    for spread, value in zip((0.1, 1.0, 3.0), expected, strict=True):
        mean = float(attention_distance(rows(400, 200, spread), rows(400, 200, spread, seed=1), kind).mean())
        assert mean * (math.log(2) if kind == "jensen_shannon" else 1) == pytest.approx(value, rel=0.12)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_at_equal_maps_and_at_corners(kind):
    logits = torch.zeros(3, 10, requires_grad=True)
    attention_distance(logits.softmax(-1), logits.detach().softmax(-1), kind).sum().backward()
    assert logits.grad.isfinite().all()
    corner = torch.eye(10)[:3].requires_grad_()
    attention_distance(corner, torch.eye(10)[:3], kind).sum().backward()
    assert corner.grad.isfinite().all()


def test_unknown_distance_names_the_choices():
    with pytest.raises(ValueError, match="jensen_shannon"):
        attention_distance(torch.ones(1, 2) / 2, torch.ones(1, 2) / 2, "kl")
