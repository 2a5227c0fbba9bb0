"""Encoders: connectomes, images and volumes into tokens, phrases into frozen vectors; found by name."""

from medprism.encoders.base import Encoded, Encoder, pooled
from medprism.encoders.build import ENCODERS, build_encoder
from medprism.encoders.text import TEXT_ENCODERS, PhraseBank, TextEncoder, TextTokens, build_text_encoder

__all__ = [
    "ENCODERS",
    "TEXT_ENCODERS",
    "Encoded",
    "Encoder",
    "PhraseBank",
    "TextEncoder",
    "TextTokens",
    "build_encoder",
    "build_text_encoder",
    "pooled",
]
