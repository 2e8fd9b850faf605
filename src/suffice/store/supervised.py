"""psycopg's connection, whose statements end in time, and when nobody waits for them any more."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar

import psycopg

T = TypeVar("T")

_LOOKS_S: Final = 0.05  # between two looks whether a statement is still wanted
_CONNECT_S: Final = 5
_CANCEL_S: Final = 2.0  # until a statement that was cancelled has ended


class SupervisedConnection(psycopg.Connection[tuple[Any, ...]]):
    most_s: float = 60.0  # for a statement, however long the server would take
    is_over: Callable[[], bool] | None = None  # interrupts a statement when it returns True

    def wait(self, gen: Generator[Any, Any, T], interval: float = _LOOKS_S, timeout: float | None = None) -> T:
        return super().wait(self._supervise(gen), min(interval, _LOOKS_S), timeout)

    def _supervise(self, work: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        ends_s = time.monotonic() + self.most_s
        is_cancelled = False
        ready = None
        while True:
            try:
                waits_for = work.send(ready)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            ready = yield waits_for
            if ready:
                continue
            if time.monotonic() >= ends_s:
                self.pgconn.finish()  # nobody knows what it still waits for
                raise psycopg.OperationalError("no answer in time")
            if not is_cancelled and self.is_over is not None and self.is_over():
                is_cancelled, ends_s = True, time.monotonic() + _CANCEL_S
                self.cancel_safe(timeout=_CANCEL_S)


def connect_supervised(url: str, password: str | None, *, most_s: float) -> SupervisedConnection:
    connection = SupervisedConnection.connect(
        url,
        password=password,
        connect_timeout=_CONNECT_S,
        autocommit=True,  # transactions are begun by their statements
        prepare_threshold=None,  # a pooler in transaction mode knows no prepared statements
        client_encoding="utf8",
        application_name="suffice",
    )
    connection.most_s = most_s
    return connection
