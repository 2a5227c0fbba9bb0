"""The speed measurements as tables, from the JSON files beside them: `python benchmarks/speed/summary.py`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import RESULTS

SUMMARY = "summary.md"


def tables(found: dict[str, dict[str, Any]]) -> str:
    """The tables in Markdown, from the name of each measurement to its result."""
    step, loading, help_, evaluation, pairs = (
        found[name] for name in ("step", "loading", "help", "evaluation", "mutual_information")
    )
    steps = [
        (name, f"{1e3 * each['wall clock']['plain loop, seconds a step']:.0f} ms",
         *(f"{each[clock]['ratio']:.3f} [{', '.join(f'{q:.3f}' for q in each[clock]['quartiles of the ratio'])}]"
           for clock in ("wall clock", "processor")))
        for name, each in step["methods"].items()
    ]  # fmt: skip
    waits = [
        (name, f"{1e3 * each['seconds a step']:.0f} ms", f"{100 * each['share of time waited']:.0f} %")
        for name, each in loading["cohorts"].items()
    ]
    helps = [
        (f"`{name}`" if name != help_["reference"] else "reference: torch and lightning imported", f"{value:.2f} s",
         f"{help_['ratio to the reference'][name]:.2f}")
        for name, value in help_["seconds"].items()
    ]  # fmt: skip
    evaluations = [
        (f"{evaluation['predictions']:,} predictions, {evaluation['resamples']:,} resamples",
         f"{evaluation['ours, seconds']:.1f} s", f"{evaluation['times faster than the reference']:,.0f}")
    ]  # fmt: skip
    critics = [
        (f"{each['attributes']}, {each['scheme']}", str(each["critics"]), f"{each['seconds']:.2f} s",
         f"{each['times faster than plain']:,.0f}", f"{each['memory MB']:,.0f} MB")
        for each in pairs["steps"]
    ]  # fmt: skip
    return "\n\n".join(
        [
            f"Written by `make speed` on {machine(step)}. Seconds are those of this machine, ratios those of one run.",
            "### step",
            "A step of `lightning fit` over a step of a plain PyTorch loop: median [quartiles] of "
            f"{min(each['pairs'] for each in step['methods'].values())} pairs of turns or more, on "
            f"{step['environment']['threads']} thread.",
            markdown(("method", "plain step", "ratio, wall clock", "ratio, processor time"), steps),
            "### loading",
            "Share of the time of training that is waited for batches, after the first epoch, without workers.",
            markdown(("cohort", "step with its loading", "waiting"), waits),
            "### help",
            f"Median of {help_['repeats']} new processes each.",
            markdown(("command", "seconds", "ratio"), helps),
            "### evaluation",
            f"All performance and fairness metrics with intervals; the reference is {evaluation['reference']}.",
            markdown(("what", "seconds", "times faster than the reference"), evaluations),
            "### dependence",
            "By `python benchmarks/speed/mutual_information.py`, not in the same run. One step of the critics at "
            f"B = {pairs['batch']}, on one thread; `plain` is one critic after another on all pairs, of which "
            f"{pairs['plain critics timed']} critics are timed and scaled to their number.",
            markdown(("attributes and scheme", "critics", "seconds", "times faster than plain", "memory"), critics),
        ]
    )


def machine(result: dict[str, Any]) -> str:
    """What a reader must know of the machine."""
    known = result["environment"]
    return f"{known['cores']} cores ({known['device']}, {known['machine']}), torch {known['torch']}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load(folder: Path = RESULTS) -> dict[str, dict[str, Any]]:
    """The results in a folder by name."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


if __name__ == "__main__":
    (RESULTS / SUMMARY).write_text(tables(load()) + "\n", encoding="utf-8")
    print(RESULTS / SUMMARY)
