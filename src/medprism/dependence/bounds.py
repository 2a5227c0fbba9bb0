"""Bounds on mutual information as pure functions of a critic's scores.

`joint` `(..., n)` holds the scores T of pairs drawn together, `product` `(..., n, K)` those of a sample beside K
others. Weights of the same shape, 0 or more, need not be normalised; without them every score counts alike. Values are
in nat.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Estimator = Literal["dv", "nwj", "infonce", "smile", "js"]
Bound = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]


def donsker_varadhan(
    joint: Tensor, product: Tensor, joint_weight: Tensor | None = None, product_weight: Tensor | None = None
) -> Tensor:
    """`E_joint[T] - log E_product[exp T]`, over all product pairs at once (Belghazi et al., MINE, ICML 2018).

    A lower bound of the mutual information in expectation; tight for T = log p(a, b) / p(a) p(b) plus any constant.
    It may be negative, and is not clamped.
    """
    return _mean(joint, joint_weight) - log_mean_exp(product, product_weight)


def nguyen_wainwright_jordan(
    joint: Tensor, product: Tensor, joint_weight: Tensor | None = None, product_weight: Tensor | None = None
) -> Tensor:
    """`E_joint[T] - E_product[exp(T - 1)]` (Nguyen et al., 2010), also called MINE-f.

    A lower bound; tight for T = 1 + log p(a, b) / p(a) p(b).
    """
    return _mean(joint, joint_weight) - log_mean_exp(product - 1, product_weight).exp()


def info_nce(
    joint: Tensor, product: Tensor, joint_weight: Tensor | None = None, product_weight: Tensor | None = None
) -> Tensor:
    """`E[log exp(T_ii) / mean(exp T_ii, exp T_i1, .., exp T_iK)]` (van den Oord et al., 2018).

    A lower bound, never above log(K + 1).
    """
    weight = torch.ones_like(product) if product_weight is None else product_weight
    count = (weight > 0).sum(-1)
    share = weight / weight.sum(-1, keepdim=True).clamp(min=1e-12) * count[..., None]
    among = torch.cat([joint[..., None], product + share.log()], -1).logsumexp(-1)
    return _mean(joint - among + (count + 1).log(), joint_weight)


def smile(
    joint: Tensor,
    product: Tensor,
    joint_weight: Tensor | None = None,
    product_weight: Tensor | None = None,
    tau: float = 5.0,
) -> Tensor:
    """`E_joint[T] - log E_product[exp clip(T, -tau, tau)]` (Song and Ermon, ICLR 2020).

    Less variance than Donsker-Varadhan; clipping makes it no bound (it reads high where scores exceed tau), so that the
    critic is trained by `jensen_shannon` instead.
    """
    return _mean(joint, joint_weight) - log_mean_exp(product.clamp(-tau, tau), product_weight)


def jensen_shannon(
    joint: Tensor, product: Tensor, joint_weight: Tensor | None = None, product_weight: Tensor | None = None
) -> Tensor:
    """`-E_joint[softplus(-T)] - E_product[softplus(T)]` (Hjelm et al., Deep InfoMax, ICLR 2019).

    No estimate of mutual information: an objective whose best T is log p(a, b) / p(a) p(b), with a tame gradient. The
    mutual information is read off as `donsker_varadhan` of that critic.
    """
    return -_mean(F.softplus(-joint), joint_weight) - _mean(F.softplus(product), product_weight, 2)


def contrastive_log_ratio(
    joint: Tensor, product: Tensor, joint_weight: Tensor | None = None, product_weight: Tensor | None = None
) -> Tensor:
    """`E_joint[log q(b | a)] - E_product[log q(b | a)]`: CLUB (Cheng et al., ICML 2020).

    An upper bound when q is the true conditional; for Gaussians it is then d rho^2 / (1 - rho^2), well above the mutual
    information -(d / 2) log(1 - rho^2).

    Args:
        joint: `(..., n)` log likelihoods in nat.
        product: `(..., n, K)` log likelihoods of other samples' b.
        joint_weight: `(..., n)`.
        product_weight: `(..., n, K)`.
    """
    return _mean(joint, joint_weight) - _mean(product, product_weight, 2)


BOUNDS: Final[dict[Estimator, tuple[Bound, Bound]]] = {
    "dv": (donsker_varadhan, donsker_varadhan),
    "nwj": (nguyen_wainwright_jordan, nguyen_wainwright_jordan),
    "infonce": (info_nce, info_nce),
    "smile": (smile, jensen_shannon),
    "js": (donsker_varadhan, jensen_shannon),
}
"""Name of an estimator to its value, and to what its critic maximises."""


def log_mean_exp(product: Tensor, weight: Tensor | None = None) -> Tensor:
    """`log E[exp T]` over the last two dimensions, without overflow.

    Args:
        product: `(..., n, K)`.
        weight: `(..., n, K)`.
    """
    if weight is None:
        return product.flatten(-2).logsumexp(-1) - math.log(product.shape[-1] * product.shape[-2])
    return (product + weight.log()).flatten(-2).logsumexp(-1) - weight.sum((-2, -1)).log()


def _mean(x: Tensor, weight: Tensor | None, dimensions: int = 1) -> Tensor:
    over = tuple(range(-dimensions, 0))
    return x.mean(over) if weight is None else (weight * x).sum(over) / weight.sum(over)
