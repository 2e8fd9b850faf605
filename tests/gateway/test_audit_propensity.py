"""An audit is drawn before the first step, written down with its odds, and told to nobody."""

from __future__ import annotations

import time
from typing import Any

import pytest

from suffice.rollout.assign import DAY_S, day_salt, point_of
from suffice.types import Episode
from suffice_testing import FakeRequest, Fault, Reply, ScriptedThought
from tests.assurance.reports import estimate_route
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat

STEPS = [
    ("two and two\n", "3"),
    ("make four\n", "4"),
    ("so four\n", "4"),
    ("yes four\n", "4"),
    ("is that so\n", "4"),
    ("wait I think five\n", "5"),
]
CHAIN = ScriptedThought(STEPS, "it is 5")
ENFORCE: dict[str, Any] = {
    "mode": "enforce",
    "uncertified": True,
    "scorer": "number",
    "probe": {"verified_by": "owner"},
    "policy": {"policy": "stable-answer", "streak": 3},
    "steps": {"min_tokens": 3, "growth": 1.0},
}
RAW = {"finish": ["raw"], "slots": 4}


async def drawn(g: Served, n: int) -> list[Episode]:
    """All requests in the order they came, as the log has them."""
    result = [labelled.episode for labelled in await g.episodes(n)]
    return sorted(result, key=lambda e: e.request.received_at_s)


async def audits(g: Served, bodies: list[dict[str, Any]], headers: list[dict[str, str]]) -> list[bool]:
    """The lots of some requests, sent one after another."""
    for body, given in zip(bodies, headers, strict=True):
        assert (await g.ask(body, headers=given)).status == 200
    return [e.request.audit for e in await drawn(g, len(bodies))]


@pytest.mark.parametrize("mode", ["observe", "enforce"])
@pytest.mark.parametrize("share", [0.0, 1.0])
async def test_a_share_of_nothing_and_of_everything_are_exact(serve: Serve, share: float, mode: str) -> None:
    async with serve(route={"audit_share": share, "mode": mode}) as g:
        for n in range(30):
            await g.ask(chat(f"question {n}"))
        assignments = await drawn(g, 30)
        assert {e.request.audit for e in assignments} == {share == 1.0}
        assert {e.request.propensity for e in assignments} == {1.0}
        assert g.gateway.metrics.value("suffice_audits_total", route="r") == 30 * share


async def test_the_odds_of_each_lot_are_written_down_as_they_were_drawn(serve: Serve) -> None:
    async with serve(route={"audit_share": 0.3}) as g:
        assignments = await audits(g, [chat(f"question {n}") for n in range(60)], [{}] * 60)
        assert {True, False} == set(assignments)
        assert 5 <= sum(assignments) <= 35  # 18 are expected; the salt is fresh each time
        for episode in await drawn(g, 60):
            request = episode.request
            assert request.propensity == pytest.approx(0.3 if request.audit else 0.7)
            # So the verifier draws again from what is logged, once the salt of the day is published.
            salt = day_salt(int(request.received_at_s // DAY_S), salt=g.gateway.salt)
            assert request.audit == (point_of(request.unit, salt=salt, purpose=b"audit-lot") < 0.3)


async def test_until_its_owner_says_otherwise_one_in_ten_is_drawn(serve: Serve) -> None:
    async with serve() as g:
        await g.ask(chat())
        (episode,) = await drawn(g, 1)
        assert episode.request.propensity == pytest.approx(0.1 if episode.request.audit else 0.9)


@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
async def test_the_policy_version_of_the_reply_is_that_of_the_record(serve: Serve, mode: str) -> None:
    async with serve(CHAIN, upstream=RAW, route={**ENFORCE, "mode": mode, "audit_share": 0.0}) as g:
        answer = await g.ask(chat(suffice={}))
        request = (await g.episode()).request
        assert answer.headers["x-suffice-policy-version"] == request.policy_version
        assert answer.headers["x-suffice-policy-version"].startswith("p-")
        assert answer.headers["x-suffice-episode-id"] == request.episode_id
        assert answer.headers["x-suffice-mode"] == request.mode == mode
        if answer.report is not None:
            assert answer.report["policy_version"] == request.policy_version
            assert answer.report["certified"] is request.certified is False
        else:
            assert mode == "off"


async def test_an_audit_in_enforce_runs_in_full(serve: Serve) -> None:
    async with serve(CHAIN, upstream=RAW, route={**ENFORCE, "audit_share": 1.0}) as g:
        for stream in (True, False):
            answer = await g.ask(chat(stream=stream))
            assert answer.text == "it is 5"
            assert answer.thought == "".join(text for text, _ in STEPS)
            assert answer.report is None
        for episode in await drawn(g, 2):
            outcome = episode.outcome
            assert (episode.request.audit, outcome.stopped, outcome.end_reason) == (True, False, "done")
            assert (outcome.stop_step, outcome.would_answer, outcome.answer) == (4, "4", "5")


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
async def test_an_audit_probes_every_step_and_its_client_does_not_wait(serve: Serve, mode: str, stream: bool) -> None:
    """The chain is said at once and a probe takes 0.1 s, so five of six probes come after the answer."""

    def slow_probes(seen: FakeRequest) -> Reply:
        if seen.is_raw:
            return ScriptedThought(STEPS, "it is 5", reply=Reply(first_delay_s=0.1))(seen)
        return CHAIN(seen)

    route = {**ENFORCE, "mode": mode, "audit_share": 1.0}
    async with serve(slow_probes, upstream=RAW, route=route) as g:
        began = time.monotonic()
        answer = await g.ask(chat(stream=stream))
        waited_s = time.monotonic() - began
        assert answer.text == "it is 5"
        outcome = await g.outcome()
        took_s = time.monotonic() - began
        assert [(s.answer, s.answer_source) for s in outcome.steps] == [(a, "probe") for _, a in STEPS]
        assert took_s >= 0.6
        assert waited_s < took_s - 0.3
        assert outcome.overhead.n_extra_calls == len(STEPS) == outcome.overhead.probe_tokens
        assert outcome.end_reason == "done"


async def trials(g: Served, n: int) -> tuple[int, int]:
    """Trial answers of the `n` runs in the log, and how many of them a report counts as read."""
    report = estimate_route(await g.episodes(n), route="r", match=lambda answer, gold: answer == gold)
    return report.n_trials, report.n_trials_read


async def test_trial_answers_that_nobody_can_read_are_counted_as_asked_and_failed_probes_are_not(serve: Serve) -> None:
    output = ["3", "hm", "so to say", "4"]
    chain = ScriptedThought([(f"thought {n}\n", answer) for n, answer in enumerate(output)], "it is 5")
    async with serve(chain, upstream=RAW, route={**ENFORCE, "audit_share": 1.0}) as g:
        await g.ask(chat())
        assert [s.answer for s in (await g.outcome()).steps] == ["3", None, None, "4"]
        assert await trials(g, 1) == (4, 2)

    def failing(seen: FakeRequest) -> Reply:
        return Reply(faults=(Fault(status=500, status_body=b"{}"),)) if seen.is_raw else chain(seen)

    async with serve(failing, upstream=RAW, route={**ENFORCE, "audit_share": 1.0}) as g:
        await g.ask(chat())
        assert await trials(g, 2) == (4, 2), "nobody knows what a probe that failed would have said"


async def test_without_an_audit_observing_probes_nothing(serve: Serve) -> None:
    async with serve(CHAIN, upstream=RAW, route={**ENFORCE, "mode": "observe", "audit_share": 0.0}) as g:
        await g.ask(chat())
        await g.quiet()
        assert len(g.fake.calls) == 1


async def test_a_route_that_is_off_draws_nothing(serve: Serve) -> None:
    async with serve(route={"mode": "off", "audit_share": 1.0}) as g:
        for n in range(5):
            await g.ask(chat(f"question {n}"))
        for episode in await drawn(g, 5):
            assert (episode.request.audit, episode.request.propensity) == (False, 1.0)
            assert episode.request.ungoverned == "off"
        assert g.gateway.metrics.value("suffice_audits_total", route="r") == 0


async def test_what_is_not_governed_draws_nothing(serve: Serve) -> None:
    async with serve(route={"audit_share": 1.0}) as g:
        await g.ask(chat(n=2))
        request = (await g.episode()).request
        assert (request.audit, request.propensity, request.ungoverned) == (False, 1.0, "n")
