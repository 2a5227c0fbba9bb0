"""The networks of all pairs as one batched computation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def stacked(blocks: Sequence[Tensor], width: int) -> Tensor:
    """P blocks `(N, d)` as `(P, N, width)`, padded with zeros."""
    return torch.stack([F.pad(x, (0, width - x.shape[1])) for x in blocks])


class BatchedNetworks(nn.Module):
    """P networks of the same size: `layers` times (linear without bias, BatchNorm, ReLU), then linear.

    Parameters are stacked along a first dimension, and inputs of smaller networks are padded with zeros. BatchNorm has
    the statistics of the rows it sees, in training and evaluation, and keeps no running ones. The input of a network is
    the concatenation of parts, whose share of the first layer is computed apart: where many rows combine few distinct
    parts, each part is multiplied once.

    Args:
        inputs: for each network the widths of its parts.
        outputs: width of the output.
        hidden: width of the hidden layers.
        layers: number of hidden layers, at least 1.
    """

    def __init__(self, inputs: Sequence[Sequence[int]], outputs: int, hidden: int, layers: int) -> None:
        super().__init__()
        if hidden < 1 or layers < 1:
            raise ValueError(f"hidden is {hidden} and layers is {layers}; both must be at least 1")
        p = len(inputs)
        self.widths = [max(widths) for widths in zip(*inputs, strict=True)]
        self.first = nn.ParameterList(torch.zeros(p, width, hidden) for width in self.widths)
        for index, widths in enumerate(inputs):  # as nn.Linear, by the true width; padding stays 0
            for weight, width in zip(self.first, widths, strict=True):
                nn.init.uniform_(weight.data[index, :width], *_bound(sum(widths)))
        self.linear = nn.ParameterList(
            torch.empty(p, hidden, hidden).uniform_(*_bound(hidden)) for _ in range(layers - 1)
        )
        self.scale = nn.ParameterList(torch.ones(p, 1, hidden) for _ in range(layers))
        self.shift = nn.ParameterList(torch.zeros(p, 1, hidden) for _ in range(layers))
        self.last = nn.Parameter(torch.empty(p, hidden, outputs).uniform_(*_bound(hidden)))
        self.bias = nn.Parameter(torch.empty(p, 1, outputs).uniform_(*_bound(hidden)))

    def part(self, index: int, x: Tensor, frozen: bool) -> Tensor:
        """What one part of the input adds to the first layer.

        Args:
            index: number of the part.
            x: `(P, N, width)`.
            frozen: whether the parameters are held fixed.

        Returns:
            `(P, N, hidden)`.
        """
        return torch.bmm(x, _held(self.first[index], frozen))

    def forward(self, x: Tensor, rows: Tensor, frozen: bool) -> Tensor:
        """The rest of the networks.

        Args:
            x: `(P, R, hidden)` sum of the parts of the first layer.
            rows: `(P, 1, R)` or `(1, 1, R)` weights of the rows in BatchNorm's statistics, summing to 1.
            frozen: whether the parameters are held fixed.

        Returns:
            `(P, R, outputs)`.
        """
        rows = rows.expand(len(x), -1, -1)
        for layer, (scale, shift) in enumerate(zip(self.scale, self.shift, strict=True)):
            if layer:
                x = torch.bmm(x, _held(self.linear[layer - 1], frozen))
            x = x - torch.bmm(rows, x)
            variance = torch.bmm(rows, x.square())
            factor = _held(scale, frozen) * (variance + 1e-5).rsqrt()
            x = torch.addcmul(_held(shift, frozen), x, factor).relu()
        return torch.baddbmm(_held(self.bias, frozen), x, _held(self.last, frozen))


def _bound(width: int) -> tuple[float, float]:
    return -1 / math.sqrt(width), 1 / math.sqrt(width)


def _held(parameter: Tensor, frozen: bool) -> Tensor:
    return parameter.detach() if frozen else parameter
