from __future__ import annotations

from pathlib import Path

import pytest

from medprism.data.errors import DataError
from medprism.data.prompts import load_prompts, prompt_sets


def written(folder: Path, text: str) -> Path:
    path = folder / "prompts.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_sets_that_come_with_the_package() -> None:
    assert prompt_sets() == ("chexpert_5x200", "retrieval_8x5", "rsna_pneumonia", "siim_pneumothorax")
    findings = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
    prompts = load_prompts("chexpert_5x200", findings)
    assert tuple(prompts) == findings and all(len(phrases) >= 64 for phrases in prompts.values())
    assert "mild atelectasis at the left lung base" in prompts["Atelectasis"]
    queries = load_prompts("retrieval_8x5")
    assert [len(texts) for texts in queries.values()] == [5] * 8
    # label 0 of RSNA and SIIM is the normal class, and it comes first
    assert list(load_prompts("rsna_pneumonia")) == ["no pneumonia", "Pneumonia"]
    assert list(load_prompts("siim_pneumothorax")) == ["no pneumothorax", "Pneumothorax"]


def test_the_order_of_classes_is_that_of_the_cohort() -> None:
    turned = load_prompts("rsna_pneumonia", ["Pneumonia", "no pneumonia"])
    assert list(turned) == ["Pneumonia", "no pneumonia"]
    assert turned["no pneumonia"] == load_prompts("rsna_pneumonia")["no pneumonia"]


def test_lists_and_combinations(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        'Edema:\n  how: ["", mild]\n  what: [edema, "wet  lungs"]\n  where: [at the base]\nnone:\n  - clear lungs\n',
    )
    assert load_prompts(path) == {
        "Edema": (
            "edema at the base",
            "wet lungs at the base",
            "mild edema at the base",
            "mild wet lungs at the base",
        ),
        "none": ("clear lungs",),
    }
    few = load_prompts(str(path), most=2)
    assert len(few["Edema"]) == 2 and set(few["Edema"]) < set(load_prompts(path)["Edema"])
    assert few == load_prompts(path, most=2) and few["none"] == ("clear lungs",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Edema: []\n", r"prompts.yaml: class 'Edema': expected a list of at least one text, found \[\]"),
        ("Edema:\n", "class 'Edema': expected a list of at least one text, found None"),
        ("Edema: wet lungs\n", "expected a list of at least one text, found 'wet lungs'"),
        ("Edema:\n  severity: []\n  what: [a]\n", "class 'Edema', part 'severity': expected a list"),
        ("Edema: {}\n", "class 'Edema': expected a list"),
        ('Edema: ["  "]\n', "class 'Edema' has an empty phrase"),
        ("Edema: [1.5]\n", "class 'Edema': 1.5 is not text; put it in quotes"),
        ("no: [clear]\n", "class name False is not text; put it in quotes"),
        ("Edema: [wet, wet]\n", "phrase 'wet' stands twice in class 'Edema'"),
        ("Edema: [wet]\nEffusion: [wet]\n", "phrase 'wet' stands in 'Edema' and 'Effusion'"),
        ("Edema: [wet]\nEdema: [moist]\n", "'Edema' comes twice; give each class once.*line 2"),
        ("- wet\n", "expected classes, each with its phrases, found list"),
        ("", "expected classes, each with its phrases, found NoneType"),
        ("Edema: [wet\n", r"prompts.yaml: not YAML \(.*line 2"),
    ],
)
def test_files_that_cannot_be_used(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_prompts(written(tmp_path, text))


def test_other_classes_encodings_and_names(tmp_path: Path) -> None:
    path = written(tmp_path, "Edema: [wet]\nEffusions: [water]\n")
    with pytest.raises(DataError, match=r"unknown classes \['Effusions'\], missing classes \['Effusion'\]"):
        load_prompts(path, ["Edema", "Effusion"])
    (tmp_path / "latin.yaml").write_bytes("Ödem: [nass]\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin.yaml: byte 0 is not UTF-8; save the file as UTF-8"):
        load_prompts(tmp_path / "latin.yaml")
    with pytest.raises(DataError, match="no prompt set 'chexpert_8x200': name one of chexpert_5x200, retrieval_8x5"):
        load_prompts("chexpert_8x200")
    with pytest.raises(DataError, match="most is 0"):
        load_prompts("retrieval_8x5", most=0)
    marked = tmp_path / "marked.yaml"
    marked.write_text("Edema: [wet]\n", encoding="utf-8-sig")
    assert load_prompts(marked) == {"Edema": ("wet",)}
