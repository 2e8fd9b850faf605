"""A cheap rule before the probe: only proposed checkpoints are probed, and what is asked for us stays with us."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.gateway.context import GatewayState
from suffice.types import Finding, Findings
from suffice_testing import Fault, Reply, Samples, ScriptedThought
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

STEPS = [
    ("two and two\n", "3"),
    ("make four\n", "4"),
    ("so the answer is four\n", "4"),
    ("yes it is\n", "4"),
    ("the answer is still four\n", "4"),
    ("wait I think five\n", "5"),
]
SURE = {"policy": "confidence-threshold", "threshold": 0.5}
PATTERN = {"policy": "text-rule", "pattern": "answer"}


def route(propose: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "mode": "enforce",
        "uncertified": True,
        "scorer": "number",
        "probe": {"propose": propose, "verified_by": "owner"},
        "audit_share": 0.0,
        "policy": SURE,
        "steps": {"min_tokens": 3, "growth": 1.0},
        **more,
    }


def lists_logprobs(gateway: GatewayState) -> None:
    seen = (Finding(experiment="logprobs_stream", verdict="yes", evidence=""),)
    for client in gateway.upstreams.values():
        client.findings = Findings(examination_id="x", upstream="up", url_key="", model="m", at_s=0.0, findings=seen)


@pytest.mark.parametrize("audit", [False, True])
async def test_live_runs_and_audits_probe_only_where_the_text_proposes_it(serve: Serve, audit: bool) -> None:
    slow = ScriptedThought(STEPS, "5 dear", reply=Reply(delay_s=0.004))
    options = route(PATTERN, audit_share=1.0 if audit else 0.0)
    async with serve(slow, upstream={"finish": ["raw"], "slots": 3}, route=options) as g:
        answer = await g.ask(chat(suffice={}))
        outcome = await g.outcome()
        steps = [(step.index, step.answer, step.tokens) for step in outcome.steps]
        # Each line end is a token of its own; the first step is three lines.
        assert steps == [(1, "4", 13), (2, "4", 10)][: 2 if audit else 1]
        probes = sum(call.purpose == "probe" for call in outcome.calls)
        assert probes >= len(steps)
        assert (outcome.stopped, answer.text) == ((False, "5 dear") if audit else (True, "4"))
        assert outcome.stop_step == 1
        await g.quiet()
        counted = {"route": "r", "reason": "not_proposed"}
        assert g.gateway.metrics.value("suffice_extra_calls_skipped_total", **counted) >= 2


async def test_margins_are_read_from_the_stream_and_never_reach_the_client(serve: Serve) -> None:
    # The fake's second alternative stands for the end of thought: it is likely only where the best token is not.
    words = tuple(-3.0 if n == 7 else -0.001 for n in range(40))
    slow = ScriptedThought(STEPS, "5 dear", reply=Reply(delay_s=0.004, reasoning_logprobs=words))
    options = route({"policy": "think-brake", "threshold": 0.5}, policy={"policy": "think-brake", "threshold": 0.5})
    async with serve(
        slow, upstream={"finish": ["raw"], "slots": 3, "think_close": "~1"}, route=options, change=lists_logprobs
    ) as g:
        answer = await g.ask(chat(stream=True))
        outcome = await g.outcome()
        assert g.fake.completions[0].request.body["top_logprobs"] == 20
        assert not any(choice.get("logprobs") for chunk in answer.chunks for choice in chunk["choices"])
        ((margin, tokens),) = [(step.end_margin, step.tokens) for step in outcome.steps]
        assert margin is not None
        assert margin < 0.5
        assert tokens == 7  # of the first two lines: behind the first one the model would rather have gone on


def reads_lines(gateway: GatewayState) -> None:
    seen = tuple(Finding(experiment=name, verdict="yes", evidence="") for name in ("line_signals", "logprobs_stream"))
    for client in gateway.upstreams.values():
        client.findings = Findings(examination_id="x", upstream="up", url_key="", model="m", at_s=0.0, findings=seen)


@pytest.mark.parametrize("audit", [False, True])
async def test_margins_are_read_in_the_engine_without_log_probabilities(serve: Serve, audit: bool) -> None:
    """An audit reads the same as a live run; the margins are those of the lines, each with the token after it."""
    slow = ScriptedThought(STEPS, "5 dear", reply=Reply(delay_s=0.004))
    options = route({}, policy={"policy": "think-brake", "threshold": 0.5}, audit_share=1.0 if audit else 0.0)
    options["steps"] = {"min_tokens": 1, "growth": 1.0}
    engine = {"driver": "vllm", "finish": ["native", "prefill"], "slots": 3}
    fake = {"dialect": "vllm", "has_control": True, "line_margins": (7.0, 3.0, 0.2, 0.1, 0.1, 0.1)}
    async with serve(slow, upstream=engine, fake=fake, route=options, change=reads_lines) as g:
        answer = await g.ask(chat(suffice={}))
        outcome = await g.outcome()
        assert "top_logprobs" not in g.fake.completions[0].request.body
        assert [step.end_margin for step in outcome.steps][:3] == [7.0, 3.0, 0.2]
        assert all(step.logprob is not None and step.logprob < 0 for step in outcome.steps[:3])
        assert outcome.degraded == ()
        assert (outcome.stopped, outcome.stop_step) == (not audit, 3)
        assert answer.text == ("5 dear" if audit else "4")


async def test_an_engine_that_reports_no_lines_costs_no_answer(serve: Serve) -> None:
    options = route({}, policy={"policy": "think-brake"}, probe={})
    async with serve(
        ScriptedThought(STEPS, "5 dear"),
        upstream={"driver": "vllm"},
        fake={"dialect": "vllm"},
        route=options,
        change=reads_lines,
    ) as g:
        answer = await g.ask(chat(suffice={}))
        assert (answer.status, answer.text) == (200, "5 dear")


async def test_an_upstream_that_refuses_log_probabilities_is_asked_again_without(serve: Serve) -> None:
    def refuses(seen: Any) -> Any:
        return (
            Reply(faults=(Fault(status=400),))
            if "top_logprobs" in seen.body
            else ScriptedThought(STEPS, "5 dear")(seen)
        )

    options = route({}, policy={"policy": "think-brake"}, probe={})
    async with serve(refuses, upstream={"finish": ["raw"]}, route=options, change=lists_logprobs) as g:
        answer = await g.ask(chat(suffice={}))
        assert (answer.status, answer.text) == (200, "5 dear")
        assert "logprobs" in answer.report["degraded"]


async def test_a_confident_first_sample_is_drawn_alone(serve: Serve) -> None:
    options = {"kind": "samples", "samples": 5, "scorer": "number", "mode": "enforce", "uncertified": True}
    options |= {"audit_share": 0.0, "policy": {"policy": "confident-sample", "threshold": 0.5}}
    sure = Samples(["it is 4"], reply=Reply(answer_logprobs=(-0.01,) * 9))
    async with serve(sure, route=options, change=lists_logprobs) as g:
        answer = await g.ask(chat(suffice={}))
        assert answer.report["vote"] == {"4": 1}
        assert len(g.fake.completions) == 1
        assert answer.json["choices"][0].get("logprobs") is None
    async with serve(sure, route=options) as g:  # unknown: every sample is drawn
        assert (await g.ask(chat(suffice={}))).report["stopped"] is False


@pytest.mark.parametrize(
    ("propose", "why"),
    [
        (SURE, "confidence-threshold reads trial answers"),
        ({"policy": "text-rule", "pattern": "("}, "got '\\('"),
        ({"policy": "text-rul"}, "did you mean"),
    ],
)
async def test_a_proposer_that_cannot_propose_is_refused(serve: Serve, propose: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=rf"routes\.r\.probe\.propose: .*{why}"):
        async with serve(Reply(), route=route(propose)):
            pass
