"""Handwritten digits with two confounders applied by us, stroke width and rotation, for questions about shortcuts."""

from __future__ import annotations

import gzip
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medprism.cohort import Factor
from medprism.data.errors import DataError, report
from medprism.data.imaging import FloatArray, resized
from medprism.data.samples import IntArray, Labels, Samples
from medprism.data.splits import Split
from medprism.datamodules.confounding import checked_ratio, confounded
from medprism.datamodules.images import ImageDataModule, Images

SIDE = 28
"""Height and width of a digit in pixels."""
TESTS = ("same", "inverted", "balanced")
STROKE, ROTATION = ("thin", "thick"), ("upright", "rotated")


@dataclass(frozen=True)
class Digits:
    """n handwritten digits, each in two versions.

    Attributes:
        names: n names, unique.
        digit: `(n,)` 0 to 9.
        versions: `(2, n, 28, 28)` uint8, thin and thick, ink bright on black; row i of both is one digit.
        held_out: `(n,)` whether the source has the digit in its test set.
    """

    names: tuple[str, ...]
    digit: IntArray
    versions: npt.NDArray[np.uint8]
    held_out: npt.NDArray[np.bool_]


class DigitsDataModule(ImageDataModule):
    """Base of the digit cohorts: low (0 to 4) against high (5 to 9) digits, confounded with stroke and rotation.

    The confounders are applied by us: each digit is used once, in one version, chosen such that thick strokes and
    rotated digits go with the high class at the rate `ratio`. Digits are divided first, then versions are assigned
    within each part; both classes are equally frequent, and stroke and rotation are independent given the class, all
    exact to rounding. The test part consists of three sets without a common digit: `same` has the ratio of training,
    `inverted` one minus it, `balanced` one half.

    Args:
        train: number of training digits.
        validation: number of validation digits.
        same: number of digits of that test set; 0 leaves it out, here and below.
        inverted: number of digits of that test set.
        balanced: number of digits of that test set.
        ratio: share of the samples in which an attribute agrees with the class, in training and validation.
        oracle: assign the training versions at one half, as a ceiling of what unconfounded data of the same size give.
        **base: arguments of `ImageDataModule` and `CohortDataModule`. Division and versions follow the sizes above and
            `split_seed`; the other arguments about splits cannot be used.
    """

    def __init__(
        self,
        train: int,
        validation: int,
        same: int,
        inverted: int,
        balanced: int,
        ratio: float = 0.9,
        oracle: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.sizes = {
            "train": train,
            "validation": validation,
            "same": same,
            "inverted": inverted,
            "balanced": balanced,
        }
        wrong = {name: n for name, n in self.sizes.items() if n < (0 if name in TESTS else 2) or n % 2}
        if wrong or not same + inverted + balanced:
            raise DataError(
                f"sizes {wrong or self.sizes} cannot be had: training and validation need at least 2 digits, tests 2 "
                "in all, and every size must be even, half of it low and half high digits"
            )
        if self.fold or self.split_file is not None or self.held_out is not None or self.shift:
            raise DataError(
                f"{self.name}: the digits are divided by their sizes, ratio and split_seed; leave out fold, held_out, "
                "split_file and shift"
            )
        checked_ratio(ratio)
        self.ratios = {
            "train": 0.5 if oracle else ratio,
            "validation": ratio,
            "same": ratio,
            "inverted": 1 - ratio,
            "balanced": 0.5,
        }

    @property
    @abstractmethod
    def digits(self) -> Digits:
        """All digits; read once."""

    @cached_property
    def parts(self) -> dict[str, IntArray]:
        """Positions in `digits` of training, validation and each test set; none twice."""
        generator = np.random.default_rng([self.split_seed, 0])
        return divided(self.digits, self.sizes, generator, self.name)

    @cached_property
    def _order(self) -> IntArray:
        """Position in `digits` of each sample."""
        return np.concatenate(list(self.parts.values()))

    @cached_property
    def labels(self) -> Labels:
        """Class, stroke and rotation of every digit that is used."""
        target = (self.digits.digit[self._order] >= 5).astype(np.int64)
        generator = np.random.default_rng([self.split_seed, 1])
        sizes = np.cumsum([len(rows) for rows in self.parts.values()])[:-1]
        codes = np.concatenate(
            [
                confounded(part, self.ratios[name], 2, generator)
                for name, part in zip(self.parts, np.split(target, sizes), strict=True)
            ]
        )
        names = tuple(self.digits.names[row] for row in self._order)
        return Labels(
            Samples(names, names, target, {"stroke": codes[:, 0], "rotation": codes[:, 1]}),
            Factor("digit", ("low", "high"), (("a digit from 0 to 4",), ("a digit from 5 to 9",)), "target"),
            (
                Factor("stroke", STROKE, (("thin strokes",), ("thick strokes",)), "nuisance"),
                Factor("rotation", ROTATION, (("an upright digit",), ("a digit rotated by 90 degrees",)), "nuisance"),
            ),
        )

    def _names(self, part: str) -> tuple[str, ...]:
        return tuple(self.digits.names[row] for row in self.parts[part])

    @cached_property
    def partition(self) -> Split:
        """The parts; the test part holds all test sets."""
        return Split(
            self._names("train"), self._names("validation"), tuple(name for part in TESTS for name in self._names(part))
        )

    @property
    def test_sets(self) -> dict[str, tuple[str, ...]]:
        """Ids of the samples of each test set."""
        return {part: self._names(part) for part in TESTS if self.sizes[part]}

    def images(self) -> Images:
        """The version of each digit that its labels say."""
        attributes = self.labels.samples.attributes
        versions = self.digits.versions[attributes["stroke"], self._order]

        def read(row: int) -> FloatArray:
            picture: FloatArray = versions[row].astype(np.float32)[None] / 255
            return np.rot90(picture, axes=(1, 2)) if attributes["rotation"][row] else picture

        return Images(tuple(f"{self.name} {name}" for name in self.labels.samples.id), read, key=None)


class ConfoundedDigits(DigitsDataModule):
    """Scikit-learn's handwritten digits, low against high, with stroke and rotation as confounders applied by us.

    1,797 real digits of 43 people (Alpaydin and Kaynak, 1998; 8 by 8 pixels, no download), enlarged to 28 by 28. The
    thin version is a grey erosion, the thick one a grey dilation by 3 by 3 pixels. See `DigitsDataModule`.

    Args:
        train: number of training digits.
        validation: number of validation digits.
        same: number of test digits with the confounding of training.
        inverted: number of test digits with the opposite confounding.
        balanced: number of test digits without confounding.
        ratio: share of the samples in which an attribute agrees with the class, in training and validation.
        oracle: train without confounding, on as many digits.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    name = "confounded digits"

    def __init__(
        self,
        train: int = 900,
        validation: int = 240,
        same: int = 160,
        inverted: int = 240,
        balanced: int = 240,
        ratio: float = 0.9,
        oracle: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(train, validation, same, inverted, balanced, ratio, oracle, **base)

    @cached_property
    def digits(self) -> Digits:
        """The digits of scikit-learn, enlarged, thin and thick."""
        from scipy.ndimage import grey_dilation, grey_erosion
        from sklearn.datasets import load_digits

        source = load_digits()
        large = np.stack([resized(picture / 16, SIDE) for picture in source.images])
        versions = np.stack([change(large, size=(1, 3, 3)) for change in (grey_erosion, grey_dilation)])
        return Digits(
            names=tuple(f"digit-{k:04d}" for k in range(len(large))),
            digit=np.asarray(source.target, dtype=np.int64),
            versions=np.rint(versions * 255).astype(np.uint8),
            held_out=np.zeros(len(large), dtype=bool),
        )


class MorphoMNIST(DigitsDataModule):
    """MNIST digits in thin and thick versions, low against high, with stroke and rotation as confounders.

    Castro et al., JMLR 20(178), 2019. The sizes of training, validation, inverted and balanced digits are those of
    published work on shortcuts. The confounders are applied by us; see `DigitsDataModule`. Test sets are drawn from
    MNIST's test digits; where these are too few, unused training digits fill up, and that is reported.

    Args:
        root: folder of `morpho_mnist_thin_thick.npz` (arrays `{train,test}_{thin,thick,digit,index}`), or of the
            released folders `thin` and `thic` with MNIST's idx files.
        train: number of training digits.
        validation: number of validation digits.
        same: number of test digits with the confounding of training.
        inverted: number of test digits with the opposite confounding.
        balanced: number of test digits without confounding.
        ratio: share of the samples in which an attribute agrees with the class, in training and validation.
        oracle: train without confounding, on as many digits.
        **base: arguments of `ImageDataModule` and `CohortDataModule`.
    """

    name = "Morpho-MNIST"

    def __init__(
        self,
        root: str,
        train: int = 19502,
        validation: int = 3194,
        same: int = 1000,
        inverted: int = 3194,
        balanced: int = 3196,
        ratio: float = 0.9,
        oracle: bool = False,
        **base: Any,
    ) -> None:
        super().__init__(train, validation, same, inverted, balanced, ratio, oracle, **base)
        self.root = Path(root)

    @cached_property
    def digits(self) -> Digits:
        """The digits of the archive, or of the idx files."""
        archive = self.root / "morpho_mnist_thin_thick.npz"
        if archive.is_file():
            parts = {part: read_archive(archive, part) for part in ("train", "test")}
        elif (self.root / "thin").is_dir():
            parts = {part: read_released(self.root, part) for part in ("train", "test")}
        else:
            raise DataError(
                f"{self.root} holds neither {archive.name} nor the folders thin and thic of the released Morpho-MNIST; "
                "set root to the folder that does"
            )
        return Digits(
            names=tuple(f"{part}-{index:05d}" for part, found in parts.items() for index in found["index"]),
            digit=np.concatenate([found["digit"] for found in parts.values()]).astype(np.int64),
            versions=np.stack([np.concatenate([f[name] for f in parts.values()]) for name in ("thin", "thick")]),
            held_out=np.concatenate([np.full(len(found["digit"]), part == "test") for part, found in parts.items()]),
        )


def divided(
    digits: Digits, sizes: Mapping[str, int], generator: np.random.Generator, source: str
) -> dict[str, IntArray]:
    """Rows of `digits` for each part, as many low as high ones, none twice.

    Training and validation take digits that are not held out. The tests take held-out ones, and where these are too
    few, what the others left.

    Raises:
        DataError: when there are too few digits.
    """
    halves: dict[str, list[IntArray]] = {name: [] for name in sizes}
    filled = 0
    for high in (False, True):
        order = generator.permutation(np.flatnonzero((digits.digit >= 5) == high))
        free = order[~digits.held_out[order]]
        wanted = {name: n // 2 for name, n in sizes.items()}
        learn = wanted["train"] + wanted["validation"]
        tests = sum(wanted[name] for name in TESTS)
        pool = np.concatenate([order[digits.held_out[order]], free[learn:]])[:tests]
        if len(free) < learn or len(pool) < tests:
            raise DataError(
                f"{source} has {len(order)} {'high' if high else 'low'} digits, {len(free)} of them for training, too "
                f"few for the sizes {dict(sizes)}; make them smaller"
            )
        filled += int((~digits.held_out[pool]).sum())
        rows = np.concatenate([free[:learn], generator.permutation(pool)])
        for name, part in zip(sizes, np.split(rows, np.cumsum(list(wanted.values()))[:-1]), strict=True):
            halves[name].append(part)
    if filled and digits.held_out.any():
        tests = sum(sizes[name] for name in TESTS)
        report(f"{source}: {filled} of {tests} test digits are unused training digits: there are too few test digits")
    return {name: generator.permutation(np.concatenate(parts)) for name, parts in halves.items()}


def read_archive(file: Path, part: str) -> dict[str, npt.NDArray[Any]]:
    """`thin`, `thick`, `digit` and `index` of the train or test part of an npz archive.

    Raises:
        DataError: when it cannot be read, lacks an array, or the arrays do not fit each other.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            found = {name: archive[f"{part}_{name}"] for name in ("thin", "thick", "digit", "index")}
    except Exception as error:  # a damaged archive raises errors of zipfile, zlib or numpy
        raise DataError(
            f"{file}: the {part} arrays cannot be read ({error}); expected {part}_thin, {part}_thick, {part}_digit and "
            f"{part}_index; copy the file again"
        ) from error
    return checked(found, f"{file}, {part} arrays")


def read_released(root: Path, part: str) -> dict[str, npt.NDArray[Any]]:
    """The same from the idx files of the released folders `thin` and `thic`."""
    stem = {"train": "train", "test": "t10k"}[part]
    thin = read_idx(root / "thin" / f"{stem}-images-idx3-ubyte.gz")
    digit = read_idx(root / "thin" / f"{stem}-labels-idx1-ubyte.gz")
    found: dict[str, npt.NDArray[Any]] = {
        "thin": thin,
        "thick": read_idx(root / "thic" / f"{stem}-images-idx3-ubyte.gz"),
        "digit": digit,
        "index": np.arange(len(digit)),
    }
    if not np.array_equal(digit, read_idx(root / "thic" / f"{stem}-labels-idx1-ubyte.gz")):
        raise DataError(
            f"{root}: the {stem} labels of thin and thic differ; both must hold the same digits in one order"
        )
    return checked(found, f"{root}, {stem} files")


def read_idx(file: Path) -> npt.NDArray[np.uint8]:
    """An idx file of bytes, packed by gzip.

    Raises:
        DataError: when it is missing, truncated, or no idx file of bytes.
    """
    try:
        content = gzip.decompress(file.read_bytes())
        if content[:3] != b"\0\0\x08":
            raise ValueError(f"it begins with {content[:4]!r}, an idx file of bytes with 0, 0, 8")
        shape = np.frombuffer(content, ">u4", count=content[3], offset=4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape)
    except FileNotFoundError:
        raise DataError(f"{file} does not exist; copy the released Morpho-MNIST files to that folder") from None
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{file} cannot be read as an idx file ({error}); copy it again") from error


def checked(found: dict[str, npt.NDArray[Any]], source: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays, if they fit each other.

    Raises:
        DataError: when a shape or a digit is not as expected.
    """
    n = len(found["digit"])
    expected = {"thin": (n, SIDE, SIDE), "thick": (n, SIDE, SIDE), "digit": (n,), "index": (n,)}
    wrong = {name: array.shape for name, array in found.items() if array.shape != expected[name]}
    if wrong or found["thin"].dtype != np.uint8 or found["thick"].dtype != np.uint8:
        raise DataError(f"{source}: shapes {wrong} are not those of {n} digits of {SIDE} by {SIDE} uint8 pixels")
    if n and found["digit"].max() > 9:
        raise DataError(f"{source}: a digit is {found['digit'].max()}, expected 0 to 9; copy the file again")
    return found
