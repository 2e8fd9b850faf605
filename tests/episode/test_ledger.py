"""The books of one request: client usage and overhead are all that was spent, whatever happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.episode.ledger import CallAccount, Ledger, ReplyState, StopState, suffice_object
from suffice.types import Decision, Purpose, Signals, Step
from tests.drawn import examples
from tests.episode.runs import request

N = st.integers(0, 500)
PURPOSES: st.SearchStrategy[Purpose] = st.sampled_from(get_args(Purpose))


@st.composite
def accounts(draw: st.DrawFn) -> CallAccount:
    """Any account that a call can leave: counted, told, cut off before or after it began, thrown away."""
    began = draw(st.booleans())
    context = draw(N)
    payload = began and draw(st.booleans())
    return CallAccount(
        draw(PURPOSES),
        context_tokens=context,
        began=began,
        prompt_tokens=context + draw(N) if payload else None,
        received_tokens=draw(N) if began else 0,
        reported_tokens=draw(N) if payload else None,
        cancelled=not payload,
        discarded=draw(st.booleans()),
    )


@given(st.lists(accounts(), max_size=8))
@settings(max_examples=examples(200))
def test_usage_and_overhead_are_the_sum_over_all_calls(calls: list[CallAccount]) -> None:
    ledger = Ledger(request(), 0.0, calls=calls)
    outcome = ledger.close(now_s=1.0, default="done")
    usage, more = outcome.usage, outcome.overhead
    prompt = usage.prompt_tokens if usage else 0
    generated = usage.completion_tokens if usage else 0
    assert generated + more.probe_tokens + more.discarded_tokens == sum(c.completion_tokens for c in outcome.calls)
    prompts = sum(c.prompt_tokens or 0 for c in outcome.calls)
    assert prompt + more.extra_prompt_tokens >= prompts
    if any(c.prompt_tokens is not None and c.purpose != "probe" for c in outcome.calls) and prompts >= prompt:
        assert prompt + more.extra_prompt_tokens == prompts
    assert min(more.extra_prompt_tokens, more.cached_prompt_tokens, more.probe_tokens, more.discarded_tokens) >= 0
    assert more.n_extra_calls == max(0, len(calls) - 1)
    assert all(c.prompt_tokens is None for c, a in zip(outcome.calls, calls, strict=True) if not a.began)


def test_the_clients_prompt_is_told_once_and_never_with_a_thought_in_it() -> None:
    ledger = Ledger(request(), 0.0)
    main, probe, end = (ledger.open_call(p) for p in ("main", "probe", "continuation"))
    main.began = probe.began = end.began = True
    main.received_tokens = 40
    probe.context_tokens, probe.prompt_tokens, probe.reported_tokens = 20, 32, 3
    end.context_tokens, end.prompt_tokens, end.reported_tokens = 30, 42, 5
    usage = ledger.usage()
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (12, 45)
    outcome = ledger.close(now_s=0.0, default="done")
    assert [c.prompt_tokens for c in outcome.calls] == [12, 32, 42]
    assert [c.source for c in outcome.calls] == ["estimated", "provider", "provider"]
    assert outcome.overhead.extra_prompt_tokens == 32 + 42
    main.prompt_tokens = 13  # an engine that counts knows better
    assert ledger.client_prompt_tokens() == 13


def test_the_first_stop_is_the_one_that_counts() -> None:
    ledger = Ledger(request(), 0.0)
    for n, action in enumerate(("continue", "stop", "stop"), start=1):
        ledger.record_step(
            Step(index=n, tokens=3, answer=str(n), answer_source="text", text="secret text"),
            Signals(step=n, tokens_used=3 * n, answer=str(n)),
            Decision(action=action, reason=f"reason {n}", stop_reason="suffices" if action == "stop" else None),  # type: ignore[arg-type]
        )
    outcome = ledger.close(now_s=2.5, default="done")
    assert (outcome.stop_step, outcome.would_answer, outcome.decision) == (2, "2", "reason 2")
    assert (outcome.stopped, outcome.end_reason, outcome.duration_s) == (False, "done", 2.5)
    assert [s.action for s in outcome.steps] == ["continue", "stop", "stop"]
    assert "secret text" not in repr(outcome)


def test_ends_rank_failure_over_stop_over_truncation() -> None:
    ledger = Ledger(request(), 0.0, reply=ReplyState(finish_reason="length"))
    assert ledger.close(now_s=0.0, default="done").end_reason == "truncated"
    ledger.stop.acted = True
    assert ledger.close(now_s=0.0, default="done").end_reason == "stopped"
    ledger.end_reason = "client_left"
    assert ledger.close(now_s=0.0, default="done").end_reason == "client_left"


def test_a_run_that_came_to_nothing_is_overhead() -> None:
    stop = StopState(acted=True, finish_method="raw", handover_ms=3.0)
    ledger = Ledger(request(), 0.0, stop=stop, reply=ReplyState(vote=(("4", 2),)))
    for purpose in ("main", "probe"):
        account = ledger.open_call("main" if purpose == "main" else "probe")
        account.prompt_tokens, account.reported_tokens = 10, 7
    ledger.forget_run("govern")
    again = ledger.open_call("rerun")
    again.prompt_tokens, again.reported_tokens = 10, 9
    outcome = ledger.close(now_s=0.0, default="done")
    assert outcome.usage is not None
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (10, 9)
    assert (outcome.overhead.discarded_tokens, outcome.overhead.probe_tokens) == (7, 7)
    assert (outcome.stopped, outcome.finish_method, outcome.vote, outcome.degraded) == (False, None, (), ("govern",))


@dataclass
class EndedTurn:
    stop_certified: bool | None

    def note(self, text: str, calls: Sequence[Mapping[str, Any]], ledger: Ledger) -> None:
        raise AssertionError("the reply is written already")

    def report(self) -> dict[str, Any]:
        return {"stopped": self.stop_certified is not None}


@pytest.mark.parametrize("certified", [None, False, True])
def test_a_reply_that_ends_an_agents_loop_says_whether_that_stop_is_certified(certified: bool | None) -> None:
    ledger = Ledger(request(), 0.0, turn=EndedTurn(certified))
    payload = suffice_object(ledger)
    assert payload["certified"] is (ledger.request.certified if certified is None else certified)
    assert payload["turns"]["stopped"] is (certified is not None)
