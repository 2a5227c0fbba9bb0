"""Trunks of timm and open_clip: shapes, the space of tokens, weights from files, and what is said when they fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import factory
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from medprism.checkpoint import load_method
from medprism.encoders import build_encoder
from medprism.encoders.trunks import OpenCLIPImageEncoder, TimmEncoder, without_pretrained_weights
from medprism.methods import ERM

from examples import make_cohort

TEXT = {"context_length": 8, "vocab_size": 32, "width": 8, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
TRUNK = {"timm_model_name": "test_vit", "timm_proj": "linear", "image_size": 64}
TOWERS: dict[str, dict[str, Any]] = {
    "tiny-vit": VIT,
    "tiny-vit-mean": {**VIT, "pool_type": "avg", "final_ln_after_pool": True},
    "RN-tiny": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 64},
    "tiny-trunk": {**TRUNK, "timm_pool": "token"},
    "tiny-trunk-mean": {**TRUNK, "timm_pool": "avg"},
    "tiny-trunk-map": {**TRUNK, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"},
    "tiny-trunk-convolution": {**TRUNK, "timm_model_name": "test_convnext", "timm_pool": ""},
    "tiny-coca": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2},
}
PLAIN = [name for name in TOWERS if name != "tiny-coca"]


@pytest.fixture(autouse=True, scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tiny open_clip models by name."""
    folder = tmp_path_factory.mktemp("open_clip")
    for name, vision in TOWERS.items():
        config = {"embed_dim": 12, "vision_cfg": vision, "text_cfg": TEXT}
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    yield
    factory._MODEL_CONFIG_PATHS.remove(folder)
    factory._rescan_model_configs()


def unused(encoder: nn.Module) -> list[str]:
    return [name for name, p in encoder.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize("dim", [None, 6])
@pytest.mark.parametrize(
    ("model", "shape", "grid", "width"),
    [
        ("test_resnet", (1, 64, 96), (2, 3), 96),
        ("test_vit", (2, 32, 48), (2, 3), 64),  # the map is told its size when it is built
        ("test_convnext", (3, 64, 64), (2, 2), 64),
        ("test_mambaout", (1, 64, 96), (2, 3), 256),  # channels last, and a head that widens
        ("mobilenetv3_small_050", (1, 64, 96), (2, 3), 1024),  # a head that widens
    ],
)
def test_timm(model: str, shape: tuple[int, ...], grid: tuple[int, int], width: int, dim: int | None) -> None:
    torch.manual_seed(0)
    encoder, image = TimmEncoder(shape, model, dim), torch.rand(2, *shape)
    tokens, pooled = encoder(image)
    width = dim or width
    assert (encoder.dim, encoder.grid, encoder.input_field) == (width, grid, "image")
    assert tokens.shape == (2, grid[0] * grid[1], width) and pooled.shape == (2, width)
    assert encoder.training and encoder.trunk.training
    pooled.sum().backward()
    assert unused(encoder) == []
    encoder.eval()
    torch.testing.assert_close(encoder(image[1:]).tokens[0], encoder(image).tokens[1], rtol=1e-4, atol=1e-5)


def test_timm_embedding_is_that_of_timm() -> None:
    encoder = TimmEncoder((3, 64, 96), "test_resnet").eval()
    config, image = encoder.trunk.pretrained_cfg, torch.rand(2, 3, 64, 96)
    mean, std = (torch.tensor(config[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(encoder(image).pooled, encoder.trunk((image - mean) / std))
    raw = TimmEncoder((3, 64, 96), "test_resnet", standardise=False).eval()
    torch.testing.assert_close(raw(image).pooled, raw.trunk(image))
    torch.testing.assert_close(raw(image).tokens.mean(1), raw(image).pooled)


def test_tokens_stand_in_the_order_of_the_image() -> None:
    """The token that a bright spot changes most lies where the spot is."""
    torch.manual_seed(0)
    for encoder in (
        TimmEncoder((1, 160, 224), "test_resnet"),
        TimmEncoder((1, 48, 64), "test_vit"),
        OpenCLIPImageEncoder((1, 40, 56), "tiny-vit"),
        OpenCLIPImageEncoder((1, 48, 64), "tiny-trunk"),
    ):
        encoder.eval()
        rows, columns = encoder.grid
        height, width = encoder.input_shape[1] // rows, encoder.input_shape[2] // columns
        blank = torch.zeros(1, *encoder.input_shape)
        for row, column in ((0, columns - 1), (rows - 1, 1)):
            spot = blank.clone()
            spot[..., row * height : (row + 1) * height, column * width : (column + 1) * width] = 1
            change = (encoder(spot).tokens - encoder(blank).tokens).norm(dim=-1)[0]
            assert divmod(int(change.argmax()), columns) == (row, column)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_timm_weights_from_a_file(tmp_path: Path, suffix: str) -> None:
    """The file holds 3 channels and a classifier; grey images sum the channels, and the classifier is left out."""
    torch.manual_seed(1)
    source = timm.create_model("test_resnet", num_classes=1000)
    path = tmp_path / f"weights.{suffix}"
    save_file(source.state_dict(), path) if suffix == "safetensors" else torch.save(source.state_dict(), path)
    encoder = TimmEncoder((1, 64, 64), "test_resnet", checkpoint=str(path), standardise=False).eval()
    image = torch.rand(2, 1, 64, 64)
    expected = source.eval().forward_head(source.forward_features(image.expand(-1, 3, -1, -1)), pre_logits=True)
    torch.testing.assert_close(encoder(image).pooled, expected, rtol=1e-4, atol=1e-5)
    assert "state_dict" not in encoder.trunk.pretrained_cfg
    with without_pretrained_weights():
        fresh = TimmEncoder((1, 64, 64), "test_resnet", checkpoint="moved.pt")
    assert not torch.equal(fresh.trunk.conv1[0].weight, encoder.trunk.conv1[0].weight)


def test_timm_weights_that_do_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = timm.create_model("test_resnet").state_dict()
    weights.pop("layer4.0.conv1.weight")
    torch.save(weights, tmp_path / "cut.pt")
    with pytest.raises(OSError, match=r"'test_resnet' with weights .*cut\.pt.*layer4\.0\.conv1\.weight") as error:
        TimmEncoder((1, 64, 64), "test_resnet", checkpoint=str(tmp_path / "cut.pt"))
    assert "option `checkpoint`" in str(error.value)
    with pytest.raises(OSError, match=r"missing\.pt"):
        TimmEncoder((1, 64, 64), "test_resnet", checkpoint="missing.pt")
    torch.save({"run": print}, tmp_path / "code.pt")
    with pytest.raises(OSError, match="weights_only"):
        TimmEncoder((1, 64, 64), "test_resnet", checkpoint=str(tmp_path / "code.pt"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"'test_resnet' with weights 'its published weights'.*option `checkpoint`"):
        TimmEncoder((1, 64, 64), "test_resnet", pretrained=True)
    with pytest.raises(OSError, match="No pretrained weights exist for test_mambaout"):
        TimmEncoder((1, 64, 64), "test_mambaout", pretrained=True)
    with pytest.raises(ValueError, match="weights of two sources"):
        TimmEncoder((1, 64, 64), "test_resnet", pretrained=True, checkpoint="a.pt")


def test_timm_refusals() -> None:
    with pytest.raises(ValueError, match=r"no model 'resnet181'; close names: \['resnet18'"):
        TimmEncoder((1, 64, 64), "resnet181")
    with pytest.raises(ValueError, match=r"patches of 16 x 16 pixels.*border of images of 60 x 64"):
        TimmEncoder((1, 60, 64), "test_vit")
    with pytest.raises(ValueError, match="cannot read images of 4 x 4 pixels"):
        TimmEncoder((1, 4, 4), "test_maxvit")
    with pytest.raises(ValueError, match="does not show its patches as one grid"):
        TimmEncoder((3, 240, 240), "crossvit_9_240")
    with pytest.raises(ValueError, match=r"got \(2, 3, 64, 64\)"):
        TimmEncoder((1, 64, 64), "test_resnet")(torch.rand(2, 3, 64, 64))


@pytest.mark.parametrize("dim", [None, 6])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("model", PLAIN)
def test_open_clip(model: str, channels: int, dim: int | None) -> None:
    columns = 64 if model == "RN-tiny" else 96
    encoder, image = OpenCLIPImageEncoder((channels, 64, columns), model, dim), torch.rand(2, channels, 64, columns)
    tokens, pooled = encoder(image)
    width = dim or (96 if model == "tiny-trunk-map" else 12)
    assert encoder.dim == width and pooled.shape == (2, width)
    assert tokens.shape == (2, encoder.grid[0] * encoder.grid[1], width)
    assert encoder.grid[0] * columns == encoder.grid[1] * 64
    pooled.sum().backward()
    assert unused(encoder) == []


@pytest.mark.parametrize("model", PLAIN)
def test_open_clip_embedding_is_that_of_open_clip(model: str) -> None:
    torch.manual_seed(0)
    encoder = OpenCLIPImageEncoder((3, 64, 64), model).eval()
    torch.manual_seed(0)
    whole = open_clip.create_model(model, force_image_size=64).eval()
    image = torch.rand(2, 3, 64, 64)
    mean, std = (torch.tensor(whole.visual.preprocess_cfg[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close(encoder(image).pooled, whole.encode_image((image - mean) / std))


@pytest.mark.parametrize("model", ["tiny-vit-mean", "tiny-trunk-mean", "tiny-trunk-convolution", "tiny-trunk-map"])
def test_open_clip_tokens_of_equal_places_are_the_embedding(model: str) -> None:
    """Tokens are in the space of the texts: where all places hold the same, the token says what the embedding says."""
    encoder = OpenCLIPImageEncoder((3, 64, 64), model).eval()
    tower: Any = encoder.tower
    if hasattr(tower, "trunk"):
        trunk, place = tower.trunk, torch.randn(2, tower.trunk.num_features)
        map_like = model == "tiny-trunk-convolution"
        equal = place[:, :, None, None].expand(-1, -1, 2, 2) if map_like else place[:, None].expand(-1, 17, -1)
        trunk.forward_features = lambda image: equal
    else:
        place = torch.randn(2, VIT["width"])
        tower.transformer = nn.Module()
        tower.transformer.forward = lambda x: place[:, None].expand(-1, 65, -1)  # type: ignore[method-assign]
    tokens, pooled = encoder(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(tokens, pooled[:, None].expand_as(tokens), rtol=1e-4, atol=1e-5)


def test_open_clip_patch_projection_written_out() -> None:
    encoder = OpenCLIPImageEncoder((3, 32, 32), "tiny-vit", standardise=False).eval()
    tower: Any = encoder.tower
    image = torch.rand(2, 3, 32, 32)
    states: Tensor = tower.transformer(tower._embeds(image))  # (B, 1 + N, width), the class token first
    normed = functional.layer_norm(states, (16,), tower.ln_post.weight, tower.ln_post.bias)
    tokens, pooled = encoder(image)
    torch.testing.assert_close(tokens, normed[:, 1:] @ tower.proj)
    torch.testing.assert_close(pooled, normed[:, 0] @ tower.proj)


def test_open_clip_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    source = open_clip.create_model("tiny-vit").eval()
    save_file(source.state_dict(), tmp_path / "clip.safetensors")
    encoder = OpenCLIPImageEncoder(
        (3, 32, 32), "tiny-vit", checkpoint=str(tmp_path / "clip.safetensors"), standardise=False
    ).eval()
    image = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(encoder(image).pooled, source.encode_image(image))
    larger = OpenCLIPImageEncoder((1, 48, 64), "tiny-vit", checkpoint=str(tmp_path / "clip.safetensors"))
    assert larger.grid == (6, 8)  # position embeddings were resized
    with pytest.raises(OSError, match=r"cannot make 'tiny-trunk' with weights"):
        OpenCLIPImageEncoder((3, 64, 64), "tiny-trunk", checkpoint=str(tmp_path / "clip.safetensors"))
    with pytest.raises(OSError, match=r"'tiny-vit' with weights 'laion'.*option `checkpoint`"):
        OpenCLIPImageEncoder((3, 32, 32), "tiny-vit", pretrained="laion")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"'hf-hub:nobody/nothing'.*Without a network"):
        OpenCLIPImageEncoder((3, 32, 32), "hf-hub:nobody/nothing")


def test_open_clip_refusals() -> None:
    with pytest.raises(ValueError, match=r"1 or 3 channels, the images have 2"):
        OpenCLIPImageEncoder((2, 32, 32), "tiny-vit")
    with pytest.raises(ValueError, match=r"no model 'tiny-vitt'; close names: \['tiny-vit'"):
        OpenCLIPImageEncoder((1, 32, 32), "tiny-vitt")
    with pytest.raises(ValueError, match=r"patches of 8 x 8 pixels.*32 x 30"):
        OpenCLIPImageEncoder((1, 32, 30), "tiny-vit")
    with pytest.raises(ValueError, match=r"'RN-tiny' reads square images only, these are 64 x 96"):
        OpenCLIPImageEncoder((1, 64, 96), "RN-tiny")
    with pytest.raises(ValueError, match="'tiny-coca' shows no single patches"):
        OpenCLIPImageEncoder((1, 32, 32), "tiny-coca")


@pytest.mark.parametrize(("name", "model"), [("timm", "test_resnet"), ("open_clip", "tiny-vit")])
def test_checkpoint_of_a_method_needs_no_pretrained_file(tmp_path: Path, name: str, model: str) -> None:
    cohort = make_cohort(fields=("id", "subject", "image", "target", "attributes"), input_shape=(1, 64, 64), regions=0)
    options = {"model": model, "dim": 6}
    assert build_encoder(cohort, name, options).dim == 6
    trained = ERM(cohort.to_dict(), encoder=name, encoder_options=options).eval()
    content = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    content["hyper_parameters"]["encoder_options"] = {**options, "checkpoint": "moved.pt"}
    trained.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)
    with without_pretrained_weights():
        again = load_method(tmp_path / "a.ckpt")
    image = torch.rand(2, 1, 64, 64)
    assert torch.equal(again.encoder(image).tokens, trained.encoder(image).tokens)  # type: ignore[operator]
