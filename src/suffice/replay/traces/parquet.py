"""Recorded runs in Parquet files: read in stretches of bounded size, written group by group. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.extras import how_to_install
from suffice.files import whole_file
from suffice.replay.traces.columns import NULL, RUN_COLUMNS, STEP_COLUMNS, Batch, Column, TextColumn, TraceColumns

MOST_STEPS: Final = 2_000_000  # of one stretch, on average; longer runs come in fewer rows

# pyarrow has no types: what it returns is Any until it is a numpy array.


def read_parquet(path: Path, *, batch_rows: int) -> Iterator[TraceColumns]:
    """Read a file stretch by stretch, unchecked beyond its types. Raises TraceError."""
    pq = pyarrow("pyarrow.parquet", path)
    arrow = pyarrow("pyarrow", path)
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
            names = _check_schema(file.schema_arrow, str(path))
            first = 1
            for batch in file.iter_batches(batch_size=_rows(file, batch_rows), columns=names):
                yield _columns(batch, str(path), first)
                first += batch.num_rows
    except (OSError, arrow.ArrowException, UnicodeDecodeError) as error:
        raise TraceError(f"cannot be read as Parquet: {error}", file=str(path)) from error


def write_traces_parquet(path: str | Path, batches: Iterable[Batch]) -> int:
    """Write batches as one Parquet file (zstd), a row group for each; return the number of runs.

    The file appears under its name when it is complete, and not at all after an error.
    """
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
    """A module of pyarrow, which the extra `replay` brings. Raises TraceError where it is missing."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        problem = f"Parquet needs pyarrow: {how_to_install('replay')}"
        raise TraceError(problem, file=str(path)) from error


def _rows(file: Any, batch_rows: int) -> int:
    """Rows of a stretch, so that it holds about MOST_STEPS steps at most.

    The steps are counted in a column: `RowGroupMetaData.column` ends the process where a column's statistics are
    damaged, because nothing catches its C++ exception.
    """
    counts = file.read(columns=["n_steps"], use_threads=False)["n_steps"].fill_null(0).to_numpy()
    most = max((counts[at : at + batch_rows].mean() for at in range(0, len(counts), batch_rows)), default=1.0)
    return max(1, min(batch_rows, int(MOST_STEPS / max(1.0, most))))


def _check_schema(schema: Any, file: str) -> list[str]:
    """Names of the columns to read. Raises TraceError for one that is missing or of a wrong type."""
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


def _columns(batch: Any, file: str, first_row: int) -> TraceColumns:
    import pyarrow as pa
    import pyarrow.compute as pc

    steps = batch.column("steps")
    lengths = pc.fill_null(pc.list_value_length(steps), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    offset = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = steps.flatten()  # the structs; their own flatten() hands a null struct on to its fields
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
    """Null becomes NULL, NaN or -1."""
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
    if None in words:  # a dictionary may hold null itself
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
    fields = [_array(steps[name], inner.field(name).type, arrow) for name in STEP_COLUMNS]
    structs = arrow.StructArray.from_arrays(fields, fields=[inner.field(name) for name in STEP_COLUMNS])
    lists = arrow.ListArray.from_arrays(arrow.array(batch.offset, type=arrow.int32()), structs)
    arrays = [_array(runs[name], schema.field(name).type, arrow) for name in RUN_COLUMNS]
    return arrow.RecordBatch.from_arrays([*arrays, lists], schema=schema)


def _array(values: Any, kind: Any, arrow: Any) -> Any:
    """An Arrow column; what stands for unknown becomes null."""
    if not isinstance(values, np.ndarray):
        return arrow.array(values, type=kind)
    unknown = np.isnan(values) if values.dtype == np.float64 else values < 0
    return arrow.array(values > 0 if values.dtype == np.int8 else values, type=kind, mask=unknown)
