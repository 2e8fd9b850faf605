"""A request leaves no reference cycles: they would wait for a full collection, which comes after thousands of requests.

A gateway's memory then grows for an hour, by all that the requests since the last one had held.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from suffice_testing import Answerer, Fault, Reply, Samples
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat

N_REQUESTS = 5
THOUGHT = Reply(reasoning=tuple(f"so it is {n}\n" for n in range(20)), answer=("4",))
STOPPED = {"scorer": "number", "policy": {"policy": "stable-answer", "streak": 3}, "probe": {}, "uncertified": True}
ROUTES: dict[str, tuple[dict[str, Any], Answerer | Reply]] = {
    "off": ({"mode": "off"}, THOUGHT),
    "observe": ({"mode": "observe"}, THOUGHT),
    "enforce": ({"mode": "enforce", "steps": {"min_tokens": 3, "growth": 1.0}, **STOPPED}, THOUGHT),
    "samples": ({"kind": "samples", "samples": 3, "wave": 1, "scorer": "number"}, Samples(["it is 4"])),
    "refused": ({"mode": "observe"}, Reply(faults=(Fault(status=500),))),
    "torn": ({"mode": "observe"}, Reply(reasoning=THOUGHT.reasoning, faults=(Fault(die_after=5),))),
}
Ask = Callable[[Served, str], Awaitable[object]]


@contextmanager
def garbage() -> Iterator[Counter[str]]:
    """Count by class, of ours and of the HTTP server, what only the collector frees of what the block leaves behind."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    result = Counter[str]()
    try:
        yield result
        gc.collect()
        names = (f"{type(one).__module__}.{type(one).__qualname__}" for one in gc.garbage)
        result.update(name for name in names if name.startswith(("suffice.", "uvicorn.")))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


async def of_requests(gw: Served, ask: Ask) -> Counter[str]:
    """Requests behind the first are looked at: what is built once does not count."""
    with garbage() as result:
        for n in range(-2, N_REQUESTS):
            if not n:
                gc.collect()
                gc.garbage.clear()
            await ask(gw, f"how much is {n}?")
            await gw.quiet()
        await asyncio.sleep(0.05)
    return result


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("name", ROUTES)
async def test_a_chat_request_leaves_no_cycles(serve: Serve, name: str, stream: bool) -> None:
    route, replies = ROUTES[name]
    async with serve(replies, route=route) as gw:
        assert not await of_requests(gw, lambda gw, text: gw.ask(chat(text, stream=stream)))


async def hang_up(gw: Served, text: str) -> None:
    async with gw.session.post(f"{gw.url}/v1/chat/completions", json=chat(text, stream=True)) as reply:
        await reply.content.readany()
        reply.close()


async def rate(gw: Served, text: str) -> None:
    answer = await gw.ask(chat(text))
    body = {"feedback_id": text, "episode_id": answer.headers["x-suffice-episode-id"], "rating": 4, "source": "user"}
    async with gw.session.post(f"{gw.url}/v1/feedback", json=body) as reply:
        assert reply.status == 200, await reply.text()


async def responses(gw: Served, text: str) -> None:
    async with gw.session.post(f"{gw.url}/v1/responses", json={"model": "m", "input": text, "stream": True}) as reply:
        assert reply.status == 200, await reply.text()
        await reply.read()


async def messages(gw: Served, text: str) -> None:
    body = {"max_tokens": 100, **chat(text, stream=True)}
    async with gw.session.post(f"{gw.url}/v1/messages", json=body) as reply:
        assert reply.status == 200, await reply.text()
        await reply.read()


async def malformed(gw: Served, _: str) -> None:
    assert (await gw.ask(b"{")).status == 400


async def metrics(gw: Served, _: str) -> None:
    async with gw.session.get(f"{gw.url}/metrics") as reply:
        await reply.read()


@pytest.mark.parametrize("ask", [hang_up, rate, responses, messages, malformed, metrics])
async def test_neither_does_any_other(serve: Serve, ask: Ask) -> None:
    slow = Reply(reasoning=THOUGHT.reasoning, answer=("4",), delay_s=0.002)
    async with serve(slow, route={"mode": "observe"}) as gw:
        assert not await of_requests(gw, ask)


def test_a_cycle_is_found() -> None:
    def leave_one() -> None:
        one = Served("", *[None] * 4)  # type: ignore[arg-type]
        one.session = one  # type: ignore[assignment]

    with garbage() as result:
        leave_one()
    assert not result  # of the tests' own
    served = type("Served", (), {"__module__": "suffice.made_up"})
    with garbage() as result:
        one = served()
        one.itself = one
        del one
    assert result == {"suffice.made_up.Served": 1}
