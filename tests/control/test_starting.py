"""How long a cold start takes at an owner's own audit share, and who is warned of it."""

from __future__ import annotations

from math import inf
from typing import Any

import numpy as np
import pytest

from suffice import wiring
from suffice.assurance.certify import audits_to_certify
from suffice.control.loop.starting import Start, first_certificate
from suffice.learn.keeper import Keeper, Plan
from suffice.settings import Control, Route, parse
from tests.learn.runs_made import audits, believing

CONTROL = Control()


def route(**changes: Any) -> Route:
    known: dict[str, Any] = {
        "upstream": "up", "kind": "samples", "samples": 8, "mode": "enforce", "audit_share": 0.05,
    }  # fmt: skip
    return Route(**(known | changes))


@pytest.mark.parametrize("max_em_drop", [0.01, 0.02, 0.05])
def test_where_the_burst_is_enough_the_share_does_not_matter(max_em_drop: float) -> None:
    needed = audits_to_certify(max_em_drop / 4, max_em_drop=max_em_drop, delta=1 - 0.95)
    assert needed < 1_000
    for share in (0.0, 1e-6, 0.5):
        start = first_certificate(route(max_em_drop=max_em_drop, audit_share=share), CONTROL)
        assert start == Start(n_audits=needed, n_requests=1_000)
        assert not start.is_long


def test_behind_a_short_burst_audits_come_at_the_share() -> None:
    short = Control(burst_requests=100)
    needed = audits_to_certify(0.005, max_em_drop=0.02, delta=1 - 0.95)
    for share in (0.5, 0.01, 0.001):
        assert first_certificate(route(audit_share=share), short).n_requests == pytest.approx(
            100 + (needed - 100) / share
        )
    assert first_certificate(route(audit_share=0.0), short).n_requests == inf


def test_more_audits_than_are_looked_back_on_at_once_never_come() -> None:
    strict = route(max_em_drop=0.005)
    start = first_certificate(strict, CONTROL)
    assert start.n_audits > 1_000 + 0.05 * (Plan().span - 1_000)
    assert (start.n_requests, start.is_long) == (inf, True)
    assert first_certificate(strict, Control(window_audits=2_000)).n_requests < inf


def test_the_keeper_is_certified_when_it_says() -> None:
    """Audits that show just what is expected: the first look behind the number is the first certificate."""
    control, share = Control(burst_requests=200, refit_requests=100_000), 0.1
    start = first_certificate(route(audit_share=share), control)
    plan = Plan(warm_up=200, burst=200, ramp_share=0.0, n_levels=3, refit_every=1e9, watches_signals=False)
    keeper = Keeper(plan, believing)
    n = int(2 * start.n_requests)
    lost = np.zeros(n, dtype=int)
    lost[100::200] = 1  # half a point in each 200 audits: a quarter of the budget
    runs = audits([[0.9, 0.9]] * n, z=[[x, 0] for x in lost.tolist()])
    place, certified = 0, None
    for now in range(100, n, 100):
        n_new = 100 if now <= 200 else int(100 * share)
        came = runs.take(np.arange(place, place + n_new))
        came.at[:] = now - 1
        came.label_at[:] = now - 1
        place += n_new
        keeper.now = float(now)
        keeper.take(came)
        keeper.tick(float(now))
        if keeper.level and certified is None:
            certified = now
    assert certified is not None
    assert certified == pytest.approx(start.n_requests, rel=0.25)


def test_what_the_finish_takes_off_the_budget_makes_a_thought_wait_longer() -> None:
    votes, thoughts = (first_certificate(route(kind=kind), CONTROL).n_audits for kind in ("samples", "reasoning"))
    assert votes < thoughts < 2_000
    assert not first_certificate(route(max_em_drop=0.0), CONTROL).is_long, "no share would help"


def warnings(**changes: Any) -> list[str]:
    plain = {"kind": "samples", "samples": 8, "scorer": "number", "mode": "enforce", **changes}
    return wiring.check(parse({
        "upstreams": {"up": {"url": "http://127.0.0.1:1", "driver": "llama.cpp", "slots": 4}},
        "routes": {"r": {"upstream": "up", **plain}}, "control": {"burst_requests": 100},
    }))  # fmt: skip


def test_the_owner_is_warned_of_a_share_that_starves_a_cold_start() -> None:
    (said,) = warnings(audit_share=0.001)
    assert said.startswith("routes.r.audit_share: at 0.001 a cold start stays at full runs for about 3")
    assert "some 440 audits" in said
    (never,) = warnings(audit_share=0.0)
    assert "at full runs for good" in never


@pytest.mark.parametrize("fine", [
    {}, {"audit_share": 0.05}, {"audit_share": 0.001, "mode": "observe"},
    {"audit_share": 0.001, "policy": {"policy": "never"}, "mode": "observe"}])
def test_nobody_else_is_warned(fine: dict[str, Any]) -> None:
    assert not [said for said in warnings(**fine) if "audit_share" in said]
