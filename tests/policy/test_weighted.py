"""Votes with weights: what three hand-computed votes come to, and that doubt about one vote is doubt about all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from suffice.policy.base import build_policy
from suffice.policy.weighted import Cges, Cisc
from suffice.signals.observe import Observer
from suffice.types import Decision, Step


def run(policy: Cges | Cisc, votes: Sequence[tuple[str | None, float | None]]) -> list[Decision]:
    """Decide after each vote, given as the answer and the mean probability of its sample's tokens."""
    observer = Observer(policy.needs, "samples")
    steps = [
        Step(index=n, tokens=9, answer=answer, answer_source="sample", logprob=None if sure is None else math.log(sure))
        for n, (answer, sure) in enumerate(votes, 1)
    ]
    return [policy.decide(observer.observe(step)) for step in steps]


def test_three_votes_have_the_share_that_their_softmax_has() -> None:
    # exp(0.9) + exp(0.4) = 2.459603 + 1.491825; with exp(0.2) = 1.221403 for b: 3.951428 of 5.172831
    *_, last = run(Cisc(threshold=0.75), [("a", 0.9), ("b", 0.2), ("a", 0.4)])
    assert last.score == pytest.approx(0.763881, abs=1e-6)
    assert last.stop_reason == "suffices"


def test_three_votes_have_the_posterior_that_bayes_gives_them() -> None:
    # a: 0.8 · (0.5 / 2) · 0.7 = 0.14; b: (0.2 / 2) · 0.5 · (0.3 / 2) = 0.0075; another: 0.1 · 0.25 · 0.15 = 0.00375
    first, _, last = run(Cges(threshold=0.9), [("a", 0.8), ("b", 0.5), ("a", 0.7)])
    assert first.score == pytest.approx(0.8), "one sample is as sure as it says"
    assert last.score == pytest.approx(0.14 / 0.15125)
    assert last.stop_reason == "suffices"


@pytest.mark.parametrize("policy", [Cges(threshold=0.5), Cisc(threshold=0.51)])
def test_a_vote_of_unknown_confidence_goes_on_for_good_and_no_answer_is_no_vote(policy: Cges | Cisc) -> None:
    assert [one.action for one in run(policy, [("a", None), ("a", 0.9), ("a", 0.9)])] == ["continue"] * 3
    assert run(policy, [(None, None), ("a", 0.9), (None, 0.1), ("a", 0.9)])[-1].action == "stop"


def test_impossible_samples_stay_numbers() -> None:
    for sure in (1.0, 1e-300):
        votes = [("a" if n % 3 else "b", sure) for n in range(400)]
        scores = [decision.score for decision in run(Cges(threshold=1.0), votes)]
        assert all(score is not None and 0 <= score <= 1 for score in scores)


def test_the_more_confidence_counts_the_more_the_surer_vote_weighs() -> None:
    votes = [("a", 0.9), ("b", 0.3), ("a", 0.8)]
    shares = [run(Cisc(temperature=t), votes)[-1].score or 0.0 for t in (100.0, 1.0, 0.1)]
    assert shares[0] == pytest.approx(2 / 3, abs=0.01)
    assert shares == sorted(shares)


def test_both_are_built_from_settings() -> None:
    assert build_policy({"policy": "cges"}) == Cges()
    assert build_policy({"policy": "cisc", "temperature": 0.5}) == Cisc(temperature=0.5)
