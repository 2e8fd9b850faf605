"""Feedback and experiments: what people say finds its run, and an experiment's intervals hold the truth."""

from __future__ import annotations

import random

import pytest

from suffice_testing.world import Profile, World
from tests.mission.conftest import Begin
from tests.mission.harness import FEEDBACK_KEY, Served, drop, tokens_of

pytestmark = pytest.mark.slow
VOTES, EM_MARGIN = 7, 0.1
ROUTE = {
    "policy": {"policy": "stable-answer", "streak": 4},
    "uncertified": True,
    "audit_share": 0.1,
}
EXPERIMENT = {
    "routes": ["r"],
    "margins": {"em": EM_MARGIN},
    "arms": {"full": {"full": True}, "brisk": {"policy": {"policy": "stable-answer", "streak": 2}}},
}
P_UP = {True: 0.55, False: 0.85}  # thumbs up of stopped and of full runs: people like stopped answers less


async def test_an_experiments_intervals_hold_the_true_effects(begin: Begin) -> None:
    simulation = World(seed=4, votes=VOTES, profiles={"number": Profile(p_same=0.9)})
    chance = random.Random(4)
    async with begin(simulation, {"r": ROUTE}, experiments={"e": EXPERIMENT}) as mission:
        await mission.api("/experiments/start", {"name": "e", "reason": "are two equal answers enough?"})
        await mission.rest()
        served = list[Served]()
        for _ in range(4):
            served += await mission.send(500, labelled=1.0)
        arm_of = {
            row["episode_id"]: row["arms"][0]["arm"]
            for row in mission.rows("request")
            if row["arms"] and not row["audit"]
        }
        arms = {name: [one for one in served if arm_of.get(one.episode_id) == name] for name in EXPERIMENT["arms"]}
        rated = [
            {"episode_id": one.episode_id, "thumbs": "up" if chance.random() < P_UP[one.stopped] else "down"}
            for name in arms
            for one in arms[name]
        ]
        await mission.feedback(rated, source="user")
        await mission.rest()
        displayed = (await mission.api("/experiments/result", name="e"))["result"]
        assert displayed["withheld"] is None, "the split is as it was drawn"
        assert displayed["n_requests"] == len(served)
        (arm,) = displayed["arms"]
        effects = {one["metric"]: one for one in arm["comparisons"]}
        truths = {
            "tokens": tokens_of(arms["brisk"]) - tokens_of(arms["full"]),
            "em": -drop(arms["brisk"]),
            "satisfaction": P_UP[True] - P_UP[False],
        }
        for metric, truth in truths.items():
            low, high = effects[metric]["between"]["low"], effects[metric]["between"]["high"]
            assert low <= truth <= high, f"{metric}: {truth:.3f} is not between {low:.3f} and {high:.3f}"
        assert effects["tokens"]["verdict"] == "better"
        assert effects["em"]["verdict"] == "no worse"
        assert effects["satisfaction"]["verdict"] == "worse"
        ended = await mission.api("/experiments/stop", {"name": "e", "reason": "it is clear"})
        assert ended


async def test_feedback_counts_once_and_finds_its_run_in_any_order(begin: Begin) -> None:
    simulation = World(seed=44, votes=VOTES)
    async with begin(simulation, {"r": ROUTE}) as mission:
        (first, second) = await mission.send(2)
        word = {"feedback_id": "ticket-1", "episode_id": first.episode_id, "rating": 5, "source": "user"}
        output = [await mission.post("/v1/feedback", word, key=FEEDBACK_KEY) for _ in range(2)]
        assert output == [
            {"accepted": True, "duplicate": False, "joined": True},
            {"accepted": True, "duplicate": True, "joined": True},
        ]
        by_token = {"thumbs": "down", "token": second.report["feedback_token"]}
        assert (await mission.post("/v1/feedback", by_token))["joined"]
        early = {"feedback_id": "ticket-2", "response_id": "a-response-to-come", "correct": True, "source": "reviewer"}
        assert not (await mission.post("/v1/feedback", early, key=FEEDBACK_KEY))["joined"]
        page = await mission.api(f"/episodes/{first.episode_id}")
        assert [one["feedback"]["rating"] for one in page["labels"]] == [5]
        page = await mission.api(f"/episodes/{second.episode_id}")
        assert [one["feedback"]["thumbs"] for one in page["labels"]] == ["down"]
