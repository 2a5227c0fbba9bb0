from collections.abc import Callable
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[str]], Path]:
    """Writes a tiny BERT at random, with a tokenizer of the words that it is given; gives its folder."""
    transformers = pytest.importorskip("transformers", reason='needs pip install "medprism[huggingface]"')

    def write(words: list[str]) -> Path:
        folder = tmp_path_factory.mktemp("bert")
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]))
        transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=5 + len(words),
            hidden_size=12,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=8,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        transformers.BertModel(config).save_pretrained(folder)
        return folder

    return write
