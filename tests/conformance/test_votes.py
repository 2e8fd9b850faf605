"""Rules on votes against their authors' package or definition, on 240 runs of 40 samples."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pytest

from suffice.policy.base import Policy, build_policy
from suffice.policy.sequential import log_mean_ratio, p_mode
from suffice.types import Step
from tests.conformance.runs import SEEDS, first_stop, sampled, votes, with_gaps

RECORDED = json.loads(Path(__file__).with_name("adaptive_consistency.json").read_text("utf-8"))


def stops(policy: Policy, seeds: Sequence[int] = SEEDS) -> list[int]:
    """The number of samples at the first stop of each run; 0: none."""
    return [(first_stop(policy, sampled(votes(seed)), "samples") or (0, None))[0] for seed in seeds]


def by_definition(stop_now: Callable[[list[str | None]], bool], seeds: Sequence[int] = SEEDS) -> list[int]:
    """Where a rule that is written down over the answers so far would stop each run with gaps."""
    result = []
    for seed in seeds:
        answers = with_gaps(votes(seed), seed)
        result.append(next((n for n in range(1, len(answers) + 1) if stop_now(answers[:n])), 0))
    return result


def with_gaps_stops(policy: Policy, seeds: Sequence[int] = SEEDS) -> list[int]:
    runs = (with_gaps(votes(seed), seed) for seed in seeds)
    return [(first_stop(policy, sampled(run), "samples") or (0, None))[0] for run in runs]


def counts(answers: Sequence[str | None]) -> list[int]:
    """Votes of the answers, the largest first, and two zeros behind them."""
    return [*sorted(Counter(a for a in answers if a is not None).values(), reverse=True), 0, 0]


# ---- Adaptive-Consistency ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["beta", "vote-entropy", "vote-share"])
def test_adaptive_consistency_stops_where_the_authors_package_stops(name: str) -> None:
    theirs = RECORDED["first_stop"][name]
    assert stops(build_policy({"policy": name})) == theirs
    assert len(theirs) >= 200
    assert len(set(theirs)) > 3  # the runs tell stops at many places apart


def test_the_beta_rule_is_the_integral_that_the_paper_writes_down() -> None:
    x = np.linspace(0, 1, 20_001)

    def probability(first: int, second: int) -> float:
        density = x**first * (1 - x) ** second
        return float(np.trapezoid(density[x >= 0.5], dx=x[1]) / np.trapezoid(density, dx=x[1]))

    reached = {(a, b): probability(a, b) for a in range(1, 41) for b in range(a + 1) if a + b <= 40}
    threshold = 0.95
    assert all(abs(p - threshold) > 1e-5 for p in reached.values())  # no tie that rounding could turn

    def stop(answers: list[str | None]) -> bool:
        first, second = counts(answers)[:2]
        return first > 0 and reached[first, second] >= threshold

    assert with_gaps_stops(build_policy({"policy": "beta"})) == by_definition(stop)


# ---- ESC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [2, 5, 8])
def test_esc_stops_at_the_end_of_the_first_unanimous_window(window: int) -> None:
    def stop(answers: list[str | None]) -> bool:
        last = answers[-window:]
        return len(answers) % window == 0 and len(set(last)) == 1 and last[0] is not None

    result = by_definition(stop)
    assert with_gaps_stops(build_policy({"policy": "esc", "window": window})) == result
    assert len(set(result)) > 2


def test_sliding_windows_may_begin_anywhere() -> None:
    def stop(answers: list[str | None]) -> bool:
        return len(answers) >= 4 and len(set(answers[-4:])) == 1 and answers[-1] is not None

    policy = build_policy({"policy": "esc", "window": 4, "sliding": True})
    assert with_gaps_stops(policy) == by_definition(stop)


# ---- ConSol --------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [{}, {"p1": 0.7, "alpha": 0.05, "beta": 0.1}, {"p1": 0.6, "alpha": 0.2, "beta": 0.4}])
def test_sprt_is_walds_test_on_the_two_leading_answers(spec: dict[str, float]) -> None:
    p1, alpha, beta = spec.get("p1", 0.5001), spec.get("alpha", 0.05), spec.get("beta", 1 - 0.05 - 0.000024)
    reasons = set()
    for seed in SEEDS:
        answers = with_gaps(votes(seed), seed)
        expected = None
        for n in range(1, len(answers) + 1):
            first, second = counts(answers[:n])[:2]
            likelihood_leads = math.prod([p1] * first + [1 - p1] * second)
            ratio = likelihood_leads / 0.5 ** (first + second)
            if first and ratio >= (1 - beta) / alpha:
                expected = n, "suffices"
            elif first and ratio <= beta / (1 - alpha):
                expected = n, "budget"
            if expected:
                break
        result = first_stop(build_policy({"policy": "sprt", **spec}), sampled(answers), "samples")
        assert result == expected
        reasons.add(result and result[1])
    assert "suffices" in reasons
    assert ("budget" in reasons) == bool(spec)


def test_the_published_sprt_waits_for_a_lead_of_three_votes() -> None:
    def stop(answers: list[str | None]) -> bool:
        return counts(answers)[0] - counts(answers)[1] >= 3

    assert with_gaps_stops(build_policy({"policy": "sprt"})) == by_definition(stop)


@pytest.mark.parametrize("prior", [(1.0, 1.0), (3.0, 2.0), (50.0, 50.0), (1e6, 1e6)])
def test_the_mixture_is_the_mean_likelihood_ratio_over_the_cut_prior(prior: tuple[float, float]) -> None:
    spread = 1 / math.sqrt(sum(prior))
    share = 0.5 + np.linspace(0, min(0.5, 8 * spread), 400_001)[1:-1]
    log_density = (prior[0] - 1) * np.log(2 * share) + (prior[1] - 1) * np.log(2 * (1 - share))
    density = np.exp(log_density - log_density.max())
    for first, second in [(1, 0), (2, 0), (3, 0), (5, 5), (12, 3), (20, 20), (40, 0)]:
        ratio = (2 * share) ** first * (2 * (1 - share)) ** second
        expected = math.log(float((density * ratio).sum() / density.sum()))
        assert log_mean_ratio(first, second, *prior) == pytest.approx(expected, rel=2e-4, abs=2e-7)


def test_msprt_stops_where_the_mean_ratio_passes_walds_boundaries() -> None:
    alpha, beta = 0.05, 1 - 0.05 - 0.00006
    share = 0.5 + np.linspace(0, 0.004, 100_001)
    density = np.exp((1e6 - 1) * (np.log(2 * share) + np.log(2 * (1 - share))))

    @cache
    def ratio(first: int, second: int) -> float:
        return float((density * (2 * share) ** first * (2 * (1 - share)) ** second).sum() / density.sum())

    def stop(answers: list[str | None]) -> bool:
        first, second = counts(answers)[:2]
        return first > 0 and not beta / (1 - alpha) < ratio(first, second) < (1 - beta) / alpha

    assert with_gaps_stops(build_policy({"policy": "msprt"})) == by_definition(stop)


# ---- the three counts ----------------------------------------------------------------------------

SHAPES = [(0.6, 0.2, 0.1, 0.06, 0.04), (0.3, 0.25, 0.2, 0.15, 0.1), (0.9, 0.05, 0.05), (0.4, 0.4, 0.2)]


def enumerated(weighted: Sequence[tuple[float, Sequence[float]]], n_votes: int) -> dict[tuple[int, int, int], float]:
    """The posterior from first principles: every way in which `n_votes` votes can fall on the answers.

    The leader is drawn by lot among answers with equally many votes.
    """
    leads: defaultdict[tuple[int, int, int], float] = defaultdict(float)
    whole: defaultdict[tuple[int, int, int], float] = defaultdict(float)
    for weight, shape in weighted:
        for fallen in itertools.product(range(n_votes + 1), repeat=len(shape)):
            if sum(fallen) != n_votes:
                continue
            ways = math.factorial(n_votes) / math.prod(math.factorial(c) for c in fallen)
            probability = weight * ways * math.prod(p**c for p, c in zip(shape, fallen, strict=True))
            first, second, *_ = sorted(fallen, reverse=True)
            key = first, second, n_votes - first - second
            whole[key] += probability
            if fallen[0] == first:
                leads[key] += probability / fallen.count(first)
    return {key: leads[key] / whole[key] for key in whole}


def test_the_posterior_of_three_counts_is_that_of_all_ways_the_votes_can_fall() -> None:
    compared = 0
    for shape in SHAPES:
        for n_votes in range(1, 10):
            for (first, second, rest), expected in enumerated([(1.0, shape)], n_votes).items():
                assert p_mode((tuple(shape),), first, second, rest) == pytest.approx(expected, rel=1e-9)
                compared += 1
    assert compared >= 200


def test_a_mixture_of_shapes_is_weighed_by_how_well_each_explains_the_votes() -> None:
    weighted = [(0.7, SHAPES[2]), (0.2, SHAPES[1]), (0.1, SHAPES[3])]
    shapes = tuple(tuple(weight * p for p in shape) for weight, shape in weighted)
    for n_votes in (1, 2, 5, 7):
        for counted, expected in enumerated(weighted, n_votes).items():
            assert p_mode(shapes, *counted) == pytest.approx(expected, rel=1e-9)


def test_the_bayesian_stop_is_made_where_that_posterior_reaches_the_threshold() -> None:
    weighted = [(0.5, (0.7, 0.2, 0.1)), (0.3, (0.45, 0.35, 0.2)), (0.2, (0.4, 0.3, 0.2, 0.1))]
    posterior = {key: p for n in range(1, 11) for key, p in enumerated(weighted, n).items()}

    def stop(answers: list[str | None]) -> bool:
        first, second = counts(answers)[:2]
        key = first, second, sum(counts(answers)) - first - second
        return sum(key) >= 2 and posterior.get(key, 0.0) >= 0.9

    shapes = [[weight * p for p in shape] for weight, shape in weighted]
    policy = build_policy({"policy": "bayes", "shapes": shapes, "threshold": 0.9})
    result, expected = [], []
    for seed in SEEDS:
        answers = with_gaps(votes(seed, 10), seed)
        result.append((first_stop(policy, sampled(answers), "samples") or (0, None))[0])
        expected.append(next((n for n in range(1, 11) if stop(answers[:n])), 0))
    assert result == expected
    assert len(set(result)) > 3


# ---- confidence momentum -------------------------------------------------------------------------


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("dial", [0.0, 0.5, 1.0])
def test_momentum_waits_for_a_smoothed_lead_that_does_not_fall(dial: float) -> None:
    alpha, bar, slack, least = 0.7 - 0.4 * dial, 0.85 + 0.12 * dial, 0.04 - 0.03 * dial, round(2 + 3 * dial)

    def lead(answers: list[str | None]) -> float:
        first, second = counts(answers)[:2]
        coins = first + second + 1
        return sum(math.comb(coins, heads) for heads in range(first + 1)) / float(2**coins)

    def stop(answers: list[str | None]) -> bool:
        smoothed: list[float] = []
        for n in range(1, len(answers) + 1):
            if counts(answers[:n])[0] == 0:
                continue
            now = lead(answers[:n])
            smoothed.append(alpha * now + (1 - alpha) * smoothed[-1] if smoothed else now)
        if not smoothed or sum(counts(answers)) < least:
            return False
        change = smoothed[-1] - smoothed[-2] if len(smoothed) > 1 else 0.0
        return smoothed[-1] >= bar and change >= -slack

    seeds = SEEDS[:200]
    result = by_definition(stop, seeds)
    assert with_gaps_stops(build_policy({"policy": "momentum", "dial": dial}), seeds) == result
    assert len(set(result)) > 3


# ---- weighted votes ------------------------------------------------------------------------------


def surely(seed: int) -> list[Step]:
    """Samples with gaps, each with the mean probability of its tokens."""
    rng = random.Random(seed + 3_000_000)
    steps = sampled(with_gaps(votes(seed, 16), seed))
    return [replace(step, logprob=math.log(rng.uniform(0.05, 0.98))) for step in steps]


Vote: TypeAlias = tuple[str, float]  # answer and confidence


def leader_of(given: Sequence[Vote]) -> str:
    """The most frequent answer; of equals the first."""
    return max(given, key=lambda vote: sum(answer == vote[0] for answer, _ in given))[0]


def weighted_stops(policy: Policy, stop_now: Callable[[list[Vote], str], bool]) -> tuple[list[int], list[int]]:
    """Where the policy stops, and where a rule over the votes so far and the leader would; 0: nowhere."""
    actual, expected = list[int](), list[int]()
    for seed in SEEDS:
        steps = surely(seed)
        actual.append((first_stop(policy, steps, "samples") or (0, None))[0])
        given = [[(s.answer, math.exp(s.logprob or 0.0)) for s in steps[:n] if s.answer] for n in range(1, 17)]
        expected.append(next((n for n, votes in enumerate(given, 1) if votes and stop_now(votes, leader_of(votes))), 0))
    return actual, expected


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_cisc_asks_for_a_share_of_the_softmax_of_the_confidences(temperature: float) -> None:
    def stop(given: list[Vote], leader: str) -> bool:
        total = sum(math.exp(c / temperature) for _, c in given)
        return len(given) >= 2 and sum(math.exp(c / temperature) / total for a, c in given if a == leader) >= 0.8

    actual, expected = weighted_stops(build_policy({"policy": "cisc", "temperature": temperature}), stop)
    assert actual == expected
    assert len(set(actual)) > 3


def test_cges_asks_for_the_posterior_of_the_leader_among_the_answers_seen_and_one_more() -> None:
    def stop(given: list[Vote], leader: str) -> bool:
        seen = {answer for answer, _ in given}
        like = {
            right: math.prod(c if answer == right else (1 - c) / len(seen) for answer, c in given)
            for right in [*seen, "none of them"]
        }
        return like[leader] / sum(like.values()) >= 0.95

    actual, expected = weighted_stops(build_policy({"policy": "cges"}), stop)
    assert actual == expected
    assert len(set(actual)) > 3
