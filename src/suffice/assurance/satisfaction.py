"""Do people like stopped answers less than full ones? Paired by the audit lottery, valid at every look.

    ratings, in order ──▶ pairs (audits against the stopped runs between them) ──▶ e-process ──▶ a safer level, or not

Exact Match can hold while people are served worse: shorter explanations, a colder tone. Audits were drawn by lot and
got the full answer, so ratings of both differ by what stopping did to them, as far as people rate both alike often.
Each pair is a bet that audits are rated better; while they are not, such bets have no growth to expect, and may be
looked at for ever (Waudby-Smith and Ramdas 2024, JRSS B 86(1), arXiv:2010.09686; Ville's inequality). A bound for means
of any data in [-1, 1], such as `bounds.mean_interval`, needs about four times the audits for the same fall.

Pure: ratings in, a verdict out. Knows fractions and lots; refuses to know whose ratings count, and how much.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite, pi
from typing import Final

from suffice.assurance.judge import JUDGE
from suffice.settings import Metric
from suffice.settings.checks import span_of
from suffice.types import Feedback

BETS: Final = (0.1, 0.3, 0.6, 0.9)  # parts of the wealth; small ones find small falls, large ones large falls quickly
START_EVERY: Final = 50  # pairs after which new bets begin, so that a long peace costs no old wealth
MEMORY_RATINGS: Final = 200  # of stopped runs: the mean that is compared with the floor forgets older ones
MOST_WEALTH: Final = 1e100


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedRun:
    """One rated run that the lottery could have made an audit, and that was stopped if it was none."""

    audit: bool
    satisfaction: float  # [0, 1]
    stands_for: float = 1.0  # so many runs like it, at least 1 (`sampling`)


@dataclass(frozen=True, slots=True, kw_only=True)
class SatisfactionVerdict:
    """What the ratings say of stopping."""

    safer: bool  # take the next safer level
    reason: str
    n_pairs: int
    drop: float | None  # mean satisfaction of audits minus that of stopped runs, over pairs; None: no pair
    stopped: float | None  # mean satisfaction of the latest stopped runs; None: none was rated
    e_value: float  # evidence against "stopped runs are rated as well"; 1/delta proves a fall


def satisfaction_of(feedback: Feedback) -> float | None:
    """How satisfied somebody was, [0, 1]: a rating from 1 to 5, else a thumb, else a survey; None: nobody said so."""
    if feedback.rating is not None:
        return (feedback.rating - 1) / 4
    return feedback.satisfaction if feedback.thumbs is None else float(feedback.thumbs == "up")


def by_people(feedback: Feedback) -> float | None:
    """The same, where it was no judge model that said so."""
    return None if feedback.source == JUDGE else satisfaction_of(feedback)


def scaled(value: float, metric: Metric) -> float:
    """A declared metric's value from 0, the worst that it can be, to 1, the best.

    Raises ValueError for a category, whose words have no order.
    """
    span = span_of(metric)
    if span is None:
        raise ValueError("metric: a category has no best value")
    share = (value - span[0]) / (span[1] - span[0])
    return share if metric.direction == "higher" else 1 - share


def floor_of(min_satisfaction: float) -> float:
    """The route's `min_satisfaction` as a fraction: up to 1 it is one, above it is a rating from 1 to 5."""
    return min_satisfaction if min_satisfaction <= 1 else (min_satisfaction - 1) / 4


def judge_satisfaction(ratings: Iterable[RatedRun], *, min_satisfaction: float, delta: float) -> SatisfactionVerdict:
    """Say whether the next safer level is due: stopped runs are rated worse than audits, and below the floor.

    The fall must be proven, for a floor alone cannot tell stopping from a harder week: the level goes down only where
    that can help. Where stopping changes nothing, whatever the floor, a move is ever asked for with probability at most
    `delta`. After a move begin anew, with the ratings that come behind it.

    ratings           of one route since the last such move, in order of arrival; a run counts once
    min_satisfaction  as in the settings: a fraction up to 1, or a rating above 1 and up to 5
    delta             in (0, 1)
    """
    seen = SatisfactionTest(min_satisfaction=min_satisfaction, delta=delta)
    for rated in ratings:
        seen.add(rated)
        if seen.asks is not None:
            break
    return seen.verdict()


def next_safer(level: int) -> int:
    """The next safer level; level 0 never stops, and there is none safer."""
    return max(0, level - 1)


@dataclass(slots=True)
class _Mean:
    total: float = 0.0
    weight: float = 0.0
    n: int = 0

    def add(self, value: float, weight: float = 1.0) -> None:
        self.total += weight * value
        self.weight += weight
        self.n += 1

    @property
    def mean(self) -> float | None:
        return self.total / self.weight if self.n else None


@dataclass(slots=True)
class RatingPairs:
    """Audits against the stopped runs between them, in the order in which they came."""

    _audits: _Mean = field(default_factory=_Mean)  # that wait for a partner
    _partners: _Mean = field(default_factory=_Mean)  # stopped runs since the last pair

    def add(self, value: float, *, audit: bool, weight: float = 1.0) -> tuple[float, float] | None:
        """Take the next run in: the pair that it completes, as audits minus partners, and its weight; None: none yet.

        weight  above 0: one over the share of people who were asked
        """
        (self._audits if audit else self._partners).add(value, weight)
        audits, partners = self._audits.mean, self._partners.mean
        if not audit or audits is None or partners is None:
            return None
        made = audits - partners, self._audits.weight / self._audits.n
        self._audits, self._partners = _Mean(), _Mean()
        return made


@dataclass(slots=True, kw_only=True)
class SatisfactionTest:
    """Judge ratings that arrive one by one. Raises ValueError for parameters out of range.

    asks  why the next safer level is due, from the rating on that proved it; None: it is not
    """

    min_satisfaction: float
    delta: float
    asks: str | None = None
    n_pairs: int = 0
    e_value: float = 1.0
    stopped: float | None = None
    drops: _Mean = field(default_factory=_Mean)
    _pairing: RatingPairs = field(default_factory=RatingPairs)
    _wealth: list[float] = field(default_factory=lambda: [0.0] * len(BETS))  # of the bets that have begun
    _unspent: float = 1.0  # weight of those that have not
    _n_stopped: int = 0
    _mean_weight: float = 0.0  # of the latest stopped runs

    def __post_init__(self) -> None:
        """Check the parameters."""
        floor, delta = self.min_satisfaction, self.delta
        if not 0 < floor <= 5 or not 0 < delta < 1:
            raise ValueError(f"need 0 < min_satisfaction <= 5 and 0 < delta < 1; got min_satisfaction={floor} {delta=}")

    @property
    def floor(self) -> float:
        """What stopped runs must not be rated below, as a fraction."""
        return floor_of(self.min_satisfaction)

    @property
    def drop(self) -> float | None:
        """Mean satisfaction of audits minus that of stopped runs; None: no pair."""
        return self.drops.mean

    def add(self, rated: RatedRun) -> None:
        """Take the next rating in. Raises ValueError for one that is no fraction."""
        self._add(rated)
        proven = self.e_value >= 1 / self.delta
        if self.asks is None and proven and self.stopped is not None and self.stopped < self.floor:
            self.asks = (
                f"stopped runs are rated {self.stopped:.2f}, below {self.floor:.2f}, and worse than audits"
                f" (by {self.drop:.2f} in {self.n_pairs} pairs)"
            )

    def verdict(self) -> SatisfactionVerdict:
        """What the ratings so far say."""
        reason = f"no fall is proven by {self.n_pairs} pairs"
        if self.e_value >= 1 / self.delta:
            reason = f"rated worse than audits, but not below {self.floor:.2f}"
        return SatisfactionVerdict(
            safer=self.asks is not None,
            reason=self.asks or reason,
            n_pairs=self.n_pairs,
            drop=self.drop,
            stopped=self.stopped,
            e_value=self.e_value,
        )

    def _add(self, rated: RatedRun) -> None:
        if not (isfinite(rated.satisfaction) and 0 <= rated.satisfaction <= 1):
            raise ValueError(f"satisfaction: got {rated.satisfaction}; a fraction from 0 to 1")
        if not rated.audit:
            self._n_stopped += 1
            before = rated.satisfaction if self.stopped is None else self.stopped
            self._mean_weight += (rated.stands_for - self._mean_weight) / min(self._n_stopped, MEMORY_RATINGS)
            away = (rated.satisfaction - before) * rated.stands_for
            self.stopped = before + away / (self._mean_weight * min(self._n_stopped, MEMORY_RATINGS))
        pair = self._pairing.add(rated.satisfaction, audit=rated.audit, weight=rated.stands_for)
        if pair is not None:
            self._bet(pair[0])

    def _bet(self, drop: float) -> None:
        """Bet on one pair. Bets that begin later have their own wealth, set aside at the start: sum 6/(pi v)^2 = 1."""
        if self.n_pairs % START_EVERY == 0:
            start = 6 / (pi * (1 + self.n_pairs // START_EVERY)) ** 2
            self._unspent -= start
            self._wealth = [wealth + start for wealth in self._wealth]
        self.n_pairs += 1
        self.drops.add(drop)
        self._wealth = [min(MOST_WEALTH, w * (1 + bet * drop)) for w, bet in zip(self._wealth, BETS, strict=True)]
        self.e_value = sum(self._wealth) / len(BETS) + self._unspent
