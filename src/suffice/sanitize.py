"""Make untrusted text safe for terminals, which obey control characters, and spreadsheets, which compute formulas."""

from __future__ import annotations

import csv
import io
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

_JOINERS: Final = "\u200c\u200d"
_UNSHOWN: Final = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def printable(text: str) -> str:
    """Return text on one line, with control, format and unassigned characters replaced by U+FFFD.

    The two joiners (U+200C, U+200D) are kept, because Persian and Hindi cannot be written without them.
    """
    return "".join("\ufffd" if c not in _JOINERS and unicodedata.category(c) in _UNSHOWN else c for c in text)


def printable_text(text: str) -> str:
    """Return text as `printable` does, with its line breaks and tabs."""
    if text.isprintable():
        return text
    return "".join(c if c in "\r\n\t" else printable(c) for c in text)


def printable_lines(text: str) -> Iterator[str]:
    return (printable(line.replace("\t", "    ")) for line in text.splitlines())


def plural(n: float, one: str, many: str | None = None) -> str:
    """Return a count with its noun.

    >>> [plural(1, "route"), plural(2, "route"), plural(1_000, "class", "classes")]
    ['1 route', '2 routes', '1,000 classes']
    """
    return f"{n:,.0f} {one if n == 1 else many or one + 's'}"


# First characters of a formula, behind any quotes and white space.
FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_IN_FRONT: Final = "' \u00a0"


def format_cell(value: object) -> str:
    """Return a value as the text of a CSV cell, "" for None. Text that looks like a formula gets a leading quote."""
    if value is None:
        return ""
    text = str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Text that already has a quote gets a second one, so that `text_in` can undo this.
    return f"'{text}" if computes(text) and not is_number else text


def text_in(cell: str) -> str:
    """Return the text of a cell without the quote that `format_cell` added."""
    return cell[1:] if cell[:1] == "'" and computes(cell) else cell


def computes(text: str) -> bool:
    return text.lstrip(_IN_FRONT).startswith(FORMULA)


def format_csv(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([format_cell(row.get(column)) for column in columns] for row in rows)
    return written.getvalue()
