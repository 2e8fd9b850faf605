"""Tables as CSV that a spreadsheet opens without running anything in them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from suffice import cells


def format_csv_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(heads)
    writer.writerows([format_csv_cell(value) for value in row] for row in rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode("utf-8", "replace")


def format_csv_cell(value: object) -> str:
    """A value as a cell: numbers as they are, text inert.

    >>> [format_csv_cell(x) for x in (None, -1.5, "=1+1", " @SUM(A1)", "fine", True)]
    ['', '-1.5', "'=1+1", "' @SUM(A1)", 'fine', 'yes']
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    return cells.format_cell(value.replace("\x00", "") if isinstance(value, str) else value)
