from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr
from sklearn.metrics import roc_auc_score

from medprism.evaluation.grounding import (
    SCORES,
    CentreBias,
    Grounded,
    centred,
    ground,
    grounding,
    inside,
    on_patches,
    score,
    truths,
)


def by_loops(map_: np.ndarray, truth: np.ndarray) -> list[float]:
    """The definitions, for maps without ties."""
    region = {k for k, value in enumerate(truth) if value > 0.5 * truth.max()}
    order = sorted(range(len(map_)), key=lambda k: -map_[k])
    chosen = set(order[: len(region)])
    z = (map_ - map_.mean()) / map_.std()
    nss = sum(weight * value for weight, value in zip(truth, z, strict=True)) / truth.sum()
    labels = [k in region for k in range(len(map_))]
    auc = roc_auc_score(labels, map_) if len(region) < len(map_) else np.nan
    iou = len(chosen & region) / len(chosen | region)
    return [float(order[0] in region), iou, pearsonr(map_, truth)[0], nss, auc]


@pytest.mark.parametrize("n", [9, 49])
def test_scores_are_their_definitions(n: int) -> None:
    rng = np.random.default_rng(n)
    maps = rng.normal(size=(20, n))
    truth = rng.random((20, n)) ** 4 + 0.3 * (maps > 1)
    np.testing.assert_allclose(score(maps, truth), [by_loops(*pair) for pair in zip(maps, truth, strict=True)])


def test_closed_forms() -> None:
    truth = np.zeros((1, 16), np.float32)
    truth[0, [5, 6, 9]] = [1, 0.8, 0.6]
    perfect = score(truth, truth)[0]
    assert perfect[[0, 1, 2, 4]].tolist() == pytest.approx([1, 1, 1, 1])
    assert perfect[3] == pytest.approx(by_loops(truth[0] + 1e-9 * np.arange(16), truth[0])[3], abs=1e-6)
    worst = score(-truth, truth)[0]
    assert worst[[0, 1, 2, 4]].tolist() == pytest.approx([0, 0, -1, 0])
    # a constant map, up to rounding, is at chance: k of n patches; expected intersection k k / n
    rounding = 1e-8 * np.random.default_rng(0).random((1, 16))
    blind = score(0.3 + rounding, truth)[0]
    common = 3 * 3 / 16
    np.testing.assert_allclose(blind, [3 / 16, common / (6 - common), np.nan, np.nan, 0.5])
    # nobody looked; everybody looked everywhere
    assert np.isnan(score(truth, np.zeros((1, 16)))).all()
    np.testing.assert_array_equal(np.isnan(score(truth, np.ones((1, 16))))[0], [False, False, True, False, True])


def test_tied_patches_are_the_mean_over_orders() -> None:
    maps = np.array([[2.0, 2, 1, 1, 1, 0]])
    truth = np.array([[1.0, 0, 1, 0, 1, 0]])
    pointing, iou = score(maps, truth)[0, :2]
    # of the three highest two are the first ones, the third is one of three: right in two of three cases
    common = 1 + 2 / 3
    assert (pointing, iou) == pytest.approx((0.5, common / (6 - common)))


def test_random_maps_are_at_chance() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.eye(25)[:1] + np.eye(25)[7:8], 4000, axis=0)
    pointing, _, cc, nss, auc = np.nanmean(score(rng.random((4000, 25)), truth), axis=0)
    assert pointing == pytest.approx(2 / 25, abs=0.015)
    assert (cc, nss) == pytest.approx((0, 0), abs=0.03) and auc == pytest.approx(0.5, abs=0.015)


def test_gaze_is_averaged_over_the_area_of_each_patch() -> None:
    maps = torch.rand(3, 56, 56)
    plain = torch.nn.functional.avg_pool2d(maps, 8)
    torch.testing.assert_close(on_patches(maps, (7, 7)), plain.flatten(1))
    # no multiples: mass stays what it is
    for grid in ((5, 9), (7, 7), (60, 60)):
        torch.testing.assert_close(on_patches(maps, grid).mean(1), maps.mean((1, 2)))
    halves = on_patches(torch.tensor([[[0.0, 0.0, 6.0]]]).expand(1, 1, 3), (1, 2))
    torch.testing.assert_close(halves, torch.tensor([[0.0, 4.0]]))  # half a cell of 0 and one of 6, over 1.5 cells


def test_patches_inside_a_box() -> None:
    assert inside((0.0, 0.0, 0.5, 0.5), (4, 4)).reshape(4, 4).tolist() == [[1, 1, 0, 0]] * 2 + [[0] * 4] * 2
    assert inside((0.3, 0.55, 0.4, 0.6), (4, 4)).argmax() == 9 and inside((0.3, 0.55, 0.4, 0.6), (4, 4)).sum() == 1
    assert inside((1.2, 0.0, 1.5, 1.0), (4, 4)).sum() == 0
    assert inside((0.5, 0.5, 0.5, 0.5), (4, 4)).sum() == 0  # no area
    assert inside((0.0, 0.0, 1.0, 0.26), (2, 3)).tolist() == [1, 1, 1, 0, 0, 0]


def make_batch() -> dict[str, Any]:
    gaze = torch.zeros(4, 3, 8, 8)
    gaze[0, 0, :2, :2] = 1  # patch 0 of 16
    gaze[0, 1, 6:, 6:] = 0.5  # patch 15
    gaze[2, 0, :2, 2:4] = 1
    return {
        "id": ["a", "b", "c", "d"],
        "sentences": [["x", "y"], ["z"], ["x", "nobody looked", "no vector"], []],
        "gaze": gaze,
        "has_gaze": torch.tensor([True, False, True, True]),
        "boxes": [[("x", 0.0, 0.0, 0.25, 0.25)], [], [("y", 1.5, 0.0, 2.0, 1.0), ("z", 0.0, 0.75, 0.25, 1.0)], []],
    }


def tokens(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    patches = torch.eye(16).expand(4, 16, 16).to(dtype)
    sentences = torch.zeros(4, 2, 16)
    sentences[0, 0, 0] = sentences[0, 1, 3] = sentences[1, 0, 0] = sentences[2, 0, 1] = sentences[2, 1, 5] = 1
    return patches, sentences.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_a_batch(dtype: torch.dtype) -> None:
    patches, sentences = tokens(dtype)
    with torch.autocast("cpu", torch.bfloat16):  # as a step of a run in half precision
        rows = ground("gaze", make_batch(), ["p", "q", "p", "q"], patches, sentences, (4, 4))
    assert rows.truth.dtype == np.float32
    assert rows.ids == ["a", "a", "c", "c", "c"] and rows.number.tolist() == [1, 2, 1, 2, 3]
    assert rows.subjects == ["p"] * 5
    np.testing.assert_array_equal(rows.scores[:, 0], [1, 0, 1, np.nan, np.nan])
    found, notes = grounding("gaze", rows, centred((4, 4)), "centre", resamples=20)
    assert found["pointing"]["value"] == pytest.approx(2 / 3) and found["n"] == 3
    assert found["samples"] == 2 and found["subjects"] == 1
    # the Gaussian is highest in the four middle patches, where nobody looked
    assert found["centre_bias"]["pointing"]["value"] == 0
    assert found["above_centre_bias"]["pointing"]["value"] == pytest.approx(2 / 3)
    assert notes == ["grounding: 2 of 5 sentences with gaze: nobody looked; left out"]

    phrases = torch.zeros(4, 2, 16)
    phrases[0, 0, 0] = phrases[2, 0, 0] = phrases[2, 1, 3] = 1
    boxed = ground("boxes", make_batch(), ["p", "q", "p", "q"], patches, phrases.to(dtype), (4, 4))
    assert boxed.ids == ["a", "c", "c"]
    found, notes = grounding("boxes", boxed, centred((4, 4)), "centre", resamples=0)
    assert found["pointing"]["value"] == 0.5 and found["iou"]["value"] == 0.5 and "cc" not in found
    assert notes == ["grounding: 1 of 3 phrases with a box: the box lies outside of the image; left out"]


def test_sentences_without_a_vector_are_counted() -> None:
    patches, sentences = tokens()
    batch = make_batch()
    batch["gaze"][2, :, 0, 0] = 1
    rows = ground("gaze", batch, ["p"] * 4, patches, sentences[:, :1], (4, 4))
    found, notes = grounding("gaze", rows, centred((4, 4)), "centre", resamples=0)
    assert found["n"] == 2 and notes == ["grounding: 3 of 5 sentences with gaze have no vector; left out"]
    with pytest.raises(ValueError, match="patch map of sample 'a' is not finite"):
        ground("gaze", batch, ["p"] * 4, patches * torch.nan, sentences, (4, 4))


def test_missing_gaze_boxes_and_sentences() -> None:
    patches, sentences = tokens()
    batch = make_batch()
    assert len(truths("gaze", {**batch, "has_gaze": torch.zeros(4, dtype=torch.bool)}, (4, 4))[0]) == 0  # type: ignore[typeddict-item]
    for kind in ("gaze", "boxes"):
        rows = ground(kind, {"id": ["a"]}, ["p"], patches[:1], sentences[:1], (4, 4))  # type: ignore[arg-type]
        assert len(rows) == 0
    empty = {**batch, "sentences": [[]] * 4, "gaze": torch.zeros(4, 0, 8, 8)}
    assert len(ground("gaze", empty, ["p"] * 4, patches, torch.zeros(4, 1, 16), (4, 4))) == 0  # type: ignore[arg-type]
    found, notes = grounding("gaze", Grounded(), centred((4, 4)), "centre")
    assert found == {} and notes == ["grounding: none of the sentences with gaze can be scored"]


def test_the_centre_bias_is_the_mean_of_training_readings() -> None:
    bias = CentreBias()
    maps = bias.gather((4, 4))
    np.testing.assert_array_equal(maps["gaze"][0], centred((4, 4)))
    assert maps["gaze"][1] == "Gaussian in the centre, sigma 0.25 of the side"
    middle = centred((3, 5)).reshape(3, 5)
    assert middle.argmax() == 7 and np.allclose(middle, middle[::-1, ::-1])
    for _ in range(2):
        bias.add(make_batch(), (4, 4))  # type: ignore[arg-type]
    gaze, where = bias.gather((4, 4))["gaze"]
    expected = np.zeros(16)
    expected[[0, 1, 15]] = [1 / 3, 1 / 3, 1 / 6]
    np.testing.assert_allclose(gaze, expected, atol=1e-6)
    assert where == "mean of 6 training sentences with gaze"
    assert bias.gather((4, 4))["boxes"][0][[0, 12]].tolist() == pytest.approx([0.5, 0.5])
    assert SCORES[0] == "pointing"
