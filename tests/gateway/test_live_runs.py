"""What a person may ask of a running request: its answer at once, or no stop; and that no certificate gains by it."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from suffice.assurance.runs import measure_run
from suffice.control.evidence.audits import recorded_audit
from suffice.episode.ledger import StopState
from suffice.episode.stream_relay import LiveRun
from suffice.learn.dataset import fate
from suffice.store.database.views import read_events
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent, ReplicaState
from suffice.types import Request
from suffice_testing import Fault
from tests.control.made import traffic
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post
from tests.gateway.test_stop import N_THOUGHT, assert_one_ordinary_stream, chain, enforcing

NEVER = {"policy": {"policy": "never"}}
PATIENT = {"policy": {"policy": "stable-answer", "streak": 50}}
ROUTES: dict[str, dict[str, Any]] = {
    "live": enforcing(**PATIENT),
    "audit": enforcing(audit_share=1.0, **PATIENT),
    "observed": enforcing(mode="observe", uncertified=False, **PATIENT),
}


def slow(stalls_after: int = 9) -> Any:
    """A thought that halts after some tokens until somebody has had time to ask for something."""
    return chain(delay_s=0.03, faults=(Fault(stall_after=stalls_after, stall_s=0.6),))


async def running(g: Served, headers: dict[str, str] | None = None) -> Any:
    """The only run, once its thought has begun."""
    async with asyncio.timeout(20):
        while True:
            async with g.session.get(f"{g.url}/v1/runs", headers=headers or {}) as response:
                runs = (await response.json())["runs"]
            if runs and runs[0]["state"] == "thinking" and runs[0]["tokens"] > 3:
                return runs[0]
            await asyncio.sleep(0.01)


async def say(g: Served, run: str, what: str, headers: dict[str, str] | None = None) -> Answer:
    return await post(g.session, f"{g.url}/v1/runs/{run}/{what}", b"", headers or {})


async def answer_and_report(g: Served, what: str, **body: Any) -> tuple[Answer, Answer]:
    """The run's answer, and the reply to what was asked of it while it ran."""
    asking = asyncio.ensure_future(g.ask(chat(stream=True, **body)))
    run = await running(g)
    report = await say(g, run["id"], what)
    answer = await asking
    assert answer.headers["x-suffice-episode-id"] == run["id"], "a client knows the id before the first token"
    return answer, report


@pytest.mark.parametrize("route", ROUTES)
async def test_the_answer_comes_at_the_next_place_where_the_thought_may_be_cut(serve: Serve, route: str) -> None:
    async with serve(slow(), upstream={"slots": 3}, route=ROUTES[route]) as g:
        answer, report = await answer_and_report(g, "answer-now")
        assert report.status == 202
        assert_one_ordinary_stream(answer, wants_usage=False)
        assert answer.text
        episode = await g.episode()
        outcome = episode.outcome
        assert (outcome.end_reason, outcome.stopped) == ("asked", False)
        assert outcome.usage is not None
        assert outcome.usage.reasoning_tokens < N_THOUGHT
        assert (await say(g, episode.request.episode_id, "answer-now")).json["error"]["code"] == "not_running"


async def test_nothing_that_a_caller_sees_tells_an_audit_from_another_run(serve: Serve) -> None:
    seen = []
    for route in ("live", "audit"):
        async with serve(slow(), upstream={"slots": 3}, route=ROUTES[route]) as g:
            answer, report = await answer_and_report(g, "answer-now")
            late = await say(g, answer.headers["x-suffice-episode-id"], "think-more")
            view = {name: value for name, value in report.json.items() if name not in ("id", "began_at_s", "tokens")}
            seen.append((report.status, view, late.status, late.raw, answer.text, answer.thought, answer.finish))
    assert seen[0] == seen[1]


@pytest.mark.parametrize("what", ["answer-now", "think-more"])
async def test_an_audit_of_which_something_was_asked_counts_as_lost_at_every_level(serve: Serve, what: str) -> None:
    """Whatever its answers say: nobody can make a certificate better by asking."""
    async with serve(slow(), upstream={"slots": 3}, route=ROUTES["audit"]) as g:
        await answer_and_report(g, what)
        (item,) = await g.episodes(1)
        assert item.episode.request.audit
        assert fate(item.episode.request, item.episode.outcome) == "abandoned"
        assert recorded_audit(item).is_lost
        run = measure_run(item, lambda answer, gold: answer == gold)
        assert (run.drop, run.disagrees, run.correct) == (1, True, None)


async def test_a_run_that_was_asked_to_think_on_is_not_stopped_by_its_policy(serve: Serve) -> None:
    async with serve(slow(6), upstream={"slots": 3}, route=enforcing()) as g:
        answer, report = await answer_and_report(g, "think-more")
        assert (report.status, report.json["wish"]) == (202, "think_more")
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.end_reason) == (False, "asked")
        assert outcome.stop_step is not None, "the policy would have stopped it"
        assert answer.text == "5 dear"
    async with serve(slow(6), upstream={"slots": 3}, route=enforcing()) as g:
        await g.ask(chat(stream=True))
        assert [one.episode.outcome.stopped for one in await g.episodes(2)] == [False, True]


async def test_what_was_asked_is_logged_once_and_is_no_label_of_correctness(serve: Serve) -> None:
    async with serve(slow(), upstream={"slots": 3}, route=ROUTES["live"]) as g:
        asking = asyncio.ensure_future(g.ask(chat(stream=True)))
        run = await running(g)
        for _ in range(2):
            assert (await say(g, run["id"], "think-more")).status == 202
        refused = await say(g, run["id"], "answer-now")
        assert (refused.status, refused.json["error"]["code"]) == (409, "cannot_be_asked")
        await asking
        await g.episodes(1)
        (given,) = [one.event.feedback for one in read_events(g.database) if isinstance(one.event, FeedbackEvent)]
        assert (given.event, given.source, given.episode_id) == ("think_more", "behaviour", run["id"])
        assert (given.correct, given.gold, given.rating, given.thumbs) == (None, None, None, None)


async def test_an_answer_that_has_begun_is_not_cut(serve: Serve) -> None:
    async with serve(slow(N_THOUGHT + 1), upstream={"slots": 3}, route=ROUTES["live"]) as g:
        asking = asyncio.ensure_future(g.ask(chat(stream=True)))
        run = await running(g)
        async with asyncio.timeout(20):
            while (await _view(g)).get("state") != "answering":  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        assert (await say(g, run["id"], "answer-now")).status == 409
        await asking
        assert (await g.outcome()).end_reason == "done"


def test_where_no_thought_can_be_closed_nothing_is_promised_and_nothing_marked() -> None:
    reader: Any = SimpleNamespace(state=SimpleNamespace(phase="thinking", ended=False))
    ledger: Any = SimpleNamespace(end_reason=None, stop=StopState())
    for run in (LiveRun(ledger), LiveRun(ledger, reader)):
        assert run.ask("answer_now") is not None
        assert (ledger.stop.wish, ledger.end_reason) == (None, None)
    assert LiveRun(ledger, reader).ask("think_more") is None, "to go on takes no way to close"


async def _view(g: Served) -> Any:
    async with g.session.get(f"{g.url}/v1/runs") as response:
        runs = (await response.json())["runs"]
    return runs[0] if runs else {}


ANN, BOB, OPS = ({"authorization": f"Bearer sk-{name}"} for name in ("ann", "bob", "ops"))


async def test_a_run_is_its_own_keys_and_an_operators(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "sk-ann, sk-bob")
    monkeypatch.setenv("OPS_OF_THIS_TEST", "sk-ops")
    server = {"api_keys_env": "KEYS_OF_THIS_TEST"}
    keys = {"ops": {"key_env": "OPS_OF_THIS_TEST", "scopes": ["operate"]}}
    async with serve(slow(), upstream={"slots": 3}, route=ROUTES["live"], server=server, keys=keys) as g:
        asking = asyncio.ensure_future(g.ask(chat(stream=True), headers=ANN))
        run = await running(g, ANN)
        async with g.session.get(f"{g.url}/v1/runs", headers=BOB) as response:
            assert (await response.json())["runs"] == []
        other, unknown = await say(g, run["id"], "answer-now", BOB), await say(g, "ep_nobody", "answer-now", BOB)
        assert (other.status, other.raw) == (unknown.status, unknown.raw) == (409, other.raw)
        assert (await say(g, run["id"], "answer-now")).status == 401
        assert (await running(g, OPS))["id"] == run["id"]
        assert (await say(g, run["id"], "answer-now", OPS)).status == 202
        await asking
        assert (await g.outcome()).end_reason == "asked"


async def test_a_run_of_another_replica_is_named_to_those_who_may_ask_it(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "sk-ann, sk-bob")
    monkeypatch.setenv("OPS_OF_THIS_TEST", "sk-ops")
    server = {"api_keys_env": "KEYS_OF_THIS_TEST"}
    keys = {"ops": {"key_env": "OPS_OF_THIS_TEST", "scopes": ["operate"]}}
    begun, ended = traffic(1, seed=3)
    assert isinstance(begun, Request)
    async with serve(slow(), route=ROUTES["live"], server=server, keys=keys) as g:
        there = LogWriter(g.gateway.settings.store, now=time.time)
        state = ReplicaState(gateway="other", number=1, name="east", software="0", secret="s")
        assert all(there.append(one) for one in (state, begun))
        assert there.drain(20)
        report = (await say(g, begun.episode_id, "answer-now", OPS)).json["error"]
        assert (report["code"], "the replica east has it" in report["message"]) == ("not_running", True)
        assert "east" not in (await say(g, begun.episode_id, "answer-now", BOB)).json["error"]["message"]
        there.append(ended)
        assert there.drain(20)
        assert "east" not in (await say(g, begun.episode_id, "answer-now", OPS)).json["error"]["message"]
        there.close()
