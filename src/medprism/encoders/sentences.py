"""Sentence towers: trainable encoders of texts, one vector a text; found by name.

Unlike a `PhraseBank`, whose few phrases are known before training, a tower reads whatever sentences a batch brings,
each distinct one once, and learns with the image encoder.
"""

from __future__ import annotations

import re
import warnings
import zlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from medprism.encoders.build import check_options, resolve
from medprism.encoders.text import TEXT_ENCODERS, TextEncoder, build_text_encoder
from medprism.encoders.trunks import loads_weights

SENTENCE_TOWERS: Final[dict[str, str]] = {
    "small": "medprism.encoders.sentences.HashedWords",
    "frozen": "medprism.encoders.sentences.FrozenSentences",
    "open_clip": "medprism.encoders.towers.OpenCLIPTower",
    "huggingface": "medprism.encoders.towers.HuggingFaceTower",
}
"""Short name to import path; nothing is imported before it is asked for."""

AT_ONCE = 512
"""Texts that a tower encodes at a time; a larger number only costs memory."""


class SentenceTower(nn.Module, ABC):
    """Base of sentence towers; a subclass says in `encode` what the vectors are.

    Constructor arguments beside `dim` are plain values, so that a checkpoint which remembers them loads with
    `weights_only=True`. A tower that is built under `without_pretrained_weights` needs neither a network nor the files
    of its language model until a state dictionary is loaded, and takes all that it can from there.

    Args:
        dim: width d of the vectors, which a bias-free projection brings about.

    Attributes:
        cut: the texts so far that were longer than the tower takes, and were cut.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim}: the width of a sentence's vector is at least 1")
        self.dim = dim
        self.cut: set[str] = set()
        self.projection: nn.Linear | None
        self.register_module("projection", None)

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Encode k texts into `(k, d)`; of equal ones the first is encoded, and the others share its vector.

        Raises:
            ValueError: when there is no text.
        """
        if not texts:
            raise ValueError("no texts to encode; give at least one")
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        distinct = list(rows)
        parts = [self.encode(distinct[start : start + AT_ONCE]) for start in range(0, len(distinct), AT_ONCE)]
        vectors = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(distinct) == len(texts):
            return vectors
        return vectors[torch.tensor([rows[text] for text in texts], device=vectors.device)]

    @abstractmethod
    def encode(self, texts: list[str]) -> Tensor:
        """Encode k distinct texts into `(k, d)`."""

    def project(self, vectors: Tensor) -> Tensor:
        """`(k, D)` vectors of the language model to `(k, d)`.

        Raises:
            RuntimeError: when the tower is one without weights.
        """
        if self.projection is None:
            raise RuntimeError(
                f"this {type(self).__name__} was built without weights, for a state dictionary to be loaded; load it, "
                "or build the tower outside of `without_pretrained_weights`"
            )
        projected: Tensor = self.projection(vectors)
        return projected

    def count_cut(self, texts: Sequence[str], longest: int) -> None:
        """Remember texts that were cut after `longest` tokens, and warn when the first ones are."""
        if texts and not self.cut:
            warnings.warn(
                f"{len(texts)} texts of this batch are longer than the {longest} tokens that the tower reads and are "
                f"cut there, such as '{texts[0][:80]}'. Split them into sentences. This is said once; the attribute "
                "`cut` of the tower holds all such texts",
                stacklevel=2,
            )
        self.cut.update(texts)


class HashedWords(SentenceTower):
    """A tower for CPUs that needs no download: a table of hashed words, a small transformer, gated pooling.

    A word's row in the table is its CRC-32, so cohorts need no vocabulary, and the same text has the same row
    everywhere; two words in a few thousand may share one. The gate is a softmax over the words of a text, so that a
    tower can learn which ones matter.

    Args:
        dim: width d of the vectors.
        width: width of a word's embedding.
        layers: transformer layers; 0 for a bag of words.
        heads: attention heads; must divide `width`.
        buckets: rows of the table.
        longest: words that are read of a text; further ones are cut.
        dropout: dropout of the layers.

    Raises:
        ValueError: when a number makes no sense.
    """

    def __init__(
        self,
        dim: int,
        width: int = 64,
        layers: int = 1,
        heads: int = 4,
        buckets: int = 4096,
        longest: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(dim)
        if min(width, heads, buckets, longest) < 1 or layers < 0 or width % heads:
            raise ValueError(
                f"width={width}, heads={heads}, buckets={buckets}, longest={longest}, layers={layers}: all are at "
                "least 1, layers at least 0, and the width is a multiple of the heads"
            )
        self.buckets, self.longest = buckets, longest
        self.words = nn.Embedding(buckets + 1, width, padding_idx=0)
        self.positions = nn.Parameter(0.02 * torch.randn(longest, width)) if layers else None
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, heads, 4 * width, dropout, "gelu", batch_first=True, norm_first=True)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 1, bias=False)
        self.projection = nn.Linear(width, dim, bias=False)

    def encode(self, texts: list[str]) -> Tensor:
        """Encode k distinct texts into `(k, d)`."""
        codes = [[1 + zlib.crc32(word.encode()) % self.buckets for word in words_of(text)] for text in texts]
        long = [text for text, each in zip(texts, codes, strict=True) if len(each) > self.longest]
        self.count_cut(long, self.longest)
        padded = pad_sequence([torch.tensor(each[: self.longest]) for each in codes], batch_first=True)
        padded = padded.to(self.words.weight.device)  # (k, T)
        padding = padded == 0
        states = self.words(padded)
        if self.positions is not None:
            states = states + self.positions[: states.shape[1]]
        for layer in self.layers:
            states = layer(states, src_key_padding_mask=padding)
        states = self.norm(states)
        share = self.gate(states).float().masked_fill(padding[..., None], -torch.inf).softmax(1)
        return self.project((share * states).sum(1))


class FrozenSentences(SentenceTower):
    """Frozen vectors of a text encoder, and a trainable projection of them.

    Each distinct text is encoded once, on the CPU, and its vector is kept there. The language model is no part of the
    checkpoint: whoever loads one needs it at hand for the first text.

    Args:
        dim: width d of the vectors.
        encoder: name of a text encoder: `table`, `open_clip`, `huggingface` or `minilm`, or the import path of your
            own; see `medprism.encoders.build_text_encoder`.
        options: its constructor arguments. With `level: word` a text's vector is the mean over its words.

    Raises:
        ValueError: when the encoder's name or an option is unknown.
    """

    def __init__(self, dim: int, encoder: str = "table", options: dict[str, Any] | None = None) -> None:
        super().__init__(dim)
        self.encoder, self.options = encoder, dict(options or {})
        if encoder in TEXT_ENCODERS or "." not in encoder:  # your own module need not be at hand to load a checkpoint
            check_options(resolve(encoder, TEXT_ENCODERS, "text encoder"), encoder, self.options)
        self._source: TextEncoder | None = None
        self._known: dict[str, Tensor] = {}
        if loads_weights():
            self.projection = nn.Linear(self._vectors(["width"]).shape[1], dim, bias=False)

    def encode(self, texts: list[str]) -> Tensor:
        """Encode k distinct texts into `(k, d)`."""
        vectors = self._vectors(texts)
        return self.project(vectors if self.projection is None else vectors.to(self.projection.weight))

    def _vectors(self, texts: list[str]) -> Tensor:
        """`(k, D)` on the CPU."""
        new = [text for text in texts if text not in self._known]
        if new:
            # Vectors that were first needed in validation must serve training afterwards.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                if self._source is None:
                    self._source = build_text_encoder(self.encoder, self.options)
                tokens, mask = self._source.encode(new)
                weight = mask.to(tokens.dtype)[..., None]
                means = (tokens * weight).sum(1) / weight.sum(1)  # (k, L, D) -> (k, D)
            self._known |= {text: row.clone() for text, row in zip(new, means, strict=True)}
        return torch.stack([self._known[text] for text in texts])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Make room for the projection that the state dictionary holds."""
        weight = state_dict.get(f"{prefix}projection.weight")
        if self.projection is None and weight is not None:
            with torch.random.fork_rng(devices=[]):  # loading leaves the global seed alone
                self.projection = nn.Linear(weight.shape[1], self.dim, bias=False)
        super()._load_from_state_dict(state_dict, prefix, *rest)


def build_sentence_tower(name: str, dim: int, options: Mapping[str, Any] | None = None) -> SentenceTower:
    """Build a sentence tower.

    Args:
        name: `small`, `frozen`, `open_clip`, `huggingface`, or the import path of your own subclass of
            `SentenceTower`.
        dim: width d of its vectors.
        options: its other constructor arguments, as plain values.

    Returns:
        the tower.

    Raises:
        ValueError: when the name or an option is unknown.
        TypeError: when your own class is no `SentenceTower`.
        ImportError: when it needs a package that is not installed; says which extra to install.
        OSError: when a language model or its weights cannot be had.
    """
    cls = resolve(name, SENTENCE_TOWERS, "sentence tower")
    if not issubclass(cls, SentenceTower):
        raise TypeError(f"sentence tower '{name}' must be a subclass of medprism.encoders.SentenceTower")
    check_options(cls, name, options or {}, fixed={"dim": dim})
    tower: SentenceTower = cls(dim=dim, **(options or {}))
    return tower


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; the text itself when it has none."""
    return re.findall(r"\w+", text.lower()) or [text]
