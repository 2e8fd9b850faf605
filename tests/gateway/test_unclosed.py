"""A run that the client's cap cuts inside its thought: what the client gets, and what is on record."""

from __future__ import annotations

from typing import Any

import pytest

from suffice_testing import FakeRequest, Fault, Reply, ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, chat
from tests.gateway.test_stop import STEPS, enforcing, reconciled

CAP = 10  # tokens: three steps, of which the third says "4"
THOUGHT = "".join(text for text, _ in STEPS[:3])
NEVER: dict[str, Any] = {"policy": {"policy": "never"}}
OWNER = {"probe": {"verified_by": "owner"}}
RAW: dict[str, Any] = {"upstream": {"finish": ["raw"]}}


def capped(*, stream: bool = False, **more: Any) -> dict[str, Any]:
    usage: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    return chat(stream=stream, max_tokens=CAP, **usage, **more)


def chain(**reply: Any) -> ScriptedThought:
    return ScriptedThought(STEPS, "5 dear", reply=Reply(**reply))


def assert_cut(answer: Answer) -> None:
    """What the upstream gave: the thought as far as it went, and no answer."""
    assert (answer.status, answer.text, answer.finish) == (200, "", "length")
    assert answer.thought == THOUGHT
    assert answer.usage["completion_tokens"] == CAP


def assert_answered(answer: Answer, text: str = "4") -> None:
    """The forced answer behind the same thought, in one ordinary reply."""
    assert (answer.status, answer.text, answer.finish) == (200, text, "stop")
    assert answer.thought == THOUGHT
    if "event-stream" in answer.headers["content-type"]:
        assert answer.data.count("[DONE]") == 1
        reasons = [c["finish_reason"] for chunk in answer.chunks for c in chunk["choices"] if c["finish_reason"]]
        assert reasons == ["stop"]
        assert len({chunk["id"] for chunk in answer.chunks}) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("audit_share", [0.0, 1.0], ids=["run", "audit"])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_without_a_probe_table_nothing_is_asked_and_no_answer_is_the_answer(
    serve: Serve, mode: str, audit_share: float, stream: bool
) -> None:
    route = enforcing(**NEVER, mode=mode, probe=None, audit_share=audit_share)
    async with serve(chain(), route=route, **RAW) as g:
        assert_cut(await g.ask(capped(stream=stream)))
        assert len(g.fake.calls) == 1
        outcome = await reconciled(g)
        assert (outcome.unclosed, outcome.answer, outcome.end_reason) == (True, None, "truncated")
        assert outcome.overhead.n_extra_calls == 0


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize(
    "route",
    [{"mode": "observe", "audit_share": 1.0}, {"audit_share": 1.0}, {}],
    ids=["audit while observing", "audit", "enforce"],
)
async def test_with_a_probe_table_the_answer_behind_the_thought_is_on_record_only(
    serve: Serve, route: dict[str, Any], stream: bool
) -> None:
    async with serve(chain(), route=enforcing(**NEVER, **OWNER, **route), **RAW) as g:
        assert_cut(await g.ask(capped(stream=stream)))
        outcome = await reconciled(g)
        assert (outcome.unclosed, outcome.answer, outcome.end_reason) == (True, "4", "truncated")
        assert {c.purpose for c in outcome.calls} == {"main", "probe"}
        # Closed and cut as every trial answer is.
        last = g.fake.completions[-1]
        assert last.body["stop"] == ["\n"]
        assert last.body["prompt"].endswith("so four\n</think>")
        assert outcome.stopped is False


async def test_while_observing_a_run_that_is_no_audit_asks_nothing(serve: Serve) -> None:
    async with serve(chain(), route=enforcing(**NEVER, **OWNER, mode="observe"), **RAW) as g:
        assert_cut(await g.ask(capped()))
        assert len(g.fake.calls) == 1
        assert (await g.outcome()).answer is None


async def test_the_record_keeps_within_the_extra_calls_of_a_request(serve: Serve) -> None:
    async with serve(chain(), route=enforcing(**NEVER, max_extra_calls=0), **RAW) as g:
        assert_cut(await g.ask(capped()))
        outcome = await reconciled(g)
        assert (len(outcome.calls), outcome.answer) == (1, None)


@pytest.mark.slow(keep=15)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("way", ["raw", "prefill", "re-ask"])
@pytest.mark.parametrize("probe", [None, {}], ids=["no probes", "probes"])
@pytest.mark.parametrize("share", [0.0, 1.0], ids=["live", "audit"])
async def test_where_the_route_says_so_the_client_gets_the_forced_answer(
    serve: Serve, way: str, probe: Any, stream: bool, share: float
) -> None:
    route = enforcing(**NEVER, probe=probe, finish_unclosed=True, audit_share=share)
    async with serve(chain(), upstream={"finish": [way]}, route=route) as g:
        answer = await g.ask(capped(stream=stream))
        assert_answered(answer)
        outcome = await reconciled(g, answer)
        assert (outcome.unclosed, outcome.answer, outcome.end_reason) == (True, "4", "done")
        assert (outcome.stopped, outcome.finish_method) == (False, way)
        assert answer.usage["completion_tokens"] == CAP + 1
        assert answer.report is None  # nothing was stopped, and nobody asked


async def test_a_forced_answer_is_no_longer_than_a_trial_answer(serve: Serve) -> None:
    route = enforcing(**NEVER, probe={"max_tokens": 2}, finish_unclosed=True)
    talks = ScriptedThought([(text, f"{answer} and more of it") for text, answer in STEPS], "5")
    async with serve(talks, route=route, **RAW) as g:
        answer = await g.ask(capped(stream=True, suffice={}))
        assert (answer.text, answer.finish) == ("4 and", "length")
        assert answer.report["stopped"] is False
        assert (await g.outcome()).end_reason == "truncated"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize(
    "fault",
    [Fault(status=500), Fault(die_after=0, die_how="fin"), Fault(die_after=1, die_how="rst")],
    ids=["500", "fin", "rst"],
)
async def test_when_the_finish_fails_the_upstreams_own_end_stands(serve: Serve, fault: Any, stream: bool) -> None:
    talks = ScriptedThought([(text, f"{answer} it is") for text, answer in STEPS], "5 dear")

    def says(seen: FakeRequest) -> Reply:
        reply = talks(seen)
        return (
            Reply(**{**{f: getattr(reply, f) for f in reply.__dataclass_fields__}, "faults": (fault,)})
            if (seen.is_raw)
            else reply
        )

    async with serve(says, route=enforcing(**NEVER, probe=None, finish_unclosed=True), **RAW) as g:
        answer = await g.ask(capped(stream=stream))
        assert (answer.status, answer.finish, answer.thought) == (200, "length", THOUGHT)
        assert answer.text in ("", "4")  # what was said before it broke off is not taken back
        if stream:
            assert answer.done
            assert answer.errors == []
        outcome = await g.outcome()
        assert (outcome.unclosed, outcome.answer, outcome.finish_method) == (True, None, None)
        assert outcome.degraded == ("handover",)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_an_inline_thought_gets_its_tag_and_its_answer(serve: Serve, stream: bool) -> None:
    route = enforcing(**NEVER, probe=None, finish_unclosed=True)
    async with serve(chain(reasoning_field="inline"), route=route, **RAW) as g:
        answer = await g.ask(chat(stream=stream, max_tokens=CAP + 1))
        assert answer.text == f"<think>{THOUGHT}</think>4"
        assert answer.finish == "stop"


@pytest.mark.parametrize("style", ["last", "always", "with_finish", "every"])
async def test_a_run_that_closes_its_thought_is_not_touched(serve: Serve, style: Any) -> None:
    route = enforcing(**NEVER, probe=None, finish_unclosed=True)
    async with serve(chain(usage=style), route=route, **RAW) as g:
        answer = await g.ask(chat(stream=True, stream_options={"include_usage": True}))
        assert (answer.text, answer.finish, answer.done) == ("5 dear", "stop", True)
        assert len(g.fake.calls) == 1
        assert (await reconciled(g)).unclosed is False


async def test_the_last_words_of_a_thought_may_stand_in_the_chunk_that_ends_it(serve: Serve) -> None:
    """Some engines send the last token and the finish reason together."""
    from suffice_testing import Script
    from tests.episode.runs import chunk

    frames = [
        chunk({"role": "assistant"}),
        chunk({"reasoning_content": "two and two\n"}),
        chunk({"reasoning_content": "make four"}, "length"),
        b"data: [DONE]\n\n",
    ]

    def says(seen: FakeRequest) -> Any:
        return chain()(seen) if seen.is_raw else Script(pieces=tuple(frames))

    async with serve(says, route=enforcing(**NEVER, probe=None, finish_unclosed=True), **RAW) as g:
        answer = await g.ask(capped(stream=True))
        assert (answer.thought, answer.text, answer.finish) == ("two and two\nmake four", "4", "stop")
