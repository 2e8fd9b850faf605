"""Whatever a gateway remembers of its requests has a bound: what grows with them is named here, with the bound."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any

import pytest

from suffice.assurance.guarantee import WINDOW_RUNS
from suffice.assurance.money import WINDOW_RUNS as MONEY_RUNS
from suffice.gateway.auth import MOST_DELIVERIES, MOST_ENTRIES
from suffice.gateway.context import MOST_RECALLED, GatewayState
from suffice.gateway.kept_responses import MOST_KEPT_BYTES
from suffice.gateway.load_control import LATENCY_RUNS
from suffice_testing import Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat

N_REQUESTS = 12
Ask = Callable[[Served, str], Awaitable[None]]
KNOWN = {  # with its most entries
    "DeliveryMemory._known": MOST_DELIVERIES,
    "RunLengths._recent": MONEY_RUNS,
    "RouteStatistics.extracted": WINDOW_RUNS,
    "RouteLoad._ended": LATENCY_RUNS,
    "LogSampler._recent": MOST_RECALLED,
    "LogSampler._answered": MOST_RECALLED,
    "KeptResponses._kept": MOST_KEPT_BYTES,  # each takes more than a byte
    "Objects._recent": MOST_ENTRIES,
}


def attributes(one: object) -> Iterator[tuple[str, object]]:
    slots = (name for kind in type(one).__mro__ for name in getattr(kind, "__slots__", ()))
    for name in {*slots, *getattr(one, "__dict__", {})}:
        if hasattr(one, name):
            yield name, getattr(one, name)


def sizes(state: GatewayState) -> Counter[str]:
    """Entries of every container that our objects hold, by class and attribute, those inside of containers too."""
    result, seen, waiting = Counter[str](), set[int](), deque[tuple[str, object]]([("", state)])
    while waiting:
        name, one = waiting.popleft()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, dict | list | set | deque):
            result[name] += len(one)
            inner = [*one, *one.values()] if isinstance(one, Mapping) else list(one)
            waiting += [(name, each) for each in inner]
        elif isinstance(one, tuple):
            waiting += [(name, each) for each in one]
        elif type(one).__module__.startswith("suffice."):
            waiting += [(f"{type(one).__name__}.{attribute}", each) for attribute, each in attributes(one)]
    return result


async def ask_chat(gw: Served, text: str) -> None:
    assert (await gw.ask(chat(text, stream=True))).done


async def ask_responses(gw: Served, text: str) -> None:
    async with gw.session.post(f"{gw.url}/v1/responses", json={"model": "m", "input": text}) as reply:
        assert reply.status == 200, await reply.text()


async def grown(gw: Served, ask: Ask) -> set[str]:
    """What has more entries after twice as many requests again, each of another question."""

    async def more(numbers: range) -> Counter[str]:
        for n in numbers:
            await ask(gw, f"how much is {n}?")
            await gw.quiet()
        return sizes(gw.gateway)

    before, after = await more(range(N_REQUESTS)), await more(range(N_REQUESTS, 3 * N_REQUESTS))
    return {name for name in after if after[name] >= before[name] + N_REQUESTS}


ENFORCED = {"mode": "enforce", "uncertified": True, "policy": {"policy": "stable-answer"}, "sample_rate": 0.001}


@pytest.mark.parametrize("ask", [ask_chat, ask_responses])
@pytest.mark.parametrize("route", [{"mode": "observe"}, ENFORCED], ids=["observe", "enforce"])
async def test_what_grows_with_requests_is_known_and_bounded(serve: Serve, route: dict[str, Any], ask: Ask) -> None:
    says = Reply(reasoning=tuple(f"so it is {n}\n" for n in range(8)), answer=("4",))
    async with serve(says, route=route, server={"retry_window_s": 600.0}) as gw:
        names = await grown(gw, ask)
    assert names <= KNOWN.keys(), names - KNOWN.keys()
    assert {"DeliveryMemory._known", "RouteLoad._ended"} <= names, "the walk finds what grows"
