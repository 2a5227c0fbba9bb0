"""The bank: every phrase encoded once, checkpoints that load without a language model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medprism.encoders import PhraseBank, TextEncoder, text
from medprism.encoders.text import TableEncoder

PHRASES = ["autism spectrum disorder", "healthy control", "female", "male"]


class Counting(TextEncoder):
    """Stands in for a language model, and remembers what it was asked."""

    asked: list[list[str]]

    def embed(self, phrases: list[str]) -> list[Tensor]:
        self.asked.append(phrases)
        torch.rand(3)  # a language model may draw from the global generator
        return TableEncoder(dim=7, level="word").embed(phrases)


@pytest.fixture
def language(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """`minilm` is a counting encoder; the fixture is what it was asked."""
    asked: list[list[str]] = []

    def build(name: str, options: Any) -> TextEncoder:
        encoder = Counting()
        encoder.asked = asked
        return encoder

    monkeypatch.setattr(text, "build_text_encoder", build)
    return asked


@pytest.fixture
def no_language(monkeypatch: pytest.MonkeyPatch) -> None:
    """No text encoder can be built."""

    def build(name: str, options: Any) -> TextEncoder:
        raise AssertionError("a language model was loaded")

    monkeypatch.setattr(text, "build_text_encoder", build)


def filled() -> PhraseBank:
    """A materialised bank of words, as if a language model had made it."""
    bank = PhraseBank(PHRASES, "minilm", dim=5)
    bank._create(*TableEncoder(dim=7, level="word").encode(bank.phrases))
    return bank


def test_each_distinct_phrase_is_encoded_once_and_never_in_the_loop(language: list[list[str]]) -> None:
    bank = PhraseBank([*PHRASES, "female"], "minilm", dim=5)
    assert language == []  # construction is cheap
    for _ in range(3):
        bank.materialise()
        bank().vectors.sum().backward()
    assert language == [PHRASES]
    assert not any(isinstance(value, TextEncoder) for value in vars(bank).values())


def test_index_keeps_the_order() -> None:
    bank = PhraseBank(["b", "a", "b", "c"])
    assert bank.phrases == ("b", "a", "c")
    assert [bank.index(phrase) for phrase in ("a", "b", "c")] == [1, 0, 2]
    assert bank().vectors.shape == (3, 1, 256)
    with pytest.raises(KeyError, match=r"no phrase 'd'; it has \['b', 'a', 'c'\]"):
        bank.index("d")


def test_table_is_there_at_once_and_only_the_projection_trains() -> None:
    bank = PhraseBank(PHRASES, dim=5)
    assert [name for name, _ in bank.named_parameters()] == ["projection.weight"]
    assert bank.projection.weight.shape == (5, 256)
    expected = TableEncoder().encode(PHRASES).vectors @ bank.projection.weight.T
    torch.testing.assert_close(bank().vectors, expected)
    bank().vectors.square().sum().backward()
    assert bank.projection.weight.grad.abs().sum() > 0


def test_padding_stays_zero(language: list[list[str]]) -> None:
    vectors, mask = PhraseBank(PHRASES, "minilm", dim=5)()
    assert vectors.shape == (4, 3, 5) and mask.sum(1).tolist() == [3, 2, 1, 1]
    assert (vectors[~mask] == 0).all() and (vectors[mask].abs().sum(-1) > 0).all()


def test_projection_depends_on_the_global_seed_and_on_no_language_model(language: list[list[str]]) -> None:
    bank = PhraseBank(PHRASES, "minilm", dim=5)
    torch.manual_seed(3)
    bank.materialise()
    torch.manual_seed(3)
    assert torch.equal(bank.projection.weight, nn.Linear(7, 5, bias=False).weight)


def test_own_encoder_by_import_path_is_looked_up_late(language: list[list[str]]) -> None:
    bank = PhraseBank(PHRASES, "not_installed_here.MyEncoder")
    assert bank.vectors is None


def test_wrong_names_are_refused_at_once() -> None:
    with pytest.raises(ValueError, match="unknown text encoder 'bert'"):
        PhraseBank(PHRASES, "bert")
    with pytest.raises(ValueError, match=r"no options \['layers'\]"):
        PhraseBank(PHRASES, "minilm", {"layers": 4})
    with pytest.raises(ValueError, match="at least one phrase"):
        PhraseBank([])


class Parent(nn.Module):
    """A method with a bank in it."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(2, 2)
        self.inner = nn.ModuleDict({"bank": PhraseBank(PHRASES, "minilm", dim=5)})


def empty_and_full_parent() -> tuple[nn.Module, nn.Module]:
    full = Parent()
    full.inner["bank"] = filled()
    return Parent(), full


def empty_and_full_bank() -> tuple[nn.Module, nn.Module]:
    return PhraseBank(PHRASES, "minilm", dim=5), filled()


@pytest.mark.parametrize("make", [empty_and_full_bank, empty_and_full_parent])
@pytest.mark.parametrize("assign", [False, True])
def test_checkpoint_loads_without_a_language_model(
    make: Callable[[], tuple[nn.Module, nn.Module]], assign: bool, tmp_path: Path, no_language: None
) -> None:
    empty, full = make()
    torch.save(full.state_dict(), tmp_path / "weights.pt")
    state, seed = torch.load(tmp_path / "weights.pt", weights_only=True), torch.get_rng_state()
    result = empty.load_state_dict(state, strict=True, assign=assign)
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(torch.get_rng_state(), seed)
    banks = [next(m for m in model.modules() if isinstance(m, PhraseBank)) for model in (empty, full)]
    for loaded, saved in zip(*(bank() for bank in banks), strict=True):
        assert torch.equal(loaded, saved)
    assert empty.state_dict().keys() == full.state_dict().keys()
    assert banks[0].projection.weight.requires_grad


def test_a_full_bank_loads_too_and_keeps_its_parameter(no_language: None) -> None:
    bank, saved = filled(), filled()
    parameter = bank.projection.weight
    bank.load_state_dict(saved.state_dict())
    assert bank.projection.weight is parameter  # the optimizer still holds it
    assert torch.equal(parameter, saved.projection.weight)


def test_a_table_bank_loads_strictly() -> None:
    torch.manual_seed(0)
    saved = PhraseBank(PHRASES, dim=5)
    bank = PhraseBank(PHRASES, dim=5)
    assert not torch.equal(bank().vectors, saved().vectors)
    bank.load_state_dict(saved.state_dict())
    assert torch.equal(bank().vectors, saved().vectors)


@pytest.mark.parametrize("other", [PHRASES[::-1], PHRASES[:3], ["a", "b", "c", "d"]])
@pytest.mark.parametrize("encoder", ["minilm", "table"])
def test_a_checkpoint_of_other_phrases_is_refused(other: list[str], encoder: str) -> None:
    with pytest.raises(RuntimeError, match="other phrases, or in another order"):
        PhraseBank(other, encoder, dim=5).load_state_dict(filled().state_dict(), strict=False)


def test_an_incomplete_state_dict_is_refused(no_language: None) -> None:
    empty = PhraseBank(PHRASES, "minilm", dim=5)
    with pytest.raises(RuntimeError, match=r"Missing key.*vectors"):
        filled().load_state_dict(empty.state_dict())
    state = filled().state_dict()
    del state["projection.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*projection\.weight"):
        empty.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_moving_before_or_after(dtype: torch.dtype, language: list[list[str]]) -> None:
    early, late = PhraseBank(PHRASES, "minilm", dim=5), PhraseBank(PHRASES, "minilm", dim=5)
    early.to(dtype)
    torch.manual_seed(0)
    early.materialise()
    torch.manual_seed(0)
    late.materialise()
    late.to(dtype)
    for a, b in zip(early(), late(), strict=True):
        assert torch.equal(a, b)
    assert early().vectors.dtype == dtype and early().mask.dtype == torch.bool
    loaded = PhraseBank(PHRASES, "minilm", dim=5).to(dtype)
    loaded.load_state_dict(early.state_dict())
    assert torch.equal(loaded().vectors, early().vectors)
    assert loaded.projection.weight.dtype == dtype


def test_moving_to_another_device(language: list[list[str]]) -> None:
    bank = PhraseBank(PHRASES, "minilm", dim=5).to("meta")  # a device that every machine has
    bank.materialise()
    assert {tensor.device.type for tensor in (bank.vectors, bank.mask, bank.projection.weight)} == {"meta"}
    loaded = PhraseBank(PHRASES, "minilm", dim=5).to("meta")
    loaded.load_state_dict(filled().state_dict(), assign=True)
    assert loaded.vectors.device.type == "cpu"


def test_deepcopy_before_and_after(language: list[list[str]]) -> None:
    bank = PhraseBank(PHRASES, "minilm", dim=5)
    early = copy.deepcopy(bank)
    bank.materialise()
    assert early.vectors is None
    early.materialise()
    assert torch.equal(early.vectors, bank.vectors)
    late = copy.deepcopy(bank)
    assert torch.equal(late().vectors, bank().vectors)
    with torch.no_grad():
        late.projection.weight.zero_()
    assert bank.projection.weight.abs().sum() > 0


def test_first_use_in_inference_mode_can_still_train(language: list[list[str]]) -> None:
    bank = PhraseBank(PHRASES, "minilm", dim=5)
    with torch.inference_mode():
        bank()
    bank().vectors.square().sum().backward()
    assert bank.projection.weight.grad.abs().sum() > 0


def test_autocast() -> None:
    bank = PhraseBank(PHRASES, dim=5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = bank().vectors
    torch.testing.assert_close(rough.float(), bank().vectors, atol=0.05, rtol=0.05)
