"""Compares runs class by class, and guards each class: a pooled mean may contradict every class (Simpson's paradox).

Stopped against full runs, or two arms, need standardising to one mix of classes; audits, compared with themselves, need
`post_stratify` to the present mix and `ClassGuards` where gains hide harm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, log, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.certify import Counts, count_outcomes, log_wealth
from suffice.assurance.drift import ShiryaevRoberts
from suffice.assurance.guarantee import KNOWN_AUDITS

MIN_STRATUM: Final = 20  # audits of a class; smaller classes are merged
POST_CONFIDENCE: Final = 0.99  # of the lower bound, high because it is checked repeatedly


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    query_class: str
    n_full: int
    n_full_right: int
    n_stopping: int  # runs of the side that may stop, stopped or not
    n_stopping_right: int

    @property
    def n(self) -> int:
        return self.n_full + self.n_stopping

    @property
    def drop(self) -> float | None:
        if not self.n_full or not self.n_stopping:
            return None
        return self.n_full_right / self.n_full - self.n_stopping_right / self.n_stopping


_CELL_COUNTS: Final = ("n_full", "n_full_right", "n_stopping", "n_stopping_right")


def hidden_drop(cells: Sequence[Cell]) -> float | None:
    """The drop at one mix of classes where the runs as a whole show none (Simpson's paradox); None: nothing is hidden.

    A point estimate, without an interval. The classes are weighted by their runs; each needs runs on both sides.
    """
    filled = [cell for cell in cells if cell.n]
    drops = [(cell.n, cell.drop) for cell in filled if cell.drop is not None]
    if not drops or len(drops) < len(filled):
        return None
    sums = {name: sum(getattr(cell, name) for cell in filled) for name in _CELL_COUNTS}
    pooled = Cell(query_class="", **sums).drop or 0.0
    standardised = sum(n * drop for n, drop in drops) / sum(n for n, _ in drops)
    return standardised if pooled <= 0 < standardised else None


@dataclass(frozen=True, slots=True, kw_only=True)
class PostStratifiedDrop:
    drop: float  # fraction, over the classes with audits
    low: float  # lower confidence bound of the drop, at least 0
    unseen: float  # part of the mix in classes without audits, [0, 1]; at 1 the drop is unknown and given as 0

    def alarm(self, max_em_drop: float) -> str | None:
        if self.low <= max_em_drop:
            return None
        return f"audits lose more than the budget at the present mix of classes: {100 * self.drop:.1f} points"


def post_stratify(
    audits: Mapping[str, NDArray[np.int8]], mix: Mapping[str, float], *, confidence: float = POST_CONFIDENCE
) -> PostStratifiedDrop:
    """Estimate the drop of recent traffic from audits and from the class mix of that traffic.

    Drops of classes are weighted with their shares of the mix (Holt and Smith 1979, JRSS A 142(1)). Classes with fewer
    than MIN_STRATUM audits form one class; those without any are assumed to be like the others. The bound is the gamma
    interval of Fay and Feuer (1997, Statistics in Medicine 16, 791-801), its quantile by Wilson and Hilferty (1931),
    for one look and known weights.

    audits      EM drops of the audits of each class, -1, 0 or +1
    mix         weight of each class in recent traffic, at least 0; need not sum to 1
    confidence  of the one-sided bound, in (0.5, 1)
    """
    total = sum(mix.values())
    if not total > 0 or min(mix.values()) < 0 or not 0.5 < confidence < 1:
        raise ValueError(f"need a mix with weights and 0.5 < confidence < 1; got {mix=} {confidence=}")
    names = set(audits) | set(mix)
    small = {name for name in names if name not in audits or len(audits[name]) < MIN_STRATUM}
    groups = [{name} for name in names - small] + [small]
    mean = variance = unseen = 0.0
    for group in groups:
        weight = sum(mix.get(name, 0.0) for name in group) / total
        z = [audits[name] for name in group if name in audits]
        n = sum(map(len, z))
        if not n:
            unseen += weight
            continue
        mean += weight * sum(int(one.sum()) for one in z) / n
        variance += (weight / n) ** 2 * sum(int(np.abs(one).sum()) for one in z)
    if unseen >= 1 or mean <= 0:
        return PostStratifiedDrop(drop=mean / (1 - unseen) if unseen < 1 else 0.0, low=0.0, unseen=min(1.0, unseen))
    nine = 9 * mean * mean / variance
    root = 1 - 1 / nine - NormalDist().inv_cdf(confidence) / sqrt(nine)
    return PostStratifiedDrop(drop=mean / (1 - unseen), low=mean / (1 - unseen) * max(0.0, root) ** 3, unseen=unseen)


# --------------------------------------------------------------------------- guardrails per class
#
# A pooled certificate can hold while one class is harmed. An e-detector for each class watches for a loss above twice
# the budget. An alarm moves this class alone a third of all levels down; fresh audits that prove the higher level move
# it up again, without exposing traffic, because audits show every level. A class with under 200 audits has no alarm.

FACTOR: Final = 2.0  # budgets that a class may lose: small classes cannot prove less
STEPS: Final = 3  # alarms from the top level to level 0
MAX_CLASS_DROP: Final = 0.9  # the bets need room above the allowed drop


class ClassGuards:
    """The guardrails of one route.

    n_levels     M: levels 0 … M - 1
    max_em_drop  the route's budget, a fraction; a class is moved down when it loses more than twice as much
    delta        of the proof that moves a class up again, in (0, 1)
    """

    def __init__(self, n_levels: int, max_em_drop: float, *, delta: float = 0.05) -> None:
        self._n_levels, self._allowed = n_levels, FACTOR * max_em_drop
        self._delta = delta
        self._classes: dict[str, _Guard] = {}

    def level(self, query_class: str, pooled: int) -> int:
        return self._below(pooled, self.steps_down(query_class))

    def steps_down(self, query_class: str) -> int:
        """How many thirds of all levels the class is below the pooled level."""
        guard = self._classes.get(query_class)
        return 0 if guard is None else guard.steps_down

    def add(self, query_class: str, z: NDArray[np.int8], pooled: int) -> bool:
        """Add one audit; True: the class moves down.

        z       EM drop at each level, -1, 0 or +1, shape (M,)
        pooled  level that the certificate allowed at the draw
        """
        if z.shape != (self._n_levels,) or not 0 <= pooled < self._n_levels:
            raise ValueError(f"need z at {self._n_levels} levels and pooled among them; got {z.shape} {pooled=}")
        if query_class not in self._classes:
            self._classes[query_class] = _Guard(ShiryaevRoberts(self._allowed))
        guard = self._classes[query_class]
        guard.n_audits += 1
        if guard.steps_down:
            guard.since += count_outcomes(z[np.newaxis])
        here = int(z[self._below(pooled, guard.steps_down)])
        alarm = guard.detector.add(here) and guard.n_audits >= KNOWN_AUDITS
        if alarm:
            self._step(guard, +1)
        elif guard.steps_down:
            wealth = log_wealth(guard.since, max_em_drop=self._allowed)
            # Move up if the audits since the last move prove that the class keeps its bound one step up.
            if wealth[self._below(pooled, guard.steps_down - 1)] >= log(1 / self._delta):
                self._step(guard, -1)
        return alarm

    def judge_anew(self, query_class: str, z: NDArray[np.int8]) -> None:
        """Replace the audits since the last move of a held class by Z of another version, shape (n, M)."""
        self._classes[query_class].since = count_outcomes(z)

    def _below(self, pooled: int, steps_down: int) -> int:
        return max(0, pooled - steps_down * ceil(self._n_levels / STEPS))

    def _step(self, guard: _Guard, by: int) -> None:
        guard.steps_down = min(STEPS, guard.steps_down + by)
        guard.detector.reset()
        guard.since = count_outcomes(np.zeros((0, self._n_levels), dtype=np.int8))


@dataclass(slots=True, eq=False)
class _Guard:
    detector: ShiryaevRoberts
    n_audits: int = 0
    steps_down: int = 0
    since: Counts = field(default_factory=lambda: count_outcomes(np.zeros((0, 0), dtype=np.int8)))  # the last move


# --------------------------------------------------------------------------- guardrails per caller
#
# A certificate is about its window. A caller that sends only what stops harm afterwards is known by its own audits.

HARM: Final = 2 / 3  # share of a caller's requests that lose, against twice the budget: the alternative that is tested
MOST_FULL: Final = 100  # requests of a caller that run in full before its next look
MOST_DOUBTED: Final = 64  # callers
_LEAST_WEALTH: Final = 1e-9  # below it, only rounding is left


@dataclass(slots=True)
class CallerGuards:
    """The callers of one route whose latest audits lose, and how many of their next requests run in full.

    For each caller W <- max(1, W) LR over its audits at the active level, where LR compares a loss rate of `HARM` with
    one of twice the budget. So many requests run in full, as audits, as would bring W back to 1 if none lost.

    max_em_drop  the route's budget; from half of `HARM` on, no caller is guarded
    """

    max_em_drop: float
    _wealth: dict[str, float] = field(default_factory=dict)  # log W, where above 0

    @property
    def _factors(self) -> tuple[float, float]:
        """The logarithms of LR of an audit that loses, and of one that does not."""
        allowed = FACTOR * self.max_em_drop
        return log(HARM / allowed), log((1 - HARM) / (1 - allowed))

    def add(self, caller: str, *, lost: bool) -> None:
        if not caller or FACTOR * self.max_em_drop >= HARM:
            return
        if_lost, if_not = self._factors
        wealth = self._wealth.pop(caller, 0.0) + (if_lost if lost else if_not)
        if wealth > _LEAST_WEALTH:
            self._wealth[caller] = min(wealth, -if_not * MOST_FULL)
            if len(self._wealth) > MOST_DOUBTED:
                del self._wealth[next(iter(self._wealth))]  # whose latest audit is the oldest

    @property
    def n_full(self) -> tuple[tuple[str, int], ...]:
        """(caller, how many of its next requests run in full), sorted."""
        return tuple(sorted((name, ceil(one / -self._factors[1])) for name, one in self._wealth.items()))
