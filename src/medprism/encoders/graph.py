"""Graph networks on thresholded connectomes, with PyTorch Geometric."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from medprism.encoders.base import Encoded, Encoder
from medprism.encoders.connectome import Pooling, ReadOut, check_shape
from medprism.encoders.dropout import InputDropout


class GraphEncoder(Encoder):
    """Graph network whose nodes are regions; edges are the strongest connections, with their signed weights.

    The features of a node are its row of the whole connectome. The convolutions are PyTorch Geometric's:

    - `gatv2`: GATv2Conv (Brody et al., ICLR 2022), the edge weight as edge feature.
    - `sage`: `W_1 x_r + W_2 mean_s w_rs x_s`, GraphSAGE's mean aggregation (Hamilton et al., NeurIPS 2017) with
      edge weights, which SAGEConv does not read; it is GraphConv with mean aggregation.
    - `gcn`: GCNConv (Kipf and Welling, ICLR 2017) with `D^-1/2 (A + I) D^-1/2`, where `D_rr = 1 + sum_s |A_rs|`:
      connectomes have negative edges, and the degree must stay positive.

    Each is followed by LayerNorm, from the second layer on around a residual connection.

    Edges should be chosen among correlations, while features that have one scale train better: with `standardize` the
    encoder standardises the features, and the cohort may leave the connectomes as they are.

    Args:
        regions: number R of regions.
        dim: width d of a token.
        conv: the graph convolution.
        layers: number of convolutions, at least 1.
        density: share of all pairs of regions that are connected, those of largest |weight|, in (0, 1].
        neighbours: instead of `density`, connect each region to so many others, those of largest |weight|.
        heads: attention heads of `gatv2`; must divide `dim`.
        dropout: dropout between layers, and of the attention of `gatv2`.
        input_dropout: probability with which a feature of a node is dropped in training.
        standardize: give every feature of every region mean 0 and variance 1 over the training batches
            (BatchNorm without parameters, with the average over all batches seen).
        pooling: how the tokens become one embedding: `mean`, `attention` or `concat`, see `Pooling`.
        pooling_dropout: dropout of the `concat` read-out.
    """

    input_field = "connectome"

    def __init__(
        self,
        regions: int,
        dim: int = 64,
        conv: Literal["gatv2", "sage", "gcn"] = "gatv2",
        layers: int = 2,
        density: float = 0.1,
        neighbours: int | None = None,
        heads: int = 4,
        dropout: float = 0.1,
        input_dropout: float = 0.0,
        standardize: bool = False,
        pooling: ReadOut = "mean",
        pooling_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: a graph network needs at least 1 convolution")
        if not 0 < density <= 1:
            raise ValueError(f"density={density} must be in (0, 1], the share of pairs of regions that are connected")
        if neighbours is not None and not 0 < neighbours < regions:
            raise ValueError(f"neighbours={neighbours} must be from 1 to {regions - 1} for {regions} regions")
        self.regions, self.dim = regions, dim
        self.conv, self.density, self.neighbours = conv, density, neighbours
        widths = [regions, *[dim] * (layers - 1)]
        self.convs = nn.ModuleList([_convolution(conv, width, dim, heads, dropout) for width in widths])
        self.norms = nn.ModuleList([nn.LayerNorm(dim) for _ in widths])
        self.between = nn.Sequential(nn.GELU(), nn.Dropout(dropout))
        self.input_dropout = InputDropout(input_dropout)
        self.standardize = nn.BatchNorm1d(regions**2, affine=False, momentum=None) if standardize else nn.Identity()
        self.pool = Pooling(dim, pooling, regions, pooling_dropout)

    def forward(self, connectome: Tensor) -> Encoded:
        """Encode `(B, R, R)` connectomes into `(B, R, d)` tokens and `(B, d)` pooled embeddings."""
        size = check_shape(connectome, self.regions).shape[0]
        edges, weights = self.edges(connectome)
        features = self.input_dropout(self.standardize(connectome.flatten(1)))
        nodes = features.view(size * self.regions, self.regions)
        for layer, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            if layer == 0:
                nodes = norm(conv(nodes, edges, weights))
            else:
                nodes = norm(nodes + conv(self.between(nodes), edges, weights))
        tokens = nodes.view(size, self.regions, self.dim)
        return Encoded(tokens, self.pool(tokens))

    def edges(self, connectome: Tensor) -> tuple[Tensor, Tensor]:
        """The edges of the B graphs as one graph of B * R nodes, node b * R + r being region r of sample b.

        Args:
            connectome: `(B, R, R)`; entry (r, s) is the weight of the edge from s to r. The diagonal is not read.

        Returns:
            `(2, E)` indices of source and target node, and `(E,)` weights through which gradients flow.
        """
        own = torch.eye(self.regions, dtype=torch.bool, device=connectome.device)
        keep = strongest(connectome.detach(), self.density, self.neighbours)
        weights = connectome.masked_fill(~keep, 0)
        if self.conv == "gcn":
            weights, keep = weights + own, keep | own
            scale = weights.abs().sum(-1).rsqrt()  # (B, R), at most 1 because of the loop
            weights = scale[:, :, None] * weights * scale[:, None, :]
        sample, target, source = keep.nonzero(as_tuple=True)
        first = sample * self.regions
        return torch.stack([first + source, first + target]), weights[sample, target, source]


def strongest(connectome: Tensor, density: float, neighbours: int | None = None) -> Tensor:
    """Which edges to keep: those of largest |weight|, never the diagonal.

    Ties at the threshold are all kept, so that the choice depends on weights alone, not on the order of regions, and
    is symmetric where the connectome is.

    Args:
        connectome: `(B, R, R)`.
        density: share of the R (R - 1) off-diagonal entries to keep in each connectome, at least one.
        neighbours: instead, how many entries to keep in each row.

    Returns:
        `(B, R, R)` bool.
    """
    regions = connectome.shape[-1]
    own = torch.eye(regions, dtype=torch.bool, device=connectome.device)
    strength = connectome.abs().masked_fill(own, -1)
    if neighbours is None:
        count = max(1, round(density * regions * (regions - 1)))
        least = strength.flatten(1).topk(count).values[:, -1, None, None]
    else:
        least = strength.topk(neighbours).values[:, :, -1:]
    return (strength >= least) & ~own


def _convolution(kind: str, width: int, dim: int, heads: int, dropout: float) -> nn.Module:
    from torch_geometric import nn as geometric  # slow to import

    if kind == "gatv2":
        if dim % heads:
            raise ValueError(f"dim={dim} cannot be shared among heads={heads}; choose a multiple of {heads}")
        made = geometric.GATv2Conv(width, dim // heads, heads=heads, dropout=dropout, edge_dim=1)
    elif kind == "sage":
        made = geometric.GraphConv(width, dim, aggr="mean")
    elif kind == "gcn":
        made = geometric.GCNConv(width, dim, normalize=False)
    else:
        raise ValueError(f"unknown conv '{kind}'; choose 'gatv2', 'sage' or 'gcn'")
    assert isinstance(made, nn.Module)
    return made
