"""The agent of a route with two efforts: where one becomes dear, its class gets the other one, not full runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from suffice_testing.prompt import cut
from suffice_testing.reply import FakeRequest, Reply
from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import Mission, Served, drop

pytestmark = pytest.mark.slow
BUDGET = 0.1
ROUTE: dict[str, Any] = {
    "kind": "reasoning",
    "effort": ["medium", "low"],
    "probe": {"verified_by": "owner"},
    "max_em_drop": BUDGET,
    "audit_share": 0.3,
    "token_price": 1.0,
}
STEPS = {"": 12, "medium": 6, "low": 3}  # of a thought
DEAR, STEP_TOKENS = 14, 6
FIRST_LOOK = 100  # from which on the agent keeps its account
AT_ONCE = 32
MOST_UNTIL_BOTH, MOST_UNTIL_OTHER = 2_500, 800  # requests


class Efforts(World):
    """Thinks as long as the effort says, and answers as in a full run."""

    steps = STEPS

    def __call__(self, seen: FakeRequest) -> Reply:
        effort = str(seen.body.get("reasoning_effort") or "")
        question = self.made[int(seen.text.rpartition("item ")[2].split()[0])]
        return Reply(reasoning=cut("on " * STEP_TOKENS * self.steps[effort]), answer=cut(f"It is {question.final}"))


async def test_where_an_effort_becomes_dear_its_class_gets_the_other_one(begin: Begin) -> None:
    simulation = Efforts(seed=5, profiles={"number": Profile(p_right=0.9)})
    async with begin(simulation, {"r": ROUTE}, upstream={"driver": "openai"}) as mission:
        await _until(mission, "effort=low", within=MOST_UNTIL_BOTH)
        simulation.steps = {**STEPS, "low": DEAR}
        n_dear = len(mission.served)
        await _until(mission, "effort=medium", within=MOST_UNTIL_OTHER)
        after = await _send(mission, 200)
        assert _share(after, "effort=medium") > 0.6, "a third are audits"
        assert _share(after, "effort=low") < 0.05
        plans = mission.rows("agent_planned")
        plan = next(one for one in plans if one["at"] > n_dear and "is asked with effort=medium" in one["reason"])
        mission.figures["the other effort after"] = plan["at"] - n_dear
        assert drop(mission.served) <= BUDGET
        line, price = plans[-1]["best_fixed"], plans[-1]["token_price"]
        audits = {name for (name,) in mission.sql("SELECT episode_id FROM requests WHERE audit")}
        truth = _over_best_fixed(mission.served[: plans[-1]["at"]], audits, n_dear, price)
        mission.figures["over the best fixed"] = f"{line['mean']:.4f}, in truth {truth:.4f}"
        assert line["low"] <= truth <= line["high"]


def _over_best_fixed(served: list[Served], audits: set[str], n_dear: int, price: float) -> float:
    """What the best fixed effort would have gained above the agent, a request; audits run in full in any case."""
    full = float(np.median([one.tokens - one.report["probe_tokens"] for one in served if one.episode_id in audits]))
    own, fixed = 0.0, dict[str, float].fromkeys(("medium", "low"), 0.0)
    mine = [(n, one) for n, one in enumerate(served) if n >= FIRST_LOOK and one.episode_id not in audits]
    for n, one in mine:
        own += price * (1 - one.tokens / full)
        for effort in fixed:
            steps = DEAR if effort == "low" and n >= n_dear else STEPS[effort]
            fixed[effort] += price * (STEPS[""] - steps) * STEP_TOKENS / full
    return (max(fixed.values()) - own) / len(mine)


async def _send(mission: Mission, n: int) -> list[Served]:
    served = await mission.send(n, at_once=AT_ONCE)
    await mission.rest()
    return served


async def _until(mission: Mission, effort: str, *, within: int) -> None:
    n_before = len(mission.served)
    while _share(await _send(mission, 100), effort) < 0.5:
        assert len(mission.served) - n_before <= within, [one["reason"] for one in mission.rows("agent_planned")]


def _share(served: list[Served], effort: str) -> float:
    return sum(1.0 for one in served if one.report.get("policy_version") == effort) / len(served)
