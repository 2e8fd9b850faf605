"""Copies a log into another database, which holds none yet, row by row with its places and its chain."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Final

from suffice.errors import StoreError
from suffice.store.audit.appender import COLUMNS
from suffice.store.audit.chain import Head, Link
from suffice.store.audit.verify import verify_chain
from suffice.store.database.protocol import Database
from suffice.store.database.views import query_number
from suffice.store.sql import LogReader, in_snapshot

BATCH_ROWS: Final = 2_000
# Leases and caches are not copied: the next worker makes them anew.
_TABLES: Final = {
    "events": COLUMNS,
    "chain": Link._fields,
    "artefacts": ("address", "body", "at_s"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CopiedLog:
    n_events: int
    n_artefacts: int
    head: Head  # the end of the chain, the same in both


def copy_log(source: Database, target: Database, *, now_s: float) -> CopiedLog:
    """Copy a log that no process has open, verify its chain on both sides, and return what was copied.

    All of it is copied or nothing. Raise StoreError.
    """
    target.migrate(now_s=now_s)
    with source.reader() as log, in_snapshot(log):
        _refuse_open_log(source, log)
        with target.transaction() as written:
            if query_number(written, "SELECT count(*) FROM (SELECT 1 FROM events LIMIT 1) one"):
                raise StoreError(f"store {target}: holds rows; a log is copied into an empty schema")
            written.execute("DELETE FROM chain")  # its beginning, which every new log has
            written.execute("DELETE FROM owners")
            n_rows = {table: _copy_table(log, written, table, columns) for table, columns in _TABLES.items()}
            owners = log.execute("SELECT id, lock, pid, started_s, settled FROM owners ORDER BY 1")
            written.executemany("copy_owner", owners)
    with source.reader() as log, target.reader() as copy:
        before, after = verify_chain(log), verify_chain(copy)
    for database, check in ((source, before), (target, after)):
        if check.bad is not None:
            raise StoreError(f"store {database}: row {check.bad.seq} is {check.bad.what}; do not use the copy")
    if before.head is None or before.head != after.head:
        raise StoreError(f"store {source}: was written meanwhile; empty {target} and copy again")
    return CopiedLog(n_events=n_rows["events"], n_artefacts=n_rows["artefacts"], head=before.head)


def _refuse_open_log(source: Database, log: LogReader) -> None:
    owners = log.execute("SELECT id, pid FROM owners").fetchall()
    if alive := [str(pid) for owner, pid in owners if source.is_alive(log, owner)]:
        raise StoreError(f"store {source}: processes have it open (PID {', '.join(alive)}); stop them and copy again")


def _copy_table(log: LogReader, target: LogReader, table: str, columns: tuple[str, ...]) -> int:
    n, rows = 0, iter(log.execute(f"SELECT {', '.join(columns)} FROM {table} ORDER BY 1"))  # noqa: S608 - names
    while batch := [*islice(rows, BATCH_ROWS)]:
        target.insert_rows(table, columns, batch)
        n += len(batch)
    return n
