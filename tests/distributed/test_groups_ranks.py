"""Group losses and weighted means of two processes equal those of one: value, gradient, and weights of the groups."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from medprism.losses.group import group_dro
from medprism.losses.supervised import target_loss

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


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(steps(SHARDS[rank]), Path(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, (port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("what", ["q", "loss", "gradient"])
def test_two_ranks_equal_one(what, ranks):
    expected = steps(slice(0, 12))[what]
    for found in ranks:
        for step in range(STEPS):
            assert torch.allclose(found[what][step], expected[step], rtol=1e-5, atol=1e-6)
