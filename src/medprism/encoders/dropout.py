"""Dropout of large inputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 2**16


class InputDropout(nn.Module):
    """Dropout (Srivastava et al., JMLR 2014) that is quick on a CPU.

    torch's own draws on a CPU take longer, for a batch of connectomes, than projecting them. Here 16 random bits
    decide an entry, so that the probability is the nearest multiple of 2^-16; `benchmarks/speed/dropout.py` shows the
    ratio. On other devices it is torch's own dropout.

    Args:
        probability: of dropping an entry, from 0 to below 1; the others are scaled by 1 / (1 - probability).

    Raises:
        ValueError: for a probability outside of that range.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"the probability of dropout is {probability}; choose one from 0 to below 1")
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """Drop entries of a tensor of any shape in training; the identity otherwise."""
        if not self.training or self.probability == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.probability)
        threshold = min(round(self.probability * _STEPS), _STEPS - 1)
        words = torch.randint(-(2**63), 2**63 - 1, (-(-x.numel() // 4),))
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x * ((bits >= threshold - _STEPS // 2).to(x.dtype) * (_STEPS / (_STEPS - threshold)))

    def extra_repr(self) -> str:
        """What printing shows."""
        return f"probability={self.probability}"
