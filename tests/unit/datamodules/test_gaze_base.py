from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medprism.data.errors import DataError
from medprism.data.gaze import boxed
from medprism.data.imaging import resized
from medprism.data.texts import Box
from medprism.datamodules.gaze import GazeDataModule, check_size, picture_size
from medprism.datamodules.reading_room import SimulatedReadingRoom

from layouts import write_dicom, write_picture


def room(folder: Path, **options: object) -> SimulatedReadingRoom:
    given = {"people": 40, "size": 32, "gaze_size": 8, "cache_dir": str(folder), "jobs": 1, "split": "holdout"}
    return SimulatedReadingRoom(**(given | options))


def allowed(data: GazeDataModule, training: bool = True) -> dict[str, bool]:
    """For each sample whether its gaze arrives in a batch."""
    read = data.reader(training)(torch.arange(len(data.samples)))
    shown = (read["gaze"].sum((1, 2, 3)) > 0).tolist()
    assert shown == read["has_gaze"].tolist()
    return dict(zip(data.samples.id, shown, strict=True))


def test_smaller_shares_of_gaze_lie_within_larger_ones(tmp_path: Path) -> None:
    data = room(tmp_path)
    training = {data.samples.id[row] for row in data.rows("train")}
    known = {name for name, yes in allowed(data, training=False).items() if yes}
    assert len(known) == 36
    found = {}
    for ratio in (0.0, 0.01, 0.05, 0.1, 0.5, 1.0):
        data.gaze_ratio = ratio
        used = {name for name, yes in allowed(data).items() if yes}
        assert used - training == known - training  # validation and test keep theirs
        found[ratio] = used & training
        assert len(found[ratio]) == np.ceil(round(ratio * len(known & training), 9))
    for smaller, larger in itertools.pairwise(found.values()):
        assert smaller <= larger
    assert not found[0.0] and len(found[0.01]) == 1 and found[1.0] == known & training
    data.gaze_ratio, first = 0.5, found[0.5]
    data.gaze_seed = 1
    assert {name for name, yes in allowed(data).items() if yes} & training != first


def test_gaze_moves_with_the_image_in_training(tmp_path: Path) -> None:
    data = room(tmp_path, augment_flip=True, augment_shift=0.2, gaze_size=32)
    torch.manual_seed(0)
    rows = torch.from_numpy(data.rows("train"))
    plain, moved = data.reader(False)(rows), data.reader(True)(rows)
    assert not torch.equal(plain["gaze"], moved["gaze"]) and "boxes" not in moved and "boxes" in plain
    assert not torch.equal(plain["image"], moved["image"])


def test_boxes_follow_the_preparation() -> None:
    # On an image of 100 x 60, each way to make it square, against a picture in which the region is bright.
    region = Box("bright", 30, 10, 50, 40)
    picture = np.zeros((60, 100), dtype=np.float32)
    picture[10:40, 30:50] = 1
    for square in ("pad", "crop", "stretch"):
        box = boxed(region, (100, 60), square)
        rows, columns = np.nonzero(resized(picture, 200, square) > 0.5)
        seen = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / 200
        np.testing.assert_allclose(box[1:], seen, atol=0.011)
    assert boxed(Box("cut", 0, 0, 30, 60), (100, 60), "crop")[1:] == pytest.approx((0, 0, 1 / 6, 1))
    assert boxed(Box("left of the crop", 0, 0, 15, 60), (100, 60), "crop") is None
    assert boxed(Box("above", 0, -15, 100, -5), (100, 60), "pad") is None  # nothing is on the pad
    assert boxed(Box("far off", -300, 0, -200, 60), (100, 60), "stretch") is None


def test_boxes_outside_are_counted(tmp_path: Path) -> None:
    data = room(tmp_path)
    regions = tuple((*each, Box("nowhere", -50.0, -50.0, -10.0, -10.0)) for each in data.regions)
    data.__dict__["regions"] = regions
    assert all(box.phrase != "nowhere" for boxes in data.texts.boxes for box in boxes)
    assert data.skipped["box outside of the image"] == 40


def test_readings_must_fit_the_labels(tmp_path: Path) -> None:
    data = room(tmp_path)
    data.__dict__["readings"] = data.readings[::-1]
    with pytest.raises(DataError, match="readings and labels differ in their ids or order"):
        _ = data.texts


def test_picture_size_is_read_from_the_head(tmp_path: Path) -> None:
    assert picture_size(write_picture(tmp_path / "a.png", 0, (40, 50))) == (50, 40)
    with pytest.raises(DataError, match=r"b\.png does not exist; mend the path, or set unreadable to skip"):
        picture_size(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"table, row 3 cannot be read as a picture"):
        picture_size(tmp_path / "c.png", "table, row 3")
    pytest.importorskip("pydicom")
    assert picture_size(write_dicom(tmp_path / "d.dcm", np.arange(1200).reshape(30, 40))) == (40, 30)


@pytest.mark.parametrize(
    ("found", "fits"),
    [
        ((2544, 3056), True),
        ((2544, 3055), True),
        ((512, 615), True),
        ((426, 512), True),
        ((3056, 2544), False),
        ((512, 512), False),
        ((2544, 3000), False),
        ((512, 600), False),
    ],
)
def test_smaller_copies_fit_and_other_shapes_do_not(found: tuple[int, int], fits: bool) -> None:
    if fits:
        check_size(found, (2544, 3056), "film")
        return
    with pytest.raises(DataError, match=rf"film: is {found[0]} x {found[1]} pixels, but gaze was recorded on 2544 x"):
        check_size(found, (2544, 3056), "film")


def test_copies_by_pillow_fit() -> None:
    for size in ((2544, 3056), (2021, 2021), (3050, 2539)):
        copy = Image.new("L", size)
        copy.thumbnail((224, 224))
        check_size(copy.size, size, "film")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gaze_size": 1}, "gaze_size is 1"),
        ({"gaze_ratio": 1.2}, r"gaze_ratio 1\.2; take at least 2 pixels, and a share from 0 to 1"),
        ({"lookback": -1.0}, "'lookback': -1.0"),
        ({"sigma_px": 0.0}, "'sigma_px': 0.0"),
        ({"sigma_degrees": float("nan")}, "'sigma_degrees': nan"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        room(tmp_path, **options)
