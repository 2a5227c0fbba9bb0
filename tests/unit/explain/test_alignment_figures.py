"""Figures of image-text methods: which samples are chosen, what is prepared of them, and that it is drawn."""

from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medprism.cohort import Cohort, Representation
from medprism.explain import image_text
from medprism.explain.aligned import Aligned, chosen_readings, images_of_texts, similarity, spread, texts_of_images
from medprism.explain.alignment import SecondLook, alignment_figures, picture, reading, upsampled
from medprism.explain.figures import Figures, FigureWarning
from medprism.explain.regions import NothingToShow

from examples import make_reading_cohort, make_readings

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "error::medprism.explain.figures.FigureWarning")

COHORT = make_reading_cohort(simulated=True)
GRID = (4, 2)


def collected(**changes) -> Aligned:
    """Six samples of two classes and one unknown, whose images look like their own texts; not sorted by id."""
    values = {
        "ids": ["f", "b", "c", "a", "e", "d"],
        "subjects": ["p1", "p1", "p2", "p3", "p4", "p5"],
        "texts": [("six",), ("two",), (), ("one",), ("two",), ("four", "more")],
        "gaze": [True, False, True, True, False, True],
        "classes": [1, 0, 0, 0, 1, -1],
        "image": [np.eye(6, dtype=np.float32)[:2], np.eye(6, dtype=np.float32)[2:]],
        "text": [np.eye(6, dtype=np.float32) * 3],
    }
    return Aligned(**{**values, **changes})


def names(aligned: Aligned, rows: list[int]) -> list[str]:
    return [aligned.ids[row] for row in rows]


class Planted(pl.LightningModule):
    """Its patches are the mean brightness of their places, with a direction of their own for each quarter."""

    def __init__(self, cohort: Cohort, blocks: bool = True) -> None:
        super().__init__()
        self.cohort, self.blocks, self.calls = cohort, blocks, 0

    def represent(self, batch: dict) -> Representation:
        assert not self.training and not torch.is_grad_enabled()
        self.calls += 1
        light = torch.nn.functional.adaptive_avg_pool2d(batch["image"].mean(1), GRID).flatten(1)
        patches = torch.nn.functional.normalize(torch.stack([light, 1 - light], -1), dim=-1)
        count = max(map(len, batch["sentences"]))
        sentences = torch.zeros(len(light), count, 2)
        for row, texts in enumerate(batch["sentences"]):
            for k, text in enumerate(texts):
                sentences[row, k, int(text.startswith("no "))] = 1.0
        blocks = {"image": patches.mean(1), "text": sentences.sum(1)} if self.blocks else {}
        tokens = {"patches": patches, "sentences": sentences}
        return Representation({}, blocks=blocks, tokens=tokens, grid=GRID)

    def test_step(self, batch: dict, index: int) -> dict:
        found = self.represent(batch)
        self.log("n", float(len(batch["id"])), batch_size=len(batch["id"]))
        return {"id": batch["id"], "tokens": found.tokens, "blocks": found.blocks, "grid": found.grid}


def run(folder: Path, cohort: Cohort, figures: Figures, *batches: dict, blocks: bool = True) -> Planted:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[figures],
    )
    module = Planted(cohort, blocks)
    batches = batches or (make_readings(cohort, 8, 0), make_readings(cohort, 7, 1))
    trainer.test(module, DataLoader(list(batches), batch_size=None), verbose=False)
    return module


def look_whole(path: Path) -> None:
    image = matplotlib.image.imread(path)[..., :3]
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    assert border.min() > 0.99, f"{path.name}: something touches the edge and may be cut off"
    assert 0.1 < float((image.min(-1) > 0.99).mean()) < 0.99, f"{path.name}: neither blank nor full"


# ---------------------------------------------------------------------------------------------------- what is chosen
def test_readings_are_the_first_by_id_with_gaze_or_else_with_sentences() -> None:
    aligned = collected()
    assert names(aligned, chosen_readings(aligned, 2)) == ["a", "d"]
    assert names(aligned, chosen_readings(aligned, 9)) == ["a", "d", "f"]  # c has gaze, but no sentence
    without = collected(gaze=[False] * 6)
    assert names(without, chosen_readings(without, 3)) == ["a", "b", "d"]


def test_classes_take_turns_and_the_unknown_come_last() -> None:
    aligned = collected()
    assert names(aligned, spread(aligned, aligned.written, 9)) == ["a", "e", "d", "b", "f"]
    assert names(aligned, spread(aligned, aligned.written, 2)) == ["a", "e"]


def test_the_matrix_holds_the_cosines_of_samples_sorted_by_class() -> None:
    generator = np.random.default_rng(0)
    image, text = generator.standard_normal((2, 6, 5)).astype(np.float32)
    aligned = collected(image=[image], text=[text])
    found = similarity(aligned, COHORT)
    order = [3, 1, 4, 0, 5]  # a and b are absent, e and f present, d unknown; c has no text
    expected = [
        [float(image[i] @ text[j] / np.linalg.norm(image[i]) / np.linalg.norm(text[j])) for j in order] for i in order
    ]
    assert found.cosines == pytest.approx(np.array(expected), abs=1e-6)
    assert found.classes == ["absent", "absent", "present", "present", ""]
    alike = np.eye(5, dtype=bool)
    alike[1, 2] = alike[2, 1] = True  # b and e read alike
    assert (found.alike == alike).all() and found.subjects == 4
    assert similarity(collected(classes=[-1] * 6), COHORT).classes == []


def test_images_find_their_texts() -> None:
    text = np.eye(6, dtype=np.float32)
    text[3] = [0.5, 0.2, 0, 0.1, 0, 0]  # that of a looks more like the images of f and b
    found = texts_of_images(collected(text=[text]), COHORT)
    assert [query.id for query in found] == ["a", "e", "d"] and all(query.of == 4 for query in found)
    first = found[0]
    assert (first.label, first.rank) == ("absent", 1) and first.text == ("one",)
    assert (first.hits[0].text, first.hits[0].right, first.hits[0].same_class) == (("one",), True, True)
    assert first.hits[0].score == pytest.approx(0.1 / 0.3**0.5, abs=1e-5)
    equal = next(hit for hit in found[1].hits if hit.right)  # e has the text of b
    assert (equal.id, equal.label, equal.same_class) == ("b", "absent or present", True)
    assert {hit.same_class for hit in found[2].hits} == {None} and found[2].label == ""


def test_texts_find_their_images() -> None:
    image = np.eye(6, dtype=np.float32)
    image[0] = image[5] = image[3]  # the images of f and d look like that of a
    found = images_of_texts(collected(image=[image]), COHORT)
    assert [query.id for query in found] == ["a", "f", "d"] and all(query.of == 5 for query in found)
    assert found[0].rank == 3  # two others tie with it
    assert {hit.id for hit in found[0].hits} == {"a", "f", "d"}
    assert {hit.id: (hit.right, hit.same_class) for hit in found[0].hits} == {
        "a": (True, True),
        "f": (False, False),
        "d": (False, None),
    }
    two = images_of_texts(collected(classes=[1, 0, 0, -1, 1, -1]), COHORT)[0]
    assert two.id == "b" and two.hits[0].right and two.rank == 1


def test_a_method_that_sees_no_difference_finds_nothing() -> None:
    n = 40
    same = [np.ones((n, 3), np.float32)]
    aligned = Aligned(
        [f"s{i:02d}" for i in range(n)], ["p"] * n, [(str(i),) for i in range(n)], [False] * n, [0] * n, same, same
    )
    for found in (texts_of_images(aligned, COHORT), images_of_texts(aligned, COHORT)):
        assert [query.rank for query in found] == [n] * 3
        assert sum(hit.right for query in found for hit in query.hits) < 2  # ties are in no order of ids


def test_too_little_is_said() -> None:
    one = Aligned(["a"], ["p"], [("one",)], [False], [0], [np.ones((1, 2))], [np.ones((1, 2))])
    with pytest.raises(NothingToShow, match="needs two samples with sentences; the test has 1"):
        similarity(one, COHORT)
    for search in (texts_of_images, images_of_texts):
        with pytest.raises(NothingToShow, match="needs two different texts; the test has 1"):
            search(one, COHORT)
    with pytest.raises(NothingToShow, match="no blocks image and text"):
        texts_of_images(collected(image=[np.zeros((6, 0))], text=[np.zeros((6, 0))]), COHORT)


def test_two_ranks_give_what_one_gives() -> None:
    cohort, batches = COHORT, [make_readings(COHORT, 5, seed) for seed in range(4)]
    module = Planted(cohort).eval()
    whole, ranks = Aligned(), [Aligned(), Aligned()]
    with torch.no_grad():
        for k, batch in enumerate([*batches, batches[0]]):  # a sampler pads with a copy
            output = vars(module.represent(batch))
            whole.add(output, batch, cohort)
            ranks[k % 2].add(output, batch, cohort)
    one, two = Aligned.merge([whole]), Aligned.merge([*ranks, Aligned()])
    assert one.ids == two.ids == sorted(set(two.ids)) and len(one.ids) == 20
    for name in ("subjects", "texts", "gaze", "classes"):
        assert getattr(one, name) == getattr(two, name)
    assert (np.concatenate(one.image) == np.concatenate(two.image)).all()
    assert texts_of_images(one, cohort) == texts_of_images(two, cohort)


# -------------------------------------------------------------------------------------------------- what is prepared
def test_a_reading_has_the_cosines_of_each_sentence_with_each_patch() -> None:
    batch = make_readings(COHORT, 4, 0)
    generator = torch.Generator().manual_seed(0)
    patches, sentences = torch.randn(4, 8, 5, generator=generator), torch.randn(4, 3, 5, generator=generator)
    sentences[0, 0] = 0
    found = reading(batch, 0, Representation({}, tokens={"patches": patches, "sentences": sentences}, grid=GRID))
    count = len(batch["sentences"][0])
    assert found.sentences == batch["sentences"][0] and found.left_out == 0 and count > 1
    assert np.isnan(found.cosines[0]).all() and np.isnan(found.maps[0]).all()
    for s in range(1, count):
        for place in range(8):
            a, b = sentences[0, s], patches[0, place]
            assert found.cosines[s, place // 2, place % 2] == pytest.approx(
                float(a @ b / a.norm() / b.norm()), abs=1e-6
            )
        assert found.maps[s].shape == (16, 16) and found.maps[s].max() <= found.cosines[s].max()
        row, column = np.unravel_index(found.maps[s].argmax(), (16, 16))
        assert (row // 4, column // 8) == np.unravel_index(found.cosines[s].argmax(), GRID)
    assert found.gaze is not None and found.gaze.shape == (count, 16, 16)
    wide = batch["gaze"][0, 0].repeat_interleave(2, 0).repeat_interleave(2, 1).numpy()
    assert ((found.gaze[0] > 0.5) == (wide > 0.5)).all()
    assert found.boxes == batch["boxes"][0]
    assert (
        reading(batch, 3, Representation({}, tokens={"patches": patches, "sentences": sentences}, grid=GRID)).gaze
        is None
    )


def test_long_readings_are_cut_and_broken_ones_refused() -> None:
    batch = make_readings(COHORT, 2, 0)
    batch["sentences"][0] = ["a sentence"] * 15
    batch["gaze"] = torch.zeros(2, 15, 8, 8)
    tokens = {"patches": torch.ones(2, 8, 3), "sentences": torch.ones(2, 15, 3)}
    found = reading(batch, 0, Representation({}, tokens=tokens, grid=GRID))
    assert len(found.sentences) == len(found.maps) == len(found.gaze) == 12 and found.left_out == 3
    with pytest.raises(ValueError, match=r"8 patches, but the grid \(3, 3\)"):
        reading(batch, 0, Representation({}, tokens=tokens, grid=(3, 3)))
    tokens["patches"] = tokens["patches"] * torch.nan
    with pytest.raises(ValueError, match="'s0_0' are not finite"):
        reading(batch, 0, Representation({}, tokens=tokens, grid=GRID))


def test_pictures_lie_between_black_and_white() -> None:
    grey = torch.rand(1, 6, 4)
    assert (picture(grey) == grey[0].numpy()).all()
    standard = (picture(5 * torch.randn(3, 60, 40)), picture(torch.full((1, 4, 4), -2.0)))
    assert standard[0].shape == (60, 40, 3) and standard[0].min() == 0 and standard[0].max() == 1
    assert (standard[1] == 0).all()
    assert picture(torch.rand(2, 6, 4)).shape == (6, 4)


def test_maps_are_smooth_and_stay_in_their_range() -> None:
    maps = torch.tensor([[[0.0, 1.0], [0.0, 0.0]], [[-3.0, -3.0], [-3.0, -3.0]]])
    found = upsampled(maps, (8, 6))
    assert found.shape == (2, 8, 6) and (found[1] == -3).all()
    assert found[0].min() == 0 and found[0].max() == 1 and len(np.unique(found[0])) > 10
    assert found[0, :4, 3:].min() > found[0, 4:, :3].max()
    assert upsampled(maps[:0], (8, 6)).shape == (0, 8, 6)


def test_an_overlay_is_bare_where_the_map_is_lowest() -> None:
    image = np.full((1, 3), 0.4)
    found = image_text.overlay(image, np.array([[0.0, 1.0, np.nan]]))
    top = image_text.COLOURS(1.0)[:3]
    assert found[0, 0] == pytest.approx([0.4] * 3) and found[0, 2] == pytest.approx([0.4] * 3)
    assert found[0, 1] == pytest.approx([0.25 * 0.4 + 0.75 * part for part in top])


# ----------------------------------------------------------------------------------------------------- what is drawn
def test_after_a_test_everything_is_drawn(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figures = Figures(readings=2)
    with caplog.at_level("INFO"):
        module = run(tmp_path, COHORT, figures)
    retrieved = [f"retrieval_{way}.{kind}" for way in ("image_to_text", "text_to_image") for kind in ("png", "svg")]
    expected = ["reading_1_s0_0.png", "reading_2_s0_2.png", "similarity.png", "similarity.svg", *retrieved]
    assert [path.name for path in figures.written] == expected
    for path in figures.written:
        if path.suffix == ".png":
            look_whole(path)
        else:
            assert "Readings, simulated data, n = " in path.read_text(), path.name
    text = (tmp_path / "figures" / "retrieval_image_to_text.svg").read_text()
    assert "✓ its own text" in text and "same class" in text and "own text: rank " in text
    assert "inputs of kind image" not in caplog.text
    assert module.calls == 3  # two steps, and once more for the batch of both readings


def test_colours_no_gaze_other_shapes_and_no_classes(tmp_path: Path) -> None:
    fields = ("id", "subject", "image", "target", "attributes", "sentences")
    cohort = make_reading_cohort(fields=fields, grid=(), input_shape=(3, 24, 16), target_kind="labels")
    batch = make_readings(cohort, 6)
    batch["image"] = (batch["image"] - 0.3) / 0.2
    batch["target"] = torch.zeros(6, 2)
    figures = Figures(readings=1, folder=str(tmp_path / "out"))
    run(tmp_path, cohort, figures, batch)
    assert {"reading_1_s0_0.png", "similarity.png", "retrieval_text_to_image.png"} <= {p.name for p in figures.written}
    for path in figures.written:
        if path.suffix == ".png":
            look_whole(path)
    text = (tmp_path / "out" / "retrieval_text_to_image.svg").read_text()
    assert "simulated" not in text and "class" not in text.split("<metadata>")[-1].replace("class=", "")
    assert "sorted by id" in (tmp_path / "out" / "similarity.svg").read_text()


def test_one_sample_has_a_reading_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figures = Figures()
    with caplog.at_level("INFO"):
        run(tmp_path, COHORT, figures, make_readings(COHORT, 1))
    assert [path.name for path in figures.written] == ["reading_1_s0_0.png"]
    assert "no similarity: a similarity matrix needs two samples with sentences; the test has 1" in caplog.text
    assert "no retrieval_text_to_image: retrieval needs two different texts" in caplog.text


def test_no_vectors_and_no_sentences_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    silent = make_readings(COHORT, 3)
    silent |= {"sentences": [[], [], []], "gaze": torch.zeros(3, 0, 8, 8)}
    figures = Figures(folder=str(tmp_path / "silent"))
    with caplog.at_level("INFO"):
        run(tmp_path, COHORT, Figures(readings=1), blocks=False)
        run(tmp_path, COHORT, figures, silent)
    assert "no similarity: the test steps return no blocks image and text" in caplog.text
    assert "no reading: no test sample has sentences" in caplog.text and figures.written == []


def test_a_broken_figure_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_text, "similarity_figure", lambda *_: 1 / 0)
    figures = Figures(readings=1)
    with pytest.warns(FigureWarning, match="'similarity' failed .ZeroDivisionError"):
        run(tmp_path, COHORT, figures)
    assert len(figures.written) == 5


def test_blocks_that_do_not_fit_cost_the_figures_that_need_them(tmp_path: Path) -> None:
    cohort, batch = COHORT, make_readings(COHORT, 4)
    module = Planted(cohort).eval()
    with torch.no_grad():
        output = vars(module.represent(batch))
    output["blocks"]["text"] = torch.ones(4, 7)
    aligned = Aligned()
    aligned.add(output, batch, cohort)
    drawn = dict(alignment_figures(Aligned.merge([aligned]), cohort, module.represent, lambda: [batch], 1))
    with torch.no_grad():
        assert len(list(drawn["reading_1_s0_0"](tmp_path / "reading"))) == 1
    with pytest.raises(ValueError, match="matmul"):
        drawn["similarity"](tmp_path / "similarity")


def test_a_test_set_that_changes_is_noticed() -> None:
    aligned = collected()
    look = SecondLook(aligned, COHORT, lambda batch: None, lambda: [make_readings(COHORT, 4)], 1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"did not meet \['a', 'b', "):
        _ = look.found


def test_a_number_of_readings_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="readings >= 0"):
        Figures(readings=-1)
