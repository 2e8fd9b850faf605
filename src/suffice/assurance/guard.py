"""Guard-rails per class: what a pooled certificate hides in one class of questions is found, and that class steps back.

    audits, one by one, Z at every level ──▶ for each class an e-detector for "it loses more than twice the budget"
    alarm                                ──▶ a third of all levels down, for this class alone
    fresh audits prove "twice the budget at most" at the level it would return to ──▶ a third up again

A pooled certificate may be right and one class badly off: gains in one pay for losses in another. So losses and gains
are counted apart, and a class with under 200 audits is unknown: it has no alarm and no clean bill. Audits show every
level, so the way back is proved while nobody is exposed to it. ASSURANCE.md §3.7.

Knows classes by name and outcomes of audits; refuses to know how questions are sorted into classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, log
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.assurance.bounds import Interval
from suffice.assurance.certify import Counts, count_outcomes, log_wealth
from suffice.assurance.drift import ShiryaevRoberts
from suffice.assurance.ledger import KNOWN_AUDITS
from suffice.assurance.sequence import SequenceState, mean_between

FACTOR: Final = 2.0  # a class may lose this many budgets: small classes cannot prove less, and the pool does
STEPS: Final = 3  # alarms from the top level to level 0
MAX_CLASS_DROP: Final = 0.9  # the bets need room above what is put up with

Status = Literal["unknown", "watched", "held"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassReport:
    """What the audits of one class say of the level that it runs at; losses apart from gains, which would hide them."""

    query_class: str
    status: Status  # unknown: too few audits; held: below the pooled level since its last alarm
    n_audits: int
    n_alarms: int
    lost: float  # share of audits whose right answer the stop lost; 0 without audits
    gained: float  # share of audits whose answer was right only because of the stop
    lost_between: Interval  # valid at every look
    gained_between: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassState:
    """What the guard of one class knows, in plain data."""

    detector: tuple[float, ...]
    steps_down: int
    n_alarms: int
    lost: SequenceState
    gained: SequenceState
    since: tuple[tuple[int, int, int], ...]  # by level: gained, same, lost since the last move; (): not held


class ClassGuards:
    """The guard-rails of one route.

    n_levels     M: levels 0 … M - 1
    max_em_drop  the route's budget, a fraction; a class is held when it loses more than twice as much
    delta        of the proof that lets a class back, in (0, 1)
    threshold    mean number of audits of a class to a false alarm
    """

    def __init__(self, n_levels: int, max_em_drop: float, *, delta: float = 0.05, threshold: float = 2_000.0) -> None:
        if n_levels < 1 or not 0 < FACTOR * max_em_drop < MAX_CLASS_DROP or not 0 < delta < 1:
            raise ValueError(
                f"need n_levels >= 1, 0 < max_em_drop < 0.45, 0 < delta < 1; got {n_levels=} {max_em_drop=} {delta=}"
            )
        self._n_levels, self._allowed = n_levels, FACTOR * max_em_drop
        self._delta, self._threshold = delta, threshold
        self._classes: dict[str, _Guard] = {}

    def level(self, query_class: str, pooled: int) -> int:
        """The level that this class runs at while the pooled certificate allows `pooled`."""
        guard = self._classes.get(query_class)
        return pooled if guard is None else self._below(pooled, guard.steps_down)

    def steps_down(self, query_class: str) -> int:
        """How many thirds of all levels a class stands below the pooled level; 0: it is not held."""
        guard = self._classes.get(query_class)
        return 0 if guard is None else guard.steps_down

    def add(self, query_class: str, z: NDArray[np.int8], pooled: int) -> bool:
        """Take in one audit of a class; True: the class has just stepped down.

        z       EM drop at each level, -1, 0 or +1, shape (M,)
        pooled  level that the certificate allowed when it was drawn
        """
        if z.shape != (self._n_levels,) or not 0 <= pooled < self._n_levels:
            raise ValueError(f"need z at {self._n_levels} levels and pooled among them; got {z.shape} {pooled=}")
        guard = self._classes.setdefault(query_class, _Guard(self._allowed, self._threshold))
        here = int(z[self._below(pooled, guard.steps_down)])
        alarm = guard.take(here, z)
        if alarm:
            guard.step(+1, self._n_levels)
        elif guard.steps_down and self._may_return(guard, pooled):
            guard.step(-1, self._n_levels)
        return alarm

    def report(self, confidence: float = 0.95) -> tuple[ClassReport, ...]:
        """All classes by name, with intervals that may be read at any moment."""
        return tuple(guard.report(name, confidence) for name, guard in sorted(self._classes.items()))

    def state(self) -> dict[str, ClassState]:
        """All it knows, to be kept."""
        return {name: guard.state() for name, guard in self._classes.items()}

    def restore(self, state: Mapping[str, ClassState]) -> None:
        """Go on from what was kept."""
        self._classes = {name: _Guard(self._allowed, self._threshold) for name in state}
        for name, kept in state.items():
            self._classes[name].restore(kept)

    def _below(self, pooled: int, steps_down: int) -> int:
        return max(0, pooled - steps_down * ceil(self._n_levels / STEPS))

    def _may_return(self, guard: _Guard, pooled: int) -> bool:
        """Do the audits since the last move prove that the class keeps its bound one step further up?"""
        wealth = log_wealth(guard.since, max_em_drop=self._allowed)
        return float(wealth[self._below(pooled, guard.steps_down - 1)]) >= log(1 / self._delta)


class _Guard:
    """One class."""

    def __init__(self, allowed: float, threshold: float) -> None:
        self._detector = ShiryaevRoberts(allowed, threshold=threshold)
        self.steps_down = self._n_alarms = 0
        self._lost = self._gained = SequenceState()
        self.since = _NOTHING

    def take(self, z_here: int, z: NDArray[np.int8]) -> bool:
        self._lost = self._lost.plus(float(z_here > 0))
        self._gained = self._gained.plus(float(z_here < 0))
        if self.steps_down:
            self.since += count_outcomes(z[np.newaxis])
        return self._detector.add(z_here) and self._lost.n >= KNOWN_AUDITS

    def step(self, by: int, n_levels: int) -> None:
        """Move down or up; what was seen before the move proves nothing behind it."""
        self._n_alarms += by > 0
        self.steps_down = min(STEPS, self.steps_down + by)
        self._detector.reset()
        self.since = _zeros(n_levels) if self.steps_down else _NOTHING

    def report(self, name: str, confidence: float) -> ClassReport:
        n = self._lost.n
        status: Status = "held" if self.steps_down else "watched" if n >= KNOWN_AUDITS else "unknown"
        return ClassReport(
            query_class=name,
            status=status,
            n_audits=n,
            n_alarms=self._n_alarms,
            lost=self._lost.total / n,
            gained=self._gained.total / n,
            lost_between=mean_between(self._lost, confidence),
            gained_between=mean_between(self._gained, confidence),
        )

    def state(self) -> ClassState:
        levels = np.stack([self.since.gained, self.since.same, self.since.lost], axis=1).tolist()
        return ClassState(
            detector=self._detector.state(),
            steps_down=self.steps_down,
            n_alarms=self._n_alarms,
            lost=self._lost,
            gained=self._gained,
            since=tuple((gained, same, lost) for gained, same, lost in levels),
        )

    def restore(self, state: ClassState) -> None:
        self._detector.restore(state.detector)
        self.steps_down, self._n_alarms = state.steps_down, state.n_alarms
        self._lost, self._gained = state.lost, state.gained
        gained, same, lost = np.array(state.since, dtype=np.int64).reshape(-1, 3).T
        self.since = Counts(gained, same, lost)


def _zeros(n_levels: int) -> Counts:
    nothing = np.zeros(n_levels, dtype=np.int64)
    return Counts(nothing, nothing, nothing)


_NOTHING: Final = _zeros(0)
