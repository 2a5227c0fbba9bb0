from __future__ import annotations

import collections
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from medprism.data.errors import DataError
from medprism.datamodules.gaze_pickle import read_gaze_pickle

GAZE = {"1.2.276.0": [(0.25, 0.5, 3), (0.75, 1.02, 1)], "1.2.276.1": []}


class Evil:
    """Runs a command where a pickle is loaded without care."""

    def __init__(self, run, *arguments) -> None:
        self.call = run, arguments

    def __reduce__(self):
        return self.call


def write(folder: Path, value: object, protocol: int = 4) -> Path:
    file = folder / "gaze.pkl"
    file.write_bytes(pickle.dumps(value, protocol))
    return file


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_release_is_read(tmp_path: Path, protocol: int) -> None:
    for kind in (lambda rows: rows, lambda rows: [list(map(float, row)) for row in rows], tuple):
        found = read_gaze_pickle(write(tmp_path, {name: kind(rows) for name, rows in GAZE.items()}, protocol))
        assert list(found) == list(GAZE) and found["1.2.276.1"].shape == (0, 3)
        np.testing.assert_array_equal(found["1.2.276.0"], GAZE["1.2.276.0"])


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", ["<f8", ">f8", "<f4", "<i8"])
def test_numpy_is_read(tmp_path: Path, protocol: int, kind: str) -> None:
    rows = (np.arange(12).reshape(4, 3) / 4).astype(kind)
    gaze = {
        np.str_("array"): rows,
        "by columns": np.asfortranarray(rows),
        "rows": list(rows),
        "scalars": [tuple(row) for row in rows],
        7: rows.tolist(),
    }
    found = read_gaze_pickle(write(tmp_path, gaze, protocol))
    assert list(found) == ["array", "by columns", "rows", "scalars", "7"]
    for each in found.values():
        np.testing.assert_array_equal(each, rows)
        assert each.dtype == np.float64


def test_names_of_older_numpy_are_read(tmp_path: Path) -> None:
    file = write(tmp_path, {"a": np.ones((2, 3))}, 2)
    file.write_bytes(file.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert read_gaze_pickle(file)["a"].sum() == 6


def test_other_dictionaries_are_read(tmp_path: Path) -> None:
    gaze = collections.defaultdict(list, GAZE)
    assert list(read_gaze_pickle(write(tmp_path, gaze))) == list(GAZE)
    assert list(read_gaze_pickle(write(tmp_path, collections.OrderedDict(GAZE), 2))) == list(GAZE)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["key", "value", "whole", "within"])
def test_command_in_a_pickle_does_not_run(tmp_path: Path, protocol: int, place: str) -> None:
    mark = tmp_path / "ran"
    evil = Evil(os.system, f"touch {mark}")
    value = {"key": {evil: []}, "value": {"a": evil}, "whole": evil, "within": {"a": [(0, evil, 1)]}}[place]
    file = write(tmp_path, value, protocol)
    name = f"{os.system.__module__}.system"  # posix or nt
    with pytest.raises(DataError, match=rf"gaze\.pkl: the pickle asks for {name}, which is refused"):
        read_gaze_pickle(file)
    assert not mark.exists()
    pickle.loads(file.read_bytes())
    assert mark.exists()  # without care it runs


@pytest.mark.parametrize(
    ("call", "name"),
    [
        ((eval, "1"), r"builtins\.eval"),
        ((getattr, [], "append"), r"builtins\.getattr"),
        ((__import__, "os"), r"builtins\.__import__"),
        ((np.load, "a.npy"), r"numpy\.load"),
        ((pickle.loads, b"N."), r"_pickle\.loads"),
        ((open, "a", "w"), r"(io|_io)\.open"),
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, call: tuple, name: str) -> None:
    with pytest.raises(DataError, match=f"asks for {name}, which is refused"):
        read_gaze_pickle(write(tmp_path, {"a": Evil(*call)}))


def test_arrays_of_objects_are_refused(tmp_path: Path) -> None:
    for values in (np.array([(0, 0, 1), None], dtype=object), np.zeros(2, dtype=[("x", "f8")]), np.zeros(2, "V8")):
        with pytest.raises(DataError, match="which is refused; expected plain numbers"):
            read_gaze_pickle(write(tmp_path, {"a": values}))


def test_a_pickle_cannot_change_the_next_one(tmp_path: Path) -> None:
    """One that sets attributes of the names that it gets leaves the reader as it was."""
    stream = io.BytesIO()
    for module, name in (("numpy.core.multiarray", "scalar"), ("_codecs", "encode"), ("numpy", "dtype")):
        # GLOBAL, then BUILD with the state (None, {"__defaults__": (1,)}), then POP
        state = b"(N}(X\x0c\x00\x00\x00__defaults__(K\x01tX\x04\x00\x00\x00codeX\x01\x00\x00\x00Out"
        stream.write(f"c{module}\n{name}\n".encode() + state + b"b0")
    file = tmp_path / "changing.pkl"
    file.write_bytes(b"\x80\x02" + stream.getvalue() + b"}.")
    pickletools.dis(file.read_bytes(), io.StringIO())  # it is a pickle
    with pytest.raises(DataError):
        read_gaze_pickle(file)
    rows = np.ones((2, 3))
    for protocol in (2, 4):
        assert read_gaze_pickle(write(tmp_path, {"a": rows, "b": [(np.float64(1), 2, 3)]}, protocol))["b"][0, 0] == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "holds a list, expected"),
        ({"a": [(0.1, 0.2)]}, r"image 'a' has shape \(1, 2\), expected finite \(x, y, t\) rows"),
        ({"a": [(0.1, 0.2, 3), (1, 2)]}, "image 'a' is no table of numbers"),
        ({"a": [(0.1, float("nan"), 3)]}, r"expected finite \(x, y, t\) rows"),
        ({"a": "gaze"}, "image 'a' is no table of numbers"),
        ({(1, 2): []}, r"an image is called \(1, 2\)"),
    ],
)
def test_other_content_is_explained(tmp_path: Path, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_gaze_pickle(write(tmp_path, value))


def test_damaged_file_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, GAZE)
    for damaged in (file.read_bytes()[:-20], b"", b"no pickle", b"\x80\x04P1\n."):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"(?s)gaze\.pkl cannot be read as a pickle .*copy it again"):
            read_gaze_pickle(file)
    with pytest.raises(DataError, match=r"none\.pkl does not exist"):
        read_gaze_pickle(tmp_path / "none.pkl")
