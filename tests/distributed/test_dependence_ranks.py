"""Dependence of two processes with different shards equals that of one process with the concatenated batch."""

import pytest
import torch
import torch.distributed as dist

from medprism.dependence import MEASURES, build_measure

from processes import on_two_ranks

SHARDS = [slice(0, 8), slice(8, 20)]
DIMS = [(2, 2), (2, 4)]
CASES = {
    f"{name} {case}": (name, options, case)
    for name in MEASURES
    for options in [{} if name in ("dcor", "hsic", "mmd") else {"hidden": 6, "layers": 2, "negatives": 3}]
    for case in ("plain", "given", "weight", "known")
} | {
    "dcor corrected": ("dcor", {"bias_corrected": True}, "plain"),
    "dv ema": ("dv", {"hidden": 6, "ema": 0.1}, "plain"),
    "dv classes": ("dv", {"hidden": 6, "classes": 2}, "given"),
}


def compute(case: str, shard: slice) -> list[torch.Tensor]:
    """Values, and the gradient of a linear encoder and of the critics, of two steps."""
    name, options, labels = CASES[case]
    torch.manual_seed(0)
    measure = build_measure(name, DIMS, **options)
    gen = torch.Generator().manual_seed(0)
    x, encoder = torch.randn(20, 5, generator=gen), torch.randn(5, 8, generator=gen, requires_grad=True)
    every = {
        "plain": {},
        "given": {"given": torch.randint(2, (20,), generator=gen)},
        "weight": {"weight": torch.rand(20, generator=gen) + 0.5},
        "known": {"known": torch.rand(2, 20, generator=gen) < 0.8, "given": torch.randint(2, (20,), generator=gen)},
    }[labels]
    own = {key: value[..., shard] for key, value in every.items()}
    found = []
    for _ in range(2):
        a, b, c = (x[shard] @ encoder).split([2, 2, 4], 1)
        pairs = [(a, b), (a, c)]
        values = measure(pairs, **own)
        loss = measure.critic_loss(pairs, **own)
        (values @ torch.tensor([1.0, -0.5]) + loss).backward()
        gradients = [encoder.grad, *(parameter.grad for parameter in measure.parameters())]
        if dist.is_initialized():
            for gradient in gradients:  # what DDP does: the mean over ranks
                dist.all_reduce(gradient)
                gradient /= 2
        found += [values.detach(), loss.detach(), *(gradient.clone() for gradient in gradients)]
        for parameter in [encoder, *measure.parameters()]:
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None
    return found


def work(rank: int) -> dict:
    return {case: compute(case, SHARDS[rank]) for case in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_measures(case, ranks):
    alone = compute(case, slice(None))
    assert all(x.isfinite().all() for x in alone)
    for found in ranks:
        for x, y in zip(found[case], alone, strict=True):
            assert torch.allclose(x, y, atol=1e-4, rtol=1e-3)
