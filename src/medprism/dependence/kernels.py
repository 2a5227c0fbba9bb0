"""Dependence without critics, from distances or kernels between the samples: pure functions.

Weights are `(n,)`, 0 or more, and need not be normalised; without them every sample counts alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

TINY = 1e-12


def distance_correlation(a: Tensor, b: Tensor, weight: Tensor | None = None, bias_corrected: bool = False) -> Tensor:
    """Distance correlation, `sqrt(mean(A B) / sqrt(mean(A^2) mean(B^2)))` (Szekely et al., Annals of Statistics 2007).

    A and B are the double-centred matrices of Euclidean distances. In [0, 1], and 0 in the limit only for independent
    features; in small batches well above 0. The bias-corrected form (Szekely and Rizzo 2013, 2014) has expectation near
    0 for independent features, may be negative, and is on the scale of the square: no root is taken.

    Args:
        a: `(n, d_a)` features.
        b: `(n, d_b)` features.
        weight: `(n,)`.
        bias_corrected: take the U-statistic; needs 4 samples with weight.

    Returns:
        Scalar. 0, up to 1e-6, when a feature is constant.
    """
    w = _normalised(a, weight)
    x, y = distances(a), distances(b)
    # The measure does not depend on the scale; at scale 1 the floor under the roots means the same for all features.
    x, y = x / x.mean().detach().clamp(min=TINY), y / y.mean().detach().clamp(min=TINY)
    if bias_corrected:
        xy, xx, yy = (_unbiased_covariance(p, q, w) for p, q in ((x, y), (x, x), (y, y)))
        return xy / (xx.clamp(min=0) * yy.clamp(min=0) + TINY).sqrt()
    x, y = _centred(x, w), _centred(y, w)
    xy, xx, yy = (w @ (p * q) @ w for p, q in ((x, y), (x, x), (y, y)))
    return ((xy / (xx * yy + TINY).sqrt()).clamp(min=0) + TINY).sqrt()


def hsic(a: Tensor, b: Tensor, weight: Tensor | None = None) -> Tensor:
    """Hilbert-Schmidt independence criterion `tr(K H L H) / n^2`, the biased form (Gretton et al., ALT 2005).

    K and L are Gaussian kernels with the median distance as bandwidth.

    Args:
        a: `(n, d_a)` features.
        b: `(n, d_b)` features.
        weight: `(n,)`.

    Returns:
        Scalar, at least 0 up to rounding, without a unit.
    """
    w = _normalised(a, weight)
    return w @ (_centred(gaussian_kernel(a), w) * _centred(gaussian_kernel(b), w)) @ w


def joint_product_mmd(a: Tensor, b: Tensor, partner: Tensor, weight: Tensor | None = None) -> Tensor:
    """Squared maximum mean discrepancy between joint and product samples (Gretton et al., JMLR 2012, biased form).

    The kernel on pairs is the product of the Gaussian kernels of a and b. Between the blocks themselves it would
    measure no dependence: equal blocks have discrepancy 0.

    Args:
        a: `(n, d_a)` features.
        b: `(n, d_b)` features.
        partner: `(n,)` a derangement; `(a_i, b_partner(i))` are the product samples.
        weight: `(n,)`.

    Returns:
        Scalar, at least 0 up to rounding; about 2 / n for independent features.
    """
    joint = _normalised(a, weight)
    product = _normalised(a, joint * joint[partner])
    k, l = gaussian_kernel(a), gaussian_kernel(b)  # noqa: E741 - the paper's letters
    within_joint = joint @ (k * l) @ joint
    within_product = product @ (k * l[partner][:, partner]) @ product
    return within_joint + within_product - 2 * joint @ (k * l[:, partner]) @ product


def distances(x: Tensor) -> Tensor:
    """`(n, n)` Euclidean distances of rows; equal rows have distance 0 with gradient 0."""
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")  # the other mode is inexact near 0


def gaussian_kernel(x: Tensor) -> Tensor:
    """`exp(-d^2 / (2 s^2))`, where s is the median distance of different rows, held fixed in the gradient.

    Args:
        x: `(n, d)`.

    Returns:
        `(n, n)`; all 1 when the rows are equal.
    """
    d = distances(x)
    apart = d.detach().masked_fill(d == 0, torch.nan).nanmedian().nan_to_num(1.0)
    return (-(d / apart).square() / 2).exp()


def _normalised(like: Tensor, weight: Tensor | None) -> Tensor:
    weight = like.new_ones(len(like)) if weight is None else weight.to(like.dtype)
    return weight / weight.sum().clamp(min=TINY)


def _centred(matrix: Tensor, w: Tensor) -> Tensor:
    means = matrix @ w  # of rows, and as the matrix is symmetric of columns
    return matrix - means[:, None] - means + means @ w


def _unbiased_covariance(x: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Squared distance covariance as a weighted mean over different samples i, j, k, l.

    `mean x_ij y_ij + mean x_ij y_kl - 2 mean x_ij y_ik`; with equal weights this is the inner product of the U-centred
    matrices. A sum over different indices is the sum over all, less the terms in which indices coincide (the distances
    themselves vanish where their own do).
    """
    p2, p3, p4 = (w.pow(k).sum() for k in (2, 3, 4))
    u, v, both = x @ w, y @ w, x * y
    two = w @ both @ w
    three = (w * u * v).sum() - w @ both @ w.square()
    four = (w @ u) * (w @ v) - 4 * (w.square() * u * v).sum() + 2 * w.square() @ both @ w.square()
    pairs, triples, quadruples = 1 - p2, 1 - 3 * p2 + 2 * p3, 1 - 6 * p2 + 8 * p3 + 3 * p2.square() - 6 * p4
    return two / pairs + four / quadruples - 2 * three / triples
