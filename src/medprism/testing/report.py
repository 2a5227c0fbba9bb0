"""How checks are run and what they say: a table, and one error that lists everything that failed."""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

from rich.console import Console
from rich.table import Table

LONGEST = 600
"""Characters of a foreign error that a table shows."""

Trial = TypeVar("Trial")
Check = Callable[[Trial], None]


class CheckFailure(AssertionError):
    """What one check found.

    Args:
        expected: what holds for a class that passes.
        found: what was seen instead.
        mend: what to do.
    """

    def __init__(self, expected: str, found: str, mend: str) -> None:
        super().__init__(f"expected {expected}; found {found}. Mend: {mend}")


class NotApplicable(Exception):
    """A check that says nothing about this class; the message is the reason, which the table shows."""


class ChecksFailed(AssertionError):
    """One or more checks failed.

    Attributes:
        report: the outcome of every check.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        failed = report.failed
        lines = [f"{report.subject} fails {len(failed)} of {len(report.outcomes)} checks:"]
        lines += [f"- {each.name}: {each.detail}" for each in failed]
        super().__init__("\n".join(lines))


@dataclass(frozen=True)
class Outcome:
    """What came of one check.

    Attributes:
        name: of the check.
        state: `passed`, `failed`, or `skipped` (by the caller, because it does not apply, or because an earlier check
            failed on which it builds).
        detail: what was expected, found, and the mend; or why it was skipped.
        seconds: how long it took.
    """

    name: str
    state: Literal["passed", "failed", "skipped"]
    detail: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Report:
    """The outcomes of all checks of a class; printing it gives a table.

    Attributes:
        subject: what was checked.
        outcomes: in the order in which the checks ran.
    """

    subject: str
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> tuple[Outcome, ...]:
        """Those that failed."""
        return tuple(each for each in self.outcomes if each.state == "failed")

    def state(self, name: str) -> str:
        """The state of the check of this name.

        Raises:
            KeyError: when no check of that name ran.
        """
        return {each.name: each.state for each in self.outcomes}[name]

    def table(self) -> Table:
        """The table for a rich console."""
        table = Table(title=self.subject, title_justify="left")
        for column in ("check", "state", "s", "detail"):
            table.add_column(column, no_wrap=column != "detail", justify="right" if column == "s" else "left")
        for each in self.outcomes:
            table.add_row(each.name, each.state, f"{each.seconds:.1f}", each.detail.replace("[", r"\["))
        return table

    def __str__(self) -> str:
        console = Console(width=120, no_color=True)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get()


def require_class(check: str, cls: object, base: type) -> None:
    """Refuse what is no class to check.

    Args:
        check: name of the function that was called.
        cls: what it was given.
        base: the class that it should be a subclass of.

    Raises:
        TypeError: when it is none, or cannot be built.
    """
    if not isinstance(cls, type) or not issubclass(cls, base):
        raise TypeError(f"{check} takes a subclass of {base.__module__}.{base.__qualname__}, and got {cls!r}")
    if inspect.isabstract(cls):
        missing = sorted(vars(cls)["__abstractmethods__"])
        raise TypeError(f"{cls.__name__} cannot be built: define {' and '.join(missing)}")


def run_checks(
    subject: str,
    known: Mapping[str, Check[Trial]],
    trial: Trial,
    chosen: Sequence[str] | None,
    skip: Mapping[str, str] | None,
) -> Report:
    """Run checks one by one.

    The first of `known` is what the others build on: when it fails they are skipped.

    Args:
        subject: name of what is checked.
        known: name to check.
        trial: what each check is given.
        chosen: names of the checks to run; all when left out.
        skip: name to reason of checks to leave out.

    Returns:
        The report, when nothing failed.

    Raises:
        ValueError: for a name of no check, or a skip without a reason.
        ChecksFailed: when a check failed.
    """
    skip = skip or {}
    unknown = sorted({*(chosen or ()), *skip} - set(known))
    if unknown:
        raise ValueError(f"there are no checks {unknown}; the checks are {list(known)}")
    if silent := sorted(name for name, reason in skip.items() if not str(reason).strip()):
        raise ValueError(f"skip gives no reason for {silent}; write why each check says nothing, such as skip={{...}}")
    first = next(iter(known))
    outcomes: list[Outcome] = []
    for name, check in known.items():
        if chosen is not None and name not in chosen:
            continue
        if name in skip:
            outcomes.append(Outcome(name, "skipped", f"by the caller: {skip[name]}"))
        elif any(each.name == first and each.state == "failed" for each in outcomes):
            outcomes.append(Outcome(name, "skipped", f"builds on {first}, which failed"))
        else:
            outcomes.append(_run(name, check, trial))
    report = Report(subject, tuple(outcomes))
    if report.failed:
        raise ChecksFailed(report)
    return report


def _run(name: str, check: Check[Trial], trial: Trial) -> Outcome:
    start = time.perf_counter()
    try:
        check(trial)
    except NotApplicable as reason:
        return Outcome(name, "skipped", str(reason), time.perf_counter() - start)
    except CheckFailure as failure:
        return Outcome(name, "failed", str(failure), time.perf_counter() - start)
    except Exception as error:  # a class under test may raise anything, and the other checks still run
        return Outcome(name, "failed", f"raised {described(error)}", time.perf_counter() - start)
    return Outcome(name, "passed", seconds=time.perf_counter() - start)


def described(error: BaseException) -> str:
    """Type, message, and the line of code of an error that nobody expected."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    where = f" ({Path(own[-1].filename).name}, line {own[-1].lineno}: {own[-1].line})" if own else ""
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:LONGEST] + ' ...' if len(said) > LONGEST else said}{where}"
