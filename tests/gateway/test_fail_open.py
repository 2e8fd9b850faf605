"""P1: a broken controller costs tokens, never an answer. Faults are put in at every place there is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from suffice.gateway.context import Gateway
from suffice.signals.base import FOLDS
from suffice.testing import Chain
from suffice.types import Decision, Signals, Step
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

CHAIN = Chain([("two and two\n", "4"), ("make four\n", "4"), ("so four\n", "4"), ("yes\n", "4")], "the answer is 4")
ENFORCE: dict[str, Any] = {
    "mode": "enforce", "uncertified": True, "scorer": "number", "audit_share": 0.0,
    "policy": {"policy": "stable-answer", "streak": 2}, "steps": {"min_tokens": 2, "growth": 1.0}, "probe": {},
}  # fmt: skip


class Broken(RuntimeError):
    """What the tests break things with; its message must reach nobody."""


class BrokenPolicy:
    """A policy that always fails."""

    name: ClassVar[str] = "broken"
    needs: tuple[str, ...] = ("stability",)

    def decide(self, s: Signals) -> Decision:
        raise Broken("secret-canary")


class BrokenScorer:
    """A scorer that always fails."""

    name = "broken"

    def extract(self, text: str) -> str | None:
        raise Broken("secret-canary")

    def normalise(self, answer: str) -> str | None:
        raise Broken("secret-canary")

    def match(self, answer: str | None, gold: str) -> bool:
        raise Broken("secret-canary")


class BrokenFold:
    """A signal that always fails."""

    fields: tuple[str, ...] = ("hedges",)

    def update(self, step: Step) -> None:
        raise Broken("secret-canary")

    def values(self) -> dict[str, Any]:
        return {}


def _policy(gateway: Gateway) -> None:
    gateway.routes = tuple(replace(r, policy=BrokenPolicy()) for r in gateway.routes)


def _scorer(gateway: Gateway) -> None:
    gateway.routes = tuple(replace(r, scorer=BrokenScorer()) for r in gateway.routes)


def _signals(gateway: Gateway) -> None:
    FOLDS["broken"] = BrokenFold
    gateway.routes = tuple(replace(r, needs=(*r.needs, "broken")) for r in gateway.routes)


BREAKS: dict[str, tuple[Callable[[Gateway], None], tuple[str, ...]]] = {
    "policy": (_policy, ("policy",)),
    "signals": (_signals, ("signals",)),
    "scorer": (_scorer, ("probe", "scorer", "segment")),
}


@pytest.fixture(autouse=True)
def _no_broken_fold_is_left() -> Any:
    yield
    FOLDS.pop("broken", None)


@pytest.mark.parametrize("mode", ["observe", "enforce"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", sorted(BREAKS))
async def test_a_broken_part_leaves_the_answer_whole(serve: Serve, what: str, stream: bool, mode: str) -> None:
    """Whatever breaks, the client reads the model's own full answer, and the failure is counted."""
    change, sites = BREAKS[what]
    body = chat(stream=stream)
    async with serve(CHAIN, route=ENFORCE | {"mode": mode}, change=change) as g:
        direct, through = await g.direct(body), await g.ask(body)
        assert through.status == 200
        assert (through.text, through.thought, through.finish) == (direct.text, direct.thought, direct.finish)
        assert b"secret-canary" not in through.raw
        outcome = await g.outcome()
        assert outcome.end_reason == "done"
        assert set(outcome.degraded) & set(sites)
        assert any(g.failed_open(site) for site in sites)


@pytest.mark.parametrize("what", sorted(BREAKS))
async def test_a_broken_part_leaves_the_vote_whole(serve: Serve, what: str) -> None:
    """Samples: an answer still comes, the failure is counted, and nothing hangs."""
    change, _ = BREAKS[what]
    route = ENFORCE | {"kind": "samples", "samples": 4, "scorer": "text", "policy": {"policy": "beta"}}
    async with serve(CHAIN, route=route, change=change) as g:
        through = await g.ask(chat(temperature=0.7))
        assert through.status == 200
        assert through.text == "the answer is 4"
        assert (await g.outcome()).end_reason in ("done", "stopped")


class DeafLog:
    """A log that takes nothing: the disk is gone."""

    n_written = n_dropped = n_failed = 0

    def append(self, event: object) -> bool:
        return False

    async def append_durable(self, event: object) -> Any:
        raise AssertionError("not asked for here")

    def read(self, since_seq: int = 0, limit: int | None = None) -> Any:
        return iter(())

    def close(self, timeout_s: float = 5.0) -> None:
        return None


async def test_a_dead_log_costs_no_answer_and_is_counted(serve: Serve) -> None:
    """The data path does not wait for the disk; what was dropped is counted, never silent."""
    async with serve(CHAIN, log=DeafLog()) as g:
        answer = await g.ask(chat())
        assert answer.text == "the answer is 4"
        await g.quiet()
        assert g.gateway.metrics.value("suffice_events_dropped_total") >= 1
