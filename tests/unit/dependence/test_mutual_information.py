"""Measures with networks: against plain transcriptions, and trained against closed forms."""

import math

import pytest
import torch
from torch import nn

from medprism.dependence import CLUB, MutualInformation
from medprism.dependence.negatives import derangements, pairings

LOWER = ["dv", "nwj", "infonce", "smile", "js"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def correlated(information: float, n: int, seed: torch.Generator, d: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    rho = math.sqrt(1 - math.exp(-2 * information / d))
    a, noise = torch.randn(2, n, d, generator=seed)
    return a, rho * a + math.sqrt(1 - rho**2) * noise


def features(dims, n=12, seed=0):
    gen = generator(seed)
    return [(torch.randn(n, a, generator=gen), torch.randn(n, b, generator=gen)) for a, b in dims]


# ------------------------------------------------------------------------------------------------------ derangements
@pytest.mark.parametrize("k", [1, 3, 8])
def test_derangements(k):
    groups = torch.tensor([0, 1, 0, 2, 0, 1, 0, 0, 1])
    others, exists = derangements(groups, k, generator())
    sizes = {0: 5, 1: 3, 2: 1}
    for i, group in enumerate(groups.tolist()):
        own = others[i][exists[i]].tolist()
        assert len(own) == len(set(own)) == min(k, sizes[group] - 1)
        assert i not in own and all(groups[j] == group for j in own)
    drawn = others[exists].bincount(minlength=9).tolist()
    assert drawn == exists.sum(1).tolist()  # everyone as often as it draws


def test_derangements_are_random_and_cover_all_pairs():
    counts = torch.zeros(5, 5)
    gen = generator()
    for _ in range(2000):
        others, _ = derangements(torch.zeros(5, dtype=torch.long), 2, gen)
        counts[torch.arange(5)[:, None], others] += 1
    share = counts / 2000
    assert torch.allclose(share, (1 - torch.eye(5)) / 2, atol=0.05)


def test_a_group_has_the_same_mass_in_joint_and_product():
    groups = torch.tensor([[0, 0, 0, 0, 0, 1, 1, 2, -1]])
    weight = torch.tensor([1.0, 2, 0, 1, 1, 3, 1, 5, 7])
    drawn = pairings(groups, weight, 3, generator())
    # Group 2 has one sample, and -1 does not count; of group 1 there are fewer pairings than derangements.
    assert torch.allclose(drawn.joint[0], torch.tensor([1.0, 2, 0, 1, 1, 3, 1, 0, 0]) / 9)
    assert drawn.product[0, 7:].sum() == 0
    assert drawn.product.sum() == pytest.approx(1)
    assert (drawn.product[0, 5:7] > 0).sum(1).tolist() == [1, 1]
    flat = pairings(groups, torch.ones(9), 3, generator())
    assert flat.product[0, :5].sum() == pytest.approx(5 / 7)
    assert flat.product[0, 5:7].sum() == pytest.approx(2 / 7)
    # Weights count once: as much in the product as in the joint.
    heavy = pairings(torch.tensor([[0] * 4 + [1] * 4]), torch.tensor([1.0] * 4 + [3.0] * 4), 2, generator())
    assert heavy.joint[0, 4:].sum() == pytest.approx(3 / 4)
    assert heavy.product[0, 4:].sum() == pytest.approx(3 / 4)


# ------------------------------------------------------------------------------------------------ plain transcription
def plain_critic(measure: MutualInformation, index: int) -> nn.Sequential:
    """One critic of modules that torch has."""
    networks, (a, b) = measure.critics, measure.dims[index]
    hidden = networks.last.shape[1]
    first = torch.cat([networks.first[0][index, : a + measure.classes], networks.first[1][index, :b]])
    modules: list[nn.Module] = []
    for layer, weight in enumerate([first, *(linear[index] for linear in networks.linear)]):
        modules += [
            nn.Linear(len(weight), hidden, bias=False),
            nn.BatchNorm1d(hidden, track_running_stats=False),
            nn.ReLU(),
        ]
        modules[-3].weight = nn.Parameter(weight.detach().T)
        modules[-2].weight = nn.Parameter(networks.scale[layer][index, 0].detach())
        modules[-2].bias = nn.Parameter(networks.shift[layer][index, 0].detach())
    modules.append(nn.Linear(hidden, 1))
    modules[-1].weight = nn.Parameter(networks.last[index].detach().T)
    modules[-1].bias = nn.Parameter(networks.bias[index, 0].detach())
    return nn.Sequential(*modules)


def plain_bound(critic, a, b, weight=None):
    """Donsker-Varadhan over all pairs of different samples, pair after pair."""
    n = len(a)
    weight = torch.ones(n) if weight is None else weight
    rows = [(i, i) for i in range(n)] + [(i, j) for i in range(n) for j in range(n) if i != j]
    every = critic(torch.stack([torch.cat([a[i], b[j]]) for i, j in rows]))[:, 0]
    mass = torch.stack([weight[i] * (weight[j] if i != j else 1) for i, j in rows])
    joint = (mass[:n] * every[:n]).sum() / mass[:n].sum()
    return joint - ((mass[n:] * every[n:].exp()).sum() / mass[n:].sum()).log()


def shaken(measure):
    """Parameters away from their start, so that BatchNorm's count too."""
    gen = generator(7)
    for parameter in measure.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=gen) * (parameter.data != 0)
    return measure


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_batched_critics_equal_one_after_another(layers, weighted):
    dims = [(2, 3), (1, 1), (4, 2)]
    torch.manual_seed(0)
    measure = shaken(MutualInformation(dims, negatives="all", hidden=7, layers=layers))
    pairs = [(a.requires_grad_(), b.requires_grad_()) for a, b in features(dims, n=9)]
    weight = torch.rand(9, generator=generator(3)) + 0.2 if weighted else None
    values = measure(pairs, weight=weight)
    critics = [plain_critic(measure, index) for index in range(3)]
    expected = torch.stack([plain_bound(c, a, b, weight) for c, (a, b) in zip(critics, pairs, strict=True)])
    assert torch.allclose(values, expected, atol=1e-5)

    inputs = [x for pair in pairs for x in pair]
    coefficients = torch.tensor([1.0, -2.0, 0.5])
    found = torch.autograd.grad((coefficients * values).sum(), inputs)
    wanted = torch.autograd.grad((coefficients * expected).sum(), inputs, retain_graph=True)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(found, wanted, strict=True))

    measure.critic_loss(pairs, weight=weight).backward()
    expected.sum().neg().backward()
    for index, critic in enumerate(critics):
        assert torch.allclose(measure.critics.last.grad[index].T, critic[-1].weight.grad, atol=1e-5)
        assert torch.allclose(measure.critics.scale[0].grad[index, 0], critic[1].weight.grad, atol=1e-5)
        a, b = dims[index]
        assert torch.allclose(measure.critics.first[0].grad[index, :a].T, critic[0].weight.grad[:, :a], atol=1e-5)
        assert torch.allclose(measure.critics.first[1].grad[index, :b].T, critic[0].weight.grad[:, a:], atol=1e-5)
    assert measure.critics.first[0].grad[1, 1:].abs().max() == 0  # padding


def test_club_is_a_gaussian_likelihood():
    dims = [(2, 3), (1, 1)]
    torch.manual_seed(0)
    measure = shaken(CLUB(dims, negatives="all", hidden=7, layers=2))
    pairs = features(dims, n=9)
    values, loss = measure(pairs), measure.critic_loss(pairs)
    total = 0.0
    for index, (a, b) in enumerate(pairs):
        networks, x = measure.networks, a @ measure.networks.first[0][index, : a.shape[1]]
        for layer in range(2):
            x = x if layer == 0 else x @ networks.linear[0][index]
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
            x = (x * networks.scale[layer][index] + networks.shift[layer][index]).relu()
        mean, log_variance = (x @ networks.last[index] + networks.bias[index]).chunk(2, 1)
        d = b.shape[1]
        normal = torch.distributions.Normal(mean[:, :d], (log_variance[:, :d] / 2).exp())
        likelihood = torch.stack([normal.log_prob(b[j]).sum(1) for j in range(9)], 1)
        total -= likelihood.diagonal().mean()
        off = likelihood[~torch.eye(9, dtype=torch.bool)].mean()
        assert values[index].item() == pytest.approx((likelihood.diagonal().mean() - off).item(), abs=1e-4)
    assert loss.item() == pytest.approx(total.item(), abs=1e-4)


@pytest.mark.parametrize(
    "estimator", [name for name in LOWER if name != "infonce"]
)  # its value depends on their number
def test_few_negatives_agree_with_all_pairs(estimator):
    dims, n = [(2, 2)], 64
    pairs = [tuple(x.requires_grad_() for x in correlated(1.0, n, generator(1)))]
    torch.manual_seed(0)
    few = shaken(MutualInformation(dims, estimator, negatives=n // 2, hidden=16))
    every = MutualInformation(dims, estimator, negatives="all", hidden=16)
    every.load_state_dict(few.state_dict())

    def value_and_gradient(measure):
        value = measure(pairs)[0]
        return value.detach(), torch.cat(torch.autograd.grad(value, pairs[0]), 1)

    target, gradient = value_and_gradient(every)
    draws = []
    for _ in range(100):
        draws.append(value_and_gradient(few))
        few.draws.advance()
    mean = torch.stack([g for _, g in draws]).mean(0)
    assert torch.stack([v for v, _ in draws]).mean().item() == pytest.approx(target.item(), abs=0.02)
    assert (mean - gradient).norm() < 0.1 * gradient.norm()


def test_moving_average_of_the_denominator():
    dims, (first, second) = [(2, 2)], (features([(2, 2)], seed=1), features([(2, 2)], seed=2))
    torch.manual_seed(0)
    plain = shaken(MutualInformation(dims, negatives="all", hidden=7))
    corrected = MutualInformation(dims, negatives="all", hidden=7, ema=0.1)
    corrected.critics.load_state_dict(plain.critics.state_dict())
    corrected.critic_loss(first)
    assert torch.allclose(corrected(second), plain(second))  # the value is that of the batch
    loss = corrected.critic_loss(second)
    loss.backward()

    critic = plain_critic(plain, 0)
    means = []
    for ((a, b),) in (first, second):
        every = critic(torch.stack([torch.cat([a[i], b[(i + s) % 12]]) for s in range(12) for i in range(12)]))[:, 0]
        means.append(every[12:].exp().mean())
    average = 0.9 * means[1].detach() + 0.1 * means[0].detach()
    (means[1] / average - every[:12].mean()).backward()
    assert torch.allclose(corrected.critics.last.grad[0].T, critic[-1].weight.grad, atol=1e-6)
    assert not torch.allclose(corrected.critics.last.grad, torch.zeros(()))
    assert corrected.denominator.exp().item() == pytest.approx(average.item(), rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ trained
def ksg(a: torch.Tensor, b: torch.Tensor, k: int = 3) -> float:
    """Kraskov, Stoegbauer and Grassberger 2004, first estimator."""
    x, y = (torch.cdist(z, z, p=math.inf).fill_diagonal_(math.inf) for z in (a.double(), b.double()))
    radius = torch.maximum(x, y).kthvalue(k).values[:, None]
    near = [torch.digamma((z < radius).sum(1).double() + 1).mean() for z in (x, y)]
    return float(torch.digamma(torch.tensor(float(k))) + torch.digamma(torch.tensor(float(len(a)))) - sum(near))


INFORMATION = [0.0, 0.368, 1.0]


def train(measure, draw, steps=150):
    optimizer = torch.optim.Adam(measure.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    gen = generator()
    for _ in range(steps):
        optimizer.zero_grad()
        pairs, given = draw(gen)
        measure.critic_loss(pairs, given).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return torch.stack([measure(*draw(gen)) for _ in range(50)]).mean(0)


@pytest.fixture(scope="module")
def nearest_neighbours() -> list[float]:
    """The mutual information by KSG."""
    return [ksg(*correlated(information, 2000, generator())) for information in INFORMATION]


@pytest.mark.parametrize("estimator", LOWER)
def test_trained_critics(estimator, nearest_neighbours):
    torch.manual_seed(0)
    negatives = 24 if estimator == "infonce" else 8  # 8 can show at most .8 of 1 nat
    measure = MutualInformation([(2, 2)] * 3, estimator, negatives, hidden=32, layers=2)
    found = train(measure, lambda gen: ([correlated(x, 128, gen) for x in INFORMATION], None))
    for value, information, reference in zip(found.tolist(), INFORMATION, nearest_neighbours, strict=True):
        assert value == pytest.approx(information, abs=max(0.03, 0.15 * information))
        assert value == pytest.approx(reference, abs=0.15)


def test_trained_club_is_above():
    torch.manual_seed(0)
    found = train(
        CLUB([(2, 2)] * 3, hidden=32, layers=1), lambda gen: ([correlated(x, 128, gen) for x in INFORMATION], None)
    )
    closed = [2 * (1 - math.exp(-x)) / math.exp(-x) for x in INFORMATION]
    assert found.tolist() == pytest.approx(closed, rel=0.12, abs=0.05)


def test_given_the_class_what_comes_from_it_is_no_dependence():
    def draw(gen, conditional=True):
        y = torch.rand(128, generator=gen).lt(0.7).long()
        noise = torch.randn(2, 128, 2, generator=gen)
        a, b = correlated(0.368, 128, gen)
        sides = 2 * y[:, None]  # far apart; the correlation within a class turns with it
        return [
            (noise[0] + sides, noise[1] + sides),
            (a + sides, b * (2 * y[:, None] - 1) + sides),
        ], y if conditional else None

    torch.manual_seed(0)
    alone, within = train(MutualInformation([(2, 2)] * 2, hidden=32, layers=2, classes=2), draw, steps=250).tolist()
    assert alone == pytest.approx(0, abs=0.03)
    assert within == pytest.approx(0.368, abs=0.05)
    plain = train(MutualInformation([(2, 2)] * 2, hidden=32, layers=2), lambda gen: draw(gen, False), steps=60)
    assert plain[0] > 0.2


def test_settings_out_of_range():
    for options, words in [
        ({"estimator": "mine"}, "unknown estimator 'mine'.*'dv'"),
        ({"negatives": 0}, "negatives is 0"),
        ({"negatives": "some"}, "negatives is 'some'"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"estimator": "js", "ema": 0.1}, "ema is 0.1 for 'js'"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"hidden": 0}, "hidden is 0"),
        ({"classes": -1}, "classes is -1"),
    ]:
        with pytest.raises(ValueError, match=words):
            MutualInformation([(2, 2)], **options)
    with pytest.raises(ValueError, match="has class 2; classes is 2"):
        MutualInformation([(2, 2)], classes=2, hidden=4)(features([(2, 2)]), given=torch.arange(12) % 3)
