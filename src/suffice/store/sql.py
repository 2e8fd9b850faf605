"""The log in SQL: its queries by name, and what a connection to its database must do.

The queries are in `sqlite.sql` and `postgres.sql`. Functions that only SQLite has (`json_extract`, `json_each`) exist
in our schema of PostgreSQL, so the two differ by hints to SQLite's planner, and by types.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeAlias

Values: TypeAlias = Sequence[object] | Mapping[str, object]


class NamedQuery(NamedTuple):
    text: str
    parameters: tuple[str, ...]

    def bound(self, values: Values) -> Mapping[str, object]:
        """Return values by name, which are given by name or in the order of the parameters."""
        return values if isinstance(values, Mapping) else dict(zip(self.parameters, values, strict=True))


@cache
def load_queries(dialect: str) -> dict[str, NamedQuery]:
    """Return the queries of `sqlite.sql` or `postgres.sql` by name."""
    queries, text = dict[str, NamedQuery](), files("suffice.store").joinpath(f"{dialect}.sql").read_text("utf-8")
    for part in text.split("-- name: ")[1:]:
        head, _, query = part.partition("\n")
        name, _, parameters = head.rstrip(")").partition("(")
        queries[name] = NamedQuery(query.rstrip(), tuple(filter(None, parameters.split(", "))))
    return queries


class LogReader(Protocol):
    """A connection to a log's database, for one thread at a time; opaque outside `store`: passed on, never queried.

    As a context manager it commits at the end of the block, or rolls back.
    """

    @property
    def Error(self) -> type[Exception]:  # noqa: N802 - its name in Python's database API (PEP 249)
        """What all methods raise."""

    def execute(self, query: str, values: Values = (), /, **constants: str) -> Any:
        """Run a query and return a cursor.

        query      named as in the dialect's file, or SQL with marks (?)
        constants  replace the braces of a named one
        """

    def executemany(self, query: str, values: Iterable[Values], /) -> Any: ...

    def stream(self, query: str, values: Values = ()) -> Iterator[Any]:
        """Yield rows that may be too many to hold at once."""

    def append_events(self, rows: Sequence[Sequence[Any]]) -> tuple[int, int]:
        """Add those rows of `events` whose kind and key it has not, in this order; `seq` follows from it.

        Return how many are new, and the last one's place.
        """

    def find_events(self, names: Collection[tuple[str, str]]) -> Mapping[tuple[str, str], tuple[int, int]]:
        """Return place and owner of the rows that have these kinds and keys."""

    def insert_rows(self, table: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None: ...

    def has_table(self, name: str) -> bool: ...

    def begin_snapshot(self) -> None:
        """Let every query see one state of the log, until the transaction ends."""

    def commit(self) -> None: ...

    def rollback(self) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> Any: ...


@contextlib.contextmanager
def in_snapshot(connection: LogReader) -> Iterator[LogReader]:
    """Let every query see one state of the log, whatever other processes write."""
    with connection:
        connection.begin_snapshot()
        yield connection
