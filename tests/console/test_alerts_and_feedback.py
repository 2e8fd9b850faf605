"""Who was told of an alert, what people say of answers, and what a reviewer sees of a loop, on pages and as JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from suffice.assurance.estimate import IntervalEstimate
from suffice.assurance.forecast import RouteForecast
from suffice.assurance.satisfaction import SatisfactionEffect
from suffice.console.render import format_verdict, is_rate
from suffice.control.jobs.base import Worker
from suffice.control.jobs.notify import Notify
from suffice.settings import Settings
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import open_reader, read_events
from suffice.store.people.alerts import MOST, AlertLog, Notice, after, read_alert_log
from suffice.store.rows.events import Event, KillSwitchState
from suffice.types import Alarm
from tests.console.made import HOSTILE, fill
from tests.console.visitor import Visitor, people_of, settings_in, site
from tests.control.test_upkeep import append

HOUR_S = 3_600.0


def alarm(epoch: int, reason: str = "signals moved", route: str = "math") -> Alarm:
    return Alarm(route=route, epoch=epoch, at=10, cause="signals", reason=reason)


def killed(stamp: int) -> KillSwitchState:
    return KillSwitchState(on=True, reason="fire", stamp=stamp)


@dataclass
class Here:
    """A console on a log, with a worker that tells two sinks."""

    settings: Settings
    database: Path
    visitor: Visitor
    down: list[str]  # sinks that take nothing

    def add(self, *events: Event, ago_s: float = 60.0) -> None:
        append(self.database, *events, at_s=time.time() - ago_s)

    def tell(self) -> None:
        """A worker's round, of a worker that is new."""
        ticks = iter(range(10**6))
        job = Notify(
            settings=self.settings,
            path=self.database,
            now=time.time,
            monotonic_s=lambda: 700.0 * next(ticks),
            sinks=[Heard(name, self.down) for name in ("log", "webhook")],
        )
        with Decisions(self.database, now=time.time, monotonic_s=lambda: float(next(ticks))) as writer:
            Worker(
                decisions=writer,
                jobs=(job,),
                author="w",
                now=time.time,
                monotonic_s=lambda: float(next(ticks)),
                new_id=lambda: f"jr_{next(ticks)}_{time.time_ns()}",
            ).round()

    def alerts(self) -> Any:
        return self.visitor.get("/api/alerts").json


@dataclass
class Heard:
    """A sink that is up or down."""

    name: str
    down: list[str]

    def send(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
        return "the webhook answered 500" if self.name in self.down else None


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    yield from made(tmp_path, alerts={"webhook_url_env": "HOOK", "repeat_s": HOUR_S})


def made(folder: Path, **tables: Any) -> Iterator[Here]:
    settings = settings_in(folder, **tables)
    secret = people_of(settings).first() or ""
    with site(settings) as app:
        visitor = Visitor(app)
        visitor.login(secret)
        yield Here(settings, folder / "log.db", visitor, [])


def test_an_alert_says_who_took_it_and_what_came_again_untold(here: Here) -> None:
    here.tell()
    here.add(alarm(1), ago_s=1_000.0)
    here.tell()
    here.add(alarm(2), ago_s=900.0)
    here.add(alarm(3), ago_s=800.0)
    here.add(killed(1), ago_s=700.0)
    here.tell()
    switch, drift = here.alerts()["lines"]
    assert (drift["kind"], drift["n_again"]) == ("drift", 2)
    assert [one["sink"] for one in drift["taken"]] == ["log", "webhook"]
    assert drift["latest_at_s"] - drift["at_s"] == pytest.approx(200, abs=5)
    assert (switch["kind"], switch["n_again"], len(switch["taken"])) == ("kill_switch", 0, 2)
    assert [(one["sink"], one["n_taken"], one["n_waiting"]) for one in here.alerts()["sinks"]] == [
        ("log", 2, 0),
        ("webhook", 2, 0),
    ]
    page = here.visitor.get("/console/alerts").text
    assert "repeated 2 times, not sent" in page
    assert 'href="/console/route?route=math"' in page


def test_a_sink_that_is_down_is_named_with_what_it_said_and_nothing_counts_as_told(here: Here) -> None:
    here.tell()
    here.down.append("webhook")
    here.add(alarm(1), ago_s=100.0)
    here.tell()
    (line,) = here.alerts()["lines"]
    assert ([one["sink"] for one in line["taken"]], line["waits_for"]) == (["log"], ["webhook"])
    log, webhook = here.alerts()["sinks"]
    assert (log["n_waiting"], webhook["n_waiting"], webhook["latest_s"]) == (0, 1, None)
    assert "the webhook answered 500" in webhook["problem"]
    assert "webhook: not yet" in here.visitor.get("/console/alerts").text
    assert "The sink webhook has not taken 1 alert yet" in here.visitor.get("/console").text
    here.down.clear()
    here.tell()
    (line,) = here.alerts()["lines"]
    assert (len(line["taken"]), line["waits_for"]) == (2, [])
    assert [one["problem"] for one in here.alerts()["sinks"]] == ["", ""]
    assert "has not taken" not in here.visitor.get("/console").text


def test_what_was_before_a_sink_listened_is_told_nobody_and_said_so(here: Here) -> None:
    here.add(alarm(1))
    assert [one["n_waiting"] for one in here.alerts()["sinks"]] == [0, 0]
    assert "a worker has yet to begin" in here.visitor.get("/console/alerts").text
    here.tell()
    (line,) = here.alerts()["lines"]
    assert (line["taken"], line["waits_for"]) == ([], [])
    assert "no sink was configured then" in here.visitor.get("/console/alerts").text


def test_kinds_that_are_left_out_are_shown_and_told_nobody(tmp_path: Path) -> None:
    for here in made(tmp_path, alerts={"webhook_url_env": "HOOK", "kinds": ["kill_switch"]}):
        here.tell()
        here.add(alarm(1), killed(1))
        here.tell()
        taken = {one["kind"]: (one["wanted"], len(one["taken"]), one["waits_for"]) for one in here.alerts()["lines"]}
        assert taken == {"drift": (False, 0, []), "kill_switch": (True, 2, [])}
        assert "drift" in here.alerts()["unwanted"]


def test_the_first_page_shows_alerts_of_a_day_and_their_page_all_of_them(tmp_path: Path) -> None:
    for here in made(tmp_path):
        assert "Nobody. Name a webhook" in here.visitor.get("/console/alerts").text
        assert "No alerts yet" in here.visitor.get("/console/alerts").text
        here.add(alarm(1), ago_s=25 * HOUR_S)
        here.add(*(killed(stamp) for stamp in range(8)), ago_s=23 * HOUR_S)
        alerts = here.visitor.get("/api/overview").json["alerts"]
        assert [one["kind"] for one in alerts] == ["kill_switch"] * 5, "a few, and none that is older"
        assert len(here.alerts()["lines"]) == 9
        assert "Open alerts, and those of the last 24 hours" in here.visitor.get("/console").text


def test_reading_on_says_what_reading_anew_says_and_forgets_the_oldest(tmp_path: Path) -> None:
    database = tmp_path / "log.db"
    append(database)
    known = AlertLog(repeat_s=HOUR_S)
    for number in range(30):
        append(database, alarm(number, route=f"r{number % 3}"), killed(number), at_s=number * 400.0)
        with open_reader(database) as connection:
            known = read_alert_log(connection, known)
            assert read_alert_log(connection, known) is known
    with open_reader(database) as connection:
        assert read_alert_log(connection, AlertLog(repeat_s=HOUR_S)) == known
    drifts = [one for one in known.raised if one.notice.kind == "drift"]
    assert sum(1 + one.n_again for one in drifts) == 30
    assert all(one.latest_at_s - one.at_s < HOUR_S for one in drifts)
    rows = [(one.seq, one.at_s, one.event) for one in read_events(database)]
    assert after(AlertLog(repeat_s=HOUR_S), rows).raised == known.raised
    many = after(AlertLog(repeat_s=HOUR_S), ((n, n * 1.0, killed(n)) for n in range(1, MOST + 50)))
    assert [one.seq for one in many.raised] == list(range(50, MOST + 50))
    assert set(many.of) == set(range(50, MOST + 50))


# ---- what people say -------------------------------------------------------------------------------


def satisfaction_effect(effect: IntervalEstimate | None = None, **changes: Any) -> SatisfactionEffect:
    fields: dict[str, Any] = {
        "measure": "satisfaction",
        "better": "higher",
        "query_class": None,
        "version": None,
        "n_runs": 900,
        "n_heard": 120,
        "everybody": IntervalEstimate(value=0.71, low=0.66, high=0.76, n=120, method="m"),
        "full": IntervalEstimate(value=0.74, low=0.6, high=0.8, n=40, method="m"),
        "stopped": None,
        "effect": effect,
        "rated_audits": 0.2,
        "rated_stopped": 0.19,
    }
    return SatisfactionEffect(**fields | changes)


def effect(low: float, high: float) -> IntervalEstimate:
    return IntervalEstimate(value=(low + high) / 2, low=low, high=high, n=55, method="paired")


@pytest.mark.parametrize(
    ("one", "verdict"),
    [
        (satisfaction_effect(effect(-0.2, -0.05)), "worse"),
        (satisfaction_effect(effect(0.05, 0.2)), "better"),
        (satisfaction_effect(effect(-0.2, 0.1)), ""),
        (satisfaction_effect(effect(0.05, 0.2), better="lower", measure="regenerated"), "worse"),
        (satisfaction_effect(), ""),
        (satisfaction_effect(effect(-0.2, -0.05), better="lower"), "better"),
    ],
)
def test_a_difference_is_called_one_only_where_its_interval_says_so(one: SatisfactionEffect, verdict: str) -> None:
    assert format_verdict(one) == verdict
    assert is_rate(one)
    assert not is_rate(satisfaction_effect(measure="seconds to read"))


def test_satisfaction_stands_beside_em_on_the_first_page_and_by_class_and_version(tmp_path: Path) -> None:
    for here in made(tmp_path):
        fill(tmp_path, here.settings, now_s=time.time())
        assert "it takes ratings of audits beside ratings of stopped runs" in here.visitor.get("/console").text
        effects = (
            satisfaction_effect(effect(-0.2, -0.05)),
            satisfaction_effect(effect(-0.3, -0.1), query_class="algebra"),
            satisfaction_effect(version="v"),
            satisfaction_effect(measure="regenerated", better="lower", effect=effect(-0.01, 0.03)),
        )
        seen = RouteForecast(
            route="math",
            at=9_999,
            epoch=2,
            since=0,
            confidence=0.95,
            cap_tokens=None,
            likings=effects,
        )
        here.add(seen, ago_s=0.0)
        overview, route = here.visitor.get("/console").text, here.visitor.get("/console/route?route=math").text
        assert "Satisfaction where stopped, math" in overview
        assert "−20.0 to −5.0" in overview
        assert "worse where stopped</span>, in 55 pairs" in " ".join(overview.split())
        assert here.visitor.get("/api/overview").json["liked"]["satisfaction"]["effect"]["n"] == 55
        row = route[route.index("class=algebra") :][:2_000]
        assert "71.0 %" in row
        assert "worse where stopped" in row
        assert "regenerated" in route
        assert "no difference is proven" in route
        assert [one["measure"] for one in here.visitor.get("/api/route?route=math").json["likings"]] == [
            "satisfaction",
            "regenerated",
        ]


# ---- what a reviewer sees of a loop ----------------------------------------------------------------


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("texts", [(), HOSTILE])
def test_a_reviewer_of_a_loop_sees_its_steps_and_what_they_read(tmp_path: Path, texts: tuple[str, ...]) -> None:
    for here in made(tmp_path):
        fill(tmp_path, here.settings, now_s=time.time(), texts=texts)
        loops = set[str]()
        for _ in range(12):
            form = {"csrf": here.visitor.token(), "back": "/console/review"}
            assert here.visitor.post("/console/review/next", form).status == 303
            hand, page = here.visitor.get("/api/review").json["in_hand"], here.visitor.get("/console/review").text
            if hand is None:
                break
            name = hand["item"]["episode_id"]
            assert (hand["loop"] is None) == (int(name[3:]) % 4 != 0), name
            if hand["loop"] is not None:
                loops.add(name)
                assert len(hand["loop"]["steps"]) > 2
                first = hand["loop"]["steps"][0]
                assert first["read"] == [texts[int(name[3:]) % len(texts)] if texts else "The Danube."]
                assert 'class="source"' in page
                assert "<script>pwned" not in page
                assert ("the end is cut off" in page) == (name == "ep_00000")
            answer_form = {"item": name, "verdict": "both", "csrf": here.visitor.token()}
            assert here.visitor.post("/console/review/say", answer_form).status == 303
        assert len(loops) == 6
