"""The log keeps what it was given, once, and says so truthfully."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import pytest

from suffice.errors import ConfigError, StoreError
from suffice.settings import Store
from suffice.store.database import schema
from suffice.store.database.location import log_location
from suffice.store.database.log import Receipt
from suffice.store.database.views import open_reader, read_events
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import EndReason, Feedback, Outcome, Overhead, Request, Usage
from tests.records import plain_request, plain_step

Open = Callable[..., LogWriter]
Query = Callable[..., list[tuple[Any, ...]]]


def seen(episode_id: str, **changes: Any) -> Request:
    fields = {"route": "math", "propensity": 0.9, "policy_version": "v1", "question_key": "q", "received_at_s": 1.0}
    return plain_request(episode_id, **fields | changes)


def ended(episode_id: str, **changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "episode_id": episode_id,
        "end_reason": "done",
        "status": 200,
        "answer": "4",
        "response_id": f"r-{episode_id}",
        "usage": Usage(prompt_tokens=7, completion_tokens=30),
    }
    return Outcome(**(fields | changes))


def feedback(feedback_id: str, **fields: Any) -> FeedbackEvent:
    return FeedbackEvent(Feedback(feedback_id=feedback_id, **fields))


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///suffice.db", Path("suffice.db")),
        ("sqlite:///logs/suffice.db", Path("logs/suffice.db")),
        ("sqlite:////var/lib/suffice.db", Path("/var/lib/suffice.db")),
    ],
)
def test_a_url_names_a_file(url: str, path: Path) -> None:
    assert log_location(Store(url=url)) == path


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("sqlite://", "writer thread"),
        ("sqlite:///", "writer thread"),
        ("sqlite:///:memory:", "writer thread"),
        ("mysql://host/name", "allowed: sqlite:///relative.db"),
        ("mysql:///name", "allowed: sqlite:///relative.db"),
        ("suffice.db", "allowed: sqlite:///relative.db"),
        ("sqlite://suffice.db", "allowed: sqlite:///relative.db"),
        ("sqlite:///a.db?mode=ro", "without options"),
    ],
)
def test_a_url_that_cannot_work_is_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        log_location(Store(url=url))


def test_every_kind_of_end_leaves_one_outcome_for_its_request(open_log: Open, query: Query) -> None:
    log = open_log()
    reasons = get_args(EndReason)
    expected = [(len(reasons),)]
    for reason in reasons:
        assert log.append(seen(reason))
        assert log.append(ended(reason, end_reason=reason))
    log.close()
    assert query("SELECT count(*) FROM outcomes") == query("SELECT count(*) FROM requests") == expected
    assert {row[0] for row in query("SELECT end_reason FROM outcomes")} == set(reasons)
    assert query("SELECT DISTINCT route FROM outcomes") == [("math",)]
    assert (log.n_written, log.n_dropped, log.n_failed) == (2 * len(reasons), 0, 0)


def test_the_views_show_every_number_in_its_own_column(open_log: Open, query: Query) -> None:
    log = open_log()
    steps = tuple(plain_step(i, tokens=10 * i, confidence=0.5, probe_tokens=3, reason=f"step {i}") for i in (1, 2))
    log.append(seen("e", audit=True, ungoverned=None))
    log.append(ended("e", steps=steps, stop_step=1, overhead=Overhead(probe_tokens=6, discarded_tokens=2)))
    assert log.drain()
    assert query("SELECT audit, propensity, mode, question_key FROM requests") == [(1, 0.9, "observe", "q")]
    assert query(
        "SELECT prompt_tokens, completion_tokens, probe_tokens, discarded_tokens, stop_step FROM outcomes"
    ) == [(7, 30, 6, 2, 1)]
    assert query("SELECT episode_id, step, tokens, reason FROM steps ORDER BY step") == [
        ("e", 1, 10, "step 1"),
        ("e", 2, 20, "step 2"),
    ]


def test_costs_can_be_added_up_with_any_sql_tool(open_log: Open, query: Query) -> None:
    log = open_log()
    for name, cost in (("a", 0.5), ("b", 0.25), ("c", None)):
        log.append(seen(name))
        log.append(ended(name, cost_usd=cost, overhead_usd=0.125, would_cost_usd=None, saved_usd_estimate=1.0))
    assert log.drain()
    assert query(
        "SELECT route, sum(cost_usd), count(cost_usd), count(*), sum(overhead_usd), max(saved_usd_estimate),"
        " count(would_cost_usd) FROM costs GROUP BY route"
    ) == [("math", 0.75, 2, 3, 0.375, 1.0, 0)]


def test_rows_of_one_key_are_written_once(open_log: Open, query: Query) -> None:
    log = open_log()
    for _ in range(3):
        log.append(seen("e"))
        log.append(ended("e", answer="first"))
    log.append(ended("e", answer="second"))
    log.close()
    assert query("SELECT answer FROM outcomes") == [("first",)]
    assert query("SELECT count(*) FROM requests") == [(1,)]
    assert log.n_written == 2


@pytest.mark.parametrize(
    ("again", "conflict"),
    [
        ({}, False),
        ({"door": "langfuse", "satisfaction": 0.5}, False),
        ({"comment": "bad"}, True),
        ({"comment": None}, True),
        ({"rating": 4}, True),
        ({"gold": "5"}, True),
        ({"episode_id": "other"}, True),
    ],
)
async def test_an_id_says_one_thing_of_its_sender(open_log: Open, again: dict[str, Any], conflict: bool) -> None:
    log = open_log()
    first: dict[str, Any] = {"episode_id": "e", "comment": "good", "rating": 5, "sender": "a", "door": "key"}
    assert not (await log.append_durable(feedback("f", **first))).duplicate
    assert not (await log.append_durable(feedback("f", **first | {"sender": "b", "rating": 1}))).duplicate
    result = await log.append_durable(feedback("f", **first | again))
    assert (result.duplicate, result.conflict) == (True, conflict)


async def test_what_was_never_written_is_not_compared(database: Path) -> None:
    log = LogWriter(Store(url=f"sqlite:///{database}"), now=lambda: 1.0, redact=("comments",))
    await log.append_durable(feedback("f", episode_id="e", comment="good", rating=5))
    assert not (await log.append_durable(feedback("f", episode_id="e", comment="bad", rating=5))).conflict
    assert (await log.append_durable(feedback("f", episode_id="e", comment="good", rating=4))).conflict
    log.close()


def test_feedback_of_a_log_whose_keys_had_no_sender_is_still_read(open_log: Open, database: Path, query: Query) -> None:
    log = open_log()
    log.append(feedback("old", episode_id="e", source="user", sender="a"))
    log.close()
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE events SET key = 'old'")
        connection.commit()
    open_log().close()
    assert query("SELECT feedback_id, sender, source FROM feedback") == [("old", "a", "user")]


async def test_a_receipt_says_where_whether_again_and_whether_joined(open_log: Open) -> None:
    log = open_log()
    log.append(seen("e"))
    log.append(ended("e"))
    first = await log.append_durable(feedback("f", episode_id="e", correct=True))
    again = await log.append_durable(feedback("f", episode_id="e", correct=False))
    unknown = await log.append_durable(feedback("g", episode_id="not-yet"))
    by_response = await log.append_durable(feedback("h", response_id="r-e"))
    assert first == Receipt(seq=3, duplicate=False, joined=True)
    assert again == Receipt(seq=3, duplicate=True, joined=True, conflict=True)
    assert unknown == Receipt(seq=unknown.seq, duplicate=False, joined=False)
    assert by_response.joined
    outcome = await log.append_durable(ended("nobody asked"))
    assert not outcome.joined


def test_the_same_feedback_from_fifty_threads_is_one_row(open_log: Open, query: Query) -> None:
    log = open_log()
    receipts: list[Receipt] = []

    def send() -> None:
        receipts.append(asyncio.run(log.append_durable(feedback("same", correct=True))))

    threads = [threading.Thread(target=send) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(not receipt.duplicate for receipt in receipts) == 1
    assert len(receipts) == 50
    assert len({receipt.seq for receipt in receipts}) == 1
    assert query("SELECT count(*) FROM feedback") == [(1,)]


async def test_feedback_finds_its_request_whenever_it_comes(open_log: Open, query: Query) -> None:
    log = open_log()
    await log.append_durable(feedback("f", episode_id="e", correct=True))
    await log.append_durable(feedback("g", response_id="r-e", rating=5))
    assert query("SELECT sum(joined) FROM feedback") == [(0,)]
    log.append(seen("e"))
    log.append(ended("e"))
    assert log.drain()
    assert query("SELECT feedback_id, episode_id, route, joined, correct, rating FROM feedback") == [
        ("f", "e", "math", 1, 1, None),
        ("g", "e", "math", 1, None, 5),
    ]


async def test_a_response_id_that_two_answers_share_joins_neither(open_log: Open, query: Query) -> None:
    log = open_log()
    for name in ("a", "b"):
        log.append(seen(name))
        log.append(ended(name, response_id="chatcmpl-1"))
    receipt = await log.append_durable(feedback("f", response_id="chatcmpl-1", correct=True))
    assert not receipt.joined
    assert query("SELECT episode_id, joined FROM feedback") == [(None, 0)]


async def test_what_cannot_be_stored_is_refused_alone(open_log: Open, query: Query) -> None:
    log = open_log()
    log.append(seen("e", propensity=float("nan")))
    log.append(ended("e"))
    log.append(seen("good"))
    log.append(ended("good"))
    with pytest.raises(StoreError, match="cannot be stored"):
        await log.append_durable(feedback("f", rating="five"))
    assert log.drain()
    assert query("SELECT episode_id FROM requests") == [("good",)]
    assert query("SELECT episode_id FROM outcomes") == [("good",)], "no outcome without its request"
    assert log.n_failed == 3


def test_reading_goes_on_where_it_ended(open_log: Open, database: Path) -> None:
    log = open_log()
    events = [seen(f"e{i}") for i in range(1_203)]
    for event in events:
        log.append(event)
    assert log.drain()
    assert [stored.event for stored in read_events(database)] == events
    first = list(islice(read_events(database), 700))
    assert [s.event for s in first] == events[:700]
    assert [s.event for s in read_events(database, since_seq=first[-1].seq)] == events[700:]


def test_a_full_queue_drops_counts_and_keeps_the_two_counts_equal(
    open_log: Open, query: Query, locked: Callable[[], Any]
) -> None:
    log = open_log(queue_rows=4)
    with locked():
        taken = [log.append(seen(f"e{i}")) for i in range(6)]
    assert taken == [True] * 4 + [False] * 2
    assert log.drain()
    assert [log.append(ended(f"e{i}")) for i in (3, 4)] == [True, False], "no outcome without its request"
    assert log.append(ended("e0"))
    assert log.append(ended("e1"))
    assert log.append(ended("e2"))
    assert log.drain()
    assert log.n_dropped == 3
    assert query("SELECT count(*) FROM outcomes") == query("SELECT count(*) FROM requests") == [(4,)]


def test_a_closed_log_refuses_and_closing_twice_is_harmless(open_log: Open, database: Path) -> None:
    log = open_log()
    log.append(seen("e"))
    log.close()
    log.close()
    assert not log.append(ended("e"))
    assert (log.n_written, log.n_dropped) == (1, 1)
    assert [path.name for path in database.parent.iterdir()] == [database.name], "nothing is left behind"


def test_a_file_of_another_program_is_refused_and_left_alone(open_log: Open, database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE customers (name TEXT)")
    with pytest.raises(StoreError, match="another program"):
        open_log()
    with closing(sqlite3.connect(database)) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("customers",)]


def test_a_damaged_file_is_refused(open_log: Open, database: Path) -> None:
    database.write_bytes(b"no database at all, but long enough to look like one" * 100)
    with pytest.raises(StoreError, match="damaged"):
        open_log()
    database.unlink()
    log = open_log()
    for i in range(300):
        log.append(seen(f"e{i}"))
    log.close()
    page = bytearray(database.read_bytes())
    for offset in range(4_096, len(page), 4_096):
        page[offset : offset + 64] = b"\xff" * 64
    database.write_bytes(page)
    with pytest.raises(StoreError, match="damaged"):
        open_log()


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    settings = Store(url=f"sqlite:///{tmp_path}/nowhere/suffice.db")
    with pytest.raises(StoreError, match=r"nowhere does not exist"):
        LogWriter(settings, now=lambda: 0.0)


# ---- a log of the schema before ----------------------------------------------------------------------


def test_a_log_of_the_schema_before_is_upgraded_and_a_reader_says_how(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    store = Store(url=f"sqlite:///{path}")
    with closing(LogWriter(store, now=lambda: 1.0)) as log:
        assert log.append(seen("e1"))
    with closing(sqlite3.connect(path)) as plain, plain:
        plain.execute("DROP TABLE fold_states")
        plain.execute("DROP TABLE watches")
        plain.execute("PRAGMA user_version = 18")
    with pytest.raises(StoreError, match="suffice store migrate"), open_reader(path):
        pass
    LogWriter(store, now=lambda: 2.0).close()
    with open_reader(path) as reader:
        assert reader.execute("PRAGMA user_version").fetchone() == (schema.VERSION,)
        assert reader.execute("SELECT * FROM fold_states").fetchall() == []
        assert reader.execute("SELECT * FROM watches").fetchall() == []
        assert [one.event for one in read_events(reader)] == [seen("e1")]
