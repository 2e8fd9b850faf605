"""The price of tokens in units of EM: the dual variable of the EM budget.

"At most epsilon of EM" and "as few tokens as possible" become one number, EM - price x tokens. The price that makes
both hold is found by dual ascent on audits: an audit without a loss raises it a little, a loss lowers it by much,
and at a drop of epsilon it stands still. The owner bounds it: tokens are never worth more EM than he says.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from typing import Final

STEP: Final = 0.2  # of the logarithm of the price for a whole answer: a loss takes about a sixth off the price


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceBounds:
    """What the tokens of a mean full run may be worth in EM, as fractions: 0.1 is ten points for all of them."""

    least: float = 0.01
    start: float = 0.05
    largest: float = 0.3

    def __post_init__(self) -> None:
        if not 0 < self.least <= self.start <= self.largest:
            raise ValueError(f"price: got {self.least}, {self.start}, {self.largest}; 0 < least <= start <= largest")


def next_price(price: float, z: int, *, max_em_drop: float, bounds: PriceBounds) -> float:
    """The price after one audit of the arm in force: log price += STEP x (epsilon - z), kept in its bounds.

    Exponentiated gradient on the dual. Over N audits in which the price did not touch its bounds, the mean of z is
    epsilon + (log first price - log last price) / (STEP x N), whatever the audits say: so it is near epsilon, and while
    it stays below, the price ends at the largest that the owner allows.

    z            EM drop of the audit, -1, 0 or +1
    max_em_drop  epsilon, a fraction in (0, 1)
    """
    if not 0 < max_em_drop < 1:
        raise ValueError(f"max_em_drop: got {max_em_drop}; a fraction above 0 and below 1")
    return max(bounds.least, min(bounds.largest, price * exp(STEP * (max_em_drop - z))))
