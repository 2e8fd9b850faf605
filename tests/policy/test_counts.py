from __future__ import annotations

import math

import pytest

from suffice.policy.counts import BetaVote
from suffice.signals.observe import Observer
from suffice.types import Decision, Signals, Step


def run(policy: BetaVote, answers: str) -> list[Decision]:
    """Decide after each sample; a dot gives no answer."""
    observer = Observer(policy.needs, "samples")
    steps = [
        Step(index=index, tokens=10, answer=None if answer == "." else answer, answer_source="sample")
        for index, answer in enumerate(answers, 1)
    ]
    return [policy.decide(observer.observe(step)) for step in steps]


def first_stop(policy: BetaVote, answers: str) -> int | None:
    actions = [decision.action for decision in run(policy, answers)]
    return actions.index("stop") + 1 if "stop" in actions else None


@pytest.mark.parametrize(
    ("threshold", "answers", "stop"),
    [
        (0.95, "aaaa", 4),  # 1 - 1/32 = 0.96875
        (0.94, "aaaa", 4),  # 1 - 1/16 = 0.9375 is not enough
        (0.93, "aaaa", 3),
        (0.95, "abaaaaa", 7),  # 6 to 1: 1 - 9/256 = 0.9648; 5 to 1 is 0.9375
        (0.95, "a.a.a.a", 7),  # no answer is no vote
        (0.95, "abababab", None),
        (0.95, "abcaaaa", None),  # 5 to 1: 0.9375
        (0.95, "abcaaaaa", 8),  # 6 to 1: the third answer counts for nothing
        (0.99, "aaaaaa", 6),  # 1 - 1/128
    ],
)
def test_sampling_stops_where_the_lead_is_safe(threshold: float, answers: str, stop: int | None) -> None:
    assert first_stop(BetaVote(threshold=threshold), answers) == stop


def test_four_of_four_reach_the_published_threshold_and_say_so() -> None:
    decision = run(BetaVote(), "aaaa")[-1]
    assert decision.score == 0.96875
    assert decision.reason == "P(lead holds) 0.9688 >= 0.95, with 4 against 0 of 4 votes"
    assert decision.stop_reason == "suffices"


def test_a_low_threshold_still_waits_for_a_second_vote_unless_told_otherwise() -> None:
    assert first_stop(BetaVote(threshold=0.7), "aaa") == 2
    assert first_stop(BetaVote(threshold=0.7, min_samples=1), "aaa") == 1
    assert first_stop(BetaVote(threshold=0.7, min_samples=3), "..aaa") == 5


def test_a_probability_that_is_no_number_continues() -> None:
    odd = Signals(step=9, tokens_used=1, answer="a", n_votes=9, p_majority=math.nan)
    assert BetaVote().decide(odd).action == "continue"
