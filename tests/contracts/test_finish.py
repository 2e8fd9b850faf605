"""Every way to finish, on every engine that has it: the client reads one ordinary answer, and all is accounted for.

A way that is added to the drivers' table and not to WAYS fails the first test here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from suffice.settings import FinishMethod
from suffice.upstream.drivers import DRIVERS
from suffice_testing import Fault, Reply, ScriptedThought, cut
from suffice_testing.reply import AnswerTokens, FakeRequest
from tests.drawn import examples
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, served

STEPS = [("two and two\n", "3"), ("make four\n", "4"), ("so four\n", "4"), ("yes four\n", "4"), ("or five\n", "5")]
STOP = {"policy": "stable-answer", "streak": 3}
STOPPED_AT = "".join(text for text, _ in STEPS[:4])
N_THOUGHT = len(cut("".join(text for text, _ in STEPS))) + len(STEPS) - 1  # a line end is a token of its own
ASK_TOKENS = 12  # how far the prompt of a call that was cut off may be missed where nobody can count it


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to finish on one engine."""

    driver: str
    method: FinishMethod
    dialect: str = ""
    counted: bool = False  # can this engine say how long a prompt is that was cut off?
    upstream: Mapping[str, Any] = field(default_factory=dict)
    fake: Mapping[str, Any] = field(default_factory=dict)


CHATML = {"begin": "", "turn": "<|im_start|>{role}\n{content}<|im_end|>\n"}
WAYS: dict[str, Way] = {
    "llama.cpp native": Way(driver="llama.cpp", method="native", counted=True),
    "llama.cpp raw": Way(driver="llama.cpp", method="raw", counted=True),
    "llama.cpp prefill": Way(driver="llama.cpp", method="prefill", counted=True),
    "llama.cpp prefill, repeated": Way(driver="llama.cpp", method="prefill", counted=True, fake={"prefill_echo": True}),
    "llama.cpp re-ask": Way(driver="llama.cpp", method="re-ask", counted=True),
    "vllm native": Way(driver="vllm", method="native", counted=True, fake={"has_control": True}),
    "vllm prefill": Way(driver="vllm", method="prefill", counted=True),
    "vllm raw": Way(driver="vllm", method="raw", counted=True),
    "vllm re-ask": Way(driver="vllm", method="re-ask", counted=True),
    "sglang prefill": Way(driver="sglang", method="prefill", counted=True),
    "sglang raw": Way(driver="sglang", method="raw", counted=True),
    "sglang raw, own template": Way(driver="sglang", method="raw", counted=True, upstream={"template": CHATML}),
    "sglang re-ask": Way(driver="sglang", method="re-ask", counted=True),
    "deepseek prefill": Way(driver="deepseek", method="prefill"),
    "deepseek re-ask": Way(driver="deepseek", method="re-ask"),
    "mistral prefill": Way(driver="mistral", method="prefill", upstream={"cancel_saves": "yes"}),
    "mistral re-ask": Way(driver="mistral", method="re-ask", upstream={"cancel_saves": "yes"}),
    "gemini re-ask": Way(driver="gemini", method="re-ask", dialect="openai", upstream={"cancel_saves": "yes"}),
    "openai re-ask": Way(driver="openai", method="re-ask"),
    "openrouter re-ask": Way(driver="openrouter", method="re-ask", dialect="openai"),
    "anthropic re-ask": Way(driver="anthropic", method="re-ask", dialect="deepseek"),
}
Where = Literal["field", "inline", "opened"]
WHERE: dict[Where, dict[str, Any]] = {
    "field": {"reasoning_field": "reasoning_content"},
    "inline": {"reasoning_field": "inline"},
    "opened": {"reasoning_field": "inline-opened"},
}
SECOND_CALLS = {name: way for name, way in WAYS.items() if way.method != "native"}


def test_every_driver_and_all_of_its_ways_are_here() -> None:
    for driver, facts in DRIVERS.items():
        assert set(facts.methods) <= {w.method for w in WAYS.values() if w.driver == driver}, driver


def setup(way: Way, where: Where, *, slots: int = 1, **route: Any) -> dict[str, Any]:
    """Options of `serve` for one way, with the thought in one place."""
    opened = where != "inline"  # does the chat template open the thought?
    upstream: dict[str, Any] = {"driver": way.driver, "slots": slots, "think_opened": opened, **way.upstream}
    upstream["finish"] = [way.method, "raw"] if way.method == "native" else [way.method]
    if "template" in upstream:
        generate = "<|im_start|>assistant\n" + ("<think>" if opened else "")
        upstream["template"] = {**upstream["template"], "generate": generate}
    return {
        "upstream": upstream,
        "fake": {"dialect": way.dialect or way.driver, "opens_thought": opened, **way.fake},
        "route": {
            "mode": "enforce",
            "uncertified": True,
            "scorer": "number",
            "probe": {},
            "audit_share": 0.0,
            "policy": STOP,
            "steps": {"min_tokens": 3, "growth": 1.0},
            **route,
        },
    }


def model(where: Where, way: Way, **reply: Any) -> ScriptedThought:
    """The chain; its first run falls silent behind its thought, so that nothing is on its way at the stop.

    Where the engine itself cuts the thought, the silence is in its last step, and the cut ends it.
    """
    native = way.method == "native"
    # The opening tag that a model writes itself is a token of the thought.
    n_tokens = N_THOUGHT - native + (where == "inline")
    silent = Fault(stall_after=n_tokens, stall_s=30.0 if native else 3.0, stall_until_cut=native)
    return ScriptedThought(STEPS, "5 dear", reply=Reply(**WHERE[where], faults=(silent,), **reply))


def parts(answer: Answer, where: Where) -> tuple[str, str]:
    """What the client sees as thought and as answer."""
    if where == "field":
        return answer.thought, answer.text
    thought, tag, text = answer.text.partition("</think>")
    assert tag, "the client cannot see where the thought ends"
    assert "</think>" not in text
    return thought.removeprefix("<think>"), text


async def assert_accounted(g: Served, answer: Answer, way: Way, *, in_flight: int = 0) -> None:
    """Client usage plus overhead is what the upstream counted: to the token wherever a token was counted.

    in_flight  tokens that may have been sent and not yet read when the first call was cut off
    """
    outcome = await g.outcome()
    await g.fake.idle()
    assert outcome.usage is not None
    usage, more = outcome.usage, outcome.overhead
    report = usage.completion_tokens + more.probe_tokens + more.discarded_tokens
    assert 0 <= g.fake.total_completion_tokens - report <= in_flight
    missed = usage.prompt_tokens + more.extra_prompt_tokens - g.fake.total_prompt_tokens
    assert abs(missed) <= (0 if way.counted else ASK_TOKENS)
    main = next(c for c in outcome.calls if c.purpose == "main")
    assert (main.source == "estimated") is not way.counted
    assert answer.usage["prompt_tokens"] == usage.prompt_tokens
    assert answer.usage["completion_tokens"] == usage.completion_tokens
    assert answer.usage["total_tokens"] == usage.prompt_tokens + usage.completion_tokens
    assert g.gateway.upstreams["up"].n_open == 0
    assert not any(seen.error for seen in g.fake.calls), [seen.error for seen in g.fake.calls]


def assert_one_end(answer: Answer) -> None:
    assert answer.status == 200
    assert answer.finish == "stop"
    if "event-stream" in answer.headers["content-type"]:
        reasons = [c["finish_reason"] for chunk in answer.chunks for c in chunk["choices"] if c["finish_reason"]]
        assert reasons == ["stop"]
        assert answer.data.count("[DONE]") == 1
        assert answer.done
        assert answer.errors == []
        assert len({chunk["id"] for chunk in answer.chunks}) == 1


def asking(*, stream: bool) -> dict[str, Any]:
    return chat(stream=True, stream_options={"include_usage": True}) if stream else chat()


@pytest.mark.slow(keep=7)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize("name", WAYS)
async def test_a_stop_reads_as_the_thought_so_far_and_its_answer(
    serve: Serve, name: str, where: Where, stream: bool
) -> None:
    way = WAYS[name]
    chain = model(where, way)
    async with serve(chain, **setup(way, where)) as g:
        answer = await g.ask(asking(stream=stream))
        thought, text = parts(answer, where)
        assert_one_end(answer)
        assert "".join(text for text, _ in STEPS).startswith(thought)
        assert text == ("".join(chain.answer_after(thought).tokens) if way.method == "native" else "4")
        assert thought.startswith(STOPPED_AT)
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.finish_method, outcome.degraded) == (True, way.method, ())
        # What a stop delivered and what its trial answer was: their difference is measured on every stop.
        assert outcome.answer == text
        assert outcome.would_answer == "4"
        assert outcome.handover_ms is not None
        assert answer.report["stopped"] is True
        if way.method == "native":
            assert thought != "".join(text for text, _ in STEPS)
            assert g.fake.completions[0].thought_ended_by == "control"
            # An engine that can be told so ends no thought after the gateway has turned to another way.
            report = [call.body.get("within_s") for call in g.fake.calls if call.path.endswith("/control")]
            assert report == [5.0 if way.driver == "vllm" else None]
        else:
            await assert_accounted(g, answer, way)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("name", ["openai re-ask", "mistral re-ask"])
async def test_a_thought_that_precedes_a_forced_answer_is_hidden_and_counted(
    serve: Serve, name: str, stream: bool
) -> None:
    """An engine whose thought cannot be switched off thinks again before it answers a re-ask."""
    way = WAYS[name]
    again = ("well", " then")
    setting = setup(way, "field", probe={"max_tokens": 8})
    setting["upstream"]["lowest_effort"] = "low"
    async with serve(model("field", way, rethinks=again), **setting) as g:
        answer = await g.ask(asking(stream=stream))
        assert answer.text == "4"
        assert "well" not in answer.thought
        assert_one_end(answer)
        outcome = await g.outcome()
        assert outcome.usage is not None
        assert outcome.usage.completion_tokens == N_THOUGHT + len(again) + 1
        assert outcome.usage.reasoning_tokens == N_THOUGHT + len(again)
        await assert_accounted(g, answer, way)


WORDS = st.sampled_from(["so", "it", "is", "北京", "🙂", "👩‍👩‍👧", "e\u0301", "<", "</", "{thought}", "4", "think>"])
LINES = st.lists(st.lists(WORDS, min_size=3, max_size=6), min_size=4, max_size=6)


@pytest.mark.slow
@given(
    name=st.sampled_from(sorted(SECOND_CALLS)),
    where=st.sampled_from(sorted(WHERE)),
    stream=st.booleans(),
    slots=st.sampled_from([1, 3]),
    lines=LINES,
    words=st.lists(WORDS, max_size=3),
    size=st.integers(1, 200),
)
@settings(
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.generate],  # to shrink a failure, each step a whole gateway, takes minutes
)
def test_any_thought_in_any_pieces_is_closed_without_a_seam(
    name: str, where: Where, stream: bool, slots: int, lines: list[list[str]], words: list[str], size: int
) -> None:
    way = WAYS[name]
    steps = [(" ".join(line) + "\n", " ".join(["7", *words])) for line in lines]
    whole = "".join(text for text, _ in steps)
    n_thought = len([t for text, _ in steps for t in cut(text)]) + (where == "inline")
    reply = Reply(**WHERE[where], faults=(Fault(stall_after=n_thought, stall_s=60.0), Fault(piece_bytes=size)))
    chain = ScriptedThought(steps, "5 dear", reply=reply)

    async def go() -> None:
        setting = setup(way, where, slots=slots, scorer="text", probe={"max_tokens": 16})
        with tempfile.TemporaryDirectory() as folder:
            async with served(Path(folder), chain, **setting) as g:
                answer = await g.ask(asking(stream=stream))
                thought, text = parts(answer, where)
                assert_one_end(answer)
                assert whole.startswith(thought)
                assert text == steps[0][1]
                outcome = await g.outcome()
                assert outcome.stopped
                assert outcome.answer == outcome.would_answer is not None
                await assert_accounted(g, answer, way, in_flight=n_thought)

    asyncio.run(go())


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("name", ["vllm prefill", "vllm raw", "sglang raw"])
async def test_an_earlier_thought_is_in_the_prompt_and_in_its_count(serve: Serve, name: str, stream: bool) -> None:
    """vLLM's tokenizer leaves out `reasoning_content`: the chat had 254 tokens, the prompt rendered by it 93."""
    way = WAYS[name]
    turns = [
        {"role": "user", "content": "How much is one and one?"},
        {"role": "assistant", "reasoning_content": "one more than one is what I seek\n", "content": "2"},
        {"role": "user", "content": "And two and two?"},
    ]
    async with serve(model("field", way), **setup(way, "field")) as g:
        answer = await g.ask(asking(stream=stream) | {"messages": turns})
        assert_one_end(answer)
        assert answer.text == "4"
        # Counts in every chunk were requested for the gateway, not for the client.
        counted = [chunk for chunk in answer.chunks if chunk.get("usage")] if stream else [answer.json]
        assert [chunk["choices"] for chunk in counted] == ([[]] if stream else [answer.json["choices"]])
        if way.method == "raw":
            assert "one more than one" in g.fake.completions[-1].request.text
        await assert_accounted(g, answer, way)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("where", ["field", "inline"])
async def test_an_answer_that_holds_the_rest_of_the_thought_is_repaired_or_told(
    serve: Serve, where: Where, stream: bool
) -> None:
    """As recorded of vLLM: the model writes on behind the closing tag, and closes its thought again later."""
    way = WAYS["vllm prefill"]
    torn = AnswerTokens(cut("so 2 and 2 make 4\n</think>4"))
    chain = model(where, way)

    def say(seen: FakeRequest) -> Reply:
        return dataclasses.replace(chain(seen), answer_after=lambda _: torn)

    async with serve(say, **setup(way, where)) as g:
        answer = await g.ask(asking(stream=stream))
        outcome = await g.outcome()
        assert outcome.stopped
        assert outcome.answer == "4"
        assert outcome.degraded == (("torn",) if stream else ())
        assert answer.report["degraded"] == list(outcome.degraded)
        if not stream:
            thought, text = parts(answer, where)
            assert text == "4"
            assert thought.endswith("so 2 and 2 make 4\n") is (where == "inline")


async def test_a_run_whose_every_probe_lacked_a_slot_says_so(serve: Serve) -> None:
    way = WAYS["vllm prefill"]
    options = setup(way, "field", slots=2)
    async with serve(model("field", way), **options) as g:
        client = g.gateway.upstreams["up"]
        client.n_open += 2  # two requests of others
        answer = await g.ask(asking(stream=True) | {"suffice": {}})
        client.n_open -= 2
        assert answer.report["stopped"] is False
        assert answer.report["degraded"] == ["slots"]
        assert (await g.outcome()).degraded == ("slots",)
