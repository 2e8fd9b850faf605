"""Rules on chains and rounds against their published definitions, on 240 runs of 60 steps.

Each expectation is written from the paper's formula over the whole run so far, without our signals.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from suffice.policy.base import Policy, build_policy
from suffice.types import Step
from tests.conformance.runs import SEEDS, chain, first_stop

Verdict = str | None


def compare(policy: Policy, rule: Callable[[list[Step]], Verdict]) -> Sequence[tuple[int, str | None] | None]:
    """Assert that both stop every run at the same step for the same reason; return where."""
    result = []
    for seed in SEEDS:
        steps = chain(seed)
        verdicts = ((n, rule(steps[:n])) for n in range(1, len(steps) + 1))
        expected = next(((n, reason) for n, reason in verdicts if reason), None)
        result.append(first_stop(policy, steps, "reasoning"))
        assert result[-1] == expected, f"run {seed}"
    assert len(result) >= 200
    assert len(set(result)) > 5  # the runs tell stops at many places apart
    return result


def geometric(step: Step) -> float:
    return math.prod(math.exp(logprob) for logprob in step.logprobs) ** (1 / len(step.logprobs))


def confidences(steps: Sequence[Step]) -> list[float]:
    return [geometric(step) for step in steps if step.answer is not None]


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize("streak", [2, 3, 8])
def test_answer_convergence_waits_for_equal_answers_in_a_row(streak: int) -> None:
    def rule(steps: list[Step]) -> Verdict:
        last = [step.answer for step in steps[-streak:]]
        return "suffices" if len(last) == streak and len(set(last)) == 1 and None not in last else None

    compare(build_policy({"policy": "stable-answer", "streak": streak}), rule)


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize(("effort", "m"), [("mild", 8), ("low", 5), ("mid", 3), ("high", 2), ("crazy", 2)])
def test_dynasor_waits_for_m_equal_probes_and_a_last_step_without_doubt(effort: str, m: int) -> None:
    def rule(steps: list[Step]) -> Verdict:
        last = [step.answer for step in steps[-m:]]
        agree = len(last) == m and len(set(last)) == 1 and None not in last
        doubt = any(word in steps[-1].text.lower() for word in ("wait", "hmm"))
        return "suffices" if agree and not doubt else None

    compare(build_policy({"policy": "dynasor", "effort": effort}), rule)


def test_dynasor_never_leaves_through_the_exit_without_agreement() -> None:
    for seed in SEEDS:
        steps = chain(seed)
        stop = first_stop(build_policy({"policy": "dynasor", "effort": "mild"}), steps, "reasoning")
        if stop is not None:
            assert len({step.answer for step in steps[stop[0] - 8 : stop[0]]}) == 1


@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_deer_asks_for_a_mean_probability_above_the_threshold(mean: str) -> None:
    def rule(steps: list[Step]) -> Verdict:
        step = steps[-1]
        probabilities = [math.exp(logprob) for logprob in step.logprobs]
        value = sum(probabilities) / len(probabilities) if mean == "arithmetic" else geometric(step)
        return "suffices" if step.answer is not None and value > 0.95 else None

    compare(build_policy({"policy": "deer", "mean": mean}), rule)


@pytest.mark.parametrize("give_up", [4.0, 12.0])
def test_code_stop_has_a_rising_bar_and_gives_up_on_a_degenerating_run(give_up: float) -> None:
    def rule(steps: list[Step]) -> Verdict:
        if steps[-1].answer is None:
            return None
        k, c = len(steps), confidences(steps)
        bar = min(0.95, 0.9 + (0.95 - 0.9) / 2 * k)
        if c[-1] >= bar:
            return "suffices"
        tokens = [sum(s.tokens for s in steps[:i]) for i, s in enumerate(steps, 1) if s.answer is not None]
        score = 0.0
        for i in range(len(c)):
            before = c[i - 1] if i else c[0]
            low = 1 if 2 * c[i] - before < 0.55 else 0
            score += (math.log(tokens[-1] / tokens[i]) + 1) * low
        return "hopeless" if score >= give_up else None

    result = compare(build_policy({"policy": "code-stop", "give_up": give_up}), rule)
    assert {stop and stop[1] for stop in result} >= {"suffices", "hopeless"}


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("alpha", [0.2, 0.1])
def test_eat_waits_until_the_moving_variance_of_the_entropy_is_small(alpha: float) -> None:
    delta = 2e-3

    def rule(steps: list[Step]) -> Verdict:
        entropies = [step.closed_entropy for step in steps]
        mean, variance = entropies[0] or 0.0, 0.0
        for entropy in entropies[1:]:
            assert entropy is not None
            mean = alpha * entropy + (1 - alpha) * mean
            variance = alpha * (entropy - mean) ** 2 + (1 - alpha) * variance
        settled = len(steps) >= 4 / alpha and variance < delta
        return "suffices" if settled and steps[-1].answer is not None else None

    compare(build_policy({"policy": "eat", "alpha": alpha, "delta": delta}), rule)


@pytest.mark.parametrize("threshold", [0.8, 3.0])
def test_cusum_is_the_largest_sum_over_the_latest_steps_of_how_far_the_entropy_lies_below_the_reference(
    threshold: float,
) -> None:
    reference = 0.1

    def rule(steps: list[Step]) -> Verdict:
        below = [reference - (step.closed_entropy or 0.0) for step in steps]
        latest = max(0.0, *(sum(below[at:]) for at in range(len(below))))
        return "suffices" if steps[-1].answer is not None and latest >= threshold else None

    compare(build_policy({"policy": "cusum", "reference": reference, "threshold": threshold}), rule)


def test_halt_cot_asks_for_an_entropy_below_theta() -> None:
    theta_nats = 0.05

    def rule(steps: list[Step]) -> Verdict:
        entropy = steps[-1].entropy
        return "suffices" if steps[-1].answer is not None and entropy is not None and entropy < theta_nats else None

    compare(build_policy({"policy": "halt-cot", "theta": theta_nats}), rule)


def test_the_published_theta_of_halt_cot_is_six_tenths_of_a_bit() -> None:
    assert build_policy({"policy": "halt-cot"}) == build_policy({"policy": "halt-cot", "theta": 0.4159})
    assert round(0.6 * math.log(2), 4) == 0.4159


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("calibration", [[], [[0.0, 0.1], [0.5, 0.2], [1.0, 0.9]]])
def test_tasr_asks_for_a_repeated_answer_and_a_margin(calibration: list[list[float]]) -> None:
    def calibrated(margin: float) -> float:
        for (low, at_low), (high, at_high) in pairwise(calibration):
            if low <= margin <= high:
                return at_low + (at_high - at_low) * (margin - low) / (high - low)
        return margin

    def rule(steps: list[Step]) -> Verdict:
        if len(steps) < 2 or steps[-1].answer is None or steps[-1].answer != steps[-2].answer:
            return None
        margin = steps[-1].margin
        return "suffices" if margin is not None and calibrated(margin) > 0.25 else None

    compare(build_policy({"policy": "tasr", "calibration": calibration}), rule)


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_semantic_stopping_waits_for_drafts_that_stand_still(patience: int) -> None:
    epsilon = 0.1

    def distance(a: Sequence[float], b: Sequence[float]) -> float:
        return 1 - sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))

    def rule(steps: list[Step]) -> Verdict:
        if len(steps) <= patience or steps[-1].answer is None:
            return None
        last = steps[-patience - 1 :]
        still = all(distance(a.vector, b.vector) <= epsilon for a, b in pairwise(last))
        return "suffices" if still else None

    compare(build_policy({"policy": "semantic-distance", "epsilon": epsilon, "patience": patience}), rule)


def test_think_brake_asks_for_a_small_margin_to_the_end_of_thought() -> None:
    def rule(steps: list[Step]) -> Verdict:
        margin = steps[-1].end_margin
        return "suffices" if steps[-1].answer is not None and margin is not None and margin <= 0.25 else None

    compare(build_policy({"policy": "think-brake", "threshold": 0.25}), rule)


def test_the_redundancy_detector_counts_words_that_the_run_had() -> None:
    policy, result = build_policy({"policy": "redundant", "threshold": 0.6}), set()
    for seed in SEEDS:
        rng = random.Random(seed)
        texts = [" ".join(rng.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=5)) for _ in range(20)]
        steps = [
            Step(index=n, tokens=5, answer="7", answer_source="probe", text=text) for n, text in enumerate(texts, 1)
        ]
        shares = [sum(word in " ".join(texts[:n]) for word in text.split()) / 5 for n, text in enumerate(texts)]
        expected = next(((n, "suffices") for n, share in enumerate(shares, 1) if share >= 0.6), None)
        assert first_stop(policy, steps, "reasoning") == expected
        result.add(expected)
    assert len(result) > 5


def test_a_text_rule_looks_for_its_pattern_in_the_last_step() -> None:
    def rule(steps: list[Step]) -> Verdict:
        result = re.search(r"\bso it|two", steps[-1].text, re.IGNORECASE)
        return "suffices" if steps[-1].answer is not None and result else None

    compare(build_policy({"policy": "text-rule", "pattern": r"\bso it|two"}), rule)


@pytest.mark.parametrize("extension", [0, 4])
def test_a_turn_cap_is_extended_while_the_answer_is_not_repeated(extension: int) -> None:
    def rule(steps: list[Step]) -> Verdict:
        settled = len(steps) > 1 and steps[-1].answer is not None and steps[-1].answer == steps[-2].answer
        return "budget" if len(steps) >= 5 + (0 if settled else extension) else None

    policy = build_policy({"policy": "turn-cap", "max_steps": 5, "extension": extension})
    stops = [first_stop(policy, chain(seed), "rounds") for seed in SEEDS]
    for seed, stop in zip(SEEDS, stops, strict=True):
        verdicts = ((n, rule(chain(seed)[:n])) for n in range(1, 61))
        assert stop == next((n, reason) for n, reason in verdicts if reason)
    assert {stop and stop[0] for stop in stops} == set(range(5, 6 + extension))


def test_a_confident_first_sample_is_enough_and_a_later_one_is_not() -> None:
    policy = build_policy({"policy": "confident-sample", "threshold": 0.9})
    sure, unsure = math.log(0.95), math.log(0.85)
    for first, expected in ((sure, (1, "suffices")), (unsure, None), (None, None)):
        steps = [
            Step(index=n, tokens=9, answer="7", answer_source="sample", logprob=first if n == 1 else sure)
            for n in (1, 2, 3)
        ]
        assert first_stop(policy, steps, "samples") == expected
