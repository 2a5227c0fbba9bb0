"""Published tables are those of the results."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
quote = runpy.run_path(str(ROOT / "benchmarks" / "quote.py"))
filled, tables, QuoteError = quote["filled"], quote["tables"], quote["QuoteError"]

RESULTS = """\
Written by a command.

### digits (embedded): number

| method | seeds | accuracy |
|---|---|---|
| ERM | 3 | .5 |
| ERM, resampled | 3 | .7 |

| method | dominance |
|---|---|
| ERM, resampled | .9 |

### other: number

| method | seeds |
|:--|--:|
| ERM | 1 |
"""


def mark(settings: str, inside: str = "") -> str:
    return f"Before.\n\n<!-- table: summary.md{settings} -->\n{inside}<!-- /table -->\n\nAfter.\n"


@pytest.fixture
def results(tmp_path):
    (tmp_path / "summary.md").write_text(RESULTS)
    return tmp_path


@pytest.mark.parametrize("page", quote["pages"](), ids=lambda page: page.name)
def test_every_page_has_the_tables_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert filled(text) == text, "run: python benchmarks/quote.py"


def test_the_pages_with_results_quote_them():
    for page in ("README.md", "docs/methods/mimmx.md", "docs/methods/egma.md", "docs/methods/neurolip.md"):
        assert "<!-- table: benchmarks/results/" in (ROOT / page).read_text(encoding="utf-8"), page


def test_a_number_changed_by_hand_is_seen(results):
    text = filled(mark(""), results)
    assert filled(text, results) == text
    assert filled(text.replace(".7", ".8"), results) == text


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("; rows: ERM, resampled", [["method", "seeds", "accuracy"], ["ERM, resampled", "3", ".7"]]),
        ("; section: digits; number: 2", [["method", "dominance"], ["ERM, resampled", ".9"]]),
        ("; section: other; columns: seeds", [["seeds"], ["1"]]),
        ("; columns: accuracy | method; rows: ERM", [["accuracy", "method"], [".5", "ERM"]]),
    ],
)
def test_part_of_a_table(results, settings, expected):
    text = filled(mark(settings, "old words\n"), results)
    assert text.startswith("Before.") and text.endswith("After.\n") and "old words" not in text
    assert tables(text) == [expected]


def test_two_tables_of_one_page_are_kept_apart(results):
    text = filled(mark("; number: 1") + mark("; number: 3"), results)
    assert [len(table[0]) for table in tables(text)] == [3, 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("; section: nobody", "no section 'nobody'"),
        ("; number: 4", "there are 3 tables"),
        ("; rows: GroupDRO", "no ['GroupDRO']; there are ['ERM', 'ERM, resampled']"),
        ("; columns: auroc", "no ['auroc']"),
        ("; colums: auroc", "unknown ['colums']"),
    ],
)
def test_a_mark_that_names_nothing_says_what_there_is(results, settings, words):
    with pytest.raises(QuoteError) as error:
        filled(mark(settings), results)
    assert words in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(QuoteError, match=r"there is no summary\.md"):
        filled(mark(""), tmp_path)


def test_rows_of_the_same_name_are_all_quoted(results):
    (results / "summary.md").write_text("| method | seeds |\n|---|---|\n| ERM | 1 |\n| ERM | 2 |\n| other | 3 |\n")
    assert filled(mark(""), results).count("| ERM | 2 |") == 1
    assert tables(filled(mark("; rows: ERM"), results))[0][1:] == [["ERM", "1"], ["ERM", "2"]]
