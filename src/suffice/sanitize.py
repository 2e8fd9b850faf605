"""Text of strangers, such as a name, an answer or a reason, as a terminal or a spreadsheet may have it. Pure.

A terminal obeys what it is sent, a name can turn the text behind it round, and a spreadsheet computes formulas.
"""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

_JOINERS: Final = "\u200c\u200d"
_UNSHOWN: Final = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def printable(text: str) -> str:
    """A text in one line as it may be shown: what moves a cursor, turns the text round or is no character is replaced.

    The two joiners (U+200C, U+200D) stay: Persian, Hindi and others cannot be written without them.
    """
    return "".join("\ufffd" if c not in _JOINERS and unicodedata.category(c) in _UNSHOWN else c for c in text)


def printable_lines(text: str) -> Iterator[str]:
    """The lines of a text, each as it may be shown; a tab is four spaces."""
    return (printable(line.replace("\t", "    ")) for line in text.splitlines())


def plural(n: float, one: str, many: str | None = None) -> str:
    """A count with its noun.

    >>> [plural(1, "route"), plural(2, "route"), plural(1_000, "class", "classes")]
    ['1 route', '2 routes', '1,000 classes']
    """
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"


# How a cell begins that a spreadsheet would compute, whatever quotes and white space stand in front of it.
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_IN_FRONT: Final = "' \u00a0"


def format_cell(value: object) -> str:
    """A value as text of a cell; None is empty. Words that begin like a formula get a quote in front."""
    if value is None:
        return ""
    text = str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # With a quote of its own in front it is quoted once more, so that whoever reads it back can tell the two apart.
    return f"'{text}" if computes(text) and not is_number else text


def text_in(cell: str) -> str:
    """What stands in a cell, without the quote that `format_cell` put there."""
    return cell[1:] if cell[:1] == "'" and computes(cell) else cell


def computes(text: str) -> bool:
    """Would a spreadsheet take it for a formula, were it not quoted?"""
    return text.lstrip(_IN_FRONT).startswith(FORMULA)


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV with a header."""
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([format_cell(row.get(column)) for column in columns] for row in rows)
    return written.getvalue()
