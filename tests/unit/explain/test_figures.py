"""The `Figures` callback on a method whose maps and scores are planted."""

import csv
import math
import re
import sys
import warnings
from pathlib import Path

import lightning.pytorch as pl
import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.collections import PathCollection
from torch import Tensor
from torch.utils.data import DataLoader

from medprism.cohort import Batch, Cohort, Factor, Representation
from medprism.explain import brain
from medprism.explain.figures import Figures, FigureWarning

pytestmark = pytest.mark.filterwarnings("error::medprism.explain.figures.FigureWarning")

DISEASE_BLOCK, CONTROL_BLOCK, SEX_BLOCK = range(0, 8), range(20, 26), range(40, 46)

TARGET = Factor("diagnosis", ("control", "ASD"), (("healthy control",), ("autism spectrum disorder",)), role="target")
SEX = Factor("sex", ("female", "male"), role="sensitive")


def dosenbach_cohort() -> Cohort:
    from nilearn.datasets import fetch_coords_dosenbach_2010

    atlas = fetch_coords_dosenbach_2010()
    places = [tuple(float(v) for v in row) for row in np.array(atlas.rois.values.tolist())]
    n = len(places)
    return Cohort(
        name="Planted regions",
        fields=("connectome", "target", "attributes"),
        input_shape=(n, n),
        target=TARGET,
        attributes=(SEX,),
        regions=tuple(atlas.labels),
        coordinates=tuple(places),
        atlas="Dosenbach 160",
        simulated=True,
    )


def csv_cohort(folder: Path, with_coordinates: bool = True) -> Cohort:
    """A cohort whose names and centroids come from a table like that of CC200, here made up."""
    path = folder / "regions.csv"
    generator = np.random.default_rng(0)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["roi", "x", "y", "z", "name"])
        for roi in range(1, 51):
            x, y, z = generator.uniform([-60, -95, -30], [60, 60, 70]).round(1)
            name = "" if roi == 2 else f"Made_Up_Gyrus_{'L' if x < 0 else 'R'}"
            writer.writerow([roi, x, y, z, name])
    table = pd.read_csv(path, keep_default_na=False)
    return Cohort(
        name="Table",
        fields=("connectome", "target", "attributes"),
        input_shape=(50, 50),
        target=TARGET,
        attributes=(SEX,),
        regions=tuple(table["name"]),
        coordinates=tuple(map(tuple, table[["x", "y", "z"]].to_numpy().tolist())) if with_coordinates else (),
    )


class Planted(pl.LightningModule):
    """Reads the diagnosis from one block of regions; its maps point there, with a little of everything else."""

    def __init__(self, cohort: Cohort, with_maps: bool = True) -> None:
        super().__init__()
        self.cohort = cohort
        self.with_maps = with_maps
        self.calls = 0

    def _map(self, block: range, noise: Tensor) -> Tensor:
        weights = 0.2 + noise
        weights[:, list(block)] += 4 + torch.arange(len(block), 0, -1) / 4
        return weights / weights.sum(1, keepdim=True)

    def represent(self, batch: Batch) -> Representation:
        assert not self.training and not torch.is_grad_enabled()
        self.calls += 1
        connectome = batch["connectome"]
        score = connectome[:, list(DISEASE_BLOCK)][:, :, list(DISEASE_BLOCK)].mean((1, 2))
        noise = connectome.abs().mean(2) / 2
        maps = {
            "diagnosis": torch.stack([self._map(CONTROL_BLOCK, noise), self._map(DISEASE_BLOCK, noise)], 1),
            "sex": torch.stack([self._map(SEX_BLOCK, noise), self._map(range(5, 10), noise)], 1),
        }
        return Representation({"diagnosis": torch.stack([-score, score], 1)}, maps=maps if self.with_maps else {})

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("score", self.represent(batch).logits["diagnosis"].mean(), batch_size=len(batch["id"]))


def collate(samples: list[Batch]) -> Batch:
    return {
        "id": [s["id"] for s in samples],
        "connectome": torch.stack([s["connectome"] for s in samples]),
        "target": torch.tensor([s["target"] for s in samples]),
        "attributes": {"sex": torch.tensor([s["attributes"]["sex"] for s in samples])},
    }


def loader(cohort: Cohort, subjects: int = 60, one_class: bool = False) -> DataLoader:
    generator = torch.Generator().manual_seed(3)
    n = cohort.input_shape[0]
    samples = []
    for index in range(subjects):
        connectome = 0.3 * torch.randn(n, n, generator=generator)
        target = 1 if one_class else index % 2
        connectome[: len(DISEASE_BLOCK), : len(DISEASE_BLOCK)] += 0.1 * (2 * target - 1)
        connectome = (connectome + connectome.T) / 2
        samples.append(
            {"id": f"s{index}", "connectome": connectome, "target": target, "attributes": {"sex": index % 3 - 1}}
        )
    return DataLoader(samples, batch_size=16, collate_fn=collate)


def run(folder: Path, cohort: Cohort, callback: Figures, with_maps: bool = True, **data: object) -> Planted:
    module = Planted(cohort, with_maps)
    trainer = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
    )
    metrics = trainer.test(module, loader(cohort, **data), verbose=False)
    assert math.isfinite(metrics[0]["score"])
    return module


def pixels(path: Path) -> np.ndarray:
    image = matplotlib.image.imread(path)
    return image[..., :3]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Figures, Planted, Path]:
    folder = tmp_path_factory.mktemp("drawn")
    callback = Figures(deletion_draws=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FigureWarning)
        module = run(folder, dosenbach_cohort(), callback)
    return callback, module, folder / "figures"


def test_every_figure_and_table_is_written_and_listed(drawn: tuple[Figures, Planted, Path]) -> None:
    callback, _, folder = drawn
    line = [f"{stem}.{kind}" for stem in ("diagnosis_top_regions", "sex_top_regions") for kind in ("png", "svg", "csv")]
    more = [f"{stem}.{kind}" for stem in ("overlap_sex", "deletion") for kind in ("png", "svg", "csv")]
    difference = [f"diagnosis_difference{end}" for end in (".csv", ".png", "_asd.html")]
    ranked = [f"diagnosis_difference_top_regions.{kind}" for kind in ("png", "svg")]
    expected = {"maps.csv", "diagnosis_maps.png", "sex_maps.png", *line, *more, *difference, *ranked}
    assert {path.name for path in callback.written} == expected == {path.name for path in folder.iterdir()}
    assert len(callback.written) == len(expected)
    for path in callback.written:
        assert path.stat().st_size > 200
        if path.suffix == ".png":
            image = pixels(path)
            assert image.shape[0] > 600 and image.shape[1] > 1000
            assert 0.5 < float((image.min(-1) > 0.99).mean()) < 0.99, "neither blank nor full"
            border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
            assert border.min() > 0.99, f"{path.name}: something touches the edge and may be cut off"


def test_drawing_leaves_pyplot_alone(drawn: tuple[Figures, Planted, Path]) -> None:
    assert sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_tables_find_the_planted_regions(drawn: tuple[Figures, Planted, Path]) -> None:
    folder = drawn[2]
    table = pd.read_csv(folder / "diagnosis_top_regions.csv")
    for label, block in (("ASD", DISEASE_BLOCK), ("control", CONTROL_BLOCK)):
        rows = table[table["class"] == label]
        assert rows["region"].tolist()[: len(block)] == [index + 1 for index in block]
        assert len(rows) == 20 and (rows["subjects"] > 20).all()
        assert rows["ratio_to_uniform"].tolist() == pytest.approx((rows["weight"] * 160).tolist())
    assert table.query("`class` == 'ASD'")["name"].iloc[0] == "inf cerebellum 155"
    contrast = pd.read_csv(folder / "diagnosis_difference.csv").set_index("region")
    assert (contrast.loc[[i + 1 for i in DISEASE_BLOCK], "weight"] > 0.02).all()
    assert (contrast.loc[[i + 1 for i in CONTROL_BLOCK], "weight"] < -0.02).all()
    maps = pd.read_csv(folder / "maps.csv")
    assert maps[["diagnosis=control", "diagnosis=ASD", "sex=female", "sex=male"]].sum().tolist() == pytest.approx(
        [1] * 4
    )
    sexes = pd.read_csv(folder / "overlap_sex.csv").set_index("class")
    assert list(sexes.index) == ["mean of classes", "female", "male"]
    assert sexes.loc["male", "cosine"] > sexes.loc["female", "cosine"] + 0.2  # only male shares planted regions


def test_deletion_uses_every_subject_and_finds_the_source(drawn: tuple[Figures, Planted, Path]) -> None:
    curve = pd.read_csv(drawn[2] / "deletion.csv")
    assert (curve["subjects"] == 60).all()
    assert curve["auroc_top"][0] > 0.9
    half = curve[curve["masked_regions"] >= len(DISEASE_BLOCK)]
    assert (half["auroc_top"] == 0.5).all() and half["auroc_random_mean"].iloc[0] > 0.9


def test_titles_name_the_cohort_and_say_simulated(drawn: tuple[Figures, Planted, Path]) -> None:
    for path in drawn[2].glob("*.svg"):
        assert "Planted regions, simulated data, n = " in path.read_text(), path.name
    page = (drawn[2] / "diagnosis_difference_asd.html").read_text()
    assert "Planted regions, simulated data, n = 60 subjects" in page
    assert "autism spectrum disorder” (ASD) minus “healthy control" in page


def test_the_interactive_page_needs_no_network(drawn: tuple[Figures, Planted, Path]) -> None:
    page = (drawn[2] / "diagnosis_difference_asd.html").read_text()
    assert page.count("<script>") >= 4 and "Plotly" in page and "inf cerebellum 155 [1]" in page
    assert not re.findall(r"<script[^>]*\bsrc\s*=", page)
    assert not re.findall(r"<(?:link|img|iframe)\b[^>]*(?:href|src)\s*=\s*[\"']?https?:", page)


def test_regions_of_a_table_are_placed(tmp_path: Path) -> None:
    cohort = csv_cohort(tmp_path)
    weights = torch.full((50,), 0.2 / 49)
    weights[1] = 0.8
    figure = brain.glass_brain([brain.Panel("one region", weights)], cohort, "what", 12)
    assert figure.get_suptitle() == "Table, n = 12 subjects\nwhat"
    found = [s for axes in figure.axes for s in axes.collections if isinstance(s, PathCollection)]
    assert max(s.get_sizes().max() for s in found) == pytest.approx(130)
    scatters = [s for s in found if len(s.get_offsets()) == 50]
    assert len(scatters) == 2, "all regions in the views from the top and the back"
    x, y, z = cohort.coordinates[1]
    ends = [tuple(s.get_offsets()[-1]) for s in scatters]  # the strongest is drawn last, on top
    assert ends[0] == pytest.approx((x, y)) and ends[1] == pytest.approx((x, z))
    page = brain.interactive(brain.Panel("<b>", weights), cohort, "what", 12, top=1)
    assert "region 2 [2]" in page and "region 3" not in page and "<b>" not in page


def atlas_of(cohort: Cohort, path: Path) -> Path:
    """A label image with one voxel a region."""
    import nibabel

    labels = np.zeros((30, 36, 30), dtype=np.int16)
    affine = np.diag([6.0, 6.0, 6.0, 1.0])
    affine[:3, 3] = (-87, -123, -72)
    for index, place in enumerate(cohort.coordinates):
        labels[tuple(np.round(np.linalg.solve(affine, (*place, 1.0)))[:3].astype(int))] = index + 1
    assert len(np.unique(labels)) == len(cohort.coordinates) + 1, "the made-up regions must not share a voxel"
    nibabel.save(nibabel.Nifti1Image(labels, affine), path)
    return path


def test_without_coordinates_bars_replace_the_brains_and_volumes_remain(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    atlas = atlas_of(csv_cohort(tmp_path), tmp_path / "atlas.nii.gz")
    callback = Figures(deletion_draws=0, top=3, atlas_image=str(atlas), folder=str(tmp_path / "out"))
    with caplog.at_level("INFO"):
        run(tmp_path, csv_cohort(tmp_path, with_coordinates=False), callback)
    assert caplog.text.count("has no coordinates of its regions") == 1
    assert f"{len(callback.written)} files in {tmp_path / 'out'}" in caplog.text
    names = {path.name for path in callback.written}
    assert {"diagnosis_maps.svg", "diagnosis_difference.svg", "overlap_sex.svg"} <= names
    assert {"diagnosis_maps_control_volume.png", "diagnosis_difference_asd_volume.png"} <= names
    assert not any(name.endswith(".html") or name.startswith("deletion") for name in names)
    assert "region 2 [2]" in (tmp_path / "out" / "diagnosis_maps.svg").read_text()  # it has no name


def test_an_atlas_of_other_regions_is_refused(tmp_path: Path) -> None:
    atlas = atlas_of(csv_cohort(tmp_path), tmp_path / "atlas.nii.gz")
    with pytest.raises(ValueError, match="has 50 labels up to 50; expected the labels 1 to 160"):
        brain.volume(brain.Panel("", torch.ones(160)), dosenbach_cohort(), "", 1, atlas)


def test_a_method_without_maps_is_asked_once_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = Figures()
    with caplog.at_level("INFO"):
        module = run(tmp_path, csv_cohort(tmp_path), callback, with_maps=False)
    assert "none drawn: Planted has no attention maps" in caplog.text
    assert callback.written == [] and not (tmp_path / "figures").exists()
    assert module.calls == 4 + 1  # four test batches, and the first one again


def test_switched_off_it_does_nothing(tmp_path: Path) -> None:
    module = run(tmp_path, csv_cohort(tmp_path), Figures(enabled=False, atlas_image="nowhere.nii"))
    assert module.calls == 4 and not (tmp_path / "figures").exists()


def test_one_class_is_nothing_to_show_but_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    callback = Figures(deletion_draws=1, top=3)
    with caplog.at_level("INFO"):
        run(tmp_path, csv_cohort(tmp_path, with_coordinates=False), callback, one_class=True, subjects=10)
    assert "no deletion: AUROC needs subjects of two classes" in caplog.text
    assert "no diagnosis_difference: no subject is in the mean map of diagnosis = control" in caplog.text
    assert "diagnosis_maps.png" in {path.name for path in callback.written}


def test_a_broken_figure_costs_neither_metrics_nor_the_other_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("planted failure")

    monkeypatch.setattr(brain, "overlap_figure", broken)
    callback = Figures(deletion_draws=1, top=3)
    with pytest.warns(FigureWarning, match="'overlap_sex' failed .RuntimeError: planted failure"):
        run(tmp_path, csv_cohort(tmp_path, with_coordinates=False), callback)
    names = {path.name for path in callback.written}
    assert "deletion.png" in names and "overlap_sex.csv" in names and "overlap_sex.png" not in names


def test_maps_that_break_the_contract_cost_the_figures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planted, "_map", lambda self, block, noise: noise + 1)
    callback = Figures()
    with pytest.warns(FigureWarning, match="'all figures' failed .*do not sum to 1"):
        run(tmp_path, csv_cohort(tmp_path), callback)
    assert callback.written == []


def test_arguments_that_cannot_work_are_refused_before_the_test(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"atlas_image 'nowhere\.nii' is not a file"):
        run(tmp_path, csv_cohort(tmp_path), Figures(atlas_image="nowhere.nii"))
    with pytest.raises(ValueError, match="top >= 1"):
        Figures(top=0)


def test_the_module_imports_no_plotting_library_of_nilearn_or_pyplot() -> None:
    for path in Path(brain.__file__).parent.glob("*.py"):
        early = [line for line in path.read_text().splitlines() if re.match(r"(import|from) .*(nilearn|pyplot)", line)]
        assert not early, f"{path.name}: {early}; import it inside the function that needs it"
