"""The certificate, simulated: rarely wrong however often it is looked at, and not fooled by labels that come late.

`python -m pytest -q -s tests/claims/test_certificate.py` prints the figures of bench/assurance.md.
"""

from __future__ import annotations

from math import log
from typing import Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import xlogy

from suffice.assurance.certify import Counts, audits_to_certify, certified_level, count_outcomes, log_wealth
from suffice.assurance.labels import count_losses
from suffice.scoring.base import build_scorer
from tests.drawn import examples

MAX_EM_DROP: Final = 0.02
DELTA: Final = 0.05
LIMIT: Final = log(1 / DELTA)
MARGIN: Final = 0.0625  # of 1,500 streams at a true 5 %, more than this is seen once in fifty


def running_wealth(lost: NDArray[np.bool_], gained: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Log wealth after each audit of each stream, shape (streams, audits)."""
    n_lost, n_gained = lost.cumsum(axis=1), gained.cumsum(axis=1)
    n_same = np.arange(1, lost.shape[1] + 1) - n_lost - n_gained
    counts = Counts(n_gained.ravel(), n_same.ravel(), n_lost.ravel())
    return log_wealth(counts, max_em_drop=MAX_EM_DROP).reshape(lost.shape)


def ever_certified(p_lost: float, p_gained: float, *, seed: int, n_streams: int) -> float:
    """Share of streams of 3,000 audits whose level passes at least once, looking after every audit."""
    rng, n_passed = np.random.default_rng(seed), 0
    for _ in range(n_streams // 100):
        u = rng.random((100, 3_000))
        wealth = running_wealth(u < p_lost, u > 1 - p_gained)
        n_passed += int((wealth >= LIMIT).any(axis=1).sum())
    return n_passed / n_streams


# --------------------------------------------------------------------------- how often it is wrong


@pytest.mark.slow(keep=2)
@pytest.mark.parametrize(("p_lost", "p_gained"), [(0.02, 0.0), (0.03, 0.01), (0.05, 0.03)])
def test_a_level_at_the_budget_is_certified_by_hardly_any_stream_that_is_watched_all_the_time(
    p_lost: float, p_gained: float
) -> None:
    wrong = ever_certified(p_lost, p_gained, seed=41, n_streams=1_500)
    print(f"losses {p_lost:.0%}, gains {p_gained:.0%}: ever certified in {wrong:.1%} of 1,500 streams of 3,000 audits")
    assert 0.02 < wrong <= MARGIN, "and it is not idle: a wealth that is half a nat too large would be seen"


def test_a_level_worse_than_the_budget_is_certified_by_fewer_and_a_better_one_by_nearly_all() -> None:
    assert ever_certified(0.025, 0.0, seed=42, n_streams=400) <= 0.02
    assert ever_certified(0.005, 0.0, seed=43, n_streams=400) > 0.99


def test_the_whole_grid_is_certified_too_far_by_hardly_any_stream() -> None:
    # Levels of rising risk, nested as real ones are: what counts is the first that breaks the budget.
    rng, n_streams, n_wrong = np.random.default_rng(44), 200, 0
    risk = np.linspace(0, 0.05, 21)
    first_bad = int(np.argmax(risk >= MAX_EM_DROP))
    for _ in range(n_streams):
        z = (rng.random((2_000, 1)) < risk).astype(np.int8)
        looks = [count_outcomes(z[:n]) for n in range(100, 2_001, 100)]
        n_wrong += any(
            certified_level(log_wealth(counts, max_em_drop=MAX_EM_DROP), delta=DELTA) >= first_bad for counts in looks
        )
    assert n_wrong / n_streams <= DELTA


def test_bets_that_are_picked_afterwards_would_break_the_promise() -> None:
    # The same streams, with the best bet in hindsight in place of the mean of four fixed ones.
    rng, n_wrong, n_streams = np.random.default_rng(41), 0, 300
    n = np.arange(1, 3_001)
    for _ in range(n_streams):
        lost = (rng.random(3_000) < MAX_EM_DROP).cumsum()
        rate = lost / n
        best = xlogy(lost, rate / MAX_EM_DROP) + xlogy(n - lost, (1 - rate) / (1 - MAX_EM_DROP))
        n_wrong += bool((np.where(rate < MAX_EM_DROP, best, 0) >= LIMIT).any())
    print(f"the best bet in hindsight: certified in {n_wrong / n_streams:.1%} of {n_streams} streams")
    assert n_wrong / n_streams > 1.5 * DELTA


@pytest.mark.parametrize("part", [0.25, 0.5])
def test_the_number_of_audits_foretold_is_enough_for_two_levels_in_three(part: float) -> None:
    foretold = audits_to_certify(part * MAX_EM_DROP, max_em_drop=MAX_EM_DROP, delta=DELTA)
    u = np.random.default_rng(45).random((250, 3 * foretold))
    passed = running_wealth(u < part * MAX_EM_DROP, np.zeros_like(u, dtype=np.bool_)) >= LIMIT
    first = np.where(passed.any(axis=1), passed.argmax(axis=1) + 1, 3 * foretold)
    within = float((first <= foretold).mean())
    half, nine = (float(np.quantile(first, share)) / foretold for share in (0.5, 0.9))
    print(
        f"drop at {part:.0%} of the budget, foretold {foretold}: {within:.0%} by then, half at {half:.2f} of it, "
        f"nine in ten at {nine:.2f}"
    )
    assert 0.6 < within < 0.76
    assert 0.6 < half < 0.8
    assert 1.4 < nine < 2.0


# --------------------------------------------------------------------------- late and missing labels


def labelled_late(rng: np.random.Generator, n: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Z of a level at the budget, and when each label comes: whoever lost complains late, and a tenth never do."""
    z = rng.choice(np.array([-1, 0, 1], dtype=np.int8), p=[0.01, 0.96, 0.03], size=n)
    delay = np.where(z == 1, rng.uniform(200, 390, n), 5.0)
    return z, np.where((z == 1) & (rng.random(n) < 0.1), np.inf, delay)


def ever_fooled(*, by_age: bool) -> float:
    """Share of streams that certify a level at the budget at one of the looks; labels come late where it lost."""
    rng, n_streams, n_fooled, timeout = np.random.default_rng(46), 120, 0, 400
    for _ in range(n_streams):
        z, delay = labelled_late(rng, 1_600)
        for now in range(50, 1_601, 50):
            age = (now - np.arange(now)).astype(np.float64)
            at_levels = np.stack([np.zeros(now, dtype=np.int8), z[:now]], axis=1)
            labelled, abandoned = delay[:now] <= age, np.zeros(now, dtype=np.bool_)
            losses = count_losses(at_levels, at_levels != 0, labelled=labelled, abandoned=abandoned)
            # What is not done: what is known to be harmless enters at once, and only what waits for a label waits.
            known = labelled | (z[:now] == 0) | (age >= timeout)
            seen = losses[age >= timeout if by_age else known]
            if certified_level(log_wealth(count_outcomes(seen), max_em_drop=MAX_EM_DROP), delta=DELTA):
                n_fooled += 1
                break
    return n_fooled / n_streams


def test_labels_that_come_late_where_it_lost_do_not_fool_the_certificate() -> None:
    ours, naive = ever_fooled(by_age=True), ever_fooled(by_age=False)
    print(f"labels late where it lost: certified in {ours:.1%} of streams by age, in {naive:.1%} as labels come")
    assert ours <= DELTA
    assert naive > 4 * DELTA


# --------------------------------------------------------------------------- F1: drop is at most disagreement

ANSWERS = (
    "12",
    " 12.0 ",
    "12,0",
    "1,200",
    "1200",
    "no",
    "No.",
    "yes",
    "(B)",
    "b",
    "",
    "nan",
    "the Eiffel tower",
    "Eiffel Tower",
)


@st.composite
def traces(draw: st.DrawFn) -> tuple[str, list[str], list[float], str]:
    """(scorer, trial answer at each step, score at each step, gold)."""
    answers = draw(st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=12))
    scores = draw(st.lists(st.floats(0, 1), min_size=len(answers), max_size=len(answers)))
    return draw(st.sampled_from(["number", "text", "choice", "squad"])), answers, scores, draw(st.sampled_from(ANSWERS))


def replayed(
    trace: tuple[str, list[str], list[float], str], thresholds: list[float]
) -> tuple[list[int], NDArray[np.int8], NDArray[np.bool_]]:
    """Where each level stops, and the run as one labelled audit; both straight from the definitions."""
    name, texts, scores, gold = trace
    scorer = build_scorer(name)
    answers = [scorer.normalise(text) for text in texts]
    right = scorer.normalise(gold)

    def em(answer: str | None) -> int:
        return int(right is not None and scorer.match(answer, right))

    end = len(texts) - 1
    stops = [end]  # level 0
    stops += [next((k for k, score in enumerate(scores) if score >= threshold), end) for threshold in thresholds]
    z = np.array([[em(answers[-1]) - em(answers[k]) for k in stops]], dtype=np.int8)
    return stops, z, np.array([[answers[k] != answers[-1] for k in stops]])


@given(trace=traces(), thresholds=st.lists(st.floats(0, 1), min_size=1, max_size=6))
@settings(max_examples=examples(100))
def test_no_trace_loses_more_than_it_disagrees(
    trace: tuple[str, list[str], list[float], str], thresholds: list[float]
) -> None:
    stops, z, disagrees = replayed(trace, sorted(thresholds, reverse=True))
    assert stops == sorted(stops, reverse=True), "a more aggressive level never stops later"
    label, whole = np.array([True]), np.array([False])
    with_label = count_losses(z, disagrees, labelled=label, abandoned=whole)
    without = count_losses(z, disagrees, labelled=label, abandoned=whole, label_free=True)
    assert (with_label <= without).all()
    assert (with_label[without == 0] == 0).all(), "the same answer is as right as the full run's"
    assert with_label[0, 0] == without[0, 0] == 0


@given(seed=st.integers(0, 10_000), labelled=st.floats(0, 1))
@settings(max_examples=examples(40))
def test_fewer_labels_never_certify_more(seed: int, labelled: float) -> None:
    rng = np.random.default_rng(seed)
    disagrees = rng.random((600, 1)) < np.linspace(0, 0.04, 8)
    z = (rng.integers(-1, 2, (600, 8)) * disagrees).astype(np.int8)
    all_labels, some_labels = np.ones(600, dtype=np.bool_), rng.random(600) < labelled

    def level(known: NDArray[np.bool_], *, label_free: bool = False) -> int:
        losses = count_losses(z, disagrees, labelled=known, abandoned=~all_labels, label_free=label_free)
        return certified_level(log_wealth(count_outcomes(losses), max_em_drop=MAX_EM_DROP), delta=DELTA)

    assert level(all_labels, label_free=True) <= level(some_labels) <= level(all_labels)
