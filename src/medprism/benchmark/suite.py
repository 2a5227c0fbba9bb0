"""What a suite file says: which methods meet which cohorts, and what is the same for all."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from medprism.benchmark.grid import mistake, nested, points

MODEL, DATA = "model", "data"
PLACE = "{data}"
"""Stands in a suite for the folder of data sets that the command line names."""

QUIET: dict[str, Any] = {
    "test_after_fit": True,
    "figures": {"enabled": False},
    "evaluator": {"bootstrap": 0},
    "trainer": {"logger": False, "enable_progress_bar": False, "enable_model_summary": False},
}
"""What every run has unless the suite says otherwise: tables need predictions, not pictures."""


class SuiteError(ValueError):
    """A suite file that cannot be run; the message says what to mend."""


@dataclass(frozen=True)
class Job:
    """One training with its test.

    Attributes:
        cohort: name of the cohort in the suite.
        method: name of the method in the suite.
        seed: seed of the split, of the weights and of the training order.
        fold: number of the test fold, or None without folds.
        config: the whole config of `lightning fit`, but for the folder of the run.
        settings: what this trial of a search has beside the others, by dotted names; empty without a search.
        reads: files and folders of the cohort; when one of them changes, the run is stale.
    """

    cohort: str
    method: str
    seed: int
    fold: int | None
    config: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    reads: tuple[str, ...] = ()

    @cached_property
    def name(self) -> str:
        """Folder of the run: readable, and different whenever an argument is."""
        plain = json.dumps(self.config, sort_keys=True)
        fold = "" if self.fold is None else f"_fold{self.fold}"
        return f"{self.cohort}/{self.method}/seed{self.seed}{fold}_{hashlib.sha256(plain.encode()).hexdigest()[:10]}"


@dataclass(frozen=True)
class Suite:
    """A comparison of methods over cohorts.

    Attributes:
        name: name of the suite file.
        title: a sentence for tables.
        reference: the method that differences are taken to.
        cohorts: name to `data` config (file or mapping), `folds`, `seeds`, overrides of the whole config, and `reads`:
            the files and folders whose change makes runs stale, those that `data` names when left out.
        methods: name to `model` config (file or mapping), overrides, `for_cohort` overrides, a `grid` for a search, and
            optionally `cohorts` it is limited to.
        seeds: seeds of every cell.
        common: config that every run has, such as trainer and checkpoint.
        shown: metrics in the Markdown table, for each test set.
        ceiling: a method, such as an oracle, of whose mean accuracy the Markdown table shows the shares; None for none.
        trials: of each method, for every seed and fold; 1 without a search.
        grid: values of settings by dotted names, to which those of a method are added or preferred.
        base: folder that paths in the suite are relative to.
        folder: folder of data sets, in place of `{data}` in the suite; cohorts that need it are left out without.
    """

    name: str
    title: str
    reference: str
    cohorts: Mapping[str, Mapping[str, Any]]
    methods: Mapping[str, Mapping[str, Any]]
    seeds: tuple[int, ...]
    common: Mapping[str, Any]
    shown: tuple[str, ...]
    base: Path
    folder: Path | None = None
    ceiling: str | None = None
    trials: int = 1
    grid: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, folder: Path | None = None, base: Path | None = None) -> Suite:
        """Read a suite file.

        Args:
            path: YAML file.
            folder: folder of data sets.
            base: folder that the suite's paths are relative to; the working directory when left out.

        Raises:
            SuiteError: when the file is missing or no YAML mapping, lacks a key, or has one that says nothing.
        """
        if not path.is_file():
            raise SuiteError(f"there is no suite {path}; the shipped ones are benchmarks/*.yaml")
        content = _mapping(path)
        wanted = ("reference", "cohorts", "methods")
        if any(not content.get(key) for key in wanted):
            raise SuiteError(f"{path} must be a mapping with the keys {', '.join(wanted)} (and {', '.join(_MORE)})")
        if unknown := set(content) - {*wanted, *_MORE}:
            raise SuiteError(
                f"{path} has unknown keys {sorted(unknown, key=str)}; expected {', '.join((*wanted, *_MORE))}"
            )
        for what in ("cohorts", "methods"):
            _check_parts(path, what, content[what])
        for key in ("reference", "ceiling"):
            if content.get(key) is not None and content[key] not in content["methods"]:
                raise SuiteError(f"{path}: {key} '{content[key]}' is none of {list(content['methods'])}")
        _check_names(path, content["cohorts"], content["methods"])
        for where, cell in {"the suite": content, **content["cohorts"]}.items():
            _check_seeds(path, where, cell)
            _check_reads(path, where, cell)
        search = content.get("search") or {}
        _check_search(path, search, content["methods"])
        shown = content.get("shown", ("accuracy", "auroc"))
        if isinstance(shown, str) or not isinstance(content.get("common", {}), dict):
            raise SuiteError(f"{path}: shown is a list of metrics, and common a mapping")
        return cls(
            name=path.stem,
            title=str(content.get("title", path.stem)),
            reference=content["reference"],
            cohorts=content["cohorts"],
            methods=content["methods"],
            seeds=tuple(content.get("seeds", (0, 1, 2))),
            common=content.get("common", {}),
            shown=tuple(shown),
            base=base or Path(),
            folder=folder,
            ceiling=content.get("ceiling"),
            trials=search.get("trials", 1),
            grid=search.get("grid", {}),
        )

    @cached_property
    def without_data(self) -> list[str]:
        """Cohorts that need a folder of data sets which was not named."""
        return [name for name, cell in self.cohorts.items() if self.folder is None and PLACE in json.dumps(cell)]

    def jobs(self) -> list[Job]:
        """Every run of the suite, trials of a search among them, all methods of a seed before the next seed."""
        cells = [
            (seed, cohort, method)
            for seed in sorted({seed for name in self.cohorts for seed in self._seeds(name)})
            for cohort in self.cohorts
            for method in self.methods
            if seed in self._seeds(cohort)
            and cohort not in self.without_data
            and cohort in self.methods[method].get("cohorts", self.cohorts)
        ]
        return [
            self._job(*cell, fold, settings)
            for cell in cells
            for fold in self._folds(cell[1])
            for settings in self._settings(cell[2])
        ]

    def _seeds(self, cohort: str) -> tuple[int, ...]:
        return tuple(self.cohorts[cohort].get("seeds", self.seeds))

    def _folds(self, cohort: str) -> list[int | None]:
        folds = self.cohorts[cohort].get("folds")
        return [None] if folds is None else list(range(folds))

    def _settings(self, method: str) -> list[dict[str, Any]]:
        grid = {**self.grid, **self.methods[method].get("grid", {})}
        return points(grid, self.trials) if grid else [{}]

    def _job(self, seed: int, cohort: str, method: str, fold: int | None, settings: Mapping[str, Any]) -> Job:
        cell, way = self.cohorts[cohort], self.methods[method]
        config = merged({"seed_everything": seed, **QUIET}, self._resolved(self.common))
        for part in (cell, way):
            config = merged(config, self._resolved({k: v for k, v in part.items() if k not in _OWN}))
        config = merged(config, self._resolved(way.get("for_cohort", {}).get(cohort, {})))
        config = merged(config, nested(settings))
        data: dict[str, Any] = {"init_args": {"split_seed": seed}}
        if fold is not None:
            data["init_args"] |= {"split": "kfold", "folds": cell["folds"], "fold": fold}
        config = self._placed(merged(config, {DATA: data}))
        reads = self._placed(cell["reads"]) if "reads" in cell else _paths(config[DATA])
        return Job(cohort, method, seed, fold, config, settings, tuple(reads))

    def _placed(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: self._placed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._placed(item) for item in value]
        if isinstance(value, str) and PLACE in value:
            if self.folder is None:
                raise SuiteError(f"suite {self.name}: '{value}' needs the folder of data sets; name it with --data")
            return value.replace(PLACE, str(self.folder))
        return value

    def _resolved(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The config with the contents of files in place of their names."""
        out: dict[str, Any] = {}
        for key, value in config.items():
            if key in (MODEL, DATA, "trainer") and isinstance(value, str):
                out[key] = self._file(value)
            elif isinstance(value, Mapping) and "file" in value:
                rest = {name: item for name, item in value.items() if name != "file"}
                out[key] = merged(self._file(value["file"]), rest)
            else:
                out[key] = value
        return out

    def _file(self, name: str) -> dict[str, Any]:
        if name not in self._read:
            path = self.base / name
            if not path.is_file():
                raise SuiteError(
                    f"suite {self.name} names {name}, which is not there; paths are relative to {self.base}"
                )
            self._read[name] = _mapping(path)
        return self._read[name]

    @cached_property
    def _read(self) -> dict[str, dict[str, Any]]:
        """Files that were read already: hundreds of runs share a few."""
        return {}


_MORE = ("title", "seeds", "common", "shown", "ceiling", "search")
_OWN = ("folds", "seeds", "cohorts", "for_cohort", "label", "grid", "reads")


def _mapping(path: Path) -> dict[Any, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise SuiteError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise SuiteError(f"{path} must be a mapping, and is {type(content).__name__}")
    return content


def _check_parts(path: Path, what: str, parts: Any) -> None:
    """Cohorts or methods are mappings under names that can be folders."""
    if not isinstance(parts, dict):
        raise SuiteError(f"{path}: {what} must be a mapping from names to settings, and is {type(parts).__name__}")
    for name, part in parts.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*", name):
            raise SuiteError(
                f"{path}: {what} has the name {name!r}; it becomes a folder: letters, digits, '_', '-', '.'"
            )
        if not isinstance(part, dict):
            raise SuiteError(f"{path}: '{name}' in {what} must be a mapping of settings, and is {part!r}")


def _check_names(path: Path, cohorts: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]) -> None:
    """A method that is limited to a cohort which is not there would be left out without a word."""
    for name, method in methods.items():
        for key in ("cohorts", "for_cohort"):
            if wrong := [each for each in method.get(key, ()) if each not in cohorts]:
                raise SuiteError(f"{path}: {key} of method '{name}' names {wrong}; the cohorts are {list(cohorts)}")


def _check_seeds(path: Path, where: str, cell: Mapping[str, Any]) -> None:
    seeds, folds = cell.get("seeds", [0]), cell.get("folds")
    if not isinstance(seeds, list) or not seeds or any(type(seed) is not int for seed in seeds):
        raise SuiteError(f"{path}: seeds of {where} are {seeds!r}; expected a list of whole numbers, such as [0, 1, 2]")
    if len(set(seeds)) < len(seeds):
        raise SuiteError(f"{path}: seeds of {where} are {seeds}; give each seed once")
    if folds is not None and (type(folds) is not int or folds < 2):
        raise SuiteError(f"{path}: folds of {where} are {folds!r}; expected a whole number of at least 2")


def _check_reads(path: Path, where: str, cell: Mapping[str, Any]) -> None:
    reads = cell.get("reads", [])
    if not isinstance(reads, list) or any(not isinstance(name, str) for name in reads):
        raise SuiteError(f"{path}: reads of {where} are {reads!r}; expected a list of files and folders")


def _check_search(path: Path, search: Any, methods: Mapping[str, Mapping[str, Any]]) -> None:
    """Every method has as many trials as the others."""
    if not search:
        if wrong := [name for name, method in methods.items() if "grid" in method]:
            raise SuiteError(f"{path}: {wrong} have a grid, and the suite has no search, such as search: {{trials: 4}}")
        return
    trials = search.get("trials") if isinstance(search, dict) else None
    if type(trials) is not int or trials < 2 or set(search) - {"trials", "grid"}:
        raise SuiteError(f"{path}: search is {search!r}; expected trials, at least 2, and perhaps a grid for all")
    for name, method in methods.items():
        own = method.get("grid", {})
        shared = search.get("grid", {})
        both = {**shared, **own} if isinstance(shared, dict) and isinstance(own, dict) else own
        if why := mistake(both, trials):
            raise SuiteError(f"{path}: the grid of method '{name}' {why}")


def _paths(value: Any) -> Iterator[str]:
    """Files and folders that are named in a config and are there."""
    if isinstance(value, (Mapping, list)):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _paths(item)
    elif isinstance(value, str) and Path(value).expanduser().exists():
        yield value


def merged(config: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`config` with the values of `over`, mapping by mapping; another `class_path` drops the old `init_args`."""
    if "class_path" in over and over["class_path"] != config.get("class_path", over["class_path"]):
        config = {key: value for key, value in config.items() if key != "init_args"}
    out = dict(config)
    for key, value in over.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
