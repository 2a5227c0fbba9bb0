"""Sentence towers: hashed words, frozen vectors, and language models that are built here at random."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medprism.encoders import SentenceTower, build_sentence_tower
from medprism.encoders.text import TableEncoder
from medprism.encoders.trunks import without_pretrained_weights

TEXTS = ["Small left effusion.", "No effusion.", "The heart is enlarged and the left lung is clear.", "?!"]
SHORT = TEXTS[:2]


def small(**options: Any) -> SentenceTower:
    torch.manual_seed(0)
    return build_sentence_tower("small", 6, {"width": 8, "heads": 2, **options})


def without_gradient(tower: nn.Module) -> list[str]:
    return [name for name, p in tower.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]


class Count:
    """Wraps `encode` and remembers the texts that reach it."""

    def __init__(self, tower: SentenceTower) -> None:
        self.texts: list[str] = []
        self.encode: Callable[[list[str]], Tensor] = tower.encode
        tower.encode = self  # type: ignore[method-assign,assignment]

    def __call__(self, texts: list[str]) -> Tensor:
        self.texts += texts
        return self.encode(texts)


# -------------------------------------------------------------------------------------------------------- every tower
def test_each_distinct_text_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = small().eval()
    counted = Count(tower)
    vectors = tower([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[1]])
    assert counted.texts == TEXTS[:3]
    assert torch.equal(vectors[[0, 1]], vectors[[2, 4]])
    monkeypatch.setattr("medprism.encoders.sentences.AT_ONCE", 2)
    torch.testing.assert_close(tower([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2], TEXTS[1]]), vectors)
    with pytest.raises(ValueError, match="no texts"):
        tower([])


class Lengths(SentenceTower):
    """A user's own tower."""

    def encode(self, texts: list[str]) -> Tensor:
        return torch.tensor([[float(len(text))] * self.dim for text in texts])


def test_own_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "own_tower", sys.modules[__name__])
    assert build_sentence_tower("own_tower.Lengths", 2)(["ab", "a"]).tolist() == [[2, 2], [1, 1]]
    with pytest.raises(TypeError, match="subclass"):
        build_sentence_tower("own_tower.Count", 2)


@pytest.mark.parametrize(
    ("name", "dim", "options", "message"),
    [
        ("smal", 4, {}, r"unknown sentence tower 'smal'.*'frozen', 'huggingface', 'open_clip', 'small'"),
        ("small", 4, {"depth": 3}, r"no options \['depth'\]; .*layers: int = 1"),
        ("small", 4, {"dim": 3}, r"options \['dim'\] of 'small' are set"),
        ("small", 0, {}, "dim=0"),
        ("small", 4, {"width": 9}, "multiple of the heads"),
        ("frozen", 4, {"encoder": "tabel"}, "unknown text encoder 'tabel'"),
        ("frozen", 4, {"options": {"width": 3}}, r"no options \['width'\]"),
        ("huggingface", 4, {}, r"needs options \['model'\]"),
        ("huggingface", 4, {"model": "x", "longest": 2}, "longest=2"),
    ],
)
def test_wrong_names_and_options(name: str, dim: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_sentence_tower(name, dim, options)


# -------------------------------------------------------------------------------------------------------------- small
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_small(layers: int) -> None:
    tower = small(layers=layers)
    vectors = tower(TEXTS)
    assert vectors.shape == (4, 6) and vectors.isfinite().all()
    (vectors * torch.randn(4, 6)).sum().backward()
    assert without_gradient(tower) == []
    assert torch.equal(small(layers=layers)(TEXTS), vectors)
    tower.eval()
    for text, vector in zip(TEXTS, vectors, strict=True):  # neither padding nor company matters
        torch.testing.assert_close(tower([text])[0], vector, rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(tower([text])[0], vector, rtol=1e-4, atol=1e-5)


def test_small_order_of_words() -> None:
    one, other = "effusion left not right", "effusion right not left"
    bag, layers = small(layers=0), small(layers=1)
    torch.testing.assert_close(*bag([one, other]))
    torch.nn.init.normal_(layers.positions)
    assert not torch.allclose(*layers([one, other]), atol=1e-3)


def test_small_words_are_hashed_alike_everywhere() -> None:
    tower: Any = small(layers=0, buckets=1000)
    with torch.no_grad():
        tower.words.weight.zero_()
        tower.words.weight[1 + 0x8C334F7B % 1000] = torch.arange(8.0)  # the CRC-32 of "effusion"
    states = tower.norm(tower.words.weight)
    torch.testing.assert_close(tower(["Effusion!"])[0], tower.projection(states[1 + 0x8C334F7B % 1000]))


def test_small_cuts_long_texts_and_says_so_once(recwarn: pytest.WarningsRecorder) -> None:
    tower = small(longest=3)
    vectors = tower(["one two three four", "one two three", "a b c d e"])
    torch.testing.assert_close(vectors[0], vectors[1])
    tower(["one two three four", "and another long text"])
    assert [str(w.message)[:60] for w in recwarn] == ["2 texts of this batch are longer than the 3 tokens that the "]
    assert tower.cut == {"one two three four", "a b c d e", "and another long text"}


# ------------------------------------------------------------------------------------------------------------- frozen
def test_frozen_encodes_each_text_once_and_learns_the_projection(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    plain = TableEncoder.embed
    monkeypatch.setattr(TableEncoder, "embed", lambda self, texts: asked.extend(texts) or plain(self, texts))
    tower: Any = build_sentence_tower("frozen", 6, {"options": {"dim": 5, "level": "word"}})
    asked.clear()
    with torch.inference_mode():
        tower(SHORT)
    vectors = tower(TEXTS[1:])  # what was first needed in a test serves training
    assert asked == TEXTS
    assert [name for name, _ in tower.named_parameters()] == ["projection.weight"] and not list(tower.buffers())
    words = torch.stack(plain(TableEncoder(5), ["no", "effusion"])).mean(0)
    torch.testing.assert_close(vectors[0], tower.projection(words[0]))
    vectors.square().sum().backward()
    assert tower.projection.weight.grad.any()


def test_frozen_projection_depends_on_the_seed_alone() -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        weights.append(build_sentence_tower("frozen", 4).projection.weight)  # type: ignore[union-attr]
    assert torch.equal(*weights)


def test_frozen_state_needs_no_language_model() -> None:
    tower = build_sentence_tower("frozen", 6, {"options": {"dim": 5}})
    with without_pretrained_weights():
        again = build_sentence_tower("frozen", 6, {"encoder": "gone.Encoder"})
    with without_pretrained_weights():
        empty = build_sentence_tower("frozen", 6)
    with pytest.raises(RuntimeError, match="built without weights"):
        empty(TEXTS)
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again.projection.weight, tower.projection.weight)  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------------------------- Hugging Face
@pytest.fixture(scope="module")
def bert(tiny_bert: Callable[[list[str]], Path]) -> Path:
    return tiny_bert(["small", "left", "effusion", "no", "heart", "the", "."])


def hidden_states(folder: Path, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Mean of the last two layers, padded, and which tokens there are."""
    import transformers

    tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
    model = transformers.AutoModel.from_pretrained(folder)
    states = model.eval()(**tokens, output_hidden_states=True).hidden_states
    return (states[-1] + states[-2]) / 2, tokens["attention_mask"].bool()


@pytest.mark.parametrize("masked", [True, False])
def test_huggingface_is_the_mean_over_layers_then_tokens(bert: Path, masked: bool) -> None:
    tower: Any = build_sentence_tower("huggingface", 6, {"model": str(bert), "last_layers": 2, "masked": masked})
    states, mask = hidden_states(bert, SHORT)
    means = [row[kept].mean(0) if masked else row.mean(0) for row, kept in zip(states, mask, strict=True)]
    assert mask.sum(1).tolist() == [6, 5]
    vectors = tower(SHORT)
    torch.testing.assert_close(vectors, tower.projection(torch.stack(means)), atol=1e-5, rtol=1e-4)
    (vectors * torch.randn(2, 6)).sum().backward()
    assert without_gradient(tower) == []  # plain DDP waits for every parameter
    assert tower.projection.bias is None


def test_huggingface_cuts_long_texts(bert: Path) -> None:
    tower = build_sentence_tower("huggingface", 6, {"model": str(bert), "last_layers": 1})
    long = "the heart the heart the heart the heart"
    with pytest.warns(UserWarning, match=r"1 texts of this batch are longer than the 8 tokens.*'the heart the"):
        vectors = tower([long, "the heart the heart the heart"])
    torch.testing.assert_close(*vectors)
    shorter = build_sentence_tower("huggingface", 6, {"model": str(bert), "last_layers": 1, "longest": 4})
    with pytest.warns(UserWarning, match="longer than the 4 tokens"):
        shorter(["the heart the heart"])


def test_huggingface_loads_without_its_files(bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "moved"
    shutil.copytree(bert, folder)
    options = {"model": str(folder), "last_layers": 2}
    torch.manual_seed(1)
    tower = build_sentence_tower("huggingface", 6, options).eval()
    torch.save(tower.state_dict(), tmp_path / "state.pt")
    shutil.rmtree(folder)
    with without_pretrained_weights():
        again = build_sentence_tower("huggingface", 6, options)
    with pytest.raises(RuntimeError, match="built without weights"):
        again(TEXTS)
    generator = torch.get_rng_state()
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.equal(again.eval()(SHORT), tower(SHORT))
    torch.save(again.state_dict(), tmp_path / "again.pt")
    assert torch.load(tmp_path / "again.pt", weights_only=True).keys() == tower.state_dict().keys()
    with pytest.raises(OSError, match="Check its name and the network"):
        build_sentence_tower("huggingface", 6, options)


# ---------------------------------------------------------------------------------------------------------- open_clip
@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a tiny CLIP, known to open_clip as `tiny-sentences`."""
    import open_clip

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": 5,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 16},
        "text_cfg": {"context_length": 12, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1},
    }
    (folder / "tiny-sentences.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny-sentences.json")
    torch.manual_seed(5)
    torch.save(open_clip.create_model("tiny-sentences").state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def test_open_clip_is_the_text_embedding_projected(clip: Path) -> None:
    import open_clip

    tower: Any = build_sentence_tower("open_clip", 6, {"model": "tiny-sentences", "pretrained": str(clip)})
    model = open_clip.create_model("tiny-sentences", str(clip))
    expected = model.encode_text(open_clip.get_tokenizer("tiny-sentences")(TEXTS))
    with pytest.warns(UserWarning, match="1 texts of this batch are longer than the 12 tokens"):
        vectors = tower(TEXTS)
    assert tower.cut == {TEXTS[2]}
    torch.testing.assert_close(vectors, tower.projection(expected), atol=1e-5, rtol=1e-4)
    (vectors * torch.randn(4, 6)).sum().backward()
    assert without_gradient(tower) == []


def test_open_clip_loads_without_its_weights(clip: Path, recwarn: pytest.WarningsRecorder) -> None:
    options = {"model": "tiny-sentences", "pretrained": str(clip)}
    tower = build_sentence_tower("open_clip", 6, options).eval()
    with without_pretrained_weights():
        again = build_sentence_tower("open_clip", 6, {**options, "pretrained": "moved.pt"}).eval()
    again.load_state_dict(tower.state_dict())
    assert torch.equal(again(SHORT), tower(SHORT))
    assert not [w for w in recwarn if "random weights" in str(w.message)]
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="random weights"):
        first: Any = build_sentence_tower("open_clip", 6, {"model": "tiny-sentences"})
        torch.manual_seed(1)
        second: Any = build_sentence_tower("open_clip", 6, {"model": "tiny-sentences"})
    assert not torch.equal(first.model.token_embedding.weight, second.model.token_embedding.weight)
