import pytest
import torch
from torch.nn import functional as F

from medprism.losses.entangle import entangle_disentangle


def in_loops(embedding, target, attribute):
    z = F.normalize(embedding, dim=1)
    apart, together = [], []
    for i in range(len(z)):
        if target[i] < 0 or attribute[i] < 0:
            continue
        others = [j for j in range(len(z)) if j != i and target[j] >= 0 and attribute[j] >= 0]
        biased = [(z[i] @ z[j]).abs() for j in others if attribute[j] == attribute[i]]
        other = [z[i] @ z[j] for j in others if target[j] == target[i] and attribute[j] != attribute[i]]
        apart += [sum(biased) / len(biased)] if biased else []
        together += [sum(other) / len(other)] if other else []
    return sum(apart) / max(len(apart), 1), -sum(together) / max(len(together), 1)


@pytest.mark.parametrize("seed", range(3))
def test_equals_its_equations_in_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(12, 4, generator=generator, requires_grad=True)
    target = torch.randint(-1, 2, (12,), generator=generator)
    attribute = torch.randint(-1, 3, (12,), generator=generator)
    found, expected = entangle_disentangle(embedding, target, attribute), in_loops(embedding, target, attribute)
    for ours, plain in zip(found, expected, strict=True):
        assert ours.item() == pytest.approx(float(plain), abs=1e-6)
    ours, plain = (torch.autograd.grad(sum(terms), embedding)[0] for terms in (found, expected))
    assert torch.allclose(ours, plain, atol=1e-6)


def test_closed_forms():
    embedding = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    target, attribute = torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])
    apart, together = entangle_disentangle(embedding, target, attribute)
    assert (apart, together) == (0, -1)


def test_nobody_to_compare_with_is_zero_with_a_gradient():
    embedding = torch.randn(2, 3, requires_grad=True)
    apart, together = entangle_disentangle(embedding, torch.tensor([0, 1]), torch.tensor([0, 1]))
    (apart + together).backward()
    assert apart == together == 0
    assert (embedding.grad == 0).all()
