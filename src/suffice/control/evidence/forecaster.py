"""Forecasts of one route from its latest runs: made at each look, graded later, and turned into actions.

What it knows beside the runs follows from rows of the log, so another worker goes on where this one stopped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from sys import intern
from typing import Final

import msgspec
import numpy as np

from suffice.arrays import Floats
from suffice.assurance.exposure import MOST_DROP
from suffice.assurance.forecast import (
    MEMORY,
    Forecast,
    ForecastAction,
    ForecastWindow,
    RouteForecast,
    Stance,
    describe_change,
    forecast_drop,
    forecast_em,
    next_stance,
    relative_losses,
)
from suffice.assurance.forecast_grades import (
    AROUND,
    HORIZON,
    ExpectedOutcomes,
    ForecastGrade,
    Of,
    grade_due,
    record_of,
)
from suffice.assurance.runs import Match, RunNumbers, measure_run
from suffice.assurance.sampling import worth
from suffice.control.evidence.audits import Audit
from suffice.control.evidence.drift_features import SIGNALS, DriftFeatures
from suffice.control.evidence.run_join import LabelDelay
from suffice.control.evidence.versions import AuditAtLevel, ReplayedAudits, by_itself
from suffice.learn.version import MOST_AUDITS, ServedVersion
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.database import views
from suffice.types import Alarm, EndReason, Episode, KeptBy, Mode, Outcome, Query, Request, Usage

OUTCOMES: Final[tuple[Of, ...]] = ("em_drop", "em")


class KeptRun(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """What labels, ratings and accounts may still need of a run that has ended; a watch holds tens of thousands."""

    episode_id: str
    query_class: str
    policy_version: str
    mode: Mode
    certified: bool
    audit: bool
    propensity: float
    delivery: int
    conversation: str
    keep_rate: float
    kept_by: KeptBy
    end_reason: EndReason
    answer: str | None
    would_answer: str | None
    stopped: bool
    stop_step: int | None
    completion_tokens: int | None  # None: nothing was generated

    @classmethod
    def of(cls, episode: Episode) -> KeptRun:
        request, outcome = episode.request, episode.outcome
        same = {name: getattr(request, name) for name in _OF_REQUEST}
        same |= {name: getattr(outcome, name) for name in _OF_OUTCOME}
        return cls(
            query_class=intern(class_of(request.query)),
            completion_tokens=None if outcome.usage is None else outcome.usage.completion_tokens,
            **same | {"policy_version": intern(request.policy_version)},
        )

    def episode(self) -> Episode:
        """The episode with what was kept; other fields are unknown."""
        tokens = self.completion_tokens
        request = Request(
            route="",
            kind="reasoning",
            model="",
            stream=False,
            n_samples=1,
            question_key="",
            ungoverned=None,
            received_at_s=0.0,
            query=Query(query_class=self.query_class),
            **{name: getattr(self, name) for name in _OF_REQUEST},
        )
        outcome = Outcome(
            status=0,
            response_id=None,
            usage=None if tokens is None else Usage(prompt_tokens=0, completion_tokens=tokens),
            **{name: getattr(self, name) for name in _OF_OUTCOME},
        )
        return Episode(request=request, outcome=outcome)


# The fields that a kept run takes over as they are.
_OF_REQUEST, _OF_OUTCOME = (
    tuple(one.name for one in fields(kind) if one.name in KeptRun.__struct_fields__) for kind in (Request, Outcome)
)


@dataclass(slots=True)
class WatchedRun:
    numbers: RunNumbers
    kept: KeptRun
    labels: tuple[views.StoredLabel, ...] = ()

    @property
    def episode(self) -> Episode:
        return self.kept.episode()

    def note_labels(self, labels: tuple[views.StoredLabel, ...], match: Match) -> None:
        if labels:
            self.labels = (*self.labels, *labels)
            judged = measure_run(self, match)
            self.numbers = replace(self.numbers, correct=judged.correct, drop=judged.drop)


@dataclass(slots=True)
class _Window:
    until: int = 0
    at_s: float | None = None
    signals: tuple[float, ...] = ()
    runs: list[WatchedRun] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)  # by episode
    has_steps: bool = True  # whether its audits still have theirs


def _without_steps(audit: Audit) -> Audit:
    episode = audit.episode
    return replace(audit, episode=replace(episode, outcome=replace(episode.outcome, steps=())))


class ForecastWindows:
    """The latest runs of a route in windows of 100; the watch began at request `since`."""

    def __init__(self, route: Route, match: Match, since: int) -> None:
        self.route, self._since = route, since
        self.replayed = ReplayedAudits(match=match, wave=route.wave)
        self.windows: deque[_Window] = deque(maxlen=MEMORY)
        self._open = _Window()
        self._window_of: dict[str, _Window] = {}  # of audits, by episode
        self._drift = DriftFeatures()
        self._delay = LabelDelay(route.label_timeout_s)

    def add(self, run: WatchedRun, audit: Audit | None) -> None:
        self._open.runs.append(run)
        if audit is not None:
            # Only models replay the steps of an audit.
            self._open.audits[audit.id] = audit if self.route.is_learned else replace(audit, episode=run.episode)
            self._window_of[audit.id] = self._open

    def close_full(self, ended: Iterable[Episode], at_s: float, n: int) -> None:
        for signals in self._drift.batches(ended):
            self._delay.note_look(at_s, n)
            means = signals[:, : len(SIGNALS)].mean(axis=0)  # forecasts read only the first step
            self._open.until, self._open.at_s = n, at_s
            self._open.signals = tuple(means.tolist())
            if len(self.windows) == MEMORY:
                for name in self.windows[0].audits:
                    self._window_of.pop(name, None)
            self.windows.append(self._open)
            self._open = _Window()
            self._forget_steps()

    def _forget_steps(self) -> None:
        """Free the steps of audits that are older than those that are replayed; they are most of an audit's memory."""
        n_later = 0
        for window in reversed(self.windows):
            if n_later >= MOST_AUDITS:
                if window.has_steps:
                    window.audits = {name: _without_steps(audit) for name, audit in window.audits.items()}
                    window.has_steps = False
                else:
                    return
            n_later += len(window.audits)

    def note_label(self, name: str, label: views.StoredLabel, n: int) -> None:
        window = self._window_of.get(name)
        if window is not None:
            audit = window.audits[name]
            self._delay.note_label(label.at_s - audit.ended_at_s)
            window.audits[name] = audit.with_labels([label], n)

    def relative_losses(self, level: int, begun: int = 0) -> Floats:
        """As `relative_losses`, since request `begun`; a fixed policy has one level, the only one that loses."""
        if not self.route.is_learned:
            return np.arange(level + 1.0)
        seen = self.replayed.of(self._latest_audits())
        windows = (one for one in self.windows if one.until > begun)
        first = [[seen[name].first for name in window.audits if name in seen] for window in windows]
        return relative_losses([np.array(window, dtype=np.int64) for window in first], level)

    def summaries(self, n: int) -> list[ForecastWindow]:
        seen = self.replayed.of(self._latest_audits())
        mature = n - self._delay.timeout_requests(since=self._since)
        return [self._summary(window, seen, mature) for window in self.windows]

    def _latest_audits(self) -> list[Audit]:
        return [audit for window in self.windows for audit in window.audits.values()][-MOST_AUDITS:]

    def _summary(self, window: _Window, seen: Mapping[str, AuditAtLevel], mature: float) -> ForecastWindow:
        if self.route.is_learned:
            outcomes = [(audit.at, seen[name]) for name, audit in window.audits.items() if name in seen]
        else:
            judged = (by_itself(one.numbers) for one in window.runs if one.numbers.full)
            outcomes = [(window.until, one) for one in judged if one is not None]
        # By age alone, whatever their answers: a difference without a label by then counts as lost
        # (`assurance.labels`).
        settled = [one for at, one in outcomes if at <= mature]
        expected = [one.expected for _, one in outcomes if one.expected is not None]
        marked = [one.numbers for one in window.runs if one.numbers.correct is not None]
        n_marks = worth([run.sampling_weight for run in marked])
        right = sum(run.sampling_weight for run in marked if run.correct)
        return ForecastWindow(
            until=window.until,
            n_requests=len(window.runs),
            signals=window.signals,
            predicted_drop=sum(expected) / len(expected) if expected else None,
            n_audits=len(outcomes),
            near=sum(one.near for _, one in outcomes),
            near_squares=sum(one.near**2 for _, one in outcomes),
            n_settled=len(settled),
            drop=sum(one.z for one in settled),
            n_labelled=n_marks,
            n_right=n_marks * right / sum(run.sampling_weight for run in marked) if marked else 0.0,
            at_s=window.at_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ForecastLook:
    drop: Forecast | None
    em: Forecast | None
    grades: tuple[ForecastGrade, ...]
    action: ForecastAction | None  # None: what was in effect stays so


class RouteForecaster:
    """The forecasts of one route in one epoch, which began at request `begun`.

    level, fit  what the forecast of the drop is about: what acts, or would act without the cap
    alerts      open
    """

    def __init__(self, name: str, route: Route, match: Match, *, since: int, epoch: int, begun: int = 0) -> None:
        self.name = name
        self.route = route
        self.epoch = epoch
        self.begun = begun
        self.windows = ForecastWindows(route, match, since)
        self.level, self.fit = 0, ""
        self.alerts: tuple[Of, ...] = ()
        self.stance = Stance()
        self.records = {of: record_of((), of) for of in OUTCOMES}
        self._pending = {of: deque[tuple[int, ExpectedOutcomes]]() for of in OUTCOMES}

    def restore(self, looks: Sequence[RouteForecast], action: ForecastAction | None, alarm: Alarm | None) -> None:
        """Take over what the log holds: the latest looks, oldest first, the latest action and the latest alarm."""
        if not looks:
            return
        last = looks[-1]
        self.records = {of: record_of(last.records, of) for of in OUTCOMES}
        if last.epoch == self.epoch:
            self.alerts = last.alerts
            if action is not None and action.epoch == self.epoch:
                self.stance = Stance(action.cap, action.in_doubt)
            for look in looks:
                if look.epoch == self.epoch:
                    self._deploy(look.level, look.fit)
                    self._await(look.at, look.drop, look.em)
            for waiting in self._pending.values():
                while waiting and waiting[0][0] + HORIZON + AROUND <= last.at:
                    waiting.popleft()
        else:
            drop = self.records["em_drop"]
            if (
                alarm is not None
                and not alarm.level
                and alarm.epoch == last.epoch
                and alarm.cause in ("outcomes", "disagreement")
            ):
                drop = drop.with_alert(alarm.at, is_open=True, was_open=True, crossed=True)
            self.records["em_drop"] = replace(drop, alerted_at=None)

    def look(
        self, n: int, served: ServedVersion | None, level: int, *, author: str, exposure: float = 1.0
    ) -> ForecastLook:
        """Forecast at request `n`, where a level of a version acts; without a version, a fixed policy's.

        exposure  share of the requests on which it acts: the route keeps its budget as long as the level keeps more
        """
        if self.stance.cap is not None:
            level = self.level if served is None else min(self.level, served.n_levels - 1)
        self._deploy(level, "" if served is None else served.version.address)
        self.windows.replayed.deploy(served if level else None, level)
        windows = self.windows.summaries(n)
        critical = self.route.critical_em
        before = self.alerts
        grades = tuple(grade for of in OUTCOMES for grade in self._grade(of, n, windows))
        drop = em = None
        if not self.route.is_learned or self.windows.replayed.served is not None:
            width, alerted = self.records["em_drop"].width, "em_drop" in before
            budget = min(MOST_DROP, self.route.max_em_drop / exposure)
            drop = forecast_drop(windows, budget=budget, alerted=alerted, width=width, begun=self.begun)
        if critical is not None and 0 < critical < 1:
            width, alerted = self.records["em"].width, "em" in before
            em = forecast_em(windows, critical_em=critical, alerted=alerted, width=width, begun=self.begun)
        self._await(n, drop, em)
        self.alerts = tuple(one.of for one in (drop, em) if one is not None and one.alert)
        for of, one in zip(OUTCOMES, (drop, em), strict=True):
            crossed = one is not None and one.crossing.expected == windows[-1].until
            self.records[of] = self.records[of].with_alert(
                n, is_open=of in self.alerts, was_open=of in before, crossed=crossed
            )
        return ForecastLook(drop=drop, em=em, grades=grades, action=self._act(n, drop, before, author))

    def _deploy(self, level: int, fit: str) -> None:
        if (level, fit) != (self.level, self.fit):
            self._pending["em_drop"].clear()  # the level that these are about can no longer be seen
        self.level, self.fit = level, fit

    def _await(self, n: int, *forecasts: Forecast | None) -> None:
        for one in forecasts:
            if one is not None and one.outcomes is not None:
                self._pending[one.of].append((n, one.outcomes))

    def _grade(self, of: Of, n: int, windows: Sequence[ForecastWindow]) -> list[ForecastGrade]:
        grades = list(grade_due(self._pending[of], of, n, windows))
        self.records[of] = self.records[of].with_grades(grades)
        return grades

    def _act(self, n: int, drop: Forecast | None, before: tuple[Of, ...], author: str) -> ForecastAction | None:
        if not self.route.is_replayed or not self.level:
            return None
        begun = 0 if drop is not None and drop.season else self.begun
        stance = next_stance(
            self.stance,
            drop,
            at=n,
            alerted="em_drop" in before,
            relative=lambda: self.windows.relative_losses(self.level, begun),
        )
        if stance == self.stance:
            return None
        reason = describe_change(self.stance, stance, drop)
        self.stance = stance
        return ForecastAction(
            route=self.name,
            epoch=self.epoch,
            at=n,
            level=self.level,
            cap=stance.cap,
            in_doubt=stance.in_doubt,
            reason=reason,
            author=author,
        )
