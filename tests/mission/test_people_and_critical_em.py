"""People and critical EM: labels below the critical level pause the route until a person decides, and reviews count."""

from __future__ import annotations

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin

pytestmark = pytest.mark.slow
CRITICAL, VOTES = 0.6, 5
ROUTE = {"max_em_drop": 0.1, "critical_em": CRITICAL, "review": {"per_day": 50, "control_share": 0.5}}
ADMIN = {"reason": "the labels of this morning were of another quiz"}


async def test_labels_below_the_critical_em_pause_the_route_until_a_person_resumes_it(begin: Begin) -> None:
    simulation = World(seed=7, votes=VOTES, profiles={"number": Profile(p_same=0.95, p_right=0.9)})
    async with begin(simulation, {"r": ROUTE}) as mission:
        await mission.certified(labelled=1.0)
        served = await mission.send(200, labelled=1.0)
        await mission.rest()
        assert any(one.stopped for one in served)
        assert not mission.rows("enforcement_paused"), "nine in ten are right"

        simulation.change("number", p_right=0.3)
        n_before = len(mission.served)
        while not mission.rows("enforcement_paused"):
            assert len(mission.served) - n_before < 2_000, "it has paused by then"
            await mission.send(100, labelled=1.0)
            await mission.rest()
        (pause,) = mission.rows("enforcement_paused")
        assert pause["cause"] == "critical_em"
        paused = await mission.send(100)
        assert not any(one.stopped for one in paused), "everything runs in full"
        page = await mission.api("/incidents")
        (incident,) = (one["case"]["incident"] for one in page["open"])
        assert (incident["route"], incident["cause"]) == ("r", "critical_em")
        assert (await mission.metrics())['suffice_open_incidents{route="r"}'] == 1

        simulation.change("number", p_right=0.9)
        decision = {"incident": incident["incident"], "decision": "accept", "days": "1", **ADMIN}
        await mission.api("/incidents/decide", decision)
        await mission.rest()
        resumed = await mission.send(100)
        assert any(one.stopped for one in resumed), "what is certified acts again"
        assert not (await mission.api("/incidents"))["open"]


async def test_a_verdict_of_a_reviewer_is_a_label_that_outranks_others(begin: Begin) -> None:
    simulation = World(seed=8, votes=VOTES, profiles={"number": Profile(p_same=0.8)})
    async with begin(simulation, {"r": ROUTE}) as mission:
        served = await mission.send(300)
        by_episode = {one.episode_id: one for one in served}
        await mission.rest()
        await mission.until(lambda: mission.rows("review_asked"), what="items for people")
        await mission.api("/review/next", {"route": "r"})
        item = (await mission.api("/review"))["in_hand"]["item"]
        request = by_episode[item["episode_id"]]
        await mission.feedback([{"episode_id": request.episode_id, "correct": False}])
        # The label of a program is wrong; the person knows better.
        verdict = {"item": request.episode_id, "verdict": "full" if item["shows"] == "both" else "right"}
        await mission.api("/review/say", verdict | {"corrected": request.question.final})
        page = await mission.api(f"/episodes/{request.episode_id}")
        assert [one["feedback"]["source"] for one in page["labels"]] == ["exact-match", "reviewer"]
        assert [one["counts"] for one in page["labels"]] == [False, True]
        assert page["correct"] is True
        assert mission.rows("review_verdict")[0]["corrected"] == request.question.final
