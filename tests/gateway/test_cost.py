"""What a relayed chunk may cost, in things that can be counted: writes, tasks, calls, parsed chunks, CPU time.

No clock on the wall takes part. CPU time is compared with a bare relay in the same process, with a
bound that only a slip by a factor can break; `bench/cost.py` measures the figures themselves.
"""

from __future__ import annotations

import asyncio
import cProfile
import json
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from suffice.episode.apis.events import CHAT, ApiFormat
from suffice.episode.apis.messages import MESSAGES
from suffice.episode.apis.responses import RESPONSES
from suffice.episode.chain_reader import ChainReader, Segmenter
from suffice.episode.ledger import CallAccount, Ledger
from suffice.episode.stream_relay import ClientView, Delivery, ReasoningRun, StreamRelay
from suffice.gateway.exchange import HANG_UP, WRITE_NOW, BodyDelivery, Exchange, StreamDelivery
from suffice.scoring.base import build_scorer
from suffice.settings import Steps
from suffice.types import Request
from suffice.upstream.wire import DONE, encode_frame
from suffice_testing import Reply
from suffice_testing.prompt import cut
from tests.gateway.conftest import Serve
from tests.gateway.served import chat
from tests.records import plain_request

N_CHUNKS = 2_000
POLICY = {"policy": "stable-answer", "streak": 1_000, "no_hedges": True}
MODES: list[dict[str, Any]] = [
    {"mode": "off"},
    {"mode": "observe", "policy": POLICY},
    {"mode": "enforce", "uncertified": True, "policy": POLICY},
]


def frames(n: int, answer: Mapping[str, Any] = {"content": " 4"}, **top: Any) -> list[bytes]:
    """A stream of about 300 bytes a chunk: mostly thought, some answer."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m" * 120, **top}
    output = [{"reasoning_content": " so"}] * (n * 8 // 10) + [answer] * (n * 2 // 10)
    body = [encode_frame(head | {"choices": [{"index": 0, "delta": d, "finish_reason": None}]}) for d in output]
    last = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    return [*body, encode_frame(head | last), DONE]


@dataclass(frozen=True, slots=True)
class Calls:
    """Function calls of one relay."""

    in_all: int
    parsed: int  # chunks that were decoded


class Upstream:
    """A call whose bytes are here already, `per_read` frames at a time."""

    status, content_type, is_encoded, at_end = 200, "text/event-stream", False, False
    headers: tuple[tuple[str, str], ...] = (("content-type", "text/event-stream"),)

    def __init__(self, frames: list[bytes], per_read: int) -> None:
        self.reads = [b"".join(frames[at : at + per_read]) for at in range(0, len(frames), per_read)]
        self.n_reads = len(self.reads)
        self._left = iter(self.reads)

    async def read(self, at_once: Callable[[bytes], bool] | None = None) -> bytes:
        """The next read, or the first one that is not taken where it arrives."""
        return next((data for data in self._left if at_once is None or not at_once(data)), b"")

    async def settle(self) -> None:
        """Nothing is left."""

    def close(self) -> None:
        """Nothing is open."""


class Client:
    """Where the gateway writes to."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            self.bodies.append(message["body"])

    def write_now(self, data: bytes) -> bool:
        self.bodies.append(data)
        return True


def request() -> Request:
    return plain_request("e", stream=True)


def named(event: dict[str, Any]) -> bytes:
    return b"event: %b\n" % event["type"].encode() + encode_frame(event)


def messages(n: int) -> list[bytes]:
    """The same stream in Anthropic's Messages."""
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {"id": "msg_1", "model": "m"}}]
    for index, (name, n_deltas) in enumerate((("thinking", n * 8 // 10), ("text", n * 2 // 10))):
        events.append({"type": "content_block_start", "index": index, "content_block": {"type": name, name: ""}})
        delta = {"type": f"{name}_delta", name: " so"}
        events += [{"type": "content_block_delta", "index": index, "delta": delta}] * n_deltas
        events.append({"type": "content_block_stop", "index": index})
    events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": n}})
    return [named(event) for event in [*events, {"type": "message_stop"}]]


def responses(n: int) -> list[bytes]:
    """The same stream in OpenAI's Responses, whose events are numbered."""
    events: list[dict[str, Any]] = [{"type": "response.created", "response": {"id": "resp_1", "model": "m"}}]
    for index, (kind, n_deltas) in enumerate((("reasoning", n * 8 // 10), ("output", n * 2 // 10))):
        item = {"id": f"item_{index}", "type": "reasoning" if kind == "reasoning" else "message"}
        events.append({"type": "response.output_item.added", "output_index": index, "item": item})
        delta = {"type": f"response.{kind}_text.delta", "item_id": item["id"], "delta": " so"}
        events += [delta] * n_deltas
        events.append({"type": "response.output_item.done", "output_index": index, "item": item})
    events.append({"type": "response.completed", "response": {"id": "resp_1", "model": "m", "status": "completed"}})
    return [named(event | {"sequence_number": number}) for number, event in enumerate(events)]


CALL = {"tool_calls": [{"index": 0, "function": {"arguments": " 4"}}]}
FORMS: dict[str, tuple[ApiFormat, Callable[[int], list[bytes]]]] = {
    "chat": (CHAT, frames),
    "tools": (CHAT, partial(frames, answer=CALL)),
    "messages": (MESSAGES, messages),
    "responses": (RESPONSES, responses),
}


async def governed(call: Upstream, client: Client, *, streams: bool = True, api: ApiFormat = CHAT) -> ReasoningRun:
    """Relay it all through a watched run, as `gateway/chat.py` does without its probes."""
    scope = {"headers": [], "extensions": {HANG_UP: None, WRITE_NOW: client.write_now}}
    exchange = Exchange(scope, asyncio.Event().wait, client.send, time.monotonic)  # type: ignore[arg-type]
    exchange.status = 200 if streams else 0
    events = api.new_events(is_body=not streams)
    delivery: Delivery = StreamDelivery(exchange) if streams else BodyDelivery(exchange, 200, (), events)
    reader = ChainReader(
        CallAccount("main"),
        Ledger(request(), 0.0),
        segmenter=Segmenter(Steps()),
        scorer=build_scorer("number"),
        tags=("<think>", "</think>"),
    )
    view = ClientView(usage=not streams or events.is_native, object=False, joined=True, events=events)
    run = ReasoningRun(StreamRelay(call, reader, delivery, view))  # type: ignore[arg-type]
    async for _ in run.steps():
        pass
    return run


async def bare(call: Upstream, client: Client) -> None:
    """What a relay cannot do without."""
    while data := await call.read():
        await client.send({"type": "http.response.body", "body": data, "more_body": True})


async def cpu_s(relay: Callable[[Upstream, Client], Awaitable[Any]], per_read: int) -> float:
    """The least CPU time of three relays of one stream."""
    result = []
    for _ in range(3):
        call, client = Upstream(frames(N_CHUNKS), per_read), Client()
        start = time.process_time()
        await relay(call, client)
        result.append(time.process_time() - start)
        assert b"".join(client.bodies) == b"".join(call.reads)
    return min(result)


@pytest.mark.parametrize("per_read", [1, 7])
async def test_a_read_is_one_write(per_read: int) -> None:
    call, client = Upstream(frames(200), per_read), Client()
    run = await governed(call, client)
    assert len(client.bodies) == call.n_reads
    assert run.reader.account.received_tokens == 200
    assert run.reader.account.reasoning_tokens == 160


async def calls_of(relay: Callable[[Upstream, Client], Awaitable[Any]], call: Upstream, client: Client) -> Calls:
    """How often each function is called while a stream is relayed; the same on every machine."""
    profile = cProfile.Profile()
    with profile:
        await relay(call, client)
    entries = profile.getstats()
    return Calls(
        in_all=sum(e.callcount for e in entries),
        parsed=sum(e.callcount for e in entries if "code object decode_chunk " in str(e.code)),
    )


@pytest.mark.parametrize("usage", [False, True], ids=["plain", "empty usage"])
async def test_repeated_chunks_are_not_parsed_again(usage: bool) -> None:
    """Of two thousand chunks hardly any is decoded, also where the upstream's empty usage is taken out."""
    client = Client()
    call = Upstream(frames(N_CHUNKS, usage=None) if usage else frames(N_CHUNKS), 4)
    assert (await calls_of(governed, call, client)).parsed < 20
    sent = b"".join(client.bodies)
    assert sent.count(b"data: ") == N_CHUNKS + 2
    assert (b"usage" in sent) is False
    assert all(json.loads(f[6:]) for f in sent.split(b"\n\n") if f and f[6:] != b"[DONE]")


@pytest.mark.parametrize(("per_read", "at_most"), [(1, 26), (16, 9)])
async def test_a_chunk_costs_few_calls(per_read: int, at_most: float) -> None:
    """Function calls a chunk, awaits and built-ins included."""
    made = await calls_of(governed, Upstream(frames(N_CHUNKS), per_read), Client())
    print(f"{made.in_all / N_CHUNKS:.1f} calls a chunk, {per_read} a read")
    assert made.in_all / N_CHUNKS <= at_most


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize("form", ["messages", "responses", "tools"])
async def test_another_form_costs_as_many_calls_as_a_chat(form: str, streams: bool) -> None:
    made = dict[str, int]()
    for name in ("chat", form):
        api, write = FORMS[name]
        call, client = Upstream(write(N_CHUNKS), 1), Client()
        made[name] = (await calls_of(partial(governed, streams=streams, api=api), call, client)).in_all
        assert not streams or b"".join(client.bodies) == b"".join(call.reads)
    print({name: round(n / N_CHUNKS, 1) for name, n in made.items()})
    most = 1.1 if sys.version_info >= (3, 12) else 1.15  # a comprehension was a call before
    assert made[form] <= most * made["chat"]


async def test_an_answer_in_one_body_costs_little_more_than_a_stream() -> None:
    """Its chunks are put together by their texts: hardly any is parsed, whatever the client asked for."""
    call = Upstream(frames(200), 1)
    whole = await calls_of(partial(governed, streams=False), call, Client())
    streamed = await calls_of(governed, Upstream(frames(200), 1), Client())
    assert whole.parsed < 20
    assert whole.in_all <= 1.5 * streamed.in_all


async def test_a_watched_relay_costs_microseconds_a_chunk() -> None:
    """Each chunk a read of its own: what is added to a bare loop stays far below a socket's read and write."""
    watched, least = await cpu_s(governed, 1), await cpu_s(bare, 1)
    added_us = (watched - least) / N_CHUNKS * 1e6
    print(f"added: {added_us:.1f} us a chunk; a bare loop: {least / N_CHUNKS * 1e6:.1f} us")
    assert added_us < 30


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("route", MODES, ids=lambda r: str(r["mode"]))
async def test_a_chunk_wakes_nobody_but_the_client(serve: Serve, route: dict[str, Any]) -> None:
    """A chunk is passed on where it arrives: no task runs for it, whatever the route is asked to look for."""
    says = Reply(reasoning=cut("so it goes " * 200), answer=cut("The answer is 4."), delay_s=0.001)
    async with serve(says, route=route | {"steps": {"min_tokens": 10_000, "max_tokens": 10_000}}) as g:
        profile = cProfile.Profile()
        with profile:
            assert (await g.ask(chat(stream=True))).done
    codes = [(e.callcount, str(e.code)) for e in profile.getstats()]
    resumed = [n for n, code in codes if "code object read " in code and "upstream/client" in code]
    assert 0 < sum(resumed) < 100, "of more than six hundred chunks"


@pytest.mark.parametrize("route", MODES, ids=lambda r: str(r["mode"]))
async def test_a_stream_costs_a_fixed_number_of_tasks(serve: Serve, route: dict[str, Any]) -> None:
    """As many for a long stream as for a short one: none a read, none a chunk."""
    made: list[int] = []
    loop = asyncio.get_running_loop()

    def counting(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **more: Any) -> asyncio.Task[Any]:
        made[-1] += 1
        return asyncio.Task(work, loop=loop, **more)

    for n_words in (20, 400):
        says = Reply(reasoning=cut("so it goes " * n_words), answer=cut("The answer is 4."))
        async with serve(says, route=route | {"steps": {"min_tokens": 10_000, "max_tokens": 10_000}}) as g:
            await g.ask(chat(stream=True))
            made.append(0)
            loop.set_task_factory(counting)  # type: ignore[arg-type]
            try:
                assert (await g.ask(chat(stream=True))).done
                await g.quiet()
            finally:
                loop.set_task_factory(None)
    assert made[1] <= made[0] + 12, made  # the fake's own tasks and the test's waiting are among them
