"""The small network of images: its size, its tokens, images of any size, and what is said about others."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medprism.checkpoint import load_method
from medprism.encoders import build_encoder
from medprism.encoders.image import SmallCNN
from medprism.methods import ERM

from examples import make_cohort

FIELDS = ("id", "subject", "image", "target", "attributes")


def image_cohort(*shape: int) -> Any:
    return make_cohort(fields=FIELDS, input_shape=shape, regions=0)


def test_size_of_the_published_network() -> None:
    encoder = build_encoder(image_cohort(1, 28, 28), "small", {"dim": 6})
    assert sum(p.numel() for p in encoder.parameters()) == (6 * 9 + 6) + (16 * 54 + 16) + (16 * 144 + 16) + 65792 + 1542
    assert isinstance(encoder, SmallCNN) and encoder.maps[-1].kernel_size == 2  # no averaging at this size


def test_pooled_is_the_plain_network() -> None:
    torch.manual_seed(0)
    encoder, image = SmallCNN((1, 28, 28), dim=6), torch.rand(3, 1, 28, 28)
    convolutions = [layer for layer in encoder.maps if isinstance(layer, torch.nn.Conv2d)]
    x = torch.nn.functional.max_pool2d(convolutions[0](image).relu(), 2)
    x = torch.nn.functional.max_pool2d(convolutions[2](convolutions[1](x).relu()).relu(), 2)
    plain = encoder.project(encoder.first(x.flatten(1)).relu())
    torch.testing.assert_close(encoder(image).pooled, plain)
    assert (plain < 0).any()  # the last layer is linear


def test_a_token_is_the_share_of_its_place() -> None:
    torch.manual_seed(0)
    encoder, image = SmallCNN((1, 28, 28)), torch.rand(2, 1, 28, 28)
    tokens, _ = encoder(image)
    maps = encoder.maps(image)
    for place in range(16):
        row, column = divmod(place, 4)
        alone = torch.zeros_like(maps)
        alone[:, :, row, column] = 16 * maps[:, :, row, column]
        torch.testing.assert_close(tokens[:, place], encoder.first(alone.flatten(1)).relu())


@pytest.mark.parametrize("norm", [None, "batch", "group"])
@pytest.mark.parametrize(
    ("shape", "grid"),
    [((1, 28, 28), (4, 4)), ((3, 64, 96), (4, 4)), ((2, 26, 40), (4, 4)), ((1, 16, 25), (4, 4)), ((1, 8, 8), (2, 2))],
)
@pytest.mark.parametrize("dim", [None, 6])
def test_shapes(norm: Any, shape: tuple[int, int, int], grid: tuple[int, int], dim: int | None) -> None:
    encoder = SmallCNN(shape, dim=dim, norm=norm)
    tokens, pooled = encoder(torch.rand(3, *shape))
    width = dim or 256
    assert (encoder.dim, encoder.grid, encoder.input_field) == (width, grid, "image")
    assert tokens.shape == (3, grid[0] * grid[1], width) and pooled.shape == (3, width)
    pooled.sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_seed_determines_the_encoder() -> None:
    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        pooled: torch.Tensor = SmallCNN((1, 28, 28))(torch.ones(1, 1, 28, 28)).pooled
        return pooled

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


def test_refusals() -> None:
    encoder = SmallCNN((1, 28, 28))
    with pytest.raises(ValueError, match=r"\(B, 1, 28, 28\), got \(2, 3, 28, 28\).*number of channels"):
        encoder(torch.rand(2, 3, 28, 28))
    with pytest.raises(ValueError, match=r"got \(2, 1, 28, 27\)"):
        encoder(torch.rand(2, 1, 28, 27))
    with pytest.raises(ValueError, match=r"\(channels, rows, columns\), got \(28, 28\)"):
        SmallCNN((28, 28))
    with pytest.raises(ValueError, match="at least 4 x 4 pixels, got 3 x 28"):
        SmallCNN((1, 3, 28))
    with pytest.raises(ValueError, match=r"unknown norm 'layer'; choose 'batch', 'group'"):
        SmallCNN((1, 28, 28), norm="layer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dim=0"):
        SmallCNN((1, 28, 28), dim=0)


def save(model: Any, path: Any) -> None:
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams)}
    model.on_save_checkpoint(content)
    torch.save(content, path)


def test_checkpoint_of_a_method_gives_the_encoder_back(tmp_path: Any) -> None:
    cohort = image_cohort(1, 28, 28)
    model = ERM(cohort.to_dict(), encoder="small", encoder_options={"dim": 6, "norm": "group"}).eval()
    save(model, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)
    again = load_method(tmp_path / "a.ckpt")
    image = torch.rand(2, 1, 28, 28)
    assert torch.equal(again.encoder(image).tokens, model.encoder(image).tokens)  # type: ignore[operator]
