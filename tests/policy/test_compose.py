"""Policies made of policies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from suffice.policy.base import Policy, build_policy, stops_of
from suffice.policy.columns import decide_rows
from suffice.types import Signals

STABLE = {"policy": "stable-answer", "streak": 2}
CONFIDENT = {"policy": "confidence-threshold", "threshold": 0.9}
GIVES_UP = {"policy": "code-stop", "start": 1.0, "top": 1.0, "give_up": 3.0}
ROUNDS = {"policy": "fixed-rounds", "max_steps": 4}


def seen(**known: Any) -> Signals:
    return Signals(**{"step": 5, "tokens_used": 100, "answer": "a", "confidence": 0.5, "degeneration": 0.0, **known})


def build(name: str, *parts: dict[str, Any], **parameters: Any) -> Policy:
    return build_policy({"policy": name, **({"policies": list(parts)} if parts else {}), **parameters})


def verdict(policy: Policy, **known: Any) -> str | None:
    return policy.decide(seen(**known)).stop_reason


def test_guards_hold_a_policy_between_a_smallest_and_a_largest_run() -> None:
    policy = build("guarded", inner=STABLE, min_steps=3, min_tokens=50, max_steps=8, max_tokens=900)
    assert verdict(policy, answer_streak=2) == "suffices"
    assert verdict(policy, answer_streak=2, step=2) is None
    assert verdict(policy, answer_streak=2, tokens_used=49) is None
    assert verdict(policy, answer_streak=1) is None
    assert verdict(policy, answer_streak=1, step=7) is None
    assert verdict(policy, answer_streak=1, step=8) == "budget"
    assert verdict(policy, answer_streak=1, tokens_used=899) is None
    assert verdict(policy, answer_streak=1, tokens_used=900) == "budget"
    assert verdict(policy, answer_streak=2, step=8, tokens_used=900) == "suffices"  # its own reason goes first


def test_a_hard_budget_wins_over_a_minimum() -> None:
    policy = build("guarded", inner=STABLE, min_steps=10, max_tokens=100)
    assert verdict(policy, answer_streak=2, step=2) == "budget"


def test_all_of_waits_for_every_part() -> None:
    policy = build("all-of", STABLE, CONFIDENT)
    assert verdict(policy, answer_streak=2, confidence=0.95) == "suffices"
    assert verdict(policy, answer_streak=1, confidence=0.95) is None
    assert verdict(policy, answer_streak=2, confidence=0.85) is None
    assert verdict(policy, answer_streak=2, confidence=None) is None


def test_a_budget_agrees_with_everything() -> None:
    policy = build("all-of", ROUNDS, STABLE)
    assert verdict(policy, answer_streak=2, step=3) is None
    assert verdict(policy, answer_streak=2, step=4) == "suffices"
    assert verdict(build("all-of", STABLE, ROUNDS), answer_streak=2, step=4) == "suffices"
    assert verdict(build("all-of", ROUNDS, ROUNDS), step=4) == "budget"


def test_rules_that_contradict_each_other_continue() -> None:
    policy = build("all-of", ROUNDS, STABLE, GIVES_UP)
    assert verdict(policy, answer_streak=2, degeneration=9.0) is None
    assert "another that the run is hopeless" in policy.decide(seen(answer_streak=2, degeneration=9.0)).reason
    columns = {
        "step": np.array([5.0]),
        "tokens_used": np.array([100.0]),
        "answer": np.array([1.0]),
        "answer_streak": np.array([2.0]),
        "confidence": np.array([0.5]),
        "degeneration": np.array([9.0]),
    }
    assert stops_of(policy, columns).tolist() == decide_rows(policy, columns).tolist() == [0]


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"answer_streak": 2}, "suffices"),
        ({"degeneration": 9.0, "answer_streak": 1}, "hopeless"),
        ({"degeneration": 9.0, "answer_streak": 2}, "suffices"),  # the first in the list
        ({"degeneration": 9.0, "answer_streak": None}, "hopeless"),
        ({"answer_streak": 1}, None),
    ],
)
def test_any_of_stops_on_two_sides_and_says_on_which(known: dict[str, Any], reason: str | None) -> None:
    policy = build("any-of", STABLE, GIVES_UP)
    assert verdict(policy, **known) == reason


def test_a_composition_needs_what_its_parts_need_each_once() -> None:
    inner = {"policy": "any-of", "policies": [CONFIDENT, GIVES_UP]}
    assert build("all-of", STABLE, CONFIDENT, inner).needs == (
        "stability",
        "confidence",
        "degeneration(delta=0.55)",
    )
