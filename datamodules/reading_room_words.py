"""What is said in the SIMULATED reading room: where findings, devices and normal things are, and words for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medprism.datamodules.reading_room_pictures import MARKER, Ellipse

Pick = np.random.Generator

SEVERITIES: Mapping[str, tuple[str, ...]] = {
    "mild": ("mild", "minimal", "subtle"),
    "moderate": ("moderate", "moderately sized"),
    "severe": ("severe", "marked", "extensive"),
}
"""Words for each severity; the first one names it."""


@dataclass(frozen=True)
class Vocabulary:
    """Words for one kind of finding or device, and where it can be.

    Attributes:
        names: its names; the first one names it in boxes.
        places: name of each place, where that is, and words for it; the first ones are used in boxes and prompts.
        signs: other sentences that say it, with `{place}`.
    """

    names: tuple[str, ...]
    places: Mapping[str, tuple[Ellipse, tuple[str, ...]]]
    signs: tuple[str, ...] = ()


BASES = {
    "right base": ("at the right base", "in the right lower zone", "in the right lower lung"),
    "left base": ("at the left base", "in the left lower zone", "in the left lower lung"),
}
FINDINGS: Mapping[str, Vocabulary] = {
    "Atelectasis": Vocabulary(
        ("atelectasis", "plate-like atelectasis", "linear volume loss"),
        {
            "right base": (Ellipse(0.29, 0.70, 0.13, 0.10), BASES["right base"]),
            "left base": (Ellipse(0.72, 0.72, 0.13, 0.10), BASES["left base"]),
            "right mid zone": (Ellipse(0.28, 0.50, 0.13, 0.10), ("in the right mid zone", "in the right middle lung")),
            "left mid zone": (Ellipse(0.73, 0.48, 0.13, 0.10), ("in the left mid zone", "in the left middle lung")),
        },
        ("Band-like opacities are seen {place}.", "Linear streaks {place} suggest volume loss."),
    ),
    "Cardiomegaly": Vocabulary(
        ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
        {
            "left border": (Ellipse(0.70, 0.66, 0.13, 0.14), ("at the left heart border", "on the left cardiac side")),
            "right border": (
                Ellipse(0.40, 0.66, 0.12, 0.13),
                ("at the right heart border", "on the right cardiac side"),
            ),
        },
        ("The cardiac silhouette is too wide {place}.", "The heart is prominent {place}."),
    ),
    "Consolidation": Vocabulary(
        ("consolidation", "airspace consolidation", "patchy airspace opacity"),
        {
            "right upper lobe": (
                Ellipse(0.30, 0.30, 0.12, 0.11),
                ("in the right upper lobe", "in the right upper zone"),
            ),
            "left upper lobe": (Ellipse(0.71, 0.31, 0.12, 0.11), ("in the left upper lobe", "in the left upper zone")),
            "right base": (Ellipse(0.30, 0.68, 0.13, 0.12), BASES["right base"]),
            "left base": (Ellipse(0.71, 0.70, 0.13, 0.12), BASES["left base"]),
        },
        ("A dense patch is seen {place}.", "Air bronchograms are present {place}."),
    ),
    "Edema": Vocabulary(
        ("edema", "interstitial edema", "vascular congestion"),
        {
            "right hilum": (
                Ellipse(0.36, 0.46, 0.15, 0.16),
                ("around the right hilum", "in the right perihilar region"),
            ),
            "left hilum": (Ellipse(0.65, 0.46, 0.15, 0.16), ("around the left hilum", "in the left perihilar region")),
            "right base": (Ellipse(0.31, 0.67, 0.15, 0.14), BASES["right base"]),
            "left base": (Ellipse(0.70, 0.69, 0.15, 0.14), BASES["left base"]),
        },
        ("The interstitial markings are increased {place}.", "Fine reticular lines are seen {place}."),
    ),
    "Pleural Effusion": Vocabulary(
        ("pleural effusion", "pleural fluid", "layering effusion"),
        {
            "right angle": (
                Ellipse(0.21, 0.80, 0.13, 0.12),
                ("at the right costophrenic angle", "on the right side", "in the right pleural space"),
            ),
            "left angle": (
                Ellipse(0.79, 0.80, 0.13, 0.12),
                ("at the left costophrenic angle", "on the left side", "in the left pleural space"),
            ),
        },
        ("There is blunting {place}.", "A meniscus is visible {place}."),
    ),
}
SENTENCES = (
    "There is {severity} {name} {place}.",
    "{severity} {name} {place}.",
    "{severity} {name} is seen {place}.",
    "{place}, there is {severity} {name}.",
)

_LUNGS = {
    "right upper": (0.30, 0.29),
    "left upper": (0.70, 0.29),
    "right lower": (0.30, 0.66),
    "left lower": (0.71, 0.66),
}
DEVICES: Mapping[str, Vocabulary] = {
    "pacemaker": Vocabulary(
        ("pacemaker", "cardiac device"),
        {
            "left chest": (Ellipse(0.79, 0.19, 0.09, 0.07), ("over the left upper chest", "in the left chest wall")),
            "right chest": (Ellipse(0.21, 0.19, 0.09, 0.07), ("over the right upper chest", "in the right chest wall")),
        },
    ),
    "catheter": Vocabulary(
        ("central catheter", "central line"),
        {
            "right": (Ellipse(0.42, 0.25, 0.05, 0.24), ("from the right side", "from a right approach")),
            "left": (Ellipse(0.58, 0.25, 0.05, 0.24), ("from the left side", "from a left approach")),
        },
    ),
    "electrode": Vocabulary(
        ("electrode", "monitoring lead"),
        {
            side: (Ellipse(x, y, 0.05, 0.05), (f"over the {side} chest", f"projecting over the {side} lung"))
            for side, (x, y) in _LUNGS.items()
        },
    ),
    "clips": Vocabulary(
        ("row of surgical clips", "line of clips"),
        {
            "right axilla": (
                Ellipse(0.09, 0.42, 0.07, 0.05),
                ("in the right axilla", "in the right lateral chest wall"),
            ),
            "left axilla": (Ellipse(0.91, 0.42, 0.07, 0.05), ("in the left axilla", "in the left lateral chest wall")),
        },
    ),
    "granuloma": Vocabulary(
        ("calcified granuloma", "calcified nodule"),
        {
            side: (Ellipse(x, y, 0.045, 0.045), (f"in the {side} lung", f"in the {side} zone"))
            for side, (x, y) in _LUNGS.items()
        },
    ),
}
DEVICE_SENTENCES = ("A {name} is {place}.", "There is a {name} {place}.", "Note is made of a {name} {place}.")


class Normal(NamedTuple):
    """Something that is as it should be.

    Attributes:
        sentences: ways to say it.
        where: what is looked at.
        unless: the finding that it contradicts, if any.
    """

    sentences: tuple[str, ...]
    where: tuple[Ellipse, ...]
    unless: str = ""


NORMAL: tuple[Normal, ...] = (
    Normal(
        ("The heart is normal in size.", "The cardiac silhouette is within normal limits.", "Normal heart size."),
        (Ellipse(0.55, 0.62, 0.14, 0.14),),
        "Cardiomegaly",
    ),
    Normal(
        ("There is no pleural effusion.", "The costophrenic angles are sharp.", "No pleural fluid."),
        (Ellipse(0.21, 0.80, 0.08, 0.07), Ellipse(0.79, 0.80, 0.08, 0.07)),
        "Pleural Effusion",
    ),
    Normal(
        ("There is no pneumothorax.", "No pneumothorax is seen.", "Both apices are clear."),
        (Ellipse(0.32, 0.18, 0.07, 0.06), Ellipse(0.68, 0.18, 0.07, 0.06)),
    ),
    Normal(
        ("The mediastinum is unremarkable.", "The mediastinal contours are normal.", "The trachea is midline."),
        (Ellipse(0.50, 0.28, 0.06, 0.14),),
    ),
    Normal(
        ("The bones are intact.", "No rib fracture.", "The visualized ribs are unremarkable."),
        (Ellipse(0.13, 0.50, 0.05, 0.20), Ellipse(0.87, 0.50, 0.05, 0.20)),
    ),
)
VIEWS: Mapping[str, Normal] = {
    "AP": Normal(("This is an AP view.", "Portable AP radiograph."), (MARKER,)),
    "PA": Normal(("This is a PA view.", "Upright PA radiograph."), (MARKER,)),
}


def chosen(options: Sequence[str], pick: Pick) -> str:
    """One of the options at random."""
    return options[int(pick.integers(len(options)))]


def finding_sentence(finding: str, place: str, severity: str, pick: Pick) -> str:
    """A sentence that names a finding, its severity and its place, in some of the words for them."""
    words = FINDINGS[finding]
    return _capital(
        chosen(SENTENCES, pick).format(
            severity=chosen(SEVERITIES[severity], pick),
            name=chosen(words.names, pick),
            place=chosen(words.places[place][1], pick),
        )
    )


def sign_sentence(finding: str, place: str, pick: Pick) -> str:
    """A sentence that says a finding without its name."""
    words = FINDINGS[finding]
    return chosen(words.signs, pick).format(place=chosen(words.places[place][1], pick))


def device_sentence(device: str, place: str, pick: Pick) -> str:
    """A sentence that names a device and its place."""
    words = DEVICES[device]
    sentence = chosen(DEVICE_SENTENCES, pick)
    return sentence.format(name=chosen(words.names, pick), place=chosen(words.places[place][1], pick))


def phrase(finding: str, place: str, severity: str) -> str:
    """What a box is called, such as `moderate pleural effusion at the left costophrenic angle`."""
    words = FINDINGS[finding]
    return f"{severity} {words.names[0]} {words.places[place][1][0]}"


def prompts(finding: str) -> tuple[str, ...]:
    """Phrases that say the finding: severity, name, place, in every combination."""
    words = FINDINGS[finding]
    return tuple(
        f"{severity} {name} {place[0]}"
        for severity in SEVERITIES
        for name in words.names
        for _, place in words.places.values()
    )


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
