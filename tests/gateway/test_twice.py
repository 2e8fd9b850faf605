"""Audits of a route that chooses effort or budget ask twice: the client sees nothing of it, the record everything."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.rollout.assign import REPEAT_SHARE, assign_audit
from suffice_testing import FakeRequest, Fault, Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_stop import chain, enforcing, reconciled

VLLM: dict[str, Any] = {"upstream": {"driver": "vllm", "slots": 4}, "fake": {"dialect": "vllm"}}
AUDIT: dict[str, Any] = {"policy": {"policy": "never"}, "probe": {}, "budget_tokens": 9, "audit_share": 1.0}


def arm_of(g: Served, episode_id: str) -> int:
    """The arm that the episode's own lot draws."""
    point = assign_audit(episode_id, share=0.0, salt=f"{g.gateway.salt}/pair").point
    return int(point >= REPEAT_SHARE)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
@pytest.mark.parametrize("mode", ["observe", "enforce"])
@pytest.mark.parametrize("opened", [False, True], ids=["", "the template opens the thought, the server separates it"])
async def test_an_audit_asks_with_the_arm_too_and_its_client_gets_the_full_run(
    serve: Serve, mode: str, stream: bool, opened: bool
) -> None:
    upstream = VLLM | {"upstream": {**VLLM["upstream"], "think_opened": opened}}
    async with serve(chain(), route=enforcing(**AUDIT, mode=mode), **upstream) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        outcome = await reconciled(g)
        sent = g.fake.completions
        direct = await g.direct(chat(stream=stream))
    assert (answer.text, answer.thought, answer.finish) == (direct.text, direct.thought, direct.finish)
    assert outcome.end_reason == "done"
    n_checkpoints = sum(step.answer_source == "probe" for step in outcome.steps)
    assert [call.purpose for call in outcome.calls] == ["main", *["probe"] * (n_checkpoints + 1)]
    assert "thinking_token_budget" not in sent[0].body
    assert outcome.pair_tokens == outcome.calls[-1].completion_tokens > 0
    if arm_of(g, outcome.episode_id):
        assert (outcome.pair_arm, outcome.answer, outcome.pair_answer) == ("budget_tokens=9", "5", "4")
        assert outcome.pair_propensity == pytest.approx(0.9)
        assert sent[-1].body["thinking_token_budget"] == 9
    else:
        assert (outcome.pair_arm, outcome.answer, outcome.pair_answer) == ("full", "5", "5")
        assert outcome.pair_propensity == pytest.approx(0.1)
        assert "thinking_token_budget" not in sent[-1].body


async def test_now_and_then_the_second_call_is_a_full_run(serve: Serve) -> None:
    async with serve(chain(), route=enforcing(**AUDIT, mode="observe"), **VLLM) as g:
        for n in range(30):
            await g.ask(chat(f"nonce=q{n}"))
            await g.episodes(n + 1)  # a second call that met others would find no room, and not be made
        outcomes = [item.episode.outcome for item in await g.episodes(30)]
    drawn = {outcome.episode_id: arm_of(g, outcome.episode_id) for outcome in outcomes}
    for outcome in outcomes:
        assert outcome.pair_arm == ("budget_tokens=9" if drawn[outcome.episode_id] else "full")
        assert outcome.pair_answer == ("4" if drawn[outcome.episode_id] else "5")
    assert 0 < sum(drawn.values()) <= 30


@pytest.mark.parametrize(
    "change",
    [{"audit_share": 0.0}, {"probe": None}, {"max_extra_calls": 0}, {"budget_tokens": None}],
    ids=["no audit", "no probes", "no extra calls", "no arm"],
)
async def test_where_no_second_call_is_wanted_or_allowed_none_is_made(serve: Serve, change: dict[str, Any]) -> None:
    async with serve(chain(), route=enforcing(**{**AUDIT, "mode": "observe", **change}), **VLLM) as g:
        await g.ask(chat())
        outcome = await g.outcome()
        assert len(g.fake.completions) == 1
    assert (outcome.pair_arm, outcome.pair_propensity, outcome.pair_tokens) == (None, None, None)


async def test_the_clients_own_choice_is_not_asked_a_second_time(serve: Serve) -> None:
    async with serve(chain(), route=enforcing(**AUDIT), **VLLM) as g:
        await g.ask(chat(thinking_token_budget=14))
        assert (await g.outcome()).pair_arm is None


async def test_a_second_call_that_fails_counts_against_the_arm_and_not_against_the_client(serve: Serve) -> None:
    first = chain()
    n_calls = 0

    def says(seen: FakeRequest) -> Reply:
        nonlocal n_calls
        n_calls += 1
        return first(seen) if n_calls == 1 else Reply(faults=(Fault(status=500),))

    setup = {**VLLM, "upstream": {**VLLM["upstream"], "retries": 0}}
    async with serve(says, route=enforcing(**AUDIT), **setup) as g:
        answer = await g.ask(chat(stream=True))
        outcome = await g.outcome()
    assert (answer.status, answer.text, answer.finish) == (200, "5 dear", "stop")
    assert (outcome.end_reason, outcome.answer, outcome.degraded) == ("done", "5", ("probe",))
    assert outcome.pair_arm is not None
    assert outcome.pair_answer is None
