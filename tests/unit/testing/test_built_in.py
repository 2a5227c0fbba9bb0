"""All methods and the embedded cohorts of medprism pass the checks that are asked of other people's."""

import inspect

import pytest

import medprism.datamodules
import medprism.methods
from medprism.testing import ChecksFailed, check_datamodule, check_method
from medprism.testing.cohorts import DEFAULTS

CONNECTOME = {"encoder": "region", "encoder_options": {"dim": 8, "input_dropout": 0.0}}
IMAGE_TEXT = {
    "encoder_options": {"grid": 4, "width": 8, "blocks": 1},
    "text_options": {"width": 16},
    "dim": 8,
}
ARGUMENTS = {
    "ERM": CONNECTOME,
    "NeuroLIP": CONNECTOME,
    "MIMMX": CONNECTOME | {"measure_options": {"hidden": 16, "negatives": 3}},
    "Adversarial": CONNECTOME,
    "EnD": CONNECTOME,
    "MDN": CONNECTOME,
    "CLIP": IMAGE_TEXT,
    "EGMA": IMAGE_TEXT,
}
SKIPPED = {"MDN": {"attributes_unseen": "attributes are an input of MDN, also at test time"}}


def test_no_method_is_left_out():
    every = {name for name in medprism.methods.__all__ if not inspect.isabstract(getattr(medprism.methods, name))}
    assert every == set(ARGUMENTS)


@pytest.mark.parametrize("name", ARGUMENTS)
def test_method(name):
    report = check_method(getattr(medprism.methods, name), skip=SKIPPED.get(name), **ARGUMENTS[name])
    skipped = {each.name for each in report.outcomes if each.state == "skipped"}
    assert skipped == set(SKIPPED.get(name, {})) | ({"critics"} if name != "MIMMX" else set())


def test_the_cohort_follows_the_arguments():
    quick = ["construct", "requires", "samples_alone"]
    report = check_method(medprism.methods.ERM, checks=quick, encoder="small")
    assert report.subject == "ERM on confounded digits" and {each.state for each in report.outcomes} == {"passed"}


def test_what_is_skipped_would_fail():
    for name, skipped in SKIPPED.items():
        for check in skipped:
            with pytest.raises(ChecksFailed, match=check):
                check_method(getattr(medprism.methods, name), checks=[check], **ARGUMENTS[name])


@pytest.mark.parametrize("name", DEFAULTS)
def test_datamodule(name, tmp_path):
    report = check_datamodule(getattr(medprism.datamodules, name), cache_dir=str(tmp_path), **DEFAULTS[name])
    assert {each.state for each in report.outcomes} == {"passed"}
