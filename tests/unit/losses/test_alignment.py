"""CALT against plain loops, closed values and symmetries."""

import math

import pytest
import torch

from medprism.losses.alignment import alignment_loss


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def sigmoid_loop(scores, mask, classes):
    """The equation, one sample, class and token at a time."""
    known = [i for i, c in enumerate(classes) if c != -1]
    total, C = 0.0, len(mask)
    for c in range(C):
        sides = {+1: [i for i in known if classes[i] == c], -1: [i for i in known if classes[i] != c]}
        sides = {sign: members for sign, members in sides.items() if members}
        for sign, members in sides.items():
            for i in members:
                tokens = [scores[i][c][k] for k in range(len(mask[c])) if mask[c][k]]
                each = sum(softplus(-sign * s) for s in tokens) / len(tokens)
                total += each / len(members) / len(sides) / C
    return total


def softmax_loop(scores, mask, classes):
    known = [i for i, c in enumerate(classes) if c != -1]
    C = len(mask)

    def score(i, c):
        tokens = [scores[i][c][k] for k in range(len(mask[c])) if mask[c][k]]
        return sum(tokens) / len(tokens)

    present = [c for c in range(C) if any(classes[i] == c for i in known)]
    over_classes = over_samples = 0.0
    for c in present:
        members = [i for i in known if classes[i] == c]
        for i in members:
            norm = math.log(sum(math.exp(score(i, k)) for k in range(C)))
            over_classes += (norm - score(i, c)) / len(members) / len(present)
        norm = math.log(sum(math.exp(score(i, c)) for i in known))
        over_samples += sum(norm - score(i, c) for i in members) / len(members) / len(present)
        over_samples -= math.log(len(members)) / len(present)
    return (over_classes + over_samples) / 2


def example(B, C, L, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(B, C, L, generator=generator, dtype=torch.float64)
    mask = torch.rand(C, L, generator=generator) < 0.7
    mask[:, 0] = True
    return scores, mask, torch.randint(-1, C, (B,), generator=generator)


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
@pytest.mark.parametrize(("B", "C", "L"), [(1, 2, 1), (7, 2, 1), (16, 3, 4), (5, 20, 2)])
def test_equals_a_plain_loop_forward_and_backward(kind, B, C, L):
    scores, mask, classes = example(B, C, L, seed=B + C)
    loop = {"sigmoid": sigmoid_loop, "softmax": softmax_loop}[kind]
    scores = scores.float().requires_grad_()
    loss = alignment_loss(scores, mask, classes, kind)
    assert loss.item() == pytest.approx(loop(scores.tolist(), mask.tolist(), classes.tolist()), abs=1e-5)
    (gradient,) = torch.autograd.grad(loss, scores)
    step = 1e-3
    plain = scores.detach().double()
    for index in [(0, 0, 0), (B - 1, C - 1, L - 1), (B // 2, 1, 0)]:
        up, down = plain.clone(), plain.clone()
        up[index] += step
        down[index] -= step
        rise = [loop(moved.tolist(), mask.tolist(), classes.tolist()) for moved in (down, up)]
        assert float(gradient[index]) == pytest.approx((rise[1] - rise[0]) / (2 * step), abs=2e-5)


@pytest.mark.parametrize("classes", [[0, 1, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, -1, 2, -1]])
def test_chance_is_ln_2_whatever_the_balance(classes):
    loss = alignment_loss(torch.zeros(4, 3, 2), torch.ones(3, 2, dtype=torch.bool), torch.tensor(classes))
    assert float(loss) == pytest.approx(math.log(2))


def test_no_known_class_gives_zero_with_a_graph():
    scores = torch.randn(4, 2, 1, requires_grad=True)
    for kind in ("sigmoid", "softmax"):
        loss = alignment_loss(scores, torch.ones(2, 1, dtype=torch.bool), torch.full((4,), -1), kind)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(scores.grad, torch.zeros_like(scores))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_right_answers_cost_nothing_and_masked_tokens_do_not_count(kind):
    classes = torch.tensor([0, 1, 1, 0])
    scores = torch.where(torch.nn.functional.one_hot(classes, 2)[:, :, None].bool(), 50.0, -50.0).repeat(1, 1, 2)
    mask = torch.tensor([[True, False], [True, True]])
    assert float(alignment_loss(scores, mask, classes, kind)) == pytest.approx(0, abs=1e-6)
    changed = scores.clone()
    changed[:, 0, 1] = 7.0
    assert torch.equal(alignment_loss(changed, mask, classes, kind), alignment_loss(scores, mask, classes, kind))


@pytest.mark.parametrize("kind", ["sigmoid", "softmax"])
def test_masks_of_samples_equal_the_shared_mask(kind):
    scores, mask, classes = example(8, 2, 3, seed=3)
    shared = alignment_loss(scores, mask, classes, kind)
    assert torch.allclose(alignment_loss(scores, mask.expand(8, -1, -1), classes, kind), shared)


def test_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match="sigmoid or softmax"):
        alignment_loss(torch.zeros(2, 2, 1), torch.ones(2, 1, dtype=torch.bool), torch.tensor([0, 1]), "hinge")
