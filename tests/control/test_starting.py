"""How long a cold start takes at an owner's own audit share, and who is warned of it."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest

from suffice.assurance.certify import audits_to_certify
from suffice.assurance.start import MOST_AUDITS, StartForecast
from suffice.certification.certifier import Certifier
from suffice.certification.evidence import Evidence
from suffice.certification.plan import Plan
from suffice.control.evidence.cold_start import burst_of, burst_requests, forecast_start, start_terms, window_size
from suffice.settings import Control, Route, Settings, parse_settings
from suffice.wiring.routes import StartupEvidence, check_routes, route_notes
from tests.learn.runs_made import audits, believing

CONTROL = Control()


def route(**changes: Any) -> Route:
    known: dict[str, Any] = {
        "upstream": "up",
        "kind": "samples",
        "samples": 8,
        "mode": "enforce",
        "audit_share": 0.05,
    }
    return Route(**(known | changes))


def usual(route: Route, control: Control) -> StartForecast:
    return forecast_start(route, control)[1]


@pytest.mark.parametrize(("max_em_drop", "burst"), [(0.01, 2_400), (0.02, 1_200), (0.05, 480)])
def test_where_the_burst_is_enough_the_share_does_not_matter(max_em_drop: float, burst: int) -> None:
    needed = audits_to_certify(max_em_drop / 4, max_em_drop=max_em_drop, delta=1 - 0.95)
    assert needed < burst == burst_of(route(max_em_drop=max_em_drop), CONTROL)
    for share in (0.0, 1e-6, 0.5):
        start = usual(route(max_em_drop=max_em_drop, audit_share=share), Control(burst_requests=burst))
        assert start == (burst, burst)


def test_behind_a_short_burst_audits_come_at_the_share_and_begin_anew() -> None:
    short = Control(burst_requests=100)
    needed = audits_to_certify(0.005, max_em_drop=0.02, delta=1 - 0.95)
    for share in (0.5, 0.01, 0.001):
        start = usual(route(audit_share=share), short)
        assert start.first_stop == pytest.approx(100 + needed / share), "those of the burst are of another window"
    assert usual(route(audit_share=0.0), short).first_stop == inf


def test_more_audits_than_are_looked_back_on_at_once_never_come() -> None:
    short = Control(burst_requests=100, window_audits=400)
    assert start_terms(route(), short).audits() > 400
    assert usual(route(), short).first_stop == inf
    assert usual(route(), Control(burst_requests=100)).first_stop < inf


def test_settings_that_are_not_written_follow_the_budget_and_those_that_are_hold() -> None:
    assert [window_size(CONTROL, budget) for budget in (0.01, 0.02, 0.05)] == [1_600, 800, 320]
    assert [burst_requests(CONTROL, budget) for budget in (0.01, 0.02, 0.05)] == [2_400, 1_200, 480]
    own = Control(burst_requests=7, window_audits=9)
    assert (window_size(own, 0.02), burst_requests(own, 0.02)) == (9, 7)
    assert burst_of(route(policy={"policy": "never"}), CONTROL) == 0, "where nothing is learned there is no burst"


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_keeper_is_certified_when_it_says(share: float) -> None:
    """Audits that show just what is expected: the first look behind the number is the first certificate."""
    control = Control(burst_requests=200)
    start = usual(route(audit_share=share), control)
    plan = Plan(
        warm_up=200, burst=200, free_audits=False, share=share, n_levels=3, refit_every=1e9, watches_signals=False
    )
    certifier = Certifier(plan, believing)
    place, certified = 0, None
    for now in range(100, int(2 * start.first_stop), 100):
        began = np.arange(now - 100, now, 1 if now <= 200 else round(1 / share))
        lost = (np.arange(place, place + len(began)) % 200 == 100).astype(int)  # half a point: a quarter of the budget
        came = audits([[0.9, 0.9]] * len(began), z=[[x, 0] for x in lost.tolist()])
        at, drawn_at = began.astype(float), np.full(len(began), 1.0 if now <= 200 else share)
        place += len(began)
        certifier.add_audits(replace(came, at=at, label_at=at, share=drawn_at))
        certifier.look(Evidence(at=float(now)))
        if certifier.level and certified is None:
            certified = now
    assert certified is not None
    assert certified == pytest.approx(start.first_stop, rel=0.25)


def test_what_the_finish_takes_off_the_budget_makes_a_thought_wait_longer() -> None:
    votes, thoughts = (start_terms(route(kind=kind), CONTROL).audits() for kind in ("samples", "reasoning"))
    assert votes < thoughts < 2_000
    assert start_terms(route(max_em_drop=0.0), CONTROL).audits() == MOST_AUDITS, "no share would help"


def parsed(control: dict[str, Any] | None = None, **changes: Any) -> Settings:
    plain = {"kind": "samples", "samples": 8, "scorer": "number", "mode": "enforce", **changes}
    upstreams = {"up": {"url": "http://127.0.0.1:1", "driver": "llama.cpp", "slots": 4}}
    routes = {"r": {"upstream": "up", **plain}}
    return parse_settings({"upstreams": upstreams, "routes": routes, "control": control or {}})


def warnings(**changes: Any) -> list[str]:
    return check_routes(parsed({"burst_requests": 100}, **changes))


def test_the_owner_is_warned_of_a_share_that_starves_a_cold_start() -> None:
    (warning,) = warnings(audit_share=0.001)
    assert warning.startswith(
        "routes.r.audit_share: at 0.001 a cold start stays at full runs for about 440,100 requests"
    )
    assert "some 440 audits" in warning
    (never,) = warnings(audit_share=0.0)
    assert "at full runs for good" in never


@pytest.mark.parametrize(
    "fine",
    [
        {},
        {"audit_share": 0.05},
        {"audit_share": 0.001, "mode": "observe"},
        {"audit_share": 0.001, "policy": {"policy": "never"}, "mode": "observe"},
    ],
)
def test_nobody_else_is_warned(fine: dict[str, Any]) -> None:
    assert not [warning for warning in warnings(**fine) if "audit_share" in warning]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({}, "expect a first stop after about 120 requests (100 to 140), on all requests after about 2,200"),
        ({"mode": "observe"}, 'observes; with mode = "enforce" expect a first stop'),
        ({"max_em_drop": 0.05}, "expect a first stop after about 40 requests (40 to 60)"),
    ],
)
def test_an_owner_is_told_before_any_request_when_a_level_is_expected_to_act(
    changes: dict[str, Any], note: str
) -> None:
    settings = parsed(audit_share=0.05, **changes)
    (notice,) = [one for one in route_notes(settings, StartupEvidence()) if "first stop" in one]
    assert note in notice


@pytest.mark.parametrize("changes", [{"policy": {"policy": "never"}}, {"mode": "off"}, {"promise": "budgeted"}])
def test_nobody_is_told_so_of_a_route_that_learns_no_certified_level(changes: dict[str, Any]) -> None:
    assert not [one for one in route_notes(parsed(**changes), StartupEvidence()) if "first stop" in one]
