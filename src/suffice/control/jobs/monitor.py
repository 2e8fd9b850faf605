"""The job `monitor` measures and forecasts each route, and raises an alert before a limit is crossed.

It reads the route's epoch, or its latest 20,000 requests. An account restarts every 20,000 runs, because an interval
that holds at any moment needs all runs since its start in memory, for late labels.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, TypeVar

from suffice.assurance.forecast import (
    MEMORY,
    Alert,
    Forecast,
    ForecastWindow,
    Of,
    RouteForecast,
    forecast_drop,
    forecast_em,
)
from suffice.assurance.ledger import Account, LedgerEntry, accounts
from suffice.assurance.runs import Match, RunNumbers, measure_run
from suffice.assurance.sampling import worth
from suffice.assurance.satisfaction import SatisfactionEffect, estimate_satisfaction
from suffice.control.evidence.audits import Audit, is_evidence
from suffice.control.evidence.drift_features import SIGNALS, DriftFeatures
from suffice.control.evidence.feedback import feedback_of, measures
from suffice.control.evidence.run_join import LabelDelay, LabelJoin, StartOrder, remember
from suffice.control.evidence.versions import AuditAtLevel, ReplayedAudits, ServedVersion, by_itself, loader
from suffice.control.jobs.base import FoldJob, JobPass, since
from suffice.learn.version import MOST_AUDITS
from suffice.settings import Route, Settings
from suffice.signals.query import class_of
from suffice.store.database import views
from suffice.store.database.log import StoredEvent
from suffice.store.routes.deployments import read_decided
from suffice.store.rows.events import FeedbackEvent, RequestCount
from suffice.telemetry import LOG
from suffice.types import Episode, Outcome, Publication, Request

CAP_RUNS: Final = 100  # runs that set the cap on tokens …
CAP_TIMES: Final = 4.0  # … which is the largest of them, times this
MOST_RUNS: Final = 20_000  # runs of an account before it restarts
MOST_CLASSES: Final = 50  # the largest are reported
MOST_VERSIONS: Final = 8  # the latest are reported

S = TypeVar("S", Account, SatisfactionEffect)


@dataclass(slots=True)
class WatchedRun:
    numbers: RunNumbers
    episode: Episode
    labels: tuple[views.StoredLabel, ...] = ()

    def note_labels(self, labels: tuple[views.StoredLabel, ...], match: Match) -> None:
        if labels:
            self.labels = (*self.labels, *labels)
            judged = measure_run(self, match)
            self.numbers = replace(self.numbers, correct=judged.correct, drop=judged.drop)


@dataclass(slots=True)
class RunAccounts:
    name: str  # of the route
    settings: Settings
    since: int
    cap_tokens: float | None = None  # of a run; None: the first runs have not all ended
    runs: dict[str, WatchedRun] = field(default_factory=dict)  # by episode
    _first: list[float | None] = field(default_factory=list)  # tokens that the first runs used

    def add(self, run: WatchedRun, n: int) -> None:
        if self.cap_tokens is None:
            self._first.append(run.numbers.spent)
            spent = [tokens for tokens in self._first if tokens is not None]
            if len(spent) >= CAP_RUNS:
                self.cap_tokens, self.since = max(1.0, CAP_TIMES * max(spent)), n
            return
        if len(self.runs) >= MOST_RUNS:
            self.runs.clear()
            self.since = n
        self.runs[run.episode.request.episode_id] = run

    def accounts(self) -> tuple[Account, ...]:
        if self.cap_tokens is None:
            return ()
        entries = [
            LedgerEntry(
                query_class=class_of(one.episode.request.query),
                version=one.episode.request.policy_version,
                run=one.numbers,
            )
            for one in self.runs.values()
        ]
        result = accounts(
            self.name, entries, cap_tokens=self.cap_tokens, confidence=self.settings.routes[self.name].confidence
        )
        of_classes = [one for one in result if one.query_class is not None and one.version is None]
        largest = [one.query_class for one in sorted(of_classes, key=lambda one: -one.n_runs)[:MOST_CLASSES]]
        return self._displayed(result, largest)

    def satisfaction(self) -> tuple[SatisfactionEffect, ...]:
        route, metrics = self.settings.routes[self.name], self.settings.metrics
        runs = [
            feedback_of(one.episode, one.labels, metrics, uncertified=route.uncertified) for one in self.runs.values()
        ]
        if not any(run.feedback for run in runs):
            return ()
        effects = estimate_satisfaction(
            runs,
            measures(metrics),
            confidence=route.confidence,
            most_weight=1 / self.settings.feedback.least_propensity,
        )
        largest = Counter(run.query_class for run in runs).most_common(MOST_CLASSES)
        return self._displayed(effects, [name for name, _ in largest])

    def _displayed(self, rows: Iterable[S], largest: Sequence[str | None]) -> tuple[S, ...]:
        newest_first = reversed(self.runs.values())
        latest: Iterable[str] = dict.fromkeys(one.episode.request.policy_version for one in newest_first)
        versions: set[str | None] = {None, *islice(latest, MOST_VERSIONS)}
        classes = {None, *largest}
        return tuple(one for one in rows if one.version in versions and one.query_class in classes)


@dataclass(slots=True)
class _Window:
    until: int = 0
    signals: tuple[float, ...] = ()
    runs: list[WatchedRun] = field(default_factory=list)
    audits: dict[str, Audit] = field(default_factory=dict)  # by episode


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
            self._open.audits[audit.id] = audit
            remember(self._window_of, audit.id, self._open, 2 * MOST_RUNS)

    def close_full(self, ended: Iterable[Episode], at_s: float, n: int) -> None:
        for signals in self._drift.batches(ended):
            self._delay.note_look(at_s, n)
            means = signals[:, : len(SIGNALS)].mean(axis=0)  # forecasts read only the first step
            self._open.until, self._open.signals = n, tuple(means.tolist())
            self.windows.append(self._open)
            self._open = _Window()

    def note_label(self, name: str, label: views.StoredLabel, n: int) -> None:
        window = self._window_of.get(name)
        if window is not None:
            audit = window.audits[name]
            self._delay.note_label(label.at_s - audit.ended_at_s)
            window.audits[name] = audit.with_labels([label], n)

    def forecasts(self, n: int, alerts: tuple[Of, ...]) -> tuple[Forecast | None, Forecast | None]:
        """Forecast the EM drop and EM at request `n`."""
        windows, critical = self.summaries(n), self.route.critical_em
        drop = em = None
        if not self.route.is_learned or self.replayed.served is not None:
            drop = forecast_drop(windows, budget=self.route.max_em_drop, alerted="em_drop" in alerts)
        if critical is not None and 0 < critical < 1:
            em = forecast_em(windows, critical_em=critical, alerted="em" in alerts)
        return drop, em

    def summaries(self, n: int) -> list[ForecastWindow]:
        audits = [audit for window in self.windows for audit in window.audits.values()][-MOST_AUDITS:]
        seen = self.replayed.of(audits)
        mature = n - self._delay.timeout_requests(since=self._since)
        return [self._summary(window, seen, mature) for window in self.windows]

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
        )


@dataclass(slots=True, kw_only=True, eq=False)
class RouteWatch:
    """The measures of one route since its epoch began; `looked_at` is -1 before the first look."""

    name: str
    settings: Settings
    match: Match
    load: Callable[[str], ServedVersion | None]  # None: the version is gone
    author: str
    epoch: int
    n: int
    seq: int
    made: Publication | None = None
    alerts: tuple[Of, ...] = ()
    looked_at: int = -1
    book: RunAccounts = field(init=False)
    windows: ForecastWindows = field(init=False)
    _starts: StartOrder = field(init=False, default_factory=lambda: StartOrder(keeps_ended=True))
    _labels: LabelJoin = field(init=False, default_factory=LabelJoin)
    _runs: dict[str, WatchedRun] = field(init=False, default_factory=dict)  # that a label may still reach, by episode

    def __post_init__(self) -> None:
        self.book = RunAccounts(self.name, self.settings, self.n)
        self.windows = ForecastWindows(self.route, self.match, self.n)

    @property
    def route(self) -> Route:
        return self.settings.routes[self.name]

    def feed(self, stored: StoredEvent) -> None:
        if stored.seq <= self.seq:
            return
        self.seq, event, name = stored.seq, stored.event, self.name
        if isinstance(event, Request) and event.route == name and event.ungoverned is None:
            self.n += 1
            self._starts.began(event, self.n)
        elif isinstance(event, RequestCount) and event.route == name:
            self.n += event.n_governed
        elif isinstance(event, Outcome):
            self._end_run(event, stored)
        elif isinstance(event, FeedbackEvent):
            self._note_label(views.StoredLabel(stored.seq, event.feedback, stored.at_s))
        elif isinstance(event, Publication) and (event.route, event.epoch) == (name, self.epoch):
            self.made = event

    def _end_run(self, outcome: Outcome, stored: StoredEvent) -> None:
        started = self._starts.ended(outcome)
        if started is None or started.episode is None:
            return
        episode, match = started.episode, self.match
        labels = tuple(self._labels.ended(outcome))
        numbers = measure_run(views.EpisodeWithLabels(seq=stored.seq, episode=episode, labels=()), match)
        run = WatchedRun(numbers, replace(episode, outcome=replace(outcome, steps=())))
        run.note_labels(labels, match)
        self.book.add(run, self.n)
        remember(self._runs, outcome.episode_id, run, 2 * MOST_RUNS)
        audit = None
        if is_evidence(started.request, outcome, probes=self.route.probe is not None):
            audit = Audit(seq=stored.seq, at=self.n, ended_at_s=stored.at_s, episode=episode)
            audit = audit.with_labels(labels, self.n)
        self.windows.add(run, audit)
        self.windows.close_full(self._starts.take_ended(self.n), stored.at_s, self.n)

    def _note_label(self, label: views.StoredLabel) -> None:
        name = self._labels.find_episode(label)
        if name is None:
            return
        if name in self._runs:
            self._runs[name].note_labels((label,), self.match)
        self.windows.note_label(name, label, self.n)

    def is_due(self, tick: int) -> bool:
        """Whether to look again: every `tick` requests, and less often where there are many runs to count."""
        return self.n > max(0, self.looked_at) and (
            self.looked_at < 0 or self.n - self.looked_at >= max(tick, len(self.book.runs) // 50)
        )

    def look(self) -> tuple[RouteForecast, tuple[Alert, ...]]:
        made, before = self.made, self.alerts
        self.looked_at = self.n
        level = made.level if made is not None and made.may_act else 0
        self.windows.replayed.deploy(self.load(made.fit) if made is not None and level else None, level)
        drop, em = self.windows.forecasts(self.n, before)
        alerted = [one for one in (drop, em) if one is not None and one.alert]
        self.alerts = tuple(one.of for one in alerted)
        forecast = RouteForecast(
            route=self.name,
            at=self.n,
            epoch=self.epoch,
            since=self.book.since,
            confidence=self.route.confidence,
            cap_tokens=self.book.cap_tokens,
            accounts=self.book.accounts(),
            drop=drop,
            em=em,
            alerts=self.alerts,
            author=self.author,
            likings=self.book.satisfaction(),
        )
        new = (
            Alert(
                route=self.name,
                epoch=self.epoch,
                at=self.n,
                of=one.of,
                limit=one.limit,
                expected=one.crossing.expected,
                reason=one.reason,
                author=self.author,
            )
            for one in alerted
            if one.of not in before
        )
        return forecast, tuple(new)


@dataclass(kw_only=True)
class Monitor(FoldJob[RouteWatch]):
    name = "monitor"
    failing = "not monitored"

    def concerns(self, route: Route) -> bool:
        return route.mode != "off"

    def begin(self, log: views.LogReader) -> None:
        decided = read_decided(log)
        self._folds = {name: one for name, one in self._folds.items() if one.epoch == decided.of(name).n_epochs}

    def build(self, name: str, here: JobPass) -> RouteWatch:
        """Build a watch from the beginning of the epoch, or from 20,000 requests ago in a longer one."""
        log, held = here.log, read_decided(here.log).of(name)
        begin, n = since(name, held, log), 0
        if held.epoch is not None:
            n_epoch = views.requests_since(log, name, held.epoch.since_seq)
            n = held.epoch.at + n_epoch - views.requests_since(log, name, begin)
        watch = RouteWatch(
            name=name,
            settings=self.settings,
            match=self.match(name),
            load=self._load,
            author=self.author,
            epoch=held.n_epochs,
            n=n,
            seq=begin,
            made=held.publication,
        )
        before = views.newest_event(log, RouteForecast, route=name)
        if before is not None and before.epoch == held.n_epochs:
            watch.alerts, watch.looked_at = before.alerts, before.at
        return watch

    def conclude(self, name: str, fold: RouteWatch, here: JobPass) -> None:
        if not fold.is_due(self.settings.control.tick_requests):
            return
        before, (forecast, alerts) = fold.alerts, fold.look()
        here.writer.write([forecast, *alerts])
        # A log line only where something changed; a look without news is already a row.
        for alert in alerts:
            LOG.warning("routes.%s: alert: %s", name, alert.reason)
            self.add_sentence(name, f"alert: {alert.reason}")
        for ended in sorted(set(before) - set(forecast.alerts)):
            LOG.warning("routes.%s: the alert on its %s has ended", name, ended)
            self.add_sentence(name, f"alert on {ended} ended")

    def _load(self, address: str) -> ServedVersion | None:
        with views.open_reader(self.path) as log:
            return loader(log)(address)
