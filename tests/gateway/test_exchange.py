"""One exchange: whoever leaves, fails or is cancelled, the work has ended when its books are closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, MutableMapping
from typing import Any

import pytest

from suffice.gateway.exchange import HANG_UP, WRITE_NOW, Exchange, supervise


class Client:
    """The server's side of ASGI: what was sent, and a client that stays until it is told to leave."""

    def __init__(self) -> None:
        self.sent: list[MutableMapping[str, Any]] = []
        self._callbacks: set[Callable[[], None]] = set()

    def subscribe(self, gone: Callable[[], None]) -> Callable[[], object]:
        self._callbacks.add(gone)
        return lambda: self._callbacks.discard(gone)

    def leave(self) -> None:
        for gone in tuple(self._callbacks):
            gone()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        self.sent.append(message)

    async def receive(self) -> MutableMapping[str, Any]:
        raise AssertionError("nothing reads the body")

    def exchange(self) -> Exchange:
        extensions = {HANG_UP: self.subscribe, WRITE_NOW: lambda _: False}
        scope = {"type": "http", "headers": [], "extensions": extensions}
        exchange = Exchange(scope, self.receive, self.send, time.monotonic)
        exchange.own_headers.append(("x-own", "1"))
        return exchange


class Work:
    """Something that takes its time, and longer to clean up."""

    def __init__(self, *, fails: Exception | None = None) -> None:
        self.started, self.cleaned, self._fails = asyncio.Event(), False, fails

    async def run(self) -> None:
        self.started.set()
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0.02)
            self.cleaned = True
            if self._fails is not None:
                raise self._fails


async def done() -> None:
    await asyncio.sleep(0)


async def test_finished_work_is_no_departure() -> None:
    client = Client()
    assert await supervise(done(), client.exchange()) is False


@pytest.mark.parametrize("fails", [None, RuntimeError("on the way out")])
async def test_a_client_that_leaves_ends_the_work_and_nobody_asks_how(fails: Exception | None) -> None:
    client, work = Client(), Work(fails=fails)
    watched = asyncio.create_task(supervise(work.run(), client.exchange()))
    await work.started.wait()
    client.leave()
    assert await watched is True
    assert work.cleaned


async def test_a_client_that_leaves_after_its_answer_ends_nothing() -> None:
    client = Client()
    exchange = client.exchange()

    async def work() -> None:
        await exchange.json(200, b"{}")
        client.leave()
        await asyncio.sleep(0.02)

    assert await supervise(work(), exchange) is False


async def test_when_the_server_goes_down_the_work_is_cleaned_up_first() -> None:
    client, work = Client(), Work()
    watched = asyncio.create_task(supervise(work.run(), client.exchange()))
    await work.started.wait()
    watched.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watched
    assert work.cleaned


async def test_work_that_is_cancelled_by_itself_is_a_failure_not_an_end() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    client = Client()
    with pytest.raises(RuntimeError, match="although nobody ended it"):
        await supervise(work(), client.exchange())


async def test_what_no_server_may_send_is_left_out() -> None:
    client = Client()
    await client.exchange().start(200, [("X-Bad", "a\x00b"), ("X-Odd", "\udcff"), ("X-OWN", "theirs"), ("x-good", "c")])
    assert client.sent[0]["headers"][:3] == [(b"x-odd", b"?"), (b"x-good", b"c"), (b"x-own", b"1")]


async def test_a_failure_is_told_once_and_in_the_form_that_fits() -> None:
    before, during, plain = Client(), Client(), Client()
    await before.exchange().fail(502, "no", "c")
    assert [m["type"] for m in before.sent] == ["http.response.start", "http.response.body"]
    assert before.sent[0]["status"] == 502

    exchange = during.exchange()
    await exchange.start(200, [], events=True)
    await exchange.fail(502, "no", "c")
    await exchange.fail(502, "again", "c")
    assert [m["body"].count(b"data: ") for m in during.sent[1:]] == [1]
    assert during.sent[-1]["more_body"] is False

    exchange = plain.exchange()
    await exchange.start(200, [])
    await exchange.fail(502, "no", "c")
    assert len(plain.sent) == 1  # left incomplete: the server cuts the connection
