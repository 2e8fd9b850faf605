"""Recorded runs, read from files into batches, checked and selected on the way.

It knows file names and which runs are meant; refuses to know what a run's columns say (`replay.traces.batch`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.replay.traces.batch import Batch, as_batches
from suffice.replay.traces.columns import TraceColumns, check_columns
from suffice.replay.traces.jsonl import read_jsonl
from suffice.replay.traces.parquet import read_parquet
from suffice.replay.traces.seen import HashSet
from suffice.replay.traces.where import Where, parse_where

SUFFIXES: Final = (".parquet", ".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")


def set_name(path: str | Path) -> str:
    """Name of the set in a file: its stem without `.dev` and `.heldout`."""
    name = Path(path).name
    for suffix in sorted(SUFFIXES, key=len, reverse=True):
        name = name.removesuffix(suffix)
    return name.removesuffix(".dev").removesuffix(".heldout")


def read_traces(
    paths: Iterable[str | Path],
    *,
    where: str | None = None,
    batch_rows: int = 20_000,
    keep: Callable[[TraceColumns], NDArray[np.bool_]] | None = None,
) -> Iterator[Batch]:
    """Read files of recorded runs, batch by batch, in the order of their rows.

    where       conditions such as "task=mmlu_pro,model!=gpt*"; see `replay.traces.where`
    batch_rows  runs in a batch at most, at least 1
    keep        which runs of a stretch to take, beyond `where`; None: all

    Memory is bounded by the batch, beside 8 bytes a run that find duplicates. Rows of one stretch
    with different settings come as several batches. Raises TraceError (file, row, column) for what
    cannot be read or believed and when nothing matches; ConfigError for conditions that cannot be
    read, before any file is opened.
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows: got {batch_rows}; needs at least 1")
    selection = None if where is None else parse_where(where)
    files = [Path(path) for path in paths]
    for path in files:
        if not path.name.endswith(SUFFIXES):
            raise TraceError(f"has an unknown suffix; allowed: {', '.join(SUFFIXES)}", file=str(path))
    return _read(files, selection, batch_rows, keep)


def _read(
    files: Sequence[Path],
    selection: Where | None,
    batch_rows: int,
    keep: Callable[[TraceColumns], NDArray[np.bool_]] | None,
) -> Iterator[Batch]:
    seen: dict[str, HashSet] = {}
    found = False
    tasks: set[str] = set()
    models: set[str] = set()
    for path in files:
        read = read_parquet if path.name.endswith(".parquet") else read_jsonl
        n_runs = 0
        for columns in read(path, batch_rows=batch_rows):
            n_runs += len(columns)
            check_columns(columns)
            seen.setdefault(set_name(path), HashSet()).add(columns)
            chosen = columns
            if selection is not None:
                tasks.update(columns.texts["task"].words[:10])
                models.update(columns.texts["model"].words[:10])
                chosen = columns.take(np.flatnonzero(selection.holds(columns)))
            if keep is not None:
                found |= len(chosen) > 0
                chosen = chosen.take(np.flatnonzero(keep(chosen)))
            for batch in as_batches(chosen, set_name(path)):
                found = True
                yield batch
        if not n_runs:
            raise TraceError("holds no run", file=str(path))
    if selection is not None and not found:
        known = f"tasks {', '.join(sorted(tasks)[:10])}; models {', '.join(sorted(models)[:10])}"
        raise TraceError(f"no run matches {selection.text!r}; there are {known}", file=", ".join(map(str, files)))
