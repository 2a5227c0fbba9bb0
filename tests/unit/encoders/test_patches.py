"""The network of patches: its grid, its tokens, and what is said about images that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from medprism.encoders import build_encoder
from medprism.encoders.patches import PatchCNN

from examples import make_cohort


def image_cohort(*shape: int) -> Any:
    return make_cohort(fields=("id", "subject", "image", "target", "attributes"), input_shape=shape, regions=0)


@pytest.mark.parametrize(
    ("shape", "options", "grid", "width"),
    [
        ((1, 64, 64), {}, 8, 128),
        ((1, 64, 64), {"dim": 6, "grid": 4, "width": 8}, 4, 32),
        ((3, 56, 72), {"grid": 7, "width": 8, "blocks": 2}, 7, 32),  # averaged to the grid
        ((1, 28, 28), {"grid": 7, "width": 8, "blocks": 0}, 7, 16),
    ],
)
def test_shapes_gradients_and_seed(shape: tuple[int, ...], options: dict[str, Any], grid: int, width: int) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(image_cohort(*shape), "patches", options)
    image = torch.rand(2, *shape)
    tokens, pooled = encoder(image)
    width = options.get("dim", width)
    assert (encoder.dim, encoder.grid, encoder.input_field) == (width, (grid, grid), "image")
    assert tokens.shape == (2, grid * grid, width)
    torch.testing.assert_close(tokens.mean(1), pooled)
    torch.testing.assert_close(encoder(image[1:]).pooled[0], pooled[1], rtol=1e-4, atol=1e-4)
    (pooled * torch.randn(pooled.shape)).sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []
    torch.manual_seed(0)
    assert torch.equal(build_encoder(image_cohort(*shape), "patches", options)(image).pooled, pooled)


def test_tokens_stand_in_the_order_of_the_image() -> None:
    """The token that a bright spot changes most lies where the spot is."""
    torch.manual_seed(0)
    encoder = PatchCNN((1, 64, 64), width=8).eval()
    blank = torch.zeros(1, 1, 64, 64)
    for row, column in ((0, 7), (6, 1), (3, 4)):
        spot = blank.clone()
        spot[..., row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 1
        change = (encoder(spot).tokens - encoder(blank).tokens).norm(dim=-1)[0]
        assert divmod(int(change.argmax()), 8) == (row, column)


def test_a_token_knows_its_place() -> None:
    encoder = PatchCNN((1, 32, 32), grid=4, width=8)
    torch.nn.init.normal_(encoder.place)
    tokens = encoder(torch.zeros(1, 1, 32, 32)).tokens[0]
    assert (torch.cdist(tokens, tokens) + torch.eye(16)).min() > 1e-3


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 12, 64), {}, r"images of 12 x 64 pixels have no grid of 8 x 8 .*grid=6 or less"),
        ((1, 64, 64), {"width": 6}, "multiple of 4"),
        ((1, 64, 64), {"grid": 0}, "grid=0"),
    ],
)
def test_refusals(shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PatchCNN(shape, **options)
