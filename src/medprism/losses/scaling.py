"""How much of a second loss a first one can bear: weights from gradient norms.

The published name is "dynamic loss scaling, inspired by GradNorm" (Fay et al., MIMM-X, arXiv 2511.22990); its equations
are not public, and those here are a reconstruction. Its precursor's rule, s = min(|g_1|, |g_2|) / |g_2|, is the special
case without memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medprism.distributed import gather_with_grad, mean_over_ranks, world_size

TINY = 1e-12

NOISE = 0.1
"""Nat of mutual information that an estimate from one batch cannot tell from 0."""


def norm_ratio(first: Tensor, second: Tensor) -> Tensor:
    """`clip(|g_1| / |g_2|, 0, 1)`: scales the second gradient down to the first, and never up.

    Args:
        first: scalar norm of the gradient of the loss that leads.
        second: scalar norm of the gradient of the loss that is scaled.
    """
    return (first / (second + TINY)).clamp(0, 1)


def gradnorm_weights(weights: Tensor, norms: Tensor, rates: Tensor, alpha: float = 1.5, step: float = 0.025) -> Tensor:
    """One step of GradNorm (Chen et al., ICML 2018, equation 2) on the weights of K losses.

    `L_grad = sum_k |G_k - sg(mean(G) r_k^alpha)|` with `G_k = w_k |g_k|` and `r_k = rate_k / mean(rate)`; its gradient
    in w_k is `|g_k|` times a sign. The weights stay positive and sum to K.

    Args:
        weights: `(K,)` positive.
        norms: `(K,)` gradient norms of the unweighted losses.
        rates: `(K,)` how much of each loss is left, 1 at the start; small for a loss that has fallen fast.
        alpha: strength with which slow losses are favoured.
        step: length of the step.

    Returns:
        `(K,)` new weights.
    """
    scaled = weights * norms
    relative = rates.clamp(min=0) / rates.clamp(min=0).mean().clamp(min=TINY)
    goal = scaled.mean() * relative**alpha
    # Norms are divided by their mean, so that the length of a step does not depend on the unit of the losses.
    moved = weights - step * torch.sign(scaled - goal) * norms / norms.mean().clamp(min=TINY)
    moved = moved.clamp(min=1e-3)
    return moved * len(weights) / moved.sum()


class LossScale(nn.Module):
    """The weight s of a second loss beside a first one, from the norms of their gradients; no gradient flows through s.

    Args:
        rule: `off` (s = 1), `norms` (`norm_ratio` of moving averages), or `gradnorm` (`gradnorm_weights`; s is the
            second weight over the first).
        momentum: share of the old value in the moving averages of the norms; 0 for none.
        alpha: of `gradnorm`.

    Attributes:
        scale: the weight of the last step.
        norms: moving averages of the norms of both gradients; -1 before the first step.
        weights: those of `gradnorm`.
        start: values of both losses in the first step; -1 before it.

    Raises:
        ValueError: for an unknown rule, or a momentum out of range.
    """

    scale: Tensor
    norms: Tensor
    weights: Tensor
    start: Tensor

    def __init__(
        self, rule: Literal["off", "norms", "gradnorm"] = "norms", momentum: float = 0.9, alpha: float = 1.5
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"scaling_momentum is {momentum}; it must lie in [0, 1)")
        if rule not in ("off", "norms", "gradnorm"):
            raise ValueError(f"scaling is '{rule}'; choose off, norms or gradnorm")
        self.rule, self.momentum, self.alpha = rule, momentum, alpha
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("norms", torch.full((2,), -1.0))
        self.register_buffer("weights", torch.ones(2))
        self.register_buffer("start", torch.full((2,), -1.0))

    def forward(
        self, first: Tensor, second: Tensor, shared: Sequence[Tensor], local: bool, floor: Tensor | None = None
    ) -> Tensor:
        """The weight of the second loss; updated where gradients are on.

        Args:
            first: scalar loss that leads, such as the cross-entropy; equal on all ranks.
            second: scalar loss that is scaled, such as mutual information; equal on all ranks.
            shared: the tensors at which gradients are compared: one activation `(n, d)` of this rank's samples, or
                parameters.
            local: whether `shared` holds samples of this rank (norms are then over the samples of all ranks) rather
                than parameters (norms are then of the mean gradient of all ranks).
            floor: scalar in nat that a second loss in nat is relative to in `gradnorm`, such as the labels' mutual
                information, at least `NOISE`; the loss's own first value when left out.

        Returns:
            Scalar without gradient.
        """
        if self.rule == "off" or not (torch.is_grad_enabled() and first.requires_grad and second.requires_grad):
            return self.scale.clone()
        new = torch.stack([_norm(loss, shared, local) for loss in (first, second)])
        if not new.isfinite().all():
            return self.scale.clone()  # the terms themselves are not finite, and the method says so
        old = self.norms.clone()
        self.norms.copy_(torch.where(old < 0, new, self.momentum * old + (1 - self.momentum) * new))
        if self.rule == "norms":
            self.scale.copy_(norm_ratio(self.norms[0], self.norms[1]))
        else:
            values = torch.stack([first, second]).detach().float()
            self.start.copy_(torch.where(old[:1] < 0, values, self.start))
            whole = self.start[1] if floor is None else floor.clamp(min=NOISE)
            rates = values / torch.stack([self.start[0], whole]).clamp(min=TINY)
            self.weights.copy_(gradnorm_weights(self.weights, self.norms, rates, self.alpha))
            self.scale.copy_(self.weights[1] / self.weights[0])
        return self.scale.clone()


def _norm(loss: Tensor, shared: Sequence[Tensor], local: bool) -> Tensor:
    """Norm of the gradient of a loss that is equal on all ranks, as one process would see it."""
    found = torch.autograd.grad(loss, list(shared), retain_graph=True, allow_unused=True)
    flat = torch.cat([grad.detach().float().flatten() for grad in found if grad is not None] or [loss.new_zeros(1)])
    if local:
        # Gathering sums what reaches a row over the ranks, each of which holds the whole loss.
        return (gather_with_grad(flat.square().sum()[None]).sum() / world_size() ** 2) ** 0.5
    return (mean_over_ranks(flat).square().sum()) ** 0.5
