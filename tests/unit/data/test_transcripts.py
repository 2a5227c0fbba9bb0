from __future__ import annotations

import math
import re

import pytest

from medprism.data.errors import DataError
from medprism.data.transcripts import Sentence, Word, sentences_of, split_text

NAN = math.nan
REPORT = (
    "The heart is 3.5 cm wide, as Dr. J. Smith said (e.g. in report No. 2). No pneumothorax! Is there an effusion? "
    "No. Lungs are clear at 5 p.m. The catheter ends at T4. Signed by John Q. Public."
)
SENTENCES = [
    "The heart is 3.5 cm wide, as Dr. J. Smith said (e.g. in report No. 2).",
    "No pneumothorax!",
    "Is there an effusion?",
    "No.",
    "Lungs are clear at 5 p.m.",
    "The catheter ends at T4.",
    "Signed by John Q. Public.",
]


def spoken(text: str, seconds: float = 0.5) -> list[Word]:
    """Words of half a second each, every closing mark a row of its own."""
    tokens = [token for part in text.split() for token in re.fullmatch(r"(.*?)([.,;:!?)]*)", part).groups() if token]
    return [Word(token, seconds * k, seconds * (k + 1)) for k, token in enumerate(tokens)]


def texts(words: list[Word]) -> list[str]:
    return [sentence.text for sentence in sentences_of(words, "talk.csv")[0]]


def test_text_words_and_phrases_give_the_same_sentences() -> None:
    parts = REPORT.split(" ")
    phrases = [" ".join(parts[k : k + 4]) for k in range(0, len(parts), 4)]
    assert split_text(REPORT) == SENTENCES
    assert texts(spoken(REPORT)) == SENTENCES
    assert texts([Word(f" {phrase} ", k, k + 1) for k, phrase in enumerate(phrases)]) == SENTENCES
    assert texts([Word(REPORT, 0, 10)]) == SENTENCES


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("  \n ___ . 12. ", []),
        ("normal heart", ["normal heart"]),
        ("Wrapped\r\nline.\r\n \r\nHeading\n\nNext", ["Wrapped line.", "Heading", "Next"]),
        ("Heart normal.No effusion.", ["Heart normal.", "No effusion."]),
        ("1. No effusion. 2. Normal heart.", ["No effusion.", "Normal heart."]),
        ("A. B. Jones read it. J. Doe, too.", ["A. B. Jones read it.", "J. Doe, too."]),
        ("History of hepatitis C. Lungs are clear.", ["History of hepatitis C.", "Lungs are clear."]),
        ("Opacity (?) on the left. (Seen before.) Stable.", ["Opacity (?) on the left.", "(Seen before.)", "Stable."]),
        ('It is "clear." Really?! Yes...', ['It is "clear."', "Really?!", "Yes..."]),
        ("Edema vs. pneumonia, approx. 3 x .5 cm", ["Edema vs. pneumonia, approx. 3 x .5 cm"]),
        ("Pneumothorax? no. effusion? no.", ["Pneumothorax?", "no.", "effusion?", "no."]),
        ("Épanchement à gauche. Cœur normal.", ["Épanchement à gauche.", "Cœur normal."]),
    ],
)
def test_where_sentences_end(text: str, sentences: list[str]) -> None:
    assert split_text(text) == sentences
    if "\n\n" not in text.replace("\r", "").replace(" ", ""):  # words know no paragraphs
        assert texts(spoken(text)) == sentences
        assert texts([Word(text, 0, 1)]) == sentences


def test_sentences_without_a_letter_are_counted() -> None:
    assert sentences_of(spoken("1. Clear. 2."), "talk.csv") == (
        [Sentence("Clear.", 1, 1.5)],
        {"sentence without a letter, left out": 2},
    )


def test_clock_runs_from_first_word_to_last_word() -> None:
    words = [Word("heart", 1, 1.4), Word("normal", 1.5, 2), Word(".", 2, 3.5), Word("no", 4, 4.2), Word("mass", 5, 6)]
    assert sentences_of(words, "talk.csv") == ([Sentence("heart normal.", 1, 2), Sentence("no mass", 4, 6)], {})


def test_phrase_is_divided_in_proportion_to_its_characters() -> None:
    words = [Word("no effusion.", 0, 2), Word("heart size is normal. no", 2, 6.8), Word("mass.", 7, 8)]
    (first, second, third), counts = sentences_of(words, "talk.csv")
    assert first == ("no effusion.", 0, 2) and not counts
    assert second == ("heart size is normal.", 2, pytest.approx(2 + 4.8 * 21 / 24))
    assert third == ("no mass.", pytest.approx(2 + 4.8 * 22 / 24), 8)


def test_words_without_times_keep_their_text() -> None:
    words = [Word("the", NAN, NAN), Word("heart", 1, 2), Word("normal", NAN, NAN), Word(".", NAN, NAN)]
    sentences, counts = sentences_of([*words, Word("clear.", NAN, NAN)], "talk.csv")
    assert sentences[0] == ("the heart normal.", 1, 2)
    assert sentences[1].text == "clear." and math.isnan(sentences[1].start) and math.isnan(sentences[1].end)
    assert counts == {"word without a time, kept as text": 3}
    half, _ = sentences_of([Word("no", 1, NAN), Word("mass", NAN, 3)], "talk.csv")
    assert half == [("no mass", 1, 3)]


def test_words_out_of_order_are_sorted_and_counted() -> None:
    words = spoken("Heart normal. Lungs are clear.")
    shuffled = [words[k] for k in (3, 4, 5, 6, 0, 1, 2)]
    assert sentences_of(shuffled, "talk.csv") == (
        sentences_of(words, "talk.csv")[0],
        {"word that begins before the one before it, sorted": 1},
    )


def test_marks_without_a_clock_of_their_own_stay_in_place() -> None:
    words = [Word(word.text, 0, 0) if word.text == "." else word for word in spoken("Heart normal. Lungs clear.")]
    assert sentences_of(words, "talk.csv") == ([("Heart normal.", 0, 1), ("Lungs clear.", 1.5, 2.5)], {})


def test_overlapping_and_exchanged_times_are_counted() -> None:
    words = [Word("no", 0, 1.5), Word("mass", 1, 2), Word("seen.", 3, 2), Word("Clear.", 3.0005, 4)]
    assert sentences_of(words, "talk.csv") == (
        [("no mass seen.", 0, 3), ("Clear.", 3.0005, 4)],
        {"word that begins before the one before it ends": 1, "word that ends before it begins, times exchanged": 1},
    )


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (35.2, 0.0, "begins at 35.2 s and ends before that, at 0 s"),
        (1.0, math.inf, "from 1.0 to inf; expected seconds"),
    ],
)
def test_impossible_times_are_refused(start: float, end: float, message: str) -> None:
    with pytest.raises(DataError, match=rf"^talk\.csv, word 2 \('mass'\) .*{message}"):
        sentences_of([Word("no", 0, 1), Word("mass", start, end)], "talk.csv")


def test_no_words() -> None:
    assert sentences_of([], "talk.csv") == ([], {})
    assert sentences_of([Word(" ", 0, 1)], "talk.csv") == ([], {"word without text, left out": 1})
