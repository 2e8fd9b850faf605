"""The job `monitor` measures and forecasts each route, and raises an alert before a limit is crossed.

It reads the route's latest 20,000 requests, also those before an alarm of drift, because a season outlives it; accounts
are of the epoch. An account restarts every 20,000 runs, because an interval that holds at any moment needs all runs
since its start in memory, for late labels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, Literal, TypeVar

from suffice.assurance.estimate import Account, LedgerEntry, accounts
from suffice.assurance.forecast import (
    Alert,
    ForecastAction,
    RouteForecast,
)
from suffice.assurance.forecast_grades import Of
from suffice.assurance.runs import Match, measure_run
from suffice.assurance.satisfaction import (
    RatedRun,
    SatisfactionEffect,
    em_price,
    estimate_satisfaction,
    satisfaction_of_people,
)
from suffice.assurance.served import ServedLoss, measure_served_loss
from suffice.assurance.spending import DAY_HOURS, MOST_DAYS, SpendForecast, find_spike, next_forecast
from suffice.control.evidence.audits import Audit, is_evidence
from suffice.control.evidence.feedback import feedback_of, measures
from suffice.control.evidence.forecaster import KeptRun, RouteForecaster, WatchedRun
from suffice.control.evidence.run_join import LabelJoin, StartOrder, remember
from suffice.control.evidence.versions import loader
from suffice.control.jobs.base import LOOK_BACK, JobPass
from suffice.control.jobs.folds import FoldJob
from suffice.learn.version import ServedVersion
from suffice.settings import Route, Settings
from suffice.store.database import views
from suffice.store.database.log import StoredEvent
from suffice.store.routes import rollups
from suffice.store.rows.events import FeedbackEvent, RequestCount
from suffice.store.rows.sums import NO_SUMS
from suffice.telemetry import LOG
from suffice.types import Outcome, Publication, Request

CAP_RUNS: Final = 100  # runs that set the cap on tokens …
CAP_TIMES: Final = 4.0  # … which is the largest of them, times this
MOST_RUNS: Final = 20_000  # runs of an account before it restarts
MOST_REACHED: Final = 25_000  # latest runs that a label may reach: those of the account and of the forecasts
MOST_CLASSES: Final = 50  # the largest are reported
MOST_VERSIONS: Final = 8  # the latest are reported
SUMMED_S: Final = 300.0  # after an hour, until its runs are in the rollups
MOST_BEHIND: Final = 5_000  # rows that are not in them
SPIKE_DAYS: Final = 14  # whose hours are compared
MOST_SPENT: Final = 200  # forecasts of spending that are read: two months', and spikes
MOST_PENDING: Final = 50  # looks that a new worker reads again, to grade their forecasts

S = TypeVar("S", Account, SatisfactionEffect)


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
        self.runs[run.kept.episode_id] = run

    def accounts(self) -> tuple[Account, ...]:
        if self.cap_tokens is None:
            return ()
        entries = [
            LedgerEntry(query_class=one.kept.query_class, version=one.kept.policy_version, run=one.numbers)
            for one in self.runs.values()
        ]
        result = accounts(
            self.name, entries, cap_tokens=self.cap_tokens, confidence=self.settings.routes[self.name].confidence
        )
        of_classes = [one for one in result if one.query_class is not None and one.version is None]
        largest = [one.query_class for one in sorted(of_classes, key=lambda one: -one.n_runs)[:MOST_CLASSES]]
        return self._displayed(result, largest)

    def served_loss(self) -> ServedLoss | None:
        route = self.settings.routes[self.name]
        return measure_served_loss(
            (one.numbers for one in self.runs.values()),
            usual_share=route.later_audit_share,
            max_em_drop=route.max_em_drop,
            confidence=route.confidence,
        )

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

    def rated_runs(self) -> list[RatedRun]:
        """The runs that have a rating and a label, each with its last rating."""
        rated_runs = list[RatedRun]()
        for one in self.runs.values():
            ratings = [value for label in one.labels if (value := satisfaction_of_people(label.feedback)) is not None]
            run = one.numbers
            if ratings and run.correct is not None:
                name = one.kept.query_class
                rated_runs.append(RatedRun(name, ratings[-1], run.correct, run.full, run.stopped, run.sampling_weight))
        return rated_runs

    def _displayed(self, rows: Iterable[S], largest: Sequence[str | None]) -> tuple[S, ...]:
        newest_first = reversed(self.runs.values())
        latest: Iterable[str] = dict.fromkeys(one.kept.policy_version for one in newest_first)
        versions: set[str | None] = {None, *islice(latest, MOST_VERSIONS)}
        classes = {None, *largest}
        return tuple(one for one in rows if one.version in versions and one.query_class in classes)


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
    begun: int = 0  # requests of the route when the epoch began; what came before tells of seasons alone
    made: Publication | None = None
    looked_at: int = -1
    book: RunAccounts = field(init=False)
    forecaster: RouteForecaster = field(init=False)
    _starts: StartOrder = field(init=False, default_factory=lambda: StartOrder(keeps_ended=True))
    _labels: LabelJoin = field(init=False, default_factory=lambda: LabelJoin(most=MOST_REACHED))
    _runs: dict[str, WatchedRun] = field(init=False, default_factory=dict)  # that a label may still reach, by episode

    def __post_init__(self) -> None:
        self.begun = max(self.begun, self.n)
        self.book = RunAccounts(self.name, self.settings, self.begun)
        self.forecaster = RouteForecaster(
            self.name, self.route, self.match, since=self.n, epoch=self.epoch, begun=self.begun
        )

    @property
    def route(self) -> Route:
        return self.settings.routes[self.name]

    def feed(self, stored: StoredEvent) -> None:
        if stored.seq <= self.seq:
            return
        self.seq = stored.seq
        event = stored.event
        name = self.name
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
        run = WatchedRun(numbers, KeptRun.of(episode))
        run.note_labels(labels, match)
        if started.number > self.begun:
            self.book.add(run, self.n)
        remember(self._runs, run.kept.episode_id, run, MOST_REACHED)
        audit = None
        if is_evidence(started.request, outcome, probes=self.route.probe is not None):
            audit = Audit(seq=stored.seq, at=self.n, ended_at_s=stored.at_s, episode=episode)
            audit = audit.with_labels(labels, self.n)
        self.forecaster.windows.add(run, audit)
        self.forecaster.windows.close_full(self._starts.take_ended(self.n), stored.at_s, self.n)

    def _note_label(self, label: views.StoredLabel) -> None:
        name = self._labels.find_episode(label)
        if name is None:
            return
        if name in self._runs:
            self._runs[name].note_labels((label,), self.match)
        self.forecaster.windows.note_label(name, label, self.n)

    def is_due(self, tick: int) -> bool:
        """Whether to look again: every `tick` requests, and less often where there are many runs to count."""
        return self.n > max(0, self.looked_at) and (
            self.looked_at < 0 or self.n - self.looked_at >= max(tick, len(self.book.runs) // 50)
        )

    def look(self) -> tuple[RouteForecast, tuple[Alert | ForecastAction, ...]]:
        made = self.made
        forecaster = self.forecaster
        before = self.forecaster.alerts
        self.looked_at = self.n
        level = made.level if made is not None and made.may_act else 0
        served = self.load(made.fit) if made is not None and (level or forecaster.stance.cap is not None) else None
        exposure = 1.0 if made is None else made.exposure
        seen = forecaster.look(self.n, served, level, author=self.author, exposure=exposure)
        forecast = RouteForecast(
            route=self.name,
            at=self.n,
            epoch=self.epoch,
            since=self.book.since,
            confidence=self.route.confidence,
            cap_tokens=self.book.cap_tokens,
            accounts=self.book.accounts(),
            served=self.book.served_loss(),
            drop=seen.drop,
            em=seen.em,
            alerts=forecaster.alerts,
            author=self.author,
            likings=self.book.satisfaction(),
            price=em_price(self.book.rated_runs(), confidence=self.route.confidence),
            level=forecaster.level,
            fit=forecaster.fit,
            grades=seen.grades,
            records=tuple(forecaster.records.values()),
            seq=self.seq,
        )
        new = [
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
            for one in (seen.drop, seen.em)
            if one is not None and one.alert and one.of not in before
        ]
        return forecast, (*new, *(() if seen.action is None else (seen.action,)))


@dataclass(kw_only=True)
class Monitor(FoldJob[RouteWatch]):
    name = "monitor"
    failing = "not monitored"
    _hours: dict[str, int] = field(init=False, default_factory=dict)  # since 1970, by route: spending was forecast

    def concerns(self, route: Route) -> bool:
        return route.mode != "off"

    def begin(self, log: views.LogReader) -> None:  # noqa: ARG002 - as every fold's
        of = self._decided.of
        self._memory = {name: one for name, one in self._memory.items() if one.epoch == of(name).n_epochs}

    def build(self, name: str, here: JobPass) -> RouteWatch:
        """Build a watch from where an epoch last began without an alarm of drift, or from 20,000 requests ago."""
        log, held = here.log, self._decided.of(name)
        begin, n = max(held.changed_seq, views.place_before(log, name, LOOK_BACK)), 0
        looks = views.newest_events(log, RouteForecast, MOST_PENDING, route=name)[::-1]
        last = looks[-1] if looks and looks[-1].epoch == held.n_epochs else None
        if held.epoch is not None:  # counted from the last look on: an epoch may have millions of requests
            at, seq = (held.epoch.at, held.epoch.since_seq) if last is None or not last.seq else (last.at, last.seq)
            n = at + views.requests_since(log, name, seq) - views.requests_since(log, name, begin)
        watch = RouteWatch(
            name=name,
            settings=self.settings,
            match=self.match(name),
            load=self._load,
            author=self.author,
            epoch=held.n_epochs,
            n=n,
            seq=begin,
            begun=0 if held.epoch is None else held.epoch.at,
            made=held.publication,
        )
        watch.forecaster.restore(looks, views.newest_event(log, ForecastAction, route=name), held.alarm)
        if last is not None:
            watch.looked_at = last.at
        return watch

    def given(self, name: str, fold: RouteWatch | None) -> Mapping[str, object]:
        settings = self.settings if fold is None else fold.settings
        match, load = (self.match(name), self._load) if fold is None else (fold.match, fold.load)
        return {"settings": settings, "route": settings.routes[name], "match": match, "load": load}

    def resume(self, name: str, fold: RouteWatch, here: JobPass) -> bool:
        """Take over what another worker has written since; its looks are no rows that the fold reads."""
        log, held = here.log, self._decided.of(name)
        if fold.epoch != held.n_epochs:
            return False
        newest = views.newest_events(log, RouteForecast, MOST_PENDING, route=name)
        looks = [look for look in reversed(newest) if look.epoch == fold.epoch and look.at > fold.looked_at]
        fold.forecaster.restore(looks, views.newest_event(log, ForecastAction, route=name), held.alarm)
        fold.author, fold.looked_at = self.author, max([fold.looked_at, *(look.at for look in looks)])
        return True

    def conclude(self, name: str, fold: RouteWatch, here: JobPass) -> None:
        self._forecast_spend(name, here)
        if not fold.is_due(self.settings.control.tick_requests):
            return
        before, (forecast, news) = fold.forecaster.alerts, fold.look()
        here.writer.write([forecast, *news])
        # A log line only where something changed; a look without news is already a row.
        for new in news:
            what = "alert" if isinstance(new, Alert) else "forecast"
            LOG.warning("routes.%s: %s: %s", name, what, new.reason)
            self.add_sentence(name, f"{what}: {new.reason}")
        for ended in sorted(set(before) - set(forecast.alerts)):
            LOG.warning("routes.%s: the alert on its %s has ended", name, ended)
            self.add_sentence(name, f"alert on {ended} ended")

    def _forecast_spend(self, name: str, here: JobPass) -> None:
        """Forecast tokens and money once an hour, when the sums of the hour before it are complete."""
        hour = int((self.now() - SUMMED_S) // rollups.HOUR_S)
        if self._hours.get(name) == hour or rollups.read_to(here.log).n_behind > MOST_BEHIND:
            return
        self._hours[name] = hour
        earlier = views.newest_events(here.log, SpendForecast, MOST_SPENT, route=name)
        if earlier and earlier[0].hour >= hour:
            return
        days = _amounts(here.log, name, "day", hour // DAY_HOURS, MOST_DAYS)
        hours = _amounts(here.log, name, "hour", hour, SPIKE_DAYS * DAY_HOURS)
        spike = find_spike(hours["tokens"], hours.get("usd", ()), hour)
        made = next_forecast(name, hour, earlier, days, spike, author=self.author)
        if made is not None:
            here.writer.write([made])

    def _load(self, address: str) -> ServedVersion | None:
        with views.open_reader(self.path) as log:
            return loader(log)(address)


def _amounts(log: views.LogReader, route: str, by: Literal["day", "hour"], end: int, n: int) -> dict[Of, list[float]]:
    """Tokens and dollars of the last `n` days or hours before `end`, oldest first, from the first whole one."""
    since_hour = (end - n) * (DAY_HOURS if by == "day" else 1)
    sums = {int(at): one for (at,), one in rollups.read_rollups(log, (by,), route=route, since_hour=since_hour).items()}
    begun = min(sums, default=end)
    known = [sums.get(at, NO_SUMS) for at in range(begun + (begun > end - n), end)]  # the log's first is a part of one
    amounts: dict[Of, list[float]] = {"tokens": [float(one.completion_tokens + one.overhead_tokens) for one in known]}
    if any(one.n_priced for one in known):
        amounts["usd"] = [one.cost_usd for one in known]
    return amounts
