"""Context-aware stopping: the same agreement of answers is enough for one kind of question and not for another."""

from __future__ import annotations

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import drop, saving

pytestmark = pytest.mark.slow
BUDGET = 0.05
VOTES, SAMPLE_TOKENS = 9, 3
# The samples of both classes agree from the first to the fourth. In one of them, a third of the runs then turn.
STEADY, TURNING = Profile(p_same=1.0), Profile(p_same=1.0, p_turn=0.33)


async def test_stops_early_where_that_loses_nothing_and_later_where_the_same_signals_mislead(begin: Begin) -> None:
    simulation = World(seed=2, votes=VOTES, profiles={"number": STEADY, "which": TURNING})
    async with begin(simulation, {"r": {"max_em_drop": BUDGET}}) as mission:
        await mission.certified()
        served = await mission.send(1_200)
        of = {name: [one for one in served if one.question.query_class == name] for name in simulation.profiles}
        # A rule that is blind to the class and stops at the third equal answer loses p_turn * p_right of one class.
        blind = TURNING.p_turn * TURNING.p_right * len(of["which"]) / len(served)
        assert blind > 2 * BUDGET
        assert drop(served) <= BUDGET
        assert drop(of["number"]) == 0
        full_tokens = VOTES * SAMPLE_TOKENS
        assert saving(of["number"], full_tokens) >= 0.5
        assert saving(of["number"], full_tokens) > saving(of["which"], full_tokens) + 0.1
        page = await mission.api("/route", name="r")
        assert page["route"]["promise_state"] == "certified"
        assert {one["name"] for one in page["classes"]} == set(of)
