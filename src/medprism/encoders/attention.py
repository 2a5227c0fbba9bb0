"""Text token-conditioned attention (TTCA): each text token asks the region tokens a question of its own."""

from __future__ import annotations

from torch import Tensor, nn


class TokenConditionedAttention(nn.Module):
    """Multi-head cross-attention from text tokens to region tokens (NeuroLIP; the equations are a reconstruction).

        A^h = softmax over regions( norm(U) W_Q^h (norm(V) W_K^h)^T / sqrt(d_h) ),
        z = [concat_h A^h norm(V) W_V^h] W_O + b_O

    There is no residual from the query to `z`, which would make cos(z, u) high whatever the brain says, and no empty
    slot: every row of the map sums to 1 over the regions. The offset b_O, the same for every sample, keeps the size of
    a sample's own answer in cos(z, u), which without it depends on the direction alone.

    Args:
        dim: width d of text and region tokens.
        heads: number of heads; must divide `attention_dim`.
        attention_dim: summed width of the heads; `dim` when left out.
        normalise_regions: apply LayerNorm to the region tokens first. Without it the magnitude of a token, which a
            region-specific projection uses, reaches keys and values.
        dropout: share of attention weights that are dropped in training.
        uniform: attend to every region alike, whatever the token says; the control that shows what attention adds.

    Raises:
        ValueError: when `heads` does not divide the attention width.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        attention_dim: int | None = None,
        normalise_regions: bool = True,
        dropout: float = 0.0,
        uniform: bool = False,
    ) -> None:
        super().__init__()
        width = attention_dim or dim
        if width % heads:
            raise ValueError(f"{heads} heads do not divide the attention width {width}; choose a divisor of it")
        self.heads, self.uniform = heads, uniform
        self.norm_text = nn.LayerNorm(dim)
        self.norm_regions = nn.LayerNorm(dim) if normalise_regions else nn.Identity()
        self.query, self.key = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.value, self.out = nn.Linear(dim, width, bias=False), nn.Linear(width, dim)
        self.dropout = nn.Dropout(dropout)
        if uniform:  # parameters that never get a gradient would stop plain DDP
            del self.query, self.key, self.norm_text

    def forward(self, text: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Answer every text token from the regions of every sample.

        Args:
            text: `(T, d)` tokens asked of every sample, or `(B, T, d)` tokens of each sample.
            regions: `(B, N, d)`.

        Returns:
            Answers `(B, T, d)`, and maps `(B, T, N)`: the mean over heads, each row summing to 1.
        """
        values = self.norm_regions(regions)
        batch, n = regions.shape[:2]
        if self.uniform:
            answer = self.out(self.value(values)).mean(1, keepdim=True).expand(-1, text.shape[-2], -1)
            return answer, regions.new_full((batch, text.shape[-2], n), 1 / n)
        q = self._split(self.query(self.norm_text(text)))  # (H, T, d_h) or (B, H, T, d_h)
        k, v = self._split(self.key(values)), self._split(self.value(values))  # (B, H, N, d_h)
        attention = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)  # (B, H, T, N)
        answer = (self.dropout(attention) @ v).transpose(1, 2).flatten(2)  # (B, T, H d_h)
        return self.out(answer), attention.mean(1)

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(-2, -3)
