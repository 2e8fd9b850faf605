"""Monitoring and forecast: what the console shows is true, and a rising loss is announced in time."""

from __future__ import annotations

from statistics import mean
from typing import Any

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import drop, saving

pytestmark = pytest.mark.slow
BUDGET, VOTES, SAMPLE_TOKENS = 0.1, 5, 3
STEADY = 3_000  # requests before it
FIRST_TURNS, RISE = 0.02, 0.00005  # p_turn at first, and what each request adds to it
ROUTE = {"max_em_drop": BUDGET, "audit_share": 0.1}


def _simulation(seed: int) -> World:
    profiles = {"number": Profile(p_same=0.9, p_right=0.9), "which": Profile(p_same=0.8, p_right=0.6, p_turn=0.05)}
    return World(seed=seed, votes=VOTES, profiles=profiles, shares={"number": 0.6, "which": 0.4})


async def test_what_the_console_shows_is_true(begin: Begin) -> None:
    async with begin(_simulation(1), {"r": ROUTE}) as mission:
        for _ in range(10):
            await mission.send(200, labelled=1.0)
        await mission.rest()
        state = (await mission.api("/route", name="r"))["route"]
        metrics = await mission.metrics()
        served, seen = mission.served, mission.served[: state["seen_at"]]
        assert len(seen) >= len(served) - 200, "the accounts are recent"
        sums = state["figures"]["sums"]
        assert sums["n_requests"] == len(served)
        assert sums["n_stopped"] == sum(one.stopped for one in served)
        stops = [n for name, n in metrics.items() if name.startswith("suffice_stops_total{")]
        assert sum(stops) == sums["n_stopped"]
        _holds(state["em_full"], mean(one.question.is_right(one.question.final) for one in seen))
        _holds(state["em_drop"], drop(seen))
        _holds(state["saving"], saving(served, VOTES * SAMPLE_TOKENS))
        assert metrics['suffice_token_saving_ratio{route="r"}'] == pytest.approx(state["saving"]["value"], abs=0.02)
        assert not mission.rows("alert_raised"), "nothing moves"
        for one in (await mission.api("/route", name="r"))["classes"]:
            mine = [run for run in seen if run.question.query_class == one["name"]]
            _holds(one["figures"]["em_drop"], drop(mine))


def _holds(interval: dict[str, Any], truth: float) -> None:
    assert interval["low"] <= truth <= interval["high"], f"{truth} is not within {interval}"


async def test_a_slowly_rising_loss_is_announced_before_it_exceeds_the_budget(begin: Begin) -> None:
    simulation = World(seed=2, votes=VOTES, profiles={"number": Profile(p_same=1.0, p_turn=FIRST_TURNS)})
    async with begin(simulation, {"r": ROUTE | {"audit_share": 0.2}}) as mission:
        await mission.certified(labelled=1.0)
        while len(mission.served) < STEADY:
            await mission.send(250, labelled=1.0)
        await mission.rest()
        assert not mission.rows("alert_raised"), "nothing moves yet"
        assert not mission.rows("alarm_raised")
        begun, announced = len(mission.served), list[dict[str, Any]]()
        while not announced:
            turns = FIRST_TURNS + RISE * (len(mission.served) - begun)
            true_drop = turns * simulation.profiles["number"].p_right  # of requests that stop early
            assert true_drop <= BUDGET, "nobody was told"
            simulation.change("number", p_turn=turns)
            await mission.send(100, labelled=1.0)
            await mission.rest()
            announced = mission.rows("alert_raised") + mission.rows("alarm_raised")
        mission.figures |= {"announced after": len(mission.served) - begun, "by": announced[0].get("cause", "forecast")}
        mission.figures["at a drop of"] = f"{true_drop:.1%}"
        assert any(one["route"] == "r" for one in (await mission.api("/alerts"))["lines"]), "the console shows it"
