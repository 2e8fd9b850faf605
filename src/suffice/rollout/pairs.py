"""Which second call an audit makes, where a route's arms can only be told by asking twice.

Knows shares and what is certified; refuses to know answers, so that each arm's pairs are a plain sample of the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Final

REPEAT_SHARE: Final = 0.1  # of the pairs: second full runs, which say how often the model differs from itself
WATCH_SHARE: Final = 0.3  # of the rest: arms that are certified already, half of it the one in force


@dataclass(frozen=True, slots=True)
class PairDraw:
    """Which second call an audit makes."""

    arm: int  # 0: a second full run
    propensity: float  # P(this arm), in (0, 1]


def draw_pair(point: float, *, n_arms: int, in_force: int = 0, repeat_share: float = REPEAT_SHARE) -> PairDraw:
    """Draw the second call of one audit.

    The first arm that is not certified gets most; certified ones are watched, half of it the one in force; an arm
    further out gets nothing before its turn.

    point         the unit's place in [0, 1), by keyed hash, so that a retry draws the same
    n_arms        the full run included, at least 2
    in_force      0 … n_arms - 1
    repeat_share  in [0, 1)

    Raises ValueError outside of these.
    """
    odds = pair_odds(n_arms=n_arms, in_force=in_force, repeat_share=repeat_share)
    last = max(arm for arm, share in enumerate(odds) if share > 0)  # rounding may leave the last edge below the point
    arm = next((arm for arm, edge in enumerate(accumulate(odds)) if point < edge and odds[arm] > 0), last)
    return PairDraw(arm, odds[arm])


def pair_odds(*, n_arms: int, in_force: int = 0, repeat_share: float = REPEAT_SHARE) -> tuple[float, ...]:
    """The odds of each second call, as `draw_pair` draws; they sum to 1."""
    if n_arms < 2 or not 0 <= in_force < n_arms or not 0 <= repeat_share < 1:
        raise ValueError(f"need n_arms >= 2, 0 <= in_force < n_arms, repeat_share in [0, 1); got {n_arms=} {in_force=}")
    is_last = in_force == n_arms - 1
    watched = 0.0 if in_force == 0 else 1.0 if is_last else WATCH_SHARE
    odds = [0.0] + [watched / 2 / in_force if arm <= in_force else 0.0 for arm in range(1, n_arms)]
    odds[in_force] += watched / 2
    if not is_last:
        odds[in_force + 1] += 1 - watched
    return (repeat_share, *((1 - repeat_share) * share for share in odds[1:]))
