"""F1: parts of ours that are slow, and routes whose controller fails again and again."""

from __future__ import annotations

import time
from typing import ClassVar

import pytest

from suffice.gateway.context import GatewayState
from suffice.gateway.load_control import N_FAILURES, OPEN_S, WINDOW_S, Breaker
from suffice.types import Decision, Signals
from suffice_testing import FakeUpstream, Reply, ScriptedThought
from tests.faults.test_broken_parts import NonsensePolicy, same, with_route
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

SAYS = ScriptedThought([(f"so {n}\n", "4") for n in range(30)], "5 dear")
ROUTE = {"steps": {"min_tokens": 2, "growth": 1.0}, "policy": {"policy": "never"}}


class SlowPolicy:
    """Blocks for a while at each step, and counts how often it was asked."""

    name: ClassVar[str] = "slow"
    needs: tuple[str, ...] = ()

    def __init__(self, block_s: float, every: int = 1) -> None:
        self.block_s, self.every, self.n_begun = block_s, every, 0

    def decide(self, s: Signals) -> Decision:
        self.n_begun += 1
        if self.n_begun % self.every == 0:
            time.sleep(self.block_s)
        return Decision(action="continue", reason="thinking")


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize(("block_s", "n_begun"), [(0.06, 3), (0.6, 1)], ids=["slow", "hangs"])
async def test_a_slow_part_is_asked_no_more_and_the_answer_is_whole(
    serve: Serve, block_s: float, n_begun: int, stream: bool
) -> None:
    policy = SlowPolicy(block_s)
    async with FakeUpstream(SAYS) as other, serve(SAYS, route=ROUTE, change=with_route(policy=policy)) as g:
        same(await g.ask(chat(stream=stream)), await g.ask(chat(stream=stream), url=other.url))
        outcome = await g.outcome()
        assert outcome.degraded == ("slow",)
        assert policy.n_begun == n_begun < len(outcome.steps)
        assert "too slow" in outcome.steps[-1].reason
        assert g.failed_open("slow") == 1


async def test_a_part_that_is_slow_now_and_then_is_asked_on(serve: Serve) -> None:
    policy = SlowPolicy(0.06, every=4)
    async with serve(SAYS, route=ROUTE, change=with_route(policy=policy)) as g:
        await g.ask(chat())
        outcome = await g.outcome()
        assert outcome.degraded == ()
        assert policy.n_begun == len(outcome.steps)


async def test_a_route_whose_controller_keeps_failing_passes_through_and_tries_again(serve: Serve) -> None:
    ahead_s = 0.0
    broken: list[GatewayState] = []

    def change(gateway: GatewayState) -> None:
        gateway.monotonic_s = lambda: time.monotonic() + ahead_s
        with_route(policy=NonsensePolicy())(gateway)
        broken.append(gateway)

    async with serve(SAYS, route=ROUTE, change=change) as g:
        n_begun = 0

        async def reasons(n: int) -> list[str | None]:
            nonlocal n_begun
            for _ in range(n):
                n_begun += 1
                assert (await g.ask(chat(stream=n_begun % 2 == 0))).text == "5 dear"
                await g.quiet()  # the next one comes when this one's end is known
            return [e.episode.request.ungoverned for e in await g.episodes(n_begun)][-n:]

        assert await reasons(N_FAILURES) == [None] * N_FAILURES
        assert await reasons(3) == ["breaker"] * 3
        ahead_s += OPEN_S
        assert await reasons(3) == [None, "breaker", "breaker"]  # one tries, and fails
        ahead_s += OPEN_S
        gateway = broken[0]
        working = SlowPolicy(0.0)
        with_route(policy=working)(gateway)
        assert await reasons(3) == [None] * 3  # one tries, and it works again
        assert g.gateway.metrics.value("suffice_ungoverned_total", route="r", reason="breaker") == 5


def test_failures_that_lie_far_apart_open_nothing() -> None:
    breaker = Breaker()
    for n in range(20):
        assert breaker.allows(n * WINDOW_S)
        assert not breaker.note(failed=True, now_s=n * WINDOW_S)


def test_an_open_breaker_lets_exactly_one_try() -> None:
    breaker = Breaker()
    opened = [breaker.note(failed=True, now_s=0.0) for _ in range(N_FAILURES + 2)]
    assert opened == [False] * (N_FAILURES - 1) + [True, False, False]
    assert not breaker.allows(OPEN_S - 1)
    assert [breaker.allows(OPEN_S) for _ in range(3)] == [True, False, False]
    assert breaker.note(failed=True, now_s=OPEN_S)
    assert not breaker.allows(OPEN_S + 1)
    assert breaker.allows(2 * OPEN_S)
    assert not breaker.note(failed=False, now_s=2 * OPEN_S)
    assert all(breaker.allows(2 * OPEN_S) for _ in range(3))


async def test_what_an_upstream_sends_cannot_make_us_keep_a_thought_without_end(serve: Serve) -> None:
    line = "x" * 65_535 + "\n"
    says = Reply(reasoning=(line,) * 40, answer=("four",))
    async with serve(says) as g:
        answer = await g.ask(chat(stream=True))
        assert (answer.text, answer.thought) == ("four", line * 40)
        assert (await g.outcome()).degraded == ("segment",)
