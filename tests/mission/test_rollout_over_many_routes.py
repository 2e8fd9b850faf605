"""Rollout over many routes: what loses nothing reaches everybody, what loses goes back unseen, the others stay."""

from __future__ import annotations

from typing import Any

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import Mission, tokens_of

pytestmark = pytest.mark.slow
VOTES = 9
RULES = {  # as in the documentation, with proofs that a few hundred requests can give
    "shares": [0.25, 0.5],
    "em_margin": 0.08,
    "class_em_margin": 0.1,
    "error_margin": 0.15,
    "no_answer_margin": 0.15,
    "required": ["errors", "no_answer"],
    "least_audits": 100,
    "least_class_audits": 60,
    "least_requests": 30,
    "least_stage_s": 0.0,
    "warmup_requests": 20,
    "warmup_s": 0.0,
}
ROUTE = {
    "policy": {"policy": "stable-answer", "streak": 5},
    "uncertified": True,
    "audit_share": 0.1,
    "rollout": RULES,
}
CLASSES = {"harmless": "number", "harmful": "which", "untouched": "number"}
CANDIDATE = '{policy = "stable-answer", streak = 2}'


async def test_a_harmless_version_reaches_everybody_and_a_harmful_one_nobody(begin: Begin) -> None:
    turning = Profile(p_same=0.95, p_right=0.9, p_turn=0.3)
    simulation = World(seed=8, votes=VOTES, profiles={"number": Profile(p_same=0.95), "which": turning})
    async with begin(simulation, dict.fromkeys(CLASSES, ROUTE)) as mission:
        for name in ("harmless", "harmful"):
            status, output = await mission.command(
                "policy", "propose", name, CANDIDATE, "--reason", "it saves three samples"
            )
            assert status == 0, output
        await mission.rest()
        for _ in range(16):
            for name, query_class in CLASSES.items():
                await mission.send(80, route=name, query_class=query_class, labelled=1.0)
            await mission.rest()
            states = await _states(mission)
            if all(state["stage"] in ("full", "rolled_back") for state in states.values()):
                break
        assert {name: state["stage"] for name, state in states.items()} == {
            "harmless": "full",
            "harmful": "rolled_back",
        }
        assert not states["harmful"]["share"], "it went back before anybody was served by it"
        after = {
            name: await mission.send(60, route=name, query_class=query_class) for name, query_class in CLASSES.items()
        }
        tokens = {name: tokens_of(served) for name, served in after.items()}
        assert tokens["harmless"] < tokens["untouched"] - 4, "two samples instead of five"
        assert len({one.report["policy_version"] for one in after["untouched"]}) == 1
        assert not mission.rows("rollout_moved", "untouched")
        moves = [one["transition"]["move"] for one in mission.rows("rollout_moved", "harmless")]
        assert len(moves) >= 3, moves


async def _states(mission: Mission) -> dict[str, dict[str, Any]]:
    routes = (await mission.api("/policies"))["routes"]
    runs = {one["route"]: one["rollout"] or next(iter(one["past"]), None) for one in routes}
    return {name: run["state"] for name, run in runs.items() if run}
