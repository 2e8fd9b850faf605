"""What came of the requests so far, in three periods: before a certificate, under it, and behind the swap. Pure.

Tokens are generated tokens a request, cancelled samples and audits included. Saving and change of EM compare the runs
under the certificate with all runs before it: other requests of the same traffic, so nothing is paired but the audits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.assurance.bounds import Interval, bootstrap_interval
from suffice.demo import rows
from suffice.demo.ask import DemoAnswer
from suffice.demo.online.plan import name_of
from suffice.scoring.base import Scorer
from suffice.types import Episode

Period: TypeAlias = Literal["before", "certified", "swapped"]
PERIODS: Final[tuple[Period, ...]] = ("before", "certified", "swapped")
N_DRAWS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class CourseRun:
    period: Period
    question: str  # in the pool
    episode: Episode
    correct: bool  # what the client got
    first_correct: bool = False  # would its first sample alone have been right?
    stop_correct: bool | None = None  # audits: what a stop would have delivered; None: it would not have stopped

    @property
    def tokens(self) -> int:
        return rows.total_tokens(self.episode)

    @property
    def by_lot(self) -> bool:
        return self.episode.request.audit and self.episode.request.propensity < 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """One period in numbers; fractions. None: it is the runs under the certificate that are compared, and no others."""

    period: Period
    n: int
    n_stopped: int
    n_audits: int  # ran in full by design
    em: float  # of what clients got
    em_first: float  # of each request's first sample
    tokens: float  # mean a request
    em_change: float | None = None  # against the full runs before
    em_change_interval: Interval | None = None
    saved: float | None = None
    saved_interval: Interval | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditTally:
    n: int
    n_stops: int  # of them: would have stopped
    n_lost: int  # right in full, wrong if stopped
    n_gained: int


def run_of(answered: DemoAnswer, episode: Episode, scorer: Scorer, *, swapped: bool) -> CourseRun:
    request, outcome, gold = episode.request, episode.outcome, answered.question.gold
    would_stop = request.audit and outcome.stop_step is not None
    return CourseRun(
        period="swapped" if swapped else "certified" if request.certified else "before",
        question=name_of(answered.question),
        episode=episode,
        correct=rows.correct(answered, scorer),
        first_correct=bool(outcome.steps) and rows.matches(scorer, outcome.steps[0].answer, gold),
        stop_correct=rows.matches(scorer, outcome.would_answer, gold) if would_stop else None,
    )


def audited(runs: Iterable[CourseRun]) -> AuditTally:
    found = [run for run in runs if run.period == "certified" and run.by_lot]
    stops = [(run.correct, run.stop_correct) for run in found if run.stop_correct is not None]
    return AuditTally(
        n=len(found),
        n_stops=len(stops),
        n_lost=sum(full and not stop for full, stop in stops),
        n_gained=sum(bool(stop) and not full for full, stop in stops),
    )


def all_figures(runs: Sequence[CourseRun], *, sure: bool = False) -> Mapping[Period, Figures]:
    parts = {period: [run for run in runs if run.period == period] for period in PERIODS}
    return {period: _figures(period, part, parts["before"], sure=sure) for period, part in parts.items() if part}


def _figures(period: Period, runs: Sequence[CourseRun], full: Sequence[CourseRun], *, sure: bool) -> Figures:
    compared = period == "certified" and bool(full)
    values = np.array([*(_row(run, 0) for run in full), *(_row(run, 3) for run in runs)])
    groups = [run.question for run in (*full, *runs)]
    sums = values.sum(axis=0)
    saved_interval = em_interval = None
    if compared and sure:
        rng = np.random.default_rng(rows.SEED)
        saved_interval = bootstrap_interval(values, groups, _saved, 0.95, N_DRAWS, rng)
        em_interval = bootstrap_interval(values, groups, _em_change, 0.95, N_DRAWS, rng)
    return Figures(
        period=period,
        n=len(runs),
        n_stopped=sum(run.episode.outcome.stopped for run in runs),
        n_audits=sum(run.episode.request.audit for run in runs),
        em=float(np.mean([run.correct for run in runs])),
        em_first=float(np.mean([run.first_correct for run in runs])),
        tokens=float(np.mean([run.tokens for run in runs])),
        em_change=_em_change(sums) if compared else None,
        em_change_interval=em_interval,
        saved=_saved(sums) if compared else None,
        saved_interval=saved_interval,
    )


def _row(run: CourseRun, at: int) -> list[float]:
    found = [0.0] * 6
    found[at : at + 3] = [1.0, float(run.correct), float(run.tokens)]
    return found


def _em_change(sums: np.ndarray) -> float:
    return float(sums[4] / sums[3] - sums[1] / sums[0]) if sums[0] and sums[3] else float("nan")


def _saved(sums: np.ndarray) -> float:
    if not (sums[0] and sums[3] and sums[2]):
        return float("nan")
    return float(1 - (sums[5] / sums[3]) / (sums[2] / sums[0]))
