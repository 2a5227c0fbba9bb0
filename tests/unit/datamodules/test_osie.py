from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from jsonargparse import ArgumentParser
from PIL import Image

from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.data.gaze import Fixations, overlap_seconds
from medprism.data.imaging import read_colour, resized
from medprism.datamodules.osie import OSIE, PHRASES, agreement, laid_out

from layouts import OSIE_IMAGES, write_osie

CONFIGS = Path(__file__).parents[3] / "configs" / "data"


def osie(folder: Path, **options: object) -> OSIE:
    given = {"size": 16, "gaze_size": 20, "folds": 3, "jobs": 1, "cache_dir": str(folder / "cache")} | options
    return OSIE(str(folder), **given)


def test_shipped_config_reads_the_layout(tmp_path: Path) -> None:
    write_osie(tmp_path)
    parser = ArgumentParser()
    parser.add_subclass_arguments(CohortDataModule, "data")
    words = [f"--data={CONFIGS / 'osie'}.yaml", f"--data.root={tmp_path}", f"--data.cache_dir={tmp_path / 'cache'}"]
    data = parser.instantiate_classes(parser.parse_args([*words, "--data.batch_size=8"])).data
    data.setup("fit")
    cohort = data.cohort
    assert cohort.input_shape == (3, 96, 96) and cohort.grid == (56, 56) and not cohort.simulated
    batch = next(iter(data.train_dataloader()))
    assert batch["image"].shape == (8, 3, 96, 96) and batch["gaze"].shape == (8, 2, 56, 56)
    assert batch["sentences"] == [list(PHRASES)] * 8 and batch["has_gaze"].all()
    photographs = [set(data.split.part(part)) for part in ("train", "validation", "test")]
    assert len(set.union(*photographs)) == sum(map(len, photographs)) == OSIE_IMAGES


def test_viewers_who_look_at_one_place_look_alike(tmp_path: Path) -> None:
    write_osie(tmp_path)
    data = osie(tmp_path)
    np.testing.assert_array_equal(data.samples.target, 1 - np.arange(OSIE_IMAGES) % 2)
    assert data.agreements[::2].min() > 0.99 and data.agreements[1::2].max() < 0.5
    assert data.cohort.target.classes == ("looked at differently", "looked at alike")
    assert data.samples.subject == data.samples.id and data.cohort.attributes == ()
    with pytest.raises(DataError, match=r"which all of 24 photographs reach; take a threshold between -?0\.\d+ and 1"):
        _ = osie(tmp_path, agreement=-0.9).labels


def test_labels_do_not_follow_the_settings_of_the_maps(tmp_path: Path) -> None:
    write_osie(tmp_path)
    plain, changed = osie(tmp_path), osie(tmp_path, square="stretch", gaze_size=8, sigma_px=80.0)
    np.testing.assert_array_equal(plain.agreements, changed.agreements)
    assert not np.array_equal(plain.texts.gaze.maps[:, :8, :8], changed.texts.gaze.maps)


@pytest.mark.parametrize(("square", "shape"), [("pad", (800, 800)), ("crop", (600, 600)), ("stretch", (600, 800))])
def test_maps_are_where_people_looked(tmp_path: Path, square: str, shape: tuple[int, int]) -> None:
    """Each map against a plain loop over the fixations, drawn at the size of the presentation and averaged."""
    table = write_osie(tmp_path)
    data = osie(tmp_path, square=square, gaze_size=20, sigma_px=40.0)
    gaze = data.texts.gaze
    assert gaze.known.all() and gaze.start.tolist() == list(range(0, 2 * OSIE_IMAGES + 1, 2))
    for k in (0, 1, 2):
        drawn = np.zeros((2, 600, 800))
        for _, row in table[table["image"] == f"{1001 + k}.jpg"].iterrows():
            x, y = np.arange(800) - row["x_px800"], np.arange(600) - row["y_px600"]
            across, down = (np.exp(-(d**2) / 3200) * (np.abs(d) < 120) for d in (x, y))
            drawn[int(row["fix_index"] >= 3)] += row["duration_ms"] * down[:, None] * across
        framed = {"pad": np.pad(drawn, ((0, 0), (100, 100), (0, 0))), "crop": drawn[:, :, 100:700], "stretch": drawn}
        expected = framed[square].reshape(2, 20, shape[0] // 20, 20, shape[1] // 20).mean(axis=(2, 4))
        expected /= expected.max(axis=(1, 2), keepdims=True)
        np.testing.assert_allclose(gaze.maps[2 * k : 2 * k + 2] / 255, expected, atol=0.01)


def test_clock_gives_every_fixation_its_duration() -> None:
    generator = np.random.default_rng(0)
    table = pd.DataFrame({"part": generator.integers(3, size=50), "seconds": generator.uniform(0, 2, 50).round(3)})
    parts, seconds = table["part"].to_numpy(), table["seconds"].to_numpy()
    sentences, start, end = laid_out(seconds, parts, ["a", "b", "c"])
    fixations = Fixations(start, start, start, end, np.ones((50, 2)))
    overlap = overlap_seconds(fixations, sentences)
    np.testing.assert_allclose(overlap, seconds * (parts == np.arange(3)[:, None]), atol=1e-9)
    assert (overlap[parts != np.arange(3)[:, None]] == 0).all()


def test_agreement_is_the_mean_correlation_with_all_others() -> None:
    maps = np.random.default_rng(0).uniform(size=(5, 6, 6))
    loop = [np.corrcoef(maps[v].ravel(), np.delete(maps, v, axis=0).sum(axis=0).ravel())[0, 1] for v in range(5)]
    assert agreement(maps) == pytest.approx(np.mean(loop))
    assert agreement(np.stack([maps[0]] * 3)) == pytest.approx(1)


def test_pictures_stay_in_colour(tmp_path: Path) -> None:
    write_osie(tmp_path)
    data = osie(tmp_path)
    image = data.reader(False)(torch.tensor([3]))["image"][0].numpy()
    with Image.open(tmp_path / "stimuli_320" / "1004.jpg") as picture:
        assert picture.mode == "RGB" and picture.size == (40, 30)
    expected = resized(read_colour(tmp_path / "stimuli_320" / "1004.jpg"), 16)
    np.testing.assert_allclose(image, expected.transpose(2, 0, 1), atol=1 / 255)
    assert np.abs(image[0] - image[1]).max() > 0.1


def test_gaze_of_training_can_be_held_back(tmp_path: Path) -> None:
    write_osie(tmp_path)
    data = osie(tmp_path, gaze_ratio=0.5, batch_size=99)
    data.setup("fit")
    (train,), (test,) = data.train_dataloader(), data.test_dataloader()
    assert train["has_gaze"].float().mean() == pytest.approx(0.5, abs=0.06) and test["has_gaze"].all()


def test_bad_tables_are_explained(tmp_path: Path) -> None:
    table = write_osie(tmp_path)
    file = tmp_path / "fixations.csv.gz"
    cases = [
        (table.drop(columns="duration_ms"), r"lacks the columns \['duration_ms'\]"),
        (
            table.astype(str).replace({"x_px800": {"200.0": "left"}}),
            r"row 2: column 'x_px800' holds 'left', expected",
        ),
        (table.assign(duration_ms=-1), "row 2: column 'duration_ms' holds '-1'"),
        (table.assign(fix_index=""), "row 2: column 'fix_index' holds ''"),
        (table.assign(subject=0), r"one person alone looked at \['1001.jpg'"),
        (table.assign(subject=""), "rows without an image or a subject"),
    ]
    for changed, message in cases:
        changed.to_csv(file, index=False)
        with pytest.raises(DataError, match=message):
            _ = osie(tmp_path).labels
    file.unlink()
    with pytest.raises(DataError, match="does not exist"):
        _ = osie(tmp_path).labels


def test_missing_and_unseen_photographs(tmp_path: Path) -> None:
    table = write_osie(tmp_path)
    table[table["image"] != "1003.jpg"].to_csv(tmp_path / "fixations.csv.gz", index=False)
    data = osie(tmp_path)
    data.setup("fit")
    assert data.skipped == {"photograph without fixations": 1} and len(data.samples) == OSIE_IMAGES - 1
    (tmp_path / "stimuli_320" / "1002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 23 files do not exist, .*1002\.jpg \(fixations\.csv\.gz, 1002"):
        _ = osie(tmp_path).cohort


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"agreement": 2.0}, "agreement is 2"),
        ({"first": 0}, "first 0"),
        ({"clahe": 0.1}, "leave out clahe"),
        ({"lookback": 1.0}, "leave out clahe and lookback"),
        ({"sigma_px": 0.0}, "sigma_px"),
    ],
)
def test_impossible_settings_are_refused(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        osie(tmp_path, **options)


def test_real_photographs(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "osie_gaze"
    if not root.is_dir():
        pytest.skip("needs osie_gaze in MEDPRISM_DATA")
    everything = OSIE(str(root))
    assert len(everything.fixations) == 700 and not everything.skipped
    assert sum(map(len, everything.fixations.values())) == 98321
    # The first 60, for speed.
    table = pd.read_csv(root / "fixations.csv.gz")
    table[table["image"].isin(list(everything.fixations)[:60])].to_csv(tmp_path / "fixations.csv.gz", index=False)
    (tmp_path / "stimuli_320").symlink_to(root / "stimuli_320")
    data = OSIE(str(tmp_path), size=32, square="stretch", gaze_size=16, cache_dir=str(tmp_path / "cache"), jobs=2)
    assert data.cohort.input_shape == (3, 32, 32) and data.skipped == {"photograph without fixations": 640}
    assert 0.3 < data.samples.target.mean() < 0.7 and 0.2 < data.agreements.min() < data.agreements.max() < 0.95
    maps = data.texts.gaze.maps.reshape(60, 2, 16, 16).mean(axis=0)
    middle = maps[:, 5:11, 5:11].mean(axis=(1, 2)) / maps.mean(axis=(1, 2))
    assert middle[0] > middle[1] > 1  # the first looks lie nearer to the centre
