"""Confounder Attention Weighter: which confounder a representation depends on most.

Fay et al., "MIMM-X", arXiv 2511.22990, names it; its equations are not public, and those here are a reconstruction.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from medprism.distributed import gather_with_grad

UNIFORM = 0.1
"""Share of the weights that stays uniform, so that no confounder is ever out of sight."""


def standardised(blocks: Tensor) -> Tensor:
    """Each feature with mean 0 and variance 1 over the samples of all ranks.

    Not LayerNorm: of a block of two features only a sign would be left.

    Args:
        blocks: `(n, N, d)`.
    """
    every = gather_with_grad(blocks)
    return (blocks - every.mean(0)) / (every.var(0, unbiased=False) + 1e-5).sqrt()


class ConfounderAttention(nn.Module):
    """Weights of N confounders, each from its own block.

        e_i = v^T tanh(W n(F_i) + b_i)
        alpha = .9 softmax(e / tau) + .1 / N
        S = [N alpha_1 F_1 ; ... ; N alpha_N F_N]

    The scores never see the block of the target, which would fake dependence, and the blocks are concatenated, since a
    sum hides dependence. The parameters belong to the critic: the player who maximises the dependence.

    Args:
        confounders: number N of confounders.
        dim: width d of a block.
        hidden: width of the scores' hidden layer.
        tau: temperature of the softmax; large for uniform weights.
    """

    def __init__(self, confounders: int, dim: int, hidden: int = 16, tau: float = 1.0) -> None:
        super().__init__()
        if tau <= 0:
            raise ValueError(f"the temperature tau is {tau}; it must be above 0")
        self.tau = tau
        self.weight = nn.Parameter(torch.randn(dim, hidden) / dim**0.5)
        self.bias = nn.Parameter(torch.zeros(confounders, hidden))
        self.out = nn.Parameter(torch.zeros(hidden))  # uniform weights at the start

    def forward(self, blocks: Tensor, frozen: bool) -> tuple[Tensor, Tensor]:
        """Weight the blocks.

        Args:
            blocks: `(n, N, d)` latent blocks of the confounders.
            frozen: whether the parameters are held fixed, so that only the blocks get a gradient.

        Returns:
            S `(n, N d)` and alpha `(n, N)`, whose rows sum to 1.
        """
        blocks = blocks if blocks.dtype == torch.float64 else blocks.float()
        held = (p.detach() if frozen else p for p in (self.weight, self.bias, self.out))
        weight, bias, out = (p.to(blocks.dtype) for p in held)
        confounders = blocks.shape[1]
        with torch.autocast(blocks.device.type, enabled=False):  # half precision is too coarse for mean and variance
            scores = torch.tanh(standardised(blocks) @ weight + bias) @ out  # (n, N, d) (d, h) + (N, h) -> (n, N)
            alpha = (1 - UNIFORM) * (scores / self.tau).softmax(-1) + UNIFORM / confounders
            return (confounders * alpha[..., None] * blocks).flatten(1), alpha
