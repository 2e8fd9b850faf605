"""What people say reaches outlook, status and metrics in whatever order it comes, and steers no further than it may."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from suffice.assurance.forecast import RouteForecast
from suffice.assurance.satisfaction import EVENTS
from suffice.cli.inspect.route_report import satisfaction_effect_lines, status_sections, summarize_effect
from suffice.cli.inspect.route_status import read_statuses
from suffice.control.evidence.feedback import Ratings, feedback_of, measures
from suffice.control.jobs.monitor import RouteWatch
from suffice.gateway.log_follower import export_gauges
from suffice.settings import Route, Settings, parse_settings
from suffice.store.database.views import newest_event
from suffice.store.rows.events import Event, FeedbackEvent, ProposedBudget
from suffice.telemetry import Metrics
from suffice.types import Episode, Feedback, Outcome, Request
from suffice.wiring.worker import open_worker
from tests.control.made import ROUTE, rows, run, traffic
from tests.control.test_ratings import RATED, rated
from tests.control.test_worker import fill, settings_for
from tests.drawn import examples

METRICS: dict[str, Any] = {
    "solved": {"type": "boolean"},
    "minutes": {"type": "number", "range": [0, 60], "direction": "lower"},
    "tone": {"type": "category", "values": ["warm", "cold"]},
    "nps": {"type": "rating", "range": [0, 10], "level": "user"},
}
DECLARED = parse_settings({"metrics": METRICS}).metrics


def watch(events: list[Event], **options: Any) -> RouteForecast:
    """What a look behind all these events sees."""
    route = route_watch(metrics=DECLARED, **options)
    for stored in rows(events):
        route.feed(stored)
    return route.look()[0]


def route_watch(**options: Any) -> RouteWatch:
    settings, match = Settings(routes={"r": ROUTE}, **options), lambda a, g: a == g
    return RouteWatch(name="r", settings=settings, match=match, load=lambda _: None, author="w", epoch=1, n=0, seq=0)


def feedback(number: int, **given_fields: Any) -> FeedbackEvent:
    fields = {"feedback_id": f"f{number}-{sorted(given_fields.items())}", "source": "user", **given_fields}
    return FeedbackEvent(Feedback(episode_id=f"ep_{number:05}", **fields))


# --------------------------------------------------------------------------- the log to the numbers


def test_a_run_is_compared_where_the_lottery_could_have_made_it_the_other_kind() -> None:
    rng = random.Random(1)

    def one(**changes: Any) -> bool:
        fields = {"audit": False, "propensity": 0.9, "certified": True, "stop_step": 4, "stopped": True} | changes
        request, outcome = run(1, rng, **fields)
        return feedback_of(Episode(request=request, outcome=outcome), (), {}, uncertified=uncertified).drawn

    uncertified = False
    assert one()
    assert one(audit=True, propensity=0.1, stopped=False)
    assert one(stopped=False), "a stop that failed was asked for all the same"
    assert not one(stop_step=None)
    assert not one(mode="observe")
    assert not one(propensity=1.0)
    assert not one(certified=False)
    uncertified = True
    assert one(certified=False)


def test_every_form_has_its_measure_and_what_is_declared_no_longer_has_none() -> None:
    names = [one.name for one in measures(DECLARED)]
    assert names == ["satisfaction", *EVENTS.values(), "solved", "minutes", "tone=warm", "tone=cold", "nps"]
    seen = watch(
        [
            *traffic(130),
            feedback(120, rating=5),
            feedback(121, thumbs="down"),
            feedback(122, satisfaction=0.5),
            feedback(123, event="regenerate", source="behaviour"),
            feedback(124, metrics=(("gone", 1.0), ("solved", True))),
            feedback(125, metrics=(("minutes", 12.0), ("tone", "cold"))),
            feedback(126, comment="nice"),
            feedback(127, metrics=(("nps", 9.0),), user="u"),
            feedback(128, rating=1, source="judge"),
        ]
    )
    effects = {one.measure: one for one in seen.whole_effects}
    assert set(effects) == {"satisfaction", "regenerated", "solved", "minutes", "tone=warm", "tone=cold", "nps"}
    assert {name: one.n_heard for name, one in effects.items()} == {**dict.fromkeys(effects, 1), "satisfaction": 3}
    values = {name: one.everybody.value for name, one in effects.items() if one.everybody is not None}
    assert values == {
        "satisfaction": 0.5,
        "regenerated": 1 / 30,
        "solved": 1.0,
        "minutes": 12.0,
        "tone=warm": 0.0,
        "tone=cold": 1.0,
        "nps": 9.0,
    }
    assert effects["minutes"].better == "lower"


@settings(max_examples=examples(25), suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 10**6))
def test_late_early_doubled_and_mixed_up_feedback_comes_to_the_same(seed: int) -> None:
    """Any order that keeps each voice's own: before its run, long behind it, twice."""
    rng, base = random.Random(seed), traffic(115)
    labels: list[FeedbackEvent] = [
        feedback(number, rating=1 + rng.randrange(5), user=f"u{rng.randrange(3)}", feedback_id=f"f{n}")
        for n, number in enumerate(rng.choices(range(100, 115), k=12))
    ]
    mixed: list[Event] = list(base)
    place = 0
    for one in labels:  # in their own order, at any later place
        place = rng.randrange(place, len(mixed) + 1)
        mixed.insert(place, one)
        place += 1
    assert watch([*base, *labels]).likings == watch(mixed).likings
    assert watch([*base, *labels]).likings == watch([*base, *labels, *labels]).likings


@pytest.mark.parametrize("second_s", [0.0, 86_400.0, -86_400.0])
def test_whatever_the_clocks_say_the_logs_own_order_counts(second_s: float) -> None:
    base = traffic(115)
    labels = [feedback(110, rating=1, user="u", feedback_id="a"), feedback(110, rating=5, user="u", feedback_id="b")]
    watches = [route_watch(), route_watch()]
    for one, step_s in zip(watches, (1.0, second_s), strict=True):
        for stored in rows([*base, *labels], second_s=step_s):
            one.feed(stored)
    usual, skewed = (one.look()[0].likings for one in watches)
    assert usual == skewed
    assert usual[0].everybody is not None
    assert usual[0].everybody.value == 1.0, "the last word received"


# --------------------------------------------------------------------------- what people see


@pytest.fixture(scope="module")
def disliked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Settings]:
    """A log of certified traffic whose stopped answers are liked far less, and the settings that it is read with."""
    folder = tmp_path_factory.mktemp("disliked")
    fill(folder, rated(1_200, full=0.9, stopped=0.4, first=0))
    site = settings_for(folder)
    with open_worker(site) as here:
        assert here.once("monitor")
    return folder, site


def test_the_effect_stands_in_status_with_its_interval_and_who_spoke(disliked: tuple[Path, Settings]) -> None:
    folder, site = disliked
    (one,) = read_statuses(folder / "log.db", site, "r")
    assert one.forecast is not None
    measured = one.forecast.satisfaction
    assert measured is not None
    assert measured.effect is not None
    assert measured.effect.low is not None
    assert measured.effect.high is not None
    assert measured.effect.low <= -0.5 <= measured.effect.high < 0
    sentence = summarize_effect(one.forecast)
    assert sentence.startswith(
        f"{measured.effect.value:+.3f} [{measured.effect.low:+.3f}, {measured.effect.high:+.3f}] at 90%, "
    )
    assert "worse where stopped" in sentence
    assert "(rated: 100.0% of audits, 100.0% of stopped runs)" in sentence
    names = [name.strip() for name, _ in satisfaction_effect_lines(one.forecast)]
    assert names[:3] == ["satisfaction, full", "satisfaction, stopped", "satisfaction, effect"]


def test_metrics_have_the_effect_and_both_means(disliked: tuple[Path, Settings]) -> None:
    folder, _ = disliked
    seen, metrics = newest_event(folder / "log.db", RouteForecast, route="r"), Metrics()
    assert seen is not None
    assert seen.satisfaction is not None
    effect, full = seen.satisfaction.effect, seen.satisfaction.full
    assert effect is not None
    assert full is not None
    export_gauges(seen, "r", metrics)
    assert metrics.value("suffice_satisfaction_effect", route="r") == effect.value
    assert metrics.value("suffice_satisfaction_effect_upper_bound", route="r") == effect.high
    assert metrics.value("suffice_satisfaction_effect_lower_bound", route="r") == effect.low
    assert metrics.value("suffice_satisfaction_ratio", route="r", runs="full") == full.value


def test_without_votes_status_says_why_there_is_no_effect() -> None:
    assert summarize_effect(None) == "not measured: no worker has looked at this route"
    assert summarize_effect(watch(traffic(120))) == "not measured: no watched run was rated"
    only_full = watch([*traffic(120), feedback(110, rating=3)])
    assert summarize_effect(only_full) == "not measured: needs rated audits beside rated stopped runs"
    assert dict(satisfaction_effect_lines(only_full)).keys() == {"  satisfaction, full"}


# --------------------------------------------------------------------------- what steers


def steered(ratings: Ratings, events: list[Event], **changes: Any) -> Ratings:
    requests = {}
    for event in events:
        if isinstance(event, Request):
            requests[event.episode_id] = event
        elif isinstance(event, Outcome):
            ratings.ended(Episode(request=requests[event.episode_id], outcome=event))
        elif isinstance(event, FeedbackEvent):
            ratings.note_label(event.feedback.episode_id or "", replace(event.feedback, **changes))
    return ratings


def test_one_inference_key_steers_by_a_share_of_the_runs_at_most() -> None:
    events = rated(600, full=1.0, stopped=0.0)
    free, capped = (
        Ratings(floor=RATED.min_satisfaction, delta=1 - RATED.confidence),
        Ratings(floor=RATED.min_satisfaction, delta=1 - RATED.confidence),
    )
    assert steered(free, events, door="token", sender="x").asks is not None
    assert steered(capped, events, door="key", sender="x").asks is None
    verdict = capped.test
    assert verdict is not None
    assert verdict.n_pairs <= 0.05 * 600


def test_a_survey_steers_as_a_rating_does_and_what_people_did_steers_nothing() -> None:
    events = rated(600, full=1.0, stopped=0.0)
    by_survey = [
        FeedbackEvent(replace(one.feedback, thumbs=None, satisfaction=float(one.feedback.thumbs == "up")))
        if isinstance(one, FeedbackEvent)
        else one
        for one in events
    ]
    assert steered(Ratings(floor=RATED.min_satisfaction, delta=1 - RATED.confidence), by_survey).asks is not None
    by_actions = [
        FeedbackEvent(replace(one.feedback, thumbs=None, event="regenerate", source="behaviour"))
        if isinstance(one, FeedbackEvent)
        else one
        for one in events
    ]
    steered_by = steered(Ratings(floor=RATED.min_satisfaction, delta=1 - RATED.confidence), by_actions)
    assert steered_by.test is not None
    assert steered_by.test.n_pairs == 0


def test_a_route_without_a_floor_still_shows_what_people_say(tmp_path: Path) -> None:
    assert Route(upstream="up").min_satisfaction is None
    fill(tmp_path, rated(300, full=0.9, stopped=0.9, first=0))
    site = settings_for(tmp_path)
    with open_worker(site) as here:
        here.once("monitor")
    seen = newest_event(tmp_path / "log.db", RouteForecast, route="r")
    assert seen is not None
    assert "no difference is proven" in summarize_effect(seen)


# --------------------------------------------------------------------------- the price of EM


def test_the_price_of_em_stands_in_status_and_proposes_a_budget_once(tmp_path: Path) -> None:
    """Wrong answers are liked in 30 %, right ones in 95 % of the runs; half a dozen points of EM are affordable."""
    rng, events = random.Random(5), list[Event]()
    for event in rated(900, full=0.9, stopped=0.9, first=0):
        if isinstance(event, FeedbackEvent):
            right = rng.random() < 0.9
            up: Any = "up" if rng.random() < (0.95 if right else 0.3) else "down"
            events.append(FeedbackEvent(replace(event.feedback, thumbs=up, correct=right, source="reviewer")))
        else:
            events.append(event)
    fill(tmp_path, events)
    plain = settings_for(tmp_path)
    route = msgspec.structs.replace(plain.routes["r"], min_satisfaction=0.8)
    site = msgspec.structs.replace(plain, routes={"r": route})
    with open_worker(site) as here:
        assert here.once("monitor")
        reports = [here.once("budget") or ()]
    with open_worker(site) as here:  # which knows nothing but the log
        reports.append(here.once("budget") or ())
    first, again = ([report.summary for report in each] for each in reports)
    assert "proposed, instead of" in first[0]
    assert again == [""]
    made = newest_event(tmp_path / "log.db", ProposedBudget, route="r")
    assert made is not None
    assert 0.03 < made.max_em_drop < 0.3
    assert made.before == route.max_em_drop
    (one,) = read_statuses(tmp_path / "log.db", site, "r")
    text = dict(line for section in status_sections(one) for line in section)
    assert text["price of EM"].startswith("a lost point of EM costs 0.")
    assert text["proposal"].startswith(
        f"max_em_drop = {made.max_em_drop:g} instead of {route.max_em_drop:g}: a lost point"
    )
    accepted = msgspec.structs.replace(route, max_em_drop=made.max_em_drop)
    (one,) = read_statuses(tmp_path / "log.db", msgspec.structs.replace(plain, routes={"r": accepted}), "r")
    assert one.budget is None
