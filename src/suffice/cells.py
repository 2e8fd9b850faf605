"""Cells of a table for other programs: what a spreadsheet would take for a formula is text there, and is read back.

Pure. Refuses to know files and columns.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

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
