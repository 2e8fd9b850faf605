"""What a run saved is the full run less everything that was generated for it, for every run and so for their sum."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.assurance.saving import LESS_EFFORT, saved_tokens, saved_usd, spent_tokens
from suffice.types import Outcome, Overhead, Usage
from tests.records import plain_request, plain_step

N = st.integers(0, 10_000)


def outcome(**given: Any) -> Outcome:
    plain: dict[str, Any] = {
        "episode_id": "e",
        "end_reason": "done",
        "status": 200,
        "answer": "4",
        "response_id": None,
        "usage": Usage(prompt_tokens=9, completion_tokens=100),
    }
    return Outcome(**plain | given)


@given(length=N, probes=N, discarded=N)
def test_a_run_that_nothing_stopped_lost_what_suffice_spent_on_it(length: int, probes: int, discarded: int) -> None:
    usage, overhead = Usage(prompt_tokens=9, completion_tokens=length), Overhead(probe_tokens=probes)
    ended = outcome(usage=usage, overhead=Overhead(probe_tokens=probes, discarded_tokens=discarded))
    for audit in (False, True):
        request = plain_request("e", mode="enforce", audit=audit)
        assert saved_tokens(request, ended) == length - spent_tokens(usage, ended.overhead)
    assert spent_tokens(usage, overhead) == length + probes


def test_a_stopped_run_saved_what_was_estimated_and_an_unknown_saving_is_not_zero() -> None:
    request = plain_request("e", mode="enforce")
    stopped = outcome(stopped=True, end_reason="stopped", tokens_saved_estimate=-7, saved_usd_estimate=-0.5)
    assert (saved_tokens(request, stopped), saved_usd(request, stopped)) == (-7, -0.5)
    unknown = outcome(stopped=True, end_reason="stopped")
    assert saved_tokens(request, unknown) is saved_usd(request, unknown) is None
    assert saved_tokens(request, outcome(usage=None)) is saved_usd(request, outcome()) is None
    passed = plain_request("e", ungoverned="tools")
    assert saved_tokens(passed, stopped) is saved_usd(passed, stopped) is None


def test_an_estimate_counts_however_the_thought_was_closed() -> None:
    """A run with less effort that is closed at its cap has another finish method than its effort."""
    request = plain_request("e", mode="enforce")
    closed = outcome(finish_method="raw", tokens_saved_estimate=40, saved_usd_estimate=0.2, cost_usd=0.6)
    assert (saved_tokens(request, closed), saved_usd(request, closed)) == (40, 0.2)
    of_an_old_log = outcome(finish_method=LESS_EFFORT, cost_usd=0.6, overhead_usd=0.0)
    closed_at_its_cap = outcome(finish_method="raw", has_less_effort=True, cost_usd=0.6, overhead_usd=0.0)
    for unknown in (of_an_old_log, closed_at_its_cap):
        assert saved_tokens(request, unknown) is saved_usd(request, unknown) is None


def test_a_decided_vote_saved_the_samples_that_it_did_not_draw() -> None:
    steps = tuple(plain_step(n, answer_source="sample") for n in range(1, 6))
    ended = outcome(
        usage=Usage(prompt_tokens=9, completion_tokens=50),
        overhead=Overhead(discarded_tokens=5),
        vote=(("4", 5),),
        steps=steps,
        cost_usd=0.6,
        overhead_usd=0.1,
    )
    request = plain_request("e", kind="samples", mode="enforce", n_samples=9)
    assert saved_tokens(request, ended) == 90 - 55
    assert saved_usd(request, ended) == pytest.approx(0.5 * 9 / 5 - 0.6)
