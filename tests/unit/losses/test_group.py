"""GroupDRO against a plain transcription of algorithm 1."""

import itertools
import math

import pytest
import torch

from medprism.losses.group import group_dro, group_index


def test_every_combination_is_a_group_and_unknown_ones_are_none():
    codes = torch.tensor([*itertools.product(range(2), range(3), range(2)), (0, -1, 1), (-1, 2, 1)]).T
    groups = group_index(list(codes), [2, 3, 2])
    assert groups.tolist() == [*range(12), -1, -1]


def transcription(values, groups, q, step):
    """Algorithm 1 with loops."""
    losses = []
    for g in range(len(q)):
        members = [value for value, group in zip(values, groups, strict=True) if group == g]
        losses.append(sum(members) / len(members) if members else torch.tensor(0.0))
    q = [q[g] * math.exp(step * float(losses[g])) for g in range(len(q))]
    q = [weight / sum(q) for weight in q]
    return sum(weight * loss for weight, loss in zip(q, losses, strict=True)), q


@pytest.mark.parametrize(("n", "groups", "step"), [(1, 2, 0.01), (7, 4, 0.5), (40, 6, 3.0), (40, 1, 0.1), (9, 3, 0.0)])
def test_equals_the_algorithm(n, groups, step):
    generator = torch.Generator().manual_seed(n)
    values = (4 * torch.rand(n, generator=generator)).requires_grad_()
    members = torch.randint(-1, groups, (n,), generator=generator)
    q, expected_q = torch.full((groups,), 1 / groups), [1 / groups] * groups
    for _ in range(3):
        loss, q = group_dro(values, members, q, step)
        expected, expected_q = transcription(values, members.tolist(), expected_q, step)
        assert torch.allclose(loss, expected, atol=1e-6) and torch.allclose(q, torch.tensor(expected_q), atol=1e-6)
        assert not q.requires_grad and math.isclose(float(q.sum()), 1, abs_tol=1e-6)
        if loss.requires_grad and expected.requires_grad:
            grads = [torch.autograd.grad(term, values, retain_graph=True)[0] for term in (loss, expected)]
            assert torch.allclose(*grads, atol=1e-7)


def test_the_worst_group_gains_weight_and_masked_values_may_be_infinite():
    values, groups = torch.tensor([0.1, 2.0, float("inf")]), torch.tensor([0, 1, -1])
    loss, q = group_dro(values, groups, torch.tensor([0.5, 0.5]), 1.0)
    assert q[1] > 0.5 > q[0] and loss.isfinite()
    nobody, same = group_dro(values, torch.full((3,), -1), q, 1.0)
    assert float(nobody) == 0 and torch.allclose(same, q)
