"""SIMULATED cases: who is on the film, what it shows, what is said about it and when, and where the reader looks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from medprism.data.imaging import FloatArray
from medprism.data.transcripts import Sentence, Word
from medprism.datamodules.reading_room_pictures import Ellipse, Mark, drawn
from medprism.datamodules.reading_room_words import (
    DEVICES,
    FINDINGS,
    NORMAL,
    SEVERITIES,
    VIEWS,
    Normal,
    chosen,
    device_sentence,
    finding_sentence,
    phrase,
    sign_sentence,
)

STRENGTHS = {"mild": 0.16, "moderate": 0.24, "severe": 0.33}
DEVICE_STRENGTHS = {"pacemaker": 0.45, "catheter": 0.3, "electrode": 0.35, "clips": 0.4, "granuloma": 0.3}
SEXES = ("male", "female")
LEAD = 0.3
"""Seconds that the eyes are ahead of the voice."""


class Lesion(NamedTuple):
    """A finding at one place.

    Attributes:
        place: a key of the finding's places.
        severity: a key of `SEVERITIES`.
        where: its place on the image.
        phrase: finding, severity and place in words.
    """

    place: str
    severity: str
    where: Ellipse
    phrase: str


class Device(NamedTuple):
    """A device at one place.

    Attributes:
        kind: a key of `DEVICES`.
        place: a key of its places.
        where: its place on the image.
    """

    kind: str
    place: str
    where: Ellipse


@dataclass(frozen=True)
class Case:
    """One SIMULATED person, their film, and one reading of it.

    Attributes:
        number: of the person, from 0.
        finding: a key of `FINDINGS`; empty for a film without one.
        view: AP or PA.
        sex: male or female.
        age: years.
        lesions: where the finding is; one or two places.
        devices: what else can be spoken of.
        marks: all that is drawn beside anatomy.
        spoken: the words of each sentence with their times in seconds; the last word of a sentence ends in a stop.
        fixations: `(F, 4)` x and y as shares of the image, begin and end in seconds; None for a reading without gaze.
    """

    number: int
    finding: str
    view: str
    sex: str
    age: int
    lesions: tuple[Lesion, ...]
    devices: tuple[Device, ...]
    marks: tuple[Mark, ...]
    spoken: tuple[tuple[Word, ...], ...]
    fixations: FloatArray | None

    @property
    def sentences(self) -> tuple[Sentence, ...]:
        """What is said, sentence by sentence."""
        return tuple(
            Sentence(" ".join(word.text for word in words), words[0].start, words[-1].end) for words in self.spoken
        )

    def picture(self, size: int, noise: float, seed: int) -> FloatArray:
        """The film as grey picture `(size, size)` in [0, 1]."""
        return drawn(size, self.marks, self.view, self.sex, noise, generator(seed, f"film {self.number}"))


def simulated_cases(
    people: int, seed: int = 0, contrast: float = 1.0, attention: float = 0.8, without_gaze: float = 0.1
) -> tuple[Case, ...]:
    """SIMULATED cases; finding, view and sex are balanced and do not depend on each other.

    Args:
        people: number of cases, one a person.
        seed: seed of the simulation.
        contrast: brightness of the findings in relation to the default.
        attention: share of the fixations during a sentence that lie on what it is about; the others wander.
        without_gaze: share of the readings without gaze.
    """
    order = generator(seed, "labels")
    findings = order.permutation(np.arange(people) % len(FINDINGS))
    views = order.permutation(np.arange(people) % 2)
    sexes = order.permutation(np.arange(people) % 2)
    blind = order.permutation(people) < round(without_gaze * people)
    names = tuple(FINDINGS)
    return tuple(
        _case(
            number,
            names[findings[number]],
            ("AP", "PA")[views[number]],
            SEXES[sexes[number]],
            generator(seed, f"case {number}"),
            contrast,
            None if blind[number] else attention,
        )
        for number in range(people)
    )


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose."""
    digest = hashlib.sha256(json.dumps([seed, purpose]).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def read_again(case: Case, seed: int, reader: str, attention: float = 0.8) -> Case:
    """Another SIMULATED reading of the same film, with gaze: other words, other times, another way over the film."""
    pick = generator(seed, f"reader {reader} of case {case.number}")
    spoken, fixations = _reading(case.finding, case.view, case.lesions, case.devices, attention, pick)
    return replace(case, spoken=spoken, fixations=fixations)


def without_finding(case: Case, seed: int) -> Case:
    """The same SIMULATED person without the finding, and a reading of that film, with gaze."""
    marks = tuple(mark for mark in case.marks if mark.kind != case.finding)
    return read_again(replace(case, finding="", lesions=(), marks=marks), seed, "of the film without finding")


def _case(
    number: int,
    finding: str,
    view: str,
    sex: str,
    pick: np.random.Generator,
    contrast: float,
    attention: float | None,
) -> Case:
    lesions: list[Lesion] = []
    devices: list[Device] = []
    marks: list[Mark] = [_clutter(pick) for _ in range(4)]
    places = list(FINDINGS[finding].places)
    for k in pick.permutation(len(places))[: 1 + int(pick.random() < 0.3)]:
        severity = chosen(tuple(SEVERITIES), pick)
        where = _near(FINDINGS[finding].places[places[k]][0], pick)
        strength = contrast * STRENGTHS[severity] * float(pick.uniform(0.85, 1.15))
        marks.append(Mark(finding, where, strength, _phase(pick)))
        lesions.append(Lesion(places[k], severity, where, phrase(finding, places[k], severity)))
    for kind, words in DEVICES.items():
        if pick.random() < 0.3:
            place = chosen(tuple(words.places), pick)
            where = _near(words.places[place][0], pick)
            marks.append(Mark(kind, where, DEVICE_STRENGTHS[kind], _phase(pick)))
            devices.append(Device(kind, place, where))
    age = int(pick.integers(20, 91))
    spoken, fixations = _reading(finding, view, lesions, devices, attention, pick)
    return Case(number, finding, view, sex, age, tuple(lesions), tuple(devices), tuple(marks), spoken, fixations)


def _reading(
    finding: str,
    view: str,
    lesions: Sequence[Lesion],
    devices: Sequence[Device],
    attention: float | None,
    pick: np.random.Generator,
) -> tuple[tuple[tuple[Word, ...], ...], FloatArray | None]:
    """Words with times, and fixations unless there is no attention."""
    plan: list[tuple[str, tuple[Ellipse, ...]]] = []
    for k, lesion in enumerate(lesions):
        plan.append((finding_sentence(finding, lesion.place, lesion.severity, pick), (lesion.where,)))
        if k == 0 and pick.random() < 0.5:
            plan.append((sign_sentence(finding, lesion.place, pick), (lesion.where,)))
    for device in devices:
        if pick.random() < 0.85:
            plan.append((device_sentence(device.kind, device.place, pick), (device.where,)))
    usual = [normal for normal in NORMAL if not finding or normal.unless != finding]
    for k in pick.permutation(len(usual))[: int(pick.integers(2, 4))]:
        plan.append(_said(usual[k], pick))
    plan = [plan[k] for k in pick.permutation(len(plan))]
    if pick.random() < 0.5:
        plan.insert(0, _said(VIEWS[view], pick))
    spoken = _speak([text for text, _ in plan], pick)
    return spoken, None if attention is None else _look(spoken, [where for _, where in plan], attention, pick)


def _said(normal: Normal, pick: np.random.Generator) -> tuple[str, tuple[Ellipse, ...]]:
    return chosen(normal.sentences, pick), normal.where


def _near(where: Ellipse, pick: np.random.Generator) -> Ellipse:
    """A little beside, and a little larger or smaller."""
    x, y = pick.uniform(-0.025, 0.025, 2)
    scale = pick.uniform(0.85, 1.15)
    return Ellipse(where.x + float(x), where.y + float(y), where.rx * float(scale), where.ry * float(scale))


def _clutter(pick: np.random.Generator) -> Mark:
    x, y, radius, strength = pick.uniform((0.15, 0.15, 0.07, -0.08), (0.85, 0.85, 0.16, 0.08))
    return Mark("clutter", Ellipse(float(x), float(y), float(radius), float(radius)), float(strength), (0.0, 0.0))


def _phase(pick: np.random.Generator) -> tuple[float, float]:
    first, second = pick.random(2)
    return float(first), float(second)


def _speak(sentences: Sequence[str], pick: np.random.Generator) -> tuple[tuple[Word, ...], ...]:
    """Words with times to a millisecond; long words take longer, and there is a pause after each sentence."""
    now = float(pick.uniform(0.5, 2.0))
    spoken = []
    for sentence in sentences:
        words = []
        for text in sentence.split():
            end = now + 0.08 + 0.045 * len(text) + float(pick.uniform(0, 0.1))
            words.append(Word(text, round(now, 3), round(end, 3)))
            now = end + float(pick.uniform(0.01, 0.08))
        spoken.append(tuple(words))
        now += float(pick.uniform(0.4, 1.4))
    return tuple(spoken)


def _look(
    spoken: Sequence[Sequence[Word]],
    places: Sequence[Sequence[Ellipse]],
    attention: float,
    pick: np.random.Generator,
) -> FloatArray:
    """Fixations `(F, 4)`: on what is spoken of for a share of the time, elsewhere otherwise, rarely off the film."""
    last = spoken[-1][-1].end + 0.8
    most = int(last / 0.2) + 1  # a fixation and the jump after it take at least 0.2 s
    lengths, jumps = pick.uniform(0.18, 0.5, most), pick.uniform(0.02, 0.05, most)
    end = np.cumsum(lengths + jumps) - jumps
    start = end - lengths
    seen = start < last
    start, end = start[seen], end[seen]
    middle = (start + end) / 2
    begin = np.array([words[0].start - LEAD for words in spoken])
    stop = np.array([words[-1].end for words in spoken])
    about = np.searchsorted(begin, middle, side="right") - 1
    attentive = (about >= 0) & (middle <= stop[about]) & (pick.random(len(start)) < attention)
    counts = np.array([len(options) for options in places])
    options = np.array([where for each in places for where in each])
    which = (np.cumsum(counts) - counts)[about] + (pick.random(len(start)) * counts[about]).astype(np.int64)
    centre, radii = options[which, :2], options[which, 2:]
    looked = centre + (0.4 * radii + 0.015) * pick.standard_normal((len(start), 2))
    wandering = pick.uniform(0.1, 0.9, (len(start), 2))
    off = pick.random(len(start)) < 0.04
    wandering[off, 0] = pick.uniform(-0.15, -0.02, int(off.sum()))
    found = np.where(attentive[:, None], looked, wandering)
    return np.column_stack([found.round(4), start.round(3), end.round(3)])
