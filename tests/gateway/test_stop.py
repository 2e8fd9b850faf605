"""The stop: the client reads one ordinary answer, and every token of every call is accounted for."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.gateway.context import GatewayState
from suffice.types import Finding, Findings, Outcome
from suffice_testing import FakeUpstream, Fault, Reply, ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat

STEPS = [
    ("two and two\n", "3"),
    ("make four\n", "4"),
    ("so four\n", "4"),
    ("yes four\n", "4"),
    ("is that so\n", "4"),
    ("wait I think five\n", "5"),
]
N_THOUGHT = 22  # tokens of all steps: their words, and a line end each
STOP = {"policy": "stable-answer", "streak": 3}  # the answer of step 4 is the third "4" in a row
NATIVE = {"finish": ["native"]}


def chain(**reply: Any) -> ScriptedThought:
    return ScriptedThought(STEPS, "5 dear", reply=Reply(**reply))


def held() -> ScriptedThought:
    """All of the thought is out, then silence: nothing can be on its way when the original is dropped."""
    return chain(faults=(Fault(stall_after=N_THOUGHT, stall_s=3.0),))


def enforcing(**route: Any) -> dict[str, Any]:
    return {
        "mode": "enforce",
        "uncertified": True,
        "scorer": "number",
        "probe": {},
        "audit_share": 0.0,
        "policy": STOP,
        "steps": {"min_tokens": 3, "growth": 1.0},
        **route,
    }


def spent(fake: FakeUpstream) -> tuple[int, int]:
    """Prompt and completion tokens as the upstream counted them."""
    return fake.total_prompt_tokens, fake.total_completion_tokens


def accounted(outcome: Outcome) -> tuple[int, int]:
    """The same two numbers as Suffice tells them: the client's usage and its own overhead."""
    assert outcome.usage is not None
    usage, more = outcome.usage, outcome.overhead
    return (
        usage.prompt_tokens + more.extra_prompt_tokens,
        usage.completion_tokens + more.probe_tokens + more.discarded_tokens,
    )


async def reconciled(g: Served, answer: Answer | None = None) -> Outcome:
    """The only outcome, after it was found to hold every token that the upstream counted."""
    outcome = await g.outcome()
    await g.fake.idle()
    assert accounted(outcome) == spent(g.fake)
    assert sum(c.prompt_tokens or 0 for c in outcome.calls) == g.fake.total_prompt_tokens
    assert sum(c.completion_tokens for c in outcome.calls) == g.fake.total_completion_tokens
    assert outcome.overhead.n_extra_calls == len(g.fake.completions) - 1
    if answer is not None and answer.usage is not None:
        assert outcome.usage is not None
        assert answer.usage["prompt_tokens"] == outcome.usage.prompt_tokens
        assert answer.usage["completion_tokens"] == outcome.usage.completion_tokens
        assert answer.usage["total_tokens"] == answer.usage["prompt_tokens"] + answer.usage["completion_tokens"]
    return outcome


def assert_one_ordinary_stream(answer: Answer, *, wants_usage: bool) -> None:
    assert answer.status == 200
    assert answer.done
    assert answer.data.count("[DONE]") == 1
    finishes = [c for chunk in answer.chunks for c in chunk["choices"] if c["finish_reason"]]
    assert [c["finish_reason"] for c in finishes] == ["stop"]
    assert len({chunk["id"] for chunk in answer.chunks}) == 1
    assert len({chunk["created"] for chunk in answer.chunks}) == 1
    with_usage = [chunk for chunk in answer.chunks if chunk.get("usage")]
    assert len(with_usage) == (1 if wants_usage else 0)
    assert all(chunk["choices"] == [] for chunk in with_usage)


METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "raw": ({"finish": ["raw"]}, {}),
    "prefill": ({"finish": ["prefill"]}, {}),
    "prefill-echo": ({"finish": ["prefill"]}, {"prefill_echo": True}),
    "prefill-vllm": ({"finish": ["prefill"], "driver": "vllm"}, {"dialect": "vllm"}),
    "raw-untagged": ({"finish": ["raw"]}, {"opens_thought": False}),
}


def opens_thoughts(gateway: GatewayState) -> None:
    seen = (Finding(experiment="opens_thought", verdict="yes", evidence=""),)
    for client in gateway.upstreams.values():
        client.findings = Findings(examination_id="x", upstream="up", url_key="", model="m", at_s=0.0, findings=seen)


async def test_a_message_is_continued_behind_the_tag_that_doctor_saw(serve: Serve) -> None:
    """SGLang's template opens the thought, and no setting says so: without the finding it would be opened twice."""
    upstream, fake = {"finish": ["prefill"], "driver": "sglang", "slots": 3}, {"dialect": "sglang"}
    async with serve(held(), upstream=upstream, fake=fake, route=enforcing(), change=opens_thoughts) as g:
        answer = await g.ask(chat(suffice={}))
        assert (answer.text, answer.report["stopped"], answer.report["degraded"]) == ("4", True, [])


@pytest.mark.slow(keep=11)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("method", METHODS)
async def test_a_stop_by_continuation_delivers_the_answer_at_its_step(
    serve: Serve, method: str, slots: int, stream: bool
) -> None:
    upstream, fake = METHODS[method]
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if stream else {}
    async with serve(held(), upstream={**upstream, "slots": slots}, fake=fake, route=enforcing()) as g:
        answer = await g.ask(chat(stream=stream, **options))
        assert answer.text == "4"
        assert answer.thought.startswith("".join(text for text, _ in STEPS[:4]))
        assert answer.finish == "stop"
        if stream:
            assert_one_ordinary_stream(answer, wants_usage=True)
            assert ["suffice" in chunk for chunk in answer.chunks].count(True) == 1
            assert next(c for c in answer.chunks if "suffice" in c)["choices"][0]["finish_reason"] == "stop"
        outcome = await reconciled(g)
        report = answer.report
        assert report["stopped"] is True
        assert report["stop_reason"] == "suffices"
        assert report["certified"] is False
        assert report["degraded"] == []
        assert report["probe_tokens"] == outcome.overhead.probe_tokens == 4
        assert report["extra_prompt_tokens"] == outcome.overhead.extra_prompt_tokens
        assert report["steps"] == 4
        assert (outcome.end_reason, outcome.stopped, outcome.stop_step) == ("stopped", True, 4)
        assert (outcome.answer, outcome.would_answer) == ("4", "4")
        assert outcome.finish_method == method.split("-", maxsplit=1)[0]
        assert outcome.handover_ms is not None
        assert answer.usage["completion_tokens"] == N_THOUGHT + 1
        assert answer.usage["completion_tokens_details"]["reasoning_tokens"] == N_THOUGHT
        assert g.fake.completions[0].cancelled


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("policy", [STOP, {"policy": "confidence-threshold", "threshold": 0.5}], ids=["stable", "sure"])
async def test_a_native_stop_goes_on_in_the_same_stream(serve: Serve, stream: bool, policy: dict[str, Any]) -> None:
    slow = chain(delay_s=0.006)
    async with serve(slow, upstream=NATIVE | {"finish": ["native", "raw"]}, route=enforcing(policy=policy)) as g:
        answer = await g.ask(chat(stream=stream))
        assert answer.text == "".join(slow.answer_after(answer.thought).tokens)
        assert g.fake.completions[0].thought_ended_by == "control"
        assert not any(c.cancelled for c in g.fake.completions)
        assert answer.report["stopped"] is True
        if stream:
            assert_one_ordinary_stream(answer, wants_usage=False)
        outcome = await reconciled(g)
        assert (outcome.finish_method, outcome.end_reason) == ("native", "stopped")
        assert {c.purpose for c in outcome.calls} == {"main", "probe"}


@pytest.mark.parametrize("field", ["reasoning_content", "inline"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("budget", [4, 9])  # at the end of a step, and inside of one
async def test_a_fixed_budget_is_kept_by_the_engine_itself(serve: Serve, budget: int, stream: bool, field: str) -> None:
    route = enforcing(policy={"policy": "fixed-budget", "max_tokens": budget}, probe=None)
    async with serve(chain(reasoning_field=field, delay_s=0.003), upstream=NATIVE, route=route) as g:
        answer = await g.ask(chat(stream=stream))
        # In an inline thought the opening tag is a token too, so that the first step is not whole yet.
        assert answer.text.endswith("4" if budget == 9 else "3")
        assert g.fake.completions[0].thought_ended_by == "budget"
        assert len(g.fake.calls) == 1
        outcome = await reconciled(g, answer)
        assert (outcome.stopped, outcome.stop_reason, outcome.finish_method) == (True, "budget", "budget")
        assert answer.report["stop_reason"] == "budget"
        assert answer.report["certified"] is False


async def test_a_budget_that_the_engine_ignores_is_kept_by_the_loop(serve: Serve) -> None:
    long = ScriptedThought(
        [(f"thought number {n} goes on\n", str(n)) for n in range(40)], "39", reply=Reply(delay_s=0.001)
    )
    route = enforcing(policy={"policy": "fixed-budget", "max_tokens": 20}, probe=None)

    def forget(seen: Any) -> Any:
        # The fake reads the budget from the body that it is given: this engine has never heard of it.
        seen.body.pop("reasoning_budget_tokens", None)
        return long(seen)

    async with serve(forget, upstream={"finish": ["native"]}, route=route) as g:
        answer = await g.ask(chat(stream=True))
        assert g.fake.completions[0].thought_ended_by == "control"
        assert answer.report["stop_reason"] == "budget"
        assert len(answer.thought.split("\n")) < 35


@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_an_inline_thought_is_closed_where_the_client_can_see_it(serve: Serve, stream: bool, slots: int) -> None:
    # The opening tag is one more token of the thought.
    inline = chain(reasoning_field="inline", faults=(Fault(stall_after=N_THOUGHT + 1, stall_s=3.0),))
    async with serve(inline, upstream={"finish": ["raw"], "slots": slots}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=stream))
        thought, tag, text = answer.text.partition("</think>")
        assert tag
        assert text == "4"
        assert thought.startswith("<think>two and two\nmake four\n")
        assert (await reconciled(g)).answer == "4"


@pytest.mark.parametrize("requested", [True, False])
async def test_the_usage_chunk_is_there_only_if_it_was_asked_for(serve: Serve, requested: bool) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True}} if requested else {}
    async with serve(held(), upstream={"finish": ["raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True, **options))
        assert_one_ordinary_stream(answer, wants_usage=requested)
        if requested:
            await reconciled(g, answer)


async def test_the_words_that_begin_a_forced_answer_are_seen_and_counted_in(serve: Serve) -> None:
    route = enforcing(probe={"answer_prefix": "The answer is "})
    async with serve(held(), upstream={"finish": ["raw"]}, route=route) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "The answer is 4"
        assert (await g.outcome()).answer == "4"


@pytest.mark.parametrize("style", ["last", "always", "with_finish", "every", "zero_first"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_runs_that_end_by_themselves_reconcile_with_every_way_to_tell_usage(
    serve: Serve, style: Any, stream: bool
) -> None:
    route = enforcing(policy={"policy": "never"})
    async with serve(chain(usage=style), upstream={"finish": ["raw"], "slots": 4}, route=route) as g:
        answer = await g.ask(chat(stream=stream))
        assert answer.text == "5 dear"
        outcome = await reconciled(g)
        assert outcome.end_reason == "done"
        assert outcome.overhead.probe_tokens > 0
        assert not any(c.cancelled for c in outcome.calls)


async def test_tokens_are_counted_where_the_upstream_counts_none(serve: Serve) -> None:
    async with serve(chain(usage="none"), route={"scorer": "number"}) as g:
        await g.ask(chat(stream=True))
        outcome = await g.outcome()
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == g.fake.total_completion_tokens
        assert [c.source for c in outcome.calls] == ["counted"]


async def test_extra_calls_stay_within_their_limit_and_what_is_not_asked_is_missing(serve: Serve) -> None:
    route = enforcing(policy={"policy": "never"}, max_extra_calls=4)
    async with serve(chain(delay_s=0.004), upstream={"finish": ["raw"], "slots": 4}, route=route) as g:
        await g.ask(chat(stream=True))
        outcome = await reconciled(g)
        sources = [step.answer_source for step in outcome.steps]
        assert sources == ["probe", "probe", None, None, None, None]
        assert len(g.fake.completions) == 3


async def test_the_clients_connection_lives_on_after_a_stop(serve: Serve) -> None:
    async with serve(held(), upstream={"finish": ["raw"]}, route=enforcing()) as g:
        ports = set()
        for _ in range(2):
            async with g.session.post(g.url + "/v1/chat/completions", json=chat(stream=True)) as response:
                assert response.connection is not None
                ports.add(response.connection.transport.get_extra_info("sockname"))  # type: ignore[union-attr]
                await response.read()
        assert len(ports) == 1


async def test_a_stop_survives_an_upstream_that_never_says_done(serve: Serve) -> None:
    quiet = chain(faults=(Fault(stall_after=N_THOUGHT, stall_s=3.0), Fault(done=False)))
    async with serve(quiet, upstream={"finish": ["raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.text == "4"
        assert_one_ordinary_stream(answer, wants_usage=False)


OFF = [{"chat_template_kwargs": {"enable_thinking": False}}, {"reasoning_budget_tokens": 0}]


@pytest.mark.parametrize("off", OFF, ids=["template", "budget"])
async def test_where_the_client_switched_thinking_off_content_is_an_answer_and_is_never_stopped(
    serve: Serve, off: dict[str, Any]
) -> None:
    """The template would have opened a thought, but not for this request."""
    says = Reply(reasoning=("so\n",), answer=("4 it is\n",) * 9, reasoning_field="reasoning_content")
    upstream = {"finish": ["raw"], "think_opened": True}
    route = enforcing(policy={"policy": "fixed-budget", "max_tokens": 3}, probe=None)
    async with serve(says, upstream=upstream, route=route) as g:
        answer = await g.ask(chat(stream=True, **off))
        assert answer.text == "4 it is\n" * 9
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.unclosed, outcome.steps) == (False, False, ())
