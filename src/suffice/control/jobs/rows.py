"""How jobs read the log: from where a cold start looks back, row after row with the lease kept; what a failure says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from suffice.control.jobs.base import JobWriter
from suffice.errors import SufficeError
from suffice.store.database.log import StoredEvent
from suffice.store.database.views import LogReader, read_events

LOOK_BACK: Final = 20_000  # requests of a route that a cold start looks back on
RENEW_ROWS: Final = 1_000  # read between two renewals of the lease
FIRST_REST_S: Final = 5.0  # of a route whose work failed, doubling …
LONGEST_REST_S: Final = 600.0  # … up to this


def rows_since(connection: LogReader, since_seq: int, desk: JobWriter) -> Iterator[StoredEvent]:
    """The rows after a place, with the lease renewed on the way. Raises LeaseLost and StoreError."""
    for number, stored in enumerate(read_events(connection, since_seq=since_seq), 1):
        yield stored
        if number % RENEW_ROWS == 0:
            desk.renew()


def why_of(error: Exception) -> str:
    """What a failure says for itself: our own errors hold no prompt; a stranger's may quote what it was given."""
    return str(error) if isinstance(error, SufficeError) else type(error).__name__
