from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medprism.data.errors import DataError
from medprism.data.volumes import Preparation, affine_towards, axes_towards, cut, read_volume, resampled, scaled

NAME = "scan.nii (table.csv, row 3)"


def head(shape: tuple[int, int, int] = (12, 14, 10), seed: int = 0) -> np.ndarray:
    """Voxels that differ everywhere, in canonical orientation."""
    return np.random.default_rng(seed).uniform(1, 9, shape).astype(np.float32)


def write(path: Path, data: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nib.save(nib.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


def stored(canonical: np.ndarray, orientation: str, zooms=(2.0, 2.0, 2.0)) -> tuple[np.ndarray, np.ndarray]:
    """The same head as a scanner with other axes stores it, and its affine; zooms are those of x, y, z."""
    axes = axes_towards(orientation)
    data = np.transpose(canonical, [axis for axis, _ in axes])
    flipped = [k for k, (_, sign) in enumerate(axes) if sign < 0]
    affine = affine_towards(orientation, [zooms[axis] for axis, _ in axes])
    for k in flipped:
        affine[:3, 3] -= affine[:3, k] * (data.shape[k] - 1)
    return np.flip(data, flipped), affine


@pytest.mark.parametrize("orientation", ["RAS", "LAS", "LPS", "PSR", "SAL", "ILA"])
def test_every_orientation_gives_the_same_canonical_array(tmp_path, orientation: str) -> None:
    canonical = head()
    data, affine = stored(canonical, orientation, zooms=(1.0, 2.0, 3.0))
    assert "".join(nib.aff2axcodes(affine)) == orientation
    image = read_volume(write(tmp_path / "a.nii.gz", data, affine), NAME)
    np.testing.assert_array_equal(image.get_fdata(), canonical)
    assert image.header.get_zooms() == (1.0, 2.0, 3.0)
    prepare = Preparation(spacing=(2, 2, 2), shape=(8, 14, 12))
    plain = prepare(write(tmp_path / "b.nii", canonical, np.diag([1.0, 2.0, 3.0, 1.0])), NAME)
    np.testing.assert_array_equal(prepare(tmp_path / "a.nii.gz", NAME), plain)


def test_orientation_argument_speaks_for_a_silent_header(tmp_path) -> None:
    canonical = head()
    data, affine = stored(canonical, "LPS")
    image = nib.Nifti1Image(data, affine)
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    nib.save(image, tmp_path / "a.nii")
    with pytest.raises(DataError, match=r"scan\.nii \(table\.csv, row 3\): orientation without a header.*qform"):
        read_volume(tmp_path / "a.nii", NAME)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", NAME, "LPS").get_fdata(), canonical)
    # The header's word counts where there is one.
    write(tmp_path / "b.nii", data, affine)
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii", NAME, "RAS").get_fdata(), canonical)


def test_analyze_needs_the_argument_and_may_have_a_fourth_axis_of_one(tmp_path) -> None:
    data = head()[..., None].astype(np.int16)
    nib.save(nib.AnalyzeImage(data, np.diag([-2.0, 2.0, 2.0, 1.0])), tmp_path / "a.img")
    with pytest.raises(DataError, match="orientation without a header"):
        read_volume(tmp_path / "a.hdr", NAME)
    image = read_volume(tmp_path / "a.hdr", NAME, "LAS")
    np.testing.assert_array_equal(image.get_fdata(), data[::-1, :, :, 0])
    assert image.header.get_zooms() == (2.0, 2.0, 2.0)


def test_mgh_header_says_its_orientation(tmp_path) -> None:
    data, affine = stored(head(), "LIA")
    nib.save(nib.MGHImage(np.ascontiguousarray(data), affine), tmp_path / "a.mgz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.mgz", NAME).get_fdata(), head())


@pytest.mark.parametrize("orientation", ["RA", "RAX", "RRS", "ras", "RALS"])
def test_orientation_that_is_none(orientation: str) -> None:
    with pytest.raises(DataError, match="one letter each"):
        Preparation(orientation=orientation)


def test_same_spacing_crops_and_pads_around_the_centre(tmp_path) -> None:
    canonical = head((9, 9, 9))
    image = read_volume(write(tmp_path / "a.nii", canonical), NAME)
    volume = resampled(image, (2, 2, 2), (5, 9, 13))
    np.testing.assert_allclose(volume[:, :, 2:11], canonical[2:7], atol=1e-6)
    assert (volume[:, :, :2] == 0).all() and (volume[:, :, 11:] == 0).all()


def test_spacing_keeps_sizes_in_millimetres(tmp_path) -> None:
    # A ball of 16 mm radius, stored with voxels of 1 x 2 x 4 mm.
    zooms = np.array([1.0, 2.0, 4.0])
    shape = (64, 32, 16)
    places = (np.indices(shape).reshape(3, -1).T - (np.array(shape) - 1) // 2) * zooms
    ball = (np.linalg.norm(places, axis=1) <= 16).reshape(shape).astype(np.float32)
    image = read_volume(write(tmp_path / "a.nii", ball, np.diag([*zooms, 1.0])), NAME)
    for spacing in (1.0, 2.0, 3.0):
        size = int(48 / spacing)
        volume = resampled(image, (spacing,) * 3, (size,) * 3)
        assert volume.sum() * spacing**3 == pytest.approx(4 / 3 * np.pi * 16**3, rel=0.05)
        away = spacing * (np.indices(volume.shape) - (size - 1) // 2)
        for axis in range(3):  # a ball's root mean square distance from its middle plane is radius / sqrt(5)
            assert np.sqrt((volume * away[axis] ** 2).sum() / volume.sum()) == pytest.approx(16 / 5**0.5, rel=0.1)


def test_coarser_grid_averages_instead_of_aliasing(tmp_path) -> None:
    stripes = np.zeros((48, 48, 48), dtype=np.float32)
    stripes[::2] = 1
    image = read_volume(write(tmp_path / "a.nii", stripes, np.diag([1.0, 1.0, 1.0, 1.0])), NAME)
    volume = resampled(image, (2, 2, 2), (16, 16, 16))
    np.testing.assert_allclose(volume, 0.5, atol=0.15)  # without smoothing every voxel is 0 or 1


def test_intensity_is_scaled_over_the_head(tmp_path) -> None:
    volume = np.zeros((20, 20, 20), dtype=np.float32)
    volume[5:15, 5:15, 5:15] = head((10, 10, 10))
    volume[7, 7, 7] = 1e6
    out = scaled(volume)
    inside = out[volume != 0]
    assert inside.mean() == pytest.approx(0, abs=1e-5) and inside.std() == pytest.approx(1, abs=1e-5)
    assert inside.max() < 2 and (out[volume == 0] == out.min()).all()
    # Neither the unit of the scanner nor the size of the background matters.
    np.testing.assert_allclose(scaled(volume * 37), out, atol=1e-5)
    np.testing.assert_allclose(scaled(volume[5:15, 5:15, 5:15]), out[5:15, 5:15, 5:15], atol=1e-5)
    for empty in (np.zeros((4, 4, 4), np.float32), np.ones((4, 4, 4), np.float32)):
        with pytest.raises(DataError, match="constant"):
            scaled(empty)


def test_slices_lie_as_a_reader_expects() -> None:
    volume = np.zeros((8, 10, 6), dtype=np.float32)
    volume[0, 9, 5] = 1  # left, anterior, superior
    assert cut(volume.max(axis=2, keepdims=True), "axial")[0, 0, 0] == 1
    assert cut(volume.max(axis=1, keepdims=True), "coronal")[0, 0, 0] == 1
    assert cut(volume.max(axis=0, keepdims=True), "sagittal")[0, 0, 9] == 1
    ramp = np.broadcast_to(np.arange(8, dtype=np.float32)[:, None, None], (8, 10, 6))
    assert cut(ramp, "sagittal")[:, 0, 0].tolist() == [4] and cut(ramp, "sagittal", 3)[:, 0, 0].tolist() == [2, 4, 6]
    for plane in ("axial", "coronal", "sagittal"):
        prepare = Preparation(shape=(8, 10, 6), plane=plane, slices=2)
        assert cut(volume, plane, 2).shape == prepare.output_shape
    assert Preparation(shape=(8, 10, 6)).output_shape == (1, 8, 10, 6)


def test_bad_files_are_named(tmp_path) -> None:
    whole = write(tmp_path / "whole.nii", head())
    packed = write(tmp_path / "packed.nii.gz", head())
    cases: list[tuple[str, bytes | np.ndarray, str]] = [
        ("short.nii", whole.read_bytes()[:2000], "cannot be read as a volume"),
        ("header.nii", whole.read_bytes()[:200], "cannot be read as a volume"),
        ("short.nii.gz", packed.read_bytes()[:2000], "cannot be read as a volume"),
        ("text.nii", b"not an image", "cannot be read as a volume"),
        ("plain.nii.gz", b"not packed", "cannot be read as a volume"),
        ("series.nii", np.ones((4, 4, 4, 5), np.float32), r"has 4 dimensions \(4, 4, 4, 5\), expected three"),
        ("slice.nii", np.ones((4, 4), np.float32), r"has 2 dimensions"),
        ("colour.nii", np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "expected one real number"),
        ("complex.nii", np.ones((4, 4, 4), np.complex64), "expected one real number each"),
        ("nan.nii", np.where(np.eye(4)[:, :, None], np.nan, np.ones((4, 4, 4))), "16 voxels are not finite"),
    ]
    for file, content, message in cases:
        if isinstance(content, bytes):
            (tmp_path / file).write_bytes(content)
        else:
            write(tmp_path / file, content)
        with pytest.raises(DataError, match=r"^scan\.nii \(table\.csv, row 3\): .*" + message):
            read_volume(tmp_path / file, NAME)
    with pytest.raises(DataError, match="cannot be read as a volume"):
        read_volume(tmp_path / "nowhere.nii", NAME)
    assert read_volume(whole, NAME).shape == read_volume(packed, NAME).shape == (12, 14, 10)


def test_volume_that_misses_the_head_is_named(tmp_path) -> None:
    data = np.zeros((20, 20, 20), dtype=np.float32)
    data[:2] = head((2, 20, 20))
    with pytest.raises(DataError, match=r"scan\.nii \(table\.csv, row 3\): the volume is constant after cropping"):
        Preparation(shape=(4, 4, 4))(write(tmp_path / "a.nii", data), NAME)


def test_singular_affine_is_named(tmp_path) -> None:
    image = nib.Nifti1Image(head(), None)
    image.header["sform_code"], image.header["srow_x"] = 1, 0
    image.header["srow_y"], image.header["srow_z"] = 0, 0
    (tmp_path / "a.nii").write_bytes(image.to_bytes())
    with pytest.raises(DataError, match=r"row 3.*affine"):
        read_volume(tmp_path / "a.nii", NAME)


@pytest.mark.parametrize(
    "wrong",
    [
        {"spacing": (2, 0, 2)},
        {"shape": (0, 4, 4)},
        {"percentiles": (99, 1)},
        {"plane": "axial", "slices": 97},
        {"plane": "axial", "slices": 0},
    ],
)
def test_preparation_refuses_what_it_cannot_do(wrong: dict) -> None:
    with pytest.raises(DataError):
        Preparation(**wrong)


def test_real_volumes_come_out_upright(real_data) -> None:
    files = sorted((real_data / "ixi").glob("*_T1.nii.gz"))
    if not files:
        pytest.skip("needs the two IXI volumes in MEDPRISM_DATA/ixi")
    prepare = Preparation(shape=(96, 112, 96), spacing=(2, 2, 2))
    for file in files:
        volume = prepare(file, file.name)
        assert volume.shape == (1, 96, 112, 96) and np.isfinite(volume).all()
        # A head is nearly mirror-symmetric between left and right, and in no other direction.
        agreement = [np.corrcoef(volume.ravel(), np.flip(volume, 1 + axis).ravel())[0, 1] for axis in range(3)]
        assert agreement[0] > 0.8 and agreement[0] > max(agreement[1:]) + 0.1
