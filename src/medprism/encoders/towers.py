"""Sentence towers that are language models and learn: text towers of open_clip, and Hugging Face encoders."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medprism.encoders.language import HuggingFaceEncoder, OpenCLIPEncoder
from medprism.encoders.sentences import SentenceTower
from medprism.encoders.trunks import loads_weights


class OpenCLIPTower(SentenceTower):
    """The text tower of a contrastive image-text model through open_clip, as it compares texts with images.

    Args:
        dim: width d of the vectors.
        model: name of an open_clip model, `hf-hub:owner/name` (such as BiomedCLIP), or `local-dir:/folder`.
        pretrained: tag of published weights, or path of a weights file; None starts from random weights. Not read for
            `hf-hub:` and `local-dir:`, which have weights.

    Raises:
        OSError: when the model or its weights cannot be had.
    """

    def __init__(self, dim: int, model: str = "ViT-B-32", pretrained: str | None = None) -> None:
        super().__init__(dim)
        with warnings.catch_warnings():
            if not loads_weights():
                warnings.filterwarnings("ignore", message=".*has random weights")
            source = OpenCLIPEncoder(model, pretrained if loads_weights() else None, seed=torch.initial_seed())
        self.tokenizer = source.tokenizer
        self.padding = source.padding
        self.model: Any = source.model.text.train()
        width = _width(self.model, self.tokenizer(["width"]))
        self.projection = nn.Linear(width, dim, bias=False)

    def encode(self, texts: list[str]) -> Tensor:
        """Encode k distinct texts into `(k, d)`."""
        codes = self.tokenizer(texts)  # (k, T), padded to the length of the context
        full = codes[:, -1] != self.padding
        self.count_cut([text for text, cut in zip(texts, full.tolist(), strict=True) if cut], codes.shape[1])
        assert self.projection is not None
        return self.project(self.model(codes.to(self.projection.weight.device)))


class HuggingFaceTower(SentenceTower):
    """A Hugging Face encoder such as BERT: the mean over tokens of the mean of its last hidden layers (EGMA).

    A checkpoint holds the description of the model and its tokenizer beside the weights, so that it loads without a
    network and without the original files.

    Args:
        dim: width d of the vectors.
        model: name on the Hugging Face hub, such as `emilyalsentzer/Bio_ClinicalBERT`, or a local folder.
        last_layers: number of last hidden layers that are averaged.
        masked: whether padding is left out of the mean over tokens. False is what MedCLIP's weights were trained
            with; then a vector depends on the longest text that is encoded with it.
        longest: tokens that are read of a text, at most those that the model can read; further ones are cut.

    Raises:
        ImportError: when transformers is not installed.
        OSError: when the model cannot be had.
        ValueError: when it has fewer layers, or `longest` is too small.
    """

    def __init__(
        self, dim: int, model: str, last_layers: int = 4, masked: bool = True, longest: int | None = None
    ) -> None:
        super().__init__(dim)
        if longest is not None and longest < 3:
            raise ValueError(f"longest={longest}: a text has at least 3 tokens, of which two mark its start and end")
        self.last_layers, self.masked, self.longest = last_layers, masked, longest
        self.tokenizer: Any = None
        self.model: Any
        self.register_module("model", None)
        self._files: dict[str, bytes] = {}
        if loads_weights():
            source = HuggingFaceEncoder(model, last_layers=last_layers)
            self._create(source.model, source.tokenizer)

    def encode(self, texts: list[str]) -> Tensor:
        """Encode k distinct texts into `(k, d)`."""
        if self.projection is None:
            return self.project(torch.empty(0))
        longest = self._longest()
        plain = self.tokenizer(texts, verbose=False)["input_ids"]
        cut = [text for text, codes in zip(texts, plain, strict=True) if len(codes) > longest]
        self.count_cut(cut, longest)
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = {name: codes.to(self.projection.weight.device) for name, codes in tokens.items()}
        hidden = self.model(**tokens, output_hidden_states=True).hidden_states[-self.last_layers :]
        states = torch.stack(hidden).mean(0)  # (layers, k, T, D) -> (k, T, D)
        if not self.masked:
            return self.project(states.mean(1))
        weight = tokens["attention_mask"].to(states.dtype)[..., None]
        return self.project((states * weight).sum(1) / weight.sum(1))

    def get_extra_state(self) -> dict[str, bytes]:
        """The files that describe the model and its tokenizer, by name."""
        return self._files

    def set_extra_state(self, state: Any) -> None:
        """Nothing: `_load_from_state_dict` has read it."""

    def _create(self, model: Any, tokenizer: Any) -> None:
        if getattr(model, "pooler", None) is not None:
            model.pooler = None  # nothing reads it, and plain DDP waits for every parameter
        self.model, self.tokenizer = model.train(self.training), tokenizer
        self.projection = nn.Linear(model.config.hidden_size, self.dim, bias=False)
        with tempfile.TemporaryDirectory() as folder:
            model.config.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            self._files = {str(path.relative_to(folder)): path.read_bytes() for path in files}

    def _longest(self) -> int:
        limits = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", 512))
        return int(min(*limits, self.longest or limits[0]))

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Build the model that the state dictionary describes, unless there is one."""
        files = state_dict.get(f"{prefix}_extra_state")
        if self.model is None and files:
            from transformers import AutoConfig, AutoModel, AutoTokenizer  # an extra, and slow to import

            with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
                for name, content in files.items():
                    path = Path(folder, Path(name).name)  # a checkpoint must not choose where files are written
                    path.write_bytes(content)
                model = AutoModel.from_config(AutoConfig.from_pretrained(folder)).float()
                self._create(model, AutoTokenizer.from_pretrained(folder))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _width(model: nn.Module, codes: Tensor) -> int:
    """Width of the vectors of a text tower."""
    model.eval()
    with torch.no_grad():
        width = int(model(codes).shape[-1])
    model.train()
    return width
