"""Replicas that share the deployment's secret draw alike, and one draw counts once."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest

from suffice.control.evidence.run_join import RepeatedDeliveries
from suffice.gateway.auth import DeliveryMemory
from suffice.types import Request
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_audit_assignment import WINDOW_S, DeliveryClient, held, within_bounds
from tests.gateway.test_audit_propensity import ENFORCE, RAW
from tests.records import plain_request


def test_a_retry_finds_the_same_draw_at_every_replica() -> None:
    one, other = DeliveryClient(0.3), DeliveryClient(0.3)
    other.n = 1_000_000  # its episode ids have nothing in common with those of the first
    for n in range(2_000):
        one.now_s = other.now_s = 7.0 * n
        first, second = one.ask(f"q{n}"), other.ask(f"q{n}")
        assert (first.audit, first.propensity, first.unit) == (second.audit, second.propensity, second.unit)


@pytest.mark.parametrize("skew_s", [0.0, 300.0, -300.0])
def test_a_delivery_that_the_log_shows_is_a_repeat_whatever_the_clocks_say(skew_s: float) -> None:
    one, other = DeliveryClient(0.3), DeliveryClient(0.3)
    other.skew_s = skew_s
    for n in range(500):
        one.now_s = other.now_s = 11.0 * n
        first = one.ask(f"q{n}")
        other.memory.note_logged([first], now_s=other.now_s)
        other.now_s += 2.0
        again = other.ask(f"q{n}")
        assert (again.delivery, again.audit, again.unit) == (2, first.audit, first.unit)
        other.now_s += WINDOW_S + 1
        assert other.ask(f"q{n}").delivery == 1
        other.now_s -= WINDOW_S + 3


def test_a_restart_forgets_no_delivery_that_is_in_the_log() -> None:
    before, after = DeliveryClient(0.3), DeliveryClient(0.3)
    firsts = [before.ask(f"q{n}") for n in range(100)]
    after.memory.note_logged(firsts, now_s=1.0)
    assert [after.ask(f"q{n}").delivery for n in range(100)] == [2] * 100


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_the_same_body_in_later_windows_is_drawn_anew(share: float) -> None:
    endpoint, result = DeliveryClient(share), list[bool]()
    for _ in range(10_000):
        endpoint.now_s += WINDOW_S + 1
        result.append(endpoint.ask("hello").audit)
    assert within_bounds(sum(result), len(result), share)
    pairs = sum(a and b for a, b in pairwise(result))
    assert within_bounds(pairs, len(result) - 1, share**2)


def begun(episode: str, unit: str) -> Request:
    return plain_request(
        episode, kind="samples", mode="enforce", n_samples=8, audit=True, propensity=0.1, certified=True, unit=unit
    )


def test_the_evidence_counts_one_draw_once() -> None:
    seen = RepeatedDeliveries()
    numbers = [seen.numbered(begun(f"e{n}", unit)).delivery for n, unit in enumerate(["a", "b", "a", "", ""])]
    assert numbers == [1, 1, 2, 1, 1]
    assert list(seen.repeats) == ["e2"]


def pass_rate(*, counts_both: bool, n_streams: int = 4_000) -> float:
    """How often a level at exactly its budget passes if every request reaches two replicas at once."""
    rng, budget, share, bet, n = np.random.default_rng(5), 0.2, 0.1, 1.2, 200
    lost = (rng.random((n_streams, n)) < budget).astype(float)
    audit = rng.random((n_streams, n)) < share
    factor = 1 + bet * (budget - lost)
    logs = np.where(audit, (2 if counts_both else 1) * np.log(factor), 0.0)
    return float((np.cumsum(logs, axis=1).max(axis=1) >= np.log(20)).mean())


def test_counting_both_deliveries_of_one_draw_would_break_the_promise_and_counting_one_keeps_it() -> None:
    assert pass_rate(counts_both=False) <= 0.05
    assert pass_rate(counts_both=True) > 0.05


async def test_a_retry_at_another_gateway_runs_in_full(serve: Serve) -> None:
    route, server = {**ENFORCE, "audit_share": 0.0}, {"retry_window_s": WINDOW_S}
    async with serve(held(), upstream=RAW, route=route, server=server) as one:
        async with serve(held(), upstream={**RAW, "url": one.fake.url}, route=route, server=server) as other:
            await one.ask(chat("the same"))
            await followed(one, other)
            await other.ask(chat("the same"))
            await other.ask(chat("another"))
            result = [item.episode for item in await one.episodes(3)]
    assert [(run.request.delivery, run.outcome.stopped) for run in result] == [(1, True), (2, False), (1, True)]
    assert result[0].request.unit == result[1].request.unit != result[2].request.unit


async def followed(one: Served, other: Served) -> None:
    """Wait until the other gateway has read what the first one has written."""
    await one.episodes(1)
    memory: DeliveryMemory = other.gateway.clients.deliveries
    for _ in range(500):
        if memory._logged:
            return
        other.gateway.deployment.notify()
        await asyncio.sleep(0.01)
    raise AssertionError("nothing was followed")
