"""F18: the second call fails, in every way and at every moment, and the client still gets its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from suffice_testing import AnswerTokens, FakeRequest, Fault, Reply, ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat
from tests.gateway.test_stop import N_THOUGHT, STEPS, accounted, chain, enforcing, spent

FULL = "5 dear"
THOUGHT = "".join(text for text, _ in STEPS)
CHAIN = ScriptedThought([(text, f"{answer} it is") for text, answer in STEPS], FULL)


def is_continuation(seen: FakeRequest) -> bool:
    """Probes end at a line, continuations do not."""
    return seen.is_raw and "stop" not in seen.body


def is_rerun(seen: FakeRequest) -> bool:
    return not seen.is_raw and seen.nth_same > 0


DIES_THINKING = (Fault(die_after=N_THOUGHT - 1, die_how="fin"),)


class Model:
    """The chain; its first run falls silent for a while, its continuation and its rerun may fail."""

    def __init__(
        self,
        *faults: Fault,
        original: tuple[Fault, ...] = (),
        rerun: tuple[Fault, ...] = (),
        silent_s: float = 3.0,
        silent_at: int = N_THOUGHT,
        **continuation: Any,
    ) -> None:
        self._faults, self._rerun, self._continuation = faults, rerun, continuation
        self._original = (Fault(stall_after=silent_at, stall_s=silent_s), *original)

    def __call__(self, seen: FakeRequest) -> Reply:
        reply = CHAIN(seen)
        if is_continuation(seen):
            return replace(reply, faults=self._faults, **self._continuation)
        if is_rerun(seen):
            return replace(reply, faults=self._rerun)
        return reply if seen.is_raw else replace(reply, faults=self._original)


FAILURES: dict[str, Callable[..., Model]] = {
    "500": lambda **more: Model(Fault(status=500), **more),
    "404": lambda **more: Model(Fault(status=404), **more),
    "429": lambda **more: Model(Fault(status=429), **more),
    "no headers in time": lambda **more: Model(Fault(header_delay_s=5.0), **more),
    "no words in time": lambda **more: Model(first_delay_s=5.0, **more),
    "rst": lambda **more: Model(Fault(die_after=0, die_how="rst"), **more),
    "fin": lambda **more: Model(Fault(die_after=0, die_how="fin"), **more),
    "error frame": lambda **more: Model(Fault(die_after=0, die_how="error_frame"), **more),
    "no text": lambda **more: Model(answer=(), answer_after=None, **more),
    "white space": lambda **more: Model(answer=(" ", "\n"), answer_after=None, **more),
    "a web page": lambda **more: Model(Fault(html=True), **more),
    "json": lambda **more: Model(Fault(force="json"), **more),
    "bad frame": lambda **more: Model(Fault(bad_frame_after=0), **more),
}


def assert_whole(answer: Answer, *, text: str = FULL) -> None:
    """An ordinary full answer, its thought shown once."""
    assert answer.status == 200
    assert (answer.text, answer.thought, answer.finish) == (text, THOUGHT, "stop")
    if "event-stream" in answer.headers["content-type"]:
        assert answer.done
        assert answer.errors == []
        assert len({c["id"] for c in answer.chunks}) == 1
        assert len({c["created"] for c in answer.chunks}) == 1
        assert [c["choices"][0]["delta"].get("role") for c in answer.chunks if c["choices"]].count("assistant") == 1


async def assert_accounted(g: Served, name: str = "") -> None:
    """Every token is there; prompts of calls cut off before they were counted are estimated.

    The estimate takes line ends of the thought for prompt tokens, which the fake's counter does not. A
    reply in another protocol is not read on: the tokens in it were never received.
    """
    outcome = await g.outcome()
    await g.quiet()
    unread = 3 if name in ("json", "bad frame") else 0
    assert 0 <= spent(g.fake)[1] - accounted(outcome)[1] <= unread
    if name == "json":
        return
    estimated = any(c.source == "estimated" for c in outcome.calls)
    assert 0 <= accounted(outcome)[0] - spent(g.fake)[0] <= (len(STEPS) if estimated else 0)


@pytest.mark.slow(keep=8)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("name", FAILURES)
async def test_with_one_slot_a_full_run_follows_with_its_thought_hidden(serve: Serve, name: str, stream: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    async with serve(FAILURES[name](), upstream={"finish": ["raw"]}, route=enforcing(handover_ms=100)) as g:
        answer = await g.ask(chat(stream=stream, **options))
        assert_whole(answer)
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.answer) == ("done", False, "5")
        assert outcome.degraded == ("handover",)
        assert g.failed_open("handover") == 1
        assert [c.purpose for c in outcome.calls if c.purpose != "probe"] == ["main", "continuation", "rerun"]
        # The client pays for the run that it got; the two that came to nothing are overhead.
        assert answer.usage["completion_tokens"] == N_THOUGHT + 2
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == N_THOUGHT + 2
        # Feedback names the request by the id that the client saw, which is the first run's.
        assert outcome.response_id == (answer.chunks[0] if stream else answer.json)["id"] == "chatcmpl-fake-0"
        assert outcome.overhead.discarded_tokens >= N_THOUGHT
        await assert_accounted(g, name)


@pytest.mark.slow(keep=3)
@pytest.mark.parametrize("name", FAILURES)
async def test_with_a_free_slot_the_original_goes_on(serve: Serve, name: str) -> None:
    upstream = {"finish": ["raw"], "slots": 2}
    async with serve(FAILURES[name](silent_s=1.5), upstream=upstream, route=enforcing(handover_ms=100)) as g:
        answer = await g.ask(chat(stream=True))
        assert_whole(answer)
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.degraded) == ("done", False, ("handover",))
        assert [c.purpose for c in outcome.calls if c.purpose != "probe"] == ["main", "continuation"]
        assert not g.fake.completions[0].cancelled
        await assert_accounted(g, name)


async def test_a_failed_continuation_gives_its_slot_up_before_the_rerun(serve: Serve) -> None:
    """An engine with one slot serves nothing else while the silent continuation has it."""
    route = enforcing(probe=None, policy={"policy": "fixed-budget", "max_tokens": 3}, handover_ms=100)
    model = Model(first_delay_s=60.0)
    async with serve(model, fake={"slots": 1}, upstream={"finish": ["raw"]}, route=route) as g:
        async with asyncio.timeout(30.0):
            answer = await g.ask(chat(stream=True))
        assert (answer.text, answer.finish, answer.done) == (FULL, "stop", True)
        assert g.fake.max_in_flight <= 2  # the rerun may arrive while the other is being closed


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("how", ["rst", "fin", "error_frame"])
async def test_a_continuation_that_dies_in_the_middle_of_a_stream_ends_in_one_error_frame(
    serve: Serve, how: Any, slots: int
) -> None:
    upstream = {"finish": ["raw"], "slots": slots}
    async with serve(Model(Fault(die_after=1, die_how=how)), upstream=upstream, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "4"
        assert len(answer.errors) == 1
        assert answer.errors[0]["type"] == "upstream_error"
        assert answer.finish is None
        assert not answer.done
        outcome = await g.outcome()
        assert outcome.end_reason == "upstream_error"
        assert "handover" in outcome.degraded


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("how", ["rst", "fin", "error_frame"])
async def test_a_body_that_was_not_sent_yet_is_made_again(serve: Serve, how: Any, slots: int) -> None:
    upstream = {"finish": ["raw"], "slots": slots}
    async with serve(Model(Fault(die_after=1, die_how=how)), upstream=upstream, route=enforcing()) as g:
        answer = await g.ask(chat())
        assert_whole(answer)
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.finish_method) == ("done", False, None)
        assert outcome.degraded == ("handover",)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_when_the_rerun_fails_too_the_client_is_told(serve: Serve, stream: bool) -> None:
    model = Model(Fault(status=500), rerun=(Fault(status=503, status_body=b'{"error":{"message":"busy"}}'),))
    async with serve(model, upstream={"finish": ["raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=stream))
        if stream:
            assert len(answer.errors) == 1
            assert answer.thought == THOUGHT
            assert not answer.done
        else:
            assert (answer.status, answer.raw) == (503, b'{"error":{"message":"busy"}}')
        assert (await g.outcome()).end_reason == "upstream_error"


async def test_an_inline_thought_is_hidden_and_closed_by_a_rerun(serve: Serve) -> None:
    def says(seen: FakeRequest) -> Reply:
        reply = replace(CHAIN(seen), reasoning_field="inline")
        if is_continuation(seen):
            return replace(reply, faults=(Fault(status=500),))
        return (
            reply
            if seen.is_raw or is_rerun(seen)
            else replace(reply, faults=(Fault(stall_after=N_THOUGHT + 1, stall_s=3.0),))
        )

    async with serve(says, upstream={"finish": ["raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == f"<think>{THOUGHT}</think>{FULL}"
        assert answer.done
        assert (await g.outcome()).answer == "5"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_an_original_that_dies_while_it_is_held_back_is_not_missed(serve: Serve, stream: bool) -> None:
    model = Model(original=DIES_THINKING, silent_s=1.0, silent_at=N_THOUGHT - 2, first_delay_s=3.0)
    async with serve(model, upstream={"finish": ["raw"], "slots": 2}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=stream))
        assert answer.text == "4 it is"
        assert answer.finish == "stop"
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.degraded) == (True, ())


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_when_both_die_a_full_run_follows(serve: Serve, stream: bool) -> None:
    model = Model(Fault(header_delay_s=5.0), original=DIES_THINKING, silent_s=0.1, silent_at=N_THOUGHT - 2)
    async with serve(model, upstream={"finish": ["raw"], "slots": 2}, route=enforcing(handover_ms=300)) as g:
        answer = await g.ask(chat(stream=stream))
        assert (answer.status, answer.text, answer.finish) == (200, FULL, "stop")
        # What the client saw of the first thought is not shown again; a body was made anew as a whole.
        assert THOUGHT.startswith(answer.thought) if stream else answer.thought == THOUGHT
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.degraded) == ("done", ("handover",))
        assert outcome.calls[-1].purpose == "rerun"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_stop_that_comes_too_late_is_no_stop(serve: Serve, stream: bool) -> None:
    """The model closes its thought by itself while the continuation is still silent."""
    model = Model(silent_s=0.1, first_delay_s=60.0)
    async with serve(model, upstream={"finish": ["raw"], "slots": 2}, route=enforcing()) as g:
        async with asyncio.timeout(30.0):  # and the silent continuation is not waited for
            answer = await g.ask(chat(stream=stream))
        assert_whole(answer)
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped, outcome.degraded) == ("done", False, ())
        await assert_accounted(g)


@pytest.mark.parametrize("buffer_bytes", [1, 400])
async def test_a_full_buffer_only_makes_the_original_wait(serve: Serve, buffer_bytes: int) -> None:
    route = enforcing(handover_ms=200, handover_buffer_bytes=buffer_bytes)
    model = Model(Fault(header_delay_s=5.0), silent_s=0.05)
    async with serve(model, upstream={"finish": ["raw"], "slots": 2}, route=route) as g:
        assert_whole(await g.ask(chat(stream=True)))


async def test_an_engine_that_will_not_end_the_thought_is_asked_in_another_way(serve: Serve) -> None:
    def says(seen: FakeRequest) -> Reply:
        if not seen.is_raw:
            seen.body.pop("reasoning_control", None)  # type: ignore[attr-defined]  # an engine without it
        return Model()(seen)

    async with serve(says, upstream={"finish": ["native", "raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "4 it is"
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.finish_method, outcome.degraded) == (True, "raw", ("native",))


async def test_an_engine_that_offers_nothing_runs_on(serve: Serve) -> None:
    route = enforcing(probe=None, scorer="text", policy={"policy": "stable-answer", "streak": 1})
    async with serve(
        Model(silent_s=0.0), fake={"dialect": "openai"}, upstream={"finish": ["native"]}, route=route
    ) as g:
        assert_whole(await g.ask(chat(stream=True)))
        assert (await g.outcome()).degraded == ("native",)


@pytest.mark.parametrize("method", ["raw", "prefill"])
async def test_a_missing_template_is_found_out_before_the_original_is_given_up(serve: Serve, method: str) -> None:
    """`raw` without the template's text cannot work: the only slot must not be emptied for it."""
    route = enforcing(probe=None, policy={"policy": "fixed-budget", "max_tokens": 3})
    upstream = {"finish": [method], "driver": "openai"} if method == "raw" else {"finish": ["raw"]}
    async with serve(Model(silent_s=0.0), fake={"dialect": "openai"}, upstream=upstream, route=route) as g:
        assert_whole(await g.ask(chat(stream=True)))
        outcome = await g.outcome()
        assert outcome.degraded == ("handover",)
        assert len(g.fake.completions) == 1


@pytest.mark.parametrize("cap", ["max_tokens", "max_completion_tokens"])
async def test_the_clients_cap_holds_over_both_calls(serve: Serve, cap: str) -> None:
    async with serve(Model(), upstream={"finish": ["raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat() | {cap: N_THOUGHT + 2})
        assert g.fake.completions[-1].body["max_tokens"] == 2
        assert answer.text == "4 it"
        assert answer.finish == "length"
        assert answer.usage["completion_tokens"] == N_THOUGHT + 2


@pytest.mark.slow(keep=5)
@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("slots", [1, 2])
async def test_no_request_makes_more_calls_than_it_may(serve: Serve, limit: int, slots: int) -> None:
    route = enforcing(max_extra_calls=limit, handover_ms=100)
    model = Model(Fault(status=500), silent_s=1.0)
    async with serve(model, upstream={"finish": ["raw"], "slots": slots}, route=route) as g:
        assert_whole(await g.ask(chat(stream=True)))
        assert len(g.fake.completions) <= 1 + limit


@pytest.mark.parametrize("busy", [False, True], ids=["alone", "beside another"])
async def test_a_slot_is_free_only_while_nobody_else_has_it(serve: Serve, busy: bool) -> None:
    """Two slots, and another client's call in one of them: the original has to go first."""
    model = Model(Fault(status=500), silent_s=1.0)

    def says(seen: FakeRequest) -> Reply:
        return Reply(first_delay_s=60.0) if "tools" in seen.body else model(seen)

    # With both slots taken no probe is sent: this stop needs none.
    route = enforcing(probe=None, policy={"policy": "fixed-budget", "max_tokens": 3}, handover_ms=200)
    async with serve(says, upstream={"finish": ["raw"], "slots": 2}, route=route) as g:
        client, tool = g.gateway.upstreams["up"], {"type": "function", "function": {"name": "f"}}
        other = asyncio.create_task(g.ask(chat("another", tools=[tool]))) if busy else None
        while busy and client.n_open == 0:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)
        answer = await g.ask(chat(stream=True))
        assert (answer.text, answer.finish) == (FULL, "stop")
        if other is not None:
            other.cancel()
            await asyncio.gather(other, return_exceptions=True)
        await g.quiet()
        assert client.n_open == 0
        governed = [e.episode.outcome for e in await g.episodes(1 + busy) if e.episode.request.ungoverned is None]
        made = [c.purpose for c in governed[0].calls]
        assert made == ["main", "continuation", *(["rerun"] if busy else [])]


async def test_where_others_wait_for_the_slot_an_original_is_given_up_once_and_not_again(serve: Serve) -> None:
    """One slot, and somebody in line for it: whoever lets go of it stands behind him."""
    tool = {"type": "function", "function": {"name": "f"}}

    def says(seen: FakeRequest) -> Reply:
        return Reply(first_delay_s=0.8) if "tools" in seen.body else chain(delay_s=0.02)(seen)

    async def beside_another(g: Served) -> Answer:
        """One request whose stop comes while another client's call is in line."""
        first = len(g.fake.completions)
        mine = asyncio.create_task(g.ask(chat(stream=True)))
        while len(g.fake.completions) == first:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.001)
        other = asyncio.create_task(g.ask(chat("another", tools=[tool])))
        answer = await mine
        await other
        return answer

    route = enforcing(probe=None, policy={"policy": "fixed-budget", "max_tokens": 8}, handover_ms=200)
    async with serve(says, fake={"slots": 1}, upstream={"finish": ["raw"]}, route=route) as g:
        for n, calls in enumerate((["main", "continuation", "rerun"], ["main"]), 1):
            answer = await beside_another(g)
            assert (answer.status, answer.text, answer.finish, answer.done) == (200, FULL, "stop", True)
            seen = [one.episode for one in await g.episodes(2 * n)]
            governed = [one.outcome for one in seen if one.request.ungoverned is None]
            assert [call.purpose for call in governed[-1].calls] == calls
        assert g.gateway.metrics.value("suffice_extra_calls_skipped_total", route="r", reason="crowded") == 1
        answer = await g.ask(chat(stream=True, suffice={}))
        assert answer.report["stopped"], "alone again, it gives its slot up and gets it back"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_an_engine_that_closes_the_thought_and_says_nothing_is_asked_for_the_answer(
    serve: Serve, stream: bool
) -> None:
    def says(seen: FakeRequest) -> Reply:
        reply = CHAIN(seen)
        if seen.is_raw:
            return reply
        return replace(reply, answer=(), answer_after=lambda _: AnswerTokens(()), delay_s=0.005)

    async with serve(says, upstream={"finish": ["native", "raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=stream))
        assert (answer.text, answer.finish) == ("4 it is", "stop")
        assert THOUGHT.startswith(answer.thought)
        assert not g.fake.completions[0].cancelled  # it came to its own end, which the client did not see
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.finish_method, outcome.answer) == (True, "raw", "4")
        if stream:
            assert [c["choices"][0]["finish_reason"] for c in answer.chunks if c["choices"]].count("stop") == 1


async def test_a_trial_answer_that_takes_too_long_is_missing_and_the_run_goes_on(serve: Serve) -> None:
    def says(seen: FakeRequest) -> Reply:
        return replace(CHAIN(seen), first_delay_s=60.0) if seen.is_raw else CHAIN(seen)

    route = enforcing(probe={"timeout_s": 0.05})
    async with serve(says, upstream={"finish": ["raw"]}, route=route) as g:
        async with asyncio.timeout(30.0):
            answer = await g.ask(chat(stream=True))
        assert_whole(answer)
        outcome = await g.outcome()
        assert outcome.degraded == ("probe",)
        assert all(step.answer_source is None for step in outcome.steps)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_probe_that_still_runs_at_the_end_is_left_out_of_the_object_whole(serve: Serve, stream: bool) -> None:
    def says(seen: FakeRequest) -> Reply:
        return replace(CHAIN(seen), delay_s=0.15) if seen.is_raw else CHAIN(seen)

    async with serve(says, upstream={"finish": ["raw"]}, route=enforcing(policy={"policy": "never"})) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        assert answer.report["probe_tokens"] == answer.report["extra_prompt_tokens"] == 0
        outcome = await g.outcome()
        assert outcome.overhead.probe_tokens > 0
        assert outcome.overhead.extra_prompt_tokens > 0


async def test_an_engine_that_caches_by_slot_may_let_the_originals_slot_go(serve: Serve) -> None:
    """Asked at once, llama.cpp would take another slot and read the whole prompt again."""
    upstream = {"driver": "llama.cpp", "finish": ["prefill"], "slots": 1}
    async with serve(chain(delay_s=0.05), upstream=upstream, route=enforcing()) as g:
        assert (await g.ask(chat(stream=True))).report["stopped"]
        await g.quiet()
        original, continuation = g.fake.calls[0], g.fake.calls[-1]
        assert original.closed_at_s is not None
        assert 0.12 < continuation.opened_at_s - original.closed_at_s < 20.0
