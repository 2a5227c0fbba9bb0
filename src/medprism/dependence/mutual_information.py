"""Mutual information by trained networks: lower bounds with a critic, and CLUB."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medprism.dependence.base import Measure, Samples
from medprism.dependence.bounds import BOUNDS, Estimator, contrastive_log_ratio, log_mean_exp, smile
from medprism.dependence.critic import BatchedNetworks, stacked
from medprism.dependence.negatives import Draws, Pairings, pairings


class Trained(Measure):
    """What the measures with networks share: the derangements and the padded inputs.

    Args:
        dims: widths of each pair.
        negatives: number of derangements, or `all` pairs of different samples.
        classes: number of classes of `given`, which the networks then see; 0 hides them.
        seed: of the derangements, which are the same on all ranks; `forward` and the next `critic_loss` share theirs,
            and after every `critic_loss` in training there are new ones.
    """

    trained: ClassVar[bool] = True
    minimum: ClassVar[int] = 2

    def __init__(self, dims: Sequence[tuple[int, int]], negatives: int | str, classes: int, seed: int) -> None:
        super().__init__(dims)
        if negatives != "all" and (isinstance(negatives, str) or negatives < 1):
            raise ValueError(f"negatives is {negatives!r}; expected 'all', or a number of at least 1")
        if classes < 0:
            raise ValueError(f"classes is {classes}; expected the number of classes of `given`, or 0")
        self.negatives = math.inf if isinstance(negatives, str) else negatives
        self.classes = classes
        self.draws = Draws(seed)

    def _pairings(self, samples: Samples) -> Pairings:
        k = int(min(self.negatives, len(samples.weight) - 1))
        return pairings(samples.groups, samples.weight, k, self.draws.generator())

    def _inputs(self, samples: Samples, like: Tensor) -> tuple[Tensor, Tensor]:
        """`(P, N, d_a + classes)` and `(P, N, d_b)`, padded."""
        a = stacked([pair[0] for pair in samples.pairs], max(a for a, _ in self.dims))
        b = stacked([pair[1] for pair in samples.pairs], max(b for _, b in self.dims))
        if self.classes:
            if int(samples.groups.max()) >= self.classes:
                raise ValueError(f"`given` has class {int(samples.groups.max())}; classes is {self.classes}")
            seen = F.one_hot(samples.groups.clamp(min=0), self.classes).to(a.dtype)
            a = torch.cat([seen.expand(len(a), -1, -1), a], -1)
        return a.to(like.dtype), b.to(like.dtype)


class MutualInformation(Trained):
    """A lower bound of the mutual information of each pair, in nat, by one critic a pair.

    The critic T(a, b) is a network on the concatenated pair; joint and product rows pass it together.

    Args:
        dims: widths `(d_a, d_b)` of each pair.
        estimator: `dv` (MINE), `nwj`, `infonce` (never above log(negatives + 1)), `smile`, or `js` (the critic
            maximises the Jensen-Shannon objective, the value is the Donsker-Varadhan bound of that critic). The critic
            of `smile` maximises the Jensen-Shannon objective too.
        negatives: derangements of the batch, so that a step is linear in it; or `all` pairs of different samples.
        hidden: width of the critics' layers.
        layers: number of hidden layers.
        ema: share of the old denominator in the gradient of `dv`, against its bias in small batches (MINE, section
            3.2); 0 for the plain gradient. The precursor of MIMM-X has 0.1. The value stays that of the batch.
        tau: bound of the scores in `smile`.
        classes: number of classes of `given`, which the critics then see; 0 hides them, and the bound is looser.
        seed: of the derangements.

    Raises:
        ValueError: for an unknown estimator, or a setting out of range.
    """

    denominator: Tensor

    def __init__(
        self,
        dims: Sequence[tuple[int, int]],
        estimator: Estimator = "dv",
        negatives: int | Literal["all"] = 8,
        hidden: int = 400,
        layers: int = 3,
        ema: float = 0.0,
        tau: float = 5.0,
        classes: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dims, negatives, classes, seed)
        if estimator not in BOUNDS:
            raise ValueError(f"unknown estimator '{estimator}'; choose one of {list(BOUNDS)}")
        if not 0 <= ema < 1 or (ema and estimator != "dv"):
            raise ValueError(f"ema is {ema} for '{estimator}'; it must lie in [0, 1), and is 0 except for 'dv'")
        if tau <= 0:
            raise ValueError(f"tau is {tau}; it must be above 0")
        self.ema = ema
        self.bound, self.goal = BOUNDS[estimator]
        if self.bound is smile:
            self.bound = partial(smile, tau=tau)
        self.critics = BatchedNetworks([(a + classes, b) for a, b in self.dims], 1, hidden, layers)
        self.register_buffer("denominator", torch.full((len(self.dims),), -math.inf))

    def value(self, samples: Samples) -> Tensor:
        """`(P,)` nat."""
        drawn = self._pairings(samples)
        joint, product = self._scores(samples, drawn, frozen=True)
        value = self.bound(joint, product, drawn.joint, drawn.product)
        return (value + self._correction(product, drawn)) * drawn.counted

    def objective(self, samples: Samples) -> Tensor:
        """Minus the sum over pairs of what the critics maximise."""
        drawn = self._pairings(samples)
        joint, product = self._scores(samples, drawn, frozen=False)
        value = self.goal(joint, product, drawn.joint, drawn.product)
        value = value + self._correction(product, drawn, update=self.training)
        self.draws.advance()
        return -(value * drawn.counted).sum()

    def _correction(self, product: Tensor, drawn: Pairings, update: bool = False) -> Tensor:
        """0, with the gradient that exchanges the denominator of `dv` for its moving average."""
        if not self.ema:
            return product.new_zeros(())
        log_mean = log_mean_exp(product, drawn.product)
        now = log_mean.detach()
        average = torch.logaddexp(now + math.log(1 - self.ema), self.denominator + math.log(self.ema))
        average = torch.where(self.denominator.isinf(), now, average)
        if update:
            self.denominator.copy_(torch.where(drawn.counted > 0, average, self.denominator))
        return (1 - (now - average).exp()) * (log_mean - now)

    def _scores(self, samples: Samples, drawn: Pairings, frozen: bool) -> tuple[Tensor, Tensor]:
        """`(P, N)` scores of the joint and `(P, N, K)` of the product samples."""
        a, b = self._inputs(samples, self.critics.last)
        left, right = self.critics.part(0, a, frozen), self.critics.part(1, b, frozen)
        p, n, hidden = right.shape
        columns = drawn.columns + n * torch.arange(p, device=b.device)[:, None, None]  # (P, N, K + 1)
        rows = right.flatten(0, 1).index_select(0, columns.flatten()).view(p, n, -1, hidden) + left[:, :, None]
        weights = drawn.rows.flatten(1)[:, None]  # (P or 1, 1, N (K + 1))
        scores = self.critics(rows.flatten(1, 2), weights.to(rows.dtype), frozen).view(p, n, -1)
        return scores[..., 0], scores[..., 1:]


class CLUB(Trained):
    """An upper bound of the mutual information of each pair, in nat (Cheng et al., ICML 2020).

    Its network is no critic but a Gaussian with diagonal covariance, q(b | a), fitted by maximum likelihood; the bound
    holds as far as q is the conditional.

    Args:
        dims: widths `(d_a, d_b)` of each pair.
        negatives: derangements of the batch, or `all` pairs of different samples.
        hidden: width of the networks' layers.
        layers: number of hidden layers.
        classes: number of classes of `given`, which the networks then see; 0 hides them.
        seed: of the derangements.

    Raises:
        ValueError: for a setting out of range.
    """

    real: Tensor

    def __init__(
        self,
        dims: Sequence[tuple[int, int]],
        negatives: int | Literal["all"] = 8,
        hidden: int = 400,
        layers: int = 3,
        classes: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(dims, negatives, classes, seed)
        width = max(b for _, b in self.dims)
        self.networks = BatchedNetworks([(a + classes,) for a, _ in self.dims], 2 * width, hidden, layers)
        real = torch.stack([torch.arange(width) < b for _, b in self.dims])
        self.register_buffer("real", real[:, None], persistent=False)  # (P, 1, width): not padding

    def value(self, samples: Samples) -> Tensor:
        """`(P,)` nat."""
        drawn = self._pairings(samples)
        mean, log_variance, b = self._gaussians(samples, drawn, frozen=True)
        p, n, width = b.shape
        columns = drawn.columns + n * torch.arange(p, device=b.device)[:, None, None]
        others = b.flatten(0, 1).index_select(0, columns.flatten()).view(p, n, -1, width)
        scores = self._log_likelihood(others, mean[:, :, None], log_variance[:, :, None], self.real[:, None])
        return contrastive_log_ratio(scores[..., 0], scores[..., 1:], drawn.joint, drawn.product) * drawn.counted

    def objective(self, samples: Samples) -> Tensor:
        """Negative log likelihood, summed over pairs."""
        drawn = self._pairings(samples)
        mean, log_variance, b = self._gaussians(samples, drawn, frozen=False)
        self.draws.advance()
        likelihood = (drawn.joint * self._log_likelihood(b, mean, log_variance, self.real)).sum(-1)
        return -(likelihood * drawn.counted).sum()

    def _gaussians(self, samples: Samples, drawn: Pairings, frozen: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and log variance of q, and b; each `(P, N, d_b)`."""
        a, b = self._inputs(samples, self.networks.last)
        counts = (drawn.joint > 0).to(a.dtype)[:, None]
        rows = counts / counts.sum(-1, keepdim=True)
        mean, log_variance = self.networks(self.networks.part(0, a, frozen), rows, frozen).chunk(2, -1)
        return mean, log_variance, b

    @staticmethod
    def _log_likelihood(b: Tensor, mean: Tensor, log_variance: Tensor, real: Tensor) -> Tensor:
        each = (b - mean).square() * (-log_variance).exp() + log_variance + math.log(2 * math.pi)
        return -(each * real).sum(-1) / 2
