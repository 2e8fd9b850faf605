"""The job `rollup`: the log's runs and labels, summed up by route, class, version and hour for those who look.

    rows behind the last place ──▶ what each run adds ──▶ rollups, and the new place, in one transaction

Requests whose rows are not kept are counted by the gateway, and their counts are added as they are; what a label says
counts by the weight of its run.

A label that comes late takes what its run added away and adds it anew, so the sums are those of the log as it stands.
Nothing here is in force anywhere, and all of it can be built again. A run that cannot be compared with its label is
counted without one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from suffice.assurance.runs import ENDED, Match, RunNumbers, Tally
from suffice.assurance.sampling import UnloggedRequests, weight_of
from suffice.assurance.satisfaction import satisfaction_of
from suffice.control.evidence.scorers import Matches, ScorerCache
from suffice.control.jobs.base import JobReport, JobWriter, LeaseLost, why_of
from suffice.errors import StoreError
from suffice.scoring.base import scorer_label
from suffice.settings import Settings
from suffice.signals.query import class_of
from suffice.store.database.views import EpisodeWithLabels, LogReader, StoredLabel, open_reader
from suffice.store.routes import rollups
from suffice.store.routes.rollups import HOUR_S, NOTHING, RollupKey, RollupSums
from suffice.store.routes.tallies import (
    LabelChange,
    RouteScorer,
    RunEnd,
    UnwrittenLabel,
    UnwrittenRequests,
    change_route,
    first_about,
    fold_changes,
    measure_governed_run,
    read_stretch,
)
from suffice.telemetry import LOG
from suffice.types import Outcome

BATCH_ROWS: Final = 5_000  # of the log, in one transaction
BATCHES: Final = 20  # in one round: other jobs wait meanwhile
MOST_CLASSES: Final = 100  # of a route; what more there are is booked as OTHER
OTHER: Final = "(others)"
EVERY_S: Final = 2.0  # between two rounds: each is a synced transaction


@dataclass(slots=True)
class _Batch:
    sums: dict[RollupKey, RollupSums] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)

    def add(self, place: RollupKey, sums: RollupSums, *, sign: int = 1) -> None:
        self.sums[place] = self.sums.get(place, NOTHING).plus(sums, sign=sign)


@dataclass(slots=True, kw_only=True)
class Rollup:
    """Sums up.

    matches  how answers of a route are compared with references, for as long as the job lives
    now      Unix time; says how fresh the sums are
    """

    settings: Settings
    path: Path
    matches: Matches
    monotonic_s: Callable[[], float]
    now: Callable[[], float]
    name: str = "rollup"
    _matched: ScorerCache = field(default_factory=ScorerCache)
    _to_the_letter: set[str] = field(default_factory=set)  # routes whose comparison could not be opened
    _classes: dict[str, set[str]] | None = None
    _rested_s: float | None = None

    def close(self) -> None:
        self._matched.close()

    def forget(self) -> None:
        self._classes, self._rested_s = None, None

    def run(self, desk: JobWriter) -> Sequence[JobReport]:
        now_s = self.monotonic_s()
        if not self.path.is_file() or (self._rested_s is not None and now_s - self._rested_s < EVERY_S):
            return ()
        self._rested_s = now_s
        n_rows, last = 0, 0
        with open_reader(self.path) as connection:
            if self._classes is None:
                self._begin_anew_where_scored_otherwise(connection, desk)
                self._classes = rollups.classes_of(connection)
            for _ in range(BATCHES):
                n, last = self._batch(connection, desk)
                n_rows += n
                if n < BATCH_ROWS:
                    break
                desk.renew()
        # A row of history for each round would be one for every two seconds.
        said = f"summed up {n_rows:,} rows" if n_rows >= BATCH_ROWS else ""
        return (JobReport(said=said, read_to_seq=last),)

    def _batch(self, connection: LogReader, desk: JobWriter) -> tuple[int, int]:
        """One stretch: rows, and the place of the last one."""
        to = rollups.read_to(connection)
        since = to.seq
        stretch = read_stretch(connection, since, BATCH_ROWS)
        if not stretch.n_rows:
            return 0, since
        batch = _Batch()
        for change in stretch.changes:
            if isinstance(change, RunEnd):
                self._book(batch, change.item, change.at_s)
            elif isinstance(change, UnwrittenRequests):
                self._count(batch, change)
            elif isinstance(change, UnwrittenLabel):
                self._recall(batch, change)
            elif isinstance(change, LabelChange):
                self._book(batch, change.before, change.at_s, sign=-1)
                self._book(batch, change.after, change.at_s)
        batch.tallies = rollups.read_tallies(connection, {change_route(change) for change in stretch.changes})
        fold_changes(batch.tallies, stretch.changes, self._scoring)
        # Behind the last one there are none of these up to where the log ended before it was asked for them.
        last, at_s = stretch.last, self.now()
        until = last if stretch.n_rows == BATCH_ROWS else max(last, to.last)

        def keep(writer: LogReader) -> None:
            if not rollups.add_rollups(writer, batch.sums, batch.tallies, since=since, seq=until, at_s=at_s):
                raise LeaseLost("job rollup: somebody else has summed this up")

        desk.keep(keep)
        return stretch.n_rows, until

    def _begin_anew_where_scored_otherwise(self, connection: LogReader, desk: JobWriter) -> None:
        """Labels were compared by the scorers of that time: with others, what they said has to be read again."""
        for name, tally in rollups.read_tallies(connection).items():
            wanted = self._scoring(name).name if tally.counts.get("labelled") else tally.scorer
            if tally.scorer != wanted:
                LOG.info("rollup: route %s has another scorer now: the log is summed up again", name)
                desk.keep(rollups.clear)
                return

    def _count(self, batch: _Batch, change: UnwrittenRequests) -> None:
        route = change.event.route
        for cell in change.event.cells:
            place = RollupKey(route, self._class(route, cell.query_class), cell.version, int(change.at_s // HOUR_S))
            batch.add(place, added_by_cell(cell))

    def _recall(self, batch: _Batch, change: UnwrittenLabel) -> None:
        """Somebody said something of a run that was only counted, and that its gateway still knew."""
        about = change.about
        place = RollupKey(
            about.route,
            self._class(about.route, about.query_class),
            about.policy_version,
            int(about.ended_at_s // HOUR_S),
        )
        for sign, item in ((-1, change.before), (1, change.after)):
            if first_about(item.labels) is not None:
                batch.add(place, added_by_label(item, self._match(about.route)), sign=sign)

    def _book(self, batch: _Batch, item: EpisodeWithLabels, at_s: float, *, sign: int = 1) -> None:
        request = item.episode.request
        name = self._class(request.route, class_of(request.query))
        place = RollupKey(request.route, name, request.policy_version, int(at_s // HOUR_S))
        batch.add(place, added_by(item, self._match(request.route)), sign=sign)

    def _class(self, route: str, name: str) -> str:
        """Callers declare classes as they like: only so many are told apart."""
        assert self._classes is not None
        known = self._classes.setdefault(route, set())
        if name in known:
            return name
        if len(known) >= MOST_CLASSES:
            return OTHER
        known.add(name)
        return name

    def _scoring(self, route: str) -> RouteScorer:
        """Opens the route's scorer; where it cannot be opened, its labels are compared to the letter."""
        match = self._match(route)
        return RouteScorer("" if match is _same else scorer_label(self.settings.routes[route].scorer), match)

    def _match(self, route: str) -> Match:
        configured = self.settings.routes.get(route)
        if configured is None or route in self._to_the_letter:
            return _same
        try:
            return self._matched.of(route, configured, self.matches)
        except (LeaseLost, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - its labels are compared to the letter
            LOG.error("rollup: route %s: answers are compared to the letter: %s", route, why_of(error))
            self._to_the_letter.add(route)
            return _same


def _same(answer: str | None, gold: str) -> bool:
    return answer == gold


def added_by(item: EpisodeWithLabels, match: Match) -> RollupSums:
    request, outcome = item.episode.request, item.episode.outcome
    usage, overhead = outcome.usage, outcome.overhead
    everyone = RollupSums(
        n_requests=1,
        n_failed=int(outcome.end_reason not in ENDED),
        n_degraded=int(bool(outcome.degraded)),
        prompt_tokens=usage.prompt_tokens if usage is not None else 0,
        completion_tokens=usage.completion_tokens if usage is not None else 0,
        overhead_tokens=overhead.probe_tokens + overhead.discarded_tokens,
        n_priced=int(outcome.cost_usd is not None),
        cost_usd=outcome.cost_usd or 0.0,
        overhead_usd=outcome.overhead_usd or 0.0,
        duration_s=outcome.duration_s,
    )
    if request.ungoverned is not None:
        return everyone
    run = measure_governed_run(item, match)
    # Of runs that a gateway knew when they were labelled the others are here, too: each stands for itself.
    weight = 1.0 if first_about(item.labels) is not None else weight_of(request, outcome)
    return everyone.plus(_governed(run, outcome)).plus(_marked(run, weight)).plus(_rated(run, item.labels, weight))


def added_by_label(item: EpisodeWithLabels, match: Match) -> RollupSums:
    """What is said of a run without rows adds; the run itself is in the counts."""
    run = measure_governed_run(item, match)
    return _marked(run, 1.0).plus(_rated(run, item.labels, 1.0))


def added_by_cell(cell: UnloggedRequests) -> RollupSums:
    """What requests without rows add: all that needs no label."""
    governed, spent = not cell.ungoverned, cell.completion_tokens + cell.probe_tokens + cell.discarded_tokens
    return RollupSums(
        n_requests=cell.n,
        n_governed=cell.n if governed else 0,
        n_failed=sum(n for end, n in cell.ends if end not in ENDED),
        n_stopped=cell.n_stopped,
        n_live_counted=cell.n_counted if governed else 0,
        live_tokens=spent if governed else 0,
        saved_tokens=cell.saved_tokens,
        prompt_tokens=cell.prompt_tokens,
        completion_tokens=cell.completion_tokens,
        overhead_tokens=cell.probe_tokens + cell.discarded_tokens,
        n_priced=cell.n_priced,
        cost_usd=cell.cost_usd,
        overhead_usd=cell.overhead_usd,
        saved_usd=cell.saved_usd,
        duration_s=cell.duration_s,
    )


def _marked(run: RunNumbers, weight: float) -> RollupSums:
    marked, right = int(run.correct is not None), int(bool(run.correct))
    live = run.enforce and not run.audit
    excess = marked * (weight * weight - weight)
    return RollupSums(
        n_full_marked=marked if run.full else 0,
        n_full_right=right if run.full else 0,
        n_stopped_marked=marked * weight if run.stopped else 0,
        n_stopped_right=right * weight if run.stopped else 0,
        n_live_marked=marked * weight if live else 0,
        n_live_right=right * weight if live else 0,
        stopped_marked_excess=excess if run.stopped else 0.0,
        live_marked_excess=excess if live else 0.0,
    )


def _governed(run: RunNumbers, outcome: Outcome) -> RollupSums:
    live = run.enforce and not run.audit
    full_spent, live_spent = (run.spent if part else None for part in (run.full, live))
    shown = run.full and run.would_spend is not None and run.baseline_tokens is not None
    return RollupSums(
        n_governed=1,
        n_stopped=int(run.stopped),
        n_full=int(run.full),
        n_audits=int(run.disagrees is not None),
        n_disagreeing=int(bool(run.disagrees)),
        n_pending=int(bool(run.disagrees) and run.drop is None),
        n_lost=int(run.drop == 1),
        n_gained=int(run.drop == -1),
        n_full_counted=int(full_spent is not None),
        full_tokens=int(full_spent or 0),
        n_live_counted=int(live_spent is not None),
        live_tokens=int(live_spent or 0),
        whole_tokens=round(run.baseline_tokens or 0) if shown else 0,
        would_tokens=int(run.would_spend or 0) if shown else 0,
        saved_tokens=outcome.tokens_saved_estimate or 0 if run.stopped else 0,
        saved_usd=outcome.saved_usd_estimate or 0.0 if run.stopped else 0.0,
        would_save_usd=run.would_save_usd or 0.0 if run.full else 0.0,
    )


def _rated(run: RunNumbers, labels: Sequence[StoredLabel], weight: float) -> RollupSums:
    said = [satisfaction_of(label.feedback) for label in sorted(labels, key=lambda label: label.seq)]
    rated = [one for one in said if one is not None]
    if not rated:
        return NOTHING
    return RollupSums(
        n_full_rated=int(run.full),
        full_rated=rated[-1] if run.full else 0.0,
        n_stopped_rated=weight if run.stopped else 0,
        stopped_rated=weight * rated[-1] if run.stopped else 0.0,
    )
