"""A log that comes late: rows wait for it in order, as many as there is room for, and nothing is promised meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import StoreError
from suffice.store.database.views import read_events
from suffice.store.database.writer import LateLog, LogWriter
from suffice.store.rows.events import key_of, kind_of
from tests.store.test_sqlite import ended, feedback, seen

Open = Callable[..., LogWriter]


def keys(database: Path) -> list[tuple[str, str]]:
    return [(kind_of(one.event).name, key_of(one.event)) for one in read_events(database)]


def test_rows_wait_in_order_and_what_finds_no_place_is_counted_with_its_outcome(open_log: Open, database: Path) -> None:
    late = LateLog("it is held", most_rows=3)
    taken = [late.append(event) for event in (seen("a"), ended("a"), seen("b"), seen("c"), ended("c"), ended("b"))]
    assert taken == [True, True, True, False, False, True], "a request that found a place has one for its outcome"
    assert (late.n_waiting, late.n_dropped, late.n_written) == (4, 2, 0)
    log = open_log()
    assert late.attach(log) == 4
    assert late.append(seen("d"))
    assert log.drain()
    assert keys(database) == [
        *(("request", "a"), ("outcome", "a")),
        *(("request", "b"), ("outcome", "b")),
        ("request", "d"),
    ]
    assert (late.n_waiting, late.n_dropped, log.n_written) == (0, 2, 5)


def test_an_outcome_that_comes_after_the_log_did_is_dropped_where_its_request_was(
    open_log: Open, database: Path
) -> None:
    late = LateLog("it is held", most_rows=0)
    assert not late.append(seen("a"))
    log = open_log()
    late.attach(log)
    assert not late.append(ended("a"))
    assert late.append(seen("b"))
    assert log.drain()
    assert keys(database) == [("request", "b")]
    assert late.n_dropped == 2


def test_nothing_is_promised_until_there_is_a_log(open_log: Open) -> None:
    async def durable(late: LateLog) -> Any:
        return await late.append_durable(feedback("f", episode_id="a"))

    late = LateLog("store x: is held", most_rows=9)
    with pytest.raises(StoreError, match="store x: is held; send it again with the same id"):
        asyncio.run(durable(late))
    late.attach(open_log())
    assert not asyncio.run(durable(late)).duplicate


def test_what_still_waits_at_the_end_is_lost_and_counted() -> None:
    late = LateLog("it is held", most_rows=9)
    late.append(seen("a"))
    late.close()
    assert (late.n_waiting, late.n_failed) == (0, 1)
    assert not late.append(seen("b"))
