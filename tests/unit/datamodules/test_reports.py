from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from jsonargparse import ArgumentParser
from PIL import Image

from medprism.data.base import CohortDataModule
from medprism.data.errors import DataError
from medprism.data.imaging import Square, resized
from medprism.datamodules.reports import COVID_PROMPTS, described, last_paragraph, lung_boxes, read_text
from medprism.datamodules.xray import CovidXray, MimicCXR
from medprism.datamodules.xray_manifest import XrayManifest

from layouts import (
    XRAY_PATIENTS,
    write_covid,
    write_covid_notes,
    write_mimic_cxr,
    write_mimic_reports,
    write_xray_text_manifest,
)

CONFIGS = Path(__file__).parents[3] / "configs" / "data"
MASKED = (
    r"\b(covid|corona|sars|mers\b|2019-ncov|ards\b|pneumocystis|pcp\b|strepto|klebsiella|e\. ?coli|mycoplasma|"
    r"varicella|legionella|lipoid|influenza|chlamyd|tubercul|aspergill)"
)
"""The names that the collection's README says are masked."""


def small(folder: Path, **options: object) -> dict:
    return {"size": 16, "cache_dir": str(folder / "cache"), "jobs": 1, "folds": 3} | options


def mimic(folder: Path, **options: object) -> MimicCXR:
    return MimicCXR(str(folder), **small(folder, uncertain="u_ones", reports=str(folder), **options))


def manifest(folder: Path, **options: object) -> XrayManifest:
    given = {"cuts": {"age": [50]}, "text": "report"} | options
    return XrayManifest(str(folder), str(folder / "images.csv"), **small(folder, **given))


def write_both(folder: Path) -> None:
    write_mimic_cxr(folder)
    write_mimic_reports(folder)


WRITERS = {
    "mimic_cxr_reports": write_both,
    "covid_notes": write_covid_notes,
    "xray_text_manifest": write_xray_text_manifest,
}


@pytest.mark.parametrize("name", WRITERS)
def test_shipped_config_gives_sentences(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path)
    flags = {"root": tmp_path, "cache_dir": tmp_path / "cache", "batch_size": 8, "size": 16}
    flags |= {"mimic_cxr_reports": {"reports": tmp_path}, "covid_notes": {}}.get(
        name, {"manifest": tmp_path / "images.csv", "bins": "{age: [20, 50, 80]}"}
    )
    parser = ArgumentParser()
    parser.add_subclass_arguments(CohortDataModule, "data")
    words = [f"--data={CONFIGS / name}.yaml", *(f"--data.{key}={value}" for key, value in flags.items())]
    data = parser.instantiate_classes(parser.parse_args(words)).data
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert "sentences" in data.cohort.fields and ("boxes" in data.cohort.fields) == (name == "covid_notes")
    assert all(set(data.cohort.fields) <= set(batch) for batch in data.test_dataloader())
    assert len(batch["sentences"]) == 8 and all(batch["sentences"])
    assert all(isinstance(sentence, str) for sentences in batch["sentences"] for sentence in sentences)


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ("INDICATION: cough\nFINDINGS: Clear.\nIMPRESSION: Normal.\nNOTIFICATION: none", "Clear. Normal."),
        (" IMPRESSION:\r\n \r\n Normal at 8:30.\r\n", "Normal at 8:30."),
        ("FINDINGS AND IMPRESSION: Clear", "Clear"),
        ("FINDINGS/IMPRESSION:\nClear", "Clear"),
        ("IMPRESSION: One.\n \nCOMPARISON: None.\n \nIMPRESSION: Two.", "One. Two."),
        ("IMPRESSION:", ""),
        ("TECHNIQUE: The impression: none", None),
        ("AP CHEST, 7:49 A.M.\nLungs are clear.", None),
        ("Findings: Clear.", None),
        ("", None),
    ],
)
def test_sections_are_named_in_capitals(report: str, found: str | None) -> None:
    text = described(report)
    assert (None if text is None else " ".join(text.split())) == found


@pytest.mark.parametrize(
    ("report", "found"),
    [
        ("Title\n \nLungs are\nclear.\n \n", "Lungs are clear."),
        ("CHEST, 2 VIEWS: Lungs are clear.\n\n___", "Lungs are clear."),
        ("COMPARISON:\n\n", ""),
        ("", ""),
    ],
)
def test_last_paragraph_holds_a_letter(report: str, found: str) -> None:
    assert " ".join(last_paragraph(report).split()) == found


def test_mimic_reports_become_sentences(tmp_path: Path, caplog) -> None:
    write_both(tmp_path)
    data = mimic(tmp_path)
    data.setup("fit")
    assert data.skipped == {
        "view not in ['AP', 'PA']": XRAY_PATIENTS,
        "study without chexpert labels": 1,
        "study without a report": 1,
        "empty report": 1,
    }
    assert "1 of 23 reports name no findings or impression; last paragraph used" in caplog.text
    sentences = dict(zip(data.labels.samples.id, data.texts.sentences, strict=True))
    assert len(sentences) == len(data.samples) == XRAY_PATIENTS - 3
    assert sentences[f"{2:08x}-{0:08x}"] == ("Lungs are clear.",)
    assert sentences[f"{3:08x}-{0:08x}"] == ("Small effusion number 3.",)
    assert sentences[f"{4:08x}-{0:08x}"] == (
        "The heart of patient 4 is normal in size.",
        "There is a small effusion of 3.5 cm.",
        "Small effusion number 4.",
    )


def test_mimic_sentences_follow_their_images(tmp_path: Path) -> None:
    write_both(tmp_path)
    name = f"{7:08x}-{0:08x}"
    next(tmp_path.rglob(f"{name}.jpg")).write_bytes(b"broken")
    data = mimic(tmp_path, unreadable="skip", views=("AP", "PA", "LATERAL"))
    data.setup("fit")
    assert data.skipped["unreadable"] == 1 and name not in data.samples.id
    for batch in (*data.reference_dataloader(), *data.test_dataloader()):
        for image, sentences in zip(batch["id"], batch["sentences"], strict=True):
            k = int(image.split("-")[0], 16)
            assert k < 4 or sentences[-1] == f"Small effusion number {k}."


def test_reports_of_other_views_are_not_read(tmp_path: Path) -> None:
    write_both(tmp_path)
    (next(tmp_path.rglob("s50000006.txt"))).write_bytes(b"IMPRESSION: caf\xe9")
    assert mimic(tmp_path, views=("AP",), attributes=()).skipped == {}
    with pytest.raises(DataError, match=r"s50000006\.txt: line 1 is not UTF-8"):
        _ = mimic(tmp_path).labels
    assert len(MimicCXR(str(tmp_path), **small(tmp_path)).samples) == XRAY_PATIENTS - 2  # without reports: as ever


def test_missing_folder_of_reports_is_explained(tmp_path: Path) -> None:
    write_mimic_cxr(tmp_path)
    with pytest.raises(DataError, match="holds no folder 'files'; set reports to the folder"):
        _ = MimicCXR(str(tmp_path), reports=str(tmp_path / "files"), **small(tmp_path)).labels
    with pytest.raises(DataError, match=r"none of 48 images can be used .*'study without a report': 23"):
        _ = mimic(tmp_path).labels


def test_covid_notes_are_masked_or_raw(tmp_path: Path) -> None:
    table = write_covid_notes(tmp_path)
    masked, raw, none = (CovidXray(str(tmp_path), notes=kind, **small(tmp_path)) for kind in ("masked", "raw", "none"))
    for data, word in ((masked, "[finding]"), (raw, "COVID-19")):
        data.setup("fit")
        assert data.skipped == {"no finding given": 1, "no note": 9}
        for name, sentences in zip(data.labels.samples.id, data.texts.sentences, strict=True):
            patient = int(table["patientid"][int(name[:6])]) - 100
            assert sentences == (f"Cough of patient {patient}.", f"{word} was found in 2.5 days.")
    assert len(masked.samples) == 2 * XRAY_PATIENTS - 10 and masked.samples.id == raw.samples.id
    assert none.texts is None and len(none.samples) == 2 * XRAY_PATIENTS - 1 and "sentences" not in none.cohort.fields
    assert none.cohort.target.phrases == (("other finding",), ("COVID-19",))
    assert [factor.name for factor in masked.cohort.attributes] == ["view", "sex", "age"]


def test_prompts_use_no_masked_word() -> None:
    assert not [phrase for phrases in COVID_PROMPTS for phrase in phrases if re.search(MASKED, phrase, re.IGNORECASE)]


def test_missing_notes_are_explained(tmp_path: Path) -> None:
    write_covid(tmp_path)
    with pytest.raises(DataError, match=r"metadata\.csv lacks the columns \['note_masked'\]"):
        _ = CovidXray(str(tmp_path), notes="masked", **small(tmp_path)).labels


@pytest.mark.parametrize("square", ["pad", "crop", "stretch"])
@pytest.mark.parametrize(("width", "height"), [(60, 40), (40, 60), (40, 40)])
def test_lung_boxes_lie_where_the_image_goes(tmp_path: Path, square: Square, width: int, height: int) -> None:
    """A picture that is bright in the box alone, prepared, is bright in the moved box alone."""
    right, left = (4, 12, 12, 20), (22, 8, 14, 24)
    cells = dict(zip([f"{side}_{part}" for side in ("right", "left") for part in "xywh"], (*right, *left), strict=True))
    table = pd.DataFrame([{**cells, "width": width, "height": height}]).astype(str)
    (boxes,) = lung_boxes(table, tmp_path / "metadata.csv", square)
    assert [box.phrase for box in boxes] == ["right lung", "left lung"]
    for box, (x, y, w, h) in zip(boxes, (right, left), strict=True):
        picture = np.zeros((height, width), dtype=np.float32)
        picture[y : y + h, x : x + w] = 1
        expected = np.zeros((480, 480))
        low_x, low_y, high_x, high_y = (round(480 * share) for share in box[1:])
        expected[low_y:high_y, low_x:high_x] = 1
        assert np.abs(resized(picture, 480, square) - expected).mean() < 0.03


def test_impossible_boxes_are_named(tmp_path: Path) -> None:
    table = write_covid_notes(tmp_path)
    for cell, message in (("wide", "'wide'"), ("-3", "'-3'"), ("", "''")):
        changed = table.astype(str)
        changed.loc[3, "left_w"] = cell
        with pytest.raises(DataError, match=rf"metadata\.csv, row 5: columns left_x,y,w,h .*{message}"):
            lung_boxes(changed, tmp_path / "metadata.csv", "pad")
    changed.loc[3, ["left_x", "left_y", "left_w", "left_h"]] = ""
    found = lung_boxes(changed, tmp_path / "metadata.csv", "pad")
    assert [box.phrase for box in found[3]] == ["right lung"] and len(found[4]) == 2
    changed["right_x"], changed["right_w"] = "0", "4"  # the crop of 50 by 40 begins at 5
    assert [box.phrase for box in lung_boxes(changed, tmp_path / "metadata.csv", "crop")[4]] == ["left lung"]
    assert lung_boxes(changed.drop(columns="width"), tmp_path / "metadata.csv", "pad") is None


def test_manifest_reports_stand_in_cells_or_files(tmp_path: Path) -> None:
    write_xray_text_manifest(tmp_path)
    data = manifest(tmp_path)
    data.setup("fit")
    assert data.skipped == {"no report": 1} and data.samples.id == tuple(f"scan{k}.png" for k in range(1, 24))
    assert data.texts.sentences[0] == ("Café is no finding.",)
    assert data.texts.sentences[1] == ("Lungs are clear.", "Heart of scan 2 is normal.")
    assert [factor.name for factor in data.cohort.attributes] == ["sex", "age", "scanner"]
    files, where = data.files()
    assert files[0] == tmp_path / "scan1.png" and where[0] == "images.csv, row 3"
    for batch in data.test_dataloader():
        for name, sentences in zip(batch["id"], batch["sentences"], strict=True):
            assert name == "scan1.png" or sentences[1] == f"Heart of {name[:4]} {name[4:-4]} is normal."


def test_bad_manifest_reports_are_explained(tmp_path: Path) -> None:
    table = write_xray_text_manifest(tmp_path)
    text = tmp_path / "reports" / "1.txt"
    text.write_bytes(b"Clear.\ncaf\xe9")
    with pytest.raises(DataError, match=r"1\.txt \(images\.csv, row 3\): line 2 is not UTF-8 .*save the file as UTF-8"):
        _ = manifest(tmp_path).labels
    text.unlink()
    with pytest.raises(DataError, match=r"1\.txt \(images\.csv, row 3\) cannot be read \(No such file"):
        _ = manifest(tmp_path).labels
    table.assign(report=" ... ").to_csv(tmp_path / "images.csv", index=False)
    with pytest.raises(DataError, match=r"images\.csv: column 'report' holds no sentence"):
        _ = manifest(tmp_path).labels
    with pytest.raises(DataError, match=r"lacks the columns \['notes'\]"):
        _ = manifest(tmp_path, text="notes").labels
    (tmp_path / "images.csv").write_bytes(b"image,target,report\na.png,ill,Clear\nb.png,ill,caf\xe9\n")
    with pytest.raises(DataError, match=r"images\.csv: line 3 is not UTF-8"):
        _ = manifest(tmp_path).labels


def test_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfIMPRESSION: Normal.")
    assert described(read_text(file, "a")).strip() == "Normal."


def test_real_covid_notes(real_data: Path, tmp_path: Path) -> None:
    root = real_data / "covid_chestxray"
    if not root.is_dir():
        pytest.skip("needs covid_chestxray in MEDPRISM_DATA")
    data = CovidXray(str(root), notes="masked", size=32, cache_dir=str(tmp_path), jobs=2)
    data.setup("fit")
    assert data.skipped == {"no finding given": 85, "no note": 81} and len(data.samples) == 187
    assert data.samples.target.sum() == 115
    said = " ".join(sentence for sentences in data.texts.sentences for sentence in sentences)
    assert not re.search(MASKED, said, re.IGNORECASE) and "[finding]" in said
    boxes = np.array([box[1:] for each in data.texts.boxes for box in each])
    assert boxes.shape == (2 * 187, 4) and (boxes[:, 0] < boxes[:, 2]).all() and (boxes[:, 1] < boxes[:, 3]).all()
    # The patient's right lung is on the left of the picture.
    assert (boxes[::2, [0, 2]].mean(axis=1) < boxes[1::2, [0, 2]].mean(axis=1)).all()
    with Image.open(root / "images" / data.samples.id[0]) as picture:
        assert picture.size == (320, 275)
