"""The shared contracts."""

import json

import pytest

from medprism.cohort import Cohort, Factor


def cohort(**changes):
    values = {
        "name": "Made",
        "fields": ("id", "subject", "connectome", "target", "attributes"),
        "input_shape": (3, 3),
        "target": Factor("disease", ("control", "case"), (("healthy control",), ("a disease", "ill")), "target"),
        "attributes": (Factor("sex", ("male", "female"), role="sensitive"),),
        "regions": ("a", "b", "c"),
        "coordinates": ((0.0, 1.0, 2.0),) * 3,
    }
    return Cohort(**{**values, **changes})


def test_travels_as_plain_values():
    plain = json.loads(json.dumps(cohort().to_dict()))
    assert plain == cohort().to_dict()
    assert Cohort.from_dict(plain) == cohort()


def test_phrases_default_to_class_names():
    assert cohort().attribute("sex").phrases == (("male",), ("female",))


def test_refusals_teach():
    with pytest.raises(ValueError, match="exactly one of the fields connectome, image, volume"):
        cohort(fields=("id", "target"))
    with pytest.raises(ValueError, match="fields \\['colour'\\]"):
        cohort(fields=("id", "connectome", "colour"))
    with pytest.raises(ValueError, match="2 regions for 3 inputs"):
        cohort(regions=("a", "b"))
    with pytest.raises(ValueError, match="names a class twice"):
        Factor("sex", ("male", "male"))
    with pytest.raises(ValueError, match="phrases for 1"):
        Factor("sex", ("male", "female"), (("male",),))
    with pytest.raises(KeyError, match="it has \\['sex'\\]"):
        cohort().attribute("age")
