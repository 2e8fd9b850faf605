"""Cells of a table for other programs: what a spreadsheet would take for a formula is text there."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r", "\n")  # how a cell begins that a spreadsheet would compute


def cell(value: object) -> str:
    """A value as text of a cell; None is empty. Words that begin like a formula get a quote in front."""
    if value is None:
        return ""
    text = str(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # With a quote of its own in front it is quoted once more, so that whoever reads it back can tell the two apart.
    return f"'{text}" if text.lstrip("'").startswith(FORMULA) and not is_number else text


def table(columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Rows as CSV with a header."""
    written = io.StringIO()
    lines = csv.writer(written, lineterminator="\n")
    lines.writerow(columns)
    lines.writerows([cell(row.get(column)) for column in columns] for row in rows)
    return written.getvalue()
