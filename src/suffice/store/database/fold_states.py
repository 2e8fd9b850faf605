"""States of the workers' folds: a cache beside the log, one row for each job and route, replaced.

It is in the database and not in a file, because a route's next worker may run on another machine, a state is written
under the lease of its route, and erased text has to leave it in the same transaction.
"""

from __future__ import annotations

from typing import Final

from suffice.store.sql.connection import LogReader

_READ: Final = "SELECT seq, body FROM fold_states WHERE job = ? AND route = ?"
_WRITE: Final = """
    INSERT INTO fold_states (job, route, seq, body) VALUES (?, ?, ?, ?)
    ON CONFLICT (job, route) DO UPDATE SET seq = excluded.seq, body = excluded.body"""
_ERASED_SINCE: Final = "SELECT 1 FROM events WHERE kind = 'erased' AND seq > ? LIMIT 1"


def read_fold_state(log: LogReader, job: str, route: str) -> tuple[int, bytes] | None:
    """Return the place in the log up to which a state was folded, and the state."""
    row = log.execute(_READ, (job, route)).fetchone()
    return None if row is None else (int(row[0]), bytes(row[1]))


def write_fold_state(log: LogReader, job: str, route: str, seq: int, body: bytes, *, built_at_seq: int) -> bool:
    """Write a state, unless text was erased from the log after the fold was built, which may still hold it."""
    if log.execute(_ERASED_SINCE, (built_at_seq,)).fetchone() is not None:
        return False
    log.execute(_WRITE, (job, route, seq, body))
    return True


def forget_fold_states(log: LogReader) -> None:
    log.execute("DELETE FROM fold_states")
