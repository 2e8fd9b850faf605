"""How often versions may be tried: a proposer that is rolled back again and again is held, longer each time.

Knows when rollouts began and how they ended; refuses to know why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from suffice.rollout.rules import Rules

DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """One rollout of a route that has begun."""

    candidate: str  # address of the version
    began_s: float  # Unix time
    ended_s: float | None = None  # None: it is running
    rolled_back: bool = False


def cool_down_refusal(
    past: Sequence[Past], candidate: str, *, now_s: float, rules: Rules, held: str = "", by_person: bool = False
) -> str | None:
    """Why a rollout may not begin now, as a sentence; None: it may.

    past       all rollouts of the route, in the order in which they began
    candidate  address of the version that wants to be tried
    now_s      Unix time
    held       why a person holds the route; "": nobody does
    by_person  a person asks: then cool-down and count do not speak against it, a hold and a running rollout do
    """
    if held:
        return f"a person holds this route: {held}"
    running = next((one for one in past if one.ended_s is None), None)
    if running is not None:
        return f"the rollout of {running.candidate} is running; one at a time"
    if by_person:
        return None
    if any(one.rolled_back and one.candidate == candidate for one in past):
        return f"{candidate} was rolled back before; a person may try it again"
    wait_s = cool_down_left(past, now_s=now_s, rules=rules)
    if wait_s > 0:
        return f"cooling down after a rollback: another {wait_s:,.0f} s"
    today = sorted(one.began_s for one in past if one.began_s > now_s - DAY_S)
    if len(today) >= rules.most_a_day:
        free_s = today[-rules.most_a_day] + DAY_S - now_s
        return f"{len(today)} rollouts began in the last 24 hours, at most {rules.most_a_day}: another {free_s:,.0f} s"
    return None


def cool_down_left(past: Sequence[Past], *, now_s: float, rules: Rules) -> float:
    """Seconds until the cool-down after the latest rollback is over; 0: there is none, or it is over.

    It doubles with every rollback in a row, up to `most_cool_down_s`; a version that reached full ends the row.
    """
    ended = [one for one in past if one.ended_s is not None]
    in_a_row = 0
    for one in reversed(ended):
        if not one.rolled_back:
            break
        in_a_row += 1
    if not in_a_row:
        return 0.0
    lasts_s = min(rules.most_cool_down_s, rules.cool_down_s * 2.0 ** min(in_a_row - 1, 60))
    # A clock that was set back must not make it longer than it is.
    return min(lasts_s, max(0.0, (ended[-1].ended_s or 0.0) + lasts_s - now_s))
