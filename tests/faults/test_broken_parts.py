"""F1: parts of ours that raise, refuse or answer nonsense, put in where they are used. P1 holds each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, cast

import pytest

from suffice.gateway.context import GatewayState
from suffice.policy.base import Policy
from suffice.scoring.scorer import Scorer
from suffice.settings import Probe, Route, Steps
from suffice.types import Decision, Signals
from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply, ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, chat
from tests.gateway.test_stop import NATIVE, STEPS, chain, enforcing

CANARY = "canary-9e1b"


class Failing:
    """Raises wherever it is used."""

    def __call__(self, *_: Any, **__: Any) -> Any:
        raise RuntimeError(CANARY)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(CANARY)


class NonsensePolicy:
    """Answers, but with no decision."""

    name: ClassVar[str] = "nonsense"
    needs: tuple[str, ...] = ("stability",)

    def decide(self, s: Signals) -> Decision:
        return cast("Decision", "stop!")


class LatePolicy:
    """Works twice, then fails."""

    name: ClassVar[str] = "late"
    needs: tuple[str, ...] = ("stability",)

    def decide(self, s: Signals) -> Decision:
        if s.step > 2:
            raise RuntimeError(CANARY)
        return Decision(action="continue", reason="so far so good")


def with_route(scorer: Scorer | None = None, **changes: Any) -> Callable[[GatewayState], None]:
    """Replace the scorer of every route, or parts of what serves it."""

    def change(gateway: GatewayState) -> None:
        gateway.deployment.routes = tuple(
            replace(route, scorer=scorer or route.scorer, serving=replace(route.serving, **changes))
            for route in gateway.deployment.routes
        )

    return change


def with_settings(**changes: Any) -> Callable[[GatewayState], None]:
    """Replace a route's settings by some that no configuration can give."""

    def change(gateway: GatewayState) -> None:
        for_each = [{f: getattr(r.settings, f) for f in Route.__struct_fields__} for r in gateway.deployment.routes]
        gateway.deployment.routes = tuple(
            replace(route, settings=Route(**known | changes))
            for route, known in zip(gateway.deployment.routes, for_each, strict=True)
        )

    return change


BROKEN: dict[str, tuple[Callable[[GatewayState], None], str]] = {
    "policy answers nonsense": (with_route(policy=NonsensePolicy()), "policy"),
    "policy fails late": (with_route(policy=LatePolicy()), "policy"),
    "policy is no policy": (with_route(policy=cast("Policy", object())), "policy"),
    "signals that do not exist": (with_route(needs=("no-such-fold",)), "signals"),
    "segmenter fails at a step": (with_settings(steps=Steps(min_tokens=2, growth=cast("float", "x"))), "segment"),
    "segmenter cannot be made": (with_settings(steps=Steps(min_tokens=cast("int", "x"))), "govern"),
    "prober fails when asked": (with_settings(probe=Probe(answer_prefix=cast("str", 7))), "probe"),
    "prober cannot say whether it is ready": (with_settings(max_extra_calls=cast("int", "x")), "probe"),
}


def same(through: Answer, direct: Answer) -> None:
    assert through.status == direct.status == 200
    assert (through.text, through.thought, through.finish) == (direct.text, direct.thought, direct.finish)
    assert CANARY.encode() not in through.raw


@pytest.mark.slow(keep=12)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("audit_share", [0.0, 1.0])
@pytest.mark.parametrize("name", BROKEN)
async def test_a_broken_part_costs_no_answer_and_says_where_it_broke(
    serve: Serve, name: str, audit_share: float, stream: bool
) -> None:
    change, site = BROKEN[name]
    route = enforcing(audit_share=audit_share, policy={"policy": "stable-answer", "streak": 1_000})
    async with (
        FakeUpstream(chain()) as other,
        serve(chain(delay_s=0.001), upstream={"finish": ["raw"], "slots": 4}, route=route, change=change) as g,
    ):
        same(await g.ask(chat(stream=stream)), await g.ask(chat(stream=stream), url=other.url))
        outcome = await g.outcome()
        assert outcome.end_reason == "done"
        assert site in outcome.degraded
        assert g.failed_open(site) == 1


async def test_a_broken_part_in_observe_adds_no_call(serve: Serve) -> None:
    for name in ("policy answers nonsense", "signals that do not exist", "segmenter fails at a step"):
        change, site = BROKEN[name]
        fake = FakeUpstream(chain())
        async with serve(fake, route={"steps": {"min_tokens": 2}}, change=change) as g:
            assert (await g.ask(chat(stream=True))).text == "5 dear"
            await g.quiet()
            assert len(fake.calls) == 1
            assert g.failed_open(site) == 1


class RaisingLog:
    """A log that breaks its promise never to raise."""

    def append(self, event: object) -> bool:
        raise OSError(CANARY)

    async def append_durable(self, event: object) -> Any:
        raise AssertionError("not asked for here")

    def drain(self, timeout_s: float = 5.0) -> bool:
        return True

    def close(self, timeout_s: float = 5.0) -> None:
        return None


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
async def test_a_log_that_raises_costs_no_answer(serve: Serve, mode: str) -> None:
    async with serve(chain(), log=RaisingLog(), route=enforcing(probe=None, mode=mode)) as g:
        for stream in (True, False):
            assert (await g.ask(chat(stream=stream))).text == "5 dear"
        assert (await g.ask(b"{}")).status == 400
        await g.quiet()
        assert g.failed_open("log") == 3
        assert g.gateway.metrics.value("suffice_events_dropped_total") == 6


async def test_a_failure_before_the_request_was_understood_is_a_clean_500(serve: Serve) -> None:
    def change(gateway: GatewayState) -> None:
        gateway.clients.deliveries = Failing()  # type: ignore[assignment]

    async with serve(chain(), change=change) as g:
        answer = await g.ask(chat())
        assert answer.status == 500
        assert answer.json["error"]["type"] == "server_error"
        assert CANARY.encode() not in answer.raw
        assert (await g.outcome()).end_reason == "internal_error"


TIMES_S = (0.0, 0.001, 0.002, 0.003, 0.005, 0.008)
METHODS: dict[str, dict[str, Any]] = {
    "native": NATIVE,
    "raw, one slot": {"finish": ["raw"]},
    "raw, free slots": {"finish": ["raw"], "slots": 3},
}


@pytest.mark.parametrize("method", METHODS)
async def test_whenever_a_stop_falls_the_answer_is_one_of_two_and_never_a_mixture(serve: Serve, method: str) -> None:
    """F17: stops race against the end of the thought; a late one is no stop."""
    steps = [*STEPS[:4], ("so four\n", "4")]
    by_delay = {str(t): ScriptedThought(steps, "5 dear", reply=chain(delay_s=t).reply) for t in TIMES_S}

    def says(seen: FakeRequest) -> Any:
        return by_delay[seen.text.partition("delay=")[2].partition(";")[0]](seen)

    async with serve(says, upstream=METHODS[method], route=enforcing()) as g:
        request = [(t, stream) for t in TIMES_S for stream in (True, False)]
        answers = await asyncio.gather(*(g.ask(chat(f"delay={t};", stream=s)) for t, s in request))
        for answer in answers:
            stopped = answer.report is not None and answer.report["stopped"]
            assert answer.text == ("4" if stopped else "5 dear")
            assert answer.finish == "stop"
            whole = "".join(text for text, _ in steps)
            assert whole.startswith(answer.thought) if stopped else answer.thought == whole
        outcomes = [e.episode.outcome for e in await g.episodes(len(request))]
        assert sum(o.stopped for o in outcomes) == sum(a.report is not None for a in answers)


class RaisingScorer:
    """Reads no answer: it raises."""

    name: ClassVar[str] = "raising"

    def extract(self, text: str) -> str | None:
        raise RuntimeError(CANARY)

    def equal(self, left: str, right: str) -> bool:
        raise RuntimeError(CANARY)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("kind", ["reasoning", "samples"])
async def test_a_scorer_that_raises_costs_a_measurement_and_no_answer(serve: Serve, kind: str, stream: bool) -> None:
    route = {"kind": kind, "samples": 2, "steps": {"min_tokens": 2, "growth": 1.0}}
    change = with_route(scorer=cast("Any", RaisingScorer()))
    async with FakeUpstream(chain()) as other, serve(chain(), route=route, change=change) as g:
        through = await g.ask(chat(stream=stream))
        direct = await g.ask(chat(stream=stream), url=other.url)
        assert (through.text, through.finish) == (direct.text, direct.finish)
        assert CANARY.encode() not in through.raw
        outcome = await g.outcome()
        assert (outcome.end_reason, outcome.answer, outcome.degraded) == ("done", None, ("scorer",))


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_a_probe_that_hangs_delays_nothing(serve: Serve, stream: bool) -> None:
    """What is asynchronous waits beside the stream: the probe would take 20 s, the stream is over long before."""

    def says(seen: FakeRequest) -> Any:
        return Reply(faults=(Fault(header_delay_s=20.0),)) if seen.is_raw else chain()(seen)

    async with serve(says, upstream={"finish": ["raw"], "slots": 4}, route=enforcing()) as g, asyncio.timeout(10):
        async with g.session.post(g.url + "/v1/chat/completions", json=chat(stream=stream)) as response:
            result = b""
            while b"[DONE]\n\n" not in result and b'"usage"' not in result:
                result += await response.content.readany()
