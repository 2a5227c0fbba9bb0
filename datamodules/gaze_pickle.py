"""Gaze that was released as a pickle, read without running what a pickle may ask for."""

from __future__ import annotations

import io
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from medprism.data.errors import DataError
from medprism.data.imaging import FloatArray

PLAIN = re.compile(r"[?bBhHiIlLqQefd]|[biufSU][0-9]+")
"""Codes of the types of numbers and text that an array may hold, such as d, f8 and U12."""


def read_gaze_pickle(file: str | os.PathLike[str]) -> dict[str, FloatArray]:
    """The gaze of SIIM-ACR and its relatives: `{image_id: [(x, y, t), ...]}`. Saab et al., MICCAI 2021.

    A pickle is a program. This one may only make lists, tuples, dictionaries, sets, numbers, text, and plain arrays of
    numbers; whatever else it names is refused and not even imported.

    Args:
        file: path of the pickle.

    Returns:
        For each image `(F, 3)`: x and y as shares of the image from its top left, which may lie a little outside of
        [0, 1], and for how long it was looked at, in the unit of the release (SIIM-ACR counts samples at 60 Hz). An
        image that nobody looked at has no rows.

    Raises:
        DataError: when the file cannot be read, names anything else, or holds something else.
    """
    path = Path(file)
    try:
        gaze = _Restricted(io.BytesIO(path.read_bytes()), encoding="latin1").load()
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; mend the path") from None
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise DataError(f"{path} cannot be read as a pickle ({error}); copy it again") from error
    if not isinstance(gaze, dict):
        raise DataError(f"{path} holds a {type(gaze).__name__}, expected {{image_id: [(x, y, t), ...]}}")
    return {_name(key, path): _sequence(key, value, path) for key, value in gaze.items()}


def _name(key: Any, path: Path) -> str:
    if not isinstance(key, str | int):
        raise DataError(f"{path}: an image is called {key!r}, expected a text")
    return str(key)


def _sequence(key: Any, value: Any, path: Path) -> FloatArray:
    try:
        found = np.asarray(value, dtype=np.float64)
        found = found.reshape(0, 3) if not found.size else found
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: the gaze of image '{key}' is no table of numbers ({error})") from error
    if found.ndim != 2 or found.shape[1] != 3 or not np.isfinite(found).all():
        raise DataError(f"{path}: the gaze of image '{key}' has shape {found.shape}, expected finite (x, y, t) rows")
    return found


class _Restricted(pickle.Unpickler):
    """Knows a few harmless names, and gives stand-ins of our own for them instead of what they name.

    NumPy's own functions would not do: a pickle can give them a type whose memory it describes falsely.
    """

    def __init__(self, stream: io.BytesIO, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)
        self.known = _stand_ins()

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in.

        Raises:
            DataError: for all other names.
        """
        module = module.replace("__builtin__", "builtins").replace("numpy._core", "numpy.core")
        if (module, name) not in self.known:
            raise DataError(
                f"the pickle asks for {module}.{name}, which is refused, as it could run any program; expected "
                "nothing but lists, tuples, dictionaries, numbers, text and NumPy arrays of numbers"
            )
        return self.known[module, name]


def _stand_ins() -> dict[tuple[str, str], Any]:
    """What a pickle gets for the names that it may use; made anew for each, as a pickle may change what it gets."""

    class Type:
        """A NumPy type of plain numbers or text."""

        def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
            if not PLAIN.fullmatch(code):
                raise DataError(f"the pickle holds an array of type {code!r}, which is refused; expected plain numbers")
            self.code, self.order = code, "="

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            self.order = {"<": "<", ">": ">"}.get(state[1], "=")

        def read(self, data: Any) -> Any:
            data = data.encode("latin1") if isinstance(data, str) else bytes(data)
            return np.frombuffer(data, dtype=np.dtype(self.order + self.code))

    class Array:
        """A NumPy array whose content comes later."""

        def __init__(self, *_: Any) -> None:
            self.content = np.zeros(0)

        def __setstate__(self, state: tuple[Any, ...]) -> None:
            _, shape, kind, by_columns, data = state
            self.content = kind.read(data).reshape(shape, order="F" if by_columns else "C")

        def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
            return np.array(self.content, dtype=dtype)

    def from_buffer(data: Any, kind: Type, shape: Any, order: Any) -> Array:
        array = Array()
        array.content = kind.read(data).reshape(shape, order=order)
        return array

    def latin1(text: str, encoding: str) -> bytes:
        return text.encode("latin1")

    return {
        ("builtins", "list"): list,
        ("builtins", "dict"): dict,
        ("builtins", "tuple"): tuple,
        ("builtins", "set"): set,
        ("builtins", "frozenset"): frozenset,
        ("collections", "OrderedDict"): dict,
        ("collections", "defaultdict"): lambda *factory: {},
        ("_codecs", "encode"): latin1,
        ("numpy", "dtype"): Type,
        ("numpy", "ndarray"): "ndarray",
        ("numpy.core.multiarray", "_reconstruct"): Array,
        ("numpy.core.multiarray", "scalar"): lambda kind, data: kind.read(data)[0].item(),
        ("numpy.core.numeric", "_frombuffer"): from_buffer,
    }
