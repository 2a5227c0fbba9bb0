import pytest
import torch

from medprism.losses.scaling import LossScale, gradnorm_weights, norm_ratio


def losses(first_weight=2.0, second_weight=8.0, parameter=None):
    x = torch.tensor([3.0, 4.0], requires_grad=True) if parameter is None else parameter
    return first_weight * x.norm(), second_weight * x.norm(), x  # gradient norms are the weights


def test_norm_ratio_scales_down_and_never_up():
    assert norm_ratio(torch.tensor(1.0), torch.tensor(4.0)) == 0.25
    assert norm_ratio(torch.tensor(4.0), torch.tensor(1.0)) == 1
    assert norm_ratio(torch.tensor(0.0), torch.tensor(0.0)) == 0


def test_without_memory_it_is_the_rule_of_the_precursor():
    scale = LossScale("norms", momentum=0.0)
    for a, b in ((2.0, 8.0), (8.0, 2.0), (1.0, 1.0), (0.1, 3.0)):
        first, second, x = losses(a, b)
        assert scale(first, second, [x], local=False).item() == pytest.approx(min(a, b) / b, rel=1e-6)


def test_moving_average_of_the_norms():
    scale, first_mean, second_mean = LossScale("norms", momentum=0.9), None, None
    for a, b in ((2.0, 8.0), (3.0, 5.0), (1.0, 9.0)):
        first, second, x = losses(a, b)
        first_mean = a if first_mean is None else 0.9 * first_mean + 0.1 * a
        second_mean = b if second_mean is None else 0.9 * second_mean + 0.1 * b
        assert scale(first, second, [x], local=True).item() == pytest.approx(first_mean / second_mean, rel=1e-5)


def test_no_gradient_flows_through_the_scale_and_the_graph_survives():
    first, second, x = losses()
    scale = LossScale("norms")(first, second, [x], local=True)
    assert not scale.requires_grad
    (first + scale * second).backward()
    expected = 2 + 0.25 * 8
    assert x.grad.norm().item() == pytest.approx(expected, rel=1e-5)


def test_validation_keeps_the_last_scale():
    scale = LossScale("norms", momentum=0.0)
    first, second, x = losses(1.0, 4.0)
    scale(first, second, [x], local=True)
    with torch.no_grad():
        assert scale(torch.tensor(1.0), torch.tensor(1.0), [x], local=True) == 0.25
    copy = LossScale("norms")
    copy.load_state_dict(scale.state_dict())
    assert copy.scale == 0.25


def test_off_is_one_and_costs_no_gradient():
    first, second, x = losses()
    assert LossScale("off")(first, second, [x], local=True) == 1


def test_not_finite_norms_leave_no_trace():
    scale = LossScale("norms")
    x = torch.tensor([0.0], requires_grad=True)
    scale((x / 0).sum(), x.sum(), [x], local=True)
    assert (scale.norms < 0).all()


def test_gradnorm_step_is_a_gradient_step_on_its_loss():
    weights, norms, rates = torch.tensor([1.2, 0.8]), torch.tensor([2.0, 1.0]), torch.tensor([0.5, 1.0])
    free = weights.clone().requires_grad_()
    scaled = free * norms
    goal = (scaled.mean() * (rates / rates.mean()) ** 1.5).detach()
    (scaled - goal).abs().sum().backward()
    moved = weights - 0.025 * free.grad / norms.mean()
    assert torch.allclose(gradnorm_weights(weights, norms, rates), 2 * moved / moved.sum())


def test_gradnorm_equalises_norms_of_losses_that_fall_alike():
    weights, norms = torch.ones(2), torch.tensor([1.0, 4.0])
    for _ in range(400):
        weights = gradnorm_weights(weights, norms, torch.ones(2), step=0.01)
    assert (weights * norms)[0].item() == pytest.approx((weights * norms)[1].item(), rel=0.1)
    assert weights.sum().item() == pytest.approx(2, rel=1e-5)


def test_gradnorm_favours_the_loss_that_has_fallen_less():
    scale = LossScale("gradnorm")
    for step in range(50):
        x = torch.tensor([3.0, 4.0], requires_grad=True)
        first = x.norm() * (1 - step / 60)
        scale(first, x.norm(), [x], local=True, floor=torch.tensor(5.0))
    assert scale.scale > 1


def test_momentum_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="scaling_momentum is 1"):
        LossScale("norms", momentum=1.0)
