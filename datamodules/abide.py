"""ABIDE I, the Autism Brain Imaging Data Exchange, as preprocessed by the Preprocessed Connectomes Project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from medprism.cohort import UNKNOWN, Factor
from medprism.data.cache import stamps
from medprism.data.connectivity import FloatArray
from medprism.data.errors import DataError, report
from medprism.data.samples import IntArray, Samples, binned
from medprism.datamodules.fmri import CHUNK, Atlas, ConnectomeDataModule, Labels, Source

ATTRIBUTES = ("sex", "age", "site", "site_group")


class ABIDE(ConnectomeDataModule):
    """Autism against control from resting-state connectomes of 20 sites (871 quality-checked people).

    Read through `nilearn.datasets.fetch_abide_pcp`, which downloads what is not on disk. The positive class is autism
    (DX_GROUP 1). Di Martino et al., Molecular Psychiatry 19, 2014; Craddock et al., Front. Neuroinformatics 7, 2013.

    Args:
        root: folder that holds `ABIDE_pcp`; nilearn's own data folder when left out.
        pipeline: preprocessing pipeline.
        band_pass_filtering: series limited to 0.01 to 0.1 Hz.
        global_signal_regression: series without the global signal.
        atlas: parcellation of the series: cc200, cc400, aal, ho, ez, tt or dosenbach160.
        quality_checked: only people who passed all raters.
        age_bins: bounds in years of the age classes; who lies outside has an unknown age class.
        attributes: which of sex, age, site and site_group the cohort has.
        site_group: sites of the second of two groups, for questions about sites that need two classes, such as a
            shift; the others are the first.
        atlas_table: CSV with the columns roi, x, y, z and name (or aal) of each region; when left out,
            `<root>/atlases/<atlas>_roi_names.csv` if there is one.
        **base: arguments of `ConnectomeDataModule` and `CohortDataModule`.
    """

    name = "ABIDE"

    def __init__(
        self,
        root: str | None = None,
        pipeline: Literal["cpac", "ccs", "dparsf", "niak"] = "cpac",
        band_pass_filtering: bool = False,
        global_signal_regression: bool = False,
        atlas: str = "cc200",
        quality_checked: bool = True,
        age_bins: tuple[float, ...] = (6, 12, 18, 65),
        attributes: tuple[str, ...] = ("sex", "age", "site"),
        site_group: tuple[str, ...] = ("NYU", "UM_1", "USM", "UCLA_1"),
        atlas_table: str | None = None,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        unknown = [name for name in attributes if name not in ATTRIBUTES]
        if unknown:
            raise DataError(f"ABIDE has no attributes {unknown}; choose among {list(ATTRIBUTES)}")
        self.root = root
        self.atlas = atlas.removeprefix("rois_")
        self.age_bins = age_bins
        self.attributes = attributes
        self.site_group = site_group
        self.atlas_table = atlas_table
        self.fetch = Fetch(root, pipeline, band_pass_filtering, global_signal_regression, quality_checked)

    @cached_property
    def _table(self) -> pd.DataFrame:
        return self.fetch.table()

    @cached_property
    def labels(self) -> Labels:
        """Diagnosis, sex, age class and site of the phenotypic table."""
        table = self._table
        age, age_names = binned(table["AGE_AT_SCAN"].tolist(), self.age_bins)
        if "age" in self.attributes and (age == UNKNOWN).any():
            report(f"ABIDE: {int((age == UNKNOWN).sum())} people are outside the age bins {list(self.age_bins)}")
        sites = tuple(sorted(table["SITE_ID"].unique()))
        known = {
            "sex": (Factor("sex", ("male", "female"), role="sensitive"), recoded(table, "SEX", {1: 0, 2: 1})),
            "age": (Factor("age", age_names, tuple((f"age {name}",) for name in age_names), "sensitive"), age),
            "site": (
                Factor("site", sites, tuple((f"site {name}",) for name in sites), "nuisance"),
                recoded(table, "SITE_ID", {name: k for k, name in enumerate(sites)}),
            ),
        }
        missing = sorted(set(self.site_group) - set(sites))
        if missing and "site_group" in self.attributes:
            raise DataError(f"site_group names {missing}, which are no sites of ABIDE; its sites are {list(sites)}")
        grouped = table["SITE_ID"].isin(self.site_group).to_numpy()
        groups = ("other sites", ", ".join(self.site_group))
        known["site_group"] = (Factor("site_group", groups, role="nuisance"), grouped.astype(np.int64))
        names = tuple(table["SUB_ID"].astype(str))
        diagnosis = recoded(table, "DX_GROUP", {2: 0, 1: 1})
        samples = Samples(names, names, diagnosis, {name: known[name][1] for name in self.attributes})
        target = Factor(
            "diagnosis", ("control", "autism"), (("healthy control",), ("autism spectrum disorder",)), "target"
        )
        return Labels(samples, target, tuple(known[name][0] for name in self.attributes))

    def source(self) -> Source:
        """The `.1D` files, downloaded where they are not on disk."""
        subjects = tuple(int(name) for name in self.samples.id)
        read = ReadSubjects(self.fetch, f"rois_{self.atlas}", subjects)
        files = [self.fetch.file(name, f"rois_{self.atlas}") for name in self._table["FILE_ID"]]
        missing = [row for row, file in enumerate(files) if not file.is_file()]
        for start in range(0, len(missing), CHUNK):
            read(missing[start : start + CHUNK])
        return Source(
            names=tuple(f"{file} (subject {name})" for file, name in zip(files, subjects, strict=True)),
            read=read,
            key={"files": stamps(files)},
        )

    def atlas_of(self, regions: int) -> Atlas:
        """Names and places from the atlas table, where there is one."""
        table = Path(self.root or ".") / "atlases" / f"{self.atlas}_roi_names.csv"
        if self.atlas_table is not None:
            table = Path(self.atlas_table)
        elif self.root is None or not table.is_file():
            return Atlas.numbered(self.atlas.upper(), regions)
        return Atlas.read(table, self.atlas.upper(), regions)


@dataclass(frozen=True)
class Fetch:
    """`fetch_abide_pcp` with the settings of one cohort.

    Attributes:
        root: folder that holds `ABIDE_pcp`, or None for nilearn's.
        pipeline: preprocessing pipeline.
        filtered: with band-pass filter.
        regressed: with global signal regression.
        checked: only people who passed the quality check.
    """

    root: str | None
    pipeline: Literal["cpac", "ccs", "dparsf", "niak"]
    filtered: bool
    regressed: bool
    checked: bool

    def __call__(self, derivatives: list[str], **filters: Any) -> Any:
        """Nilearn's bunch; `filters` choose rows of the phenotypic table.

        Raises:
            DataError: when a file is neither on disk nor can be downloaded.
        """
        from nilearn.datasets import fetch_abide_pcp

        try:
            return fetch_abide_pcp(
                data_dir=self.root,
                pipeline=self.pipeline,
                band_pass_filtering=self.filtered,
                global_signal_regression=self.regressed,
                derivatives=derivatives,
                quality_checked=self.checked,
                verbose=0,
                **filters,
            )
        except (OSError, KeyError) as error:
            raise DataError(
                f"nilearn cannot fetch ABIDE {derivatives or 'phenotypes'} ({error}); set root to the folder "
                "that holds ABIDE_pcp, or connect to the network so that it can be downloaded"
            ) from error

    def table(self) -> pd.DataFrame:
        """The phenotypic rows of the chosen people, without any image."""
        table: pd.DataFrame = self([])["phenotypic"]
        return table.reset_index(drop=True)

    def file(self, file_id: str, derivative: str) -> Path:
        """Where nilearn keeps the time series of a person."""
        from nilearn.datasets import get_data_dirs

        homes = [Path(folder) / "ABIDE_pcp" for folder in get_data_dirs(self.root)]
        home = next((folder for folder in homes if folder.is_dir()), homes[0])
        strategy = f"{'' if self.filtered else 'no'}filt_{'' if self.regressed else 'no'}global"
        return home / self.pipeline / strategy / f"{file_id}_{derivative}.1D"


@dataclass(frozen=True)
class ReadSubjects:
    """Reads the time series of some people; one call of nilearn reads the table once for all of them.

    Attributes:
        fetch: the settings.
        derivative: which time series, such as `rois_cc200`.
        subjects: SUB_ID of each sample.
    """

    fetch: Fetch
    derivative: str
    subjects: tuple[int, ...]

    def __call__(self, rows: Sequence[int]) -> list[FloatArray]:
        """Time series `(T, R)` of the people at `rows`.

        Raises:
            DataError: when a file cannot be parsed; names the person.
        """
        wanted = [self.subjects[row] for row in rows]
        try:
            bunch = self.fetch([self.derivative], SUB_ID=wanted)
        except DataError:
            raise
        except ValueError as error:
            if len(rows) > 1:
                return [self([row])[0] for row in rows]
            raise DataError(
                f"the {self.derivative} series of ABIDE subject {wanted[0]} cannot be read ({error}); delete its .1D "
                "file, so that it is downloaded again"
            ) from error
        found = dict(zip(bunch["phenotypic"]["SUB_ID"].tolist(), bunch[self.derivative], strict=True))
        return [np.atleast_2d(found[subject]) for subject in wanted]


def recoded(table: pd.DataFrame, column: str, codes: dict[Any, int]) -> IntArray:
    """The codes of a column of numbers or names; anything else is unknown (-1)."""
    return np.array(table[column].map(codes).fillna(UNKNOWN), dtype=np.int64)
