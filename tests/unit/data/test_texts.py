import numpy as np
import pytest
import torch

from medprism.data.errors import DataError
from medprism.data.imaging import Motion
from medprism.data.texts import Box, GazeMaps, TextReader, Texts
from medprism.datamodules.images import PixelReader


def make_texts(**changes) -> Texts:
    maps = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4)
    values = {
        "sentences": (("clear lungs", "no effusion"), (), ("big heart",)),
        "gaze": GazeMaps(maps, np.array([0, 2, 2, 3]), np.array([True, False, True])),
        "boxes": ((), (), (Box("heart", 0.2, 0.3, 0.4, 0.5),)),
    }
    return Texts(**{**values, **changes})


def test_a_batch_is_padded_to_its_longest_sample():
    read = TextReader(make_texts(), np.array([0, 1, 2]))
    batch = read(torch.tensor([2, 0]))
    assert batch["sentences"] == [["big heart"], ["clear lungs", "no effusion"]]
    assert batch["gaze"].shape == (2, 2, 4, 4) and batch["has_gaze"].tolist() == [True, True]
    torch.testing.assert_close(batch["gaze"][0, 0] * 255, torch.arange(32.0, 48).reshape(4, 4))
    assert not batch["gaze"][0, 1].any()
    assert batch["boxes"][0] == [("heart", 0.2, 0.3, 0.4, 0.5)]
    assert read(torch.tensor([1]))["gaze"].shape == (1, 0, 4, 4)


def test_gaze_that_may_not_be_used_looks_like_none():
    read = TextReader(make_texts(), np.array([0, 2]), use_gaze=np.array([True, False]))
    batch = read(torch.tensor([0, 1]))
    assert batch["has_gaze"].tolist() == [True, False]
    assert batch["gaze"][0].any() and not batch["gaze"][1].any()


def test_positions_of_the_source_and_of_the_cohort_are_told_apart():
    read = TextReader(make_texts(), np.array([2, 0]))
    assert read(torch.tensor([0]))["sentences"] == [["big heart"]]


def test_fields_and_digests_follow_what_is_there():
    texts = make_texts()
    assert texts.fields == ("sentences", "gaze", "has_gaze", "boxes")
    plain = make_texts(gaze=None, boxes=None)
    assert plain.fields == ("sentences",)
    assert len({texts.digest(0), texts.digest(2), plain.digest(0), make_texts(boxes=None).digest(2)}) == 4


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="one map for each sentence"):
        make_texts(sentences=(("one",), (), ("two",)))
    with pytest.raises(DataError, match="with boxes"):
        make_texts(boxes=((),))
    with pytest.raises(DataError, match="the first must be 0"):
        GazeMaps(np.zeros((2, 4, 4), np.uint8), np.array([0, 1]), np.array([True]))


def test_gaze_moves_with_its_image():
    torch.manual_seed(0)
    pixels = torch.zeros(6, 1, 16, 16, dtype=torch.uint8)
    maps = np.zeros((6, 8, 8), np.uint8)
    for k in range(6):  # a square of the image, and the gaze on it, at half the resolution
        pixels[k, :, 4:8, 4 + k : 8 + k] = 255
        maps[k] = pixels[k, 0].reshape(8, 2, 8, 2).float().mean((1, 3)).numpy().astype(np.uint8)
    texts = Texts(tuple(("here",) for _ in range(6)), GazeMaps(maps, np.arange(7), np.ones(6, bool)))

    def change(batch):
        motion = Motion.draw(batch, 0.2, 30.0, 1)
        return motion(batch), motion

    batch = PixelReader("image", pixels, torch.arange(6), TextReader(texts, np.arange(6)), change)(torch.arange(6))
    small = torch.nn.functional.avg_pool2d(batch["image"], 2)
    assert (small - batch["gaze"]).abs().mean() < 0.01
    assert (batch["gaze"] - torch.from_numpy(maps)[:, None] / 255).abs().mean() > 0.02
