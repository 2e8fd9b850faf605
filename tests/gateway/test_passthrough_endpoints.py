"""Endpoints that are never governed: the same bytes, one outcome, the API's own errors, no key on the wrong side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from yarl import URL

from suffice.gateway.auth import Caller, KeyRing, Objects
from suffice.settings import Upstream
from suffice.store.rows.events import StoredObject
from suffice.upstream.client import UpstreamClient
from suffice_testing import FakeUpstream, Script, ServerBehaviour
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served

OURS, THEIRS = "sk-ours-7c1d", "sk-upstream-90ab"


def sse(*events: tuple[str, Mapping[str, Any]] | Mapping[str, Any]) -> bytes:
    """Events, named or plain."""
    out = b""
    for event in events:
        name, data = event if isinstance(event, tuple) else ("", event)
        out += (f"event: {name}\n" if name else "").encode() + b"data: " + json.dumps(data).encode() + b"\n\n"
    return out


def whole(value: Any) -> bytes:
    return json.dumps(value).encode()


TEXT = {"id": "cmpl-1", "object": "text_completion", "model": "m"}
COMPLETION_USAGE = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
RESPONSE_USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 9,
    "output_tokens_details": {"reasoning_tokens": 6},
    "total_tokens": 20,
}
RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "status": "completed",
    "error": None,
    "model": "m",
    "output": [],
}
MESSAGE = {"id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": []}


@dataclass(frozen=True)
class Case:
    """One endpoint, a request, its answer, and the tokens that the outcome must show."""

    path: str
    body: Mapping[str, Any]
    answer: bytes
    usage: tuple[int, int, int, int]  # prompt, completion, cached, reasoning
    response_id: str | None
    method: str = "POST"
    end: str = "done"

    @property
    def streams(self) -> bool:
        return self.answer.startswith((b"data:", b"event:"))

    @property
    def script(self) -> Script:
        kind = "text/event-stream" if self.streams else "application/json"
        half = len(self.answer) // 2
        return Script(pieces=(self.answer[:half], self.answer[half:]), content_type=kind)


CASES = {
    "completions": Case(
        "/completions",
        {"model": "m", "prompt": "a"},
        whole({**TEXT, "choices": [{"text": "b", "finish_reason": "stop"}], "usage": COMPLETION_USAGE}),
        (5, 7, 0, 0),
        "cmpl-1",
    ),
    "completions, cut": Case(
        "/completions",
        {"model": "m", "prompt": "a", "stream": True},
        sse(
            {**TEXT, "choices": [{"text": "b", "finish_reason": None}]},
            {**TEXT, "choices": [{"text": "", "finish_reason": "length"}]},
            {**TEXT, "choices": [], "usage": COMPLETION_USAGE},
        )
        + b"data: [DONE]\n\n",
        (5, 7, 0, 0),
        "cmpl-1",
        end="truncated",
    ),
    "embeddings": Case(
        "/embeddings",
        {"model": "m", "input": ["a"]},
        whole(
            {
                "object": "list",
                "data": [{"embedding": [0.5] * 40_000}],
                "usage": {"prompt_tokens": 3, "total_tokens": 3},
            }
        ),
        (3, 0, 0, 0),
        None,
    ),
    "responses": Case(
        "/responses",
        {"model": "m", "input": "a"},
        whole({**RESPONSE, "usage": RESPONSE_USAGE}),
        (11, 9, 4, 6),
        "resp_1",
    ),
    "responses, stream": Case(
        "/responses",
        {"model": "m", "input": "a", "stream": True},
        sse(
            (
                "response.created",
                {
                    "type": "response.created",
                    "sequence_number": 0,
                    "response": {**RESPONSE, "status": "in_progress", "usage": None},
                },
            ),
            ("response.output_text.delta", {"type": "response.output_text.delta", "sequence_number": 1, "delta": "x"}),
            (
                "response.completed",
                {"type": "response.completed", "sequence_number": 2, "response": {**RESPONSE, "usage": RESPONSE_USAGE}},
            ),
        ),
        (11, 9, 4, 6),
        "resp_1",
    ),
    "responses, stream that ends in one huge event": Case(
        "/responses",
        {"model": "m", "input": "a", "stream": True},
        sse(
            ("response.created", {"type": "response.created", "response": {**RESPONSE, "usage": None}}),
            (
                "response.completed",
                {
                    "type": "response.completed",
                    "response": {**RESPONSE, "output": [{"text": 'say "usage": ' * 20_000}], "usage": RESPONSE_USAGE},
                },
            ),
        ),
        (11, 9, 4, 6),
        "resp_1",
    ),
    "responses, incomplete": Case(
        "/responses",
        {"model": "m", "input": "a", "stream": True},
        sse(
            (
                "response.incomplete",
                {
                    "type": "response.incomplete",
                    "response": {
                        **RESPONSE,
                        "status": "incomplete",
                        "incomplete_details": {"reason": "max_output_tokens"},
                        "usage": RESPONSE_USAGE,
                    },
                },
            )
        ),
        (11, 9, 4, 6),
        "resp_1",
        end="truncated",
    ),
    "responses, failed": Case(
        "/responses",
        {"model": "m", "input": "a", "stream": True},
        sse(
            (
                "response.failed",
                {
                    "type": "response.failed",
                    "response": {**RESPONSE, "status": "failed", "error": {"code": "server_error", "message": "x"}},
                },
            )
        ),
        (0, 0, 0, 0),
        "resp_1",
        end="upstream_error",
    ),
    "a stored response": Case(
        "/responses/resp_1", {}, whole({**RESPONSE, "usage": RESPONSE_USAGE}), (11, 9, 4, 6), "resp_1", "GET"
    ),
    "a response to be deleted": Case(
        "/responses/resp_1", {}, whole({"id": "resp_1", "deleted": True}), (0, 0, 0, 0), "resp_1", "DELETE"
    ),
    "a response to be cancelled": Case(
        "/responses/resp_1/cancel", {}, whole({**RESPONSE, "status": "cancelled"}), (0, 0, 0, 0), "resp_1"
    ),
    "input items": Case(
        "/responses/resp_1/input_items", {}, whole({"object": "list", "data": []}), (0, 0, 0, 0), None, "GET"
    ),
    "messages": Case(
        "/messages",
        {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "a"}]},
        whole(
            {
                **MESSAGE,
                "stop_reason": "end_turn",
                "usage": {
                    "input_tokens": 10,
                    "cache_read_input_tokens": 30,
                    "cache_creation_input_tokens": 2,
                    "output_tokens": 8,
                },
            }
        ),
        (42, 8, 30, 0),
        "msg_1",
    ),
    "messages, stream": Case(
        "/messages",
        {"model": "m", "max_tokens": 9, "stream": True, "messages": []},
        sse(
            (
                "message_start",
                {
                    "type": "message_start",
                    "message": {
                        **MESSAGE,
                        "stop_reason": None,
                        "usage": {"input_tokens": 10, "cache_read_input_tokens": 30, "output_tokens": 1},
                    },
                },
            ),
            *[
                (
                    "content_block_delta",
                    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "word " * 400}},
                )
            ]
            * 60,
            (
                "message_delta",
                {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 12}},
            ),
            ("message_stop", {"type": "message_stop"}),
        ),
        (40, 12, 30, 0),
        "msg_1",
        end="truncated",
    ),
    "messages, an error inside": Case(
        "/messages",
        {"model": "m", "max_tokens": 9, "stream": True, "messages": []},
        sse(
            (
                "message_start",
                {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 10, "output_tokens": 1}}},
            ),
            ("error", {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        ),
        (10, 1, 0, 0),
        "msg_1",
        end="upstream_error",
    ),
    "count_tokens": Case(
        "/messages/count_tokens", {"model": "m", "messages": []}, whole({"input_tokens": 14}), (0, 0, 0, 0), None
    ),
}


async def send(
    g: Served, case: Case, *, url: str | None = None, prefix: str = "/v1", headers: Mapping[str, str] | None = None
) -> Answer:
    """One request of a case, through the gateway or to another base address."""
    raw = json.dumps(case.body).encode() if case.body else None
    sent = ({"content-type": "application/json"} if case.body else {}) | dict(headers or {})
    target = (url or g.url) + prefix + case.path
    async with g.session.request(case.method, target, data=raw, headers=sent) as response:
        return Answer(response.status, {k.lower(): v for k, v in response.headers.items()}, await response.read())


def paths(case: Case) -> dict[str, Any]:
    return {"paths": {f"{case.method} {case.path}": case.script}}


@pytest.mark.slow(keep=15)
@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
@pytest.mark.parametrize("name", CASES)
async def test_the_same_bytes_and_one_outcome(serve: Serve, name: str, mode: str) -> None:
    case = CASES[name]
    reason = "endpoint"
    if case.path in ("/responses", "/messages"):
        reason = "off" if mode == "off" else "signed"  # the thoughts of this driver's servers cannot be cut
    route, upstream = {"mode": mode, "uncertified": True}, {"driver": "openai"}
    async with serve(fake=paths(case), route=route, upstream=upstream) as g:
        direct, through = await send(g, case, url=g.fake.url), await send(g, case)
        assert (through.status, through.raw) == (direct.status, direct.raw) == (200, case.answer)
        assert through.headers["content-type"] == direct.headers["content-type"]
        assert g.fake.calls[1].raw_body == g.fake.calls[0].raw_body
        assert g.fake.calls[1].request.target == "/v1" + case.path
        assert {"x-suffice-episode-id", "x-suffice-route", "x-suffice-mode"} <= set(through.headers)
        episode = await g.episode()
        usage = episode.outcome.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens) == case.usage
        assert (episode.outcome.end_reason, episode.outcome.response_id) == (case.end, case.response_id)
        assert len(episode.outcome.calls) == 1
        assert episode.request.ungoverned == reason
        assert episode.request.endpoint == "/v1" + case.path.replace("resp_1", "{id}")
        assert episode.request.stream == bool(case.body.get("stream"))
        assert g.gateway.metrics.value("suffice_ungoverned_total", route="r", reason=reason) == 1


@pytest.mark.parametrize("name", CASES)
async def test_without_v1_it_is_the_same_endpoint(serve: Serve, name: str) -> None:
    case = CASES[name]
    async with serve(fake=paths(case), route={"mode": "off"}) as g:
        assert (await send(g, case, prefix="")).raw == case.answer
        assert g.fake.calls[0].request.target == "/v1" + case.path


async def test_queries_go_on_as_they_came(serve: Serve) -> None:
    case = CASES["a stored response"]
    target = "/v1/responses/resp_1?include=a%2Fb&stream=true&x=%C3%A9+%20"
    async with serve(fake=paths(case)) as g:
        async with g.session.get(URL(g.url + target, encoded=True)) as response:
            assert response.status == 200
        assert g.fake.calls[0].request.target == target


@pytest.mark.parametrize("driver", ["openai", "vllm"])
@pytest.mark.parametrize("name", ["completions", "embeddings", "responses", "messages", "count_tokens"])
async def test_our_key_never_goes_up_and_theirs_goes_as_the_api_wants_it(
    serve: Serve, name: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OURS", OURS)
    monkeypatch.setenv("THEIRS", THEIRS)
    case = CASES[name]
    own = "messages" in case.path
    version = {"anthropic-version": "2023-06-01", "anthropic-beta": "a-beta"}
    upstream = {"api_key_env": "THEIRS", "driver": driver}
    async with serve(fake=paths(case), server={"api_keys_env": "OURS"}, upstream=upstream, route={"mode": "off"}) as g:
        assert (await send(g, case)).status == 401
        answer = await send(g, case, headers=version | {"authorization": f"Bearer {OURS}"})
        assert answer.status == 200
        by_x = await send(g, case, headers=version | {"x-api-key": OURS})
        assert by_x.status == (200 if own else 401)
        for call in g.fake.calls:
            seen = {k.lower(): v for k, v in call.headers}
            assert not [k for k, v in seen.items() if OURS in v]
            key = ("x-api-key", THEIRS) if own and driver == "openai" else ("authorization", f"Bearer {THEIRS}")
            assert [(k, v) for k, v in seen.items() if THEIRS in v] == [key]
            assert {k: v for k, v in seen.items() if k.startswith("anthropic-")} == version
        assert len(g.fake.calls) == 1 + own


async def test_without_keys_of_ours_the_clients_own_goes_on(serve: Serve) -> None:
    case = CASES["messages"]
    async with serve(fake=paths(case)) as g:
        await send(g, case, headers={"x-api-key": "mine"})
        assert g.fake.calls[0].request.header("x-api-key") == "mine"
        assert g.fake.calls[0].request.header("authorization") is None


def test_headers_that_may_hold_a_key_stay_here_when_we_have_keys() -> None:
    given = [("authorization", "a"), ("x-api-key", "b"), ("api-key", "c"), ("accept", "d")]
    assert KeyRing({"k": Caller(id="1")}).without_keys(given) == [("accept", "d")]
    assert KeyRing().without_keys(given) == given


def assert_shape(answer: Answer, path: str, kind: str) -> None:
    """The error of a body, in the API's own shape."""
    if path.startswith("/messages"):
        assert set(answer.json) == {"type", "error"}
        assert answer.json["type"] == "error"
        assert set(answer.json["error"]) == {"type", "message"}
    else:
        assert set(answer.json) == {"error"}
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}
    assert answer.json["error"]["type"] == kind


@pytest.mark.parametrize("name", ["completions", "embeddings", "responses", "messages", "count_tokens"])
async def test_our_own_errors_have_the_apis_shape(serve: Serve, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", OURS)
    path = CASES[name].path
    is_messages = path.startswith("/messages")
    key = {"authorization": f"Bearer {OURS}"}
    bad = Case(path, {"stream": "yes"}, b"", (0, 0, 0, 0), None)
    async with serve(server={"api_keys_env": "OURS", "max_body_bytes": 2_000}) as g:
        assert_shape(await send(g, CASES[name]), path, "authentication_error")
        answer = await send(g, bad, headers=key)
        assert answer.status == 400
        assert_shape(answer, path, "invalid_request_error")
        long = Case(path, {"input": "x" * 3_000}, b"", (0, 0, 0, 0), None)
        answer = await send(g, long, headers=key)
        assert answer.status == 413
        assert_shape(answer, path, "request_too_large" if is_messages else "invalid_request_error")
        wrong = Case(path, {}, b"", (0, 0, 0, 0), None, "PUT")
        answer = await send(g, wrong, headers=key)
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        assert_shape(answer, path, "invalid_request_error")
        assert g.fake.calls == []
        assert {e.episode.outcome.end_reason for e in await g.episodes(2)} == {"rejected"}
        assert {e.episode.request.endpoint for e in await g.episodes(2)} == {"/v1" + path}


@pytest.mark.parametrize("name", ["completions", "embeddings", "responses", "messages"])
async def test_an_upstream_that_is_not_there_is_told_in_the_apis_shape(serve: Serve, name: str) -> None:
    async with serve(upstream={"url": "http://127.0.0.1:9"}) as g:
        answer = await send(g, CASES[name])
        assert answer.status == 502
        assert_shape(answer, CASES[name].path, "api_error" if name == "messages" else "upstream_error")
        assert (await g.outcome()).end_reason == "upstream_error"


@pytest.mark.parametrize("name", ["completions, cut", "responses, stream", "messages, stream"])
async def test_a_stream_that_breaks_off_ends_in_the_apis_own_error_event(serve: Serve, name: str) -> None:
    case = CASES[name]
    events = [event + b"\n\n" for event in case.answer.split(b"\n\n")]
    begun = b"".join(events[:2])
    torn = Script(pieces=(begun, events[2][:15]), end="torn")
    async with serve(fake={"paths": {f"POST {case.path}": torn}}) as g:
        answer = await send(g, case)
        assert answer.raw.startswith(begun)
        name_line, _, data = answer.raw.removeprefix(begun).partition(b"data: ")
        event = json.loads(data)
        assert data.endswith(b"}\n\n")
        if case.path == "/completions":
            assert name_line == b""
            assert set(event["error"]) == {"message", "type", "param", "code"}
        elif case.path == "/messages":
            assert name_line == b"event: error\n"
            assert (event["type"], event["error"]["type"]) == ("error", "api_error")
        else:
            assert name_line == b"event: error\n"
            assert (event["type"], event["code"], event["sequence_number"]) == ("error", "upstream_down", 2)
            assert event["error"]["code"] == "upstream_down"
        outcome = await g.outcome()
        assert outcome.end_reason == "upstream_error"
        assert outcome.response_id == case.response_id
        assert outcome.calls[0].cancelled
        if case.path == "/messages":
            assert outcome.calls[0].prompt_tokens == 40


@pytest.mark.parametrize("name", ["completions, cut", "responses, stream", "messages, stream"])
async def test_the_client_leaves_and_the_upstream_is_closed_at_once(serve: Serve, name: str) -> None:
    case = CASES[name]
    endless = Script(pieces=(case.answer[: case.answer.index(b"\n\n") + 2], *[b": x\n\n"] * 500), delay_s=0.01)
    async with serve(fake={"paths": {f"POST {case.path}": endless}}) as g:
        raw = json.dumps(case.body).encode()
        async with g.session.post(
            g.url + "/v1" + case.path, data=raw, headers={"content-type": "application/json"}
        ) as answer:
            await answer.content.readany()
            answer.close()
        left = asyncio.get_running_loop().time()
        await g.quiet()
        assert asyncio.get_running_loop().time() - left < 1.0
        assert g.fake.calls[0].cancelled
        assert (await g.outcome()).end_reason == "client_left"


async def test_options_and_override_fields_are_taken_out_here_too(serve: Serve) -> None:
    case = CASES["responses"]
    given = dict(case.body) | {"suffice": {"conversation_id": "c"}, "api_base": "http://10.0.0.1"}
    async with serve(fake=paths(case), route={"model": "theirs", "mode": "off"}) as g:
        assert (await send(g, Case(case.path, given, b"", (0, 0, 0, 0), None))).status == 200
        assert g.fake.calls[0].body == {"model": "theirs", "input": "a"}
        assert g.gateway.metrics.value("suffice_stripped_fields_total", field="api_base") == 1


async def test_a_stored_response_is_asked_for_where_it_was_made(serve: Serve) -> None:
    made, stored = CASES["responses"], CASES["a stored response"]
    async with FakeUpstream(
        behaviour=ServerBehaviour(paths={"POST /responses": made.script, "GET /responses/resp_1": stored.script})
    ) as other:
        routes = {"r": {"upstream": "up"}}
        async with serve(routes=routes) as g, UpstreamClient("up", Upstream(url=other.url), None) as elsewhere:
            g.gateway.upstreams = {"first": elsewhere, "up": elsewhere}
            await send(g, made)
            assert g.gateway.clients.objects.recent("resp_1") == StoredObject(
                object_id="resp_1", sender="", upstream="up"
            )
            assert (await send(g, stored)).status == 200
    objects = Objects()
    for n in range(10_001):
        assert objects.note(StoredObject(object_id=f"r{n}", sender="", upstream="up"))
    assert (objects.recent("r0"), objects.recent("r1") is None) == (None, False)


BAD_IDS = ["", "..", "a/b", "%2e%2e", "a%2fb", "a%00", "a b", "é", "x" * 201, "resp_1/", "resp_1/other", "a;b"]


async def test_only_a_plain_id_stands_in_a_path(serve: Serve) -> None:
    async with serve() as g:
        for bad in BAD_IDS:
            url = URL(f"{g.url}/v1/responses/{bad.replace(' ', '%20')}/input_items", encoded=True)
            async with g.session.get(url) as response:
                assert response.status in (400, 404), bad
        assert not [c for c in g.fake.calls if "input_items" in c.request.target]
