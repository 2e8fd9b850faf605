"""What the job `monitor` keeps in mind of one route: runs for the accounts, windows of 100 of them for the forecasts.

    rows of the log ──▶ RouteWatch.feed ──▶ RouteWatch.look ──▶ Outlook, alerts that begin

A fold over the log from the beginning of the route's epoch, or over its latest 20,000 requests; it decides nothing. The
accounts need to know what a run can cost at most, so their first hundred runs say it and are not counted. They begin
anew every 20,000 runs: an interval that may be read at any moment speaks of everything since its beginning, and needs
all of it in memory for late labels.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from suffice.assurance.forecast import MEMORY, Alert, Forecast, ForecastWindow, Of, Outlook, forecast_drop, forecast_em
from suffice.assurance.ledger import Account, LedgerEntry, accounts
from suffice.assurance.runs import Match, RunNumbers, measure_run
from suffice.assurance.sampling import worth
from suffice.assurance.satisfaction import SatisfactionEffect, likings
from suffice.control.evidence.audits import Audit, GivenLabel, is_evidence
from suffice.control.evidence.drift_features import SIGNALS, DriftFeatures
from suffice.control.evidence.feedback import heard, measures
from suffice.control.evidence.run_join import LabelDelay, LabelJoin, StartOrder, remember
from suffice.control.evidence.versions import AuditAtLevel, ReplayedAudits, ServedVersion, by_itself
from suffice.learn.served import MOST_AUDITS
from suffice.settings import FeedbackRules, Metric, Route
from suffice.signals.query import class_of
from suffice.store.database.log import StoredEvent
from suffice.store.rows.records import FeedbackEvent, RequestCount
from suffice.types import Episode, Feedback, Outcome, Publication, Request

CAP_RUNS: Final = 100  # that say what a run can cost …
CAP_TIMES: Final = 4.0  # … the largest of them, times this
MOST_RUNS: Final = 20_000  # that an account counts before it begins anew
MOST_CLASSES: Final = 50  # that are shown, the largest ones
MOST_VERSIONS: Final = 8  # that are shown, the latest ones


@dataclass(slots=True)
class _Kept:
    """One run, without its steps: all that a label can still change."""

    run: RunNumbers
    episode: Episode
    version: str
    query_class: str
    labels: tuple[GivenLabel, ...] = ()


@dataclass(slots=True)
class _Open:
    until: int = 0
    signals: tuple[float, ...] = ()
    runs: list[_Kept] = field(default_factory=list)
    audits: list[Audit] = field(default_factory=list)


@dataclass(slots=True, kw_only=True, eq=False)
class RouteWatch:
    """One route since its epoch began.

    load   the version under an address; None: it is gone
    epoch  its number; 0: no control loop has begun with the route
    n      requests of the route so far
    seq    place of the last row that was read
    metrics, feedback  what the settings declare of all that people say
    """

    name: str
    route: Route
    match: Match
    load: Callable[[str], ServedVersion | None]
    epoch: int
    n: int
    seq: int
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    feedback: FeedbackRules = field(default_factory=FeedbackRules)
    made: Publication | None = None  # in force
    alerts: tuple[Of, ...] = ()  # that stand
    looked_at: int = -1  # requests of the route at the last look; -1: there was none
    since: int = field(init=False)
    cap_tokens: float | None = None
    _first: list[_Kept] = field(default_factory=list)
    _runs: dict[str, _Kept] = field(default_factory=dict)
    _windows: deque[_Open] = field(default_factory=lambda: deque(maxlen=MEMORY))
    _window: _Open = field(default_factory=_Open)
    _starts: StartOrder = field(default_factory=lambda: StartOrder(keeps_ended=True))
    _by_name: dict[str, _Kept] = field(default_factory=dict)  # runs that a label may still come to, by episode
    _window_of: dict[str, _Open] = field(default_factory=dict)  # of audits, by episode
    _drift: DriftFeatures = field(default_factory=DriftFeatures)
    _joining: LabelJoin = field(default_factory=LabelJoin)
    _delay: LabelDelay = field(init=False)
    _replayed: ReplayedAudits = field(init=False)
    _begun_at: int = field(init=False)

    def __post_init__(self) -> None:
        self.since = self._begun_at = self.n
        self._delay = LabelDelay(self.route.label_timeout_s)
        self._replayed = ReplayedAudits(match=self.match, wave=self.route.wave)

    # ---- the fold --------------------------------------------------------------------------------

    def feed(self, stored: StoredEvent) -> None:
        """Take the next row of the log in; one that was read before changes nothing."""
        if stored.seq <= self.seq:
            return
        self.seq, event = stored.seq, stored.event
        if isinstance(event, Request) and event.route == self.name:
            self._asked_for(event)
        elif isinstance(event, RequestCount) and event.route == self.name:
            self.n += event.n_governed
        elif isinstance(event, Outcome):
            self._ended(event, stored)
        elif isinstance(event, FeedbackEvent):
            self._said(event.feedback, stored)
        elif isinstance(event, Publication) and (event.route, event.epoch) == (self.name, self.epoch):
            self.made = event

    def _asked_for(self, request: Request) -> None:
        if request.ungoverned is not None:
            return
        self.n += 1
        self._starts.began(request, self.n)

    def _ended(self, outcome: Outcome, stored: StoredEvent) -> None:
        run = self._starts.ended(outcome)
        if run is None or run.episode is None:
            return
        request, episode = run.request, run.episode
        labels = tuple(self._joining.ended(outcome))
        kept = self._kept(episode, labels)
        self._count(kept)
        self._window.runs.append(kept)
        remember(self._by_name, outcome.episode_id, kept, 2 * MOST_RUNS)
        if is_evidence(request, outcome, probes=self.route.probe is not None):
            audit = Audit(seq=stored.seq, at=self.n, ended_at_s=stored.at_s, episode=episode)
            for said in labels:
                audit = audit.with_label(said, self.n)
            self._window.audits.append(audit)
            remember(self._window_of, audit.id, self._window, 2 * MOST_RUNS)
        for signals in self._drift.batches(self._starts.take_ended(self.n)):
            self._delay.note_look(stored.at_s, self.n)
            means = signals[:, : len(SIGNALS)].mean(axis=0)  # forecasts read the first step alone
            self._window.until, self._window.signals = self.n, tuple(means.tolist())
            self._windows.append(self._window)
            self._window = _Open()

    def _kept(self, episode: Episode, labels: tuple[GivenLabel, ...]) -> _Kept:
        slim = replace(episode.outcome, steps=())
        kept = _Kept(
            run=measure_run(_Recorded(episode), self.match),
            episode=replace(episode, outcome=slim),
            version=episode.request.policy_version,
            query_class=class_of(episode.request.query),
        )
        return self._with_labels(kept, labels) if labels else kept

    def _with_labels(self, kept: _Kept, labels: tuple[GivenLabel, ...]) -> _Kept:
        """Right or wrong, and what the stop would have lost: all that a label says. It needs no steps."""
        kept.labels = (*kept.labels, *labels)
        judged = measure_run(_Recorded(kept.episode, kept.labels), self.match)
        kept.run = replace(kept.run, correct=judged.correct, drop=judged.drop)
        return kept

    def _count(self, kept: _Kept) -> None:
        """Book a run; the first ones only say what a run can cost."""
        if self.cap_tokens is None:
            self._first.append(kept)
            spent = [one.run.spent for one in self._first if one.run.spent is not None]
            if len(spent) >= CAP_RUNS:
                self.cap_tokens, self.since = max(1.0, CAP_TIMES * max(spent)), self.n
                self._first.clear()
            return
        if len(self._runs) >= MOST_RUNS:
            self._runs.clear()
            self.since = self.n
        self._runs[kept.episode.request.episode_id] = kept

    def _said(self, given: Feedback, stored: StoredEvent) -> None:
        said = GivenLabel(stored.seq, given, stored.at_s)
        name = self._joining.find_episode(said)
        if name is None:
            return
        if name in self._by_name:
            self._with_labels(self._by_name[name], (said,))
        window = self._window_of.get(name)
        if window is not None:
            place = next(at for at, audit in enumerate(window.audits) if audit.id == name)
            self._delay.note_label(stored.at_s - window.audits[place].ended_at_s)
            window.audits[place] = window.audits[place].with_label(said, self.n)

    # ---- a look ----------------------------------------------------------------------------------

    def is_due(self, tick: int) -> bool:
        """Is another look worth it? Every so many requests, fewer times where there is much to count."""
        return self.n > max(0, self.looked_at) and (
            self.looked_at < 0 or self.n - self.looked_at >= max(tick, len(self._runs) // 50)
        )

    def look(self, author: str) -> tuple[Outlook, tuple[Alert, ...]]:
        """Add everything up, and say which alerts begin."""
        self.looked_at = self.n
        made = self.made
        level = made.level if made is not None and made.may_act else 0
        self._replayed.deploy(self.load(made.fit) if made is not None and level else None, level)
        drop, em = self._forecasts()
        found = tuple(one for one in (drop, em) if one is not None and one.alert)
        new = tuple(
            Alert(
                route=self.name,
                epoch=self.epoch,
                at=self.n,
                of=one.of,
                limit=one.limit,
                expected=one.crossing.expected,
                reason=one.reason,
                author=author,
            )
            for one in found
            if one.of not in self.alerts
        )
        self.alerts = tuple(one.of for one in found)
        outlook = Outlook(
            route=self.name,
            at=self.n,
            epoch=self.epoch,
            since=self.since,
            confidence=self.route.confidence,
            cap_tokens=self.cap_tokens,
            accounts=self._accounts(),
            drop=drop,
            em=em,
            alerts=self.alerts,
            author=author,
            likings=self._likings(),
        )
        return outlook, new

    def _accounts(self) -> tuple[Account, ...]:
        if self.cap_tokens is None:
            return ()
        entries = [
            LedgerEntry(route=self.name, query_class=one.query_class, version=one.version, run=one.run)
            for one in self._runs.values()
        ]
        found = accounts(entries, cap_tokens=self.cap_tokens, confidence=self.route.confidence)
        latest = set(list(dict.fromkeys(one.version for one in reversed(entries)))[:MOST_VERSIONS])
        of_classes = [one for one in found if one.query_class is not None and one.version is None]
        largest = {one.query_class for one in sorted(of_classes, key=lambda one: -one.n_runs)[:MOST_CLASSES]}
        return tuple(one for one in found if one.version in {None, *latest} and one.query_class in {None, *largest})

    def _likings(self) -> tuple[SatisfactionEffect, ...]:
        runs = [
            heard(one.episode, one.labels, self.metrics, uncertified=self.route.uncertified)
            for one in self._runs.values()
        ]
        if not any(run.words for run in runs):
            return ()
        found = likings(
            runs,
            measures(self.metrics),
            confidence=self.route.confidence,
            most_weight=1 / self.feedback.least_propensity,
        )
        latest = set(list(dict.fromkeys(run.version for run in reversed(runs)))[:MOST_VERSIONS])
        largest = {name for name, _ in Counter(run.query_class for run in runs).most_common(MOST_CLASSES)}
        return tuple(one for one in found if one.version in {None, *latest} and one.query_class in {None, *largest})

    def _forecasts(self) -> tuple[Forecast | None, Forecast | None]:
        windows = self._told_windows()
        critical = self.route.critical_em
        drop = None
        if not self.route.is_learned or self._replayed.served is not None:
            drop = forecast_drop(windows, budget=self.route.max_em_drop, alerted="em_drop" in self.alerts)
        em = None
        if critical is not None and 0 < critical < 1:
            em = forecast_em(windows, critical_em=critical, alerted="em" in self.alerts)
        return drop, em

    def _told_windows(self) -> list[ForecastWindow]:
        """The windows with everything that is known of their runs now, at the level deployed now."""
        audits = [audit for window in self._windows for audit in window.audits][-MOST_AUDITS:]
        seen: Mapping[str, AuditAtLevel] = self._replayed.of(audits)
        mature = self.n - self._delay.timeout_requests(since=self._begun_at)
        return [self._told(window, seen, mature) for window in self._windows]

    def _told(self, window: _Open, seen: Mapping[str, AuditAtLevel], mature: float) -> ForecastWindow:
        if self.route.is_learned:
            found = [(audit.at, seen[audit.id]) for audit in window.audits if audit.id in seen]
        else:
            judged = ((one.run, by_itself(one.run)) for one in window.runs if one.run.full)
            found = [(window.until, one) for _, one in judged if one is not None]
        # By age alone, whatever they showed; what the label then has not said counts as lost (`maturity`).
        settled = [one for at, one in found if at <= mature]
        expected = [one.expected for _, one in found if one.expected is not None]
        marked = [one.run for one in window.runs if one.run.correct is not None]
        n_marks = worth([run.stands_for for run in marked])
        right = sum(run.stands_for for run in marked if run.correct)
        return ForecastWindow(
            until=window.until,
            n_requests=len(window.runs),
            signals=window.signals,
            predicted_drop=sum(expected) / len(expected) if expected else None,
            n_audits=len(found),
            near=sum(one.near for _, one in found),
            near_squares=sum(one.near**2 for _, one in found),
            n_settled=len(settled),
            drop=sum(one.z for one in settled),
            n_labelled=n_marks,
            n_right=n_marks * right / sum(run.stands_for for run in marked) if marked else 0.0,
        )


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One run with what was said about it, as `assurance.runs` reads it."""

    episode: Episode
    labels: tuple[GivenLabel, ...] = ()
