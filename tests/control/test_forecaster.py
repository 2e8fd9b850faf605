"""A worker that takes over goes on with the forecasts that the log holds: what waits, what is open, how they did."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.forecast import MEMORY, CrossingForecast, Forecast, ForecastAction, RouteForecast, Stance
from suffice.assurance.forecast_grades import ExpectedOutcomes, TrackRecord
from suffice.assurance.runs import measure_run
from suffice.control.evidence import forecaster as of_forecasts
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.feedback import feedback_of
from suffice.control.evidence.forecaster import ForecastWindows, KeptRun, RouteForecaster, WatchedRun
from suffice.store.database.views import EpisodeWithLabels, StoredLabel
from suffice.types import Alarm, AlarmCause, Episode, Feedback, Outcome, Request
from tests.control.made import ROUTE, traffic

RECORD = TrackRecord(of="em_drop", n_graded=40, n_inside=36, width=1.1, alerted_at=6_800)


def look(at: int, *, epoch: int = 2, level: int = 7, fit: str = "v-1") -> RouteForecast:
    drop = Forecast(
        of="em_drop",
        limit=0.02,
        now=0.01,
        per_1000=0.0,
        ahead=0.01,
        ahead_low=0.0,
        ahead_high=0.03,
        crossing=CrossingForecast(earliest=None, expected=None, latest=None),
        alert=True,
        doubtful=False,
        reason="",
        outcomes=ExpectedOutcomes(mean=0.01, sd=0.002, noise=0.006),
    )
    return RouteForecast(
        route="r",
        at=at,
        epoch=epoch,
        since=0,
        confidence=0.9,
        cap_tokens=None,
        drop=drop,
        alerts=("em_drop",),
        level=level,
        fit=fit,
        records=(RECORD,),
    )


def action(epoch: int = 2) -> ForecastAction:
    return ForecastAction(route="r", epoch=epoch, at=6_900, level=7, cap=4, in_doubt=True, reason="", author="w")


def forecaster(epoch: int = 2) -> RouteForecaster:
    return RouteForecaster("r", ROUTE, lambda answer, gold: answer == gold, since=0, epoch=epoch)


def test_what_waits_for_its_grade_is_what_the_log_holds_and_no_one_has_graded() -> None:
    one = forecaster()
    one.restore([look(at) for at in range(3_000, 7_001, 100)], action(), None)
    assert [at for at, _ in one._pending["em_drop"]] == list(range(3_600, 7_001, 100))
    assert (one.stance, one.alerts, one.level, one.fit) == (Stance(4, True), ("em_drop",), 7, "v-1")
    assert one.records["em_drop"] == RECORD
    assert one.records["em"] == TrackRecord(of="em")


def test_forecasts_about_another_level_are_not_graded() -> None:
    one = forecaster()
    one.restore([*(look(at, level=9) for at in range(5_000, 6_000, 100)), look(6_000), look(6_100)], None, None)
    assert [at for at, _ in one._pending["em_drop"]] == [6_000, 6_100]
    assert one.stance == Stance()


@pytest.mark.parametrize(
    ("cause", "right", "leads"), [("outcomes", 1, (250,)), ("disagreement", 1, (250,)), ("change", 0, ())]
)
def test_an_alarm_of_the_audits_proves_an_open_alert_right_and_a_new_epoch_begins_without(
    cause: AlarmCause, right: int, leads: tuple[int, ...]
) -> None:
    one = forecaster(epoch=3)
    alarm = Alarm(route="r", epoch=2, at=7_050, cause=cause, reason="", author="w")
    one.restore([look(7_000)], action(), alarm)
    record = one.records["em_drop"]
    assert (record.n_right, record.n_wrong, record.leads, record.alerted_at) == (right, 0, leads, None)
    assert (record.n_graded, record.width) == (40, 1.1), "what it has learned of itself stays"
    assert (one.stance, one.alerts, list(one._pending["em_drop"])) == (Stance(), (), [])


def test_memory_ends_with_the_windows_and_steps_with_the_audits_that_are_replayed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(of_forecasts, "MOST_AUDITS", 250)
    windows = ForecastWindows(ROUTE, lambda answer, gold: answer == gold, since=0)
    events = traffic(250, seed=1)
    for n in range(100 * MEMORY + 1_000):
        seen, ended = events[2 * (n % 250) : 2 * (n % 250) + 2]
        assert isinstance(seen, Request)
        assert isinstance(ended, Outcome)
        episode = Episode(request=replace(seen, episode_id=f"e{n}"), outcome=replace(ended, episode_id=f"e{n}"))
        numbers = measure_run(EpisodeWithLabels(seq=n, episode=episode, labels=()), windows.replayed.match)
        run = WatchedRun(numbers, KeptRun.of(episode))
        windows.add(run, Audit(seq=n, at=n, ended_at_s=0.0, episode=episode))
        windows.close_full([episode], 0.0, n)
    audits = [audit for window in windows.windows for audit in window.audits.values()]
    with_steps = [audit for audit in audits if audit.outcome.steps]
    assert len(audits) == len(windows._window_of) == 100 * MEMORY
    assert with_steps == audits[-len(with_steps) :]
    assert 250 <= len(with_steps) < 250 + 100, "all that are replayed, and the rest of the oldest one's window"


@given(
    audit=st.booleans(),
    delivery=st.integers(1, 2),
    end=st.sampled_from(["done", "stopped", "client_closed", "upstream_error"]),
    stop_step=st.none() | st.just(2),
    would=st.none() | st.just("other"),
    label_fields=st.sampled_from([{}, {"correct": True}, {"correct": False}, {"gold": "other"}, {"rating": 5}]),
    keep_rate=st.sampled_from([1.0, 0.25]),
)
def test_what_is_kept_of_a_run_judges_and_rates_it_as_the_whole_run_does(
    audit: bool,
    delivery: int,
    end: Any,
    stop_step: int | None,
    would: str | None,
    label_fields: dict[str, Any],
    keep_rate: float,
) -> None:
    request, outcome = traffic(1)
    assert isinstance(request, Request)
    assert isinstance(outcome, Outcome)
    request = replace(request, audit=audit, delivery=delivery, propensity=0.5, certified=True, keep_rate=keep_rate)
    outcome = replace(outcome, end_reason=end, stop_step=stop_step, would_answer=would or outcome.answer)
    episode, match = Episode(request=request, outcome=outcome), lambda answer, gold: bool(answer == gold)
    label = Feedback(feedback_id="f", episode_id=request.episode_id, source="user", **label_fields)
    labels = (StoredLabel(seq=9, feedback=label),)
    kept = KeptRun.of(episode).episode()
    whole, later = (measure_run(EpisodeWithLabels(seq=1, episode=one, labels=labels), match) for one in (episode, kept))
    assert (later.correct, later.drop, later.full) == (whole.correct, whole.drop, whole.full)
    rated = [feedback_of(one, labels, {}, uncertified=False) for one in (episode, kept)]
    assert rated[0] == rated[1]
