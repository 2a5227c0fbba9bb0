"""Gaze of a sentence as a 56 x 56 map: drawn on the small canvas, against drawn on the radiograph and then resized.

Both put the same fixations (Gaussians of 150 px, cut at 3 sigma, weighted with their seconds of overlap) on a simulated
reading of a radiograph of 2544 x 3056 pixels. Two ways of drawing on the radiograph are timed: `plain` evaluates every
Gaussian on all pixels, `windowed` only where it is not 0, as an outer product. Both are padded and resized as the
pictures are (`medprism.data.imaging.resized`). The values are compared after that, and after exact means over the area
of each canvas pixel. Then all readings of a set as large as MIMIC-EYE are drawn, and started again from disk.

    python benchmarks/speed/gaze.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from threadpoolctl import threadpool_limits

from medprism.data.gaze import Fixations, Reading, frame, gaze_maps, heatmaps, overlap_seconds
from medprism.data.imaging import resized
from medprism.data.transcripts import Sentence

from common import machine, seconds, write

READINGS, SENTENCES, FIXATIONS = 3700, 12, 120
SIZE, CANVAS, SIGMA, TRUNCATE = (2544, 3056), 56, 150.0, 3.0


def simulated(seed: int) -> Reading:
    """A reading of 36 s: fixations anywhere on the inner part of the image, sentences of about 3 s."""
    rng = np.random.default_rng(seed)
    begins = np.sort(rng.uniform(0, 36, FIXATIONS))
    ends = np.minimum(begins + rng.uniform(0.1, 0.5, FIXATIONS), 36)
    x, y = ((0.1 + 0.8 * rng.uniform(size=FIXATIONS)) * n for n in SIZE)
    bounds = np.linspace(0, 36, SENTENCES + 1)
    sentences = tuple(Sentence("", bounds[k] + 0.2, bounds[k + 1]) for k in range(SENTENCES))
    seen = Fixations(x, y, begins, ends, np.full((FIXATIONS, 2), SIGMA))
    return Reading(str(seed), str(seed), "", SIZE, sentences, seen, f"simulated reading {seed}")


# ------------------------------------------------------------------------------------------ drawing on the radiograph
def plain(reading: Reading, row: int) -> np.ndarray:
    """`(H, W)` every Gaussian of a sentence on all pixels."""
    width, height = reading.size
    x, y, drawn = np.arange(width)[None], np.arange(height)[:, None], np.zeros((height, width))
    for weight, across, down in looked_at(reading, row):
        bell = np.exp(-((x - across) ** 2 + (y - down) ** 2) / (2 * SIGMA**2))
        near = (np.abs(x - across) <= TRUNCATE * SIGMA) & (np.abs(y - down) <= TRUNCATE * SIGMA)
        drawn += weight * np.where(near, bell, 0)
    return drawn


def windowed(reading: Reading, row: int) -> np.ndarray:
    """`(H, W)` every Gaussian of a sentence where it is not 0, as an outer product."""
    drawn = np.zeros(reading.size[::-1])
    for weight, *centre in looked_at(reading, row):
        pixels = [
            np.arange(max(0, int(np.ceil(c - TRUNCATE * SIGMA))), min(n - 1, int(c + TRUNCATE * SIGMA)) + 1)
            for c, n in zip(centre, reading.size, strict=True)
        ]
        across, down = (np.exp(-((p - c) ** 2) / (2 * SIGMA**2)) for p, c in zip(pixels, centre, strict=True))
        drawn[pixels[1][0] : pixels[1][-1] + 1, pixels[0][0] : pixels[0][-1] + 1] += weight * np.outer(down, across)
    return drawn


def looked_at(reading: Reading, row: int) -> list[tuple[float, float, float]]:
    """Seconds, x and y of the fixations during a sentence."""
    seen = reading.fixations
    assert seen is not None
    weights = overlap_seconds(seen, reading.sentences)[row]
    return [(w, x, y) for w, x, y in zip(weights, seen.x, seen.y, strict=True) if w]


def area_means(drawn: np.ndarray) -> np.ndarray:
    """The padded picture's exact means over the area of each canvas pixel."""
    part = frame(SIZE, "pad")
    means = []
    for n, origin in ((SIZE[1], part.top), (SIZE[0], part.left)):
        edges, bounds = np.arange(n + 1), origin + np.linspace(0, part.width, CANVAS + 1)
        common = np.minimum(edges[1:], bounds[1:, None]) - np.maximum(edges[:-1], bounds[:-1, None])
        means.append(np.clip(common, 0, None))
    found: np.ndarray = means[0] @ drawn @ means[1].T
    return found


# ---------------------------------------------------------------------------------------------------------- measuring
def through_radiograph(draw: Callable[[Reading, int], np.ndarray], reading: Reading, row: int) -> np.ndarray:
    """Drawn on the radiograph, and resized as the pictures are."""
    return resized(draw(reading, row), CANVAS, "pad")


def against_radiograph(count: int, repeats: int) -> dict[str, float]:
    """Time of a sentence by each way of drawing, and the largest differences in shares of the peak."""
    reading = simulated(0)
    ours = statistics.median(seconds(lambda: heatmaps(reading, CANVAS, "pad")) for _ in range(repeats)) / SENTENCES
    found, rows = heatmaps(reading, CANVAS, "pad") / 255, range(count)
    result = {"sentences timed on the radiograph": count, "ours: seconds a sentence": ours}
    for draw in (plain, windowed):
        each = statistics.mean(seconds(partial(through_radiograph, draw, reading, k)) for k in rows)
        result[f"{draw.__name__}: seconds a sentence"] = each
        result[f"times faster than {draw.__name__}"] = each / ours
    for name, shrink in (("resized as pictures", lambda drawn: resized(drawn, CANVAS, "pad")), ("area", area_means)):
        expected = [shrink(windowed(reading, k)) for k in range(SENTENCES)]
        errors = [float(np.abs(found[k] - map_ / map_.max()).max()) for k, map_ in enumerate(expected)]
        result[f"largest difference of {SENTENCES} sentences, share of the peak: {name}"] = max(errors)
    result["largest difference of plain and windowed"] = float(np.abs(plain(reading, 0) - windowed(reading, 0)).max())
    return result


def all_readings() -> dict[str, float]:
    """Wall-clock and processor time of drawing all readings, and of the second start."""
    readings = [simulated(seed) for seed in range(READINGS)]
    result = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("first start", "second start, from disk"):
            wall, processor = time.perf_counter(), time.process_time()
            maps, _ = gaze_maps(readings, CANVAS, "pad", folder)
            result[f"{name}: wall-clock seconds"] = time.perf_counter() - wall
            result[f"{name}: processor seconds"] = time.process_time() - processor
        result["MB of maps"] = maps.maps.nbytes / 2**20
    return result


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=3, help="sentences that are timed on the radiograph")
    parser.add_argument("--repeats", type=int, default=20, help="timings of our drawing; their median counts")
    options = parser.parse_args()
    load = os.getloadavg()[0]  # other work on the machine lengthens wall-clock times
    heatmaps(simulated(1), CANVAS, "pad")
    with threadpool_limits(1):
        ratio = against_radiograph(options.sentences, options.repeats)
    result = {
        "radiograph": SIZE,
        "canvas": CANVAS,
        "sigma px": SIGMA,
        "one sentence, one thread": ratio,
        f"{READINGS} readings of {SENTENCES} sentences and {FIXATIONS} fixations": all_readings(),
        "environment": {"numpy": np.__version__, **machine(), "load": load},
    }
    print(json.dumps(result, indent=2))
    write("gaze", result)


if __name__ == "__main__":
    main()
