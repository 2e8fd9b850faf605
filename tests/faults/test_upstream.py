"""F2, F3, F9 and bad input 47 to 58: what an upstream may do wrong, and what the client is told."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from suffice_testing import FakeUpstream, Fault, Reply, Script
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, chat
from tests.gateway.test_stop import chain, enforcing
from tests.sse_scripts import SCRIPTS

SAYS = Reply(reasoning=("so ", "it ", "is\n", "then "), answer=("It ", "is ", "four"))
MODES = ("observe", "enforce")
ROUTE = {"uncertified": True, "audit_share": 0.0, "policy": {"policy": "stable-answer", "streak": 1_000}}
TEXT = "The answer is 42 北🙂"


def assert_error(answer: Answer, *, stream: bool, code_number: int = 502) -> None:
    """One error in OpenAI's shape: a frame behind what was sent, or a whole JSON body; never a fake end."""
    if stream and answer.status == 200:
        assert len(answer.errors) == 1
        assert answer.finish is None
        assert not answer.done
        error = answer.errors[0]
        assert "error" in answer.chunks[-1]
    else:
        assert answer.status == code_number
        assert answer.headers["content-type"] == "application/json"
        error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("how", ["rst", "fin", "error_frame"])
async def test_an_upstream_that_dies_is_never_taken_for_one_that_finished(
    serve: Serve, how: Any, stream: bool, mode: str
) -> None:
    places = (0, 1, 4, 5, 7)
    faulty = {n: replace(SAYS, faults=(Fault(die_after=n, die_how=how),)) for n in places}
    async with serve(lambda seen: faulty[seen.body["seed"]], route=ROUTE | {"mode": mode}) as g:
        for n in places:
            answer = await g.ask(chat(stream=stream, seed=n))
            assert_error(answer, stream=stream)
            if stream:
                # A reset may overtake what was sent before it; nothing may be invented or torn.
                assert "".join(SAYS.reasoning).startswith(answer.thought)
                assert "".join(SAYS.answer).startswith(answer.text)
                assert how == "rst" or len(answer.thought.split()) == min(n, 4)
        for n, result in zip(places, await g.episodes(len(places)), strict=True):
            outcome = result.episode.outcome
            assert outcome.end_reason == "upstream_error"
            assert outcome.calls[0].cancelled
            assert outcome.usage is not None
            assert outcome.usage.completion_tokens == n if how != "rst" else outcome.usage.completion_tokens <= n


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_missing_end_is_told_and_a_missing_done_is_made_up_for(serve: Serve, mode: str, stream: bool) -> None:
    faulty: list[tuple[Fault, ...]] = [
        (Fault(finish=False),),
        (Fault(finish=False), Fault(done=False)),
        (Fault(done=False),),
    ]
    async with serve(lambda seen: replace(SAYS, faults=faulty[seen.body["seed"]]), route=ROUTE | {"mode": mode}) as g:
        for n in (0, 1):
            assert_error(await g.ask(chat(stream=stream, seed=n)), stream=stream)
        answer = await g.ask(chat(stream=stream, seed=2))
        assert (answer.status, answer.text, answer.finish) == (200, "It is four", "stop")
        assert not stream or answer.data.count("[DONE]") == 1


FAILS = {"eof_no_finish", "done_no_finish", "err_frame_done", "err_event_done", "badjson", "truncated"}
FINISHES = {"custom_finish": "early_stop"}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_every_odd_stream_becomes_an_ordinary_one_or_an_error(serve: Serve, stream: bool, mode: str) -> None:
    scripts = SCRIPTS | {"done_then_hang": replace(SCRIPTS["done_then_hang"], hang_s=0.2)}
    async with serve(fake={"scripts": scripts}, route=ROUTE | {"mode": mode}) as g:
        for name in scripts:
            answer = await g.ask(chat(stream=stream) | {"model": name})
            if name in FAILS:
                assert_error(answer, stream=stream)
                continue
            assert (answer.status, answer.text) == (200, TEXT), name
            assert answer.finish == FINISHES.get(name, "stop"), name
            assert b"LATE" not in answer.raw
            if stream:
                assert answer.data.count("[DONE]") == 1, name
                assert b"retry:" not in answer.raw
        ends = {e.episode.request.model: e.episode.outcome.end_reason for e in await g.episodes(len(scripts))}
        assert {name for name, end in ends.items() if end == "upstream_error"} == FAILS
        assert {end for name, end in ends.items() if name not in FAILS} == {"done"}


@pytest.mark.slow(keep=9)
@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 11, 64])
@pytest.mark.parametrize("field", ["reasoning_content", "inline"])
async def test_pieces_of_any_size_make_the_same_answer(serve: Serve, piece: int, field: Any) -> None:
    says = Reply(
        reasoning=("北京", " 🙂👩‍👩‍👧\n", "</th", " e\u0301 4\n"),
        answer=("[DONE]", " data: x\n\n", "é\r\n", "🙂"),
        reasoning_field=field,
        faults=(Fault(piece_bytes=piece),),
    )
    async with FakeUpstream(says) as other, serve(says, route=ROUTE | {"mode": "enforce"}) as g:
        for stream in (True, False):
            direct, through = await g.ask(chat(stream=stream), url=other.url), await g.ask(chat(stream=stream))
            if stream:
                # Frames as they came; only the engine's own times go with the usage that we asked for.
                assert through.chunks[:-1] == direct.chunks[:-1]
            assert (through.text, through.thought, through.finish) == (direct.text, direct.thought, direct.finish)
        assert {e.episode.outcome.degraded for e in await g.episodes(2)} == {()}


async def test_a_stop_works_byte_by_byte(serve: Serve) -> None:
    slow = chain(faults=(Fault(piece_bytes=1), Fault(stall_after=22, stall_s=3.0)))
    async with serve(slow, upstream={"finish": ["raw"]}, route=enforcing()) as g:
        answer = await g.ask(chat(stream=True))
        assert (answer.text, answer.done, answer.report["stopped"]) == ("4", True, True)


INTERNAL = "http://169.254.169.254/latest"
WRONG: dict[str, Reply | Script] = {
    "47 a web page": Reply(faults=(Fault(html=True),)),
    "48 json for a stream": Reply(faults=(Fault(force="json"),)),
    "50 a bad frame": replace(SAYS, faults=(Fault(bad_frame_after=0),)),
    "50 a bad frame later": replace(SAYS, faults=(Fault(bad_frame_after=3),)),
    "51 a huge frame": Script(pieces=(b"data: " + b" " * (9 * 2**20),)),
    "51 a line without end": Script(pieces=(b"x" * 2**20,) * 9),
    "57 redirect": Reply(faults=(Fault(status=302, status_body=b"", status_headers={"location": INTERNAL}),)),
    "57 permanent redirect": Reply(faults=(Fault(status=308, status_body=b"", status_headers={"location": INTERNAL}),)),
    "57 not modified": Reply(faults=(Fault(status=304, status_body=b""),)),
    "58 a huge header": Reply(faults=(Fault(status=200, status_body=b"{}", status_headers={"x-huge": "x" * 60_000}),)),
    "an odd status": Reply(faults=(Fault(status=799, status_body=b"{}"),)),
    "an empty stream": Script(pieces=()),
    "only comments": Script(pieces=(b": hello\n\n",)),
    "only done": Script(pieces=(b"data: [DONE]\n\n",)),
    "binary": Script(pieces=(bytes(range(256)) * 8,)),
}


@pytest.mark.slow(keep=14)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("name", WRONG)
async def test_an_upstream_that_speaks_another_protocol_is_a_502(serve: Serve, name: str, stream: bool) -> None:
    says = WRONG[name]
    async with serve(lambda _: says, route=ROUTE) as g:
        answer = await g.ask(chat(stream=stream))
        assert_error(answer, stream=stream)
        assert "location" not in answer.headers
        assert b"169.254" not in answer.raw
        assert (await g.outcome()).end_reason == "upstream_error"
        assert len(g.fake.calls) == 1


@pytest.mark.parametrize("name", ["57 redirect", "57 permanent redirect", "an odd status", "58 a huge header"])
async def test_redirects_and_odd_heads_do_not_pass_through_either(serve: Serve, name: str) -> None:
    says = WRONG[name]
    async with serve(lambda _: says, route={"mode": "off"}) as g:
        answer = await g.ask(chat())
        assert_error(answer, stream=False)
        assert "location" not in answer.headers


async def test_a_stream_where_json_was_asked_for_passes_as_it_came(serve: Serve) -> None:
    says = replace(SAYS, faults=(Fault(force="sse"),))
    async with serve(says, route={"mode": "off"}) as g:
        answer = await g.ask(chat())
        assert answer.text == "It is four"


def frames(*bodies: Any) -> Script:
    return Script(pieces=(*(b"data: " + json.dumps(b).encode() + b"\n\n" for b in bodies), b"data: [DONE]\n\n"))


def one(delta: dict[str, Any], finish: str | None = None, index: int = 0, **top: Any) -> dict[str, Any]:
    return {"id": "a", "model": "m", "choices": [{"index": index, "delta": delta, "finish_reason": finish}]} | top


def report_of(usage: Any) -> Script:
    return frames(one({"content": "ok"}), one({}, "stop", usage=usage))


ODD: dict[str, Script] = {
    "53 empty choices": frames({"choices": []}, one({"content": "ok"}), {"choices": []}, one({}, "stop")),
    "53 no index": frames(
        {"choices": [{"delta": {"content": "ok"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}
    ),
    "54 other id and model": frames(one({"content": "o"}), one({"content": "k"}, id="b", model="n"), one({}, "stop")),
    "55 negative usage": report_of({"prompt_tokens": -3, "completion_tokens": -1}),
    "55 absurd usage": report_of({"prompt_tokens": 10**30, "completion_tokens": "many"}),
    "55 usage is a list": report_of([1, 2]),
    "56 comments and ids": Script(pieces=(b": a\n\n", b"id: 7\nretry: 1\n\n", *report_of(None).pieces)),
    "numbers for text": frames(one({"content": "ok", "reasoning": None, "role": 7}), one({}, "stop", created="now")),
    "delta null": frames({"choices": [{"index": 0, "delta": None}]}, one({"content": "ok"}), one({}, "stop")),
    "52 many empty deltas": Script(pieces=(frames(*[one({})] * 20_000).body[:-14] + report_of(None).body,)),
}


@pytest.mark.slow(keep=7)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ODD)
async def test_odd_chunks_are_no_reason_to_fail(serve: Serve, name: str, mode: str) -> None:
    async with serve(ODD[name], route=ROUTE | {"mode": mode}) as g:
        for stream in (True, False):
            answer = await g.ask(chat(stream=stream))
            assert (answer.status, answer.text, answer.finish) == (200, "ok", "stop")
        for result in await g.episodes(2):
            usage = result.episode.outcome.usage
            assert usage is not None
            assert 0 <= usage.prompt_tokens < 2**53
            assert 0 <= usage.completion_tokens < 2**53


@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_silence_beyond_the_limit_is_a_timeout(serve: Serve, mode: str) -> None:
    says, limits = (
        replace(SAYS, faults=(Fault(stall_after=2, stall_s=60.0),)),
        {"idle_timeout_s": 1.0, "first_byte_timeout_s": 1.0},
    )
    async with serve(says, upstream=limits, route={"mode": mode}) as g:
        streamed, body = await g.ask(chat(stream=True)), await g.ask(chat())
        assert_error(streamed, stream=True)
        assert streamed.errors[0]["code"] == "upstream_timeout"
        assert_error(body, stream=False, code_number=504)
        assert body.json["error"]["code"] == "upstream_timeout"
        assert {e.episode.outcome.end_reason for e in await g.episodes(2)} == {"timeout"}
        await g.quiet()
        assert all(call.cancelled for call in g.fake.calls)


@pytest.mark.parametrize("mode", ["off", "observe"])
async def test_an_upstream_that_is_not_there_is_a_502(serve: Serve, mode: str) -> None:
    async with serve(upstream={"url": "http://127.0.0.1:9"}, route={"mode": mode}) as g:
        for stream in (True, False):
            answer = await g.ask(chat(stream=stream))
            assert answer.status == 502
            assert answer.json["error"]["code"] == "upstream_down"
            assert "127.0.0.1" not in answer.json["error"]["message"]
        assert {e.episode.outcome.end_reason for e in await g.episodes(2)} == {"upstream_error"}


async def test_a_silent_stream_is_kept_alive_by_comments_and_stays_whole(serve: Serve) -> None:
    says = replace(SAYS, first_delay_s=0.25, faults=(Fault(stall_after=3, stall_s=0.25),))
    async with serve(says, server={"ping_s": 0.05}) as g:
        answer = await g.ask(chat(stream=True))
        assert answer.raw.count(b": ping\n\n") >= 4
        assert (answer.text, answer.thought, answer.done) == ("It is four", "so it is\nthen ", True)
        plain = await g.ask(chat())
        assert plain.text == "It is four"
        assert b"ping" not in plain.raw
