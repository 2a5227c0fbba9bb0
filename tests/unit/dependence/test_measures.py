"""What holds for every measure, and those without critics against loops and closed forms."""

import itertools
import math

import pytest
import torch

from medprism.dependence import HSIC, MEASURES, MMD, DistanceCorrelation, build_measure
from medprism.dependence.kernels import distance_correlation, gaussian_kernel, hsic, joint_product_mmd

SMALL = {name: {} if name in ("dcor", "hsic", "mmd") else {"hidden": 8, "layers": 2} for name in MEASURES}
VARIANTS = [*SMALL.items(), ("dcor", {"bias_corrected": True})]
DIMS = [(2, 2), (2, 3)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(name, options, dims=DIMS):
    torch.manual_seed(0)
    return build_measure(name, dims, **options)


def features(n=20, dims=DIMS, seed=0):
    gen = generator(seed)
    return [
        (torch.randn(n, a, generator=gen).requires_grad_(), torch.randn(n, b, generator=gen).requires_grad_())
        for a, b in dims
    ]


def normal(rho: float, n: int, d: int = 1, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    a, noise = torch.randn(2, n, d, generator=generator(seed))
    return a, rho * a + math.sqrt(1 - rho**2) * noise


# ---------------------------------------------------------------------------------------------------- every measure
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_gradients_go_where_they_should(name, options):
    measure, pairs = build(name, options), features()
    values = measure(pairs)
    assert values.shape == (2,) and values.isfinite().all()
    values.sum().backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for pair in pairs for x in pair)
    assert all(parameter.grad is None for parameter in measure.parameters())

    pairs = features()
    loss = measure.critic_loss(pairs)
    assert loss.shape == ()
    if not measure.trained:
        assert loss == 0 and not list(measure.parameters())
        return
    loss.backward()
    assert all(x.grad is None for pair in pairs for x in pair)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in measure.parameters())
    measure.critic_loss(pairs, detach=False).backward()
    assert all(x.grad.abs().sum() > 0 for pair in pairs for x in pair)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_same_seed_same_numbers(name, options):
    first, second = build(name, options), build(name, options)
    for step in range(3):
        pairs = features(seed=step)
        assert torch.equal(first(pairs), second(pairs))
        assert torch.equal(first.critic_loss(pairs), second.critic_loss(pairs))
    # A resumed run goes on with the same sequence.
    resumed = build(name, options)
    resumed.load_state_dict(first.state_dict())
    assert torch.equal(first(pairs), resumed(pairs))


@pytest.mark.parametrize("name", ["dv", "club", "mmd"])
def test_negatives_are_those_of_the_step(name):
    measure, pairs = build(name, SMALL[name]), features()
    if measure.trained:
        assert torch.equal(measure(pairs), measure(pairs))
        before = measure(pairs)
        measure.critic_loss(pairs)
    else:
        before = measure(pairs)
    assert not torch.equal(before, measure(pairs))
    measure.eval()
    before = measure(pairs)
    measure.critic_loss(pairs)
    assert torch.equal(before, measure(pairs))


@pytest.mark.parametrize("name", ["dv", "infonce", "club", "mmd"])
def test_another_seed_draws_others(name):
    pairs = features()
    assert not torch.equal(build(name, SMALL[name])(pairs), build(name, {**SMALL[name], "seed": 1})(pairs))


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_one_class_is_the_plain_measure(name, options):
    measure, pairs = build(name, options).eval(), features()
    plain = measure(pairs)
    assert torch.allclose(measure(pairs, given=torch.full((20,), 3)), plain)
    assert torch.allclose(measure(pairs, weight=torch.full((20,), 1.7)), plain, atol=1e-5)
    assert torch.allclose(measure(pairs, known=torch.ones(2, 20, dtype=torch.bool)), plain, atol=0.3)  # other draws
    assert not torch.allclose(measure(pairs, given=torch.arange(20) % 2), plain)


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_unknown_samples_do_not_count(name, options):
    if name not in ("dcor", "hsic", "mmd"):
        options = {**options, "negatives": "all"}
    measure, pairs = build(name, options).eval(), features()
    known = torch.ones(2, 20, dtype=torch.bool)
    known[0, :6], known[1, 15:] = False, False
    values = measure(pairs, known=known)
    alone = torch.stack([measure([(a[own], b[own]) for a, b in pairs])[p] for p, own in enumerate(known)])
    # With 14 and 15 samples that count, all pairs are those of the known samples alone; MMD draws as it would for them.
    assert torch.allclose(values, alone, atol=1e-5)
    assert torch.allclose(measure(pairs, given=torch.arange(20).ge(6).long() - 1)[0], values[0], atol=1e-5)

    known[0] = False
    known[0, 0] = True
    values = measure(pairs, known=known)
    values.sum().backward()
    assert values[0] == 0 and torch.isclose(values[1], alone[1], atol=1e-5)
    assert pairs[0][0].grad.abs().sum() == 0 and pairs[1][0].grad.isfinite().all()
    if measure.trained:
        measure.critic_loss(pairs, known=known).backward()
        assert all(parameter.grad[0].abs().sum() == 0 for parameter in measure.parameters())
        assert all(parameter.grad.isfinite().all() for parameter in measure.parameters())


@pytest.mark.parametrize("rows", ["constant", "one constant", "duplicate", "two values"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_degenerate_rows_stay_finite(name, options, rows):
    pairs = features()
    if rows == "constant":
        pairs = [(torch.full_like(a, 3.0), torch.zeros_like(b)) for a, b in pairs]
    elif rows == "one constant":
        pairs = [(a, torch.zeros_like(b)) for a, b in pairs]
    elif rows == "duplicate":
        pairs = [(a[torch.arange(20) // 5], b[torch.arange(20) // 5]) for a, b in pairs]
    else:
        pairs = [((a > 0).float(), (b > 0).float()) for a, b in pairs]
    pairs = [(a.detach().requires_grad_(), b.detach().requires_grad_()) for a, b in pairs]
    measure = build(name, options)
    values = measure(pairs)
    (values.sum() + measure.critic_loss(pairs)).backward()
    assert values.isfinite().all()
    assert all(x.grad.isfinite().all() for pair in pairs for x in pair)
    if "constant" in rows and not measure.trained:
        assert values.abs().max() < 2e-6


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_smallest_batch(name, options):
    measure = build(name, options)
    minimum = measure.minimum
    assert measure(features(minimum)).isfinite().all()
    with pytest.raises(ValueError, match=f"has {minimum - 1} samples; .* needs at least {minimum}"):
        measure(features(minimum - 1))
    with pytest.raises(ValueError, match=f"no class of `given` has more than 1 of the 9 .* needs at least {minimum}"):
        measure(features(9), given=torch.arange(9))
    with pytest.raises(ValueError, match="no class of `given` has more than 0 of the 9"):
        measure(features(9), given=torch.full((9,), -1))


def test_wrong_shapes_are_refused():
    measure = build("dcor", {})
    (a, b), second = features()
    for pairs in ([(a, b)], [(a, b), (b, a)], [(a[:, 0], b), second]):
        with pytest.raises(ValueError, match=r"built for pairs of widths \[\(2, 2\), \(2, 3\)\]"):
            measure(pairs)
    with pytest.raises(ValueError, match=r"\[\(20, 19\), \(20, 20\)\] samples"):
        measure([(a, b[1:]), second])
    with pytest.raises(ValueError, match=r"`known` has shape \(20, 2\); expected \(2, 20\)"):
        measure([(a, b), second], known=torch.ones(20, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`weight` has shape \(1,\); expected \(20,\)"):
        measure([(a, b), second], weight=torch.ones(1))
    with pytest.raises(ValueError, match="negative"):
        measure([(a, b), second], weight=-torch.ones(20))
    with pytest.raises(ValueError, match="at least one pair"):
        build("dcor", {}, dims=[])


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"unknown dependence measure 'mine'; choose one of .*'dv'.*'mmd'"):
        build_measure("mine", DIMS)
    with pytest.raises(ValueError, match=r"'dcor' has no options .*'hidden'.*: bias_corrected: 'bool' = False"):
        build_measure("dcor", DIMS, hidden=3)
    with pytest.raises(ValueError, match=r"'hsic' has no options .*none"):
        build_measure("hsic", DIMS, hidden=3)
    with pytest.raises(ValueError, match=r"no options .*estimator"):
        build_measure("dv", DIMS, estimator="js")


@pytest.mark.parametrize("name", ["dv", "dcor"])
def test_half_precision_outside_is_full_inside(name):
    measure, pairs = build(name, SMALL[name]), features()
    plain = measure(pairs)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(measure(pairs), plain)
        assert measure([(a.bfloat16(), b.bfloat16()) for a, b in pairs]).dtype == torch.float32


# ------------------------------------------------------------------------------------------------- without critics
@pytest.mark.parametrize(("rho", "closed"), [(0.3, 0.269), (0.5, 0.454), (0.9, 0.868)])
def test_distance_correlation_of_the_bivariate_normal(rho, closed):
    value = torch.stack([distance_correlation(*normal(rho, 900, seed=seed)) for seed in range(8)]).mean()
    assert value.item() == pytest.approx(closed, abs=0.02)
    corrected = [distance_correlation(*normal(rho, 300, seed=seed), bias_corrected=True) for seed in range(24)]
    assert torch.stack(corrected).mean().item() == pytest.approx(closed**2, abs=0.02)


def test_independent_features():
    plain, corrected, independence, discrepancy = [], [], [], []
    for seed in range(60):
        a, b = normal(0.0, 50, seed=seed)
        plain.append(distance_correlation(a, b))
        corrected.append(distance_correlation(a, b, bias_corrected=True))
        independence.append(hsic(a, b))
        discrepancy.append(joint_product_mmd(a, b, torch.arange(50).roll(1)))
    assert 0.15 < torch.stack(plain).mean() < 0.4  # the bias that the corrected form takes away
    assert torch.stack(corrected).mean().abs() < 0.02
    assert min(corrected) < 0
    a, b = normal(0.8, 50)
    assert torch.stack(independence).mean() < 0.2 * hsic(a, b)
    assert torch.stack(discrepancy).mean() < 0.6 * joint_product_mmd(a, b, torch.arange(50).roll(1))


@pytest.mark.parametrize("d", [1, 3])
def test_agreement_with_the_dcor_package(d):
    dcor = pytest.importorskip("dcor", reason="compares with the dcor package: pip install dcor")
    plain = {"method": "naive", "compile_mode": dcor.CompileMode.NO_COMPILE}
    for rho, n in itertools.product([0.0, 0.6], [5, 120]):
        a, b = normal(rho, n, d)
        theirs = dcor.distance_correlation(a.double().numpy(), b.double().numpy(), **plain)
        assert distance_correlation(a, b).item() == pytest.approx(float(theirs), abs=1e-4)
        theirs = dcor.u_distance_correlation_sqr(a.double().numpy(), b.double().numpy(), **plain)
        assert distance_correlation(a, b, bias_corrected=True).item() == pytest.approx(float(theirs), abs=1e-4)


def test_bias_corrected_form_is_a_mean_over_different_samples():
    a, b = normal(0.7, 6, 2)
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 0.7])

    def covariance(x, y):
        def mean(term, length):
            chosen = list(itertools.permutations(range(6), length))
            mass = torch.stack([weight[list(c)].prod() for c in chosen])
            return (mass * torch.stack([term(*c) for c in chosen])).sum() / mass.sum()

        both = mean(lambda i, j: x[i, j] * y[i, j], 2) + mean(lambda i, j, k, m: x[i, j] * y[k, m], 4)
        return both - 2 * mean(lambda i, j, k: x[i, j] * y[i, k], 3)

    x, y = torch.cdist(a, a), torch.cdist(b, b)
    expected = covariance(x, y) / (covariance(x, x) * covariance(y, y)).sqrt()
    assert distance_correlation(a, b, weight, bias_corrected=True).item() == pytest.approx(expected.item(), abs=1e-4)


def test_hsic_is_the_trace():
    a, b = normal(0.7, 15, 2)

    def kernel(x):
        apart = [math.dist(p, q) for p, q in itertools.permutations(x.tolist(), 2)]
        bandwidth = sorted(apart)[(len(apart) - 1) // 2]
        return torch.tensor(
            [[math.exp(-(math.dist(p, q) ** 2) / (2 * bandwidth**2)) for q in x.tolist()] for p in x.tolist()]
        )

    centring = torch.eye(15) - 1 / 15
    expected = torch.trace(kernel(a) @ centring @ kernel(b) @ centring) / 15**2
    assert hsic(a, b).item() == pytest.approx(expected.item(), rel=1e-3)


def test_mmd_is_a_difference_of_means():
    a, b = normal(0.7, 8, 2)
    partner = torch.tensor([3, 0, 1, 7, 2, 4, 5, 6])
    weight = torch.tensor([1.0, 2, 0, 1, 3, 1, 1, 2])
    k, m = gaussian_kernel(a), gaussian_kernel(b)
    joint = [(weight[i], i, i) for i in range(8)]
    product = [(weight[i] * weight[partner[i]], i, partner[i]) for i in range(8)]

    def mean(left, right):
        terms = [(u * v, u * v * k[i, x] * m[j, y]) for (u, i, j), (v, x, y) in itertools.product(left, right)]
        return sum(t for _, t in terms) / sum(w for w, _ in terms)

    expected = mean(joint, joint) + mean(product, product) - 2 * mean(joint, product)
    assert joint_product_mmd(a, b, partner, weight).item() == pytest.approx(expected.item(), abs=1e-6)
    assert joint_product_mmd(a, a, partner) > 0.02  # equal blocks are not independent


@pytest.mark.parametrize("of", [distance_correlation, hsic])
def test_weights_are_repeats(of):
    a, b = normal(0.5, 6, 2)
    times = torch.tensor([1, 2, 1, 3, 1, 1])
    # HSIC's bandwidth is not weighted; as the repeats have distance 0 only to themselves, take it with one distance.
    if of is hsic:
        a, b = torch.eye(6), torch.eye(6)[:, :3] * math.sqrt(2)
        b[3:] = b[:3]
    assert of(a, b, times.float()).item() == pytest.approx(
        of(a.repeat_interleave(times, 0), b.repeat_interleave(times, 0)).item(), abs=1e-5
    )


@pytest.mark.parametrize("name", ["dcor", "hsic", "mmd"])
def test_invariance_under_rotation_shift_and_scale(name):
    a, b = normal(0.6, 40, 2)
    rotation = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    measure = build(name, {}, [(2, 2)]).eval()
    assert measure([(1e-3 * a @ rotation + 5, 70 * b - 3)]).item() == pytest.approx(measure([(a, b)]).item(), abs=1e-3)


@pytest.mark.parametrize("measure", [DistanceCorrelation([(1, 1)], bias_corrected=True), HSIC([(1, 1)]), MMD([(1, 1)])])
def test_dependence_from_the_class_or_undone_by_weights(measure):
    gen = generator()
    y = torch.arange(400) % 2
    z = torch.where(torch.rand(400, generator=gen) < 0.9, y, 1 - y)
    a, b = y[:, None] + 0.3 * torch.randn(400, 1, generator=gen), z[:, None] + 0.3 * torch.randn(400, 1, generator=gen)
    cells = torch.zeros(2, 2).index_put_((y, z), torch.ones(400), accumulate=True)
    weight = 400 * (cells.sum(1)[y] / 400) * (cells.sum(0)[z] / 400) / cells[y, z]
    plain = measure([(a, b)])
    assert measure([(a, b)], given=y) < 0.15 * plain
    assert measure([(a, b)], weight=weight) < 0.15 * plain
