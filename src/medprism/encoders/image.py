"""Encoders of images: the small network of the Morpho-MNIST experiments; and what encoders of grids share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from medprism.encoders.base import Encoded, Encoder


class SmallCNN(Encoder):
    """The small network of the Morpho-MNIST experiments: about 70 k parameters on 28 x 28 pixels.

    Three convolutions of 3 x 3 (C-6, pool, 6-16, 16-16, pool) and two linear layers, 256-256 and 256-d. A map of more
    than 4 x 4 places is averaged to 4 x 4 before the linear layers, so that images of any size can be read; images
    shorter than 26 pixels are padded at each convolution, or else their map would be smaller than that.

    Such a network has no tokens of its own; we take each place's share in the first linear layer, as if every place
    said the same: `V_n = P relu(N W_n x_n + b)`. The mean over n before the activation is what the network itself
    computes there, and tokens cost no parameter.

    Args:
        input_shape: `(C, H, W)` of one image.
        dim: width d of the last linear layer, which has no activation; when left out there is no such layer, and the
            256 activations before it are the embedding.
        norm: normalisation after each convolution; none when left out, as in the experiments.

    Raises:
        ValueError: when images are too small, or an argument is unknown.
    """

    input_field = "image"

    def __init__(
        self, input_shape: Sequence[int], dim: int | None = None, norm: Literal["batch", "group"] | None = None
    ) -> None:
        super().__init__()
        self.input_shape = axes(input_shape, "image")
        channels, rows, columns = self.input_shape
        if min(rows, columns) < 4:
            raise ValueError(f"the small network needs images of at least 4 x 4 pixels, got {rows} x {columns}")
        padding = int(min(rows, columns) < 26)
        self.maps = nn.Sequential(
            *_convolution(channels, 6, padding, norm),
            nn.MaxPool2d(2),
            *_convolution(6, 16, padding, norm),
            *_convolution(16, 16, padding, norm),
            nn.MaxPool2d(2),
        )
        found = map_size(self.maps, self.input_shape)
        self.grid = (min(4, found[0]), min(4, found[1]))
        if self.grid != found:
            self.maps.append(nn.AdaptiveAvgPool2d(self.grid))
        self.maps.to(memory_format=torch.channels_last)  # faster on a CPU
        self.first = nn.Linear(16 * self.grid[0] * self.grid[1], 256)
        self.project = projection(256, dim)
        self.dim = dim or 256

    def forward(self, image: Tensor) -> Encoded:
        """Encode `(B, C, H, W)` images into `(B, N, d)` tokens and `(B, d)` pooled embeddings."""
        maps = self._map(image)
        places = maps.shape[2]
        weight = self.first.weight.view(256, 16, places)
        shares = torch.einsum("bcn,hcn->bnh", maps, weight) * places + self.first.bias
        return Encoded(self.project(shares.relu()), self._embedding(maps))

    def pooled(self, image: Tensor) -> Tensor:
        """`(B, d)` embeddings, without the tokens, which no step of training waits for."""
        return self._embedding(self._map(image))

    def _map(self, image: Tensor) -> Tensor:
        image = check_input(image, self.input_shape, "image").contiguous(memory_format=torch.channels_last)
        maps: Tensor = self.maps(image).flatten(2)
        return maps  # (B, 16, N)

    def _embedding(self, maps: Tensor) -> Tensor:
        embedding: Tensor = self.project(self.first(maps.flatten(1)).relu())
        return embedding


AXES = {"image": "channels, rows, columns", "volume": "channels and three axes"}


def axes(input_shape: Sequence[int], field: Literal["image", "volume"]) -> tuple[int, ...]:
    """The shape of one input as a tuple, if it has as many axes as it should.

    Raises:
        ValueError: when it has not.
    """
    shape = tuple(int(length) for length in input_shape)
    if len(shape) != {"image": 3, "volume": 4}[field] or min(shape) < 1:
        raise ValueError(f"one {field} has shape ({AXES[field]}), got {shape}: correct the cohort's `input_shape`")
    return shape


def check_input(x: Tensor, input_shape: tuple[int, ...], field: str) -> Tensor:
    """The input itself, if its shape is `(B, *input_shape)`.

    Raises:
        ValueError: when it has another shape.
    """
    if x.shape[1:] != input_shape:
        raise ValueError(
            f"expected {field}s of shape (B, {', '.join(map(str, input_shape))}), got {tuple(x.shape)}: the encoder "
            f"was built for the {field}s of its cohort; give all {field}s that size and number of channels, or build "
            "it for this cohort"
        )
    return x


def projection(width: int, dim: int | None) -> nn.Module:
    """The last linear layer, from the native width to `dim`; the identity when `dim` is None."""
    if dim is not None and dim < 1:
        raise ValueError(f"dim={dim}: the width of an embedding is at least 1")
    return nn.Identity() if dim is None else nn.Linear(width, dim)


def map_size(layers: nn.Module, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The size of the map that layers make of one input, without computing it."""
    with torch.no_grad():
        maps: Tensor = copy.deepcopy(layers).to("meta").eval()(torch.empty(1, *input_shape, device="meta"))
    return tuple(maps.shape[2:])


def _convolution(channels: int, width: int, padding: int, norm: str | None) -> list[nn.Module]:
    norms: dict[str | None, list[nn.Module]] = {
        None: [],
        "batch": [nn.BatchNorm2d(width)],
        "group": [nn.GroupNorm(2, width)],
    }
    if norm not in norms:
        raise ValueError(f"unknown norm '{norm}'; choose 'batch', 'group', or leave it out")
    return [nn.Conv2d(channels, width, 3, padding=padding), *norms[norm], nn.ReLU()]
