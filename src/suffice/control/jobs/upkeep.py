"""The jobs that maintain the log: `audit` exports the head of its hash chain, and `retain` erases rows past retention.

Only an earlier head kept elsewhere proves that the log was neither truncated nor rewritten; the salts that `salts`
publishes show without one that audits were drawn as logged. Steps that replay needs for the running epoch of a
certified route are erased when that epoch ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal, TypeAlias

from suffice.assurance.runs import ENDED, Match, RunNumbers
from suffice.assurance.sampling import UnloggedRequests, weight_of
from suffice.control.jobs.base import LOOK_BACK, JobReport, JobWriter, LogJob
from suffice.edge.notification import post_json
from suffice.errors import StoreError, why_of
from suffice.formatting import format_iso
from suffice.rollout.assign import DAY_S, day_salt
from suffice.scoring.base import scorer_label
from suffice.signals.query import class_of
from suffice.store.audit.chain import Head, append_line, head, line_of, read_heads, signing_key
from suffice.store.audit.personal import PARTS, Part
from suffice.store.database import erasing
from suffice.store.database.archiving import archived_days, ends_at_s, remove_runs
from suffice.store.database.decisions import Decisions, LeaseLost
from suffice.store.database.views import (
    EpisodeWithLabels,
    LogReader,
    has_requests,
    last_place,
    newest_event,
    open_reader,
    place_before,
)
from suffice.store.routes import rollups
from suffice.store.routes.deployments import read_decided
from suffice.store.routes.experiments import read_experiments
from suffice.store.routes.rollouts import read_rollouts, read_running_rollouts
from suffice.store.rows.events import DaySalt
from suffice.store.rows.sums import NO_SUMS, RollupKey, RollupSums
from suffice.telemetry import LOG
from suffice.types import Request


@dataclass(kw_only=True)
class ExportHeads(LogJob):
    name = "audit"
    webhook: str | None
    _in_file: Head | None = field(init=False, default=None)
    _sent: Head | None = field(init=False, default=None)  # to the webhook

    def forget(self) -> None:
        super().forget()
        self._in_file = self._sent = None

    def run(self, writer: JobWriter) -> Sequence[JobReport]:  # noqa: ARG002 - every job gets one; this one adds no row
        audit = self.settings.audit
        if not (audit.file or self.webhook) or not self.is_due() or not self.path.exists():
            return ()
        self.rest(audit.every_s)
        with open_reader(self.path) as log:
            newest = head(log)
        if newest is None:
            return ()
        line = line_of(newest, at=format_iso(self.now()), key=signing_key(self.secret))
        reports = [] if not audit.file else self._to_file(Path(audit.file), newest, line)
        if self.webhook and newest != self._sent:
            problem = post_json(self.webhook, line, timeout_s=audit.timeout_s)
            if problem is None:
                self._sent = newest
                sentence = f"head at place {newest.place} exported to the webhook"
            else:
                LOG.error("audit: the head at place %d was not exported: %s", newest.place, problem)
                sentence = f"head at place {newest.place} not exported: {problem}"
            reports.append(JobReport(summary=sentence, ok=problem is None, read_to_seq=newest.seq))
        return reports

    def _to_file(self, file: Path, newest: Head, line: bytes) -> list[JobReport]:
        try:
            if self._in_file is None and file.exists():
                kept = read_heads(file, key=None)
                self._in_file = kept[-1].head if kept else None
            if newest == self._in_file:
                return []
            append_line(file, line)
        except StoreError as error:
            LOG.error("audit: %s", error)
            return [JobReport(summary=str(error), ok=False, read_to_seq=newest.seq)]
        self._in_file = newest
        return [JobReport(summary=f"head at place {newest.place} exported to {file}", read_to_seq=newest.seq)]


OVER_S: Final = 6 * 3_600.0  # after the end of a day until its salt is published: by then its requests are in the log
SALTS_S: Final = 60.0  # between two looks; gateways may draw for as long before the first salt is published


@dataclass(kw_only=True)
class PublishSalts(LogJob):
    name = "salts"

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        if not self.is_due() or not self.path.exists():
            return ()
        self.rest(SALTS_S)
        day = int((self.now() - OVER_S) // DAY_S) - 1
        with open_reader(self.path) as log:
            last = newest_event(log, DaySalt)
            if last is not None and last.day >= day:
                return ()
            # A log that has requests has gateways, which may be of a version that drew otherwise.
            since_s = self.now() + (DAY_S if has_requests(log) else SALTS_S) if last is None else last.since_s
        salt = day_salt(day, salt=self.secret)
        writer.write([DaySalt(day=day, salt=salt, since_s=since_s, author=self.author)])
        return [JobReport(summary=f"the salt of the draws until {format_iso((day + 1) * DAY_S)} published")]


@dataclass(kw_only=True)
class Retain(LogJob):
    """Erases what is past its retention, in transactions that are safe to repeat."""

    name = "retain"
    writer: Decisions
    new_id: Callable[[], str]
    _done: dict[Part, int] = field(init=False, default_factory=dict)  # position up to which each part is erased
    _unpurged: bool = field(init=False, default=False)  # rows were erased, and the file still has to be rewritten

    def forget(self) -> None:
        super().forget()
        self._done.clear()

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        retention = self.settings.retention
        due = [(part, retention.days[part]) for part in PARTS if part in retention.days]
        if not retention.erases or not self.is_due() or not self.path.exists():
            return ()
        self.rest(retention.every_s)
        reports = [self._retain(part, days, writer) for part, days in due]
        if retention.requests_days is not None:
            reports.append(self._remove_archived(retention.requests_days, writer))
        if self._unpurged:
            writer.renew()
            self._unpurged = not erasing.purge(self.path)
            if self._unpurged:
                sentence = "the write-ahead log may still hold erased text: another process was reading; will retry"
                reports.append(JobReport(summary=sentence, ok=False))
        return reports

    def _retain(self, part: Part, days: float, writer: JobWriter) -> JobReport:
        what = f"{part} older than {days:g} days"
        order = erasing.ErasureOrder(
            erasure_id=self.new_id(),
            what=what,
            parts=(part,),
            author=self.author,
            reason=f"retention.{part}_days is {days:g}",
        )
        n_rows = 0
        for until, rows in self._batches(part, what, self.now() - days * DAY_S):
            writer.renew()
            n_rows += erasing.erase_words(self.writer, order, rows, until_seq=until)
            self._done[part] = until
            self._unpurged = self._unpurged or bool(n_rows)
        sentence = f"{what}: erased in {n_rows:,} rows" if n_rows else ""
        return JobReport(summary=sentence, read_to_seq=self._done.get(part, 0))

    def _batches(self, part: Part, what: str, limit_s: float) -> Iterator[tuple[int, list[int]]]:
        with open_reader(self.path) as log:
            after = self._done.get(part) or erasing.erased_until(log, what)
            last = self._needed_from(log) - 1 if part == "steps" else last_place(log)
        while True:
            with open_reader(self.path) as log:
                after, rows = erasing.select_expired_rows(
                    log, limit_s, after_seq=after, until_seq=last, labels=part == "answers"
                )
            if not rows:
                return
            yield after, rows

    def _remove_archived(self, days: float, writer: JobWriter) -> JobReport:
        """Remove requests and outcomes of archived days, as far as no route, rollout or experiment still reads them."""
        with open_reader(self.path) as log:
            needed, summed = self._needed_from(log), rollups.read_to(log).seq
            kept = [place_before(log, name, LOOK_BACK) + 1 for name in self.settings.routes]
            running = [one.seq for one in read_running_rollouts(read_rollouts(log)).values()]
            running += [one.seq for one in read_experiments(log) if one.runs]
            old = [one.until_seq for one in archived_days(log) if ends_at_s(one.day) + days * DAY_S < self.now()]
        until = min([max(old, default=0), summed, *(seq - 1 for seq in (needed, *kept, *running))])
        n_runs = 0
        for n_removed in remove_runs(self.writer, until):
            writer.renew()
            n_runs += n_removed
            self._unpurged = True
        sentence = f"{n_runs:,} requests of archived days removed from the log" if n_runs else ""
        return JobReport(summary=sentence, read_to_seq=until)

    def _needed_from(self, log: LogReader) -> int:
        decided, first = read_decided(log), last_place(log) + 1
        for name, route in self.settings.routes.items():
            epoch = decided.of(name).epoch if route.certifies_itself else None
            if epoch is not None:
                kept = (seq for one in epoch.kept for seq in erasing.select_word_rows(log, one))
                first = min([first, epoch.since_seq + 1, *kept])
        return first


# ---- The job `rollup` sums up the log's runs and labels by route, class, version and hour

BATCH_ROWS: Final = 5_000  # of the log, in one transaction
BATCHES: Final = 20  # in one round, while other jobs wait
MOST_CLASSES: Final = 100  # of a route; further classes count as OTHER
OTHER: Final = "(others)"
EVERY_S: Final = 2.0  # between two rounds, each of which syncs to disk

Booking: TypeAlias = tuple[RollupKey, str, RollupSums, Literal[-1, 1]]  # tenant ("": none), and at last the sign


@dataclass(kw_only=True)
class Rollup(LogJob):
    name = "rollup"
    _compared_exactly: set[str] = field(init=False, default_factory=set)  # routes whose scorer could not be built
    _classes: dict[str, set[str]] | None = field(init=False, default=None)

    def forget(self) -> None:
        super().forget()
        self._classes = None

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        if not self.path.exists() or not self.is_due():
            return ()
        self.rest(EVERY_S)
        n_rows, last = 0, 0
        with open_reader(self.path) as log:
            if self._classes is None:
                self._clear_if_scored_otherwise(log, writer)
                self._classes = rollups.classes_of(log)
            for _ in range(BATCHES):
                n, last = self._batch(log, writer)
                n_rows += n
                if n < BATCH_ROWS:
                    break
                writer.renew()
        # Small rounds are not recorded: there would be a row every two seconds.
        sentence = f"summed up {n_rows:,} rows" if n_rows >= BATCH_ROWS else ""
        return (JobReport(summary=sentence, read_to_seq=last),)

    def _batch(self, log: LogReader, writer: JobWriter) -> tuple[int, int]:
        to, at_s = rollups.read_to(log), self.now()
        stretch = rollups.read_stretch(log, to.seq, BATCH_ROWS)
        if not stretch.n_rows:
            return 0, to.seq
        sums, tenants = dict[RollupKey, RollupSums](), dict[RollupKey, RollupSums]()
        for change in stretch.changes:
            for key, tenant, part, sign in self._bookings(change):
                sums[key] = sums.get(key, NO_SUMS).plus(part, sign=sign)
                if tenant:
                    own = rollups.tenant_key(key, tenant)
                    tenants[own] = tenants.get(own, NO_SUMS).plus(part, sign=sign)
        tallies = rollups.read_tallies(log, {change.route for change in stretch.changes})
        rollups.fold_changes(tallies, stretch.changes, self._scoring)
        # There are no more such rows up to `to.last`, the end of the log before they were read.
        until = stretch.last if stretch.n_rows == BATCH_ROWS else max(stretch.last, to.last)

        def keep(connection: LogReader) -> None:
            if not rollups.add_rollups(connection, sums, tallies, tenants=tenants, since=to.seq, seq=until, at_s=at_s):
                raise LeaseLost("job rollup: another worker has already summed these rows")

        writer.keep(keep)
        return stretch.n_rows, until

    def _clear_if_scored_otherwise(self, log: LogReader, writer: JobWriter) -> None:
        for name, tally in rollups.read_tallies(log).items():
            if tally.counts.get("labelled") and tally.scorer != self._scoring(name).name:
                LOG.info("rollup: route %s has a new scorer: the log is summed again", name)
                writer.keep(rollups.clear)
                return

    def _bookings(self, change: rollups.Change) -> Iterator[Booking]:
        if isinstance(change, rollups.UnwrittenRequests):
            for cell in change.event.cells:
                key = self._key(change.route, cell.query_class, cell.version, change.at_s)
                yield key, cell.tenant, added_by_cell(cell), 1
        elif isinstance(change, rollups.RunChange):
            request, match = change.after.episode.request, self._match(change.route)
            key = self._key(request.route, class_of(request.query), request.policy_version, change.at_s)
            adds = added_by if change.is_written else added_by_labels
            if change.before is not None:
                yield key, request.tenant, adds(change.before, match), -1
            yield key, request.tenant, adds(change.after, match), 1

    def _key(self, route: str, query_class: str, version: str, at_s: float) -> RollupKey:
        assert self._classes is not None
        known = self._classes.setdefault(route, set())
        if query_class not in known and len(known) >= MOST_CLASSES:
            query_class = OTHER
        else:
            known.add(query_class)
        return RollupKey(route, query_class, version, int(at_s // rollups.HOUR_S))

    def _scoring(self, route: str) -> rollups.RouteScorer:
        match = self._match(route)
        return rollups.RouteScorer("" if match is _is_same else scorer_label(self.settings.routes[route].scorer), match)

    def _match(self, route: str) -> Match:
        """The route's match; exact comparison where its scorer cannot be built."""
        if route not in self.settings.routes or route in self._compared_exactly:
            return _is_same
        try:
            return self.match(route)
        except (LeaseLost, StoreError):
            raise
        except Exception as error:  # noqa: BLE001 - labels are then compared exactly
            LOG.error("rollup: route %s: answers are compared exactly: %s", route, why_of(error))
            self._compared_exactly.add(route)
            return _is_same


def _is_same(answer: str | None, gold: str) -> bool:
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
    run = rollups.measure_governed_run(item, match)
    weight = 1.0 if rollups.first_about(item.labels) is not None else weight_of(request, outcome)
    return everyone.plus(_governed(run, request)).plus(_marked(run, weight))


def added_by_labels(item: EpisodeWithLabels, match: Match) -> RollupSums:
    """What the labels of a run without rows add: the run itself is counted already."""
    if rollups.first_about(item.labels) is None:
        return NO_SUMS
    return _marked(rollups.measure_governed_run(item, match), 1.0)


def added_by_cell(cell: UnloggedRequests) -> RollupSums:
    """What requests without rows add: everything that needs no label."""
    return RollupSums(
        n_requests=cell.n,
        n_governed=0 if cell.ungoverned else cell.n,
        n_failed=sum(n for end, n in cell.ends if end not in ENDED),
        n_stopped=cell.n_stopped,
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
    if run.correct is None:
        return NO_SUMS
    right, live = int(run.correct), run.enforce and not run.audit
    return RollupSums(
        n_full_marked=int(run.full),
        n_full_right=right if run.full else 0,
        n_stopped_marked=weight if run.stopped else 0,
        n_stopped_right=right * weight if run.stopped else 0,
        n_live_marked=weight if live else 0,
        n_live_right=right * weight if live else 0,
        stopped_marked_excess=weight * weight - weight if run.stopped else 0.0,
    )


def _governed(run: RunNumbers, request: Request) -> RollupSums:
    is_replayed = run.full and run.would_spend is not None and run.baseline_tokens is not None
    return RollupSums(
        n_governed=1,
        n_stopped=int(run.stopped),
        n_full=int(run.full),
        n_audits=int(run.disagrees is not None),
        n_disagreeing=int(bool(run.disagrees)),
        n_pending=int(bool(run.disagrees) and run.drop is None),
        n_lost=int(run.drop == 1),
        n_gained=int(run.drop == -1),
        whole_tokens=round(run.baseline_tokens or 0) if is_replayed else 0,
        would_tokens=int(run.would_spend or 0) if is_replayed else 0,
        saved_tokens=run.saved or 0,
        saved_usd=run.saved_usd or 0.0,
        would_save_usd=run.would_save_usd or 0.0 if run.full else 0.0,
    ).plus(_enforced(run, is_certified=request.certified) if run.enforce else NO_SUMS)


def _enforced(run: RunNumbers, *, is_certified: bool) -> RollupSums:
    """The sums of the EM drop and of the saving, as `runs.Tally` has them since the log began."""
    w, each = run.weight, run.sampling_weight
    pair = w if run.full and run.disagrees is not None else 0.0
    known = run.spent is not None and run.baseline_tokens is not None
    spent, alone = (run.spent or 0.0, run.baseline_tokens or 0.0) if known else (0.0, 0.0)
    drawn = w if run.audit and known else 0.0
    return RollupSums(
        pair_weight=pair,
        pair_squares=pair * pair,
        lost_weight=pair * (run.drop == 1),
        gained_weight=pair * (run.drop == -1),
        pending_weight=pair * (bool(run.disagrees) and run.drop is None),
        enforced_weight=each * known,
        enforced_tokens=each * spent,
        certified_tokens=each * (run.saved or 0) * is_certified,
        drawn_weight=drawn,
        drawn_tokens=drawn * alone,
        drawn_squares=drawn * drawn,
        drawn_square_tokens=drawn * drawn * alone,
        drawn_square_squares=(drawn * alone) ** 2,
    )
