"""The audit share while a level that saves more can still be proved.

A share is decided at a look, from audits that have returned, before the draws that it governs. It is the same for a
whole climb, since each lower share begins another window.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Final

from suffice.arrays import Floats, Small
from suffice.assurance.certify import STRETCH, missing_audits

CLIMB_SHARE: Final = 0.2  # of requests that are audited during a climb
NOTHING_SAVED: Final = 0.25  # of a better level's saving: below it, audits cost little and are drawn as in doubt
PAYS_WITHIN: Final = 100_000  # requests over which the audits of a climb must pay for themselves …
LEAST_GAIN: Final = 0.01  # … with this part of all full runs' tokens beyond their cost
REST: Final = 5_000  # requests, at least, between two climbs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LevelEvidence:
    """What a look knows about the levels."""

    z: Floats | Small  # (n, M): drops of the certificate's audits
    saved: Floats  # (M,): fraction of the full runs' tokens
    budget: Floats  # (M,): net of charges
    delta: float
    window: int  # audits
    since: float  # start of the certificate's window

    def gain(self, level: int, better: int, *, share: float, usual: float) -> float:
        """Part of the tokens that a climb to a better level gains net of its audits; -infinity: out of reach."""
        most, z = round(STRETCH * self.window), self.z[:, better]
        # Within a standard error, since few audits say little about a drop near the budget.
        budget = float(self.budget[better] + z.std() / sqrt(len(z)))
        missing = missing_audits(self.z, better, max_em_drop=budget, delta=self.delta, most=most)
        if missing is None:
            return -inf
        lasts = (len(self.z) + missing) / share
        gained = float(self.saved[better] - self.saved[level]) * (PAYS_WITHIN - lasts)
        paid = (share - usual) * float(self.saved[level]) * lasts
        return (gained - paid) / PAYS_WITHIN

    def best(self, level: int, *, share: float, usual: float) -> int:
        """The level worth proving next, the one with the largest gain; the level itself: none is."""
        best, most = level, LEAST_GAIN
        for better in range(level + 1, self.z.shape[1]):
            gain = self.gain(level, better, share=share, usual=usual)
            if gain == -inf:
                break  # levels are proved in order
            if gain >= most:
                best, most = better, gain
        return best


@dataclass(slots=True)
class Climb:
    share: float = 0.0  # of the requests; 0: no climb
    _until: float = inf
    _began: float = 0.0
    _rests_until: float = -inf

    def look(self, seen: LevelEvidence, level: int, now: float, *, usual: float, climb: float, most: float) -> None:
        """Begin or end a climb.

        usual  share without one
        climb  share of a usual climb
        most   share where the level saves next to nothing
        """
        if not level or climb <= usual:
            self.share = 0.0
            return
        target = seen.best(level, share=self.share or climb, usual=usual)
        if self.share:
            is_known = seen.since >= self._began and len(seen.z) >= seen.window / STRETCH
            if now >= self._until or (target == level and is_known):
                self._rests_until = now + max(REST, now - self._began)
                self.share = 0.0
            return
        if target == level or now < self._rests_until:
            return
        little = seen.saved[level] < NOTHING_SAVED * seen.saved[target]
        self.share = max(climb, most) if little else climb
        self._began, self._until = now, now + STRETCH * seen.window / self.share
