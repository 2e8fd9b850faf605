"""Bait and switch: a caller behaves until the certificate, then sends only what stops harm. How much until it is held?

The certificate is about all requests of its window, and the switch comes after it: alarms and guards of callers alone
guard what follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from suffice.assurance.drift import AuditWatch, Reference, share_in_doubt
from suffice.assurance.strata import MOST_FULL, CallerGuards

AUDIT_SHARE = 0.05
MOST_SHARE = 0.5
QUIET = 3_000  # requests without a wrong reply after which the caller counts as held for good
MOST_REQUESTS = 40_000
TICKS = (20, 100)  # requests between two looks, at which audits are read; 100 is the default
N_STREAMS = 200
BAIT = "bait"


def wrong_replies(
    share: float, budget: float, tick: int, rng: np.random.Generator, *, guarded: bool = True, behaves: int = 0
) -> tuple[int, bool]:
    """Stopped replies of the caller that lose until it is held or the pooled alarm ends all stops, and which it was.

    behaves  requests that lose nothing, which the caller sends after each audit that it sees
    """
    calm = Reference(n_disagreeing=0, n_lost=0, n=round(24 / budget))
    watch, guards = AuditWatch(max_em_drop=budget, reference=calm), CallerGuards(budget)
    n_wrong = latest = good = 0
    for begin in range(0, MOST_REQUESTS, tick):
        usual = share_in_doubt(AUDIT_SHARE, MOST_SHARE) if watch.in_doubt else AUDIT_SHARE
        n_full, audits = dict(guards.n_full).get(BAIT, 0) if guarded else 0, list[tuple[bool, bool, bool]]()
        for is_bait, draw in zip(rng.random(tick) < share, rng.random(tick), strict=True):
            singled = is_bait and n_full > 0
            n_full -= singled
            loses = bool(is_bait and not good)
            good -= bool(is_bait and good)
            if singled or draw < usual:
                audits.append((is_bait, loses, singled))
                good = behaves if loses else good
            elif loses:
                n_wrong, latest = n_wrong + 1, begin
        for is_bait, lost, singled in audits:
            if is_bait:
                guards.add(BAIT, lost=lost)
            if not singled and watch.add(int(lost), lost):
                return n_wrong, True
        if n_wrong and begin - latest > QUIET:
            break
    return n_wrong, False


def best_possible(share: float, tick: int, rng: np.random.Generator) -> int:
    """The same, if the first audit of the caller were enough, and others never doubted."""
    n_wrong = 0
    while True:
        n = rng.binomial(tick, share)
        n_audits = rng.binomial(n, AUDIT_SHARE)
        n_wrong += n - n_audits
        if n_audits:
            return n_wrong


def extra_full_runs(rates: Sequence[float], budget: float, rng: np.random.Generator, n: int = 100_000) -> float:
    """Share of the requests that run in full because of the guard, with honest callers that lose at these rates."""
    guards, n_extra, tick = CallerGuards(budget), 0, 100
    for _ in range(0, n, tick):
        n_full, audits = dict(guards.n_full), list[tuple[str, bool]]()
        callers = rng.integers(len(rates), size=tick)
        for at, draw, loss in zip(callers.tolist(), rng.random(tick), rng.random(tick), strict=True):
            name = str(at)
            singled = n_full.get(name, 0) > 0
            n_full[name] = n_full.get(name, 0) - singled
            n_extra += singled and draw >= AUDIT_SHARE
            if singled or draw < AUDIT_SHARE:
                audits.append((name, bool(loss < rates[at])))
        for name, lost in audits:
            guards.add(name, lost=lost)
    return n_extra / n


CASES = [  # the caller's share of the traffic, most wrong replies with looks every 20 and 100 requests in nine of ten
    (0.05, (60, 60)),
    (0.10, (60, 65)),
    (1 / 3, (65, 90)),
]


@pytest.mark.parametrize("budget", [0.02, 0.05])
@pytest.mark.parametrize(("share", "most"), CASES)
def test_a_caller_that_sends_only_what_stops_harm_is_soon_held(
    share: float, most: tuple[int, int], budget: float
) -> None:
    rng = np.random.default_rng(5)
    for tick, limit in zip(TICKS, most, strict=True):
        result = [wrong_replies(share, budget, tick, rng) for _ in range(N_STREAMS)]
        middle, high = np.quantile([n for n, _ in result], [0.5, 0.9])
        least = np.quantile([best_possible(share, tick, rng) for _ in range(N_STREAMS)], [0.5, 0.9])
        alarms = sum(alarm for _, alarm in result) / N_STREAMS
        print(
            f"share {share:.0%}, budget {budget:.0%}, {tick} requests a look: median {middle:.0f}, 90 % {high:.0f}, "
            f"alarm in {alarms:.0%}; from one audit {least[0]:.0f}, {least[1]:.0f}"
        )
        assert middle <= 60
        assert high <= limit
        assert share > 0.05 or alarms <= 0.05, "the certificate of the others stays"


def test_without_the_guard_a_caller_with_the_budgets_share_goes_on_for_hundreds_of_requests() -> None:
    rng = np.random.default_rng(5)
    result = [wrong_replies(0.05, 0.05, 100, rng, guarded=False)[0] for _ in range(N_STREAMS)]
    print(f"median {np.median(result):.0f}, 90 % {np.quantile(result, 0.9):.0f}")
    assert np.quantile(result, 0.9) > 150


@pytest.mark.parametrize("budget", [0.02, 0.05])
@pytest.mark.parametrize("n_callers", [1, 3, 20])
def test_honest_callers_pay_at_most_a_hundredth_for_the_guard(n_callers: int, budget: float) -> None:
    rng = np.random.default_rng(6)
    for part in (0.25, 0.5, 1.0):
        extra = extra_full_runs([part * budget] * n_callers, budget, rng)
        print(f"{n_callers} callers, budget {budget:.0%}, loss of {part:g} budgets: {extra:.2%} of the requests")
        assert extra / (1 - AUDIT_SHARE) <= 0.01


def test_a_caller_that_behaves_for_a_while_after_each_audit_that_it_sees_is_found_by_neither() -> None:
    """What is left, and why `tells_stops` and routes of their own exist: its audits look like those of others."""
    rng = np.random.default_rng(7)
    for guarded in (False, True):
        result = [wrong_replies(0.05, 0.02, 100, rng, guarded=guarded, behaves=20) for _ in range(10)]
        worst = max(n for n, _ in result) / MOST_REQUESTS
        print(f"{'with' if guarded else 'without'} the guard: {worst:.1%} of all requests, no alarm")
        assert not any(alarm for _, alarm in result)


def test_a_caller_is_released_by_as_many_audits_as_it_was_told_and_never_held_for_more() -> None:
    guards = CallerGuards(0.02)
    for n_losses in range(1, 200):
        guards.add("a", lost=True)
        ((name, n_full),) = guards.n_full
        assert (name, n_full <= MOST_FULL) == ("a", True)
        if n_losses in (1, 5, 199):
            again = CallerGuards(0.02)
            for lost in [True] * n_losses + [False] * n_full:
                again.add("a", lost=lost)
            assert again.n_full == ()
    guards.add("", lost=True)
    assert [name for name, _ in guards.n_full] == ["a"], "requests without a key have no caller"


def test_no_caller_is_guarded_where_the_budget_leaves_no_room() -> None:
    guards = CallerGuards(0.4)
    guards.add("a", lost=True)
    assert guards.n_full == ()
