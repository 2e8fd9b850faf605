"""Audits of a route that chooses effort or budget ask twice: the client sees nothing of it, the record everything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from suffice.rollout.assign import REPEAT_SHARE, point_of
from suffice.types import Outcome
from suffice_testing import FakeRequest, Fault, Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_stop import chain, enforcing, reconciled

VLLM: dict[str, Any] = {"upstream": {"driver": "vllm", "slots": 4}, "fake": {"dialect": "vllm"}}
AUDIT: dict[str, Any] = {"policy": {"policy": "never"}, "probe": {}, "budget_tokens": 9, "audit_share": 1.0}


def arm_of(g: Served, episode_id: str) -> int:
    """The arm that the episode's own lot draws."""
    point = point_of(episode_id, salt=g.gateway.salt, purpose=b"paired-call")
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


# ---- at a lower price

FLEX: dict[str, Any] = {
    **VLLM["upstream"],
    "paired_fields": {"service_tier": "flex"},
    "paired_price": 0.5,
    "prices": {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 10.0},
}


def without_tier(body: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name != "service_tier"}


def usd(outcome: Outcome) -> float:
    """What the upstream bills: each call at its own price."""
    calls = outcome.calls
    return sum(c.price_share * ((c.prompt_tokens or 0) * 1.0 + c.completion_tokens * 10.0) for c in calls) / 1e6


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "body"])
async def test_only_the_call_that_nobody_waits_for_is_of_the_cheaper_tier(serve: Serve, stream: bool) -> None:
    async with serve(chain(), route=enforcing(**AUDIT), upstream=FLEX, fake=VLLM["fake"]) as g:
        answer = await g.ask(chat(stream=stream, suffice={}))
        outcome, sent = await reconciled(g), g.fake.completions
        direct = await g.direct(chat(stream=stream))
    assert (answer.text, answer.thought, answer.finish) == (direct.text, direct.thought, direct.finish)
    assert [call.body.get("service_tier") for call in sent] == [None] * (len(sent) - 1) + ["flex"]
    assert [call.price_share for call in outcome.calls] == [1.0] * (len(sent) - 1) + [0.5]
    assert outcome.pair_answer == ("4" if arm_of(g, outcome.episode_id) else "5")
    assert outcome.cost_usd == pytest.approx(usd(outcome))
    assert outcome.degraded == ()


@pytest.mark.parametrize(
    "fault",
    [Fault(status=429), Fault(status=400), Fault(die_after=0), Fault(html=True), Fault(status=503)],
    ids=["no capacity", "unknown field", "broken off", "not a stream", "unavailable"],
)
async def test_where_the_tier_is_refused_or_fails_the_call_is_made_at_the_full_price(
    serve: Serve, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    first = chain()

    def says(seen: FakeRequest) -> Reply:
        return Reply(faults=(fault,)) if seen.body.get("service_tier") else first(seen)

    async with serve(says, route=enforcing(**AUDIT), upstream=FLEX, fake=VLLM["fake"]) as g:
        answer = await g.ask(chat(stream=True))
        outcome, sent = await g.outcome(), g.fake.completions
        assert not g.gateway.upstreams["up"].is_paused, "a tier without capacity says nothing of the other"
        await g.ask(chat("nonce=again"))
        await g.episodes(2)
        later = g.fake.completions[len(sent) :]
    assert (answer.text, answer.finish) == ("5 dear", "stop")
    assert [call.body.get("service_tier") for call in sent[-2:]] == ["flex", None]
    assert without_tier(sent[-2].body) == without_tier(sent[-1].body)
    assert outcome.pair_answer == ("4" if arm_of(g, outcome.episode_id) else "5")
    assert outcome.pair_tokens == outcome.calls[-1].completion_tokens > 0
    assert [call.price_share for call in outcome.calls[-2:]] == [0.5, 1.0]
    assert outcome.cost_usd == pytest.approx(usd(outcome))
    assert "service_tier failed" in caplog.text
    assert not any("service_tier" in call.body for call in later), "it is not tried again so soon"


async def test_where_no_further_call_would_be_allowed_the_tier_is_not_tried(serve: Serve) -> None:
    route = enforcing(**AUDIT, max_extra_calls=1, mode="observe")
    async with serve(chain(), route=route, upstream=FLEX, fake=VLLM["fake"]) as g:
        await g.ask(chat())
        outcome = await g.outcome()
    assert outcome.pair_arm is None or outcome.calls[-1].price_share == 1.0
    assert not any("service_tier" in call.body for call in g.fake.completions)


async def test_a_tier_that_is_too_late_is_given_up(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suffice.episode.extra_calls.PAIR_TIMEOUT_S", 0.5)
    first = chain()

    def says(seen: FakeRequest) -> Reply:
        slow = Reply(faults=(Fault(header_delay_s=5.0),))
        return slow if seen.body.get("service_tier") else first(seen)

    async with serve(says, route=enforcing(**AUDIT), upstream=FLEX, fake=VLLM["fake"]) as g:
        await g.ask(chat())
        outcome = await g.outcome()
    assert outcome.pair_answer == ("4" if arm_of(g, outcome.episode_id) else "5")
    assert outcome.calls[-1].price_share == 1.0
