"""Encoders by name, and what is said when a name or an option does not fit."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medprism.cohort import Cohort, Factor
from medprism.encoders import ENCODERS, Encoded, Encoder, build_encoder
from medprism.encoders.connectome import RegionProjection

TARGET = Factor("diagnosis", ("control", "case"))


def cohort(field: str = "connectome", shape: tuple[int, ...] = (6, 6)) -> Cohort:
    return Cohort("toy", (field, "target"), shape, TARGET)


@pytest.mark.parametrize("name", ENCODERS["connectome"])
def test_every_name_builds_for_the_regions_of_the_cohort(name: str) -> None:
    encoder = build_encoder(cohort(), name, {"dim": 12})
    assert isinstance(encoder, Encoder) and encoder.dim == 12
    assert encoder(torch.rand(2, 6, 6)).tokens.shape == (2, 6, 12)


def test_options_may_be_left_out() -> None:
    assert isinstance(build_encoder(cohort(), "region"), RegionProjection)
    assert build_encoder(cohort(), "region", None).dim == 8


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"'regon'.*\['graph', 'mlp', 'region', 'transformer'\]"):
        build_encoder(cohort(), "regon")


def test_unknown_option_lists_the_options_of_the_encoder() -> None:
    with pytest.raises(ValueError, match=r"'mlp' has no options \['depth'\]; .*layers: int = 2") as error:
        build_encoder(cohort(), "mlp", {"depth": 3})
    assert "regions" not in str(error.value)


def test_option_that_the_cohort_sets_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['regions'\] of 'mlp' are set from the cohort"):
        build_encoder(cohort(), "mlp", {"regions": 7})


def test_encoder_of_another_modality_says_so() -> None:
    with pytest.raises(ValueError, match="reads a connectome, but cohort 'toy' has a volume"):
        build_encoder(cohort("volume", (1, 8, 8, 8)), "region")
    with pytest.raises(ValueError, match="reads a connectome, but cohort 'toy' has a volume"):
        build_encoder(cohort("volume", (1, 8, 8, 8)), "medprism.encoders.connectome.RegionProjection")


def test_connectome_must_be_square() -> None:
    with pytest.raises(ValueError, match=r"expected \(R, R\)"):
        build_encoder(cohort(shape=(6, 5)), "region")


class Volumes(nn.Module):
    """A user's own class that is no subclass of `Encoder`."""

    def __init__(self, input_shape: tuple[int, ...], dim: int = 3) -> None:
        super().__init__()
        self.dim, self.linear = dim, nn.Linear(int(torch.tensor(input_shape).prod()), dim)

    def forward(self, volume: Tensor) -> Encoded:
        pooled = self.linear(volume.flatten(1))
        return Encoded(pooled[:, None], pooled)


class Nameless(nn.Module):
    def __init__(self, regions: int) -> None:
        super().__init__()


class Deaf(Encoder):
    def __init__(self, size: int = 3) -> None:
        super().__init__()


class NoModule:
    def __init__(self, **options: Any) -> None:
        self.dim = 3


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Import path of this test module, as a user's own."""
    monkeypatch.setitem(sys.modules, "own_encoders", sys.modules[__name__])
    (tmp_path / "broken_encoders.py").write_text("import a_package_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "own_encoders"


def test_own_class_by_import_path(own_module: str) -> None:
    encoder = build_encoder(cohort("volume", (1, 2, 2, 2)), f"{own_module}.Volumes", {"dim": 5})
    assert encoder.dim == 5
    assert encoder(torch.rand(2, 1, 2, 2, 2)).pooled.shape == (2, 5)


def test_own_class_that_does_not_fit(own_module: str) -> None:
    with pytest.raises(ValueError, match="no module 'elsewhere'"):
        build_encoder(cohort(), "elsewhere.Mine")
    with pytest.raises(ValueError, match="no class 'Mine'"):
        build_encoder(cohort(), f"{own_module}.Mine")
    with pytest.raises(ValueError, match="no class 'TARGET'"):
        build_encoder(cohort(), f"{own_module}.TARGET")
    with pytest.raises(ValueError, match=r"must take \['regions'\]"):
        build_encoder(cohort(), f"{own_module}.Deaf")
    with pytest.raises(TypeError, match="attribute `dim`"):
        build_encoder(cohort(), f"{own_module}.Nameless")
    with pytest.raises(TypeError, match=r"torch\.nn\.Module"):
        build_encoder(cohort(), f"{own_module}.NoModule")
    with pytest.raises(ValueError, match="no options"):
        build_encoder(cohort("volume", (1, 2, 2, 2)), f"{own_module}.Volumes", {"width": 5})


def test_what_a_module_of_ones_own_misses_is_not_hidden(own_module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="a_package_that_is_not_there"):
        build_encoder(cohort(), "broken_encoders.Mine")
