"""Bounds how often the delivered answer of a stop differs from the trial answer that was judged.

Audits judge the trial answer at a level; a client gets the answer after the finish. With f the rate at which they
differ, E[drop of the delivered answer] <= E[drop of the trial answer] + f. An upper bound on f is subtracted from
epsilon before any test, and `FIDELITY_RISK` is added to delta. Without a measurement there is no
certificate. A route that returns a recorded answer verbatim (votes, rounds) needs none.

At one moment fixed beforehand, the mean rate in the window is at most `upper` with 99 %: Clopper and Pearson (1934),
exact for equal rates; under drift for the mean rate (Hoeffding 1956, Annals of Mathematical Statistics 27(3), theorem
4), and the smallest bound that rises with the count (Buehler 1957, JASA 52). Over many looks it fails at 1 % of them in
expectation, enough for a claim about the share of requests; `bound_fidelity(…, anytime=True)` holds at all looks at
once. Dependence beyond the window is not covered.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

import numpy as np

from suffice.assurance.bounds import Interval, exact_binomial
from suffice.assurance.certify import Counts, smallest_proved_drop

FIDELITY_RISK: Final = 0.01  # probability that the bound is too low; add it to delta
FIDELITY_CONFIDENCE: Final = 1 - FIDELITY_RISK

MOST_BANDS: Final = 4  # of levels, each with its own measurement
# Comparisons. At a rate of 0.1 % the mean bound is 0.65 % for 1,000, 0.41 % for 2,000 and 0.29 % for 4,000; the charge
# exceeds 2 % after 180, 480 and 1,130 stops at 5 % (medians, without the alarm).
FIDELITY_WINDOW: Final = 2_000

STOPS_TO_FALSE_ALARM: Final = 100_000.0  # lower bound of the mean number, at the reference rate
FINISH_RISES: Final = (0.02, 0.05, 0.15, 0.5)  # alternatives: fractions of the way from the reference to 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    n: int  # stops whose delivered answer was compared with the trial answer
    n_differing: int
    upper: float  # upper bound on the rate, [0, 1]


VERBATIM = Fidelity(n=0, n_differing=0, upper=0.0)  # the delivered answer is the recorded one


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    max_em_drop: float  # fraction; 0: nothing may be certified
    reason: str  # a sentence for the operator


def bound_fidelity(n_differing: int, n: int, *, confidence: float, anytime: bool = True) -> Fidelity | None:
    """One-sided bound on the rate behind `n_differing` of `n` comparisons; None without comparisons.

    `anytime` bounds hold at all looks at once; the others (Clopper and Pearson 1934) at one, after a fixed number.
    """
    if not 0 <= n_differing <= n or not 0.5 < confidence < 1:
        raise ValueError(f"need 0 <= n_differing <= n and 0.5 < confidence < 1; got {n_differing=} {n=} {confidence=}")
    if n == 0:
        return None
    if not anytime:
        upper = exact_binomial(n_differing, n, 2 * confidence - 1).high
    else:
        counts = Counts(*(np.array([one]) for one in (0, n - n_differing, n_differing)))
        proved = smallest_proved_drop(counts, delta=1 - confidence)
        upper = 1.0 if proved is None else proved
    return Fidelity(n=n, n_differing=n_differing, upper=upper)


def budget_left(max_em_drop: float, fidelity: Fidelity | None, *, other_charges: float = 0.0) -> Budget:
    """Subtract the finish and other charges, such as a judge's error. Nothing is left if the finish is unmeasured."""
    if other_charges < 0:
        raise ValueError(f"other_charges: got {other_charges}; at least 0")
    if fidelity is None:
        return Budget(max_em_drop=0.0, reason="the finish was never compared with its trial answers")
    charge = fidelity.upper + other_charges
    left = max_em_drop - charge
    if left <= 0:
        return Budget(max_em_drop=0.0, reason=f"charges of {charge:.2%} use up the budget of {max_em_drop:.2%}")
    return Budget(max_em_drop=left, reason=f"{left:.2%} left of {max_em_drop:.2%} after charges of {charge:.2%}")


@dataclass(slots=True)
class LevelBand:
    latest: deque[bool]  # True: the finish changed the answer; oldest first
    reference: float | None = None  # bound from the first half window, then frozen; None: not yet
    evidence: tuple[float, ...] = (0.0,) * len(FINISH_RISES)  # that the rate is above the reference, for each rise
    alarmed: bool = False

    def note(self, differs: bool) -> bool:
        """Add the next comparison and return True if it raises the alarm.

        An e-detector (Shiryaev-Roberts; Shin, Ramdas, Rinaldo 2023, arXiv:2203.03532): M <- (M + 1) LR for each rise,
        LR the likelihood ratio of the higher rate to the reference. While no comparison has a conditional rate above
        the reference, the mean number of comparisons to an alarm is at least `STOPS_TO_FALSE_ALARM`.
        """
        self.latest.append(differs)
        if self.alarmed:
            return False
        if self.reference is None:
            if 2 * len(self.latest) >= (self.latest.maxlen or 0):
                first = _interval(sum(self.latest), len(self.latest))
                self.reference = min(first.high, 0.999)  # a ratio needs a rate below 1
            return False
        p = self.reference
        ratios = ((p + rise * (1 - p)) / p if differs else 1 - rise for rise in FINISH_RISES)
        self.evidence = tuple((m + 1) * ratio for m, ratio in zip(self.evidence, ratios, strict=True))
        self.alarmed = sum(self.evidence) / len(FINISH_RISES) >= STOPS_TO_FALSE_ALARM
        return self.alarmed


@dataclass(slots=True)
class FinishFidelity:
    """How often the finish changed the answer lately, by band of levels; deterministic in the log.

    All levels of a band get its bound. A band with fewer comparisons than a window borrows from the next higher bands,
    newest first. This assumes that a finish from a shorter prefix (a higher level) changes the answer at least as
    often.
    """

    n_levels: int  # of the version, level 0 included; at least 2
    window: int = FIDELITY_WINDOW  # comparisons of a band that count; the first half is the detector's reference
    bands: list[LevelBand] = field(init=False)  # safest first

    def __post_init__(self) -> None:
        if self.n_levels < 2 or self.window < 2:
            raise ValueError(f"need n_levels >= 2 and window >= 2; got {self.n_levels=} {self.window=}")
        self.bands = [LevelBand(deque(maxlen=self.window)) for _ in range(min(MOST_BANDS, self.n_levels - 1))]

    @property
    def tops(self) -> tuple[int, ...]:
        """The highest level of each band, ascending."""
        return tuple((band + 1) * (self.n_levels - 1) // len(self.bands) for band in range(len(self.bands)))

    def note(self, level: int, differs: bool) -> bool:
        """Add a comparison at the level of a real or shadow stop; True: alarm."""
        return self.bands[self._band(level)].note(differs)

    def charge(self, level: int) -> Fidelity | None:
        """Bound the rate at which the finish changes the answer at `level`.

        The largest bound of all bands up to that of the level: the first level that breaks the budget has to pass
        before any above it is served. So only one bound has to hold and the risk is `FIDELITY_RISK` once, provided that
        all levels up to the served one are tested with this charge.

        None: no comparison in the level's band or above, so the level may not be certified. Level 0 never stops and
        costs 0.
        """
        if level == 0:
            return VERBATIM
        bounds = [self._bound(band) for band in range(self._band(level) + 1)]
        known = [bound for bound in bounds if bound is not None]
        return max(known, key=lambda bound: bound.upper) if len(known) == len(bounds) else None

    @property
    def alarm(self) -> str | None:
        first = 1
        for band, top in zip(self.bands, self.tops, strict=True):
            if band.alarmed:
                where = f"level {top}" if first == top else f"levels {first} to {top}"
                return f"the finish of {where} changes more than {band.reference:.2%} of the answers, its first bound"
            first = top + 1
        return None

    def _band(self, level: int) -> int:
        if not 1 <= level < self.n_levels:
            raise ValueError(f"level: got {level}; 1 to {self.n_levels - 1}")
        return next(band for band, top in enumerate(self.tops) if level <= top)

    def _bound(self, band: int) -> Fidelity | None:
        near: list[bool] = []
        for above in self.bands[band:]:
            latest = list(above.latest)
            near += latest[max(0, len(latest) - self.window + len(near)) :]
        if not near:
            return None
        n = len(near)
        n_differing = sum(near)
        own = self.bands[band].latest
        # Borrowed comparisons must not hide a rate that the band's own comparisons prove.
        refuted = _interval(sum(own), len(own)).low if own else 0.0
        return Fidelity(n=n, n_differing=n_differing, upper=max(_interval(n_differing, n).high, refuted))


@lru_cache(maxsize=256)
def _interval(n_differing: int, n: int) -> Interval:
    return exact_binomial(n_differing, n, 2 * FIDELITY_CONFIDENCE - 1)
