from __future__ import annotations

import math

import pytest

from suffice.errors import ConfigError
from suffice.policy.base import describe, version_of
from suffice.policy.counts import BetaVote
from suffice.policy.rules import ConfidenceThreshold, FixedBudget, FixedRounds, Never, StableAnswer
from suffice.types import Signals


def seen(*, step: int = 5, tokens_used: int = 100, **known: object) -> Signals:
    return Signals(step=step, tokens_used=tokens_used, **{"answer": "a", **known})  # type: ignore[arg-type]


def test_never_never_stops() -> None:
    certain = seen(answer_streak=99, confidence=1.0, p_majority=1.0, n_votes=99)
    assert Never().decide(certain).action == "continue"


@pytest.mark.parametrize(("tokens_used", "action"), [(99, "continue"), (100, "stop"), (101, "stop")])
def test_a_budget_stops_where_it_is_reached_even_without_an_answer(tokens_used: int, action: str) -> None:
    decision = FixedBudget(max_tokens=100).decide(seen(tokens_used=tokens_used, answer=None))
    assert decision.action == action
    assert decision.stop_reason == ("budget" if action == "stop" else None)
    assert str(tokens_used) in decision.reason
    assert "100" in decision.reason


def test_so_many_rounds_stop_even_without_an_answer() -> None:
    assert FixedRounds(max_steps=6).decide(seen(answer=None)).action == "continue"
    decision = FixedRounds(max_steps=5).decide(seen(answer=None))
    assert decision.stop_reason == "budget"
    assert decision.reason == "step 5 reached the limit of 5"


@pytest.mark.parametrize(
    ("policy", "signals", "action"),
    [
        (StableAnswer(streak=3), seen(answer_streak=2), "continue"),
        (StableAnswer(streak=3), seen(answer_streak=3), "stop"),
        (StableAnswer(streak=3, min_tokens=101), seen(answer_streak=3), "continue"),
        (StableAnswer(streak=3, min_tokens=100), seen(answer_streak=3), "stop"),
        (StableAnswer(streak=3, min_steps=6), seen(answer_streak=3), "continue"),
        (StableAnswer(streak=3, min_steps=5), seen(answer_streak=3), "stop"),
        (StableAnswer(streak=3), seen(answer_streak=3, hedges=4), "stop"),
        (StableAnswer(streak=3, no_hedges=True), seen(answer_streak=3, hedges=4), "continue"),
        (StableAnswer(streak=3, no_hedges=True), seen(answer_streak=3, hedges=None), "continue"),
        (StableAnswer(streak=3, no_hedges=True), seen(answer_streak=3, hedges=0), "stop"),
        (StableAnswer(streak=1), seen(answer=None, answer_streak=0), "continue"),
        (StableAnswer(min_share=0.4), seen(answer_streak=3, step_share=0.39), "continue"),
        (StableAnswer(min_share=0.4), seen(answer_streak=3, step_share=0.4), "stop"),
        (StableAnswer(min_share=0.4), seen(answer_streak=3, step_share=None), "continue"),
        (StableAnswer(min_share=0.4), seen(answer_streak=3, step_share=math.nan), "continue"),
    ],
)
def test_a_stable_answer_stops_once_nothing_speaks_against_it(
    policy: StableAnswer, signals: Signals, action: str
) -> None:
    assert policy.decide(signals).action == action


@pytest.mark.parametrize(
    ("policy", "signals", "action"),
    [
        (ConfidenceThreshold(), seen(confidence=0.949), "continue"),
        (ConfidenceThreshold(), seen(confidence=0.95), "stop"),
        (ConfidenceThreshold(), seen(confidence=0.99, answer=None), "continue"),
        (ConfidenceThreshold(), seen(confidence=math.nan), "continue"),
        (ConfidenceThreshold(threshold=0.5, patience=2), seen(confidence=0.6, answer_streak=1), "continue"),
        (ConfidenceThreshold(threshold=0.5, patience=2), seen(confidence=0.6, answer_streak=2), "stop"),
        (ConfidenceThreshold(min_mass=0.5), seen(confidence=0.99, mass=0.49), "continue"),
        (ConfidenceThreshold(min_mass=0.5), seen(confidence=0.99, mass=0.5), "stop"),
        (ConfidenceThreshold(min_mass=0.5), seen(confidence=0.99, mass=None), "continue"),
        (ConfidenceThreshold(), seen(confidence=0.99, mass=0.01), "stop"),
    ],
)
def test_a_confident_answer_stops(policy: ConfidenceThreshold, signals: Signals, action: str) -> None:
    decision = policy.decide(signals)
    assert decision.action == action
    assert decision.score == signals.confidence or decision.score is None or math.isnan(decision.score)


def test_a_policy_built_in_code_is_checked_like_one_from_a_file() -> None:
    with pytest.raises(ConfigError, match=r"stable-answer\.streak: got 0; a whole number from 1 to 1,000"):
        StableAnswer(streak=0)
    with pytest.raises(ConfigError, match=r"threshold: got 1\.5; a number above 0 and at most 1\.0"):
        ConfidenceThreshold(threshold=1.5)
    with pytest.raises(ConfigError, match=r"max_tokens: got a whole number of about 401 digits"):
        FixedBudget(max_tokens=10**400)


def test_a_whole_number_where_a_fraction_belongs_is_the_same_policy() -> None:
    assert describe(ConfidenceThreshold(threshold=1)) == describe(ConfidenceThreshold(threshold=1.0))
    assert version_of(ConfidenceThreshold(threshold=1)) == version_of(ConfidenceThreshold(threshold=1.0))


def test_versions_written_into_logs_stay_what_they_are() -> None:
    # Another value here cuts every logged decision off from its policy: only with a migration.
    assert version_of(Never()) == "p-2c07130b248a"
    assert version_of(StableAnswer()) == "p-731547829e8a"
    assert version_of(ConfidenceThreshold()) == "p-c78382d6a14e"
    assert version_of(BetaVote()) == "p-37749b821efc"


def test_a_parameter_that_came_later_changes_a_version_only_where_it_is_used() -> None:
    assert version_of(StableAnswer(min_share=0.0)) == version_of(StableAnswer())
    assert version_of(StableAnswer(min_share=0.1)) != version_of(StableAnswer())
    assert describe(StableAnswer())["min_share"] == 0.0


def test_what_is_not_in_the_table_has_no_version() -> None:
    class Foreign(Never):
        pass

    with pytest.raises(ConfigError, match="policy: Foreign is unknown; known: all-of, "):
        version_of(Foreign())
