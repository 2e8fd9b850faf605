"""What evidence rests on is on record with the request: whose lot, which setup, which upstream, what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.learn.groups import fold_of
from suffice.testing import Chain, Reply, Samples, cut, status
from suffice.wiring import build_route
from tests.gateway.conftest import Serve
from tests.gateway.served import chat, settings_for

SAMPLES = {"kind": "samples", "samples": 4, "scorer": "number"}


async def test_turns_of_a_conversation_share_a_unit_and_strangers_do_not(serve: Serve) -> None:
    async with serve(Samples(["4"]), route=SAMPLES) as g:
        for text, conversation in (("one", "c1"), ("two", "c1"), ("three", "c2"), ("four", None)):
            headers = {"x-conversation-id": conversation} if conversation else {}
            await g.ask(chat(text), headers=headers)
        requests = [item.episode.request for item in await g.episodes(4)]
    units = [request.unit for request in requests]
    assert units[0] == units[1]
    assert len(set(units)) == 3
    assert all(len(unit) == 16 and "c1" not in unit for unit in units)
    assert {fold_of(request.question_key, 5) for request in requests} <= set(range(5))
    assert {request.setup for request in requests} == {g.gateway.routes[0].setup}


@pytest.mark.parametrize("change", [{"samples": 5}, {"scorer": "text"}, {"wave": 2}, {"model": "other"}])
def test_another_setup_is_told_apart_and_another_promise_is_not(tmp_path: Path, change: dict[str, object]) -> None:
    def setup(**route: object) -> str:
        told = settings_for("http://127.0.0.1:1", tmp_path, route={**SAMPLES, **route})
        return build_route("r", told.routes["r"], upstream=told.upstreams["up"]).setup

    assert setup() == setup(mode="enforce", max_em_drop=0.01, audit_share=0.5, policy={"policy": "beta"})
    assert setup() != setup(**change)
    told = settings_for("http://127.0.0.1:1", tmp_path, route=SAMPLES)
    elsewhere = settings_for("http://127.0.0.1:2", tmp_path, route=SAMPLES)
    assert (build_route("r", told.routes["r"], upstream=told.upstreams["up"]).setup
            != build_route("r", elsewhere.routes["r"], upstream=elsewhere.upstreams["up"]).setup)


@pytest.mark.parametrize("route", [SAMPLES, {"kind": "reasoning"}], ids=["samples", "reasoning"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_upstreams_own_name_is_on_record(serve: Serve, route: dict[str, object], stream: bool) -> None:
    chain = Chain([("two and two ", "4"), ("is four", "4")], final_answer="4")
    async with serve(Samples(["4"]) if route is SAMPLES else chain, route=route) as g:
        await g.ask(chat(stream=stream))
        outcome = await g.outcome()
    assert outcome.model == "m"
    assert outcome.system_fingerprint == "fake-1"


async def test_a_sample_that_failed_is_missing_and_one_without_an_answer_is_not(serve: Serve) -> None:
    replies = iter([Reply(answer=cut("it is 4")), Reply(faults=(status(500),)), Reply(answer=cut("who knows"))])
    async with serve(lambda _: next(replies), route={**SAMPLES, "samples": 3, "wave": 1}) as g:
        await g.ask(chat())
        steps = (await g.outcome()).steps
    assert [(step.answer, step.missing) for step in steps] == [("4", False), (None, True), (None, False)]
