"""Spoken and written reports as sentences: one splitter for plain text and for words with times."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from medprism.data.errors import DataError

TITLES = frozenset({"dr", "drs", "mr", "mrs", "ms", "prof", "st"})
ABBREVIATIONS = TITLES | {"e.g", "i.e", "vs", "cf", "fig", "approx", "resp", "incl"}
"""In lower case without the last period: a sentence goes on after them."""

TOLERANCE = 1e-3
"""Seconds; times that differ by less are the same, as tables are rounded."""

LONGEST_SWAP = 10.0
"""Seconds; begin and end of a word are taken for exchanged when they lie no further apart than this."""

END = re.compile(r"""[.!?]+["'”)\]]*(?=\s|$)|(?<=[a-z]{3})\.(?=[A-Z])""")
OPENING, CLOSING = re.compile(r"[(\[{“]+"), re.compile(r"[.,;:!?%)\]}”]+")


class Word(NamedTuple):
    """A word, a phrase or a punctuation mark of a transcript, and when it was said.

    Attributes:
        text: as transcribed; a phrase may hold punctuation, and a mark may be a word of its own.
        start: seconds on the reading's clock; NaN where unknown.
        end: seconds on the reading's clock; NaN where unknown.
    """

    text: str
    start: float
    end: float


class Sentence(NamedTuple):
    """A sentence, and when it was said.

    Attributes:
        text: the sentence with its punctuation, whitespace squeezed.
        start: begin of its first word, in seconds on the clock of the words; NaN where unknown.
        end: end of its last word; NaN where unknown.
    """

    text: str
    start: float
    end: float


def split_text(text: str) -> list[str]:
    """The sentences of a report, whitespace squeezed; those without a letter are left out.

    A sentence ends at `.`, `!` or `?` before whitespace (and where the space is missing, as in `normal.No`), and at an
    empty line. It goes on after the period of 3.5, of titles and abbreviations (Dr., e.g.), of No. before a number, and
    of the initials of a name.
    """
    paragraphs = re.split(r"\n\s*\n", re.sub(r"\r\n?", "\n", text))
    squeezed = [" ".join(paragraph.split()) for paragraph in paragraphs]
    found = [paragraph[first:last] for paragraph in squeezed for first, last in _spans(paragraph)]
    return [sentence for sentence in found if _has_letter(sentence)]


def sentences_of(words: Sequence[Word], source: str) -> tuple[list[Sentence], dict[str, int]]:
    """The sentences of a transcript by the rule of `split_text`, and when they were said.

    A sentence lasts from the begin of its first word to the end of its last one. Where it ends inside a phrase, the
    phrase's time is divided in proportion to its characters. Words without times give their text alone.

    Args:
        words: in the order of the transcript: words, phrases, and punctuation marks.
        source: how an error names the transcript.

    Returns:
        The sentences, and how often what was mended or left out (reason -> count): words that stand out of order are
        sorted by their begin (untimed ones stay behind the word before them), exchanged begins and ends are exchanged
        back, overlapping words are only counted.

    Raises:
        DataError: when a time is infinite, or a word ends long before it begins.
    """
    counts: Counter[str] = Counter()
    said = _in_order(list(_checked(words, source, counts)), counts)
    text, starts = "", []
    for word in said:
        if text and not CLOSING.fullmatch(word.text) and not OPENING.fullmatch(text[text.rfind(" ") + 1 :]):
            text += " "
        starts.append(len(text))
        text += word.text
    sentences = []
    for first, last in _spans(text):
        if _has_letter(text[first:last]):
            sentences.append(Sentence(text[first:last], *_clock(said, starts, first, last)))
        else:
            counts["sentence without a letter, left out"] += 1
    return sentences, dict(counts)


# --------------------------------------------------------------------------------------------------------------- text
def _spans(text: str) -> list[tuple[int, int]]:
    """First and last (exclusive) character of each sentence in text whose whitespace is squeezed."""
    found, first = [], 0
    for match in END.finditer(text):
        if _ends(text, first, match.start(), match.end()):
            found.append((first, match.end()))
            first = match.end() + (text[match.end() : match.end() + 1] == " ")
    if first < len(text):
        found.append((first, len(text)))
    return found


def _ends(text: str, first: int, mark: int, after: int) -> bool:
    """Whether a sentence that began at `first` ends with the marks at `mark`; the next one would begin at `after`."""
    if text[mark - 1 : mark] in ("(", "["):  # (?) is a remark, no end
        return False
    if text[mark:after] != ".":
        return True
    before = text[first:mark].split(" ")
    token, following = before[-1].lstrip("(["), text[after:].lstrip()
    lower = token.lower()
    if lower in ABBREVIATIONS:
        return False
    if lower == "no":
        return not following[:1].isdigit()
    if re.fullmatch(r"(?:[a-z]\.)+[a-z]", lower):  # p.m. and the like
        return not following or following[0].isupper()
    if re.fullmatch(r"[A-Z]", token) and following[:1].isupper():
        return not _before_initial(before[:-1])
    return True


def _before_initial(before: Sequence[str]) -> bool:
    """Whether what stands before a single letter makes it an initial: nothing, a title, an initial, or a name."""
    if not before or before[-1].rstrip(".").lower() in TITLES:
        return True
    return bool(re.fullmatch(r"[A-Z]\.", before[-1])) or (
        len(before) > 1 and bool(re.fullmatch(r"[A-Z]\w+", before[-1]))
    )


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


# ----------------------------------------------------------------------------------------------------------------- time
def _checked(words: Sequence[Word], source: str, counts: Counter[str]) -> Iterator[Word]:
    """The words with whitespace squeezed, and begin before end."""
    for row, (raw, start, end) in enumerate(words, 1):
        text = " ".join(raw.split())
        if not text:
            counts["word without text, left out"] += 1
            continue
        if math.isinf(start) or math.isinf(end):
            raise DataError(
                f"{source}, word {row} ('{text}') lasts from {start} to {end}; expected seconds, or nothing where they "
                "are not known"
            )
        if start - end > LONGEST_SWAP:
            raise DataError(
                f"{source}, word {row} ('{text}') begins at {start:g} s and ends before that, at {end:g} s; mend its "
                "times, or leave them empty"
            )
        if start - end > TOLERANCE:
            counts["word that ends before it begins, times exchanged"] += 1
            start, end = end, start
        if math.isnan(start) and math.isnan(end) and _is_spoken(text):
            counts["word without a time, kept as text"] += 1
        yield Word(text, start, end)


def _in_order(words: list[Word], counts: Counter[str]) -> list[Word]:
    """The words in the order of their begins; as they stand, when only marks are out of order."""
    starts = [word.start for word in words if _is_spoken(word.text) and not math.isnan(word.start)]
    back = sum(later < earlier - TOLERANCE for earlier, later in pairwise(starts))
    if back:
        counts["word that begins before the one before it, sorted"] += back
        keys, latest = [], -math.inf
        for word in words:
            latest = latest if math.isnan(word.start) else word.start
            keys.append(latest)
        words = [words[k] for k in sorted(range(len(words)), key=keys.__getitem__)]
    timed = [word for word in words if _is_spoken(word.text) and not math.isnan(word.start + word.end)]
    overlaps = sum(later.start < earlier.end - TOLERANCE for earlier, later in pairwise(timed))
    if overlaps:
        counts["word that begins before the one before it ends"] += overlaps
    return words


def _clock(words: Sequence[Word], starts: Sequence[int], first: int, last: int) -> tuple[float, float]:
    """First and last known second of what is spoken in the characters from `first` to `last` of the text.

    Args:
        words: those of the text.
        starts: the position of each in the text.
        first: a position.
        last: a position, exclusive.
    """
    known: list[float] = []
    for k in range(bisect_right(starts, first) - 1, bisect_left(starts, last)):
        word, low, high = words[k], max(first - starts[k], 0), min(last - starts[k], len(words[k].text))
        if _is_spoken(word.text[low:high]):
            known += [second for second in (_when(word, low), _when(word, high)) if not math.isnan(second)]
    return (min(known), max(known)) if known else (math.nan, math.nan)


def _when(word: Word, character: int) -> float:
    """Second at which that many characters of a word have been said."""
    if character in (0, len(word.text)):
        return word.end if character else word.start
    return word.start + (word.end - word.start) * character / len(word.text)


def _is_spoken(text: str) -> bool:
    """Whether it is more than punctuation."""
    return any(character.isalnum() for character in text)
