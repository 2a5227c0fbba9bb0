from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medprism.data import gaze
from medprism.data.errors import DataError
from medprism.data.gaze import Fixations, Reading, frame, gaze_maps, heatmaps, overlap_seconds, placed
from medprism.data.imaging import Square, resized
from medprism.data.transcripts import Sentence

NAN = math.nan
SQUARES: tuple[Square, ...] = ("pad", "crop", "stretch")


def fixations(*rows: tuple[float, float, float, float, float, float]) -> Fixations:
    """From rows of x, y, start, end, sigma along x, sigma along y."""
    table = np.array(rows, dtype=float).reshape(-1, 6)
    return Fixations(table[:, 0], table[:, 1], table[:, 2], table[:, 3], table[:, 4:])


def reading(seen: Fixations | None, *times: tuple[float, float], size: tuple[int, int] = (60, 40)) -> Reading:
    sentences = tuple(Sentence(f"Sentence {k}.", *each) for k, each in enumerate(times))
    return Reading("r", "s", "/image.png", size, sentences, seen, "table.csv, row 3")


def random_reading(seed: int, size: tuple[int, int] = (60, 40), sigma: float = 4.0, count: int = 15) -> Reading:
    rng = np.random.default_rng(seed)
    start = np.sort(rng.uniform(0, 9, count))
    place = rng.uniform(0, 1, (count, 2)) * (np.array(size) - 1)
    width = sigma * rng.uniform(0.8, 1.2, (count, 2))
    seen = Fixations(place[:, 0], place[:, 1], start, start + rng.uniform(0.1, 0.9, count), width)
    return reading(seen, (0.5, 3), (2.5, 6), (6.5, 9), size=size)


def on_full_image(case: Reading, row: int, truncate: float = 3.0, samples: int = 1) -> np.ndarray:
    """The gaze of a sentence, drawn on the original image by plain loops over fixations."""
    assert case.fixations is not None
    width, height = case.size
    x, y = ((np.arange(n * samples) + 0.5) / samples - 0.5 for n in (width, height))
    drawn = np.zeros((height * samples, width * samples))
    seen, sentence = case.fixations, case.sentences[row]
    for f in range(len(seen)):
        overlap = max(0.0, min(seen.end[f], sentence.end) - max(seen.start[f], sentence.start))
        across, down = (x - seen.x[f]) / seen.sigma[f, 0], (y - seen.y[f]) / seen.sigma[f, 1]
        bells = [np.where(np.abs(z) > truncate, 0, np.exp(-(z**2) / 2)) for z in (down, across)]
        drawn += overlap * np.outer(*bells)
    return drawn


def area_resized(drawn: np.ndarray, square: Square, canvas: int, samples: int = 1) -> np.ndarray:
    """The picture made square as `resized` does it, and the mean over the area of each canvas pixel."""
    height, width = drawn.shape[0] // samples, drawn.shape[1] // samples
    side = max(height, width) if square == "pad" else min(height, width)
    if square == "pad":
        before = [samples * ((side - n) // 2) for n in (height, width)]
        after = [samples * side - n - b for n, b in zip(drawn.shape, before, strict=True)]
        drawn = np.pad(drawn, list(zip(before, after, strict=True)))
    elif square == "crop":
        top, left = samples * ((height - side) // 2), samples * ((width - side) // 2)
        drawn = drawn[top : top + samples * side, left : left + samples * side]
    down, across = (shares(n, canvas) for n in drawn.shape)
    return down @ drawn @ across.T


def shares(pixels: int, canvas: int) -> np.ndarray:
    """`(canvas, pixels)` share that each pixel has in the area of each canvas pixel."""
    edges, bounds = np.arange(pixels + 1), np.linspace(0, pixels, canvas + 1)
    common = np.minimum(edges[1:], bounds[1:, None]) - np.maximum(edges[:-1], bounds[:-1, None])
    return np.clip(common, 0, None) * canvas / pixels


# --------------------------------------------------------------------------------------------------------------- places
@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("size", [(64, 64), (61, 37), (38, 61), (50, 33), (33, 51)])
@pytest.mark.parametrize("grid", [7, 16, 96])
def test_a_dot_and_a_fixation_on_it_land_at_the_same_place(square: Square, size: tuple[int, int], grid: int) -> None:
    width, height = size
    x, y = width // 2 + 4, height // 2 - 7
    picture = np.zeros((height, width), dtype=np.float32)
    picture[y, x] = 1
    shown = resized(picture, grid, square)
    centres = np.arange(grid) + 0.5
    spot = placed(np.array([x]), np.array([y]), np.ones((1, 2)), size, square, grid)
    assert (shown.sum(axis=0) @ centres) / shown.sum() == pytest.approx(spot.x[0], abs=0.1)
    assert (shown.sum(axis=1) @ centres) / shown.sum() == pytest.approx(spot.y[0], abs=0.1)
    found = heatmaps(reading(fixations((x, y, 0, 1, 1, 1)), (0, 1), size=size), grid, square)[0]
    row, column = np.unravel_index(found.argmax(), found.shape)
    assert max(abs(column + 0.5 - spot.x[0]), abs(row + 0.5 - spot.y[0])) <= 0.5
    assert shown[row, column] >= 0.95 * shown.max()


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("size", [(61, 37), (38, 61)])
def test_frame_is_the_part_that_resized_shows(square: Square, size: tuple[int, int]) -> None:
    picture = np.arange(1, size[0] * size[1] + 1, dtype=np.float32).reshape(size[1], size[0])
    part = frame(size, square)
    if square == "stretch":
        assert part == (0, 0, *size)
        return
    prepared = resized(picture, int(part.width), square)  # of the same size: cut or padded alone
    for row in range(len(prepared)):
        for column in range(len(prepared)):
            x, y = int(column + part.left), int(row + part.top)
            inside = 0 <= x < size[0] and 0 <= y < size[1]
            assert prepared[row, column] == (picture[y, x] if inside else 0)


def test_sigma_is_stretched_with_the_image() -> None:
    found = placed(np.zeros(1), np.zeros(1), np.array([[10.0, 10.0]]), (200, 100), "stretch", 50)
    np.testing.assert_allclose(found.sigma, [[2.5, 5]])
    np.testing.assert_allclose([found.x, found.y], [[0.125], [0.25]])
    padded = placed(np.zeros(1), np.zeros(1), np.array([[10.0, 10.0]]), (200, 100), "pad", 50)
    np.testing.assert_allclose(padded.sigma, [[2.5, 2.5]])
    np.testing.assert_allclose(padded.y, [12.625])


def test_image_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match="0 x 40 pixels"):
        frame((0, 40), "pad")


# -------------------------------------------------------------------------------------------------------------- weights
def test_weights_are_seconds_of_overlap() -> None:
    seen = fixations(*[(0, 0, start, end, 1, 1) for start, end in [(0, 1), (0.5, 3), (4, 5), (9, 9.5), (NAN, 2)]])
    sentences = [Sentence("a", 0.75, 2), Sentence("b", 4.5, 8), Sentence("c", NAN, NAN)]
    expected = [[0.25, 1.25, 0, 0, 0], [0, 0, 0.5, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(overlap_seconds(seen, sentences), expected)
    expected = [[1, 1.5, 0, 0, 0], [0, 0.5, 1, 0, 0], [0, 0, 0, 0, 0]]
    np.testing.assert_allclose(overlap_seconds(seen, sentences, lookback=2.0), expected)
    assert overlap_seconds(seen, []).shape == (0, 5)


# ----------------------------------------------------------------------------------------------------------------- maps
@pytest.mark.parametrize("square", SQUARES)
def test_equals_a_plain_loop(square: Square) -> None:
    case, canvas = random_reading(0), 12
    assert case.fixations is not None
    part, seen = frame(case.size, square), case.fixations

    def mean(low: float, high: float, centre: float, sigma: float, last: float) -> float:
        """Over a canvas pixel that covers `low` to `high` of the image's 0 to `last`."""
        first, final = max(low, centre - 3 * sigma, 0), min(high, centre + 3 * sigma, last)
        if final <= first:
            return 0.0
        z = [(edge - centre) / sigma / math.sqrt(2) for edge in (first, final)]
        return sigma * math.sqrt(math.pi / 2) * (math.erf(z[1]) - math.erf(z[0])) / (high - low)

    found = heatmaps(case, canvas, square)
    for s, sentence in enumerate(case.sentences):
        expected = np.zeros((canvas, canvas))
        for row in range(canvas):
            for column in range(canvas):
                left, right = (part.left + part.width * k / canvas for k in (column, column + 1))
                top, bottom = (part.top + part.height * k / canvas for k in (row, row + 1))
                for f in range(len(seen)):
                    overlap = max(0.0, min(seen.end[f], sentence.end) - max(seen.start[f], sentence.start))
                    across = mean(left, right, seen.x[f] + 0.5, seen.sigma[f, 0], case.size[0])
                    down = mean(top, bottom, seen.y[f] + 0.5, seen.sigma[f, 1], case.size[1])
                    expected[row, column] += overlap * across * down
        expected /= expected.max()
        expected[expected < 1 / 255] = 0
        np.testing.assert_array_equal(found[s], np.rint(255 * expected))


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("size", [(151, 110), (113, 150)])
@pytest.mark.parametrize(("sigma", "samples"), [(15.0, 1), (0.5, 6)])
def test_equals_drawing_on_the_original_image(
    square: Square, size: tuple[int, int], sigma: float, samples: int
) -> None:
    """Also for Gaussians far narrower than a canvas pixel, which are sampled more finely than the original's pixels."""
    case = random_reading(1, size, sigma)
    found = heatmaps(case, 12, square) / 255
    for row in range(3):
        expected = area_resized(on_full_image(case, row, samples=samples), square, 12, samples)
        np.testing.assert_allclose(found[row], expected / expected.max(), atol=0.02)


@pytest.mark.parametrize("square", SQUARES)
def test_equals_drawing_on_the_original_image_and_preparing_it_like_the_picture(square: Square) -> None:
    """The resizing of pictures has a wider kernel, which shows at the borders of the image alone."""
    case = random_reading(2, (333, 250), 40.0)
    assert case.fixations is not None
    inner = (case.fixations.x - 166) / 3 + 166, (case.fixations.y - 125) / 3 + 125
    case = replace(case, fixations=replace(case.fixations, x=inner[0], y=inner[1]))
    found = heatmaps(case, 24, square) / 255
    for row in range(3):
        expected = resized(on_full_image(case, row), 24, square)
        np.testing.assert_allclose(found[row], expected / expected.max(), atol=0.02)


def test_truncation_gives_exact_zeros() -> None:
    case = reading(fixations((29.5, 29.5, 0, 1, 4, 4)), (0, 1), size=(60, 60))
    covered = np.zeros((60, 60), dtype=bool)
    covered[22:38, 22:38] = True  # 30 - 2 sigma to 30 + 2 sigma
    assert ((heatmaps(case, 60, "pad", truncate=2)[0] > 0) == covered).all()
    wide = heatmaps(case, 60, "pad", truncate=50)[0]
    assert wide[10, 30] == 0 and wide[17, 30] > 0  # beyond 3.33 sigma it is less than 1/255 of the peak


def test_nothing_is_drawn_on_the_padding() -> None:
    found = heatmaps(reading(fixations((30, 0, 0, 1, 9, 9)), (0, 1), size=(60, 30)), 60, "pad")[0]
    assert found[:15].max() == 0 and found[15].max() == 255


def test_every_map_reaches_its_maximum_and_weights_are_relative() -> None:
    case = reading(fixations((10, 20, 0, 1, 2, 2), (50, 20, 1, 1.5, 2, 2)), (0, 2), (0.5, 2), size=(61, 41))
    first, second = heatmaps(case, 61, "stretch")
    assert first.max() == second.max() == 255
    assert first[30, 50] in range(126, 130) and second[30, 50] == second[30, 10] == 255


def test_lookback_reaches_gaze_before_the_sentence() -> None:
    case = reading(fixations((10, 20, 0, 1, 2, 2), (50, 20, 3, 4, 2, 2)), (2, 4))
    assert heatmaps(case, 30, "stretch")[0, :, :12].max() == 0
    assert heatmaps(case, 30, "stretch", lookback=1.5)[0, :, :12].max() > 0


def test_sentence_without_gaze_has_the_map_of_the_whole_reading() -> None:
    case = reading(fixations((10, 20, 0, 1, 2, 2), (50, 20, 1, 2, 2, 2)), (0, 1), (5, 6), (NAN, NAN), (0, 2))
    first, *others, whole = heatmaps(case, 30, "pad")
    assert not (first == whole).all()
    assert all((other == whole).all() for other in others)
    assert gaze_counts(case) == {gaze.WHOLE: 2}


def gaze_counts(*cases: Reading) -> dict[str, int]:
    """What is counted, without a cache."""
    totals = np.sum([gaze._drawn(case, 8, "pad", 0, 3)[1] for case in cases], axis=0)
    return {reason: int(n) for reason, n in zip(gaze.REASONS, totals, strict=True) if n}


def test_fixations_off_the_image_are_clipped_and_counted() -> None:
    inside = [(10, 20, 0, 1, 2, 2), (59.4, 39.4, 1, 2, 2, 2)]
    off = [(-1, 20, 0, 1, 9, 9), (10, -0.6, 0, 1, 9, 9), (60, 20, 0, 1, 9, 9), (10, 4000, 0, 1, 9, 9)]
    clean, messy = reading(fixations(*inside), (0, 3)), reading(fixations(*off, *inside), (0, 3))
    np.testing.assert_array_equal(heatmaps(messy, 30, "pad"), heatmaps(clean, 30, "pad"))
    assert gaze_counts(messy) == {gaze.OFF: 4}


def test_fixations_without_place_width_or_duration_are_left_out_and_counted() -> None:
    good = (10, 20, 0, 1, 2, 2)
    bad = [(NAN, 20, 0, 1, 2, 2), (10, 20, NAN, 1, 2, 2), (10, 20, 0, NAN, 2, 2), (10, 20, 0, 1, 0, 2)]
    bad += [(10, 20, 0, 1, 2, NAN), (30, 30, 2, 2, 2, 2), (30, 30, 2, 1, 2, 2), (10, math.inf, 0, 1, 2, 2)]
    clean, messy = reading(fixations(good), (0, 3)), reading(fixations(*bad, good), (0, 3))
    np.testing.assert_array_equal(heatmaps(messy, 30, "pad"), heatmaps(clean, 30, "pad"))
    assert gaze_counts(messy) == {gaze.BLANK: 8}


def test_gaze_outside_of_all_sentences_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    seen = fixations((10, 20, 100, 101, 2, 2), (50, 20, 101, 102, 2, 2))
    case = reading(seen, (0, 1), (2, 3), (NAN, NAN))
    with caplog.at_level(logging.WARNING):
        found = heatmaps(case, 30, "pad")
    assert "table.csv, row 3: all gaze (from 100.0 to 102.0 s) lies outside of all sentences (from 0.0 to 3.0 s)" in (
        caplog.text
    )
    assert (found == heatmaps(reading(seen, (100, 102)), 30, "pad")).all()
    assert gaze_counts(case) == {gaze.WHOLE: 3, gaze.CLOCK: 1}


def test_readings_without_times_or_sentences_are_no_clock_fault(caplog: pytest.LogCaptureFixture) -> None:
    seen = fixations((10, 20, 0, 1, 2, 2))
    assert heatmaps(reading(seen), 30, "pad").shape == (0, 30, 30)
    assert heatmaps(reading(seen, (NAN, NAN)), 30, "pad").max() == 255
    assert gaze_counts(reading(seen), reading(seen, (NAN, NAN))) == {gaze.WHOLE: 1}
    assert not caplog.text


@pytest.mark.parametrize("seen", [None, fixations(), fixations((-9, 0, 0, 1, 2, 2)), fixations((1, 1, 2, 1, 2, 2))])
def test_reading_without_usable_gaze_has_empty_maps(seen: Fixations | None, tmp_path: Path) -> None:
    found, counts = gaze_maps([reading(seen, (0, 1), (1, 2))], 8, "pad", tmp_path)
    assert found.maps.shape == (2, 8, 8) and found.maps.max() == 0 and found.known.tolist() == [False]
    assert counts.get(gaze.UNSEEN, 0) == (seen is not None)


def test_gaze_beside_the_crop_counts_as_none() -> None:
    case = reading(fixations((2, 20, 0, 1, 1, 1), (30, 20, 1, 2, 1, 1)), (0, 1), (1, 2), size=(100, 40))
    first, second = heatmaps(case, 8, "pad")
    assert not (first == second).all()
    case = reading(fixations((2, 20, 0, 1, 1, 1), (50, 20, 1, 2, 1, 1)), (0, 1), (1, 2), size=(100, 40))
    first, second = heatmaps(case, 8, "crop")
    assert (first == second).all() and first.max() == 255


@pytest.mark.parametrize("square", SQUARES)
def test_order_of_fixations_does_not_matter(square: Square) -> None:
    case = random_reading(2, count=40)
    assert case.fixations is not None
    shuffled = case.fixations.take(np.random.default_rng(3).permutation(40))
    np.testing.assert_array_equal(heatmaps(case, 25, square), heatmaps(replace(case, fixations=shuffled), 25, square))


def test_permuted_sentences_permute_maps() -> None:
    case = random_reading(4)
    turned = replace(case, sentences=case.sentences[::-1])
    np.testing.assert_array_equal(heatmaps(case, 16, "pad")[::-1], heatmaps(turned, 16, "pad"))


@pytest.mark.parametrize("options", [{"canvas": 0}, {"lookback": -1.0}, {"truncate": 0.0}, {"truncate": NAN}])
def test_impossible_options_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(DataError, match="expected at least one pixel, no negative seconds, and more than 0 sigma"):
        heatmaps(random_reading(0), **{"canvas": 8, "square": "pad", **options})  # type: ignore[arg-type]


def test_fixations_of_different_lengths_are_refused() -> None:
    with pytest.raises(DataError, match=r"'sigma': \(3,\)"):
        Fixations(np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3), np.zeros(3))


# ---------------------------------------------------------------------------------------------------------------- cache
def test_all_readings_in_order(tmp_path: Path) -> None:
    cases = [
        random_reading(5),
        reading(None, (0, 1)),
        reading(fixations((30, 20, 0, 1, 2, 2))),
        random_reading(6, (30, 50)),
    ]
    found, _ = gaze_maps(cases, 10, "crop", tmp_path)
    assert found.start.tolist() == [0, 3, 4, 4, 7] and found.known.tolist() == [True, False, True, True]
    for k, case in enumerate(cases):
        np.testing.assert_array_equal(found.maps[found.start[k] : found.start[k + 1]], heatmaps(case, 10, "crop"))
    assert len(gaze_maps([], 10, "pad", tmp_path)[0]) == 0


def test_second_start_draws_nothing_and_counts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = reading(fixations((10, 20, 100, 101, 2, 2), (-5, 0, 100, 101, 2, 2)), (0, 1))
    cases = [random_reading(7), *[replace(wrong, source=f"row {k}") for k in range(5)]]
    first, counts = gaze_maps(cases, 10, "pad", tmp_path, lookback=0.5)
    assert counts == {gaze.OFF: 5, gaze.WHOLE: 5, gaze.CLOCK: 5}
    monkeypatch.setattr(gaze, "_drawn", lambda *_: pytest.fail("it was drawn again"))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        second, again = gaze_maps(cases, 10, "pad", tmp_path, lookback=0.5)
    assert again == counts
    for name in ("maps", "start", "known"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert "row 2: all gaze" in caplog.text and "row 3: all gaze" not in caplog.text
    assert "2 further readings have all their gaze outside of their sentences" in caplog.text


def test_whatever_changes_the_maps_draws_them_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = random_reading(8)
    assert case.fixations is not None
    drawn, original = [], gaze._drawn
    monkeypatch.setattr(gaze, "_drawn", lambda *given: drawn.append(given) or original(*given))
    gaze_maps([case], 10, "pad", tmp_path)
    moved = replace(case.fixations, x=case.fixations.x + 0.25)
    later = (*case.sentences[:2], case.sentences[2]._replace(end=8.5))
    for change in ({"fixations": moved}, {"size": (60, 41)}, {"sentences": later}, {"fixations": None}):
        gaze_maps([replace(case, **change)], 10, "pad", tmp_path)
    gaze_maps([case], 11, "pad", tmp_path)
    gaze_maps([case], 10, "crop", tmp_path)
    gaze_maps([case], 10, "pad", tmp_path, lookback=1)
    gaze_maps([case], 10, "pad", tmp_path, truncate=2)
    assert len(drawn) == 9
    gaze_maps([replace(case, id="other", source="moved")], 10, "pad", tmp_path)
    assert len(drawn) == 9
