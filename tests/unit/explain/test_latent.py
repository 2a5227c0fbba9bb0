"""Figures of latent blocks, on blocks whose content is planted."""

from pathlib import Path
from typing import ClassVar

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from medprism.cohort import Cohort, Factor
from medprism.explain.figures import Figures, FigureWarning
from medprism.explain.latent import Latents, embed, embedding_figure, matrix_figure
from medprism.explain.regions import NothingToShow

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning", "error::medprism.explain.figures.FigureWarning")

COHORT = Cohort(
    "Planted digits",
    ("image", "target", "attributes"),
    (1, 2, 2),
    Factor("digit", ("low", "high"), role="target"),
    attributes=(Factor("stroke", ("thin", "thick")), Factor("site", tuple("ABCDEFGHIJ"))),
    simulated=True,
)


def outputs(n: int = 40, start: int = 0) -> dict:
    generator = torch.Generator().manual_seed(start)
    target, stroke = torch.arange(n) % 2, torch.arange(n) // 2 % 2
    noise = torch.randn(n, 6, generator=generator)
    site = torch.arange(n) % 11 - 1
    return {
        "id": [f"s{start + i:04d}" for i in range(n)],
        "subject": [f"p{(start + i) // 2}" for i in range(n)],
        "blocks": {"digit": 4 * target[:, None] + noise[:, :3], "stroke": 4 * stroke[:, None] + noise[:, 3:5]},
        "target": target,
        "attributes": {"stroke": stroke, "site": site},
    }


def collected(*parts: dict) -> Latents:
    latents = Latents()
    for part in parts:
        latents.add(part, COHORT)
    return latents


def metrics() -> dict:
    def entry(value: float, chance: float) -> dict:
        return {m: {"value": value, "low": None, "high": None, "chance": chance} for m in ("knn", "linear", "mlp")}

    row = {"digit": entry(0.97, 0.5), "stroke": entry(0.43, 0.5), "site": entry(0.21, 0.1)}
    del row["stroke"]["mlp"]
    return {
        "set": "balanced",
        "n": 40,
        "subjects": 20,
        "own": {"digit": "digit"},
        "matrix": {"digit": row, "stroke": {"stroke": entry(0.88, 0.5)}, "empty": {}},
        "dominance": {"knn": {"value": 0.83}, "linear": {"value": None}, "mlp": {"value": 0.5}},
    }


def texts(figure) -> list[str]:
    return [t.get_text() for axes in figure.axes for t in (*axes.texts, axes.title, *axes.get_xticklabels())]


def test_samples_of_all_processes_come_once_and_in_order() -> None:
    first, second = collected(outputs(6), outputs(4, 10)), collected(outputs(6, 2))  # four copies
    merged = Latents.merge([first, second])
    assert merged.ids == [f"s{i:04d}" for i in (0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12, 13)]
    assert merged.subjects == [f"p{int(name[1:]) // 2}" for name in merged.ids]
    np.testing.assert_allclose(merged.block("digit")[:6], outputs(6)["blocks"]["digit"].numpy())
    np.testing.assert_array_equal(merged.factor("site")[-4:], outputs(4, 10)["attributes"]["site"].numpy())
    assert Latents.merge([first, second], {"s0003", "s0012"}).ids == ["s0003", "s0012"]
    assert Latents.merge([Latents(), first]).ids == [*first.ids]
    assert Latents.merge([Latents()]).ids == [] and collected({"id": ["a"]}).ids == []


def test_places_are_those_of_the_block() -> None:
    x = np.random.default_rng(0).normal(size=(50, 5)) * [9, 1, 1, 1, 1]
    places, (first, _) = embed(x, "pca")
    centred = x - x.mean(0)
    values = np.linalg.svd(centred, compute_uv=False)
    assert np.abs(np.corrcoef(places[:, 0], x[:, 0])[0, 1]) > 0.99
    assert places.std(0) * np.sqrt(50) == pytest.approx(values[:2])
    assert first == f"PC 1 ({100 * values[0] ** 2 / (values**2).sum():.0f} %)"
    np.testing.assert_array_equal(embed(x[:, :2], "pca")[0], x[:, :2])
    assert embed(x[:, :1], "pca")[0].shape == (50, 2)
    apart = np.repeat([[0.0, 0, 0], [50, 50, 50]], 20, axis=0) + np.random.default_rng(1).normal(size=(40, 3))
    spread = embed(apart, "tsne")[0]
    nearest = ((spread[:, None] - spread[None]) ** 2).sum(-1) + np.diag(np.full(40, np.inf))
    assert (nearest.argmin(1) // 20 == np.arange(40) // 20).all()


def test_an_embedding_has_a_row_a_block_and_a_column_a_factor() -> None:
    figure = embedding_figure(Latents.merge([collected(outputs())]), COHORT, "test set balanced")
    assert [axes.get_title() for axes in figure.axes] == [
        f"block {block}, by {factor}" for block in ("digit", "stroke") for factor in ("digit", "stroke", "site")
    ]
    title = figure.get_suptitle()
    assert (
        title.startswith("Planted digits, simulated data, n = 20 subjects\n")
        and "test set balanced, 40 samples" in title
    )
    legend = [t.get_text() for t in figure.axes[2].get_legend().get_texts()]
    assert len(legend) == 9 and legend[-1] == "unknown or other"  # ten sites, one unknown, eight colours
    points = figure.axes[0].collections[0]
    places, colours = np.asarray(points.get_offsets()), points.get_facecolors()
    low, high = (places[(colours[:, :3] == colour).all(1)] for colour in np.unique(colours[:, :3], axis=0)[::-1])
    assert len(low) == len(high) == 20 and not np.isclose(low[:, 0].mean(), high[:, 0].mean(), atol=3)
    with pytest.raises(NothingToShow, match="whole test has 3"):
        embedding_figure(Latents.merge([collected(outputs(3))]), COHORT, "whole test")


def test_the_matrix_shows_numbers_chance_and_the_diagonal() -> None:
    figure = matrix_figure(metrics(), COHORT)
    shown = texts(figure)
    assert shown.count("0.97") == 3 and shown.count("0.43") == 2 and shown.count("-") == 7
    assert "digit\n(chance 0.50)" in shown and "site\n(chance 0.10)" in shown
    assert "30 nearest neighbours\ndiagonal dominance 0.83" in shown and "linear probe" in shown
    assert "test set balanced, 40 samples" in figure.get_suptitle().replace("\n", " ")
    assert "simulated data, n = 20 subjects" in figure.get_suptitle()
    frames = [patch for patch in figure.axes[0].patches if patch.get_linewidth() == 3]
    assert [(round(p.get_x() + 0.47), round(p.get_y() + 0.46)) for p in frames] == [(0, 0)]
    with pytest.raises(NothingToShow, match="no block could be probed"):
        matrix_figure(metrics() | {"matrix": {"digit": {}}}, COHORT)


# -------------------------------------------------------------------------------------------------- the callback
class Blocks(pl.LightningModule):
    def __init__(self, blocks: bool = True) -> None:
        super().__init__()
        self.cohort, self.blocks = COHORT, blocks

    def test_step(self, batch: dict, index: int) -> dict:
        self.log("n", float(len(batch["id"])))
        return batch if self.blocks else {**batch, "blocks": {}}


class Data(pl.LightningDataModule):
    test_sets: ClassVar = {"balanced": tuple(f"s{i:04d}" for i in range(30))}

    def test_dataloader(self) -> DataLoader:
        return DataLoader([outputs(20), outputs(20, 20)], batch_size=None)


class Measured(pl.Callback):
    def __init__(self) -> None:
        self.metrics = {"test": {"latent": metrics()}}


def run(folder: Path, figures: Figures, *more: pl.Callback, blocks: bool = True) -> None:
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[figures, *more],
    )
    trainer.test(Blocks(blocks), datamodule=Data(), verbose=False)


def test_an_image_cohort_gets_its_latent_figures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    figures = Figures(latent=True)
    with caplog.at_level("INFO"):
        run(tmp_path, figures, Measured())
    assert [path.name for path in figures.written] == [
        "latent_matrix.png",
        "latent_matrix.svg",
        "latent_pca.png",
        "latent_tsne.png",
    ]
    assert "no maps drawn: 'Planted digits' has inputs of kind image" in caplog.text
    for path in figures.written:
        if path.suffix == ".png":
            image = matplotlib.image.imread(path)[..., :3]
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert border.min() > 0.99, f"{path.name}: something touches the edge and may be cut off"
            assert 0.3 < float((image.min(-1) > 0.99).mean()) < 0.99


def test_what_is_not_there_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        run(tmp_path, Figures(latent=True), blocks=False)
        figures = Figures(latent=True, folder=str(tmp_path / "b"))
        run(tmp_path, figures)
        run(tmp_path / "c", Figures())
    assert "no latent blocks drawn: the test steps of Blocks return none" in caplog.text
    assert "no latent_matrix: the block x factor matrix was not measured; set --evaluator.latent true" in caplog.text
    assert [path.name for path in figures.written] == ["latent_pca.png", "latent_tsne.png"]
    assert "Figures: none drawn: 'Planted digits' has inputs of kind image" in caplog.text
    assert not (tmp_path / "c" / "figures").exists() and not (tmp_path / "figures").exists()


def test_a_broken_figure_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medprism.explain.latent.matrix_figure", lambda *_: 1 / 0)
    figures = Figures(latent=True)
    with pytest.warns(FigureWarning, match="'latent_matrix' failed"):
        run(tmp_path, figures, Measured())
    assert [path.name for path in figures.written] == ["latent_pca.png", "latent_tsne.png"]
