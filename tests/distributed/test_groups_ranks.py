"""Group losses and weighted means of two processes equal those of one: value, gradient, and weights of the groups."""

import pytest
import torch
import torch.distributed as dist

from medprism.losses.group import group_dro
from medprism.losses.supervised import target_loss

from processes import on_two_ranks

SHARDS = [slice(0, 5), slice(5, 12)]
STEPS = 3


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, a weight matrix, groups of which the first rank lacks some, and weights of samples."""
    generator = torch.Generator().manual_seed(0)
    groups = torch.tensor([0, 0, 1, -1, 0, 3, 2, 1, -1, 3, 3, 2])
    matrix = torch.randn(6, 3, generator=generator, requires_grad=True)
    return torch.randn(12, 6, generator=generator), matrix, groups, torch.rand(12, generator=generator)


def steps(rows: slice) -> dict[str, list[torch.Tensor]]:
    """What a few steps on these rows give: values, the weights of the groups, and gradients."""
    features, matrix, groups, weight = inputs()
    q, found = torch.full((5,), 0.2), {"q": [], "loss": [], "gradient": []}
    for _ in range(STEPS):
        logits = features[rows] @ matrix
        dro, q = group_dro(logits.square().sum(1), groups[rows], q, 0.1)
        loss = dro + target_loss(logits, groups[rows].clamp(max=2), weight=weight[rows])
        (gradient,) = torch.autograd.grad(loss, matrix)
        if dist.is_initialized():
            dist.all_reduce(gradient)  # what DDP does: the mean over ranks
            gradient /= 2
        for name, value in {"q": q, "loss": loss.detach(), "gradient": gradient}.items():
            found[name].append(value)
    return found


def work(rank: int) -> dict:
    return steps(SHARDS[rank])


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("what", ["q", "loss", "gradient"])
def test_two_ranks_equal_one(what, ranks):
    expected = steps(slice(0, 12))[what]
    for found in ranks:
        for step in range(STEPS):
            assert torch.allclose(found[what][step], expected[step], rtol=1e-5, atol=1e-6)
