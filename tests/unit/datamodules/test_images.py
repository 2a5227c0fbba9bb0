from __future__ import annotations

from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pytest
import torch

from medprism.cohort import Factor
from medprism.data.cache import stamps
from medprism.data.errors import DataError
from medprism.data.samples import Labels, Samples
from medprism.datamodules import images as module
from medprism.datamodules.images import ImageDataModule, Images

N = 96
LOCK = Lock()
"""np.load parses headers by `ast`, which Python 3.11 now and then gets wrong in several threads at once."""


class Arrays(ImageDataModule):
    """Samples in `.npy` files, two of each of 48 people."""

    name = "arrays"

    def __init__(self, root: Path, cached: bool = True, storage: str = "uint8", **base: Any) -> None:
        super().__init__(cache_dir=str(root / "cache"), jobs=2, **base)
        self.root, self.in_cache, self.storage = root, cached, storage
        self.reads = 0

    @cached_property
    def labels(self) -> Labels:
        names = tuple(f"s{k}" for k in range(N))
        people = tuple(f"p{k // 2}" for k in range(N))
        target = np.arange(N) // 2 % 2
        samples = Samples(names, people, target, {"sex": np.arange(N) // 4 % 2})
        return Labels(samples, Factor("disease", ("no", "yes")), (Factor("sex", ("f", "m")),))

    def images(self) -> Images:
        files = [self.root / f"{k}.npy" for k in range(N)]

        def read(row: int) -> np.ndarray:
            self.reads += 1
            try:
                with LOCK:
                    return np.load(files[row])
            except ValueError as error:
                raise DataError(f"cannot be read ({error})") from error

        names = tuple(f"{file} (table, row {k + 2})" for k, file in enumerate(files))
        return Images(names, read, {"files": stamps(files)} if self.in_cache else None, self.storage)


class Volumes(Arrays):
    field = "volume"


def write(folder: Path, shape: tuple[int, ...] = (1, 6, 8)) -> np.ndarray:
    values = np.random.default_rng(0).integers(256, size=(N, *shape)).astype(np.float32) / 255
    for k in range(N):
        np.save(folder / f"{k}.npy", values[k])
    return values


def everything(data: ImageDataModule, training: bool = False) -> np.ndarray:
    return data.reader(training)(torch.arange(len(data.samples)))[data.field].numpy()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize(("kind", "shape"), [(Arrays, (1, 6, 8)), (Arrays, (3, 5, 5)), (Volumes, (1, 4, 5, 6))])
def test_batches_hold_what_the_files_hold(tmp_path, cached: bool, kind: type[Arrays], shape: tuple[int, ...]) -> None:
    values = write(tmp_path, shape)
    data = kind(tmp_path, cached)
    assert data.cohort.input_shape == shape and data.cohort.fields[2] == data.field
    np.testing.assert_allclose(everything(data), values, atol=1e-6)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch[data.field].dtype == torch.float32
    position = {name: k for k, name in enumerate(data.samples.id)}
    for name, sample in zip(batch["id"], batch[data.field], strict=True):
        np.testing.assert_allclose(sample, values[position[name]], atol=1e-6)


def test_second_start_opens_no_file(tmp_path) -> None:
    write(tmp_path)
    first, second = Arrays(tmp_path), Arrays(tmp_path)
    a, b = everything(first), everything(second)
    everything(first)
    assert first.reads == N + 1 and second.reads == 0  # the first file is read once more, for its shape
    np.testing.assert_array_equal(a, b)
    assert first.cohort.fingerprint == second.cohort.fingerprint
    assert isinstance(second._stored.pixels, np.memmap)
    np.save(tmp_path / "3.npy", np.zeros((1, 6, 8), dtype=np.float32))
    changed = Arrays(tmp_path)
    assert (everything(changed)[3] == 0).all() and changed.reads
    assert changed.cohort.fingerprint != first.cohort.fingerprint


def test_cache_stays_as_it_is_when_a_batch_is_changed(tmp_path) -> None:
    values = write(tmp_path)
    data = Arrays(tmp_path)
    data._pixels.zero_()
    np.testing.assert_allclose(everything(Arrays(tmp_path)), values, atol=1e-6)


@pytest.mark.parametrize("part", ["pixels", "digest"])
@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", None])
def test_damaged_cache_is_built_again(tmp_path, caplog, part: str, damage) -> None:
    values = write(tmp_path)
    everything(Arrays(tmp_path))
    file = next((tmp_path / "cache").glob(f"*.{part}.npy"))
    if damage is None:
        file.unlink()
    else:
        file.write_bytes(damage(file.read_bytes()))
    again = Arrays(tmp_path)
    np.testing.assert_allclose(everything(again), values, atol=1e-6)
    assert again.reads and ("built again" in caplog.text) == (damage is not None)
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_float16_keeps_values_outside_the_unit_interval(tmp_path) -> None:
    values = 8 * write(tmp_path) - 4
    for k in range(N):
        np.save(tmp_path / f"{k}.npy", values[k])
    np.testing.assert_allclose(everything(Arrays(tmp_path, storage="float16")), values, atol=2e-3)
    with pytest.raises(DataError, match=r"0\.npy \(table, row 2\): values from -4 to .* cannot be kept as uint8"):
        everything(Arrays(tmp_path))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 6, 7)), r"has shape \(1, 6, 7\), expected \(1, 6, 8\)"),
        (np.zeros((6, 8)), r"expected a sample of shape \(C, H, W\), found \(6, 8\)"),
        (np.zeros((1, 2, 6, 8)), r"expected a sample of shape \(C, H, W\)"),
        (np.full((1, 6, 8), np.nan), "not finite"),
        (None, "cannot be read"),
    ],
)
def test_bad_sample_is_named(tmp_path, array: np.ndarray | None, message: str) -> None:
    write(tmp_path)
    if array is None:
        (tmp_path / "7.npy").write_bytes(b"x" * 200)
    else:
        np.save(tmp_path / "7.npy", array)
    with pytest.raises(DataError, match=rf"7\.npy \(table, row 9\): .*{message}"):
        _ = Arrays(tmp_path).cohort
    assert not list((tmp_path / "cache").glob("*.partial"))


def test_unreadable_samples_can_be_skipped_and_are_counted(tmp_path, caplog) -> None:
    values = write(tmp_path)
    for row in (0, 7, 8):
        (tmp_path / f"{row}.npy").write_bytes(b"x" * 200)
    for _ in range(2):  # from the files, and from the cache
        data = Arrays(tmp_path, unreadable="skip")
        data.setup("fit")
        assert data.skipped == {"unreadable": 3}
        kept = [k for k in range(N) if k not in (0, 7, 8)]
        assert data.samples.id == tuple(f"s{k}" for k in kept) and len(data.samples.target) == N - 3
        assert set(data.split.train + data.split.validation + data.split.test) == {f"p{k}" for k in range(48)}
        np.testing.assert_allclose(everything(data), values[kept], atol=1e-6)
    assert "unreadable: 3" in caplog.text
    with pytest.raises(DataError, match=r"0\.npy \(table, row 2\): cannot be read"):
        everything(Arrays(tmp_path))


def test_nothing_readable_is_an_error(tmp_path) -> None:
    for row in range(N):
        (tmp_path / f"{row}.npy").write_bytes(b"x" * 200)
    with pytest.raises(DataError, match="none of 96 files can be read"):
        _ = Arrays(tmp_path, unreadable="skip").cohort


def test_standard_intensity_sees_training_samples_alone(tmp_path) -> None:
    values = write(tmp_path)
    data = Arrays(tmp_path, intensity="standard")
    train, test = data.rows("train"), data.rows("test")
    scaled = everything(data)
    assert scaled[train].mean() == pytest.approx(0, abs=1e-5) and scaled[train].std() == pytest.approx(1, abs=1e-5)
    for row in test:
        np.save(tmp_path / f"{row}.npy", values[row] / 8)
    np.testing.assert_allclose(everything(Arrays(tmp_path, intensity="standard"))[train], scaled[train], atol=1e-6)
    for row in range(N):
        np.save(tmp_path / f"{row}.npy", np.full((1, 6, 8), 0.5, dtype=np.float32))
    with pytest.raises(DataError, match="has no spread"):
        Arrays(tmp_path, intensity="standard").reader(False)


def test_augmentation_is_for_training_alone_and_seeded(tmp_path) -> None:
    values = write(tmp_path)
    data = Arrays(tmp_path, augment_shift=0.2, augment_rotation=20, augment_flip=True)
    np.testing.assert_allclose(everything(data), values, atol=1e-6)
    torch.manual_seed(3)
    first = everything(data, training=True)
    torch.manual_seed(3)
    np.testing.assert_array_equal(first, everything(data, training=True))
    assert not np.allclose(first, everything(data, training=True)) and first.shape == values.shape
    np.testing.assert_allclose(everything(Arrays(tmp_path), training=True), values, atol=1e-6)
    data.setup("fit")
    for loader in (data.reference_dataloader(), data.test_dataloader()):
        batch = next(iter(loader))
        rows = [data.samples.id.index(name) for name in batch["id"]]
        np.testing.assert_allclose(batch["image"], values[rows], atol=1e-6)


def test_flip_of_pictures_is_left_to_right(tmp_path) -> None:
    values = write(tmp_path)
    torch.manual_seed(0)
    changed = everything(Arrays(tmp_path, augment_flip=True), training=True)
    mirrored = [np.allclose(a, b[..., ::-1], atol=1e-4) for a, b in zip(changed, values, strict=True)]
    same = [np.allclose(a, b, atol=1e-4) for a, b in zip(changed, values, strict=True)]
    assert 30 < sum(mirrored) < 66 and sum(mirrored) + sum(same) == N


def test_threads_and_chunks_change_nothing(tmp_path, monkeypatch) -> None:
    values = write(tmp_path)
    monkeypatch.setattr(module, "CHUNK", 3)
    np.testing.assert_allclose(everything(Arrays(tmp_path)), values, atol=1e-6)


def test_impossible_augmentation_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"augment_shift is 2"):
        Arrays(tmp_path, augment_shift=2)
    with pytest.raises(DataError, match=r"augment_rotation 270"):
        Arrays(tmp_path, augment_rotation=270)


def test_shift_of_the_base_works_on_images(tmp_path) -> None:
    write(tmp_path)
    data = Arrays(tmp_path, shift={"sex": 0.75}, split="holdout", test_fraction=0.3, validation_fraction=0.4)
    data.setup("fit")
    rows = data.rows("train")
    assert (data.samples.attributes["sex"][rows] == data.samples.target[rows]).mean() == pytest.approx(0.75, abs=0.1)
    assert {"same", "inverted", "balanced"} <= set(data.test_sets)
