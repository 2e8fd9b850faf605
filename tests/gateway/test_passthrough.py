"""P1 for what is not governed: the bytes that the upstream sends are the bytes that the client gets."""

from __future__ import annotations

import gzip
import hashlib
from typing import Any

import pytest

from suffice_testing import FakeUpstream, Fault, Reply, Script, ToolCall
from tests.gateway.conftest import Serve
from tests.gateway.served import chat
from tests.sse_scripts import SCRIPTS

OFF = {"mode": "off"}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLS = Reply(tool_calls=(ToolCall(id="c1", name="add", arguments=('{"a":', " 1}")),), answer=())
UNGOVERNED: dict[str, tuple[dict[str, Any], str]] = {
    "hosted-tools": ({"tools": [{"type": "web_search"}]}, "tools"),
    "n": ({"n": 2}, "n"),
    "n-128": ({"n": 8}, "n"),
    "n-odd": ({"n": "two"}, "n"),
    "stop-tag": ({"stop": "</think>"}, "stop"),
    "grammar": ({"grammar": "root ::= x"}, "response_format"),
    "n-probs": ({"n_probs": 2}, "logprobs"),
    "audio": ({"modalities": ["text", "audio"]}, "modalities"),
    "prediction": ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    "no-messages": ({"messages": None}, "messages"),
    "odd-messages": ({"messages": ["hello"]}, "messages"),
}


def sha(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def torn_scripts() -> set[str]:
    return {name for name, script in SCRIPTS.items() if script.end == "torn"}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_in_off_every_script_arrives_byte_for_byte(serve: Serve, stream: bool) -> None:
    quick = {n: s for n, s in SCRIPTS.items() if n != "done_then_hang"}
    quick["done_then_hang"] = Script(pieces=SCRIPTS["done_then_hang"].pieces, end="hang", hang_s=0.1)
    async with serve(fake={"scripts": quick}, route=OFF) as g:
        for name, script in quick.items():
            answer = await g.ask(chat(stream=stream) | {"model": name})
            if name in torn_scripts():
                # A torn stream ends in one error frame: a bare end would look like success to most clients.
                assert answer.raw.startswith(script.body), name
                assert len(answer.errors) == 1
                assert answer.raw.removeprefix(script.body).count(b"data:") == 1
                assert not answer.done
                continue
            assert sha(answer.raw) == sha(script.body), name
        for episode in await g.episodes(len(quick)):
            assert episode.episode.request.ungoverned == "off"
            assert episode.episode.outcome.degraded == ()


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_what_is_not_understood_completely_is_not_touched(serve: Serve, mode: str, stream: bool) -> None:
    says = Reply(reasoning=(" so", " it\n"), answer=("four", " 北", "🙂"))
    route = {"mode": mode, "uncertified": True, "policy": {"policy": "fixed-budget", "max_tokens": 1}}
    async with FakeUpstream(says) as other, serve(says, route=route) as g:
        for name, (fields, reason) in UNGOVERNED.items():
            body = chat(stream=stream) | fields
            direct, through = await g.ask(body, url=other.url), await g.ask(body)
            assert sha(through.raw) == sha(direct.raw), name
            assert through.status == direct.status == 200
            assert g.fake.calls[-1].raw_body == other.calls[-1].raw_body, name
            assert g.gateway.metrics.value("suffice_ungoverned_total", route="r", reason=reason) >= 1, name
        reasons = [e.episode.request.ungoverned for e in await g.episodes(len(UNGOVERNED))]
        assert reasons == [reason for _, reason in UNGOVERNED.values()]


async def test_a_tool_call_arrives_byte_for_byte(serve: Serve) -> None:
    async with FakeUpstream(CALLS) as other, serve(CALLS, route={"reply_forms": ["text"]}) as g:
        for stream in (True, False):
            body = chat(stream=stream, tools=[TOOL])
            direct, through = await g.ask(body, url=other.url), await g.ask(body)
            assert sha(through.raw) == sha(direct.raw)


async def test_the_usage_of_what_passes_through_is_on_record(serve: Serve) -> None:
    says = Reply(answer=("a", "b", "c"))
    async with serve(says, route=OFF) as g:
        await g.ask(chat())
        await g.ask(chat(stream=True, stream_options={"include_usage": True}))
        long = Reply(answer=("word " * 60_000,) * 2)
        g.fake._answerer = lambda _: long
        await g.ask(chat())
        usages = [e.episode.outcome.usage for e in await g.episodes(3)]
        assert [u.completion_tokens for u in usages if u] == [3, 3, 2]
        assert all(u.prompt_tokens == 6 for u in usages if u)


async def test_a_compressed_answer_stays_as_it_came(serve: Serve) -> None:
    packed = gzip.compress(SCRIPTS["ok"].body)

    async def handler(request: Any) -> Any:
        from aiohttp import web

        return web.Response(body=packed, headers={"content-type": "text/event-stream", "content-encoding": "gzip"})

    from aiohttp.test_utils import TestServer
    from aiohttp.web import Application

    application = Application()
    application.router.add_post("/v1/chat/completions", handler)
    async with TestServer(application) as upstream, serve(upstream={"url": str(upstream.make_url(""))}, route=OFF) as g:
        answer = await g.ask(chat(stream=True), headers={"accept-encoding": "gzip"})
        assert answer.headers["content-encoding"] == "gzip"
        assert sha(answer.raw) == sha(packed)


@pytest.mark.parametrize("piece", [1, 3, 7, 64])
async def test_odd_pieces_arrive_byte_for_byte(serve: Serve, piece: int) -> None:
    says = Reply(reasoning=("北", "🙂👩‍👩‍👧"), answer=("é", "\r\n", "x"), faults=(Fault(piece_bytes=piece),))
    async with FakeUpstream(says) as other, serve(says, route=OFF) as g:
        for stream in (True, False):
            direct, through = await g.ask(chat(stream=stream), url=other.url), await g.ask(chat(stream=stream))
            assert sha(through.raw) == sha(direct.raw)


@pytest.mark.parametrize("how", ["rst", "fin", "error_frame"])
async def test_a_stream_that_breaks_inside_a_frame_never_leaves_half_of_it(serve: Serve, how: Any) -> None:
    says = Reply(answer=("word",) * 30, faults=(Fault(die_after=7, die_how=how), Fault(piece_bytes=1)))
    async with serve(says, route=OFF) as g:
        answer = await g.ask(chat(stream=True))
        assert len(answer.errors) == 1  # parsing `chunks` fails on half a frame
        assert answer.finish is None
        assert not answer.done
        assert (await g.outcome()).end_reason == "upstream_error"


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
async def test_half_a_frame_is_held_back_and_a_whole_one_is_not(serve: Serve, line_end: str) -> None:
    whole = [piece.replace(b"\n", line_end.encode()) for piece in SCRIPTS["ok"].pieces[:2]]
    torn = Script(pieces=(*whole, b'data: {"id": "half'), end="torn")
    async with serve(torn, route=OFF) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.raw.startswith(b"".join(whole) + b'data: {"error"')
        assert len(answer.errors) == 1


async def test_an_event_without_its_blank_line_arrives_all_the_same(serve: Serve) -> None:
    unended = Script(pieces=(*SCRIPTS["ok"].pieces, b"data: without an end"))
    async with serve(unended, route=OFF) as g:
        assert sha((await g.ask(chat(stream=True))).raw) == sha(unended.body)


async def test_an_event_longer_than_is_held_goes_out_in_parts(serve: Serve) -> None:
    long = Script(pieces=(b"data: ", *[b"x" * 50_000] * 4, b"\n\n", *SCRIPTS["ok"].pieces))
    async with serve(long, route=OFF) as g:
        answer = await g.ask(chat(stream=True))
        assert sha(answer.raw) == sha(long.body)


async def test_a_plain_body_that_breaks_off_is_not_completed(serve: Serve) -> None:
    torn = Script(pieces=(b'{"id": "x", "choi',), end="torn", content_type="application/json")
    async with serve(torn, route=OFF) as g:
        answer = await g.ask(chat())
        assert answer.torn
        assert (await g.outcome()).end_reason == "upstream_error"


@pytest.mark.parametrize("code", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_the_upstreams_own_verdict_is_relayed(serve: Serve, code: int, mode: str) -> None:
    says = Reply(
        faults=(
            Fault(
                status=code,
                status_body=b'{"error":{"message":"mine"}}',
                status_headers={"retry-after": "7", "x-request-id": "1"},
            ),
        )
    )
    async with serve(says, route={"mode": mode}) as g:
        for stream in (True, False):
            answer = await g.ask(chat(stream=stream))
            assert (answer.status, answer.raw) == (code, b'{"error":{"message":"mine"}}')
            assert answer.headers["retry-after"] == "7"
            assert answer.headers["x-request-id"] == "1"
        assert {e.episode.outcome.end_reason for e in await g.episodes(2)} == {"upstream_error"}
        assert {e.episode.outcome.status for e in await g.episodes(2)} == {code}


async def test_a_request_that_no_route_claims_goes_to_the_first_upstream(serve: Serve) -> None:
    routes = {"r": {"upstream": "up", "match": {"model": "other-*"}}}
    async with serve(Reply(), routes=routes) as g:
        answer = await g.ask(chat())
        assert answer.status == 200
        assert answer.headers["x-suffice-route"] == ""
        assert (await g.episode()).request.ungoverned == "no_route"


async def test_override_fields_are_taken_out_and_counted(serve: Serve) -> None:
    async with serve(Reply(), route=OFF) as g:
        fields = ("api_base", "base_url", "api_key", "extra_headers", "user_config")
        await g.ask(chat(seed=5, **dict.fromkeys(fields, "http://10.0.0.1")))
        assert set(g.fake.calls[0].body) == {"model", "messages", "seed"}
        for field in fields:
            assert g.gateway.metrics.value("suffice_stripped_fields_total", field=field) == 1


async def test_hop_by_hop_headers_and_cookies_stay_on_their_side(serve: Serve) -> None:
    says = Reply(
        faults=(
            Fault(
                status=418,
                status_body=b"{}",
                status_headers={"set-cookie": "a=b", "x-request-id": "yes", "keep-alive": "timeout=9"},
            ),
        )
    )
    async with serve(says, route=OFF) as g:
        sent = {"cookie": "secret", "te": "trailers", "authorization": "Bearer k", "x-mine": "1"}
        answer = await g.ask(chat(), headers=sent)
        assert "set-cookie" not in answer.headers
        assert "keep-alive" not in answer.headers
        assert answer.headers["x-request-id"] == "yes"
        seen = {k.lower(): v for k, v in g.fake.calls[0].headers}
        assert {"cookie", "te"} & set(seen) == set()
        assert (seen["authorization"], seen["x-mine"]) == ("Bearer k", "1")
        assert not any(k.startswith("x-suffice") for k in seen)
