"""What a gateway writes of an experiment is what its analysis reads: from the first request to the sentence."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from suffice.control.compare.experiments import read_experiment
from suffice.rollout.results import EM, LATENCY, SATISFACTION, TOKENS, summarize_arm
from suffice.settings import Settings, parse_settings
from suffice.store.routes import experiments
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice.wiring.worker import open_decisions
from suffice_testing import Samples
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

BRISK = {"policy": "stable-answer", "streak": 2}
ROUTE = {
    "kind": "samples",
    "samples": 15,
    "wave": 1,
    "scorer": "number",
    "mode": "enforce",
    "uncertified": True,
    "audit_share": 0.1,
    "policy": {"policy": "stable-answer", "streak": 5},
}
N = 120


def settings() -> Settings:
    raw: dict[str, Any] = {
        "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
        "routes": {"r": {**ROUTE, "upstream": "up"}},
        "experiments": {
            "e": {
                "routes": ["r"],
                "warmup_units": 20,
                "margins": {"em": 0.3},
                "arms": {
                    "full": {"full": True},
                    "brisk": {
                        "policy": BRISK,
                    },
                },
            }
        },
    }
    return parse_settings(raw)


async def test_an_experiment_on_live_traffic_is_read_back_arm_by_arm(serve: Serve) -> None:
    async with serve(Samples(["it is 4"]), route=ROUTE) as g:
        with open_decisions(g.gateway.settings) as writer:
            begun = experiments.start_experiment(writer, "e", settings().experiments["e"], author="ann", reason="x")
            assert not isinstance(begun, str)
        g.gateway.deployment.notify()
        async with asyncio.timeout(30):
            while not g.gateway.deployment.variants.running.experiments:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.005)
        for begin in range(0, N, 20):  # the warm-up first, and whole
            await asyncio.gather(*(g.ask(chat(f"q{n}")) for n in range(begin, begin + 20)))
        await g.quiet()
        items = await g.episodes(N)
        for at, item in enumerate(items):
            name = item.episode.request.episode_id
            await g.gateway.log.append_durable(
                FeedbackEvent(Feedback(feedback_id=f"f{at}", episode_id=name, gold="4", rating=4, source="exact-match"))
            )
        held = experiments.read_experiments(writer.path)[0]
        result = await asyncio.to_thread(read_experiment, writer.path, held, settings())
    drew = Counter(item.episode.request.arms[0].arm for item in items)
    assert result.withheld is None
    assert result.n_by_arm == drew
    assert sum(drew.values()) == result.n_units == result.n_requests == N
    arm = result.arms[0]
    live = [item.episode for item in items if not item.episode.request.audit]
    assert arm.of(TOKENS).n == len(live) - 20
    assert arm.of(SATISFACTION).effect == 0
    assert arm.of(LATENCY).effect is not None
    assert arm.of(EM).paired
    full_runs = sum(run.request.mode == "observe" or run.request.audit for run in (one.episode for one in items))
    assert arm.of(EM).n == full_runs
    assert arm.of(EM).effect == 0
    effect, plain = arm.of(TOKENS).effect, arm.of(TOKENS).plain
    assert effect is not None
    assert plain is not None
    assert effect < 0, "two samples cost less than eight"
    assert summarize_arm(result, arm)[0].startswith("'brisk' against 'full' is ")
