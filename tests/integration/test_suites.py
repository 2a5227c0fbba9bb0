"""The shipped suites that need no data: who meets whom, and how long they are."""

from pathlib import Path

import pytest

from medprism import datamodules, methods
from medprism.benchmark.suite import Suite

ROOT = Path(__file__).parents[2]
TINY = {
    "digits": {"train": 80, "validation": 40, "same": 20, "inverted": 20, "balanced": 40},
    "connectomes": {"subjects": 60, "regions": 12, "volumes": 20},
    "xray": {"people": 60},
    "reading_room": {"people": 60},
}
WITH_DATA = {
    "abide": {"connectome", "target", "attributes"},
    "oasis": {"image", "target", "attributes"},
    "covid_notes": {"image", "sentences", "target", "attributes"},
}


def fields_of(cohort: str, data: dict) -> set[str]:
    if cohort in WITH_DATA:
        return WITH_DATA[cohort]
    datamodule = getattr(datamodules, data["class_path"])(**{**data["init_args"], **TINY[cohort]})
    return set(datamodule.cohort.fields)


def needed_by(model: dict) -> set[str]:
    gaze = model["class_path"] == "EGMA" and model["init_args"].get("use_gaze", True)
    return set(getattr(methods, model["class_path"]).requires) | ({"gaze"} if gaze else set())


@pytest.mark.parametrize("name", ["quick", "cross"])
def test_every_cell_can_be_run_and_cross_has_all_that_can(name, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path))
    suite = Suite.read(ROOT / "benchmarks" / f"{name}.yaml", Path("DATA"), base=ROOT)
    cells = {(job.cohort, job.method): job.config for job in suite.jobs()}
    data = {cohort: config["data"] for (cohort, _), config in cells.items()}
    models = {method: config["model"] for (_, method), config in cells.items()}
    fields = {cohort: fields_of(cohort, each) for cohort, each in data.items()}
    can = {(c, m) for c in fields for m, model in models.items() if needed_by(model) <= fields[c]}
    assert set(cells) <= can
    if name == "cross":
        assert set(cells) == can
        wanted = {"ERM", "MIMMX", "NeuroLIP", "EGMA", "CLIP", "Adversarial", "EnD", "MDN"}
        assert {model["class_path"] for model in models.values()} == wanted
    for (cohort, method), config in cells.items():
        if "connectome" in fields[cohort] and method != "neurolip":
            assert config["model"]["init_args"]["encoder"] == "region"


def test_quick_stays_quick():
    suite = Suite.read(ROOT / "benchmarks" / "quick.yaml", base=ROOT)
    assert not suite.without_data and len(suite.jobs()) <= 24
    assert max(job.config["trainer"]["max_epochs"] for job in suite.jobs()) <= 40
