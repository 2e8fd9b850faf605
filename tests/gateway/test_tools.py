"""Requests with tools or a schema: stopped between the thought and the call, with the call that was tried."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from suffice_testing import AnswerTokens, Fault, Reply, ToolCall
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, chat
from tests.gateway.test_stop import enforcing, reconciled

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
TOOLS: dict[str, Any] = {"tools": [ADD], "tool_choice": "auto", "parallel_tool_calls": False}
SCHEMA: dict[str, Any] = {
    "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
}
STEPS = ("two and two\n", "make a call\n", "with four\n", "so with four\n", "yes with four\n", "oh\n", "and on\n")
THOUGHT = tuple(token for step in STEPS for token in (*step.split(), "\n"))


def arguments_after(thought: str) -> dict[str, Any]:
    return {"a": 2, "b": 4.0 if thought.count("four") else 3}


def calls_after(thought: str) -> tuple[ToolCall, ...]:
    written = json.dumps(arguments_after(thought))
    return (ToolCall(id="c1", name="add", arguments=(written[:5], written[5:])),)


def json_after(thought: str) -> AnswerTokens:
    written = json.dumps(arguments_after(thought))
    return AnswerTokens((written[:4], written[4:]))


HELD = (Fault(stall_after=len(THOUGHT), stall_s=3.0),)
CALLING = Reply(reasoning=THOUGHT, answer=(), calls_after=calls_after, faults=HELD)
SHAPED = Reply(reasoning=THOUGHT, answer=(json.dumps(arguments_after("four")),), answer_after=json_after, faults=HELD)


def calls_in(answer: Answer) -> list[dict[str, Any]]:
    """The calls that a client puts together."""
    if "event-stream" not in answer.headers["content-type"]:
        calls: list[dict[str, Any]] = answer.json["choices"][0]["message"].get("tool_calls") or []
        return calls
    result: dict[int, dict[str, Any]] = {}
    for chunk in answer.chunks:
        for choice in chunk["choices"]:
            for part in choice["delta"].get("tool_calls") or ():
                call = result.setdefault(part["index"], {"function": {"name": "", "arguments": ""}})
                call |= {key: value for key, value in part.items() if key not in ("index", "function")}
                for key, value in part["function"].items():
                    call["function"][key] += value
    return [result[index] for index in sorted(result)]


METHODS: Mapping[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "native": ({"finish": ["native", "prefill"]}, {}),
    "prefill": ({"finish": ["prefill"]}, {}),
    "vllm": ({"finish": ["prefill"], "driver": "vllm"}, {"dialect": "vllm"}),
    "re-ask": ({"finish": ["re-ask"], "driver": "openai"}, {"dialect": "openai"}),
}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("method", METHODS)
async def test_a_stop_delivers_the_call_that_was_tried(serve: Serve, method: str, stream: bool) -> None:
    upstream, fake = METHODS[method]
    # At the end of the thought an engine that can be told is waited for; the others have stalled.
    says = (
        CALLING
        if method != "native"
        else Reply(
            reasoning=THOUGHT,
            answer=(),
            calls_after=calls_after,
            faults=(Fault(stall_after=len(THOUGHT), stall_s=3.0, stall_until_cut=True),),
        )
    )
    async with serve(says, upstream={**upstream, "slots": 3}, fake=fake, route=enforcing(scorer="text")) as g:
        answer = await g.ask(chat(stream=stream, **TOOLS))
        (call,) = calls_in(answer)
        assert (call["id"], call["function"]["name"]) == ("c1", "add")
        assert json.loads(call["function"]["arguments"]) == {"a": 2, "b": 4.0}
        assert (answer.text, answer.finish) == ("", "tool_calls")
        # The prompt of a re-ask is estimated, that of the others counted.
        outcome = await (g.outcome() if method == "re-ask" else reconciled(g))
        assert outcome.stopped
        assert outcome.answer == outcome.would_answer == 'tool_calls: [{"arguments":{"a":2,"b":4},"name":"add"}]'
        assert outcome.degraded == ()
        for requested in g.fake.completions:
            assert {name: requested.body.get(name) for name in TOOLS} == TOOLS
        request = (await g.episode()).request
        assert request.form == "tools"
        assert request.query is not None
        assert request.query.query_class == "tools"


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_the_rest_of_a_thought_before_a_call_is_left_out_or_told(serve: Serve, stream: bool) -> None:
    """As seen of SGLang 0.5.23: nothing is between the closing tag and the call."""
    says = replace(CALLING, answer_after=lambda _: AnswerTokens(("and ", "on\n", "</think>")))
    upstream, fake = METHODS["vllm"]
    async with serve(says, upstream={**upstream, "slots": 3}, fake=fake, route=enforcing(scorer="text")) as g:
        answer = await g.ask(chat(stream=stream, **TOOLS))
        assert len(calls_in(answer)) == 1
        assert ("</think>" in answer.text) is stream
        assert (await g.outcome()).degraded == (("torn",) if stream else ())


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("method", ["prefill", "vllm", "re-ask"])
async def test_a_stop_keeps_the_schema_and_delivers_json(serve: Serve, method: str, stream: bool) -> None:
    upstream, fake = METHODS[method]
    async with serve(SHAPED, upstream={**upstream, "slots": 3}, fake=fake, route=enforcing(scorer="number")) as g:
        answer = await g.ask(chat(stream=stream, **SCHEMA))
        assert json.loads(answer.text) == {"a": 2, "b": 4.0}
        outcome = await (g.outcome() if method == "re-ask" else reconciled(g))
        assert outcome.stopped
        assert outcome.answer == outcome.would_answer == 'json: {"a":2,"b":4}'
        assert all(requested.body["response_format"] == SCHEMA["response_format"] for requested in g.fake.completions)
        assert (await g.episode()).request.form == "json"


@pytest.mark.parametrize(
    ("fields", "upstream", "reason"),
    [
        (TOOLS, {"finish": ["raw"]}, "tools"),
        (SCHEMA, {"finish": ["raw"]}, "response_format"),
        (TOOLS | {"tools": [{"type": "web_search"}]}, {}, "tools"),
        ({"stop": ["x"]}, {"finish": ["re-ask"]}, "stop"),
        ({"stop": ["</think>"]}, {}, "stop"),
        ({"stop": "think"}, {}, "stop"),
        ({"logprobs": True}, {"finish": ["prefill"]}, "logprobs"),
        ({"logprobs": True}, {}, None),
        ({"stop": ["x"]}, {}, None),
        (TOOLS, {}, None),
        ({"response_format": {"type": "text"}}, {"finish": ["raw"]}, None),
    ],
)
async def test_what_no_method_can_keep_passes_through(
    serve: Serve, fields: dict[str, Any], upstream: dict[str, Any], reason: str | None
) -> None:
    async with serve(Reply(answer=("hello",)), upstream=upstream, route=enforcing()) as g:
        assert (await g.ask(chat(**fields))).text == "hello"
        assert (await g.episode()).request.ungoverned == reason


@pytest.mark.parametrize(("fields", "reason"), [(TOOLS, "tools"), (SCHEMA, "response_format"), ({}, None)])
async def test_a_route_may_govern_texts_only(serve: Serve, fields: dict[str, Any], reason: str | None) -> None:
    async with serve(Reply(answer=("hello",)), route=enforcing(reply_forms=["text"])) as g:
        await g.ask(chat(**fields))
        assert (await g.episode()).request.ungoverned == reason


async def test_stop_words_of_the_client_end_the_answer_behind_a_stop_too(serve: Serve) -> None:
    says = Reply(reasoning=THOUGHT, answer_after=lambda _: AnswerTokens(("4", " dear", " friend")), faults=HELD)
    async with serve(says, upstream={"finish": ["raw"], "slots": 3}, route=enforcing()) as g:
        answer = await g.ask(chat(stop=[" friend"]))
        assert answer.text == "4 dear"
        assert (await reconciled(g)).stopped
        assert {tuple(requested.body["stop"]) for requested in g.fake.completions} == {(" friend",), (" friend", "\n")}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_vote_on_calls_delivers_the_winner(serve: Serve, stream: bool) -> None:
    def says(requested: Any) -> Reply:
        number = (3, 4, 4)[requested.nth_same]
        written = json.dumps({"b": number, "a": 2} if number == 4 else {"a": 2, "b": number})
        call = ToolCall(id=f"c{requested.nth_same}", name="add", arguments=(written,))
        return Reply(answer=(), tool_calls=(call,))

    async with serve(says, route={"kind": "samples", "samples": 3, "wave": 1, "mode": "observe"}) as g:
        answer = await g.ask(chat(stream=stream, **TOOLS))
        (call,) = calls_in(answer)
        assert (call["id"], json.loads(call["function"]["arguments"])["b"]) == ("c1", 4)
        assert answer.finish == "tool_calls"
        assert (await g.outcome()).answer == 'tool_calls: [{"arguments":{"a":2,"b":4},"name":"add"}]'


# ---- a cap on all tokens that the thought alone would use up


def is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


async def valid_under_caps(
    serve: Serve, n: int, finish: tuple[str, ...] = ("prefill",), **route: Any
) -> tuple[int, int]:
    """Return how many of `n` replies under a schema are valid, and how many hold no more tokens than the cap."""
    valid = kept = 0

    def says(requested: Any) -> Reply:
        draw = random.Random(requested.text.partition(":")[0])
        thought = tuple(token for _ in range(draw.randrange(5, 60)) for token in draw.choice(STEPS).split())
        return Reply(reasoning=thought, answer_after=json_after, answer=json_after("").tokens, delay_s=0.001)

    draw, upstream = random.Random(7), {"slots": 8, "finish": list(finish)}
    async with serve(says, upstream=upstream, route=enforcing(policy={"policy": "never"}, **route)) as g:
        for number in range(n):
            cap = draw.randrange(40, 100)
            answer = await g.ask(chat(f"{number}: {draw.random()}", max_tokens=cap, stream=number % 2 == 0, **SCHEMA))
            valid += is_json(answer.text)
            kept += len(answer.text) > 0 and answer.finish == "stop"
    return valid, kept


@pytest.mark.parametrize("finish", [("native", "prefill"), ("prefill",)], ids=["native", "prefill"])
async def test_a_thought_is_closed_in_time_for_an_answer_under_a_schema(serve: Serve, finish: tuple[str, ...]) -> None:
    n = 60
    assert await valid_under_caps(serve, n, finish, finish_unclosed=True, probe={"formed_tokens": 20}) == (n, n)


async def test_without_the_setting_such_answers_are_missing(serve: Serve) -> None:
    valid, _ = await valid_under_caps(serve, 40)
    assert valid < 30


@pytest.mark.parametrize("audit_share", [0.0, 1.0], ids=["run", "audit"])
async def test_a_thought_that_is_closed_in_time_is_no_stop(serve: Serve, audit_share: float) -> None:
    route = enforcing(finish_unclosed=True, policy={"policy": "never"}, audit_share=audit_share)
    async with serve(SHAPED, upstream={"finish": ["prefill"], "slots": 3}, route=route) as g:
        answer = await g.ask(chat(max_tokens=20, **SCHEMA))
        assert is_json(answer.text)
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.end_reason, outcome.unclosed) == (False, "done", False)
        assert outcome.finish_method == "prefill"
        assert outcome.answer is not None
