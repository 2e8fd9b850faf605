"""F4 to F7 and F13: clients that leave, one outcome for every end, and no answer in the wrong hands."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from typing import Any

import pytest

from suffice.store.database.views import read_episodes
from suffice_testing import Fault, Reply, ScriptedThought
from tests.fake_models import EchoNonce
from tests.gateway.conftest import Serve
from tests.gateway.served import CHAT, Served, chat
from tests.gateway.test_stop import enforcing, held
from tests.stalls import StallMeter

PROMISED_S = 1.0  # what it takes on a machine of its own: bench/hangup.py
ENDLESS = Reply(reasoning=("so\n", " it\n") * 500, answer=("4",), delay_s=0.005)
SILENT = Reply(reasoning=("so\n",) * 3, answer=("4",), faults=(Fault(stall_after=3, stall_s=20.0),))
MUTE = Reply(faults=(Fault(header_delay_s=20.0),))
SLOW = ScriptedThought([("two and two\n", "3")] * 6, "4", reply=Reply(delay_s=0.02))


class Client:
    """A client of few manners: it asks, reads a little and hangs up."""

    def __init__(self, g: Served) -> None:
        self._port = g.port

    async def ask(self, body: dict[str, Any], *, path: str = CHAT) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        raw = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        head += f"content-length: {len(raw)}\r\n\r\n"
        self._writer.write(head.encode() + raw)
        await self._writer.drain()

    async def read_until(self, mark: bytes) -> None:
        async with asyncio.timeout(20):
            await self._reader.readuntil(mark)

    async def rest(self) -> bytes:
        """What comes until the gateway closes the connection."""
        result = bytearray()
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(20):
                while data := await self._reader.read(65536):
                    result += data
        self.leave()
        return bytes(result)

    def leave(self) -> float:
        self._writer.transport.abort()
        return time.monotonic()


async def wait_for_calls(g: Served, n: int = 1) -> None:
    async with asyncio.timeout(20):
        while len(g.fake.completions) < n:  # noqa: ASYNC110 - the fake has no event for it
            await asyncio.sleep(0.002)


async def assert_all_closed(g: Served, client: Client, n_tasks: int) -> None:
    """When the client leaves, every upstream call is closed within the promised time, and nothing of it is left."""
    async with StallMeter() as stalls:
        left_at_s = client.leave()
        await g.quiet()
    assert all(call.cancelled for call in g.fake.calls if call.closed_at_s and call.closed_at_s > left_at_s)
    assert max(call.closed_at_s or 0.0 for call in g.fake.calls) - left_at_s < PROMISED_S + stalls.total_s
    async with asyncio.timeout(10):
        # The fake has tasks of its own, two for each connection that waits to be used again.
        while sum("/suffice_testing/" not in repr(t) for t in asyncio.all_tasks()) > n_tasks:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


REASONING: dict[str, Any] = {"mode": "observe"}
SAMPLES: dict[str, Any] = {"kind": "samples", "samples": 4, "policy": {"policy": "beta"}}
LEAVING: dict[str, tuple[Any, dict[str, Any], bool, bytes]] = {
    # what the upstream does, the route, stream or not, what the client waits for before it leaves
    "off, mid-stream": (ENDLESS, {"mode": "off"}, True, b'"so'),
    "off, while silent": (SILENT, {"mode": "off"}, True, b'"so'),
    "off, before the first byte": (MUTE, {"mode": "off"}, True, b""),
    "off, no stream": (ENDLESS, {"mode": "off"}, False, b""),
    "observe, mid-stream": (ENDLESS, REASONING, True, b'"so'),
    "observe, while silent": (SILENT, REASONING, True, b'"so'),
    "observe, before the first byte": (MUTE, REASONING, True, b""),
    "observe, no stream": (ENDLESS, REASONING, False, b""),
    "samples, no stream": (ENDLESS, SAMPLES, False, b""),
    "samples, stream": (ENDLESS, SAMPLES, True, b""),
    "samples, before the first byte": (MUTE, SAMPLES, True, b""),
}


@pytest.mark.parametrize("name", LEAVING)
async def test_when_the_client_leaves_the_upstream_is_closed(serve: Serve, name: str) -> None:
    says, route, stream, wait_for = LEAVING[name]
    async with serve(says, route=route) as g:
        n_tasks = len(asyncio.all_tasks())
        client = Client(g)
        await client.ask(chat(stream=stream))
        await wait_for_calls(g, 4 if route is SAMPLES else 1)
        if wait_for:
            await client.read_until(wait_for)
        else:
            await asyncio.sleep(0.05)
        await assert_all_closed(g, client, n_tasks)
        outcome = await g.outcome()
        assert outcome.end_reason == "client_left"
        assert (outcome.status == 200) is bool(wait_for)
        assert all(call.cancelled for call in outcome.calls)
        if says is ENDLESS and wait_for:
            # What was received is on record, as a floor.
            assert outcome.usage is not None
            assert 0 < outcome.usage.completion_tokens <= g.fake.total_completion_tokens


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_leaving_while_a_probe_is_asked_closes_both_calls(serve: Serve, stream: bool) -> None:
    def says(seen: Any) -> Reply:
        return MUTE if seen.is_raw else SLOW(seen)

    route = enforcing(policy={"policy": "never"})
    async with serve(says, upstream={"finish": ["raw"], "slots": 4}, route=route) as g:
        n_tasks = len(asyncio.all_tasks())
        client = Client(g)
        await client.ask(chat(stream=stream))
        await wait_for_calls(g, 2)
        await assert_all_closed(g, client, n_tasks)
        outcome = await g.outcome()
        assert outcome.end_reason == "client_left"
        assert [c.purpose for c in outcome.calls] == ["main", "probe"]


@pytest.mark.parametrize("slots", [1, 3])
async def test_leaving_in_the_middle_of_a_hand_over_closes_everything(serve: Serve, slots: int) -> None:
    original = held()

    def says(seen: Any) -> Reply:
        return MUTE if seen.is_raw and "stop" not in seen.body else original(seen)

    async with serve(says, upstream={"finish": ["raw"], "slots": slots}, route=enforcing()) as g:
        n_tasks = len(asyncio.all_tasks())
        client = Client(g)
        await client.ask(chat(stream=True))
        await wait_for_calls(g, 6)  # the run, four probes, the continuation
        await assert_all_closed(g, client, n_tasks)
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.stopped) == ("client_left", False)


async def test_a_client_that_leaves_while_it_still_sends_is_on_record(serve: Serve) -> None:
    async with serve() as g:
        _, writer = await asyncio.open_connection("127.0.0.1", g.port)
        head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 100"
        writer.write(f"{head}\r\n\r\n{{".encode())
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()
        assert (await g.outcome()).end_reason == "client_left"
        assert g.fake.calls == []


ENDS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "done": (Reply(reasoning=("a\n",), answer=("4",)), {}, "done"),
    "truncated": (Reply(reasoning=("a\n",) * 9, answer=("4",)), {"max_tokens": 3}, "truncated"),
    "upstream error": (Reply(faults=(Fault(status=503),)), {}, "upstream_error"),
    "upstream dies": (Reply(reasoning=("a\n",) * 4, faults=(Fault(die_after=2),)), {}, "upstream_error"),
    "no finish": (Reply(faults=(Fault(finish=False),)), {}, "upstream_error"),
    "rejected": (Reply(), {"stream": "yes"}, "rejected"),
    "passed through": (Reply(), {"n": 2}, "done"),
}


async def test_every_end_leaves_exactly_one_outcome(serve: Serve) -> None:
    replies = {name: reply for name, (reply, _, _) in ENDS.items()}
    expected: Counter[str] = Counter()
    n_each = 6
    async with serve(lambda seen: replies[seen.body["user"]] if "user" in seen.body else ENDLESS) as g:

        async def one(name: str, n: int) -> None:
            _, fields, _ = ENDS[name]
            await g.ask(chat(user=name) | {"stream": n % 2 == 0} | fields)

        await asyncio.gather(*(one(name, n) for name in ENDS for n in range(n_each)))
        for name in ENDS:
            expected[ENDS[name][2]] += n_each
        for _ in range(n_each):
            client = Client(g)
            await client.ask(chat(stream=True))
            await client.read_until(b'"so')
            client.leave()
            expected["client_left"] += 1
        result = await g.episodes(expected.total())
        assert Counter(e.episode.outcome.end_reason for e in result) == expected
        requests = g.gateway.metrics.value("suffice_live_requests")
        assert requests == 0


async def test_all_is_on_disk_when_the_gateway_has_closed(serve: Serve) -> None:
    """Requests that run at the end are cut off, told so, and on record as well."""
    async with serve(ENDLESS) as g:
        client = Client(g)
        await client.ask(chat(stream=True))
        await client.read_until(b'"so')
        database = g.database
    report = await client.rest()
    assert report.count(b'data: {"error"') == 1
    assert b"shutting_down" in report
    assert b"[DONE]" not in report
    assert [e.episode.outcome.end_reason for e in read_episodes(database)] == ["shutdown"]


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("mode", ["observe", "off"])
async def test_no_answer_gets_into_the_wrong_hands(serve: Serve, mode: str) -> None:
    async with serve(EchoNonce(n_reasoning=4, n_answer=4, delay_s=0.001), route={"mode": mode}) as g:
        answers = await asyncio.gather(*(g.ask(chat(f"nonce=n{n}x", stream=n % 3 > 0)) for n in range(200)))
        for n, answer in enumerate(answers):
            nonce = f"n{n}x"
            assert (answer.text, answer.thought) == (f"{nonce} " * 4, f"{nonce} " * 4)
            if n % 3:
                assert {chunk["nonce"] for chunk in answer.chunks} == {nonce}
            else:
                assert answer.json["nonce"] == nonce
        await g.episodes(200)


async def test_no_stop_gets_into_the_wrong_hands(serve: Serve) -> None:
    """Probes and continuations of many requests at once: each thought is continued by its own answer."""

    def says(seen: Any) -> Reply:
        nonce = seen.text.partition("nonce=")[2][:4]
        return ScriptedThought(
            [(f"{nonce} {n}\n", f"7{nonce[1:]}") for n in range(12)], "0", reply=Reply(delay_s=0.004)
        )(seen)

    async with serve(says, upstream={"finish": ["raw"], "slots": 100}, route=enforcing()) as g:
        answers = await asyncio.gather(*(g.ask(chat(f"nonce=n{n:03}", stream=n % 2 > 0)) for n in range(40)))
        stopped = 0
        for n, answer in enumerate(answers):
            assert answer.text in (f"7{n:03}", "0")
            assert set(answer.thought.split()[::2]) == {f"n{n:03}"}
            stopped += answer.report is not None
        assert stopped > 0
        await g.episodes(40)
