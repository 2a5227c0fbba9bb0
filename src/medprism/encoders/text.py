"""Frozen vectors of phrases, and the bank that a model keeps of them.

A cohort has few distinct phrases ("autism spectrum disorder", "female", "site NYU"), so each is encoded once, before
training; no language model runs in the training loop, and none is needed to load a checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from medprism.encoders.build import check_options, resolve

TEXT_ENCODERS: Final[dict[str, str]] = {
    "table": "medprism.encoders.text.TableEncoder",
    "open_clip": "medprism.encoders.language.OpenCLIPEncoder",
    "huggingface": "medprism.encoders.language.HuggingFaceEncoder",
    "minilm": "medprism.encoders.language.MiniLMEncoder",
}
"""Short name to import path; nothing is imported before it is asked for."""

Level = Literal["phrase", "word"]


class TextTokens(NamedTuple):
    """Vectors of C phrases, each of up to L tokens.

    Attributes:
        vectors: `(C, L, D)`, zero where there is no token.
        mask: `(C, L)` bool, whether there is a token; the tokens of a phrase come first.
    """

    vectors: Tensor
    mask: Tensor


class TextEncoder(ABC):
    """Base of text encoders: frozen vectors for phrases. A subclass says in `embed` what the vectors are.

    Args:
        level: `phrase` for one vector a phrase (L = 1), `word` for one vector a token, without special tokens.

    Raises:
        ValueError: when there is no such level.
    """

    def __init__(self, level: Level = "phrase") -> None:
        if level not in ("phrase", "word"):
            raise ValueError(f"unknown level '{level}'; choose 'phrase' or 'word'")
        self.level = level

    @torch.no_grad()
    def encode(self, phrases: Sequence[str]) -> TextTokens:
        """Encode C phrases into float32 vectors on the CPU.

        Args:
            phrases: C phrases, none of them empty.

        Returns:
            vectors `(C, L, D)` and mask `(C, L)`.

        Raises:
            ValueError: when there is no phrase, or one has no token to encode.
        """
        if not phrases:
            raise ValueError("no phrases to encode; give at least one")
        if blank := [index for index, phrase in enumerate(phrases) if not phrase.strip()]:
            raise ValueError(f"phrases {blank} are empty; every class needs words that say it")
        rows = [row.float().cpu() for row in self.embed(list(phrases))]
        if none := [phrase for phrase, row in zip(phrases, rows, strict=True) if len(row) == 0]:
            raise ValueError(f"the text encoder knows no token of {none}; reword, or choose level='phrase'")
        lengths = torch.tensor([len(row) for row in rows])
        return TextTokens(pad_sequence(rows, batch_first=True), torch.arange(int(lengths.max())) < lengths[:, None])

    @abstractmethod
    def embed(self, phrases: list[str]) -> list[Tensor]:
        """For each phrase its vectors `(L_c, D)`; one row when the level is `phrase`."""


class TableEncoder(TextEncoder):
    """A seeded embedding table: unit normal / sqrt(dim), a function of seed and text alone.

    The offline default, and the control that shows whether language adds anything: its vectors know nothing of
    meaning. With `level="word"` a word has the same vector in every phrase, in upper and lower case.

    Args:
        dim: width D of a vector; its expected squared norm is 1.
        seed: seed of the table.
        level: `phrase` for one vector a phrase, `word` for one a word.
    """

    def __init__(self, dim: int = 256, seed: int = 0, level: Level = "phrase") -> None:
        super().__init__(level)
        self.dim, self.seed = dim, seed

    def embed(self, phrases: list[str]) -> list[Tensor]:
        """For each phrase its vectors `(L_c, dim)`."""
        if self.level == "phrase":
            return [self._vector(phrase)[None] for phrase in phrases]
        words = [re.findall(r"\w+", phrase.lower()) or [phrase] for phrase in phrases]
        return [torch.stack([self._vector(word) for word in each]) for each in words]

    def _vector(self, text: str) -> Tensor:
        digest = hashlib.sha256(f"{self.seed}\n{text}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
        # dtype and device are given, since a precision plugin changes torch's defaults
        vector = torch.randn(self.dim, generator=generator, dtype=torch.float32, device="cpu")
        return vector / math.sqrt(self.dim)


def build_text_encoder(name: str, options: Mapping[str, Any] | None = None) -> TextEncoder:
    """Build a text encoder, loading its language model.

    Args:
        name: `table`, `open_clip`, `huggingface`, `minilm`, or the import path of your own subclass of `TextEncoder`.
        options: its constructor arguments, as plain values.

    Returns:
        the encoder.

    Raises:
        ValueError: when the name or an option is unknown.
        TypeError: when your own class is no `TextEncoder`.
        ImportError: when it needs a package that is not installed; says which extra to install.
    """
    cls = resolve(name, TEXT_ENCODERS, "text encoder")
    if not issubclass(cls, TextEncoder):
        raise TypeError(f"text encoder '{name}' must be a subclass of medprism.encoders.TextEncoder")
    check_options(cls, name, options or {})
    encoder: TextEncoder = cls(**(options or {}))
    return encoder


class PhraseBank(nn.Module):
    """Frozen vectors of phrases, and a trainable projection of them into a model's space.

    Building a bank loads no language model. `materialise` does, encodes each distinct phrase once, and lets go of it;
    a method calls it in `setup`, before its optimizer is made. A bank that loads a state dict takes vectors and
    projection from there instead, in whatever shape they have. The `table` encoder is cheap and runs at once.

    Args:
        phrases: phrases; of equal ones the first is kept.
        encoder: name of a text encoder, see `build_text_encoder`.
        options: its constructor arguments, as plain values.
        dim: width d of the projected vectors.

    Attributes:
        phrases: the C distinct phrases, in the order given.
        vectors: `(C, L, D)` frozen vectors; None before `materialise`.
        mask: `(C, L)` bool, whether there is a token; None before `materialise`.
        projection: `Linear(D -> dim, bias=False)`; None before `materialise`.

    Raises:
        ValueError: when there is no phrase, or the encoder's name or an option is unknown.
    """

    def __init__(
        self,
        phrases: Sequence[str],
        encoder: str = "table",
        options: Mapping[str, Any] | None = None,
        dim: int = 256,
    ) -> None:
        super().__init__()
        self.phrases = tuple(dict.fromkeys(phrases))
        if not self.phrases:
            raise ValueError("a phrase bank needs at least one phrase")
        self.encoder, self.options, self.dim = encoder, dict(options or {}), dim
        if encoder in TEXT_ENCODERS or "." not in encoder:  # your own module need not be at hand to load a checkpoint
            check_options(resolve(encoder, TEXT_ENCODERS, "text encoder"), encoder, self.options)
        self._rows = {phrase: row for row, phrase in enumerate(self.phrases)}
        self._digest = list(hashlib.sha256("\0".join(self.phrases).encode()).digest()[:8])
        self.register_buffer("fingerprint", torch.tensor(self._digest, dtype=torch.uint8))
        self.register_buffer("_like", torch.zeros(()), persistent=False)  # follows .to(), so knows device and dtype
        self.register_buffer("vectors", None)
        self.register_buffer("mask", None)
        self._like: Tensor
        self.vectors: Tensor | None
        self.mask: Tensor | None
        self.projection: nn.Linear | None
        self.register_module("projection", None)
        if encoder == "table":
            self.materialise()

    def index(self, phrase: str) -> int:
        """The row of a phrase.

        Raises:
            KeyError: when the bank has no such phrase.
        """
        if phrase not in self._rows:
            raise KeyError(f"the phrase bank has no phrase '{phrase}'; it has {list(self.phrases)}")
        return self._rows[phrase]

    def materialise(self) -> None:
        """Encode the phrases and make the projection, unless that is done.

        The projection's initial weights depend on torch's global seed at this moment, and on no language model.
        """
        if self.vectors is not None:
            return
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            vectors, mask = build_text_encoder(self.encoder, self.options).encode(self.phrases)
        self._create(vectors, mask)

    def forward(self) -> TextTokens:
        """The projected vectors `(C, L, dim)` and their mask `(C, L)`."""
        self.materialise()
        assert self.vectors is not None and self.mask is not None and self.projection is not None
        return TextTokens(self.projection(self.vectors), self.mask)

    def extra_repr(self) -> str:
        """What `print` shows."""
        return f"{len(self.phrases)} phrases, encoder={self.encoder!r}, dim={self.dim}"

    def _create(self, vectors: Tensor, mask: Tensor) -> None:
        with torch.inference_mode(False):  # a bank first used in validation must still train afterwards
            self.vectors, self.mask = vectors.to(self._like), mask.to(self._like.device)
            # made on the CPU and moved, so that one seed gives one projection on every device
            projection = nn.Linear(vectors.shape[-1], self.dim, bias=False, device="cpu", dtype=torch.float32)
            self.projection = projection.to(self._like)
        self.projection.train(self.training)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Make room for what the state dict holds, so that loading needs no language model."""
        vectors, mask = state_dict.get(f"{prefix}vectors"), state_dict.get(f"{prefix}mask")
        fingerprint = state_dict.get(f"{prefix}fingerprint")
        if fingerprint is not None and fingerprint.tolist() != self._digest:
            error_msgs.append(
                f"the phrase bank '{prefix}' was saved with other phrases, or in another order, than {self.phrases}: "
                "load it with the cohort that it was trained on"
            )
            return
        if self.vectors is None and vectors is not None and mask is not None:
            with torch.random.fork_rng(devices=[]):  # loading leaves the global seed alone
                self._create(torch.zeros_like(vectors), torch.zeros_like(mask))
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
