"""Reads the rows of a table from CSV, JSON lines, or Parquet; errors name file, row and column.

Removes the quote that our exports put before cells that a spreadsheet would take for a formula.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from suffice.errors import TraceError
from suffice.replay.traces.formats import open_parquet
from suffice.sanitize import text_in

MOST_CELL_CHARS: Final = 200_000
BATCH_ROWS: Final = 1_000

Row = tuple[int, dict[str, Any]]  # number of the row, from 1 after the header, and its cells by column


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, whose suffix names its format. Raise TraceError."""
    suffix, number = path.suffix.lower(), 0
    if suffix not in _READERS:
        raise TraceError(f"has an unknown suffix; allowed: {', '.join(_READERS)}", file=str(path))
    try:
        for number, row in _READERS[suffix](path):
            yield number, row
    except csv.Error as error:
        raise TraceError(f"is not valid CSV: {error}", file=str(path), row=number + 1) from None
    except UnicodeDecodeError as error:
        raise TraceError(f"is not UTF-8 at byte {error.start}", file=str(path), row=number + 1) from None
    except OSError as error:
        raise TraceError(f"cannot be read ({error.strerror})", file=str(path)) from None


def _read_csv(path: Path) -> Iterator[Row]:
    csv.field_size_limit(MOST_CELL_CHARS)
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
        rows = csv.reader(file, strict=True)
        header = next(rows, [])
        if not any(header):
            raise TraceError("is empty; its first line must name the columns", file=str(path))
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise TraceError("appears twice in the header", file=str(path), column=repeated or '""')
        for number, cells in enumerate((cells for cells in rows if cells), 1):  # skip empty lines
            if len(cells) != len(header):
                problem = f"has {len(cells)} cells, and the header {len(header)}"
                raise TraceError(problem, file=str(path), row=number)
            yield number, {name: text_in(cell) for name, cell in zip(header, cells, strict=True)}


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise TraceError(f"is not valid JSON: {error}", file=str(path), row=number) from None
            if not isinstance(row, dict):
                raise TraceError("must be a JSON object", file=str(path), row=number)
            yield number, row


def _read_parquet(path: Path) -> Iterator[Row]:
    with open_parquet(path) as file:
        rows = (row for batch in file.iter_batches(batch_size=BATCH_ROWS) for row in batch.to_pylist())
        yield from enumerate(rows, 1)


_READERS = {".csv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".parquet": _read_parquet}
