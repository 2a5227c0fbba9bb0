from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medprism.data.errors import DataError
from medprism.data.imaging import Motion, equalized, read_colour, read_dicom, read_picture, resized, windowed

from layouts import write_dicom, write_picture


def ramp(rows: int = 20, columns: int = 30) -> np.ndarray:
    return np.linspace(0, 255, rows * columns).reshape(rows, columns).astype(np.uint8)


def test_png_is_exact_and_jpeg_is_near(tmp_path: Path) -> None:
    Image.fromarray(ramp()).save(tmp_path / "a.png")
    Image.fromarray(ramp()).save(tmp_path / "a.jpg", quality=95)
    png, jpeg = read_picture(tmp_path / "a.png"), read_picture(tmp_path / "a.jpg")
    np.testing.assert_allclose(png, ramp() / 255, atol=1e-6)
    np.testing.assert_allclose(jpeg, png, atol=0.03)
    assert png.dtype == np.float32 and png.shape == (20, 30)


def test_sixteen_bits_fill_the_range(tmp_path: Path) -> None:
    Image.fromarray(np.array([[1000, 2000], [3000, 5000]], dtype=np.uint16)).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_picture(tmp_path / "a.png"), [[0, 0.25], [0.5, 1]], atol=1e-6)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colour = np.zeros((4, 4, 3), dtype=np.uint8)
    colour[..., 1] = 255
    Image.fromarray(colour).save(tmp_path / "a.png")
    np.testing.assert_allclose(read_picture(tmp_path / "a.png"), 0.587, atol=0.003)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"not a picture"])
def test_damaged_file_is_named(tmp_path: Path, suffix: str, damage) -> None:
    file = write_picture(tmp_path / f"a{suffix}", 0, (200, 200))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(DataError, match=rf"a\{suffix} cannot be read as a picture"):
        read_picture(file)
    with pytest.raises(DataError, match=r"^table, row 7 cannot be read"):
        read_picture(file, "table, row 7")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.png does not exist"):
        read_picture(tmp_path / "a.png")


def test_window_cuts_and_scales() -> None:
    values = np.array([[-5.0, 0.0], [5.0, 20.0]])
    np.testing.assert_allclose(windowed(values, 0, 10), [[0, 0], [0.5, 1]])
    assert (windowed(values, 3, 3) == 0).all()


def test_pad_crop_and_stretch() -> None:
    picture = np.zeros((20, 40), dtype=np.float32)
    picture[:, 10:30] = 1
    padded, cropped, stretched = (resized(picture, 20, square) for square in ("pad", "crop", "stretch"))
    # The bright square covers a quarter of the padded picture, all of the cropped one, half of the stretched one.
    np.testing.assert_allclose([padded.mean(), cropped.mean(), stretched.mean()], [0.25, 1, 0.5], atol=0.01)
    assert padded[:4].max() == 0 and padded[10, 10] == 1
    assert padded.dtype == np.float32 and padded.shape == (20, 20)
    with pytest.raises(DataError, match=r"found shape \(2, 3, 4\)"):
        resized(np.zeros((2, 3, 4)), 8)


def test_shrinking_averages_all_pixels() -> None:
    checker = np.indices((96, 96)).sum(axis=0) % 2
    np.testing.assert_allclose(resized(checker.astype(float), 12), 0.5, atol=0.02)


def test_nothing_moves_by_default() -> None:
    images = torch.rand(3, 1, 7, 9)
    torch.testing.assert_close(Motion.draw(images)(images), images, atol=1e-5, rtol=0)


def test_quarter_turn_does_not_shear_an_oblong_picture(monkeypatch) -> None:
    image = torch.zeros(1, 1, 8, 12)
    image[0, 0, 2:6, 3:6] = torch.arange(1.0, 13).reshape(4, 3)
    monkeypatch.setattr(torch, "rand", lambda *shape: torch.full(shape, 0.75))  # half of the largest angle
    turned = Motion.draw(image, rotation=180.0)(image)[0, 0, :, 2:10]
    matches = [torch.allclose(turned, torch.rot90(image[0, 0, :, 2:10], k), atol=1e-3) for k in (1, 3)]
    assert sum(matches) == 1


@pytest.mark.parametrize("shape", [(9, 9), (5, 6, 7)])
def test_flip_mirrors_one_axis_of_half_of_the_images(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    images = torch.rand(40, 1, *shape)
    for axis in range(len(shape)):
        changed = Motion.draw(images, flip_axis=axis)(images)
        mirrored = images.flip(2 + axis)
        flips = [bool(torch.allclose(a, b, atol=1e-4)) for a, b in zip(changed, mirrored, strict=True)]
        same = [bool(torch.allclose(a, b, atol=1e-4)) for a, b in zip(changed, images, strict=True)]
        assert all(a != b for a, b in zip(flips, same, strict=True)) and 8 < sum(flips) < 32


def test_shift_stays_within_its_bound_and_follows_the_seed() -> None:
    images = torch.zeros(200, 1, 21, 41)
    images[:, :, 10, 20] = 1
    torch.manual_seed(1)
    changed = Motion.draw(images, shift=0.2)(images)
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(41.0), indexing="ij")
    offset_r = (changed[:, 0] * rows).sum((1, 2)) / changed.sum((1, 2, 3)) - 10
    offset_c = (changed[:, 0] * columns).sum((1, 2)) / changed.sum((1, 2, 3)) - 20
    assert 3.5 < offset_r.abs().max() <= 4.3 and 7 < offset_c.abs().max() <= 8.3
    torch.manual_seed(1)
    torch.testing.assert_close(Motion.draw(images, shift=0.2)(images), changed)


def test_clahe_raises_local_contrast() -> None:
    pytest.importorskip("skimage")
    generator = np.random.default_rng(0)
    dull = (0.5 + 0.02 * generator.standard_normal((64, 64))).astype(np.float32).clip(0, 1)
    bright = equalized(dull, 0.05)
    assert bright.dtype == np.float32 and bright.min() >= 0 and bright.max() <= 1
    assert bright.std() > 2 * dull.std()


def test_missing_extra_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "skimage.exposure", None)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(DataError, match=r"pip install 'medprism\[xray\]'"):
        equalized(np.zeros((16, 16)))
    with pytest.raises(DataError, match=r"a\.dcm: reading DICOM needs pydicom; pip install 'medprism\[xray\]'"):
        read_picture("a.dcm")


def test_dicom_follows_window_and_inversion(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    stored = np.array([[0, 1000], [1500, 4000]])
    plain = read_dicom(write_dicom(tmp_path / "a.dcm", stored))
    np.testing.assert_allclose(plain, stored / 4000, atol=1e-6)
    inverted = read_picture(write_dicom(tmp_path / "b.dcm", stored, "MONOCHROME1"))
    np.testing.assert_allclose(inverted, 1 - plain, atol=1e-6)
    shown = read_dicom(write_dicom(tmp_path / "c.dcm", stored, WindowCenter=1500, WindowWidth=1001))
    np.testing.assert_allclose(shown, [[0, 0], [0.5, 1]], atol=2e-3)


def test_damaged_dicom_is_named(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    file = write_dicom(tmp_path / "a.dcm", np.arange(100).reshape(10, 10))
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a\.dcm cannot be read as DICOM"):
        read_dicom(file)
    file.write_bytes(b"no dicom")
    with pytest.raises(DataError, match=r"a\.dcm cannot be read as DICOM"):
        read_dicom(file)


def test_colour_is_kept_and_grey_has_three_channels(tmp_path: Path) -> None:
    colour = np.random.default_rng(0).integers(256, size=(8, 12, 3), dtype=np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    np.testing.assert_allclose(read_colour(tmp_path / "colour.png"), colour / 255, atol=1e-6)
    for name, values in (("grey", ramp()), ("deep", ramp().astype(np.uint16) * 200)):
        Image.fromarray(values).save(tmp_path / f"{name}.png")
        picture = read_colour(tmp_path / f"{name}.png")
        np.testing.assert_allclose(picture, np.stack([read_picture(tmp_path / f"{name}.png")] * 3, axis=2), atol=1e-6)
    (tmp_path / "colour.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"colour\.png cannot be read as a picture"):
        read_colour(tmp_path / "colour.png")


@pytest.mark.parametrize("square", ["pad", "crop", "stretch"])
def test_channels_are_resized_alike(square: str) -> None:
    colour = np.random.default_rng(0).uniform(size=(20, 30, 3)).astype(np.float32)
    prepared = resized(colour, 12, square)
    assert prepared.shape == (12, 12, 3) and prepared.dtype == np.float32
    for channel in range(3):
        np.testing.assert_array_equal(prepared[:, :, channel], resized(colour[:, :, channel], 12, square))
