"""Two processes with different shards equal one process with the concatenated batch: value and gradient."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from medprism.distributed import gather_objects, gather_with_grad
from medprism.losses.alignment import alignment_loss
from medprism.losses.reduction import mean_over_samples
from medprism.losses.supervised import target_loss
from medprism.methods import ERM, NeuroLIP

from examples import make_batch, make_cohort
from processes import on_two_ranks

SHARDS = [slice(0, 5), slice(5, 12)]


def work(rank: int) -> dict:
    """Compute everything that a test looks at; starting processes is what takes the time."""
    return {
        **{name: gradient_of_loss(rank, name) for name in LOSSES},
        **{name: train_under_ddp(rank, name) for name in METHODS},
        "gathered": [gather_with_grad(torch.ones(0 if rank else 3, 2)), gather_objects({"rank": rank})],
    }


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


# --------------------------------------------------------------------------------------------------------- losses
def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 6, generator=generator)
    weight = torch.randn(6, 6, generator=generator, requires_grad=True)
    return features, weight, torch.randint(-1, 3, (12,), generator=generator)


MASK = torch.tensor([[True, True], [True, False], [True, True]])
LOSSES = {
    "sigmoid": lambda x, c: alignment_loss(x.unflatten(1, (3, 2)), MASK, c, "sigmoid"),
    "softmax": lambda x, c: alignment_loss(x.unflatten(1, (3, 2)), MASK, c, "softmax"),
    "sigmoid_own_masks": lambda x, c: alignment_loss(x.unflatten(1, (3, 2)), MASK.expand(len(x), -1, -1), c),
    "masked_mean": lambda x, c: mean_over_samples(x.square().sum(1), c >= 0),
    "classes": lambda x, c: target_loss(x[:, :3], c),
    "gathered_variance": lambda x, c: gather_with_grad(x).var(0).sum(),
}


def gradient_of_loss(rank: int, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    features, weight, classes = inputs()
    loss = LOSSES[name](features[SHARDS[rank]] @ weight, classes[SHARDS[rank]])
    loss.backward()
    dist.all_reduce(weight.grad)  # what DDP does: the mean over ranks
    return loss.detach(), weight.grad / 2


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, ranks):
    features, weight, classes = inputs()
    loss = LOSSES[name](features @ weight, classes)
    loss.backward()
    for value, gradient in (rank[name] for rank in ranks):
        assert torch.allclose(value, loss.detach(), atol=1e-5)
        assert torch.allclose(gradient, weight.grad, atol=1e-5)


def test_a_rank_without_rows_and_plain_objects(ranks):
    for rows, objects in (rank["gathered"] for rank in ranks):
        assert rows.shape == (3, 2)
        assert objects == [{"rank": 0}, {"rank": 1}]


# ------------------------------------------------------------------------------------------------- training steps
def part(batch: dict, rows: slice) -> dict:
    return {
        key: {name: x[rows] for name, x in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in batch.items()
    }


METHODS = {
    "ERM": (ERM, {}),
    "NeuroLIP": (NeuroLIP, {"warmup": 0.0}),
    "NeuroLIP reversal": (NeuroLIP, {"negative": "reversal", "contrast": "softmax", "lambda_global": 0.3}),
    "NeuroLIP captions": (NeuroLIP, {"captions": True, "text_options": {"level": "word"}, "distance": "l2"}),
}


class Step(torch.nn.Module):
    """What DDP wraps: the sum of the loss terms."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        return sum(self.method.losses(batch, self.method.represent(batch)).values())


def build(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    cls, options = METHODS[name]
    encoder = {"encoder": "region", "encoder_options": {"dim": 8, "input_dropout": 0.0}}
    return Step(cls(make_cohort().to_dict(), **encoder, **options))


def train(step: torch.nn.Module, batches: list[dict]) -> dict[str, torch.Tensor]:
    # Not Adam: where a gradient is 0 up to rounding (the bias under a softmax) it takes full steps along the rounding.
    optimizer = torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9)
    for batch in batches:
        optimizer.zero_grad()
        step(batch).backward()
        optimizer.step()
    return {name.removeprefix("module."): value.detach() for name, value in step.state_dict().items()}


def batches() -> list[dict]:
    return [make_batch(make_cohort(), 12, seed=k) for k in range(3)]


def train_under_ddp(rank: int, name: str) -> dict[str, torch.Tensor]:
    step = DistributedDataParallel(build(name))  # plain: every parameter must be used
    return train(step, [part(batch, SHARDS[rank]) for batch in batches()])


@pytest.mark.parametrize("name", METHODS)
def test_training_steps_under_plain_ddp(name, ranks):
    alone = train(build(name), batches())
    for weights in (rank[name] for rank in ranks):
        assert weights.keys() == alone.keys()
        for key, value in weights.items():
            assert torch.allclose(value.float(), alone[key].float(), atol=1e-5), key
