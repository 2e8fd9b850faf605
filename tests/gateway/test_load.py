"""What the gateway measures is what happened: rates, queues, latencies, and what full runs would take."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from suffice.gateway.load_control import (
    ALERT_RUNS,
    LATENCY_RUNS,
    LATENCY_S,
    MOVE_ROW_S,
    LoadControl,
    Rate,
    RouteLoad,
    RouteOperation,
    Smooth,
)
from suffice.review.holds import ActiveOverrides, Override
from suffice.settings import Route, parse_settings
from suffice.store.rows.events import OperatingMove
from suffice.telemetry import Metrics
from suffice.types import Outcome, Overhead, Request, UpstreamCall
from suffice.wiring.routes import build_route, check_routes
from tests.drawn import examples
from tests.records import plain_request

CONFIG: dict[str, Any] = {
    "upstreams": {"up": {"url": "http://127.0.0.1:1", "slots": 4}},
    "routes": {"r": {"upstream": "up", "kind": "samples", "samples": 8, "policy": {"policy": "beta"}}},
}


def request(*, audit: bool = False, ungoverned: str | None = None) -> Request:
    return plain_request(
        "e",
        kind="samples",
        mode="enforce",
        n_samples=8,
        audit=audit,
        propensity=0.5,
        policy_version="p",
        certified=True,
        ungoverned=ungoverned,
    )


def outcome(
    tokens: int,
    *,
    saved: int | None = None,
    stopped: bool = False,
    probe: int = 0,
    seconds: float = 1.0,
    usd: float | None = None,
) -> Outcome:
    call = UpstreamCall(purpose="main", prompt_tokens=9, cached_tokens=0, completion_tokens=tokens, source="provider")
    return Outcome(
        episode_id="e",
        end_reason="stopped" if stopped else "done",
        status=200,
        answer="4",
        response_id=None,
        usage=None,
        overhead=Overhead(probe_tokens=probe),
        calls=(call,),
        stopped=stopped,
        tokens_saved_estimate=saved,
        duration_s=seconds,
        cost_usd=usd,
    )


# --------------------------------------------------------------------------- rates


@given(per_s=st.floats(0.5, 500), memory_s=st.sampled_from([2.0, 10.0, 300.0]), for_s=st.floats(1, 3_000))
@hypothesis_settings(max_examples=examples(60))
def test_an_even_stream_has_its_rate_from_the_first_second_on(per_s: float, memory_s: float, for_s: float) -> None:
    rate = Rate(memory_s)
    n = min(3_000, max(1, int(per_s * for_s)))
    for at in range(n):
        rate.add(2.0, 100 + at / per_s)
    one = 2.0 / min(1.0, memory_s)  # what the last event weighs
    assert rate.per_s(100 + n / per_s) == pytest.approx(2 * per_s, rel=0.1, abs=one)


def test_a_rate_follows_a_fivefold_step_and_forgets_when_nothing_comes() -> None:
    rate = Rate(10.0)
    for at in range(600):
        rate.add(1, at / 10)
    for at in range(150):
        rate.add(1, 60 + at / 50)
    assert rate.per_s(63) > 18, "twice the old rate within 3 s"
    assert rate.per_s(63 + 100) < 0.01
    rate.add(0, 20.0)
    assert rate.per_s(63) > 18, "a clock that goes back forgets nothing"
    assert Rate(10.0).per_s(5.0) == 0.0


def test_a_queue_is_smoothed_over_time_however_often_one_looks() -> None:
    often, seldom = Smooth(2.0), Smooth(2.0)
    for level in (often, seldom):
        level.add(0.0, 0.0)
    for at in range(1, 401):
        often.add(5.0, at / 100)
    seldom.add(5.0, 2.0)
    seldom.add(5.0, 4.0)
    assert often.value == pytest.approx(seldom.value, rel=1e-9)
    assert 4 < often.value < 5


# --------------------------------------------------------------------------- latency


def test_latency_is_the_nearest_rank_of_the_last_minute_without_audits_and_what_passes_through() -> None:
    load, rng = RouteLoad(), random.Random(1)
    seconds = [float(n) for n in range(1, 101)]
    rng.shuffle(seconds)
    for at, took in enumerate(seconds):
        load.note(request(), outcome(10, seconds=took), now_s=at / 10, falls_back=False)
        load.note(request(audit=True), outcome(10, seconds=500.0), now_s=at / 10, falls_back=False)
        load.note(request(ungoverned="tools"), outcome(10, seconds=500.0), now_s=at / 10, falls_back=False)
    assert load.latency_s(10.0, idle=False) == 95.0
    assert load.latency_s(9.9 + LATENCY_S + 0.01, idle=False) is None, "some run, none has ended: unknown"
    assert load.latency_s(9.9 + LATENCY_S + 0.01, idle=True) == 0.0


def test_latencies_take_bounded_memory() -> None:
    load = RouteLoad()
    for _ in range(3 * LATENCY_RUNS):
        load.note(request(), outcome(10), now_s=1.0, falls_back=False)
    assert len(load._ended) == LATENCY_RUNS


# --------------------------------------------------------------------------- full runs


def test_the_load_ratio_is_what_full_runs_would_take_over_what_was_taken() -> None:
    load = RouteLoad()
    for at in range(100):
        load.note(request(), outcome(40, stopped=True, saved=60, probe=10), now_s=at, falls_back=False)
        load.note(request(audit=True), outcome(110, probe=10), now_s=at, falls_back=False)
    # Full runs of 100 tokens, and no probes in them; 150 tokens were taken for two.
    assert load.ratio(100.0) == pytest.approx(200 / 150)
    assert load.mean_full(100.0) == pytest.approx(100)
    assert RouteLoad().ratio(0.0) is None


def test_a_stop_whose_rest_nobody_can_tell_counts_as_a_full_run_of_mean_length() -> None:
    load = RouteLoad()
    for at in range(200):
        load.note(request(audit=True), outcome(100), now_s=at, falls_back=False)
    for at in range(200, 400):
        load.note(request(), outcome(20, stopped=True), now_s=at, falls_back=False)
    assert load.mean_full(400.0) == pytest.approx(100)


def test_while_the_brake_holds_the_ratio_is_what_is_asked_for_over_what_was_taken_before() -> None:
    route = RouteOperation("r", Route(fallback_capacity=1.5))
    for at in range(3_000):  # 2 a second, stopped after 50 of 100 tokens
        route.load.arrivals.add(1, at / 2)
        route.load.note(request(), outcome(50, stopped=True, saved=50), now_s=at / 2, falls_back=False)
    assert route.ratio(1_500.0) == pytest.approx(2.0)
    route.certified = 7
    route.fall_back(1_500.0)
    assert route.fallback is not None
    assert route.fallback.level == 7
    assert route.ratio(1_500.0) == pytest.approx(2.0, rel=0.1)
    for at in range(3_000, 3_400):  # now in full, and as many come again as come
        route.load.arrivals.add(2, at / 2)
        route.load.note(request(), outcome(100), now_s=at / 2, falls_back=True)
    assert route.ratio(1_700.0) == pytest.approx(4.0, rel=0.1)
    route.fall_back(1_700.0)
    assert route.ratio(1_700.0) == pytest.approx(4.0, rel=0.1), "a brake that holds already fires no second time"
    route.resume()
    assert route.ratio(1_700.0) == pytest.approx(2.0), "full runs under the brake say nothing of stopped ones"


# --------------------------------------------------------------------------- alerts and warnings


def looking(operating: LoadControl, route: dict[str, Any], **changes: Any) -> Callable[[float], None]:
    """Look at the load of one route, at a time."""
    settings = parse_settings(CONFIG | {"routes": {"r": CONFIG["routes"]["r"] | route}}).routes["r"]
    routes, metrics = [replace(build_route("r", settings), **changes)], Metrics()
    return lambda now_s: operating.update({}, routes, metrics, now_s=now_s)


def test_a_load_that_full_runs_would_take_beyond_the_capacity_is_told_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "suffice")
    operating = LoadControl()
    look = looking(operating, {"fallback_capacity": 1.5})
    look(0.0)
    for at in range(ALERT_RUNS):
        assert caplog.messages == []
        operating.note(request(), outcome(50, stopped=True, saved=50), now_s=float(at))
        look(float(at))
    look(100.0)
    assert caplog.messages == [
        "routes.r: if all ran in full, it would take 2.00 times the tokens/s, and fallback_capacity is 1.5"
    ]
    for at in range(2_000):
        operating.note(request(), outcome(100), now_s=100.0 + at)
        look(100.0 + at)
    assert caplog.messages[1:] == ["routes.r: full runs would fit fallback_capacity again"]


WARNED: dict[str, tuple[dict[str, Any], str | None]] = {
    "no reserve and no slack": ({"queue": 1.0}, "moves nothing"),
    "a reserve": ({"queue": 1.0, "operating_point": 0.7}, None),
    "slack": ({"queue": 1.0, "slack_point": 0.7}, None),
    "no prices": ({"usd_per_hour": 1.0, "slack_point": 0.7}, "has no prices"),
}


@pytest.mark.parametrize("case", WARNED)
def test_an_owner_is_told_of_a_table_that_does_not_do_what_it_seems_to(case: str) -> None:
    pressure, report = WARNED[case]
    given = parse_settings(CONFIG | {"routes": {"r": CONFIG["routes"]["r"] | {"pressure": pressure}}})
    result = [warning for warning in check_routes(given) if "routes.r.pressure" in warning]
    assert [report in warning for warning in result if report is not None] == ([True] if report is not None else [])
    assert (result == []) == (report is None)


def test_a_queue_over_an_unknown_number_of_slots_is_warned_of() -> None:
    raw = {
        "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
        "routes": {"r": CONFIG["routes"]["r"] | {"pressure": {"queue": 1.0, "operating_point": 0.5}}},
    }
    assert any("routes.r.pressure.queue: upstreams.up has slots = 1" in w for w in check_routes(parse_settings(raw)))


def test_spend_is_measured_where_prices_are_known_and_moves_the_route() -> None:
    operating = LoadControl()
    route = {"pressure": {"usd_per_hour": 36.0, "operating_point": 0.5, "hold_s": 5.0}}
    look = looking(operating, route)
    spend: Callable[[float], float] = lambda now_s: 0.002 if now_s < 30 else 0.02  # USD for each of two runs a second
    look(0.0)
    settings = parse_settings(CONFIG | {"routes": {"r": CONFIG["routes"]["r"] | route}}).routes["r"]
    here, moved_s = operating.of("r", settings), None
    for half_seconds in range(1, 120):
        now_s = half_seconds / 2
        operating.note(request(), outcome(10, usd=spend(now_s)), now_s=now_s)
        look(now_s)
        if here.operation.stance == "spike" and moved_s is None:
            moved_s = now_s
    assert moved_s is not None
    assert 30 < moved_s <= 40
    assert here.operation.n_moves == 1
    assert "usd_per_hour" in here.operation.reason


# --------------------------------------------------------------------------- moves as rows of the log


def moving(hold_s: float = 5.0, **changes: Any) -> tuple[LoadControl, Callable[[float, float], None]]:
    """A route that is certified up to level 20 and operates at half of it, and a look at it while it spends."""
    operating = LoadControl()
    route = {"pressure": {"tokens_per_s": 100.0, "operating_point": 0.5, "hold_s": hold_s}}
    look = looking(operating, route, **changes)
    settings = parse_settings(CONFIG | {"routes": {"r": CONFIG["routes"]["r"] | route}}).routes["r"]
    operating.of("r", settings).certified = 20

    def at(now_s: float, tokens: float) -> None:
        operating.note(request(), outcome(int(tokens)), now_s=now_s)
        look(now_s)

    return operating, at


def test_a_spike_is_a_row_with_the_level_before_and_after_and_its_end_is_another() -> None:
    operating, at = moving()
    rows = []
    for second in range(240):
        at(float(second), 300 if 60 <= second < 120 else 20)
        rows += [(second, one) for one in operating.take_moves(now_s=float(second))]
    assert [(one.before, one.after, one.n_moves) for _, one in rows] == [
        ("level 10 of 20, usual", "level 20 of 20, spike", 1),
        ("level 20 of 20, spike", "level 10 of 20, usual", 1),
    ]
    assert 60 < rows[0][0] < 75
    assert "tokens_per_s" in rows[0][1].reason
    assert rows[0][1].age_s == 0.0
    assert list(operating.take_moves(now_s=1_000.0, all_of_them=True)) == []


def pinned(level: int) -> ActiveOverrides:
    pin = Override(
        route="r", number=1, kind="pin", reason="a test", author="ann", set_at_s=0.0, expires_at_s=1e9, level=level
    )
    return ActiveOverrides(pin=pin)


@pytest.mark.parametrize(
    ("changes", "moves"),
    [
        ({"holding": ActiveOverrides(ceiling=15)}, ["level 15 of 20, spike", "level 10 of 20, usual"]),
        ({"holding": ActiveOverrides(ceiling=10)}, []),
        ({"holding": ActiveOverrides(observe="held")}, []),
        ({"holding": pinned(7)}, []),
        ({"unwatched": "nobody looks"}, []),
        ({"refused": "the kill switch is pulled"}, []),
    ],
    ids=["a ceiling", "a lower ceiling", "observed", "pinned", "unwatched", "killed"],
)
def test_rows_have_the_level_that_clients_get(changes: dict[str, Any], moves: list[str]) -> None:
    operating, at = moving(**changes)
    rows = list[OperatingMove]()
    for second in range(240):
        at(float(second), 300 if 60 <= second < 120 else 20)
        rows += operating.take_moves(now_s=float(second))
    assert [one.after for one in rows] == moves
    assert [f"level {one.level} of" in one.after for one in rows] == [True] * len(moves)


def test_a_load_that_flaps_has_one_row_a_minute_and_none_of_its_moves_is_lost() -> None:
    operating, at = moving(hold_s=0.5)
    here, rows = operating._routes["r"], []
    for second in range(1_800):
        at(float(second), 2_000 if second % 80 < 8 else 0)
        rows += [(second, one) for one in operating.take_moves(now_s=float(second))]
    last = list(operating.take_moves(now_s=1_800.0, all_of_them=True))
    assert here.operation.n_moves > 30
    assert sum(one.n_moves for one in (*(one for _, one in rows), *last)) == here.operation.n_moves
    assert all(later - first >= MOVE_ROW_S for (first, _), (later, _) in pairwise(rows))


def test_a_stance_that_changes_no_level_has_no_row() -> None:
    operating, at = moving()
    operating._routes["r"].certified = 0
    for second in range(120):
        at(float(second), 300 if second > 60 else 20)
    assert operating._routes["r"].operation.n_moves == 1
    assert list(operating.take_moves(now_s=120.0, all_of_them=True)) == []
