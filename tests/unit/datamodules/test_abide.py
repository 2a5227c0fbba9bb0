from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medprism.data.errors import DataError
from medprism.datamodules.abide import ABIDE
from medprism.datamodules.fmri import process

from layouts import ABIDE_PEOPLE as N
from layouts import abide_series as series
from layouts import write_abide


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_abide(tmp_path)


def module(root: Path, **options: object) -> ABIDE:
    return ABIDE(str(root), **({"cache_dir": str(root / "cache"), "jobs": 1} | options))


def test_labels_follow_the_coding_of_the_release(root) -> None:
    data = module(root)
    samples = data.samples
    assert len(samples) == N - 1 and samples.id[0] == "50001"
    # DX_GROUP 1 is autism, 2 is control; SEX 1 is male, 2 is female.
    assert data.cohort.target.classes == ("control", "autism") and samples.target[:5].tolist() == [1, 1, 0, 0, 1]
    assert data.cohort.attribute("sex").classes == ("male", "female")
    assert samples.attributes["sex"][:5].tolist() == [0, 0, 0, 0, 1]
    assert data.cohort.attribute("age").phrases[0] == ("age 6 to 12",)
    assert data.cohort.attribute("site").phrases == (("site KKI",), ("site NYU",))
    assert samples.attributes["site"][:2].tolist() == [1, 0]
    assert data.cohort.regions[0] == "CC200 1" and data.cohort.coordinates == ()
    assert len(module(root, quality_checked=True, attributes=("sex",)).cohort.attributes) == 1


def test_series_are_those_of_the_person(root) -> None:
    source = module(root).source()
    read = source.read([7, 2])
    np.testing.assert_array_equal(read[0], series(7))
    np.testing.assert_array_equal(read[1], series(2))
    assert "Scan_50008_rois_cc200.1D (subject 50008)" in source.names[7]


def test_second_start_equals_the_first(root, monkeypatch) -> None:
    first = module(root)
    values = first.reader(False)(torch.arange(N - 1))["connectome"]
    monkeypatch.setattr(ABIDE, "_build", lambda self: pytest.fail("computed again"))
    again = module(root)
    assert torch.equal(again.reader(False)(torch.arange(N - 1))["connectome"], values)
    assert again.cohort == first.cohort


def test_atlas_table_beside_the_data_is_used(root) -> None:
    (root / "atlases").mkdir()
    lines = ["roi,x,y,z,aal", *(f"{k},{k}.5,0,-1,Area" for k in range(1, 6))]
    (root / "atlases" / "cc200_roi_names.csv").write_text("\n".join(lines))
    cohort = module(root).cohort
    assert cohort.regions == ("Area",) * 5 and cohort.coordinates[1] == (2.5, 0.0, -1.0)
    assert module(root, atlas="rois_cc200").cohort.regions == cohort.regions
    with pytest.raises(DataError, match="does not exist"):
        _ = module(root, atlas_table="none.csv").cohort


def test_ages_outside_the_bins_are_unknown_and_counted(root, caplog) -> None:
    data = module(root, age_bins=(8, 12, 65))
    assert data.samples.attributes["age"][:4].tolist() == [-1, -1, 0, 0]
    assert "ABIDE: 2 people are outside the age bins" in caplog.text


def test_bad_input_is_explained(root, monkeypatch) -> None:
    with pytest.raises(DataError, match=r"no attributes \['iq'\]"):
        module(root, attributes=("iq",))
    with pytest.raises(DataError, match=r"cannot fetch ABIDE .*rois_cc999 is not a valid derivative"):
        _ = module(root, atlas="cc999").cohort
    file = root / "ABIDE_pcp" / "cpac" / "nofilt_noglobal" / "Scan_50004_rois_cc200.1D"
    file.write_text("1 2 3\nnot numbers\n")
    with pytest.raises(DataError, match="ABIDE subject 50004 cannot be read"):
        _ = module(root).cohort
    np.savetxt(file, series(3)[:10])
    with pytest.raises(DataError, match=r"Scan_50004_rois_cc200\.1D \(subject 50004\): has 10 volumes"):
        _ = module(root).cohort


def test_missing_file_without_network_is_explained(root, monkeypatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    (root / "ABIDE_pcp" / "cpac" / "nofilt_noglobal" / "Scan_50004_rois_cc200.1D").unlink()
    monkeypatch.setattr("nilearn.datasets.func.fetch_files", _first(refuse))
    with pytest.raises(DataError, match=r"no network.*set root to the folder that holds ABIDE_pcp"):
        _ = module(root).cohort


def _first(refuse):
    """nilearn's `fetch_files` with the network taken away."""
    from nilearn.datasets import func

    fetch = func.fetch_files

    def without_network(folder, files, **options):
        return fetch(folder, files, **options) if (Path(folder) / files[0][0]).is_file() else refuse()

    return without_network


def test_released_cohort_has_the_known_people(real_data: Path) -> None:
    data = ABIDE(str(real_data))
    samples, sex = data.samples, data.samples.attributes["sex"]
    assert len(samples) == 871
    counts = {(t, s): int(((samples.target == t) & (sex == s)).sum()) for t in (0, 1) for s in (0, 1)}
    assert counts == {(1, 0): 349, (1, 1): 54, (0, 0): 378, (0, 1): 90}
    site = next(factor for factor in data.labels.attributes if factor.name == "site")
    assert len(site.classes) == 20
    assert (samples.attributes["site"] == site.classes.index("NYU")).sum() == 172
    tests = [ABIDE(str(real_data), fold=fold).split.test for fold in range(5)]
    assert sorted(name for test in tests for name in test) == sorted(samples.subject)


def test_released_series_become_connectomes(real_data: Path) -> None:
    data = ABIDE(str(real_data))
    caltech = [k for k, code in enumerate(data.samples.attributes["site"]) if code == 0]
    arrays = process(data.source(), 200, "correlation", False, 20, caltech)
    assert arrays["connectome"].shape == (15, 200, 200) and np.isfinite(arrays["connectome"]).all()
    assert arrays["constant"].any(axis=1).sum() == 3
    atlas = data.atlas_of(200)
    assert len(atlas.coordinates) == 200 and atlas.regions[0] == "Occipital_Mid_L"


def test_sites_in_two_groups(tmp_path) -> None:
    write_abide(tmp_path)
    data = ABIDE(root=str(tmp_path), attributes=("site", "site_group"), site_group=("NYU",))
    site, group = (data.cohort.attribute(name) for name in ("site", "site_group"))
    assert group.classes == ("other sites", "NYU")
    codes = data.samples.attributes
    assert ((codes["site"] == site.classes.index("NYU")) == (codes["site_group"] == 1)).all()
    with pytest.raises(DataError, match=r"site_group names \['Nowhere'\]"):
        ABIDE(root=str(tmp_path), attributes=("site_group",), site_group=("Nowhere",)).labels  # noqa: B018
