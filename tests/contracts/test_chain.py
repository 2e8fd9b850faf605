"""Every kind of event, today's and tomorrow's: it is chained unless it is named, and its words can go."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from contextlib import closing
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from suffice.store.audit.appender import Appender, begin_chain
from suffice.store.audit.chain import CHAINED_PARTS, forget_salts, is_chained, repeats
from suffice.store.audit.personal import PARTS, WORDS, split, without
from suffice.store.audit.verify import verify_chain
from suffice.store.database import schema
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.people.audit_view import read_latest_rows
from suffice.store.rows.events import EARLIER_KEYS, EVENTS, UNCHAINED, Erasure, Event, decode_as, to_row
from tests.contracts.test_events import records, values
from tests.drawn import examples
from tests.house.tree import ROOT
from tests.store.made_chain import copied

# Fields in which people's words may stand, by name, and fields of such names that hold none.
SUSPICIOUS = {
    "answer",
    "answers",
    "comment",
    "corrected",
    "early_answer",
    "finish_answer",
    "full_answer",
    "gold",
    "metadata",
    "note",
    "pair_answer",
    "prompt",
    "question",
    "text",
    "vote",
    "would_answer",
}
NO_WORDS = {("route_monitored", "note"), ("version_proposed", "note")}


@pytest.fixture(scope="module")
def empty() -> Iterator[SqliteConnection]:
    """A log in memory, with a chain that has just begun; not to be changed."""
    with closing(SqliteConnection(":memory:", isolation_level=None)) as connection:
        schema.create(connection, "memory")
        begin_chain(connection, 1.0)
        yield connection


def test_only_what_happens_too_often_or_decides_nothing_is_left_out() -> None:
    assert set(EVENTS) >= UNCHAINED
    assert {"request", "outcome"} <= UNCHAINED
    chained = {kind for kind in EVENTS if is_chained(kind)}
    assert chained >= {
        "policy_published",
        "epoch_began",
        "alarm_raised",
        "enforcement_paused",
        "enforcement_resumed",
        "feedback",
        "alert_raised",
        "kill_switched",
        "config_changed",
        "exported",
        "erased",
    }


@pytest.mark.parametrize("kind", sorted(EVENTS))
@given(data=st.data())
@settings(max_examples=examples(8), phases=[Phase.generate])
def test_a_row_is_chained_unless_its_kind_is_named_and_another_body_is_seen(
    empty: SqliteConnection, kind: str, data: st.DataObject
) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    with closing(copied(empty)) as log:
        log.execute("BEGIN IMMEDIATE")
        appender = Appender(log, owner=1)
        assert appender.add(to_row(event), 2.0)
        assert not appender.add(to_row(event), 3.0), "a key is written once"
        log.execute("COMMIT")
        verdict = verify_chain(log)
        assert verdict.ok
        assert verdict.n_rows == 1 + (kind not in UNCHAINED)
        assert [(one.kind, one.place) for one in read_latest_rows(log, 5)] == [(kind, 2)] * is_chained(kind), (
            "it can be shown"
        )
        log.execute("UPDATE events SET body = replace(body, '{', '{ ')")
        assert verify_chain(log).ok is (kind in UNCHAINED)


@pytest.mark.parametrize("kind", sorted(EARLIER_KEYS))
@given(data=st.data())
@settings(max_examples=examples(8), phases=[Phase.generate])
def test_a_row_of_0_2_stays_as_it_is_in_the_chain_and_is_known_as_the_same(
    empty: SqliteConnection, kind: str, data: st.DataObject
) -> None:
    row = to_row(data.draw(values(EVENTS[kind])))
    earlier, _ = EARLIER_KEYS[kind]
    before = dataclasses.replace(row, body=json.dumps({earlier: json.loads(row.body)[earlier]}, separators=(",", ":")))
    with closing(copied(empty)) as log:
        log.execute("BEGIN IMMEDIATE")
        appender = Appender(log, owner=1)
        assert appender.add(before, 2.0)
        assert not appender.add(row, 3.0)
        log.execute("COMMIT")
        assert verify_chain(log).ok
        (seq, body) = log.execute("SELECT seq, body FROM events").fetchone()
        assert body == before.body
        assert repeats(log, row, seq, body)
        assert not repeats(log, dataclasses.replace(row, body=json.dumps({earlier: {}})), seq, body)


@pytest.mark.parametrize("kind", sorted(EVENTS))
@given(data=st.data())
@settings(max_examples=examples(8), phases=[Phase.generate])
def test_without_its_words_an_event_is_one_of_its_kind_and_the_chain_holds(
    empty: SqliteConnection, kind: str, data: st.DataObject
) -> None:
    event: Event = data.draw(values(EVENTS[kind]))
    row = to_row(event)
    again = msgspec.json.encode(msgspec.json.decode(row.body)).decode()
    assert again == row.body, "or its words could not be told apart"
    bare = without(kind, row.body, PARTS)
    decode_as(EVENTS[kind], bare)
    assert without(kind, bare, PARTS) is bare, "erasing again does nothing"
    assert split(kind, bare).kept == (split(kind, row.body).kept if is_chained(kind) else bare.encode()), "what stays"
    assert not split(kind, bare).words
    with closing(copied(empty)) as log:
        log.execute("BEGIN IMMEDIATE")
        appender = Appender(log, owner=1)
        appender.add(row, 2.0)
        log.execute("UPDATE events SET body = ? WHERE seq = 1", (bare,))
        forget_salts(log, 1, PARTS)
        if is_chained(kind) and bare != row.body:
            log.execute("COMMIT")
            assert not verify_chain(log).ok, "nobody may erase in silence"
            log.execute("BEGIN IMMEDIATE")
        report = Erasure(
            erasure_id="x", number=1, author="a", reason="r", what="w", parts=PARTS, n_rows=1, chained=(1,)
        )
        appender.add(to_row(report), 3.0)
        log.execute("COMMIT")
        assert verify_chain(log).ok


def test_words_of_a_chained_kind_stand_in_parts_that_the_chain_digests_apart() -> None:
    wrong = [
        (kind, words)
        for kind, result in WORDS.items()
        if is_chained(kind)
        for words in result
        if words.part not in CHAINED_PARTS
    ]
    assert not wrong
    assert not WORDS.keys() - EVENTS.keys()


def text_fields(hint: Any) -> set[str]:
    """Names of the fields of a record, and of the records in it, that may hold text."""
    if not dataclasses.is_dataclass(hint):
        return {name for part in get_args(hint) for name in text_fields(part)}
    hints = get_type_hints(hint)
    inner = {name for one in hints.values() for name in text_fields(one)}
    return {name for name, one in hints.items() if "str" in str(one)} | inner


@pytest.mark.parametrize("kind", sorted(EVENTS))
def test_a_field_that_may_hold_words_of_people_can_be_erased(kind: str) -> None:
    names = {name for record in records(EVENTS[kind]) for name in text_fields(record)} & SUSPICIOUS
    known = {words.path[-1] for words in WORDS.get(kind, ())}
    if kind == "outcome":
        known |= {"answer", "finish_answer", "pair_answer", "would_answer", "vote"}
    if kind == "request":
        known |= {"metadata"}
    missing = {name for name in names - known if (kind, name) not in NO_WORDS}
    assert not missing, f"{kind}: say in store/audit/personal.py which part {missing} belong to"


def test_equal_answers_of_a_run_keep_equal_names_and_no_answer_stays_none() -> None:
    body = json.dumps(
        {
            "outcome": {
                "episode_id": "e",
                "answer": "408",
                "would_answer": "407",
                "finish_answer": None,
                "vote": [["408", 3], ["x", 1]],
                "steps": [
                    {"answer": "407", "tokens": 3},
                    {"answer": None, "tokens": 2},
                    {"answer": "408", "tokens": 9},
                ],
            }
        }
    )
    result = json.loads(without("outcome", body, ("answers",)))["outcome"]
    assert result["answer"] == result["vote"][0][0] == result["steps"][2]["answer"]
    assert result["would_answer"] == result["steps"][0]["answer"] != result["answer"]
    assert len({result["answer"], result["would_answer"], result["vote"][1][0]}) == 3
    assert result["finish_answer"] is None
    assert result["steps"][1] == {"answer": None, "tokens": 2}
    assert not [text for text in ("408", "407") if text in json.dumps(result)]


def test_the_page_on_events_names_what_is_not_chained() -> None:
    page = (ROOT / "docs" / "reference" / "events.md").read_text(encoding="utf-8")
    line = next(line for line in page.splitlines() if line.startswith("Rows of every kind but "))
    assert set(re.findall(r"`(\w+)`", line.partition(" stand in the chain")[0])) == UNCHAINED
