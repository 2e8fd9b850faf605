"""Which round's answer is used."""

from __future__ import annotations

import math
from collections import Counter
from typing import TypeAlias, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.policy.base import build_policy
from suffice.policy.protocol import Returns, return_step, return_steps, returning, returns_of

Run: TypeAlias = list[tuple[str | None, float | None]]
NONE = [None] * 24
RUNS = st.lists(st.tuples(st.sampled_from([None, "a", "b", "c"]), st.none() | st.floats(0, 1)), max_size=12)
EVERY_CHOICE = pytest.mark.parametrize("returns", get_args(Returns))


def chosen(returns: Returns, answers: str, confidences: list[float | None] | None = None) -> int:
    """A dot gives no answer."""
    return return_step(returns, [None if a == "." else a for a in answers], confidences or NONE)


def test_last_is_the_latest_step_that_gave_an_answer() -> None:
    assert chosen("last", "ab") == 2
    assert chosen("last", "ab..") == 2
    assert chosen("last", "..") == 2
    assert chosen("last", "") == 0


def test_the_most_frequent_answer_is_returned_where_it_stood_first() -> None:
    assert chosen("most-frequent", "abcb") == 2
    assert chosen("most-frequent", "ab") == 1  # a tie goes to the answer seen first
    assert chosen("most-frequent", "abba") == 1
    assert chosen("most-frequent", ".b.") == 2


def test_the_most_confident_answer_is_returned_and_of_equals_the_later() -> None:
    assert chosen("most-confident", "abc", [0.5, 0.9, 0.7]) == 2
    assert chosen("most-confident", "abc", [0.9, 0.9, 0.7]) == 2
    assert chosen("most-confident", "a.c", [0.5, 0.9, None]) == 1  # no answer, no confidence
    assert chosen("most-confident", "abc") == 3
    assert chosen("most-confident", "abc", [math.nan, math.nan, 0.1]) == 3


@EVERY_CHOICE
@given(run=RUNS)
def test_each_prefix_is_chosen_as_if_it_were_the_whole_run(returns: Returns, run: Run) -> None:
    answers, confidences = [a for a, _ in run], [c for _, c in run]
    steps = return_steps(returns, answers, confidences)
    assert steps == [return_step(returns, answers[:n], confidences[:n]) for n in range(1, len(run) + 1)]
    for n, step in enumerate(steps, 1):
        assert 1 <= step <= n
        assert answers[step - 1] is not None or not any(answers[:n])


@given(run=RUNS)
def test_no_answer_has_more_votes_than_the_most_frequent(run: Run) -> None:
    answers = [a for a, _ in run]
    votes = Counter(a for a in answers if a is not None)
    if votes:
        step = return_step("most-frequent", answers, NONE)
        answer = answers[step - 1]
        assert answer is not None
        assert votes[answer] == max(votes.values())
        assert answers.index(answer) == step - 1


def test_a_policy_says_what_is_returned_and_only_the_outermost_does() -> None:
    inner = {"policy": "stable-answer"}
    policy = build_policy({"policy": "guarded", "inner": inner, "returns": "most-frequent"})
    assert returns_of(policy) == "most-frequent"
    assert returning(policy)(["a", "b", "b"], [None] * 3) == 2
    assert returns_of(build_policy(inner)) == "last"
    nested = {"policy": "guarded", "inner": inner, "returns": "most-confident"}
    with pytest.raises(ConfigError, match=r"policy\.any-of\.policies\[1\]\.returns: got 'most-confident'; only"):
        build_policy({"policy": "any-of", "policies": [inner, nested]})
    with pytest.raises(ConfigError, match=r"policy\.guarded\.inner\.returns: got 'most-confident'"):
        build_policy({"policy": "guarded", "inner": nested})


def test_a_confidence_for_each_answer_is_asked_for() -> None:
    with pytest.raises(ValueError, match="2 answers and 1 confidences"):
        return_steps("last", ["a", "b"], [None])
