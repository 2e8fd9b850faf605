"""Responses and Messages are governed as chat is: relayed in their own bytes, stopped in their own events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from suffice.episode.apis.messages import messages_as_chat
from suffice.episode.apis.responses import responses_as_chat
from suffice.gateway.auth import Caller
from suffice.gateway.kept_responses import KEPT_S, KeptResponses
from suffice_testing import Answerer, FakeUpstream, Fault, Reply, ScriptedThought, ServerBehaviour, ToolCall
from tests.gateway.api_streams import BODIES, read_answer
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post
from tests.gateway.test_stop import N_THOUGHT, STEPS, STOP, chain, enforcing, held, reconciled

MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
ENGINES = ("llama.cpp", "vllm", "sglang")
BOTH = pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
EITHER_FORM = pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
THOUGHT = "".join(text for text, _ in STEPS)


async def ask(g: Served, path: str, *, url: str = "", **fields: Any) -> Answer:
    return await post(g.session, (url or g.url) + path, BODIES[path] | fields, {})


def engine(driver: str) -> dict[str, Any]:
    more: dict[str, dict[str, Any]] = {"llama.cpp": {"finish": ["raw"]}, "sglang": {"think_opened": True}}
    return {"upstream": {"driver": driver, **more.get(driver, {})}, "fake": {"dialect": driver}}


def finished(path: str) -> str:
    return "end_turn" if path == MESSAGES else "completed"


@BOTH
@EITHER_FORM
@pytest.mark.parametrize("mode", ["off", "observe"])
@pytest.mark.parametrize("driver", ENGINES)
async def test_in_off_and_observe_the_client_gets_what_the_engine_sends(
    serve: Serve, path: str, stream: bool, mode: str, driver: str
) -> None:
    async with serve(chain(), route={"mode": mode}, **engine(driver)) as g:
        through = await ask(g, path, stream=stream)
        async with FakeUpstream(chain(), ServerBehaviour(dialect=driver)) as fake:  # type: ignore[arg-type]
            direct = await ask(g, path, url=fake.url, stream=stream)
    if stream:
        assert through.raw == direct.raw
    else:
        assert through.json == direct.json
    output = read_answer(path, through.raw, stream=stream)
    assert (output.thought, output.text, output.finish) == (THOUGHT, "5 dear", finished(path))
    assert output.report is None


@pytest.mark.slow(keep=13)
@BOTH
@EITHER_FORM
@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("driver", ENGINES)
async def test_a_stop_is_written_in_the_apis_own_events(
    serve: Serve, path: str, stream: bool, slots: int, driver: str
) -> None:
    options = engine(driver)
    options["upstream"] |= {"slots": slots}
    async with serve(held(), route=enforcing(), **options) as g:
        answer = await ask(g, path, stream=stream)
        output = read_answer(path, answer.raw, stream=stream)
        # SGLang counts no prompt for us, and a cut stream of Responses names none: there it is an estimate.
        outcome = await (g.outcome() if (driver, path) == ("sglang", RESPONSES) else reconciled(g))
        assert (output.text, output.finish, outcome.stop_step) == ("4", finished(path), 4)
        assert output.thought.startswith("".join(text for text, _ in STEPS[:4]))
        assert output.report is not None
        assert (output.report["stopped"], output.report["degraded"]) == (True, [])
        assert outcome.usage is not None
        n_input = output.usage["input_tokens"] + output.usage.get("cache_read_input_tokens", 0)
        assert n_input == outcome.usage.prompt_tokens
        assert output.usage["output_tokens"] == outcome.usage.completion_tokens == N_THOUGHT + 1
        assert g.fake.completions[0].cancelled
        assert (await g.episode()).request.endpoint == path


@BOTH
async def test_the_options_object_is_taken_out_and_answered(serve: Serve, path: str) -> None:
    async with serve(chain()) as g:
        output = read_answer(path, (await ask(g, path, stream=True, suffice={})).raw, stream=True)
        assert output.report is not None
        assert (output.report["mode"], output.report["stopped"]) == ("observe", False)
        assert "suffice" not in g.fake.calls[0].body
        body = json.loads((await ask(g, path, suffice={"conversation_id": "c"})).raw)
        assert body["suffice"]["mode"] == "observe"
        bad = await ask(g, path, suffice={"oops": 1})
        assert bad.status == 400
        assert bad.json["error"]["type"] == "invalid_request_error"


async def test_one_question_has_one_key_in_every_api(serve: Serve) -> None:
    async with serve(chain()) as g:
        await g.ask(chat())
        for path in BODIES:
            await ask(g, path)
        assert len({e.episode.request.question_key for e in await g.episodes(3)}) == 1


@BOTH
@EITHER_FORM
async def test_where_the_continuation_fails_a_full_run_answers(serve: Serve, path: str, stream: bool) -> None:
    def says(seen: Any) -> Reply:
        whole = held()(seen)
        if seen.path == "/completions" and seen.body.get("logprobs") is None:  # the continuation, not a probe
            return Reply(faults=(Fault(status=500),))
        return whole if not seen.nth_same else chain()(seen)

    upstream = {"finish": ["raw"], "slots": 1}
    async with serve(says, upstream=upstream, route=enforcing()) as g:
        answer = await ask(g, path, stream=stream)
        output = read_answer(path, answer.raw, stream=stream)
        assert (output.text, output.finish) == ("5 dear", finished(path))
        assert THOUGHT.startswith(output.thought)
        outcome = await g.outcome()
        assert (outcome.stopped, outcome.degraded) == (False, ("handover",))


CALL = ToolCall(id="call_1", name="weather", arguments=('{"city"', ': "Rome"}'))
TOOLS = {
    MESSAGES: [{"name": "weather", "input_schema": {"type": "object"}}],
    RESPONSES: [{"type": "function", "name": "weather", "parameters": {"type": "object"}}],
}


@BOTH
@EITHER_FORM
async def test_calls_come_through_in_observe(serve: Serve, path: str, stream: bool) -> None:
    says = ScriptedThought(STEPS, "5 dear", reply=Reply(tool_calls=(CALL,)))
    async with serve(says) as g:
        output = read_answer(path, (await ask(g, path, stream=stream, tools=TOOLS[path])).raw, stream=stream)
        assert (output.calls, output.text) == ([("weather", {"city": "Rome"})], "5 dear")
        assert output.finish == ("tool_use" if path == MESSAGES else "completed")


@BOTH
async def test_a_run_that_its_cap_cut_is_told_so(serve: Serve, path: str) -> None:
    cap: dict[str, Any] = {"max_tokens": 6} if path == MESSAGES else {"max_output_tokens": 6}
    async with serve(chain()) as g:
        for stream in (True, False):
            output = read_answer(path, (await ask(g, path, stream=stream, **cap)).raw, stream=stream)
            assert output.finish == ("max_tokens" if path == MESSAGES else "max_output_tokens")
            assert output.text == ""
        assert {e.episode.outcome.end_reason for e in await g.episodes(2)} == {"truncated"}


@BOTH
async def test_an_unclosed_thought_gets_a_forced_answer(serve: Serve, path: str) -> None:
    cap: dict[str, Any] = {"max_tokens": 10} if path == MESSAGES else {"max_output_tokens": 10}
    route = enforcing(policy={"policy": "never"}, finish_unclosed=True)
    async with serve(chain(), upstream={"finish": ["raw"]}, route=route) as g:
        for stream in (True, False):
            output = read_answer(path, (await ask(g, path, stream=stream, **cap)).raw, stream=stream)
            assert (output.text, output.finish) == ("4", finished(path))
        assert not any(e.episode.outcome.stopped for e in await g.episodes(2))


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (RESPONSES, {"previous_response_id": "resp_1"}, "stateful"),
    (RESPONSES, {"conversation": "conv_1"}, "stateful"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"tools": [{"type": "web_search"}]}, "server_tools"),
    (RESPONSES, {"input": [{"type": "item_reference", "id": "rs_1"}]}, "stateful"),
    (RESPONSES, {"input": [{"type": "reasoning", "summary": [], "encrypted_content": "x"}]}, "signed"),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "images"),
    (MESSAGES, {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "images"),
    (MESSAGES, {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "server_tools"),
    (MESSAGES, {"stop_sequences": ["END"]}, "stop"),
    (
        MESSAGES,
        {"messages": [{"role": "assistant", "content": [{"type": "redacted_thinking", "data": "x"}]}]},
        "signed",
    ),
    (MESSAGES, {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "prefill"),
]


@pytest.mark.parametrize(("path", "fields", "reason"), REFUSED)
async def test_what_cannot_be_known_here_passes_through(
    serve: Serve, path: str, fields: dict[str, Any], reason: str
) -> None:
    async with serve(chain(), route=enforcing(), upstream={"finish": ["raw"]}) as g:
        await ask(g, path, **fields)
        sent = g.fake.calls[0].body
        assert sent == BODIES[path] | fields
        assert (await g.episode()).request.ungoverned == reason
        assert g.gateway.metrics.value("suffice_ungoverned_total", route="r", reason=reason) == 1


@BOTH
@pytest.mark.parametrize("driver", ["anthropic", "openai", "openrouter"])
async def test_a_hosted_api_whose_thoughts_are_signed_passes_through(serve: Serve, path: str, driver: str) -> None:
    async with serve(chain(), route=enforcing(), upstream={"driver": driver}, fake={"dialect": "openai"}) as g:
        await ask(g, path, stream=True)
        assert len(g.fake.calls) == 1
        assert (await g.episode()).request.ungoverned == "signed"


def test_both_requests_are_one_chat() -> None:
    arguments = '{"city":"Rome"}'
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    expected = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "reasoning_content": "I ask.", "tool_calls": [call], "content": ""},
        {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
    ]
    turns = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "I ask.", "signature": ""},
                {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Rome"}},
            ],
        },
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c1", "content": "sunny"}]},
    ]
    of_messages, why = messages_as_chat({"system": "Be brief.", "messages": turns, "max_tokens": 7})
    assert (of_messages["messages"], of_messages["max_tokens"], why) == (expected, 7, None)
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "I ask."}], "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": arguments},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    of_responses, why = responses_as_chat({"instructions": "Be brief.", "input": items, "max_output_tokens": 7})
    assert (of_responses["messages"], of_responses["max_tokens"], why) == (expected, 7, None)


@pytest.mark.slow(keep=9)
@BOTH
@EITHER_FORM
@pytest.mark.parametrize("driver", ["llama.cpp", "vllm"])
@pytest.mark.parametrize("size", [1, 7, 64])
async def test_any_cut_of_the_bytes_is_stopped_alike(
    serve: Serve, path: str, stream: bool, size: int, driver: str
) -> None:
    reply = Reply(faults=(Fault(stall_after=N_THOUGHT, stall_s=3.0, piece_bytes=size),))
    says, options = ScriptedThought(STEPS, "5 dear", reply=reply), engine(driver)
    options["upstream"] |= {"slots": 3}
    async with serve(says, route=enforcing(), **options) as g:
        output = read_answer(path, (await ask(g, path, stream=stream)).raw, stream=stream)
        assert (output.text, output.finish, (await g.outcome()).stop_step) == ("4", finished(path), 4)


EFFORTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    MESSAGES: ("anthropic", {"budget_tokens": 2000}, {"thinking": {"type": "enabled", "budget_tokens": 2000}}),
    RESPONSES: ("openai", {"effort": "low"}, {"reasoning": {"effort": "low"}}),
}


@BOTH
@EITHER_FORM
@pytest.mark.parametrize("audit_share", [0.0, 1.0], ids=["run", "audit"])
async def test_a_hosted_api_gets_an_effort_in_its_own_fields_and_audits_call_twice(
    serve: Serve, path: str, stream: bool, audit_share: float
) -> None:
    driver, arm, fields = EFFORTS[path]
    route = {"mode": "enforce", "uncertified": True, "probe": {}, "scorer": "number", "audit_share": audit_share}
    ignores = ("thinking", "reasoning")  # the fake's own reading of these fields
    setup = {"upstream": {"driver": driver}, "fake": {"dialect": "openai", "ignores": ignores}}
    async with serve(chain(), route=route | arm, **setup) as g:
        output = read_answer(path, (await ask(g, path, stream=stream)).raw, stream=stream)
        assert (output.text, output.thought) == ("5 dear", THOUGHT)  # its thought is never cut
        outcome = await g.outcome()
        sent = [json.loads(call.raw_body) for call in g.fake.calls]
        assert [call.path for call in g.fake.calls] == [path.removeprefix("/v1")] * (1 + bool(audit_share))
        if audit_share:
            assert not set(fields) & set(sent[0])
            assert (outcome.pair_answer, outcome.answer) == ("5", "5")
        else:
            assert {name: sent[0][name] for name in fields} == fields


def conversing(thinks: ScriptedThought) -> Answerer:
    """A model that says how many turns it was told."""

    def says(seen: Any) -> Any:
        if seen.path == "/responses" or seen.messages:
            n_turns = sum(1 for m in seen.messages if m.get("role") in ("user", "assistant"))
            first = thinks(seen)
            return first if n_turns == 1 else Reply(reasoning=first.reasoning, answer=(f"turn {n_turns}",))
        return chain()(seen)

    return says


@EITHER_FORM
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_response_is_referred_to_by_its_id(serve: Serve, stream: bool, mode: str) -> None:
    options = engine("llama.cpp")
    options["upstream"] |= {"slots": 3}
    thinks = chain() if mode == "observe" else held()  # nobody waits for the end of a run that is stopped
    async with serve(conversing(thinks), route=enforcing(mode=mode), **options) as g:
        first = read_answer(RESPONSES, (await ask(g, RESPONSES, stream=stream)).raw, stream=stream)
        (name,) = first.ids
        assert first.text == ("4" if mode == "enforce" else "5 dear")
        await g.quiet()
        await ask(g, RESPONSES, stream=stream, previous_response_id=name, input="And 3 + 3?")
        sent = next(c.body for c in reversed(g.fake.calls) if c.path == "/responses")
        episodes = await g.episodes(2)
        assert [e.episode.request.ungoverned for e in episodes] == [None, None]
        if mode == "observe":  # the engine has the first response itself
            assert (sent["previous_response_id"], sent["input"]) == (name, "And 3 + 3?")
            return
        assert "previous_response_id" not in sent
        roles = [(item.get("role"), item["content"]) for item in sent["input"]]
        assert roles[0] == ("user", BODIES[RESPONSES]["input"])
        assert roles[1][1][0]["text"] == "4"
        assert roles[2] == ("user", "And 3 + 3?")
        async with g.session.get(f"{g.url}/v1/responses/{name}") as answer:
            body = await answer.json()
        assert (body["id"], body["output"][1]["content"][0]["text"]) == (name, "4")
        async with g.session.delete(f"{g.url}/v1/responses/{name}") as answer:
            assert (await answer.json())["deleted"] is True
        n_calls = len(g.fake.calls)
        async with g.session.get(f"{g.url}/v1/responses/{name}") as answer:
            assert answer.status == 404  # the fake's own: it keeps none
        assert len(g.fake.calls) == n_calls + 1


async def test_what_must_not_be_stored_is_not_kept(serve: Serve) -> None:
    async with serve(held(), route=enforcing(), **engine("llama.cpp")) as g:
        output = read_answer(RESPONSES, (await ask(g, RESPONSES, store=False)).raw, stream=False)
        (name,) = output.ids
        assert (output.text, g.gateway.responses.get(name, Caller(), now_s=0.0)) == ("4", None)


def test_kept_responses_are_bounded_and_shown_to_their_maker() -> None:
    kept, (ours, theirs) = KeptResponses(), (Caller(id="a"), Caller(id="b"))
    for n in range(40):
        body = {"id": f"r{n}", "output": [{"type": "message", "content": "x" * 2**20}]}
        kept.keep(ours, ["q"], body, is_ours=True, now_s=float(n))
    assert kept.get("r0", ours, now_s=40.0) is None
    made = kept.get("r39", ours, now_s=40.0)
    assert made is not None
    assert json.loads(made.items)[0] == "q"
    assert kept.get("r39", theirs, now_s=40.0) is None
    assert kept.get("r39", ours, now_s=KEPT_S + 40.0) is None


@BOTH
@EITHER_FORM
async def test_a_stop_before_a_call_delivers_the_call_in_the_apis_own_events(
    serve: Serve, path: str, stream: bool
) -> None:
    def says(seen: Any) -> Reply:
        return ScriptedThought(STEPS, "5", reply=Reply(tool_calls=(CALL,), faults=held().reply.faults))(seen)

    async with serve(says, route=enforcing(policy=STOP | {"streak": 3}), **engine("vllm")) as g:
        output = read_answer(path, (await ask(g, path, stream=stream, tools=TOOLS[path])).raw, stream=stream)
        episode = await g.episode()
        assert episode.request.ungoverned is None
        assert episode.outcome.stopped
        assert output.calls == [("weather", {"city": "Rome"})]
        assert output.finish == ("tool_use" if path == MESSAGES else "completed")
        tools = [call.body.get("tools") for call in g.fake.calls]
        assert tools[0] == TOOLS[path]
        assert [tool[0]["function"]["name"] for tool in tools[1:] if tool] == ["weather"] * (len(tools) - 1)
