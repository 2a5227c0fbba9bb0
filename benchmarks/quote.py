"""Quote tables of benchmarks/results/ in README and docs: `python benchmarks/quote.py` writes them, `--check` compares.

A page marks where a table goes:

    <!-- table: benchmarks/results/digits/summary.md; section: digits; number: 1; columns: method | seeds; rows: ERM -->
    <!-- /table -->

`section` is the start of a `###` heading of the file (the whole file when left out), `number` counts the tables from 1,
`columns` and `rows` choose some by name (all when left out). Whatever stands between the marks is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARKED = re.compile(r"(<!-- table: (?P<what>[^\n]+?) -->\n).*?(<!-- /table -->)", re.S)
CELLS = re.compile(r"(?<!\\)\|")

Table = list[list[str]]


class QuoteError(ValueError):
    """A mark that names no table; the message says what there is."""


def pages(root: Path = ROOT) -> list[Path]:
    """README and every page of docs/."""
    return [root / "README.md", *sorted((root / "docs").rglob("*.md"))]


def filled(text: str, root: Path = ROOT) -> str:
    """The text of a page with every marked table as the results have it.

    Args:
        text: Markdown with marks.
        root: folder that the files named in marks are relative to.

    Raises:
        QuoteError: when a mark names a file, section, table, column or row that is not there.
    """
    return MARKED.sub(lambda mark: f"{mark[1]}{quoted(mark['what'], root)}\n{mark[3]}", text)


def quoted(what: str, root: Path = ROOT) -> str:
    """The Markdown of the table that a mark names."""
    file, *settings = (part.strip() for part in what.split(";"))
    options = {key: value.strip() for key, _, value in (setting.partition(":") for setting in settings)}
    if unknown := set(options) - {"section", "number", "columns", "rows"}:
        raise QuoteError(f"'{what}': unknown {sorted(unknown)}; expected section, number, columns, rows")
    if not (root / file).is_file():
        raise QuoteError(f"'{what}': there is no {file}; a benchmark writes it")
    text = _section((root / file).read_text(encoding="utf-8"), options.get("section", ""), what)
    found = tables(text)
    number = int(options.get("number", 1))
    if not 1 <= number <= len(found):
        raise QuoteError(f"'{what}': there are {len(found)} tables, and number is {number}")
    head, *body = found[number - 1]
    columns = _chosen(options.get("columns", ""), head, what)
    rows = _chosen(options.get("rows", ""), [row[0] for row in body], what)
    lines = [head, ["---"] * len(head), *(body[row] for row in rows)]
    return "\n".join("| " + " | ".join(line[column] for column in columns) + " |" for line in lines)


def tables(text: str) -> list[Table]:
    """All tables of a Markdown text: lists of rows of cells, the head first, its rule left out."""
    found: list[Table] = []
    inside = False
    for line in text.splitlines():
        if not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in CELLS.split(line.strip().removeprefix("|").removesuffix("|"))]
        if not inside:
            found.append([])
            inside = True
        if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
            found[-1].append(cells)
    return found


def _section(text: str, start: str, what: str) -> str:
    if not start:
        return text
    parts = re.split(r"^### ", text, flags=re.M)[1:]
    own = [part for part in parts if re.match(rf"{re.escape(start)}\b", part)]
    if not own:
        raise QuoteError(f"'{what}': no section '{start}'; there are {[part.splitlines()[0] for part in parts]}")
    return own[0]


def _chosen(names: str, known: list[str], what: str) -> list[int]:
    if not names:
        return list(range(len(known)))
    wanted = [name.strip() for name in names.split("|")]
    if missing := [name for name in wanted if name not in known]:
        raise QuoteError(f"'{what}': no {missing}; there are {known}")
    return [index for name in wanted for index, each in enumerate(known) if each == name]


def main() -> None:
    """Write or check the quoted tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; end with 1 when a page differs")
    check = parser.parse_args().check
    differing = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        new = filled(text)
        if new != text:
            differing.append(page.relative_to(ROOT).as_posix())
            if not check:
                page.write_text(new, encoding="utf-8")
    verb = "differ from the results" if check else "were written"
    print(f"{', '.join(differing) or 'no page'} {verb}")
    sys.exit(check and bool(differing))


if __name__ == "__main__":
    main()
