import logging
from pathlib import Path

import numpy as np
import pytest

from medprism.data.cache import cache_folder, cached, stamps


class Builder:
    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> dict[str, np.ndarray]:
        self.times += 1
        return {"x": np.arange(6, dtype=np.float32).reshape(2, 3), "name": np.array([b"ab", b"c"], dtype="S4")}


def use(folder: Path, build: Builder, **key: object) -> dict[str, np.ndarray]:
    return cached("test", key, ["x", "name"], build, folder)


def test_second_call_reads_the_same(tmp_path) -> None:
    build = Builder()
    first, second = use(tmp_path, build, kind="a"), use(tmp_path, build, kind="a")
    assert build.times == 1
    for name in first:
        assert first[name].dtype == second[name].dtype and (first[name] == second[name]).all()
    assert not list(tmp_path.glob("*.partial"))


def test_another_key_builds_again(tmp_path) -> None:
    build = Builder()
    use(tmp_path, build, kind="a")
    use(tmp_path, build, kind="b")
    assert build.times == 2


@pytest.mark.parametrize("damage", [lambda data: data[:-5], lambda data: b"", lambda data: b"garbage" + data])
def test_corrupt_file_is_built_again_with_a_warning(tmp_path, caplog, damage) -> None:
    build = Builder()
    first = use(tmp_path, build)
    file = next(tmp_path.glob("*.x.npy"))
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        second = use(tmp_path, build)
    assert build.times == 2 and (first["x"] == second["x"]).all()
    assert str(file) in caplog.text and "built again" in caplog.text
    use(tmp_path, build)
    assert build.times == 2


def test_pickles_are_not_loaded(tmp_path) -> None:
    build = Builder()
    use(tmp_path, build)
    np.save(next(tmp_path.glob("*.x.npy")), np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert use(tmp_path, build)["x"].shape == (2, 3)


def test_failed_build_leaves_nothing(tmp_path) -> None:
    def fail() -> dict[str, np.ndarray]:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached("test", {}, ["x"], fail, tmp_path)
    assert not list(tmp_path.glob("*.npy"))


def test_folder_is_argument_then_environment_then_home(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("MEDPRISM_CACHE", str(tmp_path / "env"))
    assert cache_folder(tmp_path / "arg") == tmp_path / "arg"
    assert cache_folder() == tmp_path / "env"
    monkeypatch.delenv("MEDPRISM_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "medprism"


def test_stamp_changes_with_the_file(tmp_path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    before = stamps([file])
    file.write_text("three")
    assert before[0][:2] == ("a.txt", 3) and stamps([file]) != before
