"""MIMM-X and its relatives: training steps of two processes with different shards equal those of one process."""

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from medprism.methods import MDN, MIMMX, Adversarial, EnD

from examples import make_batch, make_cohort
from processes import on_two_ranks

SHARDS = [slice(0, 15), slice(15, 40)]
STEPS = 3


class Counted(MIMMX):
    """Told by the test which step it is, as a trainer would."""

    global_step = 0


DV = {"measure_options": {"hidden": 16, "negatives": 3}}
CASES = {
    "weighted": (Counted, DV | {"tau": 0.5}),
    "weighted with a moving average in the critic": (Counted, {"measure_options": {"hidden": 16, "ema": 0.1}}),
    "weighted by terms": (Counted, DV | {"weighter": "terms", "tau": 0.1}),
    "pairwise, scaled over parameters": (
        Counted,
        DV | {"pairs": "pairwise", "scaling_over": "parameters", "scaling_momentum": 0.0},
    ),
    "joint, gradnorm": (Counted, DV | {"pairs": "joint", "scaling": "gradnorm"}),
    "conditional": (Counted, DV | {"conditional": True, "scaling": "off"}),
    "club": (Counted, DV | {"measure": "club"}),
    "dcor": (Counted, {"measure": "dcor"}),
    "mmd": (Counted, {"measure": "mmd", "spurious": ["sex"]}),
    "alternating": (Counted, DV | {"schedule": "alternating", "encoder_batches": 1, "critic_batches": 1}),
    "multi-task": (Counted, {"lambda_dep": 0.0}),
    "Adversarial": (Adversarial, {"strength": 0.7}),
    "EnD": (EnD, {"disentangle": 0.5, "entangle": 0.5}),
    "MDN": (MDN, {"momentum": 0.5}),
}
WEIGHTED = ("weighted", "pairwise, scaled over parameters", "dcor", "Adversarial")
"""Cases whose samples have weights."""


class Step(torch.nn.Module):
    """What DDP wraps: the sum of the loss terms."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def forward(self, batch):
        rep = self.method.represent(batch)
        self.terms = {**self.method.losses(batch, rep), **self.method.critic_losses(batch, rep)}
        return sum(self.terms.values())


def cohort_of(case: str):
    cohort = make_cohort(regions=6)
    return make_cohort(regions=6, fields=(*cohort.fields, "weight")) if case in WEIGHTED else cohort


def batch_of(case: str, seed: int, rows: slice) -> dict:
    batch = make_batch(cohort_of(case), 40, seed)  # some attributes are unknown
    batch["target"][::7] = -1  # and so are some targets
    if case in WEIGHTED:
        batch["weight"] = torch.linspace(0.2, 1.8, 40)
    return {
        key: {name: x[rows] for name, x in value.items()} if isinstance(value, dict) else value[rows]
        for key, value in batch.items()
    }


def train(case: str, rows: slice) -> dict[str, list[dict[str, torch.Tensor]]]:
    """Terms and gradients of each step, and what the last one leaves in the model."""
    torch.manual_seed(0)
    cls, options = CASES[case]
    encoder = {"encoder": "region", "encoder_options": {"dim": 8, "input_dropout": 0.0}}
    step = Step(cls(cohort_of(case).to_dict(), **encoder, **options))
    if (attention := getattr(step.method, "attention", None)) is not None and attention.out.requires_grad:
        torch.nn.init.normal_(attention.out)  # it starts with uniform weights, which are too easy
    # Plain DDP: every parameter must be used in every step, except where turns are taken.
    wrapped = (
        DistributedDataParallel(step, find_unused_parameters=case == "alternating") if dist.is_initialized() else step
    )
    # A large eps: where a gradient is 0 up to rounding (the last bias of a critic) Adam takes full steps along it.
    optimizer = torch.optim.Adam(step.parameters(), lr=0.01, eps=1e-3)
    found = {"terms": [], "gradients": []}
    for seed in range(STEPS):
        if cls is Counted:
            step.method.global_step = seed
        optimizer.zero_grad()
        wrapped(batch_of(case, seed, rows)).backward()
        found["terms"].append({name: term.detach() for name, term in step.terms.items()})
        gradients = {name: p.grad.clone() for name, p in step.named_parameters() if p.grad is not None}
        found["gradients"].append(gradients)
        optimizer.step()
    return found | {"state": [{name: value.detach().clone() for name, value in step.state_dict().items()}]}


def work(rank: int) -> dict:
    return {case: train(case, SHARDS[rank]) for case in CASES}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict]:
    """What each of two ranks computed."""
    return on_two_ranks(work, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one(case, ranks):
    alone = train(case, slice(None))
    for found in ranks:
        for kind, expected in alone.items():
            for step, (ours, theirs) in enumerate(zip(found[case][kind], expected, strict=True)):
                assert ours.keys() == theirs.keys(), (kind, step)
                for name, value in theirs.items():
                    assert value.float().isfinite().all() or "denominator" in name, (kind, step, name)
                    assert torch.allclose(ours[name].float(), value.float(), atol=1e-5, rtol=1e-5), (kind, step, name)


def test_the_steps_are_worth_comparing(ranks):
    """The dependence counts, buffers move, and every parameter learns."""
    weighted = ranks[0]["weighted"]
    assert all(abs(terms["dependence"]) > 1e-4 for terms in weighted["terms"])
    state = weighted["state"][0]
    assert state["method.measure.draws.count"] == STEPS and (state["method.scale.norms"] > 0).all()
    turns = [set(terms) for terms in ranks[0]["alternating"]["terms"]]
    assert turns == [{"target", "sex", "age", "site", "dependence"}, {"critic", "critic_among"}, turns[0]]
    assert ranks[0]["MDN"]["state"][0]["method.effect"].abs().sum() > 0
