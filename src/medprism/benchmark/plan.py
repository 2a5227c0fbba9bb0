"""What a folder of runs remembers of its suite, so that a report needs no suite file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from medprism.benchmark.results import PLAN, Heading
from medprism.benchmark.suite import PLACE, Job, Suite
from medprism.files import write_whole


@dataclass(frozen=True)
class Plan(Heading):
    """A suite with everything resolved: the files that it was read from may change.

    Attributes:
        data: folder of data sets, or None.
        jobs: all runs, trials of a search among them.
    """

    data: str | None
    jobs: tuple[Job, ...]

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
            suite.trials,
            None if suite.folder is None else str(suite.folder),
            tuple(suite.jobs()),
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
