"""Encoders: connectomes, images and volumes into tokens, phrases and sentences into vectors; found by name."""

from medprism.encoders.base import Encoded, Encoder, pooled
from medprism.encoders.build import ENCODERS, build_encoder
from medprism.encoders.sentences import SENTENCE_TOWERS, SentenceTower, build_sentence_tower
from medprism.encoders.text import TEXT_ENCODERS, PhraseBank, TextEncoder, TextTokens, build_text_encoder

__all__ = [
    "ENCODERS",
    "SENTENCE_TOWERS",
    "TEXT_ENCODERS",
    "Encoded",
    "Encoder",
    "PhraseBank",
    "SentenceTower",
    "TextEncoder",
    "TextTokens",
    "build_encoder",
    "build_sentence_tower",
    "build_text_encoder",
    "pooled",
]
