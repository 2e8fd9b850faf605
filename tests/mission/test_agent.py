"""The agent: a stop that comes to cost more than the full run goes out of use, and comes back when it pays again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import Mission, Served, drop, tokens_of

pytestmark = pytest.mark.slow
BUDGET, CHEAP, DEAR = 0.1, 8, 130  # tokens of the answer after a stop; a full run takes about 85
AT_ONCE = 32  # these runs take time
MOST_UNTIL_INACTIVE, MOST_UNTIL_ACTIVE = 500, 2_000  # requests
ROUTE = {"max_em_drop": BUDGET, "audit_share": 0.1}


async def test_a_stop_that_costs_more_than_the_full_run_goes_and_returns_when_it_pays_again(begin: Begin) -> None:
    steady = Profile(p_first=0.8, line_tokens=12, finish_tokens=CHEAP, token_s=0.006)
    simulation = World(seed=3, n_steps=7, profiles={"number": steady})
    async with begin(simulation, {"r": ROUTE}) as mission:
        await mission.certified(at_once=AT_ONCE)
        await _until(mission, stops=True, within=1_000)
        before = await _send(mission, 100)
        full_tokens = tokens_of([one for one in mission.served[:100] if not one.stopped])
        assert tokens_of(before) < full_tokens

        simulation.change("number", finish_tokens=DEAR)
        n_dear = len(mission.served)
        await _until(mission, stops=False, within=MOST_UNTIL_INACTIVE)
        dear = await _send(mission, 200)
        assert _stopped(dear) <= 0.15, "only a few try whether it pays again"
        plan = _plans(mission)[-1]
        assert n_dear < plan["at"] <= n_dear + MOST_UNTIL_INACTIVE
        assert plan["alert"], "a person is told that stopping costs more than full runs"
        mission.figures["inactive after"] = plan["at"] - n_dear

        simulation.change("number", finish_tokens=CHEAP)
        n_cheap = len(mission.served)
        await _until(mission, stops=True, within=MOST_UNTIL_ACTIVE)
        again = await _send(mission, 200)
        returned = next(one["at"] for one in _plans(mission) if one["at"] > n_cheap and _acts(one))
        assert returned <= n_cheap + MOST_UNTIL_ACTIVE
        mission.figures["active after"] = returned - n_cheap
        assert _stopped(again) > 0.5
        assert tokens_of(again) < full_tokens
        assert drop(mission.served) <= BUDGET


async def _send(mission: Mission, n: int) -> list[Served]:
    served = await mission.send(n, at_once=AT_ONCE)
    await mission.rest()
    return served


async def _until(mission: Mission, *, stops: bool, within: int) -> None:
    """Ask until most of the requests are stopped, or hardly any."""
    n_before = len(mission.served)
    while (_stopped(await _send(mission, 100)) > 0.5) != stops:
        assert len(mission.served) - n_before <= within, [one["reason"] for one in _plans(mission)]


def _stopped(served: Sequence[Served]) -> float:
    return sum(one.stopped for one in served) / len(served)


def _plans(mission: Mission) -> list[dict[str, Any]]:
    return mission.rows("agent_planned")


def _acts(plan: dict[str, Any]) -> bool:
    """Whether most requests may be stopped under a plan."""
    return all(max(one["draws"], key=lambda draw: draw["share"])["ceiling"] != 0 for one in plan["classes"])
