"""Entry points that mean nothing, or a name that is taken, are said in a warning."""

from importlib.metadata import EntryPoint

import pytest

import medprism.plugins
from medprism.method import Method
from medprism.methods import ERM
from medprism.plugins import METHODS, PluginWarning, load_plugins


def entries(monkeypatch, *values: str) -> None:
    found = [EntryPoint(f"entry{k}", value, METHODS) for k, value in enumerate(values)]
    monkeypatch.setattr(medprism.plugins, "entry_points", lambda group: [e for e in found if e.group == group])
    load_plugins.cache_clear()


@pytest.fixture(autouse=True)
def forget():
    yield
    load_plugins.cache_clear()


def test_classes_and_modules(monkeypatch, recwarn):
    entries(monkeypatch, "medprism.methods.erm:ERM", "medprism.methods.clip")
    assert [cls.__name__ for cls in load_plugins(METHODS, Method)] == ["ERM", "CLIP"]
    assert not recwarn.list


def test_what_cannot_be_used_is_said_and_the_rest_is_there(monkeypatch):
    entries(monkeypatch, "no_such_module:Their", "medprism.methods.erm:ERM", "math", "medprism.methods.erm:Missing")
    with pytest.warns(PluginWarning) as said:
        assert load_plugins(METHODS, Method) == (ERM,)
    texts = [str(each.message) for each in said]
    assert "a package registers entry0 = no_such_module:Their under medprism.methods, which cannot be" in texts[0]
    assert "entry2 = math under medprism.methods, which is no subclass of medprism.method.Method, nor a" in texts[1]
    assert "AttributeError" in texts[2]


def test_a_name_that_is_taken(monkeypatch):
    theirs = type("ERM", (ERM,), {"__module__": "theirs"})
    monkeypatch.setattr(EntryPoint, "load", lambda self: theirs)
    entries(monkeypatch, "theirs:ERM")
    with pytest.warns(
        PluginWarning, match=r"ERM is the name of 2 classes \(theirs.ERM, medprism.methods.erm.ERM\): in"
    ):
        load_plugins(METHODS, Method)
