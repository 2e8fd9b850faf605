"""Decisions of people on a real file: whole or not at all, one of two at once, and nothing lost where it is locked."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from suffice.errors import StoreError
from suffice.review.decide import DecisionRows, IncidentForm, OverrideForm
from suffice.review.holds import Incident, Override, OverrideEnd
from suffice.settings import Route
from suffice.store.database import sqlite
from suffice.store.database.decisions import Decisions
from suffice.store.database.location import LogLocation
from suffice.store.database.views import open_reader
from suffice.store.people.deciding import (
    decide_incident,
    end_override,
    fitting,
    open_incident,
    read_snapshot,
    set_override,
)
from suffice.store.routes.deployments import NOTHING_HELD, read_decided, read_holds
from suffice.store.rows.events import Event
from suffice.types import Epoch, Pause, Resumption
from tests.review.test_override import publication

Query = Callable[..., list[tuple[Any, ...]]]
ROUTE = Route(upstream="up", mode="enforce", max_em_drop=0.02, confidence=0.95)


@pytest.fixture
def writer(database: LogLocation) -> Iterator[Decisions]:
    with Decisions(database, now=lambda: 10.0, monotonic_s=lambda: 0.0) as opened:
        yield opened


def began(number: int) -> Epoch:
    return Epoch(route="r", number=number, at=0, since_seq=0, reason="another model", author="w")


def report_of(*more: Event) -> list[Event]:
    """Two publications of the epoch that runs, and a pause of the control loop's own."""
    return [
        began(1),
        publication(number=1, epoch=1),
        began(2),
        publication(number=2, epoch=2, level=4),
        publication(number=3, epoch=2, level=6),
        Pause(route="r", number=1, cause="critical_em", reason="EM is low", author="w"),
        *more,
    ]


def decision_form(decision: Any, **changes: Any) -> IncidentForm:
    return IncidentForm(**({"incident": "r:p1", "decision": decision, "reason": "seen", "author": "ann"} | changes))


def test_rolling_back_ends_the_pause_and_pins_the_earlier_publication(writer: Decisions, database: LogLocation) -> None:
    writer.write(None, report_of())
    result = decide_incident(writer, ROUTE, "r", decision_form("roll_back"), now_s=20.0, publication=2)
    assert isinstance(result, DecisionRows), result
    assert read_decided(database).of("r").pause is None
    pin = read_holds(database).of("r").in_effect(21.0).pin
    assert pin is not None
    assert pin.pinned == publication(number=2, epoch=2, level=4)
    for number, wrong in ((1, "is of epoch 1"), (9, "unknown publication 9")):
        again = decide_incident(writer, ROUTE, "r", decision_form("roll_back"), now_s=20.0, publication=number)
        assert wrong in str(again) or "decided already" in str(again)


@pytest.mark.parametrize(("number", "wrong"), [(1, "is of epoch 1"), (9, "unknown publication 9 of route r")])
def test_a_roll_back_that_does_not_fit_changes_nothing(
    writer: Decisions, query: Query, number: int, wrong: str
) -> None:
    writer.write(None, report_of())
    before = query("SELECT count(*) FROM events")
    assert wrong in str(decide_incident(writer, ROUTE, "r", decision_form("roll_back"), now_s=20.0, publication=number))
    assert query("SELECT count(*) FROM events") == before


@pytest.mark.sqlite_only
def test_a_roll_back_while_the_file_is_locked_loses_nothing(
    writer: Decisions, database: LogLocation, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_S", 0.5)  # for which a transaction waits
    writer.write(None, report_of())
    before = query("SELECT count(*) FROM events")
    with closing(sqlite3.connect(str(database), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError, match="another process has held it"):
            decide_incident(writer, ROUTE, "r", decision_form("roll_back"), now_s=20.0, publication=2)
        other.execute("ROLLBACK")
    assert query("SELECT count(*) FROM events") == before
    assert [case.is_open for case in read_holds(database).of("r").cases] == [True]
    assert isinstance(
        decide_incident(writer, ROUTE, "r", decision_form("roll_back"), now_s=21.0, publication=2), DecisionRows
    )


def test_of_two_admins_at_once_one_decides_and_the_other_is_told(database: LogLocation, writer: Decisions) -> None:
    writer.write(None, report_of())
    result: list[DecisionRows | str] = []

    def act(name: str, decision: str) -> None:
        with Decisions(database, now=lambda: 11.0, monotonic_s=lambda: 0.0) as own:
            more = {"level": 1} if decision == "tighten" else {}
            result.append(decide_incident(own, ROUTE, "r", decision_form(decision, author=name, **more), now_s=20.0))

    threads = [threading.Thread(target=act, args=(f"admin {n}", ("resume", "tighten")[n % 2])) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done = [one for one in result if isinstance(one, DecisionRows)]
    assert len(done) == 1
    assert all("is decided already" in one for one in result if isinstance(one, str))
    held = read_holds(database).of("r")
    assert len(held.overrides) == (done[0].override is not None), "of the others nothing was written, no part of it"


def test_two_overrides_at_once_get_two_numbers(database: LogLocation, writer: Decisions) -> None:
    writer.write(None, report_of())

    def act(level: int) -> None:
        with Decisions(database, now=lambda: 11.0, monotonic_s=lambda: 0.0) as own:
            wanted = OverrideForm(kind="cap", reason="x", author="a", days=1.0, level=level)
            assert isinstance(set_override(own, "r", ROUTE, wanted, now_s=20.0), Override)

    threads = [threading.Thread(target=act, args=(level,)) for level in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    held = read_holds(database).of("r")
    assert sorted(one.number for one in held.overrides) == [1, 2, 3, 4, 5]
    assert held.in_effect(30.0).ceiling == 1


def test_an_override_ends_by_a_person_or_by_itself(writer: Decisions, database: LogLocation) -> None:
    writer.write(None, report_of())
    wanted = OverrideForm(kind="cap", reason="x", author="a", days=1.0, level=2)
    assert isinstance(set_override(writer, "r", ROUTE, wanted, now_s=20.0), Override)
    for number, at_s in ((2, 21.0), (1, 20.0 + 86_400.0)):
        assert "no override" in str(end_override(writer, "r", ROUTE, number, "x", "a", now_s=at_s))
    assert "an author and a reason" in str(end_override(writer, "r", ROUTE, 1, " ", "a", now_s=21.0))
    end = end_override(writer, "r", ROUTE, 1, "it is over", "bob", now_s=21.0)
    assert isinstance(end, OverrideEnd)
    assert (end.before, end.after) == ("level 2 at most", "paused: EM is low")
    assert "those that do: none" in str(end_override(writer, "r", ROUTE, 1, "x", "a", now_s=22.0))
    assert read_holds(database).of("r").in_effect(22.0).ceiling is None
    assert "unknown publication 9" in str(
        set_override(
            writer, "r", ROUTE, OverrideForm(kind="pin", reason="x", author="a", days=1.0), now_s=1.0, publication=9
        )
    )


def test_incidents_by_hand_pause_where_asked(writer: Decisions, database: LogLocation) -> None:
    quiet = open_incident(writer, "r", ROUTE, "units", "ann", now_s=5.0, evidence=("ticket 812",))
    loud = open_incident(writer, "r", ROUTE, "worse", "ann", now_s=6.0, pauses=True)
    assert isinstance(quiet, Incident)
    assert isinstance(loud, Incident)
    assert (quiet.incident, quiet.pause, loud.incident, loud.pause) == ("r:m1", None, "r:m2", 1)
    assert quiet.evidence[0] == "ticket 812"
    assert quiet.evidence[1].startswith("held then: promise: none is needed: no control loop has begun with the route")
    assert read_decided(database).of("r").pause is not None
    assert "an author and a sentence" in str(open_incident(writer, "r", ROUTE, " ", "ann", now_s=7.0))
    result = decide_incident(writer, ROUTE, "r", decision_form("resume", incident="r:m2"), now_s=8.0)
    assert isinstance(result, DecisionRows)
    assert read_decided(database).of("r").pause is None


def test_what_can_be_rolled_back_to_is_named_with_its_reasons(writer: Decisions, database: LogLocation) -> None:
    writer.write(None, report_of(publication(number=4, epoch=2, level=0, certified=False)))
    with open_reader(database) as connection:
        now = read_snapshot(connection, "r", ROUTE)
        able = fitting(connection, now, now_s=20.0)
        assert fitting(connection, read_snapshot(connection, "other", ROUTE), now_s=20.0) == []
    assert [(made.number, why) for made, why in able] == [(4, "publication 4 certifies no level"), (3, None), (2, None)]


def test_only_what_is_new_is_read(writer: Decisions, database: LogLocation) -> None:
    assert read_holds(database) is NOTHING_HELD
    writer.write(None, report_of())
    known = read_holds(database)
    assert read_holds(database, known) is known
    writer.write(None, [Resumption(route="r", number=1, reason="fine", author="bob")])
    assert read_holds(database, known).of("r") == read_holds(database).of("r")
    assert read_holds(database).of("r").open_cases == ()
