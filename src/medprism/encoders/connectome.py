"""Encoders of connectomes that keep one token a region: linear, transformer, multilayer perceptron.

The features of region r are row r of the connectome, its connectivity profile. So the columns name regions as well,
and every first layer has weights that belong to regions: renaming the regions of the input together with those
weights renames the tokens and leaves the pooled embedding as it was.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from medprism.encoders.base import Encoded, Encoder
from medprism.encoders.dropout import InputDropout

ReadOut: TypeAlias = Literal["mean", "attention", "concat"]
"""How the tokens of regions become one embedding, see `Pooling`."""


class RegionProjection(Encoder):
    """Region-specific projection `V_r = W_r^T x_r`: the linear model of connectomes, in token form.

    A projection that is shared by all regions forgets which region a row belongs to; here each region has its own.
    By default there is neither bias nor normalisation, so that mean pooling and a linear head are exactly a linear
    model of the edges. Layers of a transformer may be put on top.

    Args:
        regions: number R of regions.
        dim: width d of a token.
        input_dropout: probability with which an entry of the connectome is dropped in training.
        norm: whether to normalise each token (LayerNorm) after the projection.
        pooling: how the tokens become one embedding: `mean`, `attention` or `concat`, see `Pooling`.
        pooling_dropout: dropout of the `concat` read-out.
        layers: number of transformer layers on top of the projection.
        heads: attention heads of those layers; must divide `dim`.
        feedforward: hidden width of those layers; 4 * `dim` when left out.
        dropout: dropout of those layers.
    """

    input_field = "connectome"

    def __init__(
        self,
        regions: int,
        dim: int = 8,
        input_dropout: float = 0.5,
        norm: bool = False,
        pooling: ReadOut = "mean",
        pooling_dropout: float = 0.5,
        layers: int = 0,
        heads: int = 4,
        feedforward: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.regions, self.dim = regions, dim
        self.input_dropout = InputDropout(input_dropout)
        self.weight = nn.Parameter(torch.empty(regions, regions, dim).uniform_(-1, 1) / regions**0.5)
        self.norm = nn.LayerNorm(dim) if norm else nn.Identity()
        self.layers = transformer(dim, layers, heads, feedforward or 4 * dim, dropout)
        self.pool = Pooling(dim, pooling, regions, pooling_dropout)

    def forward(self, connectome: Tensor) -> Encoded:
        """Encode `(B, R, R)` connectomes into `(B, R, d)` tokens and `(B, d)` pooled embeddings."""
        rows = self.input_dropout(check_shape(connectome, self.regions))
        tokens = torch.einsum("brs,rsd->brd", rows, self.weight)  # (B, R, R), (R, R, d) -> (B, R, d)
        tokens = self.layers(self.norm(tokens))
        return Encoded(tokens, self.pool(tokens))


class ConnectomeTransformer(Encoder):
    """Transformer over regions, without pooling of tokens, so that each region keeps its own.

    `V = Transformer(X W + b + E)` with a projection W shared by all regions and a learned embedding E of their
    identity. The layers are those of the Brain Network Transformer (Kan et al., NeurIPS 2022), pre-norm, without its
    clustering readout. With few subjects take the read-out `concat`: the projection is shared, and a mean over regions
    forgets which region said what.

    Args:
        regions: number R of regions.
        dim: width d of a token.
        layers: number of transformer layers.
        heads: attention heads; must divide `dim`.
        feedforward: hidden width of the layers.
        dropout: dropout of the layers.
        identity: whether to add a learned embedding of each region, so that the layers know which is which.
        input_dropout: probability with which an entry of the connectome is dropped in training.
        pooling: how the tokens become one embedding: `mean`, `attention` or `concat`, see `Pooling`.
        pooling_dropout: dropout of the `concat` read-out.
    """

    input_field = "connectome"

    def __init__(
        self,
        regions: int,
        dim: int = 256,
        layers: int = 2,
        heads: int = 4,
        feedforward: int = 1024,
        dropout: float = 0.1,
        identity: bool = True,
        input_dropout: float = 0.0,
        pooling: ReadOut = "mean",
        pooling_dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.regions, self.dim = regions, dim
        self.projection = nn.Linear(regions, dim)
        self.identity = nn.Parameter(0.02 * torch.randn(regions, dim)) if identity else None
        self.layers = transformer(dim, layers, heads, feedforward, dropout)
        self.input_dropout = InputDropout(input_dropout)
        self.pool = Pooling(dim, pooling, regions, pooling_dropout)

    def forward(self, connectome: Tensor) -> Encoded:
        """Encode `(B, R, R)` connectomes into `(B, R, d)` tokens and `(B, d)` pooled embeddings."""
        tokens = self.projection(self.input_dropout(check_shape(connectome, self.regions)))
        if self.identity is not None:
            tokens = tokens + self.identity
        tokens = self.layers(tokens)
        return Encoded(tokens, self.pool(tokens))


class MLPEncoder(Encoder):
    """Multilayer perceptron on the edges (the usual baseline), or on each region's row.

    With `flatten`, pooled = MLP(upper triangle). Such a network has no tokens of its own; we take each region's share
    in its first layer, half of every edge that ends in it: `V_r = R/2 * sum_s x_rs W_rs`. So the mean of the tokens
    is the first layer (before bias and activation), and they cost no parameter. Without `flatten`, one MLP that all
    regions share maps row r to token r, and pooled is the mean.

    Args:
        regions: number R of regions.
        dim: width d of the hidden layers, the tokens and the pooled embedding.
        layers: number of linear layers, at least 1.
        flatten: whether the MLP reads the upper triangle of the connectome; otherwise it reads single rows.
        input_dropout: probability with which an input of the MLP is dropped in training.
        dropout: dropout after each hidden activation.
    """

    input_field = "connectome"

    def __init__(
        self,
        regions: int,
        dim: int = 64,
        layers: int = 2,
        flatten: bool = True,
        input_dropout: float = 0.5,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"layers={layers}: a multilayer perceptron needs at least 1 linear layer")
        self.regions, self.dim, self.flatten = regions, dim, flatten
        edges = regions * (regions - 1) // 2
        self.first = nn.Linear(edges if flatten else regions, dim)
        hidden = [nn.Sequential(nn.GELU(), nn.Dropout(dropout), nn.Linear(dim, dim)) for _ in range(layers - 1)]
        self.rest = nn.Sequential(*hidden)
        self.input_dropout = InputDropout(input_dropout)
        row, column = torch.triu_indices(regions, regions, offset=1)
        number = torch.zeros(regions, regions, dtype=torch.long)  # the diagonal is never read: its input is 0
        number[row, column] = number[column, row] = torch.arange(edges)
        self.register_buffer("number", number, persistent=False)
        self.number: Tensor

    def forward(self, connectome: Tensor) -> Encoded:
        """Encode `(B, R, R)` connectomes into `(B, R, d)` tokens and `(B, d)` pooled embeddings."""
        rows = check_shape(connectome, self.regions)
        if not self.flatten:
            tokens = self.rest(self.first(self.input_dropout(rows)))
            return Encoded(tokens, tokens.mean(1))
        upper = self.input_dropout(rows).triu(1)
        edges = upper + upper.transpose(1, 2)
        weight = functional.embedding(self.number, self.first.weight.T)  # (R, R) of E rows -> (R, R, d)
        tokens = torch.einsum("brs,rsd->brd", edges, weight) * (self.regions / 2)
        return Encoded(tokens, self.rest(tokens.mean(1) + self.first.bias))


class Pooling(nn.Module):
    """Read-out: N tokens become one embedding.

    - `mean` over the tokens.
    - `attention`: weighted mean; the weights are a softmax of learned scores, and start equal.
    - `concat`: each token is reduced to a few numbers by a projection that all share, these are laid side by side, and
      a linear layer reads them, so that a region keeps its place. The concatenation of BrainGB (Cui et al., IEEE
      Transactions on Medical Imaging 2023) with the narrow projection of the Brain Network Transformer.

    Args:
        dim: width d of a token, and of the embedding.
        kind: `mean`, `attention` or `concat`.
        tokens: number N of tokens; only `concat` needs it.
        dropout: dropout of the reduced tokens of `concat`.

    Raises:
        ValueError: when the kind is unknown, or `concat` does not know the number of tokens.
    """

    WIDTH = 8
    """Numbers a token is reduced to by `concat`, as in the Brain Network Transformer."""

    def __init__(self, dim: int, kind: ReadOut = "mean", tokens: int = 0, dropout: float = 0.5) -> None:
        super().__init__()
        if kind not in ("mean", "attention", "concat"):
            raise ValueError(f"unknown pooling '{kind}'; choose 'mean', 'attention' or 'concat'")
        if kind == "concat" and tokens < 1:
            raise ValueError("the pooling 'concat' has weights for each token: say how many there are")
        self.score = nn.Linear(dim, 1, bias=False) if kind == "attention" else None
        if self.score is not None:
            nn.init.zeros_(self.score.weight)
        self.concat = (
            nn.Sequential(
                nn.Linear(dim, self.WIDTH), nn.Dropout(dropout), nn.Flatten(), nn.Linear(tokens * self.WIDTH, dim)
            )
            if kind == "concat"
            else None
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool `(B, N, d)` tokens into `(B, d)`."""
        if self.concat is not None:
            joined: Tensor = self.concat(tokens)  # (B, N, d) -> (B, N, 8) -> (B, 8 N) -> (B, d)
            return joined
        if self.score is None:
            return tokens.mean(1)
        weights: Tensor = self.score(tokens).softmax(1)  # (B, N, 1)
        return (weights * tokens).sum(1)


def transformer(dim: int, layers: int, heads: int, feedforward: int, dropout: float) -> nn.Sequential:
    """Pre-norm transformer layers with GELU and a last LayerNorm, each layer with its own initial weights.

    Args:
        dim: width d of a token.
        layers: number of layers; the identity when 0.
        heads: attention heads; must divide `dim`.
        feedforward: hidden width of a layer.
        dropout: dropout of a layer.

    Returns:
        a module from `(B, N, d)` to `(B, N, d)`.

    Raises:
        ValueError: when the heads do not divide the width.
    """
    if layers == 0:
        return nn.Sequential()
    if dim % heads:
        raise ValueError(f"dim={dim} cannot be shared among heads={heads}; choose a multiple of {heads}")
    stack = [
        nn.TransformerEncoderLayer(dim, heads, feedforward, dropout, "gelu", batch_first=True, norm_first=True)
        for _ in range(layers)
    ]
    return nn.Sequential(*stack, nn.LayerNorm(dim))


def check_shape(connectome: Tensor, regions: int) -> Tensor:
    """The connectome itself, if its shape is `(B, R, R)`.

    Raises:
        ValueError: when it has another shape.
    """
    if connectome.ndim != 3 or connectome.shape[1:] != (regions, regions):
        raise ValueError(
            f"expected connectomes of shape (B, {regions}, {regions}), got {tuple(connectome.shape)}: the encoder was "
            f"built for {regions} regions; use the atlas of its cohort, or build it for this one"
        )
    return connectome
