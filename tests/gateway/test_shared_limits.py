"""Limits of keys hold over several gateways: rates by reservations, budgets by what the others have logged."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from pathlib import Path

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import StoreError
from suffice.gateway.auth import Caller
from suffice.gateway.clients import RESERVED_S, KeyLimitError, KeyLimits, reserve
from suffice.server import serve_in_loop
from suffice.settings import Key, Store, parse_settings
from suffice.store.database.notes import Notes
from suffice.store.database.writer import LogWriter
from suffice.wiring.replicas import LimitExchange
from suffice_testing import FakeUpstream, Reply
from tests.postgres import empty_log

NOON_S = 1_764_331_200.0
PERMITS = Key(key_env="K", requests_per_minute=60, concurrency=10, tokens_per_day=1_000)
CALLER = Caller(id="c", name="team", permits=PERMITS)
PERMITTED = {"c": PERMITS}


def is_admitted(limits: KeyLimits, now_s: float = 0.0, *, leaves: bool = True) -> bool:
    try:
        limits.enter(CALLER, spends=True, now_s=now_s, wall_s=NOON_S)
    except KeyLimitError:
        return False
    if leaves:
        limits.leave(CALLER)
    return True


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 2)), max_size=300),
    st.integers(1, 40),
)
def test_no_minute_has_more_than_the_limit_whoever_admits_and_reserves_when(
    steps: list[tuple[int, bool, float]], limit: int
) -> None:
    """Each step one of four gateways reserves, or is offered requests, as time goes on."""
    permits = Key(key_env="K", requests_per_minute=limit)
    caller, held = replace(CALLER, permits=permits), list[dict[str, tuple[int, int]]]([{}, {}, {}, {}])
    gateways, begun, now_s = [KeyLimits([caller]) for _ in range(4)], list[float](), 0.0

    def renew(which: int) -> None:
        own = gateways[which].traffic(now_s=now_s)
        held[which] = reserve(own, [one for at, one in enumerate(held) if at != which], {"c": permits})
        gateways[which].hold(held[which], n_gateways=4, now_s=now_s)

    for which in range(4):
        renew(which)
    for which, reserves, wait_s in steps:
        now_s += wait_s
        if reserves:
            for each in range(4):  # nobody is older than a reservation may be
                renew((which + each) % 4)
        for _ in range(0 if reserves else 5):
            try:
                gateways[which].enter(caller, spends=True, now_s=now_s, wall_s=NOON_S)
                begun.append(now_s)
            except KeyLimitError:
                pass
        if now_s - gateways[which]._reserved_s <= RESERVED_S:
            assert sum(now_s - one < 60 for one in begun) <= limit


def test_one_busy_gateway_gets_nearly_everything_when_the_others_are_idle() -> None:
    busy, idle = KeyLimits([CALLER]), [KeyLimits([CALLER]) for _ in range(3)]
    held = [dict[str, tuple[int, int]]()] * 4
    n = 0
    for now_s in range(30):
        for at, one in enumerate([busy, *idle]):
            own = one.traffic(now_s=now_s)
            held[at] = reserve(own, [*held[:at], *held[at + 1 :]], PERMITTED)
            one.hold(held[at], n_gateways=4, now_s=now_s)
        n += sum(is_admitted(busy, now_s) for _ in range(100))
        assert now_s or n == 15, "a quarter of 60 at first"
    assert 56 <= n <= 60, n


def test_a_gateway_that_cannot_reserve_keeps_to_its_part_and_one_alone_has_everything() -> None:
    alone, cut_off = KeyLimits([CALLER]), KeyLimits([CALLER])
    assert sum(is_admitted(alone) for _ in range(100)) == 60
    cut_off.hold({"c": (1, 1)}, n_gateways=3, now_s=0.0)
    assert sum(is_admitted(cut_off, 1.0) for _ in range(100)) == 1
    assert sum(is_admitted(cut_off, 1.0 + RESERVED_S) for _ in range(100)) == 19


# --------------------------------------------------------------------------- three gateways on one PostgreSQL


@pytest.fixture
def store() -> Iterator[Store]:
    with empty_log() as made:
        yield made


class Gateway:
    """What a gateway does about limits, at a clock of the test's."""

    def __init__(self, log: LogWriter) -> None:
        self.limits, self.log, self.now_s = KeyLimits([CALLER]), log, 0.0
        self.exchange = LimitExchange(self.limits, log, 0, lambda: self.now_s)

    def share(self) -> None:
        asyncio.run(self.exchange.share())

    def spend(self, n_tokens: int) -> None:
        self.limits.spend("c", n_tokens, wall_s=NOON_S)
        for used in self.limits.take_unwritten():
            self.log.append(replace(used, usage_id=f"{id(self)}-{time.monotonic_ns()}"))
        assert self.log.drain(10)


@pytest.fixture
def three(store: Store) -> Iterator[list[Gateway]]:
    with ExitStack() as stack:
        logs = [LogWriter(store, now=time.time) for _ in range(3)]
        for log in logs:
            stack.callback(log.close)
        yield [Gateway(log) for log in logs]


def test_a_burst_at_three_gateways_is_one_limit(three: list[Gateway]) -> None:
    for one in three:
        one.share()
    n = sum(is_admitted(one.limits) for _ in range(100) for one in three)
    for _, one in itertools.product(range(8), three):
        one.share()
        n += sum(is_admitted(one.limits) for _ in range(100))
    assert n == 60, "each of the three would have admitted 60"
    for one in three:
        one.now_s = 100.0
        one.share()
    n_live = sum(is_admitted(one.limits, 100.0, leaves=False) for one in three for _ in range(20))
    assert n_live <= 10


def test_a_budget_is_spent_once_and_known_to_all(three: list[Gateway]) -> None:
    first, second, _ = three
    first.spend(600)
    second.share()
    assert is_admitted(second.limits), "600 of 1,000"
    second.spend(400)
    for one in three:
        one.now_s = 100.0
        one.share()
    assert [one.limits._uses["c"].n_tokens for one in three] == [1_000] * 3
    assert not any(is_admitted(one.limits, 100.0) for one in three)


def test_without_the_database_each_gateway_goes_on_with_its_part(
    three: list[Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in [*three, *three]:  # the first one was alone at first
        one.share()

    def away(*_: object, **__: object) -> None:
        raise StoreError("away")

    monkeypatch.setattr(Notes, "exchange", away)
    with pytest.raises(StoreError):
        three[0].share()
    later_s = 2 * RESERVED_S
    random.Random(1).shuffle(three)
    assert sum(is_admitted(one.limits, later_s) for one in three for _ in range(100)) == 60


@pytest.mark.slow
async def test_three_gateways_admit_what_one_may_and_know_each_others_spending(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUFFICE_SALT", "one secret for all replicas")
    monkeypatch.setenv("FEW_KEY", "few")
    monkeypatch.setenv("POOR_KEY", "poor")
    keys = {
        "few": {"key_env": "FEW_KEY", "requests_per_minute": 12},
        "poor": {"key_env": "POOR_KEY", "tokens_per_day": 10},
    }
    async with AsyncExitStack() as stack:
        fake = stack.enter_context(FakeUpstream.in_thread(Reply(answer=("fine",))))
        urls = list[str]()
        for number in range(3):
            tables = {"url": store.url, "schema_name": store.schema_name, "local_files": str(tmp_path / f"g{number}")}
            raw = {"upstreams": {"up": {"url": fake.url}}, "routes": {"r": {"upstream": "up"}}, "store": tables}
            urls.append(await stack.enter_async_context(serve_in_loop(parse_settings(raw | {"keys": keys}))))
        session = await stack.enter_async_context(aiohttp.ClientSession())

        async def ask(url: str, key: str) -> int:
            body = {"model": "m", "messages": [{"role": "user", "content": f"{key} {random.random()}"}]}
            headers = {"authorization": f"Bearer {key}"}
            async with session.post(f"{url}/v1/chat/completions", json=body, headers=headers) as got:
                return got.status

        await asyncio.sleep(2.5)  # the first one was alone when it reserved
        began_s, report = time.monotonic(), list[int]()
        while time.monotonic() - began_s < 10:
            report += await asyncio.gather(*(ask(url, "few") for url in urls for _ in range(5)))
            await asyncio.sleep(0.5)
        assert set(report) == {200, 429}
        assert 9 <= report.count(200) <= 12 + 3, "what is admitted while an exchange runs may come on top"
        assert await ask(urls[0], "poor") == 200
        for _ in range(40):
            await asyncio.sleep(0.5)
            if await ask(urls[1], "poor") == 429:
                break
        assert await ask(urls[1], "poor") == 429, "the other gateway's call spent it"
