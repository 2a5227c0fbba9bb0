from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medprism.data.errors import DataError
from medprism.datamodules.adhd200 import ADHD200, read_table

from layouts import ADHD200_CHILDREN as N
from layouts import ADHD200_REGIONS as REGIONS
from layouts import write_adhd200 as write
from layouts import write_adhd200_series as write_series


def module(folder: Path, **options: object) -> ADHD200:
    given = {"table": str(folder / "phenotypes.csv"), "cache_dir": str(folder / "cache"), "jobs": 1} | options
    return ADHD200(str(folder), **given)


def test_labels_and_regions_are_read(tmp_path, caplog) -> None:
    write(tmp_path)
    data = module(tmp_path)
    cohort = data.cohort
    assert cohort.input_shape == (190, 190)
    assert cohort.regions[0] == "CC200 1" and cohort.regions[19] == "CC200 21"
    assert cohort.target.classes == ("control", "ADHD") and cohort.attribute("site").classes == ("KKI", "NYU")
    assert data.samples.id[0] == "10001"
    assert data.samples.target[:5].tolist() == [0, 1, 1, 1, 0]
    # Gender 0 is female: the code of "female" is 1.
    assert data.samples.attributes["sex"][:6].tolist() == [1, 0, -1, -1, 1, 0]
    assert data.samples.attributes["age"][5] == -1
    assert data.samples.attributes["site"][:2].tolist() == [1, 0]
    assert "sex of 2 subjects is not known" in caplog.text
    batch = data.reader(False)(torch.arange(2))["connectome"]
    assert batch.shape == (2, 190, 190) and torch.isfinite(batch).all()


def test_values_are_those_of_the_file(tmp_path) -> None:
    write(tmp_path)
    source = module(tmp_path).source()
    expected = np.random.default_rng(10003).standard_normal((25, 190)).round(5)
    np.testing.assert_array_equal(source.read([2])[0], expected)


def test_what_is_left_out_is_counted(tmp_path, caplog) -> None:
    table = write(tmp_path).astype(str)
    table.loc[0, "DX"] = "pending"
    table.loc[1, "DX"] = "-999"
    table.loc[2, "QC_Athena"] = "0"
    table.loc[3, "QC_Athena"] = "N/A"
    table.to_csv(tmp_path / "phenotypes.csv", index=False)
    next(tmp_path.rglob("sfnwmrda0010005*")).unlink()
    data = module(tmp_path)
    data.setup("fit")
    assert len(data.samples) == N - 5
    assert data.skipped == {
        "no diagnosis": 2,
        "QC_Athena is not 1": 2,
        "no sfnwmrda cc200 time courses": 1,
    }
    assert "ADHD-200: 15 samples; left out: no diagnosis: 2" in caplog.text
    assert len(module(tmp_path, qc_column=None).samples) == N - 3


def test_site_tables_and_both_spellings_are_read(tmp_path) -> None:
    table = write(tmp_path)
    for site, code in {"NYU": 5, "KKI": 3}.items():
        rows = table[table["Site"] == code].rename(columns={"ScanDir.ID": "ScanDir ID"} if site == "NYU" else {})
        rows.to_csv(tmp_path / site / f"{site}_phenotypic.csv", index=False)
    assert sorted(module(tmp_path, table=None).samples.id) == sorted(module(tmp_path).samples.id)


def test_first_run_is_taken(tmp_path) -> None:
    write(tmp_path)
    write_series(tmp_path, 10001, run=2)
    assert "rest_1" in module(tmp_path).source().names[0]


def test_bad_input_is_explained(tmp_path) -> None:
    table = write(tmp_path)
    with pytest.raises(DataError, match="no column QC_Rest_1"):
        _ = module(tmp_path, qc_column="QC_Rest_1").samples
    with pytest.raises(DataError, match="holds no time courses"):
        _ = module(tmp_path, atlas="aal").samples
    with pytest.raises(DataError, match="does not exist"):
        _ = module(tmp_path, table=str(tmp_path / "none.csv")).samples
    with pytest.raises(DataError, match="does not exist"):
        _ = module(tmp_path, table=None).samples
    with pytest.raises(DataError, match=r"no attributes \['iq'\]"):
        module(tmp_path, attributes=("iq",))
    for changed, message in [
        (table.drop(columns="DX"), r"lacks the columns \['dx'\]"),
        (table.assign(**{"ScanDir.ID": 10001}), "stand in the table twice"),
        (table.assign(**{"ScanDir.ID": "x"}), "row 2: the ScanDir ID is 'x'"),
        (table.assign(DX="pending"), "none of 20 subjects can be used"),
    ]:
        changed.to_csv(tmp_path / "phenotypes.csv", index=False)
        with pytest.raises(DataError, match=message):
            _ = module(tmp_path).samples


def test_bad_file_is_named(tmp_path) -> None:
    write(tmp_path)
    file = write_series(tmp_path, 10004, REGIONS[1:])
    with pytest.raises(DataError, match=r"sfnwmrda0010004.*has 189 regions, expected 190.*Mean_1"):
        _ = module(tmp_path).cohort
    file.write_text(
        "\t".join(["File", "Sub-brick", *(f"Mean_{k}" for k in REGIONS)]) + "\nx\t0\t" + "\t".join("a" * 190)
    )
    with pytest.raises(DataError, match=r"sfnwmrda0010004.*cannot be read as Athena time courses"):
        _ = module(tmp_path).cohort
    twin = tmp_path / "WashU" / file.name
    twin.parent.mkdir()
    twin.write_text("")
    with pytest.raises(DataError, match="both the first run of one subject"):
        _ = module(tmp_path).cohort


def test_released_table_is_understood(real_data: Path) -> None:
    table = read_table(real_data, str(real_data / "adhd200" / "adhd200_preprocessed_phenotypics.csv"))
    assert len(table) == 770
    assert table["dx"].value_counts().to_dict() == {"0": 487, "1": 161, "3": 111, "2": 11}
    assert table["gender"].value_counts().to_dict() == {"1": 479, "0": 290, "": 1}
    assert (table["qcathena"] == "1").sum() == 711
