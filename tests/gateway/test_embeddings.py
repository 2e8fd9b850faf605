"""Vectors for the steps of a thought: they come beside the stream, never in its way, and with the probes' calls."""

from __future__ import annotations

import time
from typing import Any

import pytest

from suffice_testing import Fault, Reply, ScriptedThought
from tests.edge.embeddings import letters, server
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

STEPS = [("ab ca\n", "3"), ("baca\n", "4"), ("ac ba\n", "4"), ("zzzzz\n", "4")]  # three have one vector, no two a word
N_SETTLED = 9  # tokens of the first three, and one of the fourth; then silence, so that nothing is on its way
NEAR = {"policy": "semantic-distance", "epsilon": 0.05, "patience": 2}


def route(url: str, **more: Any) -> dict[str, Any]:
    table = {"url": url, "model": "m", **more.pop("embeddings", {})}
    steps = {"min_tokens": 1, "growth": 1.0}
    return {"scorer": "number", "policy": NEAR, "steps": steps, "embeddings": table, "audit_share": 0.0, **more}


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_an_observed_thought_is_compared_by_its_vectors(serve: Serve, stream: bool) -> None:
    seen: list[Any] = []
    chain = ScriptedThought(
        STEPS, "4", reply=Reply(faults=(Fault(stall_after=N_SETTLED, stall_s=2.0),))
    )  # the vectors' time
    async with server(letters, seen) as url, serve(chain, route=route(url)) as g:
        answer = await g.ask(chat(stream=stream))
        ended = await g.outcome()
    assert (answer.text, answer.status) == ("4", 200)
    assert len(g.fake.completions) == 1
    known = [step.draft_distance for step in ended.steps][1:3]
    assert known == [pytest.approx(0, abs=1e-12)] * len(known)
    assert 0 < len(seen) == ended.overhead.n_extra_calls
    assert ended.overhead.extra_prompt_tokens == ended.overhead.probe_tokens == 0


async def test_a_probed_thought_stops_where_its_drafts_stand_still(serve: Serve) -> None:
    seen: list[Any] = []
    acting = {"mode": "enforce", "uncertified": True, "probe": {}}
    chain = ScriptedThought(STEPS, "5", reply=Reply(faults=(Fault(stall_after=N_SETTLED, stall_s=3.0),)))
    async with (
        server(letters, seen) as url,
        serve(chain, upstream={"finish": ["raw"], "slots": 3}, route=route(url, **acting)) as g,
    ):
        answer = await g.ask(chat(stream=True))
        ended = await g.outcome()
        await g.fake.idle()
    assert (ended.stop_step, answer.text) == (3, "4")
    assert ended.overhead.n_extra_calls == len(g.fake.completions) - 1 + len(seen)
    assert sum(call.completion_tokens for call in ended.calls) == g.fake.total_completion_tokens


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_a_silent_embedder_holds_up_no_client(serve: Serve, mode: str) -> None:
    acting = {"mode": mode, "uncertified": True, "embeddings": {"timeout_s": 4.0}}
    async with server(lambda _: 20.0, []) as url, serve(ScriptedThought(STEPS, "4"), route=route(url, **acting)) as g:
        answer = await g.ask(chat(stream=True))
        answered_s = time.monotonic()
        assert answer.text == "4"
        ended = await g.outcome()
        assert time.monotonic() - answered_s > 1.0, "the record waits for the embedder, and the client does not"
    assert ended.degraded == ("embedder",)
    assert ended.end_reason == "done"
    assert g.failed_open("embedder") == 1
