"""Reads and writes recorded runs as JSON lines, one run per line, and as Parquet (needs pyarrow), in bounded chunks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.extras import how_to_install
from suffice.files import open_unpacked, whole_file
from suffice.replay.traces.columns import NULL, Batch, TextColumn, TraceColumns
from suffice.replay.traces.rows import (
    RUN_COLUMNS,
    STEP_COLUMNS,
    Column,
    RunRow,
    StepRow,
    decode_row,
    encode_row,
    open_packed,
)


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


def write_traces_jsonl(path: str | Path, batches: Iterable[Batch]) -> int:
    """Write batches atomically as JSON lines, gzipped if the suffix is `.gz`; return the number of runs."""
    n_runs = 0
    with whole_file(Path(path)) as part, open_packed(part, gzipped=Path(path).suffix == ".gz") as file:
        for batch in batches:
            for row in run_rows(batch):
                file.write(encode_row(row))
                n_runs += 1
    return n_runs


def run_rows(batch: Batch) -> Iterator[RunRow]:
    runs, steps = batch.by_column()
    columns = {name: _listed(values, RUN_COLUMNS[name]) for name, values in runs.items()}
    step_columns = {name: _listed(values, STEP_COLUMNS[name]) for name, values in steps.items()}
    names, inner = list(columns), list(step_columns)
    each = zip(*step_columns.values(), strict=True)
    every_step = [StepRow(**dict(zip(inner, values, strict=True))) for values in each]
    for i, values in enumerate(zip(*columns.values(), strict=True)):
        own = every_step[int(batch.offset[i]) : int(batch.offset[i + 1])]
        yield RunRow(**dict(zip(names, values, strict=True)), steps=own)


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
    if column.type == "flag":
        return np.array([-1 if value is None else value for value in values], dtype=np.int8)
    return np.array([NULL if value is None else value for value in values], dtype=np.int64)


def _listed(values: Any, column: Column) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return list(values)
    unknown = np.isnan(values) if column.type == "number" else values < 0
    known = values > 0 if column.type == "flag" else values
    listed = known.astype(object)
    listed[unknown] = None
    return list(listed)


# ---- Parquet

MOST_STEPS: Final = 2_000_000  # per chunk, on average; longer runs get fewer rows

# pyarrow has no types, so its results are Any until they are numpy arrays.


def read_parquet(path: Path, *, batch_rows: int) -> Iterator[TraceColumns]:
    pq = pyarrow("pyarrow.parquet", path)
    arrow = pyarrow("pyarrow", path)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = _check_schema(file.schema_arrow, str(path))
            first = 1
            for batch in file.iter_batches(batch_size=_rows(file, batch_rows), columns=names):
                yield _arrow_columns(batch, str(path), first)
                first += batch.num_rows
    except (OSError, arrow.ArrowException, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read as Parquet: {error}", file=str(path)) from error


def write_traces_parquet(path: str | Path, batches: Iterable[Batch]) -> int:
    """Write batches atomically as one Parquet file (zstd), a row group each; return the number of runs."""
    pq = pyarrow("pyarrow.parquet", Path(path))
    arrow = pyarrow("pyarrow", Path(path))
    schema = _schema(arrow)
    n_runs = 0
    with whole_file(Path(path)) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(_record_batch(batch, arrow, schema))
            n_runs += len(batch)
    return n_runs


def pyarrow(module: str, path: Path) -> Any:
    """A module of pyarrow, from the extra `replay`. Raise TraceError if it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        problem = f"Parquet needs pyarrow: {how_to_install('replay')}"
        raise TraceError(problem, file=str(path)) from error


def _rows(file: Any, batch_rows: int) -> int:
    """Rows per chunk, so that a chunk has at most about MOST_STEPS steps.

    Counts steps in a column, because `RowGroupMetaData.column` aborts the process on damaged statistics (an uncaught
    C++ exception).
    """
    counts = file.read(columns=["n_steps"], use_threads=False)["n_steps"].fill_null(0).to_numpy()
    most = max((counts[at : at + batch_rows].mean() for at in range(0, len(counts), batch_rows)), default=1.0)
    return max(1, min(batch_rows, int(MOST_STEPS / max(1.0, most))))


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
    check(fields, RUN_COLUMNS, "")
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


def _arrow_columns(batch: Any, file: str, first_row: int) -> TraceColumns:
    import pyarrow as pa
    import pyarrow.compute as pc

    steps = batch.column("steps")
    lengths = pc.fill_null(pc.list_value_length(steps), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = steps.flatten()  # the structs; flatten() on them propagates null to the fields
    inner = {flat.type.field(i).name: array for i, array in enumerate(flat.flatten())}
    logprobs = inner.get("logprobs", pa.array([], pa.list_(pa.float64())))
    row = np.arange(first_row, first_row + batch.num_rows, dtype=np.int64)

    def numbers(arrays: Mapping[str, Any], table: Mapping[str, Column], prefix: str) -> dict[str, NDArray[np.generic]]:
        columns: dict[str, NDArray[np.generic]] = {}
        for name, column in table.items():
            if name in arrays and column.type not in ("text", "numbers"):
                values = _values(arrays[name], column, pc)
                known = ~arrays[name].is_null().to_numpy(zero_copy_only=False)
                wrong = np.flatnonzero(known & ~np.isfinite(values.astype(np.float64, copy=False)))
                if len(wrong):
                    bad = int(wrong[0])
                    run = bad if not prefix else int(np.searchsorted(offset, bad, side="right")) - 1
                    problem = f"is {values[bad]}; needs a finite number or null"
                    raise TraceError(problem, file=file, row=int(row[run]), column=prefix + name)
                columns[name] = values
        return columns

    def texts(arrays: Mapping[str, Any], table: Mapping[str, Column]) -> dict[str, TextColumn]:
        return {n: _words(arrays[n], pc) for n, column in table.items() if n in arrays and column.type == "text"}

    outer = {name: batch.column(name) for name in batch.schema.names if name != "steps"}
    return TraceColumns(
        file=file,
        row=row,
        offset=offset,
        texts=texts(outer, RUN_COLUMNS),
        numbers=numbers(outer, RUN_COLUMNS, ""),
        step_texts=texts(inner, STEP_COLUMNS),
        step_numbers=numbers(inner, STEP_COLUMNS, "steps."),
        logprobs=[tuple(values or ()) for values in logprobs.to_pylist()] if len(logprobs.flatten()) else None,
    )


def _values(array: Any, column: Column, pc: Any) -> NDArray[np.generic]:
    kind, null = {"integer": ("int64", NULL), "number": ("float64", None), "flag": ("int8", -1)}[column.type]
    cast = array.cast(kind) if null is None else pc.fill_null(array.cast(kind), null)
    values: NDArray[np.generic] = cast.to_numpy(zero_copy_only=False)
    return values.astype(kind, copy=False)


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


def _schema(arrow: Any) -> Any:
    kinds = {
        "text": arrow.string(),
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "flag": arrow.bool_(),
        "numbers": arrow.list_(arrow.float64()),
    }
    steps = arrow.list_(arrow.struct([(name, kinds[column.type]) for name, column in STEP_COLUMNS.items()]))
    return arrow.schema([*((name, kinds[column.type]) for name, column in RUN_COLUMNS.items()), ("steps", steps)])


def _record_batch(batch: Batch, arrow: Any, schema: Any) -> Any:
    runs, steps = batch.by_column()
    inner = schema.field("steps").type.value_type
    fields = [_arrow_array(steps[name], inner.field(name).type, arrow) for name in STEP_COLUMNS]
    structs = arrow.StructArray.from_arrays(fields, fields=[inner.field(name) for name in STEP_COLUMNS])
    lists = arrow.ListArray.from_arrays(arrow.array(batch.offset, type=arrow.int32()), structs)
    arrays = [_arrow_array(runs[name], schema.field(name).type, arrow) for name in RUN_COLUMNS]
    return arrow.RecordBatch.from_arrays([*arrays, lists], schema=schema)


def _arrow_array(values: Any, kind: Any, arrow: Any) -> Any:
    if not isinstance(values, np.ndarray):
        return arrow.array(values, type=kind)
    unknown = np.isnan(values) if values.dtype == np.float64 else values < 0
    return arrow.array(values > 0 if values.dtype == np.int8 else values, type=kind, mask=unknown)
