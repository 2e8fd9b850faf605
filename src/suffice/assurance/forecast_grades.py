"""Grades forecasts once their horizon has passed; the grades widen or narrow later intervals.

A forecast of the EM drop is graded by what the audits around its horizon show at the level that it was about, by the
label-free measure that it is fitted on: losses alone are too rare to grade anything. A forecast of the EM is graded by
labelled runs. The interval allows for the noise of as many outcomes as were seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, sqrt
from statistics import median
from typing import Final, Literal, Protocol

Of = Literal["em_drop", "em", "tokens", "usd"]

HORIZON: Final = 3_000  # requests ahead of which forecasts are graded
LIKELY_SD: Final = 1.645  # ends of a 90 % interval
LIKELY: Final = 0.9
AROUND: Final = 500  # requests on either side of the horizon whose outcomes grade a forecast
MIN_OUTCOMES: Final = 20  # around the horizon; a forecast with fewer stays ungraded
STEP: Final = 0.02  # of the log of the width for one grade
FIRST_WIDTHS: Final[Mapping[Of, float]] = {"em_drop": 0.9}  # before the first grade, where not 1
NARROWEST, WIDEST = 0.5, 2.5
MOST_LEADS: Final = 100  # the latest


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedOutcomes:
    """What the outcomes around the horizon should average: losses by the measure of `near`, or wrong answers."""

    mean: float
    sd: float  # of this mean, apart from the noise of the outcomes that will be seen
    noise: float  # variance of one outcome, times the square of the width


class OutcomeWindow(Protocol):
    @property
    def until(self) -> int: ...

    def outcomes(self, of: Of) -> tuple[float, float]:
        """Sum and number of the outcomes that grade forecasts of this kind."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastGrade:
    of: Of
    made_at: int  # requests of the route when the forecast was made; days since 1970 for tokens and money
    low: float  # 90 % interval …
    high: float
    observed: float  # … and what came
    n: float = 1  # outcomes behind it

    @property
    def inside(self) -> bool:
        return self.low <= self.observed <= self.high


def grade_outcomes(of: Of, made_at: int, expected: ExpectedOutcomes, *, total: float, n: float) -> ForecastGrade | None:
    """Grade by `n` outcomes around the horizon with sum `total`; None: too few."""
    if n < MIN_OUTCOMES:
        return None
    half = LIKELY_SD * sqrt(expected.sd**2 + expected.noise / n)
    low, high = expected.mean - half, expected.mean + half
    return ForecastGrade(of=of, made_at=made_at, low=low, high=high, observed=total / n, n=n)


def grade_due(
    pending: deque[tuple[int, ExpectedOutcomes]], of: Of, at: int, windows: Sequence[OutcomeWindow]
) -> Iterator[ForecastGrade]:
    """Grade the pending forecasts, oldest first, whose time has come at request `at`; removes them."""
    while pending and pending[0][0] + HORIZON + AROUND <= at:
        made_at, expected = pending.popleft()
        around = [one.outcomes(of) for one in windows if abs(one.until - made_at - HORIZON) <= AROUND]
        total, n = (sum(part) for part in zip(*around, strict=True)) if around else (0.0, 0.0)
        grade = grade_outcomes(of, made_at, expected, total=total, n=n)
        if grade is not None:
            yield grade


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackRecord:
    """How forecasts of one kind on one route have done so far.

    `width` is the factor on every sd. It falls a little with each forecast inside its interval and rises nine times as
    much with each one outside, so that nine in ten come to lie inside whatever is wrong with the forecaster (adaptive
    conformal inference; Gibbs and Candès 2021, arXiv:2106.00170).
    """

    of: Of
    n_graded: int = 0
    n_inside: int = 0
    width: float = 1.0
    n_right: int = 0  # alerts whose level was later estimated above the limit, or found there by an alarm
    n_wrong: int = 0  # alerts that ended without
    leads: tuple[int, ...] = ()  # requests from an alert to that, of the latest right ones
    alerted_at: int | None = None  # when the open alert was raised; None: none is open, or it was right already

    @property
    def median_lead(self) -> float | None:
        return median(self.leads) if self.leads else None

    def with_grades(self, grades: Iterable[ForecastGrade]) -> TrackRecord:
        record = self
        for grade in grades:
            step = STEP * ((not grade.inside) - (1 - LIKELY))
            record = replace(
                record,
                n_graded=record.n_graded + 1,
                n_inside=record.n_inside + grade.inside,
                width=min(WIDEST, max(NARROWEST, record.width * exp(step))),
            )
        return record

    def with_alert(self, n: int, *, is_open: bool, was_open: bool, crossed: bool) -> TrackRecord:
        """Note at request `n` whether an alert is and was open, and whether its limit is crossed."""
        record = self if was_open or not is_open else replace(self, alerted_at=n)
        if record.alerted_at is None:
            return record
        if crossed:
            leads = (*record.leads, n - record.alerted_at)[-MOST_LEADS:]
            return replace(record, n_right=record.n_right + 1, leads=leads, alerted_at=None)
        return record if is_open else replace(record, n_wrong=record.n_wrong + 1, alerted_at=None)

    def __str__(self) -> str:
        parts = [f"{self.n_graded:,} graded, {self.n_inside:,} inside their interval"] if self.n_graded else []
        if self.n_right or self.n_wrong:
            lead = "" if self.median_lead is None else f", median lead {self.median_lead:,.0f} requests"
            parts.append(f"{self.n_right + self.n_wrong:,} alerts graded, {self.n_right:,} right{lead}")
        return "; ".join(parts)


def record_of(records: Iterable[TrackRecord], of: Of) -> TrackRecord:
    """Return the record of one kind; a new one if there is none."""
    return next((one for one in records if one.of == of), TrackRecord(of=of, width=FIRST_WIDTHS.get(of, 1.0)))


def describe_records(records: Iterable[TrackRecord]) -> Iterator[tuple[str, str]]:
    """Names and sentences for people, of kinds that were graded."""
    names = {"em_drop": "EM drop", "em": "EM", "usd": "cost", "tokens": "tokens"}
    for one in records:
        if graded := str(one):
            yield f"forecasts of {names[one.of]}", graded
