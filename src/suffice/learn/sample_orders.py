"""The other orders that the samples of a vote could have had.

The samples of one request are independent draws, read in the order of their launch. So given the samples of an audit,
and that the last of them decided the vote for its winner, every order of which that is true was equally likely, and an
audit's drop may be replaced by its mean over some of these orders: the same expectation with less variance (Blackwell
1947, Annals of Mathematical Statistics 18(1)). No further sample is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from suffice.episode.vote import count_votes, deciding_sample
from suffice.policy.folded_version import place_of

MOST_ORDERS: Final = 12  # other orders of one vote
MOST_STEPS: Final = 144  # in all of them together, which limits memory
MOST_TRIES: Final = 96


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
