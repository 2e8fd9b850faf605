"""Reads and writes recorded runs as JSON lines, one run per line, and as Parquet (needs pyarrow), in bounded chunks."""

from __future__ import annotations

import csv
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.extras import how_to_install
from suffice.files import open_unpacked
from suffice.replay.traces.columns import TextColumn, TraceColumns
from suffice.replay.traces.rows import MOST, RUN_COLUMNS, STEP_COLUMNS, Column, RunRow, decode_row
from suffice.sanitize import text_in

SUFFIXES: Final = (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
MOST_EXPANDED_BYTES: Final = 4 * 2**30  # of one row group, as its file states


@dataclass(frozen=True, slots=True)
class FileShard:
    """A part of a file that can be read without the others. Raise TraceError for an unknown suffix."""

    path: Path
    row_group: int | None = None  # of a Parquet file; None: the whole file
    first_row: int = 1  # number of its first row in the file

    def __post_init__(self) -> None:
        if not self.path.name.endswith(SUFFIXES):
            raise TraceError(f"has an unknown suffix; allowed: {', '.join(SUFFIXES)}", file=str(self.path))

    def __str__(self) -> str:
        return f"{self.path}" if self.row_group is None else f"{self.path}, row group {self.row_group}"


def split_file(path: Path) -> list[FileShard]:
    """The row groups of a Parquet file, or another file as a whole. Raise TraceError."""
    if path.suffix != ".parquet":
        return [FileShard(path)]
    shards, first = list[FileShard](), 1
    with open_parquet(path) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if not 0 <= group.total_byte_size <= MOST_EXPANDED_BYTES:
                problem = f"would take {group.total_byte_size:,} bytes in memory; at most {MOST_EXPANDED_BYTES:,}"
                raise TraceError(f"{problem} in one row group", file=str(path), row=first)
            shards.append(FileShard(path, number, first))
            first += group.num_rows
    return shards


def read_shard(shard: FileShard, *, batch_rows: int) -> Iterator[TraceColumns]:
    read = read_parquet(shard, batch_rows=batch_rows) if shard.path.suffix == ".parquet" else None
    return read or read_jsonl(shard.path, batch_rows=batch_rows)


def read_jsonl(path: Path, *, batch_rows: int) -> Iterator[TraceColumns]:
    """Read chunks, gzipped if the suffix is `.gz`. Skips blank lines but numbers them. Raise TraceError."""
    rows: list[RunRow] = []
    numbers: list[int] = []
    try:
        with open_unpacked(path) as file:
            for number, line in enumerate(file, start=1):
                if line.isspace():
                    continue
                rows.append(decode_row(line, str(path), number))
                numbers.append(number)
                if len(rows) >= batch_rows:
                    yield _columns(rows, numbers, str(path))
                    rows, numbers = [], []
    except (OSError, EOFError, zlib.error) as error:  # gzip raises any of these
        raise TraceError(f"cannot be read: {error}", file=str(path)) from error
    if rows:
        yield _columns(rows, numbers, str(path))


def _columns(rows: Sequence[RunRow], numbers_of_rows: Sequence[int], file: str) -> TraceColumns:
    steps = [step for row in rows for step in row.steps]
    lengths = [len(row.steps) for row in rows]
    by_run = {name: [getattr(row, name) for row in rows] for name in RUN_COLUMNS}
    by_run["n_steps"] = [n if row.n_steps is None else row.n_steps for row, n in zip(rows, lengths, strict=True)]
    by_step = {name: [getattr(step, name) for step in steps] for name in STEP_COLUMNS}
    logprobs = by_step.pop("logprobs")
    texts, numbers = _by_type(by_run, RUN_COLUMNS)
    step_texts, step_numbers = _by_type(by_step, STEP_COLUMNS)
    return TraceColumns(
        file=file,
        row=np.array(numbers_of_rows, dtype=np.int64),
        offset=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        texts=texts,
        numbers=numbers,
        step_texts=step_texts,
        step_numbers=step_numbers,
        logprobs=[tuple(values) for values in logprobs] if any(logprobs) else None,
    )


def _by_type(
    columns: Mapping[str, Sequence[Any]], forms: Mapping[str, Column]
) -> tuple[dict[str, TextColumn], dict[str, NDArray[np.generic]]]:
    texts = {name: TextColumn.of(values) for name, values in columns.items() if forms[name].type == "text"}
    return texts, {name: _array(values, forms[name]) for name, values in columns.items() if name not in texts}


def _array(values: Sequence[Any], column: Column) -> NDArray[np.generic]:
    if column.type == "number":
        return np.array(values, dtype=np.float64)  # None becomes NaN
    known = [-1 if value is None else value for value in values]
    return np.array(known, dtype=np.int8 if column.type == "flag" else np.int64)


# ---- Parquet


def trace_schema(arrow: Any) -> Any:
    """The columns of a file with runs, those of `rows.RUN_COLUMNS` and then their steps."""
    kinds = {
        "text": arrow.string(),
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "flag": arrow.bool_(),
        "numbers": arrow.list_(arrow.float64()),
    }
    steps = arrow.list_(arrow.struct([(name, kinds[column.type]) for name, column in STEP_COLUMNS.items()]))
    return arrow.schema([*((name, kinds[column.type]) for name, column in RUN_COLUMNS.items()), ("steps", steps)])


MOST_STEPS: Final = 2_000_000  # per chunk, on average; longer runs get fewer rows

# pyarrow has no types, so its results are Any until they are numpy arrays.


def read_parquet(shard: FileShard, *, batch_rows: int) -> Iterator[TraceColumns]:
    path, first = str(shard.path), shard.first_row
    texts = _text_paths(shard.path)
    with open_parquet(shard.path, read_dictionary=texts, pre_buffer=False, buffer_size=1 << 20) as file:
        names = _check_schema(file.schema_arrow, path)
        groups = range(file.num_row_groups) if shard.row_group is None else [shard.row_group]
        n_rows = _rows(file, batch_rows, groups)
        archived = REPLAYABLE in file.schema_arrow.names
        columns = [*names, REPLAYABLE] if archived else names
        for batch in file.iter_batches(batch_size=n_rows, columns=columns, row_groups=groups):
            rows = np.arange(first, first + batch.num_rows, dtype=np.int64)
            first += batch.num_rows
            chosen, rows = _select_replayable(batch, rows) if archived else (batch, rows)
            yield _arrow_columns(chosen, rows, path)


def _text_paths(path: Path) -> list[str]:
    """Columns of text of a run, which stay dictionaries: a long text that every row repeats takes its length once.

    Not those of steps: pyarrow cannot read a nested column whose dictionary changes within a row group.
    """
    with open_parquet(path) as file:
        columns = (file.schema.column(at) for at in range(len(file.schema)))
        return [one.path for one in columns if one.physical_type == "BYTE_ARRAY" and "." not in one.path]


REPLAYABLE: Final = "replayable"  # flag of an archive's rows: the run was full by design


def _select_replayable(batch: Any, rows: NDArray[np.int64]) -> tuple[Any, NDArray[np.int64]]:
    """The replayable rows. A full answer without a label counts as right, so that every stop that differs loses."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kept = pc.fill_null(batch.column(REPLAYABLE), False)
    batch, rows = batch.filter(kept), rows[kept.to_numpy(zero_copy_only=False)]
    columns = {name: batch.column(name) for name in batch.schema.names if name != REPLAYABLE}
    columns["full_em"] = pc.coalesce(columns["full_em"], pc.is_valid(columns["full_answer"]))
    return pa.RecordBatch.from_pydict(columns), rows


@contextmanager
def open_parquet(path: Path, **options: Any) -> Iterator[Any]:
    """A file of pyarrow. Raise TraceError if it cannot be read."""
    pq, arrow = pyarrow("pyarrow.parquet", path), pyarrow("pyarrow", path)
    try:
        with pq.ParquetFile(path, **options) as file:
            yield file
    except (OSError, arrow.ArrowException, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read as Parquet: {error}", file=str(path)) from error


def pyarrow(module: str, path: Path) -> Any:
    """A module of pyarrow, from the extra `replay`. Raise TraceError if it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        problem = f"Parquet needs pyarrow: {how_to_install('replay')}"
        raise TraceError(problem, file=str(path)) from error


def _rows(file: Any, batch_rows: int, groups: Sequence[int]) -> int:
    """Rows per chunk, so that a chunk has at most about MOST_STEPS steps.

    Counts steps in a column, because `RowGroupMetaData.column` aborts the process on damaged statistics (an uncaught
    C++ exception).
    """
    counts = _lengths(file, groups)
    most = max((counts[at : at + batch_rows].mean() for at in range(0, len(counts), batch_rows)), default=1.0)
    return max(1, min(batch_rows, int(MOST_STEPS / max(1.0, most))))


def _lengths(file: Any, groups: Sequence[int]) -> NDArray[np.int64]:
    """The steps of each row: what the file says of them, else counted in a column of numbers."""
    import pyarrow.compute as pc

    paths = [file.schema.column(at).path for at in range(len(file.schema))]
    if "n_steps" in paths:
        column = file.read_row_groups(groups, columns=["n_steps"], use_threads=False)["n_steps"]
    else:
        tokens = [path for path in paths if path.startswith("steps.") and path.endswith(".tokens")]
        column = pc.list_value_length(file.read_row_groups(groups, columns=tokens, use_threads=False)["steps"])
    return np.asarray(column.fill_null(0).to_numpy(), dtype=np.int64)


def _check_schema(schema: Any, file: str) -> list[str]:
    import pyarrow.types as kinds

    def check(fields: Mapping[str, Any], table: Mapping[str, Column], prefix: str) -> None:
        for name, column in table.items():
            kind = fields.get(name)
            if kind is None:
                if column.required:
                    raise TraceError("is missing", file=file, column=prefix + name)
            elif not (_fits(kind, column, kinds) or (kinds.is_null(kind) and not column.required)):
                raise TraceError(f"has the type {kind}; needs {column.type}", file=file, column=prefix + name)

    fields = {field.name: field.type for field in schema}
    check(fields, RUN_COLUMNS | {REPLAYABLE: Column("flag")}, "")
    steps = fields.get("steps")
    if steps is None:
        raise TraceError("is missing", file=file, column="steps")
    if not (_is_list(steps, kinds) and kinds.is_struct(steps.value_type)):
        raise TraceError(f"has the type {steps}; needs a list of structs", file=file, column="steps")
    inner = steps.value_type
    members = (inner.field(i) for i in range(inner.num_fields))
    check({member.name: member.type for member in members}, STEP_COLUMNS, "steps.")
    return [name for name in (*RUN_COLUMNS, "steps") if name in fields]


def _is_list(kind: Any, kinds: Any) -> bool:
    return bool(kinds.is_list(kind) or kinds.is_large_list(kind))


def _fits(kind: Any, column: Column, kinds: Any) -> bool:
    if column.type == "text":
        kind = kind.value_type if kinds.is_dictionary(kind) else kind
        return bool(kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind))
    if column.type == "numbers":
        return _is_list(kind, kinds) and bool(kinds.is_floating(kind.value_type))
    if column.type == "flag":
        return bool(kinds.is_boolean(kind))
    return bool(kinds.is_integer(kind) or (column.type == "number" and kinds.is_floating(kind)))


def _arrow_columns(batch: Any, rows: NDArray[np.int64], file: str) -> TraceColumns:
    import pyarrow as pa
    import pyarrow.compute as pc

    steps = batch.column("steps")
    lengths = pc.fill_null(pc.list_value_length(steps), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = steps.flatten()  # the structs; flatten() on them propagates null to the fields
    inner = {flat.type.field(i).name: array for i, array in enumerate(flat.flatten())}
    logprobs = inner.get("logprobs", pa.array([], pa.list_(pa.float64())))

    def read(arrays: Mapping[str, Any], table: Mapping[str, Column], prefix: str = "") -> tuple[Any, Any]:
        texts: dict[str, TextColumn] = {}
        numbers: dict[str, NDArray[np.generic]] = {}
        for name, column in table.items():
            if name not in arrays or column.type == "numbers":
                continue
            null = arrays[name].is_null().to_numpy(zero_copy_only=False)
            if column.type == "text":
                texts[name], wrong = _words(arrays[name], pc), null & column.never_null
            else:
                numbers[name] = values = _values(arrays[name], column, pc)
                wrong = np.where(null, column.never_null, _is_out_of_range(values, column))
            if wrong.any():
                bad = int(np.argmax(wrong))
                run = int(np.searchsorted(offset, bad, side="right")) - 1 if prefix else bad
                where = f" in step {bad - int(offset[run]) + 1}" if prefix else ""
                got = "null" if null[bad] else f"{numbers[name][bad]}"
                problem = f"is {got}{where}; needs {_describe_allowed(column)}"
                raise TraceError(problem, file=file, row=int(rows[run]), column=prefix + name)
        return texts, numbers

    outer = {name: batch.column(name) for name in batch.schema.names if name != "steps"}
    texts, numbers = read(outer, RUN_COLUMNS)
    step_texts, step_numbers = read(inner, STEP_COLUMNS, "steps.")
    return TraceColumns(
        file=file,
        row=rows,
        offset=offset,
        texts=texts,
        numbers=numbers,
        step_texts=step_texts,
        step_numbers=step_numbers,
        logprobs=[tuple(values or ()) for values in logprobs.to_pylist()] if len(logprobs.flatten()) else None,
    )


def _is_out_of_range(values: NDArray[Any], column: Column) -> NDArray[np.bool_]:
    if column.type == "integer":
        return np.asarray((values < column.least) | (values > MOST))
    return np.asarray(~np.isfinite(values) & (column.type == "number"))


def _describe_allowed(column: Column) -> str:
    if column.type == "integer":
        return f"a whole number from {column.least} to {MOST:,}"
    return "a finite number or null" if column.type == "number" else "a value"


def _values(array: Any, column: Column, pc: Any) -> NDArray[Any]:
    dtype = {"integer": "int64", "number": "float64", "flag": "int8"}[column.type]
    cast = array.cast(dtype) if column.type == "number" else pc.fill_null(array.cast(dtype), -1)
    values: NDArray[Any] = cast.to_numpy(zero_copy_only=False)
    return values.astype(dtype, copy=False)


def _words(array: Any, pc: Any) -> TextColumn:
    import pyarrow as pa

    if pa.types.is_null(array.type):
        return TextColumn(np.full(len(array), -1, dtype=np.int32), ())
    if pa.types.is_string_view(array.type):
        array = array.cast("string")
    coded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
    codes = pc.fill_null(coded.indices.cast("int32"), -1).to_numpy(zero_copy_only=False)
    words = coded.dictionary.to_pylist()
    if None in words:  # a dictionary may contain null
        return TextColumn.of([None if code < 0 else words[code] for code in codes])
    return TextColumn(codes.astype(np.int32, copy=False), tuple(words))


# ---- Reads the rows of a table from CSV, JSON lines, or Parquet; errors name file, row and column

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


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError("a key appears twice")
    return table


def _read_jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=_unique)
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
