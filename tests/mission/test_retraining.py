"""Retraining: another model ends the evidence at once, and a version fitted on its own runs is certified."""

from __future__ import annotations

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import drop, saving

pytestmark = pytest.mark.slow
BUDGET, VOTES, SAMPLE_TOKENS = 0.1, 9, 3


async def test_a_swapped_model_runs_in_full_until_a_version_fitted_on_its_own_runs_is_certified(begin: Begin) -> None:
    simulation = World(seed=6, votes=VOTES, profiles={"number": Profile(p_same=0.95)})
    async with begin(simulation, {"r": {"max_em_drop": BUDGET}}, control={"refit_requests": 300}) as mission:
        first = await mission.certified()
        served = await mission.send(300)
        assert saving(served, VOTES * SAMPLE_TOKENS) > 0.3
        assert drop(served) <= BUDGET

        # The next model agrees far less with itself: what was enough before would lose.
        simulation.model = "m-2"
        simulation.change("number", p_same=0.6)
        swapped = await mission.send(200)
        stopped = [one for one in swapped if one.stopped]
        assert len(stopped) <= 32, "those in flight when the first answer named another model"
        await mission.rest()
        (alarm,) = mission.rows("alarm_raised")
        assert alarm["cause"] == "change"
        second = await mission.certified(epoch=2)
        assert second["fit"] != first["fit"]
        assert all(not one.stopped for one in mission.served[-200:]), "none before its certificate"
        assert [name for _, name, _ in second["upstream"]] == ["m-2"]
        after = await mission.send(600)
        assert drop(after) <= BUDGET
        assert saving(after, VOTES * SAMPLE_TOKENS) > 0.1
        await mission.until(lambda: mission.rows("version_proposed"), what="a proposal", within_s=120)
        proposal = mission.rows("version_proposed")[-1]
        assert proposal["card"]["frontier"], "the report card of a proposal"
        assert proposal["lineage"]["n_runs"] == proposal["n_runs"] > 0
