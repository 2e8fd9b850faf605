"""What a person may ask of a running vote, and of a loop of their own: the answer at once, or no stop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from suffice.assurance.runs import measure_run
from suffice.control.evidence.audits import recorded_audit
from suffice_testing import Fault, Reply, cut
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, post
from tests.gateway.test_live_runs import say
from tests.gateway.test_samples import NINE, BySeed, enforcing, observing, seeded

STALLED = Reply(answer=cut("well well 7"), faults=(Fault(stall_after=1, stall_s=60.0),))
VOTES = {
    "live": enforcing(9, wave=9),
    "audit": enforcing(9, wave=9, audit_share=1.0),
    "observed": observing(9, wave=9),
}
LOOP: dict[str, Any] = {
    "kind": "rounds",
    "scorer": "text",
    "mode": "enforce",
    "uncertified": True,
    "audit_share": 0.0,
    "policy": {"policy": "stable-answer", "streak": 2},
}
LOOPS = {"live": LOOP, "audit": {**LOOP, "audit_share": 1.0}, "observed": {**LOOP, "mode": "observe"}}


async def once(g: Served, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The only run, once something holds of it."""
    async with asyncio.timeout(20):
        while True:
            async with g.session.get(f"{g.url}/v1/runs") as response:
                runs: list[dict[str, Any]] = (await response.json())["runs"]
            if runs and holds(runs[0]):
                return runs[0]
            await asyncio.sleep(0.01)


async def answer_and_report(g: Served, what: str, holds: Callable[[dict[str, Any]], bool]) -> tuple[Answer, Answer]:
    asking = asyncio.ensure_future(g.ask(seeded()))
    run = await once(g, holds)
    report = await say(g, run["id"], what)
    return await asking, report


@pytest.mark.parametrize("way", VOTES)
async def test_a_vote_is_taken_over_the_samples_so_far(serve: Serve, way: str) -> None:
    """Three have answered, also behind one that has not: the majority is delivered, and the rest is cancelled."""
    says = BySeed(["it is 4", STALLED, "no, 5", "now 5", *[STALLED] * 5])
    async with serve(says, upstream={"slots": 9}, route=VOTES[way]) as g:
        # Three answers of three tokens or fewer, and one token of each that stalls.
        answer, report = await answer_and_report(
            g, "answer-now", lambda run: run["state"] == "sampling" and run["tokens"] >= 13
        )
        assert (report.status, report.json["wish"], answer.text) == (202, "answer_now", "no, 5")
        assert answer.report["vote"] == {"5": 2, "4": 1}
        assert answer.report["stopped"] is False
        await g.quiet()
        assert sum(call.cancelled for call in g.fake.completions) == 6
        (item,) = await g.episodes(1)
        outcome = item.episode.outcome
        assert (outcome.end_reason, outcome.stopped, outcome.answer) == ("asked", False, "5")
        assert [one.index for one in outcome.steps] == [1, 2, 3]
        assert (await say(g, item.episode.request.episode_id, "answer-now")).json["error"]["code"] == "not_running"
        if way == "audit":
            assert recorded_audit(item).is_lost
            assert measure_run(item, lambda one, gold: one == gold).drop == 1


async def test_a_vote_without_a_sample_waits_for_the_first_to_come(serve: Serve) -> None:
    says = BySeed([STALLED, "it is 4", *[STALLED] * 7], [0.0, 0.6, *[0.0] * 7])
    async with serve(says, upstream={"slots": 9}, route=VOTES["live"]) as g:
        answer, _ = await answer_and_report(g, "answer-now", lambda run: run["tokens"] >= 1)
        assert answer.text == "it is 4"
        assert (await g.outcome()).end_reason == "asked"


async def test_a_vote_that_was_asked_to_think_on_draws_until_it_is_decided(serve: Serve) -> None:
    says = BySeed(NINE, [0.3] * 9)
    async with serve(says, upstream={"slots": 9}, route=enforcing(9, wave=1)) as g:
        answer, report = await answer_and_report(g, "think-more", lambda run: run["state"] == "sampling")
        outcome = await g.outcome()
        assert (report.status, answer.text) == (202, "no, 5")
        assert (outcome.end_reason, outcome.stopped, len(outcome.steps)) == ("asked", False, 9)
        assert outcome.stop_step == 4, "the policy would have stopped it"


async def test_nothing_about_a_vote_tells_its_caller_that_it_was_an_audit(serve: Serve) -> None:
    seen = []
    for way in ("live", "audit"):
        async with serve(BySeed(["it is 4", *[STALLED] * 8]), upstream={"slots": 9}, route=VOTES[way]) as g:
            answer, report = await answer_and_report(g, "answer-now", lambda run: run["tokens"] >= 11)
            fields = {name: value for name, value in report.json.items() if name not in ("id", "began_at_s")}
            object_of = {k: v for k, v in answer.report.items() if k not in ("episode_id", "feedback_token")}
            seen.append((report.status, fields, answer.text, answer.usage, object_of))
    assert seen[0] == seen[1]


async def decide(g: Served, **body: Any) -> Any:
    answer = await post(g.session, f"{g.url}/v1/decide", {"route": "r", **body}, {})
    assert answer.status == 200, answer.raw
    return answer.json


def step(index: int, answer: str) -> dict[str, Any]:
    return {"index": index, "answer": answer, "tokens": 10}


async def loop_of(g: Served, wish: str, answers: str) -> tuple[list[tuple[Any, ...]], str]:
    """Decisions on the steps of a loop of which something is asked after the first."""
    opened = await decide(g, question="q", step=step(1, answers[0]))
    run = await once(g, lambda one: one["state"] == "looping")
    assert (run["id"], run["tokens"]) == (opened["episode_id"], 10)
    assert (await say(g, run["id"], wish)).status == 202
    decisions = []
    for index, answer in enumerate(answers[1:], 2):
        for _ in range(2):  # also when a step is reported again
            report = await decide(g, episode_id=run["id"], step=step(index, answer))
        decisions.append(
            (report["action"], report["reason"] if report["mode"] == "enforce" else "", report["return_step"])
        )
    await decide(g, episode_id=run["id"], done=True)
    assert (await say(g, run["id"], wish)).json["error"]["code"] == "not_running"
    return decisions, run["id"]


@pytest.mark.parametrize("way", LOOPS)
async def test_the_next_decision_of_a_loop_says_what_was_asked(serve: Serve, way: str) -> None:
    async with serve(route=LOOPS[way]) as g:
        ((action, _, chosen),), _ = await loop_of(g, "answer-now", "ab")
        assert (action, chosen) == ("stop", 2)
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.answer) == ("asked", False, "b")


@pytest.mark.parametrize("way", LOOPS)
async def test_a_loop_that_was_asked_to_think_on_is_not_stopped_by_its_policy(serve: Serve, way: str) -> None:
    async with serve(route=LOOPS[way]) as g:
        decisions, _ = await loop_of(g, "think-more", "aaaa")
        assert [action for action, *_ in decisions] == ["continue"] * 3
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.stop_step) == ("asked", False, 2)
        (item,) = await g.episodes(1)
        assert not item.episode.request.audit or recorded_audit(item).is_lost


async def test_nothing_about_a_loop_tells_its_caller_that_it_was_an_audit(serve: Serve) -> None:
    for wish in ("answer-now", "think-more"):
        seen = []
        for way in ("live", "audit"):
            async with serve(route=LOOPS[way]) as g:
                seen.append((await loop_of(g, wish, "abbb"))[0])
        assert seen[0] == seen[1]


async def test_a_loop_that_is_not_governed_cannot_be_asked(serve: Serve) -> None:
    async with serve(route={**LOOP, "mode": "off"}) as g:
        opened = await decide(g, question="q", step=step(1, "a"))
        refused = await say(g, opened["episode_id"], "answer-now")
        assert (refused.status, refused.json["error"]["code"]) == (409, "cannot_be_asked")
