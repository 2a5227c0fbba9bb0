"""Your own X-rays, or any other grey pictures, by a CSV manifest; perhaps with their reports."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from medprism.data.errors import DataError
from medprism.data.samples import Labels
from medprism.data.tables import Columns, read_table
from medprism.data.texts import Texts
from medprism.datamodules.reports import manifest_reports, read_text
from medprism.datamodules.xray import XrayDataModule
from medprism.datamodules.xray_tables import rows_of


class XrayManifest(XrayDataModule):
    """A classification cohort from your own X-rays, or any other grey pictures.

    The manifest is a CSV (or TSV) with one row an image and the columns `image` (path relative to `root`), the target,
    and optionally `id` (unique; the path when left out), `subject` (`id` when left out), a report and any attributes.

    Args:
        root: folder that the paths of the manifest are relative to.
        manifest: path of the manifest.
        target: column to predict.
        target_classes: its classes in the order of their codes, the positive one last; sorted when left out.
        attributes: attribute columns; all other columns when left out.
        attribute_classes: classes of attribute columns; sorted values for those left out.
        bins: bounds for attribute columns of numbers, such as {age: [18, 40, 60, 90]}.
        cuts: thresholds for attribute columns of numbers, such as {age: [60]}.
        sensitive: attributes that are properties of the person, to be treated fairly; the others are nuisance.
        phrases: for class names the phrase that says them in words.
        text: column of reports, or of paths (relative to `root`) of text files that end in `.txt`; they become
            sentences, and rows without are left out and counted. No text when left out.
        cohort_name: name of the data set in tables and figures.
        **base: arguments of `XrayDataModule`, `ImageDataModule` and `CohortDataModule`.
    """

    def __init__(
        self,
        root: str,
        manifest: str,
        target: str = "target",
        target_classes: list[str] | None = None,
        attributes: list[str] | None = None,
        attribute_classes: dict[str, list[str]] | None = None,
        bins: dict[str, list[float]] | None = None,
        cuts: dict[str, list[float]] | None = None,
        sensitive: tuple[str, ...] = ("sex", "age"),
        phrases: dict[str, str] | None = None,
        text: str | None = None,
        cohort_name: str = "own X-rays",
        **base: Any,
    ) -> None:
        super().__init__(**base)
        self.name = cohort_name
        self.root = Path(root)
        self.manifest = Path(manifest)
        self.text = text
        self.columns = Columns(
            target,
            target_classes,
            attributes,
            attribute_classes or {},
            bins or {},
            cuts or {},
            sensitive,
            phrases or {},
        )

    @cached_property
    def _table(self) -> pd.DataFrame:
        filled = ["image", "id", "subject", self.columns.target]
        text = [] if self.text is None else [self.text]
        if text and self.manifest.is_file():
            read_text(self.manifest, str(self.manifest))  # says which line is not UTF-8
        return read_table(self.manifest, ["image", *self.columns.needed, *text], filled)

    @cached_property
    def _sentences(self) -> list[tuple[str, ...]] | None:
        """Of every row of the manifest, whether it is used or not."""
        if self.text is None:
            return None
        return manifest_reports(self._table[self.text].tolist(), self.root, rows_of(self._table, self.manifest))

    @cached_property
    def _used(self) -> list[int]:
        """The rows of the manifest that are samples; what is left out is counted in `skipped`."""
        everything = list(range(len(self._table)))
        if self._sentences is None:
            return everything
        used = [row for row in everything if self._sentences[row]]
        if not used:
            raise DataError(f"{self.manifest}: column '{self.text}' holds no sentence; fill it, or leave text out")
        if len(used) < len(everything):
            self.skipped["no report"] = len(everything) - len(used)
        return used

    @cached_property
    def labels(self) -> Labels:
        """Target and attributes of the manifest."""
        table, used = self._table, self._used
        ids = table["id"] if "id" in table else table["image"]
        subjects = table.get("subject", ids)
        reserved = {"id", "image", "subject", *([] if self.text is None else [self.text])}
        return self.columns.labels(table, str(self.manifest), ids.iloc[used], subjects.iloc[used], reserved, used)

    @cached_property
    def texts(self) -> Texts | None:
        """The sentences of the reports, if they are read."""
        sentences = self._sentences
        return None if sentences is None else Texts(tuple(sentences[row] for row in self._used))

    def files(self) -> tuple[list[Path], list[str]]:
        """The files that the manifest names."""
        paths, where = self._table["image"], rows_of(self._table, self.manifest)
        return [self.root / paths[row] for row in self._used], [where[row] for row in self._used]
