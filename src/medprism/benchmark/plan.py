"""What a folder of runs remembers of its suite, so that a report needs no suite file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from medprism.benchmark.results import PLAN
from medprism.benchmark.suite import PLACE, Job, Suite
from medprism.evaluation.predictions import write_whole


@dataclass(frozen=True)
class Plan:
    """A suite with everything resolved: the files that it was read from may change.

    Attributes:
        name: name of the suite.
        title: a sentence for tables.
        reference: the method that differences are taken to.
        ceiling: the method, such as an oracle, whose shares are shown; None for none.
        shown: metrics in the tables, for each test set.
        labels: method to its name for people.
        command: that runs the suite.
        data: folder of data sets, or None.
        jobs: all runs, trials of a search among them.
        trials: of each method, for every seed and fold; 1 without a search.
    """

    name: str
    title: str
    reference: str
    ceiling: str | None
    shown: tuple[str, ...]
    labels: Mapping[str, str]
    command: str
    data: str | None
    jobs: tuple[Job, ...]
    trials: int = 1

    @classmethod
    def of(cls, suite: Suite, command: str) -> Plan:
        """The plan of a suite that `command` runs."""
        return cls(
            suite.name,
            suite.title,
            suite.reference,
            suite.ceiling,
            suite.shown,
            {name: str(method.get("label", name)) for name, method in suite.methods.items()},
            command,
            None if suite.folder is None else str(suite.folder),
            tuple(suite.jobs()),
            suite.trials,
        )

    @classmethod
    def load(cls, runs: Path) -> Plan:
        """Read what `save` wrote."""
        content = json.loads((runs / PLAN).read_text(encoding="utf-8"))
        jobs = tuple(Job(**{**job, "reads": tuple(job["reads"])}) for job in content["jobs"])
        return cls(**{**content, "shown": tuple(content["shown"]), "jobs": jobs})

    def save(self, runs: Path) -> None:
        """Write suite.json into the folder of the runs."""
        runs.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_whole(runs / PLAN, lambda part: part.write_text(text, encoding="utf-8"))

    def without_place(self, text: str) -> str:
        """Settings for readers elsewhere: `{data}` stands again for the folder of data sets."""
        return text.replace(self.data, PLACE) if self.data else text
