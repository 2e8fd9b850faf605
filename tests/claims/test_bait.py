"""Bait and switch: a caller behaves until the certificate, then sends only what stops harm. How much until the alarm?

The certificate is about all requests of its window, and the switch comes after it: alarms alone guard what follows.
"""

from __future__ import annotations

from math import ceil, log

import numpy as np
import pytest

from suffice.assurance.drift import THRESHOLD, AuditWatch, Reference, share_in_doubt

AUDIT_SHARE = 0.05
MOST_SHARE = 0.5
MOST_REQUESTS = 40_000


def wrong_replies(share: float, budget: float, tick: int, rng: np.random.Generator) -> int | None:
    """Stopped replies of the caller that lose, until the pooled alarm; None: there is none.

    tick  requests between two looks, at which audits are read, and the audit share changes
    """
    calm = Reference(n_disagreeing=0, n_lost=0, n=round(24 / budget))
    watch, n_wrong = AuditWatch(max_em_drop=budget, reference=calm), 0
    for _ in range(0, MOST_REQUESTS, tick):
        audit_share = share_in_doubt(AUDIT_SHARE, MOST_SHARE) if watch.in_doubt else AUDIT_SHARE
        loses, audited = rng.random(tick) < share, rng.random(tick) < audit_share
        n_wrong += int((loses & ~audited).sum())
        if any(watch.add(int(lost), bool(lost)) for lost in loses[audited]):
            return n_wrong
    return None


def least_audits(budget: float, n_callers: int) -> int:
    """Audits in a row that lose, before a test of each caller at twice the budget may raise an alarm.

    The false alarms are those of the pooled watch, divided among the callers.
    """
    return ceil(log(THRESHOLD * n_callers) / log(1 / (2 * budget)))


CASES = [  # the caller's share of the traffic, the budget, most wrong replies: median, and in nine of ten streams
    (0.05, 0.02, 60, 120),
    (0.10, 0.02, 60, 120),
    (0.25, 0.02, 60, 120),
    (0.10, 0.05, 60, 120),
    (0.25, 0.05, 60, 120),
    (0.05, 0.05, 180, 900),  # all that it loses is the budget: no promise is broken
]


@pytest.mark.parametrize("tick", [20, 100])
@pytest.mark.parametrize(("share", "budget", "median", "most"), CASES)
def test_the_pooled_alarm_bounds_what_one_caller_can_lose(
    share: float, budget: float, median: int, most: int, tick: int
) -> None:
    rng = np.random.default_rng(5)
    found = [wrong_replies(share, budget, tick, rng) for _ in range(200)]
    seen = [n for n in found if n is not None]
    middle, high = np.quantile(seen, [0.5, 0.9])
    print(f"share {share:.0%}, budget {budget:.0%}, {tick} requests a look: median {middle:.0f}, 90 % {high:.0f}")
    assert len(seen) == 200
    assert middle <= median
    assert high <= most


def test_a_caller_with_half_the_budget_of_the_traffic_is_not_noticed() -> None:
    rng = np.random.default_rng(6)
    assert [wrong_replies(0.01, 0.02, 100, rng) for _ in range(10)] == [None] * 10


def test_no_test_of_each_caller_could_do_with_three_audits() -> None:
    least = least_audits(0.02, 20)
    print(f"{least} audits, {least * (1 - AUDIT_SHARE) / AUDIT_SHARE:.0f} wrong replies on average at 5 %")
    assert least == 4
