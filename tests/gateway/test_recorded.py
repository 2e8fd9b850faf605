"""What evidence rests on is on record with the request: whose lot, which setup, which upstream, what is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from suffice.policy.folded_version import prompt_fold
from suffice.wiring.routes import build_route
from suffice_testing import FakeRequest, Fault, Reply, Samples, ScriptedThought, cut
from tests.gateway.conftest import Serve
from tests.gateway.served import chat, settings_for

SAMPLES = {"kind": "samples", "samples": 4, "scorer": "number"}


async def test_every_turn_of_a_conversation_is_drawn_for_by_itself(serve: Serve) -> None:
    async with serve(Samples(["4"]), route=SAMPLES) as g:
        for text, conversation in (("one", "talk-1"), ("two", "talk-1"), ("three", "talk-2"), ("four", None)):
            headers = {"x-conversation-id": conversation} if conversation else {}
            await g.ask(chat(text), headers=headers)
        requests = [item.episode.request for item in await g.episodes(4)]
    units = [request.unit for request in requests]
    assert len(set(units)) == 4
    talks = [request.conversation for request in requests]
    assert talks[0] == talks[1] != talks[2]
    assert talks[3] == ""
    assert all(len(unit) == 16 and "talk" not in unit for unit in units)
    assert {prompt_fold(request.question_key, 5) for request in requests} <= set(range(5))
    assert {request.setup for request in requests} == {g.gateway.deployment.routes[0].setup}


@pytest.mark.parametrize("change", [{"samples": 5}, {"scorer": "text"}, {"wave": 2}, {"model": "other"}])
def test_another_setup_is_told_apart_and_another_promise_is_not(tmp_path: Path, change: dict[str, object]) -> None:
    def setup(**route: object) -> str:
        report = settings_for("http://127.0.0.1:1", tmp_path, route={**SAMPLES, **route})
        return build_route("r", report.routes["r"], upstream=report.upstreams["up"]).setup

    assert setup() == setup(mode="enforce", max_em_drop=0.01, audit_share=0.5, policy={"policy": "beta"})
    assert setup() != setup(**change)
    report = settings_for("http://127.0.0.1:1", tmp_path, route=SAMPLES)
    elsewhere = settings_for("http://127.0.0.1:2", tmp_path, route=SAMPLES)
    assert (
        build_route("r", report.routes["r"], upstream=report.upstreams["up"]).setup
        != build_route("r", elsewhere.routes["r"], upstream=elsewhere.upstreams["up"]).setup
    )


@pytest.mark.parametrize("route", [SAMPLES, {"kind": "reasoning"}], ids=["samples", "reasoning"])
@pytest.mark.parametrize("stream", [False, True])
async def test_the_upstreams_own_name_is_on_record(serve: Serve, route: dict[str, object], stream: bool) -> None:
    chain = ScriptedThought([("two and two ", "4"), ("is four", "4")], final_answer="4")
    async with serve(Samples(["4"]) if route is SAMPLES else chain, route=route) as g:
        await g.ask(chat(stream=stream))
        outcome = await g.outcome()
    assert outcome.model == "m"
    assert outcome.system_fingerprint == "fake-1"


PROBING = {
    "kind": "reasoning",
    "mode": "enforce",
    "scorer": "number",
    "probe": {"verified_by": "owner"},
    "audit_share": 1.0,
    "steps": {"min_tokens": 1, "growth": 1.0},
}
SLOW = ScriptedThought(
    [("two and two\n", "4"), ("is four\n", "4"), ("or five\n", "5")], "it is 4", reply=Reply(delay_s=0.005)
)


@pytest.mark.parametrize("stream", [False, True])
async def test_an_audit_finishes_once_for_the_record_and_its_client_gets_the_full_run(
    serve: Serve, stream: bool
) -> None:
    async with serve(SLOW, route=PROBING, upstream={"finish": ["raw"], "slots": 4}) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        outcome = await g.outcome()
        direct = await g.direct(chat(stream=stream))
    assert (answer.text, answer.thought, answer.finish) == (direct.text, direct.thought, direct.finish)
    assert outcome.finish_step in {step.index for step in outcome.steps if step.answer_source == "probe"}
    assert outcome.finish_answer == next(s.answer for s in outcome.steps if s.index == outcome.finish_step)
    n_probed = sum(step.answer_source == "probe" for step in outcome.steps)
    assert sum(call.purpose == "probe" for call in outcome.calls) == n_probed + 1
    assert outcome.degraded == ()


@pytest.mark.parametrize(
    "change",
    [
        {"audit_share": 0.0},
        {"policy": {"policy": "never"}},
        {"probe": {}},
        {"max_extra_calls": 0},
    ],
)
async def test_no_finish_is_measured_where_none_is_wanted_or_allowed(serve: Serve, change: dict[str, object]) -> None:
    async with serve(SLOW, route={**PROBING, **change}, upstream={"finish": ["raw"], "slots": 4}) as g:
        await g.ask(chat())
        outcome = await g.outcome()
    assert (outcome.finish_step, outcome.finish_answer) == (None, None)


async def test_a_finish_that_fails_costs_a_measurement(serve: Serve) -> None:
    n_whole = 0

    def says(seen: FakeRequest) -> Reply:
        nonlocal n_whole
        reply = SLOW(seen)
        whole = seen.path == "/completions" and "stop" not in seen.body
        n_whole += whole
        return Reply(faults=(Fault(status=500),)) if whole else reply

    async with serve(says, route=PROBING, upstream={"finish": ["raw"], "slots": 4, "retries": 0}) as g:
        answer = await g.ask(chat())
        outcome = await g.outcome()
    assert (answer.status, answer.text, n_whole) == (200, "it is 4", 1)
    assert (outcome.end_reason, outcome.finish_step, outcome.degraded) == ("done", None, ("probe",))


async def test_a_sample_that_failed_is_missing_and_one_without_an_answer_is_not(serve: Serve) -> None:
    replies = iter([Reply(answer=cut("it is 4")), Reply(faults=(Fault(status=500),)), Reply(answer=cut("who knows"))])
    async with serve(lambda _: next(replies), route={**SAMPLES, "wave": 1}) as g:
        await g.ask(chat())
        steps = (await g.outcome()).steps
    assert [(step.answer, step.missing) for step in steps] == [("4", False), (None, True), (None, False)]
