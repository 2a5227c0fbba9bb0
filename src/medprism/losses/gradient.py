"""Gradient reversal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def reverse_gradient(x: Tensor, strength: float = 1.0) -> Tensor:
    """The identity forward; backward the gradient times `-strength` (Ganin and Lempitsky 2015, eq. 14).

    Args:
        x: any tensor.
        strength: factor of the reversed gradient, at least 0.

    Returns:
        `x`.
    """
    reversed_: Tensor = _Reverse.apply(x, strength)
    return reversed_


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None
