"""Encoders of volumes: a light 3D network for CPUs, and the residual and dense networks of MONAI.

Batches of volumes are small, so the default normalisation is by groups of channels, which does not look at the batch.
`instance` makes the mean of every channel of a map the same for all volumes: what a network could say by how strong a
channel is on average is lost where a map is normalised right before it is averaged, as in the dense network.
On a GPU the pooling of MONAI's networks is not deterministic; the light network has none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from typing import Any, Literal

from torch import Tensor, nn

from medprism.encoders.base import Encoded, Encoder
from medprism.encoders.image import axes, check_input, map_size, projection

Norm = Literal["group", "instance", "batch"]


class _VolumeEncoder(Encoder):
    """Layers that make a map of a volume; tokens are its places, the embedding is their mean.

    Args:
        input_shape: `(C, D, H, W)` of one volume.
        layers: from volumes to maps of `width` channels.
        width: number of channels of the map.
        dim: see the subclasses.
        norm: see the subclasses.

    Raises:
        ValueError: when volumes are too small, or an argument is unknown.
    """

    input_field = "volume"

    def __init__(self, input_shape: Sequence[int], layers: nn.Module, width: int, dim: int | None, norm: Norm) -> None:
        super().__init__()
        self.input_shape = axes(input_shape, "volume")
        self.maps = _normalised(layers, norm)
        try:
            self.grid = map_size(self.maps, self.input_shape)
        except (RuntimeError, ValueError) as error:
            mend = "give larger volumes" + (", or choose norm=group" if norm == "instance" else "")
            size = " x ".join(map(str, self.input_shape[1:]))
            raise ValueError(f"volumes of {size} voxels are too small for this network: {mend} ({error})") from error
        self.project = projection(width, dim)
        self.dim = dim or width

    def forward(self, volume: Tensor) -> Encoded:
        """Encode `(B, C, D, H, W)` volumes into `(B, N, d)` tokens and `(B, d)` pooled embeddings."""
        maps = self.maps(check_input(volume, self.input_shape, "volume"))
        tokens = self.project(maps.flatten(2).transpose(1, 2))
        return Encoded(tokens, tokens.mean(1))


class SmallCNN3D(_VolumeEncoder):
    """A light network for CPUs: convolutions of 3 x 3 x 3 voxels, each with stride 2 and twice as many channels.

    Args:
        input_shape: `(C, D, H, W)` of one volume.
        dim: width d to which a linear layer projects embedding and tokens; that of the last layer when left out.
        width: channels of the first layer.
        layers: number of convolutions; the grid of tokens is 2^layers times coarser than the volume.
        norm: normalisation after each convolution.
    """

    def __init__(
        self, input_shape: Sequence[int], dim: int | None = None, width: int = 16, layers: int = 4, norm: Norm = "group"
    ) -> None:
        if width < 1 or layers < 1:
            raise ValueError(f"width={width}, layers={layers}: both must be at least 1")
        widths = [axes(input_shape, "volume")[0], *(width * 2**layer for layer in range(layers))]
        made: list[nn.Module] = []
        for before, after in pairwise(widths):
            made += [nn.Conv3d(before, after, 3, stride=2, padding=1, bias=False), nn.BatchNorm3d(after), nn.ReLU()]
        super().__init__(input_shape, nn.Sequential(*made), widths[-1], dim, norm)


class ResNet18(_VolumeEncoder):
    """The 3D residual network of 18 layers (He et al., CVPR 2016; Hara et al., CVPR 2018), through MONAI.

    Args:
        input_shape: `(C, D, H, W)` of one volume; the grid of tokens is 32 times coarser.
        dim: width d to which a linear layer projects embedding and tokens; 512, that of the last map, when left out.
        norm: normalisation of every layer.

    Raises:
        ImportError: when MONAI is not installed.
    """

    def __init__(self, input_shape: Sequence[int], dim: int | None = None, norm: Norm = "group") -> None:
        net = _monai_networks().resnet18(
            spatial_dims=3,
            n_input_channels=axes(input_shape, "volume")[0],
            conv1_t_stride=2,
            shortcut_type="B",  # the other kind lets no gradient through
            bias_downsample=False,
            feed_forward=False,
        )
        parts = (net.conv1, net.bn1, net.act, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4)
        super().__init__(input_shape, nn.Sequential(*parts), 512, dim, norm)


class DenseNet(_VolumeEncoder):
    """The 3D densely connected network (Huang et al., CVPR 2017), through MONAI; DenseNet-121 by default.

    Args:
        input_shape: `(C, D, H, W)` of one volume, at least 32 voxels each way; the grid of tokens is 32 times coarser.
        dim: width d to which a linear layer projects embedding and tokens; that of the last map when left out.
        blocks: layers of each dense block.
        growth: channels that each layer adds.
        dropout: dropout after each layer.
        norm: normalisation of every layer.

    Raises:
        ImportError: when MONAI is not installed.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        dim: int | None = None,
        blocks: Sequence[int] = (6, 12, 24, 16),
        growth: int = 32,
        dropout: float = 0.0,
        norm: Norm = "group",
    ) -> None:
        net = _monai_networks().DenseNet(
            spatial_dims=3,
            in_channels=axes(input_shape, "volume")[0],
            out_channels=1,
            init_features=2 * growth,
            growth_rate=growth,
            block_config=tuple(blocks),
            dropout_prob=dropout,
        )
        width = net.class_layers.out.in_features
        super().__init__(input_shape, nn.Sequential(net.features, nn.ReLU()), width, dim, norm)


def _monai_networks() -> Any:
    try:
        return import_module("monai.networks.nets")  # an extra, and slow to import
    except ImportError as error:
        raise ImportError("this encoder of volumes needs MONAI: pip install 'medprism[mri]'") from error


def _normalised(layers: nn.Module, norm: Norm) -> nn.Module:
    """The layers with every batch normalisation replaced (MONAI's residual blocks have no choice of their own).

    Raises:
        ValueError: when the norm is unknown.
    """
    if norm not in ("group", "instance", "batch"):
        raise ValueError(f"unknown norm '{norm}'; choose 'group', 'instance' or 'batch'")
    for name, child in layers.named_children():
        if not isinstance(child, nn.BatchNorm3d):
            _normalised(child, norm)
        elif norm == "group":
            channels = child.num_features  # a group has at least 4 channels, or one place would always become 0
            setattr(layers, name, nn.GroupNorm(math.gcd(8, channels // 4) if channels % 4 == 0 else 1, channels))
        elif norm == "instance":
            setattr(layers, name, nn.InstanceNorm3d(child.num_features, affine=True))
    return layers
