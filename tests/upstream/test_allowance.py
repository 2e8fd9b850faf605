"""The budget of extra calls: for every course of events, no more than it gives, and nobody waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from suffice.settings import Extra
from suffice.upstream.allowance import LONGEST_OWN_PAUSE_S, LONGEST_PAUSE_S, Allowance, Bucket

RATES = st.floats(0.01, 1_000)
GAPS = st.lists(st.floats(0, 30), min_size=1, max_size=60)


def remaining(n: int, reset: str = "60") -> list[tuple[str, str]]:
    return [("x-ratelimit-remaining-requests", str(n)), ("x-ratelimit-reset-requests", reset)]


def note(allowance: Allowance, status: int, *headers: tuple[str, str], now_s: float, extra: bool = True) -> bool:
    return allowance.note(status, headers, extra=extra, now_s=now_s, wall_s=0.0)


@pytest.mark.slow
@given(rate=RATES, gaps=GAPS)
def test_within_any_time_no_more_than_flowed_in_and_one_buckets_fill(rate: float, gaps: list[float]) -> None:
    bucket, now_s, taken = Bucket.full(rate), 0.0, list[float]()
    for gap in gaps:
        now_s += gap
        while bucket.left(now_s) >= 1 and len(taken) < 2_000:
            bucket.take(1, now_s)
            taken.append(now_s)
    for n, start in enumerate(taken):
        within = sum(start <= at <= start + 10 for at in taken[n:])
        assert within <= max(1.0, rate) + 10 * rate + 1e-6


@given(rate=RATES, amounts=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 5_000)), min_size=1, max_size=40))
def test_a_debt_is_worked_off_before_anything_is_given(rate: float, amounts: list[tuple[float, float]]) -> None:
    """Charged afterwards: over any course it exceeds what flowed in by one last call at most."""
    bucket, now_s, spent, largest = Bucket.full(rate), 0.0, 0.0, 0.0
    for gap, amount in amounts:
        now_s += gap
        if bucket.left(now_s) > 0:
            bucket.take(amount, now_s)
            spent, largest = spent + amount, max(largest, amount)
    assert spent <= max(1.0, rate) + rate * now_s + largest + 1e-6 * (1 + spent)


def test_a_clock_that_steps_back_gives_nothing() -> None:
    bucket = Bucket.full(1.0)
    bucket.take(1, 100.0)
    assert bucket.left(50.0) == 0
    assert bucket.left(100.5) == pytest.approx(0.5)


@given(
    slots=st.integers(1, 64),
    share=st.floats(0, 1),
    others=st.integers(0, 80),
    gaps=st.lists(st.booleans(), max_size=80),
)
def test_probes_take_their_share_of_the_slots_and_only_free_ones(
    slots: int, share: float, others: int, gaps: list[bool]
) -> None:
    allowance = Allowance(Extra(concurrency_share=share), slots)
    for begins in gaps:
        if begins and allowance.refusal(now_s=0.0, n_other=others) is None:
            allowance.begin(0.0)
            assert allowance.n_open <= max(1, share * slots)
            assert others + allowance.n_open <= max(2, slots)
        elif allowance.n_open:
            allowance.end(5, 0.0)
    if others >= max(2, slots):
        assert allowance.refusal(now_s=0.0, n_other=others) in ("slots", "concurrency")


def test_continuations_take_slots_but_no_probe_s_share() -> None:
    allowance = Allowance(Extra(concurrency_share=0.5), 8)
    for _ in range(7):
        allowance.begin(0.0, is_probe=False)
    assert allowance.refusal(now_s=0.0, n_other=7) is None
    allowance.begin(0.0)
    assert allowance.refusal(now_s=0.0, n_other=7) == "slots"
    allowance.end(5, 0.0, is_probe=False)
    assert allowance.refusal(now_s=0.0, n_other=6) is None


@given(
    share=st.floats(0, 1),
    windows=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 30), st.floats(0, 5)), min_size=1, max_size=30),
)
def test_within_a_window_extra_calls_take_their_share_of_what_remained(
    share: float, windows: list[tuple[int, int, float]]
) -> None:
    """However the main calls use up the window: never beyond the share of all that was there for both."""
    allowance = Allowance(Extra(rate_limit_share=share, concurrency_share=1.0), 1_000)
    used, most = 0, windows[0][0]
    for left, tries, _ in windows:
        note(allowance, 200, *remaining(left, "3600"), now_s=0.0)
        most = max(most, left + used)
        for _ in range(tries):
            if allowance.refusal(now_s=0.0, n_other=0) is None:
                allowance.begin(0.0)
                used += 1
                allowance.end(1, 0.0)
    assert used <= share * most + 1e-9


def test_a_window_that_is_over_is_forgotten() -> None:
    allowance = Allowance(Extra(), 8)
    note(allowance, 200, *remaining(1, "10s"), now_s=0.0)
    assert allowance.refusal(now_s=9.9, n_other=0) == "rate_limit"
    assert allowance.refusal(now_s=10.1, n_other=0) is None
    note(allowance, 200, *remaining(100, "1s"), now_s=20.0)
    for _ in range(20):
        allowance.begin(20.0)
        allowance.end(1, 20.0)
    assert allowance.refusal(now_s=20.5, n_other=0) == "rate_limit"
    note(allowance, 200, *remaining(100, "1s"), now_s=20.6)  # the same window, told again
    assert allowance.refusal(now_s=20.6, n_other=0) is None
    for n in range(40):  # a limit that is told again and again never ends in a lock
        note(allowance, 200, *remaining(100, "1s"), now_s=30.0 + n)
        assert allowance.refusal(now_s=30.0 + n, n_other=0) is None
        for _ in range(10):
            allowance.begin(30.0 + n)
            allowance.end(1, 30.0 + n)


def test_calls_and_tokens_a_second() -> None:
    allowance = Allowance(Extra(calls_per_s=2, tokens_per_s=100), 8)
    for _ in range(2):
        assert allowance.refusal(now_s=0.0, n_other=0) is None
        allowance.begin(0.0)
    assert allowance.refusal(now_s=0.0, n_other=0) == "calls_per_s"
    allowance.end(150, 0.0)
    allowance.end(150, 0.0)
    assert allowance.refusal(now_s=1.0, n_other=0) == "tokens_per_s"
    assert allowance.refusal(now_s=2.5, n_other=0) is None
    for nothing in (Extra(calls_per_s=0), Extra(tokens_per_s=0)):
        assert Allowance(nothing, 8).refusal(now_s=1e6, n_other=0) is not None


@pytest.mark.parametrize("extra", [True, False], ids=["extra call", "main call"])
def test_a_429_pauses_for_as_long_as_it_says(extra: bool) -> None:
    allowance = Allowance(Extra(), 8)
    assert note(allowance, 429, ("retry-after", "30"), now_s=0.0, extra=extra)
    assert allowance.refusal(now_s=29.9, n_other=0) == "paused"
    assert allowance.refusal(now_s=30.0, n_other=0) is None
    assert note(allowance, 503, ("retry-after", "5"), now_s=40.0, extra=extra)
    assert allowance.is_paused(44.0)
    assert not note(allowance, 503, now_s=50.0, extra=extra), "a 503 alone is no word about rates"
    assert not allowance.is_paused(50.0)
    note(allowance, 429, ("retry-after", "9999999"), now_s=50.0)
    assert not allowance.is_paused(50.0 + LONGEST_PAUSE_S)


def test_a_429_that_says_nothing_pauses_longer_each_time_until_a_call_succeeds() -> None:
    allowance, now_s, lasted = Allowance(Extra(), 8), 0.0, []
    for _ in range(8):
        note(allowance, 429, now_s=now_s)
        note(allowance, 429, now_s=now_s)  # one that was under way
        lasted.append(allowance.paused_until_s - now_s)
        now_s = allowance.paused_until_s
    assert lasted == [10, 20, 40, 80, 160, LONGEST_OWN_PAUSE_S, LONGEST_OWN_PAUSE_S, LONGEST_OWN_PAUSE_S]
    note(allowance, 200, now_s=now_s, extra=False)
    assert allowance.next_pause_s == LONGEST_OWN_PAUSE_S, "a main call that succeeds says nothing of extra ones"
    note(allowance, 200, now_s=now_s)
    assert allowance.next_pause_s == 10
