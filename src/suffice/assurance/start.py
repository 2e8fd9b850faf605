"""When a level is expected to act, and on which share of the requests: estimates of the waiting time, never claims."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isinf
from typing import Final, NamedTuple

from suffice.assurance.bounds import wilson
from suffice.assurance.certify import audits_to_certify
from suffice.assurance.exposure import EXPOSURES, LOOK_PERIOD, ON_ALL, WHILE_LEARNING, Exposure
from suffice.assurance.fidelity import FIDELITY_CONFIDENCE, MOST_BANDS, VERBATIM, bound_fidelity

USUAL_PART: Final = 0.25  # of the budget: the typical loss of a certified level
LIKELY_PARTS: Final = (0.0, USUAL_PART, 0.5)  # the least, the usual and the most that is expected
CERTIFIED_BY: Final = (0.7, 1.0, 1.75)  # of the expected audits: half of the levels are, and nine in ten (`certify`)
MOST_AUDITS: Final = 10**7  # stands for never


class StartForecast(NamedTuple):
    """Further requests until a level is expected to act; infinite: its audits never prove one."""

    first_stop: float  # on any share of the requests
    full_share: float  # on all but the usual audits


@dataclass(frozen=True, slots=True, kw_only=True)
class StartTerms:
    """What a level has to prove before it acts."""

    max_em_drop: float  # fraction
    delta: float
    finishes: bool  # a stop generates an answer, which may differ from the one that was judged
    n_learning: int = 0  # audits until which a level acts on half of the requests at most

    def audits(self, exposure: Exposure = ON_ALL, *, part: float = USUAL_PART) -> int:
        """Audits that prove a level on a share of the requests, net of the charge for finishing; `MOST_AUDITS`: never.

        part  of the budget that the level loses on all requests
        """
        if not 0 < self.max_em_drop < 1 or not 0 < self.delta < 1:
            return MOST_AUDITS
        drop, delta = part * self.max_em_drop, exposure.delta_part * self.delta

        def needed(charge: float) -> int:
            try:
                budget = float(exposure.budget(self.max_em_drop, charge))
                return audits_to_certify(drop, max_em_drop=budget, delta=delta)
            except ValueError:  # no number is enough
                return MOST_AUDITS

        if not self.finishes:
            return needed(VERBATIM.upper)

        def proves(n: int) -> bool:
            # Each audit compares one finish, in one of the bands of levels.
            finish = bound_fidelity(0, n // MOST_BANDS, confidence=FIDELITY_CONFIDENCE, anytime=False)
            return finish is not None and needed(finish.upper) <= n

        # More audits leave more of the budget, and a larger budget needs fewer audits.
        return 1 + bisect_left(range(1, MOST_AUDITS), True, key=proves)

    def forecast(self, part: float, *, n_audits: float = 0, share: float = 0.0) -> StartForecast:
        """Where so many audits are there, and a level acts on this share already.

        The requests on which it does not act are audits. A level that loses nothing has no bolder one to wait for.
        """
        at, waits = 0.0, list[float]()
        for exposure in EXPOSURES:
            if exposure.share > share:
                needed = float(self.audits(exposure, part=part))
                if exposure.share > WHILE_LEARNING and part:
                    needed = max(needed, self.n_learning)
                at += max(0.0, needed - n_audits) / (1 - share)
                n_audits, share = max(n_audits, needed), exposure.share
                waits.append(_next_look(at) if n_audits < MOST_AUDITS else inf)
            else:
                waits.append(0.0)
        return StartForecast(waits[0], waits[-1])

    def likely_starts(self, n_audits: int = 0, n_missing: int | None = None) -> list[StartForecast]:
        """For levels that lose little, the usual and much of the budget; `n_missing` is what audits so far tell."""
        if n_missing is None:
            return [self.forecast(part) for part in LIKELY_PARTS]
        wanted = n_audits + n_missing
        first = [_next_look(wanted * part - n_audits) for part in CERTIFIED_BY]
        further = [self.forecast(part, n_audits=wanted, share=EXPOSURES[0].share) for part in LIKELY_PARTS]
        return [StartForecast(wait, wait + rest.full_share) for wait, rest in zip(first, further, strict=True)]


def _next_look(wait: float) -> float:
    return float(LOOK_PERIOD * max(1, ceil(wait / LOOK_PERIOD)))


def likely_parts(n_lost: int, n_audits: int, max_em_drop: float) -> Sequence[float]:
    """The parts of the budget that a level is likely to lose: with audits, what they lost and its 95 % interval."""
    if not n_audits:
        return LIKELY_PARTS
    seen = wilson(n_lost, n_audits, 0.95)
    return [one / max_em_drop for one in (seen.low, n_lost / n_audits, seen.high)]


def describe_starts(starts: Sequence[StartForecast]) -> str:
    """The least, the usual and the longest wait, in words."""
    first, full = ([getattr(one, name) for one in starts] for name in StartForecast._fields)
    if not first[1]:
        return f"it to stop runs among all requests {_after(full)}"
    if first == full:
        return f"a first stop, then on all requests, {_after(full)}"
    return f"a first stop {_after(first)}, on all requests {_after(full)}"


def _after(waits: Sequence[float]) -> str:
    least, usual, most = (f"{_rounded(n):,.0f}" for n in waits)
    if isinf(waits[1]):
        return "only if it loses less than is usual"
    span = f"{least} or more" if isinf(waits[2]) else f"{least} to {most}"
    return f"after about {usual} requests" + (f" ({span})" if least != most else "")


def _rounded(n: float) -> float:
    """To two digits: no more of it is known."""
    return n if isinf(n) or n < 100 else round(n, 1 - len(str(int(n))) + 1)
