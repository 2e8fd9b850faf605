"""The job `monitor` on real logs: accounts that hold, an alert before the breach, one row a look, no harm to others."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from suffice.assurance.forecast import Alert, ForecastAction, RouteForecast
from suffice.assurance.spending import SpendForecast
from suffice.cli.inspect.route_report import status_sections
from suffice.cli.inspect.route_status import read_statuses
from suffice.control.evidence.audits import audits_to_rows
from suffice.control.jobs.base import JobReport, Worker
from suffice.control.jobs.monitor import Monitor
from suffice.gateway.log_follower import export_gauges
from suffice.settings import Settings, parse_settings
from suffice.store.database import views
from suffice.store.database.sqlite import SqliteConnection
from suffice.store.database.views import job_history, newest_event, newest_events, open_reader, read_events
from suffice.store.routes.rollups import add_rollups, read_to
from suffice.store.rows.events import Event
from suffice.store.rows.sums import RollupKey, RollupSums
from suffice.telemetry import Metrics
from suffice.types import Alarm, AlarmCause, Epoch, Outcome, Publication, Query, Usage
from suffice.wiring.worker import open_worker
from tests.control.made import label, traffic
from tests.control.test_worker import fill, settings_for
from tests.records import plain_request, plain_step

BUDGET = 0.04


def looked(here: Worker) -> list[JobReport]:
    reports = here.once("monitor")
    assert reports is not None
    return reports


def only(here: Worker) -> JobReport:
    """What was seen of the one route."""
    (report,) = looked(here)
    return report


def events_of(folder: Path, kind: type[Event]) -> list[Any]:
    return [stored.event for stored in read_events(folder / "log.db") if isinstance(stored.event, kind)]


# ---- a route that certifies itself ------------------------------------------------------------------


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log of four hundred full runs, every fifth labelled, that is certified."""
    folder = tmp_path_factory.mktemp("certified")
    events = traffic(400)
    answers = [event.answer for event in events if isinstance(event, Outcome)]
    fill(folder, [*events, *(label(number, gold=answers[number]) for number in range(0, 400, 5))])
    with open_worker(settings_for(folder)) as here:
        assert here.once("certify")
    return folder


@pytest.fixture
def folder(certified: Path, tmp_path: Path) -> Path:
    shutil.copy(certified / "log.db", tmp_path / "log.db")
    return tmp_path


def test_accounts_count_what_was_asked_behind_the_first_hundred_runs(folder: Path) -> None:
    with open_worker(settings_for(folder)) as here:
        report = only(here)
    seen = newest_event(folder / "log.db", RouteForecast, route="r")
    assert seen is not None
    assert seen.whole is not None
    assert (report.ok, report.at, seen.at, seen.since, seen.epoch) == (True, 400, 400, 100, 1)
    assert (seen.whole.n_runs, seen.whole.n_audits, seen.whole.n_cut) == (300, 300, 0)
    tokens = [event.usage.completion_tokens for event in events_of(folder, Outcome) if event.usage]
    assert seen.whole.tokens_full is not None
    assert seen.whole.tokens_full.value == pytest.approx(sum(tokens[100:]) / 300)
    assert seen.whole.em_full is not None
    assert (seen.whole.em_full.value, seen.whole.em_full.n) == (1.0, 60)
    assert seen.served is not None
    assert (seen.served.n_audits, seen.served.loss) == (300, 0), "full runs served no stop"


def test_the_forecast_hears_what_the_stop_model_expects_audits_to_lose(folder: Path) -> None:
    with open_worker(settings_for(folder)) as here:
        looked(here)
        monitor = next(job for job in here.jobs if isinstance(job, Monitor))
        windows = monitor._memory["r"].forecaster.windows
        summaries = windows.summaries(400)
    assert len(summaries) == 4
    served, level = windows.replayed.served, windows.replayed.level
    assert served is not None
    assert level > 0
    drops = [window.predicted_drop for window in summaries]
    assert all(one is not None and 0 < one < 1 for one in drops)
    audits = [audit for window in windows.windows for audit in window.audits.values()]
    rows = audits_to_rows(
        audits, chosen=served.features, match=windows.replayed.match, wave=8, counts=windows.replayed._counts
    )
    assert rows is not None
    expected = served.expected(rows, served.rows_at(rows, level))
    assert expected is not None
    assert sum(one or 0.0 for one in drops) / 4 == pytest.approx(float(expected.mean()), rel=0.02)
    relative = windows.relative_losses(level)
    assert (len(relative), relative[0], relative[-1]) == (level + 1, 0.0, 1.0)
    assert relative.tolist() == sorted(relative.tolist())


def test_a_look_without_news_is_not_repeated_and_a_second_worker_has_to_wait(folder: Path) -> None:
    with open_worker(settings_for(folder)) as first, open_worker(settings_for(folder)) as second:
        assert only(first).ok
        assert second.once("monitor") is None
        assert only(first).summary == ""
    with open_worker(settings_for(folder)) as later:
        assert only(later).at == 400
    assert len(events_of(folder, RouteForecast)) == 1
    assert {run.job for run in job_history(folder / "log.db")} == {"certify", "monitor"}


def test_a_worker_that_begins_late_reads_the_latest_requests_alone_and_counts_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suffice.control.jobs.monitor.LOOK_BACK", 250)
    with open_worker(settings_for(folder)) as here:
        assert only(here).at == 400
    seen = newest_event(folder / "log.db", RouteForecast, route="r")
    assert seen is not None
    assert seen.whole is not None
    assert (seen.at, seen.since, seen.whole.n_runs) == (400, 250, 150)


@pytest.mark.parametrize(("cause", "n_windows"), [("signals", 4), ("change", 0), ("person", 0)])
def test_windows_outlive_an_alarm_of_drift_and_accounts_begin_anew(
    folder: Path, cause: AlarmCause, n_windows: int
) -> None:
    with open_worker(settings_for(folder)) as here:
        looked(here)
    place = views.last_place(folder / "log.db")
    alarm = Alarm(route="r", epoch=1, at=400, cause=cause, reason="")
    epoch = Epoch(route="r", number=2, at=400, since_seq=place, reason="", author="w")
    fill(folder, [alarm, epoch, *traffic(150, first=9_000)])
    with open_worker(settings_for(folder)) as here:
        assert only(here).at == 550
        watch = next(job for job in here.jobs if isinstance(job, Monitor))._memory["r"]
    assert (watch.epoch, watch.begun, watch.n) == (2, 400, 550)
    assert len(watch.forecaster.windows.windows) == n_windows + 1
    assert watch.book.since == 500
    assert len(watch.book.runs) == 50


def test_a_new_worker_counts_from_the_last_look_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_worker(settings_for(folder)) as here:
        looked(here)
    fill(folder, traffic(7, first=9_000))
    look, counted = newest_event(folder / "log.db", RouteForecast, route="r"), list[int]()
    requests_since = views.requests_since

    def counting(log: views.LogReader, route: str, seq: int) -> int:
        counted.append(seq)
        return requests_since(log, route, seq)

    monkeypatch.setattr(views, "requests_since", counting)
    monkeypatch.setattr("suffice.control.jobs.monitor.LOOK_BACK", 20)
    with open_worker(settings_for(folder)) as here:
        assert only(here).at == 407
    assert look is not None
    assert min(counted) > look.seq / 2, "not from the beginning of the epoch"


def test_status_says_estimates_with_intervals_the_forecast_and_the_whole_promise(folder: Path) -> None:
    settings = settings_for(folder)
    (before,) = read_statuses(folder / "log.db", settings, "r")
    assert before.forecast is None
    with open_worker(settings) as here:
        looked(here)
    (one,) = read_statuses(folder / "log.db", settings, "r")
    assert one.forecast is not None
    assert one.forecast.whole is not None
    drop = one.forecast.whole.em_drop
    assert drop is not None
    assert drop.low is not None
    assert drop.high is not None
    assert drop.low <= drop.value <= drop.high
    for part in ("Route 'r'", "scorer 'number'", "8 points", "90 %", "audits", "a silent loss of"):
        assert part in one.promise


def test_metrics_have_the_upper_end_and_the_saving(folder: Path) -> None:
    with open_worker(settings_for(folder)) as here:
        looked(here)
    seen, metrics = newest_event(folder / "log.db", RouteForecast, route="r"), Metrics()
    assert seen is not None
    assert seen.whole is not None
    assert seen.whole.em_drop is not None
    export_gauges(seen, "r", metrics)
    assert metrics.value("suffice_em_drop_upper_bound", route="r") == seen.whole.em_drop.high
    assert metrics.value("suffice_alerts", route="r") == 0


# ---- a drift that is announced ----------------------------------------------------------------------


def observed_run(number: int, rng: random.Random, p_lost: float, **changes: Any) -> Iterator[Event]:
    """One observed run of two steps, whose policy would have stopped behind the first. Harder ones take longer."""
    name, lost = f"ep_{number:05}", rng.random() < p_lost
    request = plain_request(
        name, policy_version="p-1", question_key=f"q{number}", unit=f"u{number}", setup="s", query=Query(n_words=9)
    )
    request = replace(request, **changes)
    steps = tuple(
        plain_step(
            at,
            tokens=int(rng.randrange(20, 60) * (1 + 20 * p_lost)),
            answer=answer,
            answer_source="text",
            action="stop" if at == 1 else "continue",
        )
        for at, answer in ((1, "7" if lost else "4"), (2, "4"))
    )
    yield request
    yield Outcome(
        episode_id=name,
        end_reason="done",
        status=200,
        answer="4",
        response_id=f"r-{name}",
        stop_step=1,
        would_answer=steps[0].answer,
        usage=Usage(prompt_tokens=5, completion_tokens=sum(s.tokens for s in steps)),
        steps=steps,
    )


def watched(folder: Path) -> Settings:
    return parse_settings(
        {
            "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
            "routes": {
                "r": {
                    "upstream": "up",
                    "kind": "reasoning",
                    "policy": {"policy": "stable-answer"},
                    "max_em_drop": BUDGET,
                }
            },
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("drifts", [True, False])
def test_an_alert_comes_before_the_drop_crosses_the_budget_and_none_without_a_drift(
    tmp_path: Path, drifts: bool
) -> None:
    rng, crossed, number = random.Random(3), 9_000, 0
    with open_worker(watched(tmp_path)) as here:
        for until in (4_500, 6_500, 7_500):
            # From 0.5 % at request 4,000 to the budget at request 9,000, in a line.
            share = [0.005 + drifts * max(0, at - 4_000) * (BUDGET - 0.005) / 5_000 for at in range(number, until)]
            fill(
                tmp_path,
                [
                    event
                    for at, p in zip(range(number, until), share, strict=True)
                    for event in observed_run(at, rng, p)
                ],
            )
            number = until
            (report,) = looked(here)
            assert report.ok
    with open_reader(tmp_path / "log.db") as log:
        alert, seen = (
            next(iter(newest_events(log, Alert, 1, route="r")), None),
            newest_event(log, RouteForecast, route="r"),
        )
    assert seen is not None
    if not drifts:
        assert alert is None
        assert seen.alerts == ()
        return
    assert alert is not None
    assert alert.of == "em_drop"
    assert alert.at <= crossed - 1_000
    assert alert.expected is not None
    assert abs(alert.expected - crossed) < 1_000
    assert seen.alerts == ("em_drop",)
    assert len(events_of(tmp_path, Alert)) == 1, "an alert that stands is not raised again"
    assert any(run.summary.startswith("alert: EM drop is about") for run in job_history(tmp_path / "log.db"))


@pytest.mark.slow
def test_a_breach_that_is_forecast_caps_the_level_before_it_comes_and_calm_lifts_the_cap(tmp_path: Path) -> None:
    """An owner's policy that is certified: a line from 0.5 % at request 4,000 to the budget at 9,000, cut at 8,000."""
    settings = watched(tmp_path)
    route = msgspec.structs.replace(settings.routes["r"], mode="enforce", kind="rounds")
    settings = msgspec.structs.replace(settings, routes={"r": route})
    rng, events = random.Random(3), list[Event]()
    with open_worker(settings) as here:
        for until in range(500, 10_001, 250):
            for at in range(until - 250 if until > 500 else 0, until):
                p_lost = 0.005 + (0 if at >= 8_000 else max(0, at - 4_000)) * (BUDGET - 0.005) / 5_000
                request, outcome = observed_run(at, rng, p_lost, mode="enforce", kind="rounds", audit=True)
                assert isinstance(outcome, Outcome)
                # No signal shows the drift, or its alarm would end the epoch first.
                even = tuple(replace(step, tokens=rng.randrange(20, 60)) for step in outcome.steps)
                events += [request, replace(outcome, steps=even)]
            fill(tmp_path, events)
            events.clear()
            for job in ("certify", "monitor"):
                assert only_of(here, job).ok
    actions, published = events_of(tmp_path, ForecastAction), events_of(tmp_path, Publication)
    capped = next(action for action in actions if action.cap is not None)
    lifted = next(action for action in actions if action.at > capped.at and action.cap is None)
    assert (capped.cap, capped.level, capped.in_doubt) == (0, 1, True)
    assert 4_000 < capped.at <= 8_000
    assert [made.level for made in published if made.at <= capped.at][-1] == 1
    lowered = next(made for made in published if made.at > capped.at)
    assert (lowered.level, lowered.cap) == (0, 0)
    assert lowered.reason.startswith("level 0 at most (EM drop is about ")
    assert published[-1].level == 1, "the loop goes on where it stood"
    assert next(made.level for made in published if made.at > lifted.at) == 1
    last = newest_event(tmp_path / "log.db", RouteForecast, route="r")
    assert last is not None
    record = next(one for one in last.records if one.of == "em_drop")
    assert record.n_graded > 10
    assert record.n_right + record.n_wrong >= 1
    (status,) = read_statuses(tmp_path / "log.db", settings, "r")
    assert f"{record.n_graded:,} graded" in " ".join(value for part in status_sections(status) for _, value in part)
    assert not decided_anew(tmp_path, settings)


def only_of(here: Worker, job: str) -> JobReport:
    reports = here.once(job)
    assert reports is not None
    return reports[0]


def decided_anew(folder: Path, settings: Settings) -> list[str]:
    """What a worker that begins today decides beyond what the log holds already."""
    before = len(events_of(folder, Publication))
    with open_worker(settings) as here:
        report = only_of(here, "certify")
        assert report.ok
    return [made.reason for made in events_of(folder, Publication)[before:]]


def test_spending_is_forecast_once_an_hour_at_most_and_shown(folder: Path) -> None:
    settings, day = settings_for(folder), 20_000
    sums = {
        RollupKey("r", "", "", 24 * at + hour): RollupSums(n_requests=10, completion_tokens=1_000)
        for at in range(day - 20, day)
        for hour in range(24)
    }
    with open_worker(settings) as here:
        assert here.once("rollup")
        with closing(SqliteConnection(folder / "log.db")) as connection, connection:
            seq = read_to(connection).seq
            assert add_rollups(connection, sums, {}, since=seq, seq=seq, at_s=0.0)
        monitor = next(job for job in here.jobs if isinstance(job, Monitor))
        for now_s in (86_400 * day + 60, 86_400 * day + 400, 86_400 * day + 500, 86_400 * day + 5_000):
            monitor.now = partial(float, now_s)
            monitor.rest(-1.0, "r")
            looked(here)
    made = events_of(folder, SpendForecast)
    assert [one.hour for one in made] == [24 * day - 1, 24 * day]
    assert made[1].day["tokens"].expected == pytest.approx(24_000, rel=0.05)
    assert [grade.inside for grade in made[1].grades] == [True]
    (status,) = read_statuses(folder / "log.db", settings, "r")
    lines = dict(line for part in status_sections(status) for line in part)
    assert "before today, about" in lines["tokens this month"]
    assert "cost this month" not in lines, "no prices are set"


def test_a_route_that_cannot_be_watched_leaves_the_others_alone(folder: Path) -> None:
    settings = settings_for(folder, broken={})
    broken = msgspec.structs.replace(settings.routes["broken"], scorer="no-such-scorer")
    settings = msgspec.structs.replace(settings, routes={**settings.routes, "broken": broken})
    with open_worker(settings) as here:
        reports = {report.route: report for report in looked(here)}
        assert [report.route for report in looked(here)] == ["r"], "it is left alone for a while"
    assert reports["r"].ok
    assert not reports["broken"].ok
    assert newest_event(folder / "log.db", RouteForecast, route="r") is not None
