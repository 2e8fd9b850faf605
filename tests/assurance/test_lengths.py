"""What a thinking run has left is told by the runs that thought longer, and by enough of them."""

from __future__ import annotations

from statistics import mean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.assurance import money
from suffice.assurance.money import MIN_LONGER, MIN_RUNS, RunLengths, TransitionCosts
from suffice.types import Usage


def usage(thought: int, answer: int, prompt: int = 10) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=thought + answer, reasoning_tokens=thought)


def runs_of(pairs: list[tuple[int, int]]) -> RunLengths:
    runs = RunLengths()
    for thought, answer in pairs:
        runs.add(usage(thought, answer))
    return runs


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)), min_size=MIN_RUNS, max_size=90), st.integers(0, 70))
@settings(deadline=None)
def test_it_is_the_mean_over_the_runs_that_thought_longer(pairs: list[tuple[int, int]], used: int) -> None:
    longer = [pair for pair in pairs if pair[0] > used]
    left = runs_of(pairs).remaining(used)
    if len(longer) < MIN_LONGER:
        assert left is None
        return
    assert left is not None
    assert left.n == len(longer)
    assert left.thought_tokens == pytest.approx(mean(thought - used for thought, _ in longer))
    assert left.answer_tokens == pytest.approx(mean(answer for _, answer in longer))
    assert left.tokens > left.answer_tokens, "a run that is still thinking has thought left"


def test_the_plain_mean_would_be_wrong_for_a_run_that_is_already_long() -> None:
    # Nine runs in ten think for 100 tokens, one for 1,000. After 200 tokens, 800 are left; the mean
    # of all, 190, would say that nothing is.
    left = runs_of([(100, 10)] * 90 + [(1_000, 10)] * 10).remaining(200)
    assert left is not None
    assert left.thought_tokens == pytest.approx(800)


def test_few_runs_say_nothing() -> None:
    assert RunLengths().remaining(0) is None
    assert runs_of([(100, 5)] * (MIN_RUNS - 1)).remaining(0) is None
    assert runs_of([(100, 5)] * MIN_RUNS).remaining(0) is not None
    assert runs_of([(100, 5)] * MIN_RUNS).remaining(100) is None, "none of them thought longer"


def test_runs_of_a_class_count_alone_where_they_are_enough() -> None:
    runs = runs_of([(100, 5)] * MIN_RUNS)
    for _ in range(MIN_RUNS - 1):
        runs.add(usage(400, 5), "hard")
    few = runs.remaining(-1, "hard")
    runs.add(usage(400, 5), "hard")
    enough = runs.remaining(-1, "hard")
    assert few is not None
    assert enough is not None
    assert (few.n, enough.n) == (2 * MIN_RUNS - 1, MIN_RUNS)
    assert enough.tokens - 1 == pytest.approx(405)


def test_old_runs_are_forgotten_and_memory_is_bounded() -> None:
    pairs = [(1_000, 1)] * 50 + [(10, 2)] * money.WINDOW_RUNS
    runs = runs_of(pairs)
    left = runs.remaining(0)
    assert left is not None
    assert (left.n, left.thought_tokens, left.answer_tokens) == (money.WINDOW_RUNS, 10, 2)
    assert runs.remaining(10) is None
    assert runs.n == len(pairs)


def test_prompts_are_remembered_as_their_mean() -> None:
    runs = RunLengths()
    for prompt in (10, 20, 60):
        runs.add(usage(1, 1, prompt))
    assert runs.mean_prompt_tokens == pytest.approx(30)


def test_an_unknown_cache_is_thought_to_hold_everything_until_it_is_seen() -> None:
    seen = TransitionCosts()
    assert (seen.cached_share, seen.overlap_tokens) == (1.0, 0.0)
    seen.add_resent(100, 0)
    assert seen.cached_share == 0.0
    seen.add_overlap(7)
    assert seen.overlap_tokens == 7


@given(st.lists(st.tuples(st.integers(1, 1_000), st.integers(0, 2_000)), min_size=1, max_size=30))
def test_the_cached_share_is_a_share(calls: list[tuple[int, int]]) -> None:
    seen = TransitionCosts()
    for prompt, cached in calls:
        seen.add_resent(prompt, cached)
    assert 0 <= seen.cached_share <= 1 + 1e-12


def test_a_cache_that_changes_is_noticed() -> None:
    seen = TransitionCosts()
    for _ in range(1_000):
        seen.add_resent(100, 0)
    for _ in range(1_000):
        seen.add_resent(100, 100)
    assert seen.cached_share > 0.95
