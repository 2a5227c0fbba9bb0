"""A small network of images whose tokens lie on a grid as fine as is asked for; made for CPUs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from medprism.encoders.base import Encoded, Encoder
from medprism.encoders.image import axes, check_input, map_size, projection

GROUPS = 4


class PatchCNN(Encoder):
    """Convolutions with stride 2 down to a grid of patches, then residual blocks between the patches.

    A learned embedding of each place is added before the blocks, so that a token can say where it is ("left base").
    The pooled embedding is the mean of the tokens, in their space.

    Args:
        input_shape: `(C, H, W)` of one image.
        dim: width d to which a linear layer projects embedding and tokens; that of the map when left out.
        grid: rows and columns of the patches, alike; a map that stride 2 does not bring to it is averaged to it.
        width: channels of the first layer; each further one has twice as many, up to four times.
        blocks: residual blocks of two convolutions of 3 x 3 patches.

    Raises:
        ValueError: when images have fewer than two pixels a patch, or a number makes no sense.
    """

    input_field = "image"

    def __init__(
        self, input_shape: Sequence[int], dim: int | None = None, grid: int = 8, width: int = 32, blocks: int = 1
    ) -> None:
        super().__init__()
        self.input_shape = axes(input_shape, "image")
        channels, rows, columns = self.input_shape
        if grid < 1 or blocks < 0 or width < GROUPS or width % GROUPS:
            raise ValueError(
                f"grid={grid}, blocks={blocks}, width={width}: a grid has at least 1 row, blocks are 0 or more, and "
                f"the width is a multiple of {GROUPS}"
            )
        if min(rows, columns) < 2 * grid:
            raise ValueError(
                f"images of {rows} x {columns} pixels have no grid of {grid} x {grid} patches of at least 2 x 2 "
                f"pixels: give larger images, or choose grid={min(rows, columns) // 2} or less"
            )
        widths = [channels, *(width * min(4, 2**k) for k in range(int(math.log2(min(rows, columns) // grid))))]
        self.maps = nn.Sequential(*(_layer(before, after) for before, after in pairwise(widths)))
        if map_size(self.maps, self.input_shape) != (grid, grid):
            self.maps.append(nn.AdaptiveAvgPool2d(grid))
        self.grid = (grid, grid)
        self.place = nn.Parameter(0.02 * torch.randn(widths[-1], grid, grid))
        self.blocks = nn.ModuleList([_block(widths[-1]) for _ in range(blocks)])
        self.project = projection(widths[-1], dim)
        self.dim = dim or widths[-1]

    def forward(self, image: Tensor) -> Encoded:
        """Encode `(B, C, H, W)` images into `(B, N, d)` tokens and `(B, d)` pooled embeddings."""
        maps = self.maps(check_input(image, self.input_shape, "image")) + self.place
        for block in self.blocks:
            maps = maps + block(maps)
        tokens = self.project(maps.flatten(2).transpose(1, 2))  # (B, C, rows, columns) -> (B, N, d)
        return Encoded(tokens, tokens.mean(1))


def _layer(before: int, after: int) -> nn.Sequential:
    # An even kernel: with an odd one each place would look half a pixel of its map to the upper left.
    convolution = nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, after), nn.ReLU())


def _block(width: int) -> nn.Sequential:
    first, second = (nn.Conv2d(width, width, 3, padding=1, bias=False) for _ in range(2))
    return nn.Sequential(nn.GroupNorm(GROUPS, width), nn.ReLU(), first, nn.GroupNorm(GROUPS, width), nn.ReLU(), second)
