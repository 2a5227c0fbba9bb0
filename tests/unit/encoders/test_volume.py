"""Encoders of volumes: shapes, gradients, normalisation, and what is said about volumes that do not fit."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import nn

from medprism.checkpoint import load_method
from medprism.encoders import Encoder, build_encoder
from medprism.encoders.volume import DenseNet, ResNet18, SmallCNN3D
from medprism.methods import ERM

from examples import make_cohort

needs_monai = pytest.mark.skipif(
    importlib.util.find_spec("monai") is None, reason="needs MONAI: pip install 'medprism[mri]'"
)
THIN = {"blocks": [1, 1, 1, 1], "growth": 8}
CASES = [
    pytest.param("small", {}, (1, 32, 48, 17), (2, 3, 2), 128, id="small"),
    pytest.param("small", {"width": 8, "layers": 2, "dim": 6}, (2, 9, 8, 4), (3, 2, 1), 6, id="small-projected"),
    pytest.param("resnet18", {"dim": 6}, (1, 32, 32, 33), (1, 1, 2), 6, id="resnet18", marks=needs_monai),
    pytest.param("densenet", THIN, (1, 64, 32, 32), (2, 1, 1), 17, id="densenet", marks=needs_monai),
]


def volume_cohort(*shape: int) -> Any:
    return make_cohort(fields=("id", "subject", "volume", "target", "attributes"), input_shape=shape, regions=0)


@pytest.mark.parametrize(("name", "options", "shape", "grid", "width"), CASES)
def test_shapes_gradients_and_seed(
    name: str, options: dict[str, Any], shape: tuple[int, ...], grid: tuple[int, ...], width: int
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(volume_cohort(*shape), name, options)
    volume = torch.rand(2, *shape)
    tokens, pooled = encoder(volume)
    assert isinstance(encoder, Encoder)
    assert (encoder.dim, encoder.grid, encoder.input_field) == (width, grid, "volume")
    assert tokens.shape == (2, grid[0] * grid[1] * grid[2], width) and pooled.shape == (2, width)
    torch.testing.assert_close(tokens.mean(1), pooled)
    torch.testing.assert_close(encoder(volume[1:]).pooled[0], pooled[1], rtol=1e-4, atol=1e-4)  # no batch statistics
    (pooled * torch.randn(pooled.shape)).sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    torch.manual_seed(0)
    again = build_encoder(volume_cohort(*shape), name, options)
    assert torch.equal(again(volume).pooled, pooled)


@needs_monai
@pytest.mark.parametrize("norm", ["group", "instance", "batch"])
def test_every_layer_has_the_norm(norm: Any) -> None:
    kinds = {"group": nn.GroupNorm, "instance": nn.InstanceNorm3d, "batch": nn.BatchNorm3d}
    for encoder in (ResNet18((1, 64, 32, 32), norm=norm), DenseNet((1, 64, 32, 32), norm=norm, **THIN)):  # type: ignore[arg-type]
        found = [layer for layer in encoder.modules() if isinstance(layer, tuple(kinds.values()))]
        assert len(found) > 10 and {type(layer) for layer in found} == {kinds[norm]}
        assert all(layer.weight is not None for layer in found)  # type: ignore[union-attr]


def test_one_place_is_not_normalised_away() -> None:
    """With a group a channel, the norm of a map of one place would be 0 whatever the volume."""
    encoder = SmallCNN3D((1, 8, 8, 8), width=1)
    assert encoder.grid == (1, 1, 1)
    torch.manual_seed(0)
    assert encoder(torch.randn(4, 1, 8, 8, 8)).pooled.std(0).sum() > 0


def test_tokens_stand_in_the_order_of_the_volume() -> None:
    torch.manual_seed(0)
    encoder = SmallCNN3D((1, 32, 48, 64), norm="batch").eval()  # other norms look at the whole volume
    blank = torch.zeros(1, 1, 32, 48, 64)
    for place in ((0, 2, 1), (1, 0, 3)):
        spot = blank.clone()
        spot[:, :, *(slice(max(0, 16 * i - 3), 16 * i + 4) for i in place)] = 1
        change = (encoder(spot).tokens - encoder(blank).tokens).norm(dim=-1)[0].view(encoder.grid)
        assert tuple(int(i) for i in (change == change.max()).nonzero()[0]) == place


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"channels and three axes\), got \(8, 8, 8\)"):
        SmallCNN3D((8, 8, 8))
    with pytest.raises(ValueError, match=r"\(B, 1, 8, 8, 8\), got \(2, 1, 8, 8, 9\)"):
        SmallCNN3D((1, 8, 8, 8))(torch.rand(2, 1, 8, 8, 9))
    with pytest.raises(ValueError, match="unknown norm 'layer'"):
        SmallCNN3D((1, 8, 8, 8), norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layers=0"):
        SmallCNN3D((1, 8, 8, 8), layers=0)
    with pytest.raises(ValueError, match=r"8 x 8 x 8 voxels are too small.*or choose norm=group"):
        SmallCNN3D((1, 8, 8, 8), norm="instance")


@needs_monai
def test_volumes_too_small_for_the_dense_network() -> None:
    with pytest.raises(ValueError, match=r"24 x 32 x 32 voxels are too small for this network: give larger volumes \("):
        DenseNet((1, 24, 32, 32), **THIN)  # type: ignore[arg-type]


def test_missing_monai_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets", None)
    monkeypatch.setitem(sys.modules, "monai", None)
    for cls in (ResNet18, DenseNet):
        with pytest.raises(ImportError, match=r"pip install 'medprism\[mri\]'"):
            cls((1, 32, 32, 32))


def test_checkpoint_of_a_method_gives_the_encoder_back(tmp_path: Any) -> None:
    cohort = volume_cohort(1, 16, 16, 16)
    model = ERM(cohort.to_dict(), encoder="small", encoder_options={"dim": 6, "width": 8}).eval()
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    again = load_method(tmp_path / "a.ckpt")
    volume = torch.rand(2, 1, 16, 16, 16)
    assert torch.equal(again.encoder(volume).tokens, model.encoder(volume).tokens)  # type: ignore[operator]
