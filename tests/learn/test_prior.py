"""The prior of the Bayesian stop: what it is, and that a stop made with it keeps its word."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from suffice.errors import ConfigError
from suffice.learn.models import learn_prior
from suffice.policy.base import Policy, build_policy
from suffice.policy.sequential import p_mode
from suffice.signals.observe import Observer
from suffice.types import Step
from tests.drawn import examples

RUNS = st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=15), min_size=1, max_size=40)


@settings(max_examples=examples(50))
@given(runs=RUNS, n_shapes=st.integers(1, 64), n_answers=st.integers(2, 32))
def test_shapes_fall_and_their_weights_sum_to_one(runs: list[list[int]], n_shapes: int, n_answers: int) -> None:
    shapes = learn_prior(runs, n_shapes=n_shapes, n_answers=n_answers)
    assert 1 <= len(shapes) <= min(n_shapes, len(runs))
    assert sum(map(sum, shapes)) == pytest.approx(1.0)
    assert all(len(shape) <= n_answers for shape in shapes)
    assert all(list(shape) == sorted(shape, reverse=True) for shape in shapes)
    assert build_policy({"policy": "bayes", "shapes": shapes}).needs == ("votes",)


def test_the_same_runs_in_another_order_teach_the_same() -> None:
    runs = [[9, 1], [4, 3, 3], [10], [6, 2, 2]]
    once, again = learn_prior(runs, n_shapes=2), learn_prior([*runs[2:], *[r[::-1] for r in runs[:2]]], n_shapes=2)
    assert [p for shape in once for p in shape] == pytest.approx([p for shape in again for p in shape])


def test_easy_traffic_makes_the_leader_credible_sooner_than_hard_traffic() -> None:
    easy, hard = learn_prior([[10], [9, 1]] * 10), learn_prior([[4, 3, 2, 1], [3, 3, 2, 2]] * 10)
    assert p_mode(easy, 2, 0, 0) > 0.95
    assert p_mode(hard, 2, 0, 0) < 0.6


@pytest.mark.parametrize("wrong", [[], [[]], [[0, 3]], [[-1]], [[1.5]]])
def test_runs_without_votes_are_refused(wrong: list[list[int]]) -> None:
    with pytest.raises(ConfigError, match="learn_prior: "):
        learn_prior(wrong)


MIXED, EASY = (1, 1, 3, 8, 20), (8, 20)  # how sharp answer distributions are


def questions(seed: int, n_questions: int, sharpness: tuple[int, ...]) -> list[list[float]]:
    """Answer distributions of some traffic, falling: the first answer is the model's most frequent one."""
    rng = random.Random(seed)
    distributions = []
    for _ in range(n_questions):
        exponent = rng.choice(sharpness)
        weights = [rng.random() ** exponent for _ in range(rng.randint(2, 8))]
        distributions.append(sorted((w / sum(weights) for w in weights), reverse=True))
    return distributions


def sample(shape: list[float], n: int, rng: random.Random) -> list[str]:
    return [str(answer) for answer in rng.choices(range(len(shape)), shape, k=n)]


def stopped(policy: Policy, answers: list[str]) -> tuple[int, str | None, bool]:
    """Samples drawn, the answer returned, and whether that was a stop."""
    observer = Observer(policy.needs, "samples")
    for n, answer in enumerate(answers, 1):
        seen = observer.observe(Step(index=n, tokens=1, answer=answer, answer_source="sample"))
        if policy.decide(seen).stop:
            return n, seen.answer, True
    return len(answers), seen.answer, False


def figures(policy: Policy, runs: list[list[str]]) -> tuple[int, float, int]:
    """Stops, the share of them at the most frequent answer, and samples drawn in all."""
    ended = [stopped(policy, answers) for answers in runs]
    at_mode = [leader == "0" for _, leader, did_stop in ended if did_stop]
    return len(at_mode), sum(at_mode) / len(at_mode), sum(n for n, _, _ in ended)


@pytest.mark.slow
@pytest.mark.parametrize("sharpness", [MIXED, EASY], ids=["mixed", "easy"])
def test_the_leader_of_a_stopped_vote_is_the_most_frequent_answer_as_often_as_promised(
    sharpness: tuple[int, ...],
) -> None:
    rng = random.Random(7)
    recorded = [list(Counter(sample(shape, 40, rng)).values()) for shape in questions(1, 400, sharpness)]
    runs = [sample(shape, 40, rng) for shape in questions(2, 600, sharpness)]
    n_stops, right, drawn = figures(build_policy({"policy": "bayes", "shapes": learn_prior(recorded)}), runs)
    _, right_beta, drawn_beta = figures(build_policy({"policy": "beta"}), runs)
    print(f"bayes: {right:.3f} of {n_stops} stops right, {drawn} samples; beta: {right_beta:.3f}, {drawn_beta} samples")
    assert n_stops > 300
    assert right >= 0.95
    if sharpness == EASY:
        assert drawn < drawn_beta  # what the prior is for
    else:
        assert right > right_beta  # which promises 0.95 and does not know how often answers nearly tie
