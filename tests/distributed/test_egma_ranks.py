"""Image-text methods: training steps of two processes with different shards equal those of one process."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from medprism.methods import CLIP, EGMA

from examples import make_reading_cohort, make_readings
from processes import on_two_ranks

SHARDS = [slice(0, 5), slice(5, 12)]
FEWER = {"encoder_options": {"grid": 4, "width": 8, "blocks": 1}, "text_options": {"width": 16}, "dim": 8}
CASES = {
    "EGMA": (EGMA, {"lambda_global": 0.3}),
    "EGMA released": (EGMA, {"released": True}),
    "EGMA, gaze on one rank": (EGMA, {}),
    "EGMA, no sentence on one rank": (EGMA, {"lambda_global": 1.0}),
    "EGMA, a pooling that nobody asks": (EGMA, {"encoder": "small", "encoder_options": {"norm": "group"}}),
    "fine-grained, dependence": (EGMA, {"use_gaze": False, "lambda_dep": 1.0, "measure": "dcor"}),
    "CLIP": (CLIP, {}),
    "CLIP sigmoid, frozen texts": (
        CLIP,
        {"contrast": "sigmoid", "text_tower": "frozen", "text_options": {"options": {"dim": 16}}},
    ),
}


class Step(torch.nn.Module):
    """What DDP wraps: the sum of the loss terms."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        self.terms = self.method.losses(batch, self.method.represent(batch))
        return sum(self.terms.values())


def batch_of(case: str, seed: int, rows: slice) -> dict:
    batch = make_readings(make_reading_cohort(), 12, seed)
    if "gaze on one rank" in case:
        batch["has_gaze"][SHARDS[0]] = False
        batch["gaze"][SHARDS[0]] = 0
    if "no sentence" in case:
        batch["sentences"] = [each if row >= 5 else [] for row, each in enumerate(batch["sentences"])]
        batch["gaze"][SHARDS[0]] = 0
    part = {
        key: {name: x[rows] for name, x in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in batch.items()
    }
    part["gaze"] = part["gaze"][:, : max(map(len, part["sentences"]))]  # as each rank's own loader pads it
    return part


def train(case: str, rows: slice) -> dict:
    torch.manual_seed(0)
    cls, options = CASES[case]
    step = Step(cls(make_reading_cohort().to_dict(), **{**FEWER, **options}))
    wrapped = DistributedDataParallel(step) if dist.is_initialized() else step  # plain: every parameter must be used
    optimizer = torch.optim.SGD(step.parameters(), lr=0.02, momentum=0.9)
    terms = []
    for seed in range(2):
        optimizer.zero_grad()
        wrapped(batch_of(case, seed, rows)).backward()
        optimizer.step()
        terms.append({name: term.detach() for name, term in step.terms.items()})
    return {"terms": terms, "state": {name: value.detach().clone() for name, value in step.state_dict().items()}}


def work(rank: int) -> dict:
    return {case: train(case, SHARDS[rank]) for case in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case, ranks):
    alone = train(case, slice(None))
    assert all(term.isfinite() and term != 0 for terms in alone["terms"] for term in terms.values())
    for found in ranks:
        for ours, theirs in zip(found[case]["terms"], alone["terms"], strict=True):
            assert ours.keys() == theirs.keys()
            for name, value in theirs.items():
                assert torch.allclose(ours[name], value, atol=1e-4, rtol=1e-4), name
        for name, value in alone["state"].items():
            assert torch.allclose(found[case]["state"][name], value, atol=1e-5, rtol=1e-4), name
