"""What every encoder of an input field is: a module from the input to tokens and a pooled embedding."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class Encoded(NamedTuple):
    """What an encoder makes of B inputs.

    Attributes:
        tokens: `(B, N, d)` embeddings of the N regions or patches, in the order of the input.
        pooled: `(B, d)` embedding of the whole input.
    """

    tokens: Tensor
    pooled: Tensor


class Encoder(nn.Module):
    """Base of encoders; a subclass maps its input field to `Encoded` in `forward`.

    Subclasses set `dim` in `__init__`. Their constructor arguments are plain values, so that a checkpoint which
    remembers them loads with `weights_only=True`; the first ones (`regions` of a connectome, `input_shape` of other
    inputs) are filled in from the cohort by `build_encoder`.

    Attributes:
        input_field: the `Batch` field that it reads.
        dim: width d of the tokens and of the pooled embedding.
        grid: rows and columns (and slices) of the tokens; of encoders of images and volumes.
    """

    input_field: ClassVar[str]
    dim: int

    def pooled(self, x: Tensor) -> Tensor:
        """`(B, d)` embeddings of whole inputs alone; an encoder whose tokens cost extra leaves them out here."""
        pooled: Tensor = self(x).pooled
        return pooled


def pooled(encoder: nn.Module, x: Tensor) -> Tensor:
    """The pooled embedding of any encoder, also of a user's own that is no `Encoder`."""
    embedding: Tensor = encoder.pooled(x) if isinstance(encoder, Encoder) else encoder(x).pooled
    return embedding
