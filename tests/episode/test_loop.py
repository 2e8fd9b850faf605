"""The loop: it stops where the policy says so and may, runs to the end otherwise, and closes what it opened."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any, get_args

import pytest

from suffice.episode.ledger import Ledger
from suffice.episode.loop import GuardedPolicy, StopRefusal, StopRight, run_episode
from suffice.types import Decision, Signals, Step
from tests.episode.runs import request
from tests.records import plain_request

GO = Decision(action="continue", reason="go on")
STOP = Decision(action="stop", reason="enough", stop_reason="suffices")


class Steps:
    """Five steps, and whether they were closed."""

    def __init__(self, fails_at: int = 99) -> None:
        self.given, self.closed, self._fails_at = 0, False, fails_at

    async def run(self) -> AsyncGenerator[Step, None]:
        try:
            for n in range(1, 6):
                if n == self._fails_at:
                    raise ConnectionError("upstream")
                self.given = n
                yield Step(index=n, tokens=1, answer=None, answer_source=None)
        finally:
            self.closed = True


class StopFrom:
    """Says stop from a step on."""

    def __init__(self, step: int) -> None:
        self._step = step

    def decide(self, s: Signals) -> Decision:
        return STOP if s.step >= self._step else GO


def observe(step: Step) -> Signals:
    return Signals(step=step.index, tokens_used=step.index)


async def play(steps: Steps, policy: StopFrom, *, may_stop: bool = True) -> tuple[Signals | None, list[int]]:
    recorded: list[int] = []

    def record(step: Step, signals: Signals, decision: Decision) -> bool:
        assert (signals.step, decision) == (step.index, policy.decide(signals))
        recorded.append(step.index)
        return may_stop

    return await run_episode(steps.run(), observe, policy, record), recorded


@pytest.mark.parametrize("at", [1, 3, 5])
async def test_it_stops_where_the_policy_says_so(at: int) -> None:
    steps = Steps()
    stop, recorded = await play(steps, StopFrom(at))
    assert stop == Signals(step=at, tokens_used=at)
    assert recorded == list(range(1, at + 1))
    assert (steps.given, steps.closed) == (at, True)


async def test_where_it_may_not_stop_every_step_is_recorded() -> None:
    steps = Steps()
    stop, recorded = await play(steps, StopFrom(2), may_stop=False)
    assert stop is None
    assert recorded == [1, 2, 3, 4, 5]
    assert steps.closed


async def test_a_failure_of_the_upstream_is_not_swallowed() -> None:
    steps = Steps(fails_at=3)
    with pytest.raises(ConnectionError):
        await play(steps, StopFrom(9))
    assert steps.closed


class Broken:
    def decide(self, s: Signals) -> Decision:
        raise ZeroDivisionError("secret")


def test_a_broken_policy_continues_and_is_counted() -> None:
    ledger = Ledger(request(), 0.0)
    decision = GuardedPolicy(Broken(), (), ledger, lambda: 0.0).decide(Signals(step=1, tokens_used=1))
    assert (decision.action, ledger.degraded) == ("continue", ["policy"])
    assert "ZeroDivisionError" in decision.reason
    assert "secret" not in decision.reason


REFUSED: dict[StopRefusal, dict[str, Any]] = {
    "ungoverned": {"ungoverned": "tools"},
    "in full": {"acts": False},
    "an audit": {"audit": True},
    "a repeat": {"delivery": 2},
    "a person asked": {"wish": "think_more"},
    "ended": {"has_ended": True},
}


def right(*, acts: bool = True, has_ended: bool = False, wish: Any = None, **fields: Any) -> StopRight:
    ledger = Ledger(plain_request("ep", mode="enforce", **fields), 0.0)
    ledger.stop.wish = wish
    return StopRight(ledger=ledger, acts=acts, has_ended=lambda: has_ended)


def test_a_run_may_be_stopped_unless_one_thing_refuses_it() -> None:
    assert set(REFUSED) == set(get_args(StopRefusal))
    assert right().refusal() is None
    for refusal, given in REFUSED.items():
        assert right(**given).refusal() == refusal
