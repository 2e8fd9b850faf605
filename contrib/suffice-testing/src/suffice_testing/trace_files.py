"""Writes recorded runs as JSON lines and as Parquet, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from suffice.files import whole_file
from suffice.replay.traces.columns import LAST, MAJORITY_VOTE, Batch
from suffice.replay.traces.formats import pyarrow, trace_schema
from suffice.replay.traces.rows import RUN_COLUMNS, STEP_COLUMNS, Column, RunRow, StepRow, encode_row, open_packed


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
    runs, steps = _by_column(batch)
    columns = {name: _listed(values, RUN_COLUMNS[name]) for name, values in runs.items()}
    step_columns = {name: _listed(values, STEP_COLUMNS[name]) for name, values in steps.items()}
    names, inner = list(columns), list(step_columns)
    each = zip(*step_columns.values(), strict=True)
    every_step = [StepRow(**dict(zip(inner, values, strict=True))) for values in each]
    for i, values in enumerate(zip(*columns.values(), strict=True)):
        own = every_step[int(batch.offset[i]) : int(batch.offset[i + 1])]
        yield RunRow(**dict(zip(names, values, strict=True)), steps=own)


def _by_column(batch: Batch) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    made: dict[str, Any] = {  # lists of text, and arrays
        "aggregation": [MAJORITY_VOTE if batch.vote else LAST] * len(batch),
        "n_steps": np.diff(batch.offset),
        "full_em": batch.full_em.astype(np.int8),
    }
    runs = {name: made[name] if name in made else getattr(batch, name) for name in RUN_COLUMNS}
    steps = {name: made[name] if name in made else getattr(batch, name) for name in STEP_COLUMNS}
    return runs, steps


def _listed(values: Any, column: Column) -> list[Any]:
    if not isinstance(values, np.ndarray):
        return list(values)
    unknown = np.isnan(values) if column.type == "number" else values < 0
    known = values > 0 if column.type == "flag" else values
    listed = known.astype(object)
    listed[unknown] = None
    return list(listed)


def write_traces_parquet(path: str | Path, batches: Iterable[Batch]) -> int:
    """Write batches atomically as one Parquet file (zstd), a row group each; return the number of runs."""
    pq = pyarrow("pyarrow.parquet", Path(path))
    arrow = pyarrow("pyarrow", Path(path))
    schema = trace_schema(arrow)
    n_runs = 0
    with whole_file(Path(path)) as part, pq.ParquetWriter(part, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(_record_batch(batch, arrow, schema))
            n_runs += len(batch)
    return n_runs


def _record_batch(batch: Batch, arrow: Any, schema: Any) -> Any:
    runs, steps = _by_column(batch)
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
