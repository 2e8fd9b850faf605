"""Adaptive thresholds under load: the level follows the load inside what is certified, and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import Mission, drop, tokens_of

pytestmark = pytest.mark.slow
BUDGET, VOTES, SLOTS = 0.1, 7, 4
PRESSURE = {"queue": 1.0, "operating_point": 0.5, "hold_s": 2.0}
CERTIFIED, OPERATING = 'suffice_certified_level{route="r"}', 'suffice_operating_level{route="r"}'
RUN_S = 0.03  # of one sample, once load is measured


async def test_a_spike_takes_the_certified_level_within_seconds_and_gives_it_back(begin: Begin) -> None:
    simulation = World(seed=5, votes=VOTES, profiles={"number": Profile(p_same=0.85)})
    route = {"max_em_drop": BUDGET, "pressure": PRESSURE}
    async with begin(simulation, {"r": route}, upstream={"slots": SLOTS}) as mission:
        await mission.certified()
        assert (await mission.metrics())[CERTIFIED] > 1, "there is something to give back"
        simulation.change("number", delay_s=RUN_S)
        certified = (await mission.metrics())[CERTIFIED]
        usual = await _level_at_load(mission, 2, lambda level: level < certified)
        calm = await mission.send(20, at_once=2)
        spike = await _level_at_load(mission, 16, lambda level: level == certified)
        busy = await mission.send(150, at_once=16)
        again = await _level_at_load(mission, 2, lambda level: level < certified)
        calm += await mission.send(20, at_once=2)
        assert 0 < usual < spike == certified
        assert again < spike
        # New evidence may move all levels by one meanwhile.
        assert 0 < max(one.level for one in calm) < min(one.level for one in busy)
        assert all(one.report["certified"] for one in (*calm, *busy))
        assert tokens_of(busy) < tokens_of(calm)
        assert drop(mission.served) <= BUDGET
        counters = "suffice_operating_moves_total{"
        moves = {name: n for name, n in (await mission.metrics()).items() if name.startswith(counters)}
        assert sum(moves.values()) <= 6, f"it does not flutter: {moves}"


async def _level_at_load(mission: Mission, at_once: int, holds: Callable[[int], bool]) -> int:
    """The operating level once the load has moved it; by the documentation within seconds."""
    async with asyncio.timeout(60):
        while True:
            await mission.send(2 * at_once, at_once=at_once)
            level = int((await mission.metrics())[OPERATING])
            if holds(level):
                return level
