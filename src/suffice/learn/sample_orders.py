"""The other orders that the samples of a vote could have had.

The samples of one request are independent draws, read in the order of their launch. So given the samples of an audit,
and that the last of them decided the vote for its winner, every order of which that is true was equally likely, and an
audit's drop may be replaced by its mean over some of these orders: the same expectation with less variance (Blackwell
1947, Annals of Mathematical Statistics 18(1)). No further sample is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from suffice.assurance.certify import is_order_refuted
from suffice.episode.vote import count_votes, deciding_sample
from suffice.learn.audits import AuditRuns, Floats, Ints, LevelEnds
from suffice.policy.folded_version import place_of

MOST_ORDERS: Final = 12  # other orders of one vote
MOST_STEPS: Final = 144  # in all of them together, which limits memory
MOST_TRIES: Final = 96
LABELLED: Final = 0.9  # of audits that disagree only in other orders of their samples, for these orders to count


def draw_orders(answers: Sequence[str | None], n_samples: int, *, key: str) -> list[list[int]]:
    """Draw other orders of a full vote's samples, each a permutation of 0 … n - 1, uniformly and with repeats.

    None where every order has the same drop, because all samples agree, and where the vote was not decided by its last
    sample. The draw follows from `key`.

    answers    of all samples that were drawn, in the order of their launch
    n_samples  that the vote may draw
    """
    n, orders = len(answers), list[list[int]]()
    if len(set(answers)) < 2 or deciding_sample(answers, n_samples) != n:
        return orders
    winner, most = count_votes(answers).answer, min(MOST_ORDERS, max(1, MOST_STEPS // n))
    for attempt in range(MOST_TRIES):
        places = [place_of(f"{key}/{attempt}/{sample}", purpose="sample-order") for sample in range(n)]
        order = sorted(range(n), key=places.__getitem__)
        moved = [answers[sample] for sample in order]
        if deciding_sample(moved, n_samples) == n and count_votes(moved).answer == winner:
            orders.append(order)
            if len(orders) == most:
                break
    return orders


def mean_over_orders(
    runs: AuditRuns, ends: LevelEnds, which: Ints, weight: Floats, *, now: float, label_free: bool, delta: float
) -> Floats | None:
    """The drops of audits, each its mean over orders, shape (n, M); None: they count in their own order.

    That is so where own order loses more than others do, and where drops are not as well known in others. Labels that
    are given on request are there where the own order disagrees, and in other orders the rest would count as lost. What
    labels say does not matter.
    """
    if runs.orders is None:
        return None
    labelled = (runs.label_at[which] <= now) & (not label_free)
    if labelled.any():
        own = runs.d[ends.rows[which]].any(axis=1) | runs.abandoned[which]
        others = np.asarray(runs.orders.runs.d[ends.order_rows].any(axis=1))
        only_others = runs.any_other_order(others, which) & ~own
        if labelled[only_others].sum() < LABELLED * only_others.sum():
            return None
    mean = runs.mean_losses(ends, which, now=now, label_free=label_free)
    z = runs.losses(ends.rows[which], which, now=now, label_free=label_free)
    return None if is_order_refuted(z, mean, weight, delta=delta) else mean
