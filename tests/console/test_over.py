"""An alert is over when what it told of is, and not before: by a row of the log, by time, or as it is told."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from suffice.assurance.forecast import Alert, CrossingForecast, Forecast, RouteForecast
from suffice.assurance.forecast_grades import Of
from suffice.review.holds import Incident, IncidentDecision
from suffice.rollout.stages import Transition
from suffice.store.database.views import open_reader
from suffice.store.people.alerts import ENDS, MOST, READS, AlertLog, OpenAlert, after, read_alert_log
from suffice.store.rows.events import (
    Event,
    FailOpenCount,
    KillSwitchState,
    LogOutage,
    RolloutMove,
    RolloutUndo,
    VersionRefusal,
)
from suffice.types import Alarm, Epoch, Pause, Publication, Resumption
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.test_upkeep import append

HOUR_S = 3_600.0


def alarm(epoch: int = 3, route: str = "math") -> Alarm:
    return Alarm(route=route, epoch=epoch, at=10, cause="signals", reason="signals moved")


def epoch(number: int, route: str = "math") -> Epoch:
    return Epoch(route=route, number=number, at=10, since_seq=0, reason="anew", author="w")


def published(of_epoch: int, *, level: int = 4, certified: bool = True, route: str = "math") -> Publication:
    return Publication(
        route=route,
        number=7,
        epoch=of_epoch,
        at=20,
        version="v",
        fit="f",
        level=level,
        n_levels=9,
        certified=certified,
        share=0.1,
        reason="as it came out",
        author="w",
    )


def look(*alerts: Of, now: float | None = None, route: str = "math") -> RouteForecast:
    """A look at a route: what is forecast, and how much of a budget of 2 % is spent."""
    drop = (
        None
        if now is None
        else Forecast(
            of="em_drop",
            limit=0.02,
            now=now,
            per_1000=0.0,
            ahead=now,
            ahead_low=0.0,
            ahead_high=0.03,
            crossing=CrossingForecast(earliest=None, expected=None, latest=None),
            alert=False,
            doubtful=False,
            reason="",
        )
    )
    return RouteForecast(
        route=route,
        at=9,
        epoch=1,
        since=0,
        confidence=0.95,
        cap_tokens=None,
        drop=drop,
        alerts=alerts,
    )


def forecast(of: Of = "em_drop") -> Alert:
    return Alert(route="math", epoch=1, at=9, of=of, limit=0.02, expected=40, reason="it will cross")


def paused(number: int = 2) -> Pause:
    return Pause(route="math", number=number, cause="critical_em", reason="EM fell", author="w")


def resumed(number: int = 2) -> Resumption:
    return Resumption(route="math", number=number, reason="it was the prompt", author="ann")


def incident(name: str = "math:m1") -> Incident:
    return Incident(
        incident=name,
        route="math",
        cause="person",
        summary="units",
        evidence=(),
        pause=None,
        opened_at_s=1.0,
        author="ann",
    )


def decided(name: str = "math:m1") -> IncidentDecision:
    return IncidentDecision(
        incident=name,
        route="math",
        decision="roll_back",
        reason="a drill",
        author="bob",
        decided_at_s=2.0,
    )


def switch(on: bool, stamp: int = 1) -> KillSwitchState:
    return KillSwitchState(on=on, reason="fire", stamp=stamp)


def moved(move: str, *, by: str = "evidence", stage: str = "canary", rollout: str = "r1") -> RolloutMove:
    step = Transition(
        rollout=rollout,
        number=1,
        move=move,  # type: ignore[arg-type]
        stage=stage,  # type: ignore[arg-type]
        step=1,
        share=0.0,
        audit_share=None,
        at=1,
        now_s=1.0,
        by=by,
        reason="why",
    )
    return RolloutMove(route="math", transition=step, author=by, reason="why")


UNDONE = RolloutUndo(rollout="r1", route="math", author="ann", reason="worse")
REFUSED = VersionRefusal(route="math", number=6, fit="f", reason="cut off", serves="all runs in full")
MISSED = LogOutage(
    gateway="g",
    since_s=1.0,
    until_s=9.0,
    reason="disk",
    after="the last good one",
    n_rows=0,
    n_dropped=0,
)


def standing(*events: Event) -> list[OpenAlert]:
    """What stands behind these rows, an hour and more apart: nothing is the same again."""
    alerts = after(AlertLog(repeat_s=HOUR_S), ((n, n * 4_000.0, event) for n, event in enumerate(events, 1)))
    return [one for one in alerts.raised if one.over(len(events) * 4_000.0) is None]


@pytest.mark.parametrize(
    ("raised", "goes_on", "ends", "because"),
    [
        # A drift's alert stands while the route runs in full: through the epoch that it began, and what stops nothing.
        (
            alarm(3),
            (epoch(4), published(4, level=0), published(4, certified=False), published(4, route="law"), published(3)),
            published(4),
            "publication 7 lets it stop early again",
        ),
        (alarm(3), (epoch(4),), epoch(5), "epoch 5: anew"),
        (
            forecast(),
            (look("em_drop"), look(route="law"), look("em", "em_drop")),
            look("em"),
            "no longer crosses the limit",
        ),
        (forecast("em"), (look("em"),), look(), "no longer crosses the limit"),
        (look(now=0.018), (look(now=0.019), look(route="law", now=0.0)), look(now=0.01), "about 1.00%, of 2.00%"),
        (look(now=0.018), (), look("em_drop", now=0.019), "since then a breach is forecast"),
        (look(now=0.018), (), look(), "too little is known"),
        (paused(2), (resumed(1),), resumed(2), "ann resumed it: it was the prompt"),
        (incident(), (decided("math:m2"), decided("law:m1")), decided(), "bob decided to roll back: a drill"),
        (switch(on=True), (switch(on=True, stamp=2),), switch(on=False), "released: fire"),
        (
            moved("pause"),
            (moved("promote", rollout="r2"), moved("pause", by="person:ann"), moved("certify")),
            moved("resume", by="person:ann"),
            "the rollout went on: why",
        ),
        (moved("pause"), (), moved("roll_back"), "the rollout was rolled back: why"),
        (REFUSED, (published(4, route="law"),), published(4), "publication 7 replaced it"),
        (REFUSED, (moved("promote", stage="ramp"),), moved("promote", stage="full"), "activated another version"),
        (REFUSED, (), UNDONE, "ann took the version back"),
        (REFUSED, (), epoch(4), "no longer active"),
    ],
)
def test_an_alert_stands_until_the_row_that_ends_it(
    raised: Event, goes_on: tuple[Event, ...], ends: Event, because: str
) -> None:
    before = [raised, *goes_on]
    for n in range(len(before)):
        assert 1 in [one.seq for one in standing(*before[: n + 1])], before[n]
    alerts = after(AlertLog(repeat_s=HOUR_S), ((n, n * 4_000.0, event) for n, event in enumerate([*before, ends], 1)))
    over = alerts.raised[0].ended
    assert over is not None
    assert because in over.because
    assert over.at_s == (len(before) + 1) * 4_000.0, "when the row was written"


@pytest.mark.parametrize("event", [switch(on=False), moved("roll_back"), UNDONE, MISSED])
def test_what_only_happened_is_over_as_it_is_told(event: Event) -> None:
    assert standing(event) == []


def test_failing_open_is_over_an_hour_that_told_of_no_more() -> None:
    def high(hour: int) -> FailOpenCount:
        return FailOpenCount(route="math", hour=hour, n_runs=100, n_degraded=9)

    rows = [(1, 10.5 * HOUR_S, high(10)), (2, 11.2 * HOUR_S, high(11))]
    (one,) = after(AlertLog(repeat_s=HOUR_S), rows).raised
    assert (one.n_again, one.over(11.9 * HOUR_S)) == (1, None)
    ended = one.over(12.0 * HOUR_S)
    assert ended is not None
    assert (ended.at_s, ended.because) == (12 * HOUR_S, "it did not recur")


def test_what_comes_again_before_it_would_be_told_anew_stands_again() -> None:
    rows: list[tuple[int, float, Event]] = [(1, 0.0, look(now=0.019)), (2, 60.0, look(now=0.0))]
    (one,) = after(AlertLog(repeat_s=HOUR_S), rows).raised
    assert one.over(61.0) is not None
    (one,) = after(AlertLog(repeat_s=HOUR_S), [*rows, (3, 120.0, look(now=0.018))]).raised
    assert (one.n_again, one.over(121.0)) == (1, None)


def test_a_later_alarm_takes_the_place_of_the_one_before_it() -> None:
    assert [one.seq for one in standing(alarm(3), epoch(4), alarm(4), epoch(5))] == [3]


def test_what_stands_is_remembered_longer_than_what_is_over() -> None:
    rows: list[tuple[int, float, Event]] = [(1, 1.0, incident("math:m1"))]
    for n in range(2, MOST + 2):
        rows += [(2 * n, 2.0 * n, incident(f"math:m{n}")), (2 * n + 1, 2.0 * n + 1, decided(f"math:m{n}"))]
    alerts = after(AlertLog(repeat_s=HOUR_S), rows)
    assert len(alerts.raised) == MOST
    assert [one.seq for one in alerts.raised if one.ended is None] == [1]


@pytest.mark.slow(keep=4)
@pytest.mark.parametrize("seed", range(8))
def test_reading_on_in_any_pieces_says_what_is_over_as_reading_at_once(tmp_path: Path, seed: int) -> None:
    rng, database = random.Random(seed), tmp_path / "log.db"
    append(database)
    known = AlertLog(repeat_s=HOUR_S)
    for n in range(12):
        append(database, *(anything(10 * n + k, rng) for k in range(4)), at_s=n * 900.0)
        if rng.random() < 0.5:
            with open_reader(database) as connection:
                known = read_alert_log(connection, known)
    with open_reader(database) as connection:
        assert read_alert_log(connection, known) == read_alert_log(connection, AlertLog(repeat_s=HOUR_S))
    assert any(one.ended is None for one in known.raised)


def anything(n: int, rng: random.Random) -> Event:
    """A row that tells or ends something."""
    made: list[Event] = [
        alarm(n),
        epoch(n),
        published(n),
        incident(f"math:m{n // 5}"),
        decided(f"math:m{n // 7}"),
        switch(on=n % 3 > 0, stamp=n),
        paused(n // 4),
        resumed(n // 5),
        REFUSED,
    ]
    return rng.choice(made)


def test_kinds_that_end_something_are_read_and_tell_nobody() -> None:
    assert not {*ENDS} & {*READS}


def test_what_stands_is_shown_first_and_what_is_over_with_its_end_on_the_page_and_on_the_first_one(
    tmp_path: Path,
) -> None:
    settings, database = settings_in(tmp_path), tmp_path / "log.db"
    secret, now_s = people_of(settings).first() or "", time.time()
    append(database, alarm(3), at_s=now_s - 40 * HOUR_S)
    append(database, incident(), at_s=now_s - 3 * HOUR_S)
    append(database, decided(), at_s=now_s - HOUR_S)
    with site(settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        drift, closed = visitor.get("/api/alerts").json["lines"]
        assert (drift["kind"], drift["over"]) == ("drift", None), "what stands is first, however old"
        assert closed["over"]["at_s"] == pytest.approx(now_s - HOUR_S)
        page = visitor.get("/console/alerts").text
        assert page.index("<h2>Open<") < page.index("signals moved") < page.index("<h2>Over") < page.index("units")
        assert "after 2.0 hours" in page
        assert "bob decided to roll back: a drill" in page
        alerts = visitor.get("/api/overview").json["alerts"]
        assert [(one["kind"], one["over"] is None) for one in alerts] == [("drift", True), ("incident", False)]
        first = visitor.get("/console").text
        assert "open</span>" in first
        assert "over after 2.0 hours" in first
        append(database, published(4), at_s=now_s - 60)
        page = visitor.get("/console/alerts").text
        assert "No open alert: all are resolved." in page
        assert "lets it stop early again" in page
        assert [one["kind"] for one in visitor.get("/api/overview").json["alerts"]] == ["incident"], "a day is over"
