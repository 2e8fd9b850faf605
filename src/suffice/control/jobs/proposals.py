"""The jobs `advance`, `retrain`, `budget` and `sampling`, which look at each route at intervals.

A proposal activates nothing. Each request records the rate at which it was sampled, so estimates stay unbiased while
rates change. A run is read one look after it ended, when its label is due.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Final

from suffice.assurance.forecast import RouteForecast
from suffice.assurance.runs import Match, measure_run
from suffice.assurance.sampling import Rates, Stratum, allocate, live_rate, moved
from suffice.assurance.satisfaction import satisfaction_floor
from suffice.control.compare.assessment import RolloutAssessor, barred
from suffice.control.compare.counterfactual import AuditReplay
from suffice.control.compare.experiments import read_experiment
from suffice.control.evidence.cold_start import burst_requests
from suffice.control.evidence.judging import human_label
from suffice.control.evidence.versions import active_version, written
from suffice.control.jobs.base import (
    JobPass,
    JobReport,
    JobWriter,
    LogJob,
    ProposalJob,
    RouteJob,
    rows_since,
    since,
)
from suffice.errors import ConfigError, why_of
from suffice.executor import Executor, SerialExecutor, build_executor
from suffice.learn.dataset import Dataset, EmptyDataset, build_dataset
from suffice.learn.retrain import Reason, Schedule, VersionProposal, refit_reason, retrain
from suffice.policy.folded_version import FoldedVersion
from suffice.rollout.evidence import rules_of
from suffice.rollout.results import summarize_arm
from suffice.settings import Route
from suffice.signals.query import class_of
from suffice.store.database import views
from suffice.store.database.views import LogReader, last_place, open_reader, read_kinds
from suffice.store.routes.deployments import RouteDeployment, read_decided, read_holds
from suffice.store.routes.experiments import ExperimentRun, read_experiments
from suffice.store.routes.rollouts import (
    as_candidate,
    beginning,
    kept_with,
    lineage_of,
    read_rollouts,
    read_running_rollouts,
)
from suffice.store.rows.events import (
    Event,
    ExperimentEnd,
    ProposedBudget,
    ProposedVersion,
    RolloutMove,
    RowRates,
    WorseArm,
    key_of,
)
from suffice.telemetry import LOG

LEAST_REST: Final = 20.0  # times the duration of the last look, at least, between two looks at a rollout


@dataclass(kw_only=True)
class Advance(ProposalJob[RolloutAssessor]):  # of running rollouts
    name = "advance"
    failing = "stays where it is"
    rests_s = 5.0

    def concerns(self, route: Route) -> bool:
        return route.mode != "off" and (bool(route.policy) or route.is_learned)

    def propose(self, name: str, held: RouteDeployment, here: JobPass) -> str | None:
        """Take the step that the evidence supports; return what was done, or "". None: no rollout is running."""
        trial = read_running_rollouts(read_rollouts(here.log)).get(name)
        # The assessor is put back only after the look: one that failed half-way may have skipped a row.
        assessor = self._memory.pop(name, None)
        if trial is None:
            return None
        began_s = self.monotonic_s()
        if assessor is None or assessor.gathering.held.seq != trial.seq:
            of_route = AuditReplay(route=self.settings.routes[name], match=self.match(name))
            assessor = RolloutAssessor(here.log, trial, of_route, self.settings.control, secret=self.secret)
        for row in rows_since(here.log, assessor.gathering.seq, here.writer):
            assessor.gathering.feed(row.stored())
        seen = assessor.see(here.log, trial, held, now_s=self.now())
        self._memory[name] = assessor
        ended_s = self.monotonic_s()
        self._due_s[name] = max(self._due_s[name], ended_s + LEAST_REST * (ended_s - began_s))
        here.writer.renew()
        moves = seen.moves
        wanted = () if moves and moves[-1].move == "roll_back" else seen.wanted
        if not moves and not wanted:
            return ""
        rows = [RolloutMove(route=name, author=self.author, reason=move.reason, transition=move) for move in moves]
        here.writer.write([*rows, *wanted])
        assessor.requested.update(one.episode_id for one in wanted)
        sentences = [f"{move.sentence}: {move.reason}" for move in moves]
        sentences += [f"{len(wanted)} labels wanted"] if wanted else []
        return f"rollout {trial.state.rollout}: {'; '.join(sentences)}"


@dataclass(frozen=True, slots=True)
class Refit:
    data: Dataset
    parent: FoldedVersion | None
    max_em_drop: float
    reason: Reason


def _fit(refit: Refit) -> tuple[VersionProposal | str, float]:
    """Return the proposal, or why there is none, and the seconds that it took."""
    began_s = time.monotonic()
    try:
        result: VersionProposal | str = retrain(
            refit.data, refit.parent, max_em_drop=refit.max_em_drop, reason=refit.reason
        )
    except Exception as error:  # noqa: BLE001 - a failing route must not stop the others
        result = why_of(error)
    return result, time.monotonic() - began_s


@dataclass(kw_only=True)
class Retrain(RouteJob[int]):  # position up to which a fit failed
    name = "retrain"
    failing = "nothing proposed"
    rests_s: ClassVar[float] = 30.0  # between two checks whether a fit is due

    def concerns(self, route: Route) -> bool:
        return route.is_learned

    def work(self, names: Sequence[str], here: JobPass) -> Sequence[JobReport]:
        """Fit the routes that are due, in `refit_processes` at a time; the log is read and written here, in order."""
        decided = read_decided(here.log)
        reports = list[JobReport]()
        sent = deque[tuple[str, int]]()

        def due() -> Iterator[Refit]:
            for name in names:
                self.rest(self.rests_s, name)
                here.until = last_place(here.log)
                refit = self.attempt(name, here, self._prepare, name, decided.of(name), here)
                if isinstance(refit, Refit):
                    sent.append((name, here.until))
                    yield refit
                else:
                    reports.append(self.report(name, refit or "", read_to_seq=here.until))

        for result, spent_s in self._executor().map(_fit, due()):
            name, here.until = sent.popleft()
            here.writer.spent_s[name] += spent_s
            here.writer.renew()
            if isinstance(result, str):
                self.leave(name, f"{self.failing}: {result}")
                reports.append(self.report(name, read_to_seq=here.until))
            else:
                sentence = self.attempt(name, here, self._propose, name, result, here)
                reports.append(self.report(name, sentence or "", read_to_seq=here.until))
        return reports

    def _executor(self) -> Executor:
        control = self.settings.control
        if control.ray or control.refit_processes > 1:
            return build_executor(control.refit_processes, control.ray or None)
        return SerialExecutor()

    def _prepare(self, name: str, held: RouteDeployment, here: JobPass) -> Refit | str | None:
        """Read what a fit needs, or say why none is possible; None: none is due."""
        route, reason = self.settings.routes[name], self._due(name, held, here.log)
        if reason is None:
            return None
        self._memory[name] = here.until
        served = active_version(here.log, held)
        parent = None if served is None else served.version
        here.writer.renew()
        with self.matches(route) as match:
            try:
                data = build_dataset(
                    views.read_episodes(here.log, name, since(name, held, here.log)),
                    match=match,
                    wave=route.wave,
                    also=() if parent is None else parent.models[0].features,
                    label_of=human_label,  # no charge for a judge model's errors is made here
                )
            except EmptyDataset as error:
                return f"nothing to propose: {error}"
        return Refit(data, parent, route.max_em_drop, reason)

    def _propose(self, name: str, result: VersionProposal, here: JobPass) -> str:
        route = self.settings.routes[name]
        if result.version is None:
            return f"nothing to propose: {result.why}"
        proposed, body = self._record(name, result, result.version, here.until), written(result.version)
        here.writer.write([proposed], {proposed.address: body})
        sentence = f"{proposed.address} proposed: {result.verdict} ({result.why})"
        if route.rollout.automatic and result.verdict == "better":
            sentence = f"{sentence}; {self._try(proposed, body, here)}"
        return sentence

    def _record(self, name: str, result: VersionProposal, version: FoldedVersion, until: int) -> ProposedVersion:
        card, lineage = result.card, result.lineage
        own = None if card is None else next(p for p in card.frontier if p.max_em_drop == card.max_em_drop)
        return ProposedVersion(
            route=name,
            read_to_seq=until,
            address=version.address,
            parent=lineage.parent,
            reason=lineage.reason,
            verdict=result.verdict,
            why=result.why,
            n_runs=lineage.n_runs,
            saving=None if own is None else own.saving,
            drop=None if own is None else own.drop,
            lineage=asdict(lineage),
            card=None if card is None else asdict(card),
            author=self.author,
        )

    def _try(self, proposed: ProposedVersion, body: str, here: JobPass) -> str:
        name, route = proposed.route, self.settings.routes[proposed.route]
        held, now_s = read_decided(here.log).of(name), self.now()
        lineage = lineage_of(self.author, proposed.why, now_s)
        candidate = as_candidate(name, route, held, proposed, body, lineage)
        if isinstance(candidate, str):
            return f"not tried: {candidate}"
        event = beginning(
            read_rollouts(here.log),
            candidate,
            author=self.author,
            reason=proposed.why,
            name=f"{name}-{proposed.read_to_seq}",
            rules=rules_of(route),
            now_s=now_s,
            by_person=False,
            held_by=barred(held, read_holds(here.log).of(name), now_s=now_s),
        )
        if isinstance(event, str):
            return f"not tried: {event}"
        here.writer.write([event], kept_with(candidate, secret=self.secret))
        return "tried from here on, in shadow"

    def _due(self, name: str, held: RouteDeployment, log: views.LogReader) -> Reason | None:
        before = views.newest_event(log, ProposedVersion, route=name)
        epoch = held.epoch
        alarm = held.alarm
        last = max(before.read_to_seq if before is not None else 0, self._memory.get(name, 0))
        n_requests, n_full = views.counts_since(log, name, last or since(name, held, log))
        n_since_alarm = None
        if epoch is not None and alarm is not None and alarm.epoch == epoch.number - 1 and epoch.since_seq > last > 0:
            n_since_alarm = views.counts_since(log, name, epoch.since_seq)[1]
        control, usual = self.settings.control, Schedule()
        schedule = Schedule(  # as often as the certify loop fits, and after a burst
            every_requests=control.refit_requests,
            burst_runs=min(usual.burst_runs, burst_requests(control, self.settings.routes[name].max_em_drop)),
            rest_requests=min(usual.rest_requests, control.refit_requests),
        )
        return refit_reason(schedule, n_requests=n_requests, n_new_runs=n_full, n_runs_since_alarm=n_since_alarm)


MOVED_BUDGET: Final = 0.2  # relative change of an EM budget that is worth proposing


@dataclass(kw_only=True)
class ProposeBudget(ProposalJob[None]):
    """Proposes the EM budget that the owner's floor of satisfaction affords, by the latest look of `monitor`."""

    name = "budget"
    rests_s = 30.0

    def concerns(self, route: Route) -> bool:
        return route.min_satisfaction is not None and route.mode != "off"

    def propose(self, name: str, held: RouteDeployment, here: JobPass) -> str:  # noqa: ARG002 - one signature for all
        route, look = self.settings.routes[name], views.newest_event(here.log, RouteForecast, route=name)
        if look is None or look.price is None or route.min_satisfaction is None:
            return ""
        least = satisfaction_floor(route.min_satisfaction)
        drop, before = look.price.affordable_drop(least), views.newest_event(here.log, ProposedBudget, route=name)
        known = [route.max_em_drop, *([] if before is None else [before.max_em_drop])]
        if drop is None or any(abs(drop / one - 1) <= MOVED_BUDGET for one in known):
            return ""
        why = f"{look.price.sentence}, and full runs are rated {look.price.full:.2f} for a floor of {least:.2f}"
        row = ProposedBudget(
            route=name,
            read_to_seq=here.until,
            max_em_drop=drop,
            before=route.max_em_drop,
            min_satisfaction=least,
            why=why,
            author=self.author,
        )
        here.writer.write([row])
        return f"max_em_drop = {drop:g} proposed, instead of {route.max_em_drop:g}: {why}"


# --------------------------------------------------------------------------- rates at which requests keep their rows

STEP_REQUESTS: Final = 1_000  # of a route between two looks
FIRST_REQUESTS: Final = 1_000  # with rows, before the first look
FADING: Final = 0.7  # weight of earlier looks at each look, because the traffic changes
MOVED: Final = 0.15  # relative change of a rate that is worth setting it
MOST_CLASSES: Final = 50  # with a rate of their own, the largest ones
_SUMS: Final = ("n_requests", "n_runs", "tokens", "squares", "n_labelled", "n_right")  # of a `Stratum`


@dataclass(slots=True)
class LiveSums:
    read_to: int  # position up to which runs were read
    looked_to: int  # end of the log at the last look
    classes: dict[str, dict[str, float]] = field(default_factory=dict)
    n_live: float = 0.0  # runs
    shares: float = 0.0  # sum over runs of the audit share when each was drawn

    def fade(self, part: float) -> None:
        self.n_live, self.shares = part * self.n_live, part * self.shares
        self.classes = {
            name: {key: part * value for key, value in sums.items()}
            for name, sums in self.classes.items()
            if sums["n_requests"] >= 1
        }

    def of_class(self, name: str) -> dict[str, float]:
        return self.classes.setdefault(name, dict.fromkeys(_SUMS, 0.0))

    def add(self, items: Iterable[views.EpisodeWithLabels], match: Match) -> None:
        for item in items:
            request = item.episode.request
            if request.ungoverned is not None:
                continue
            run, sums = measure_run(item, match), self.of_class(class_of(request.query))
            self.n_live += 1
            self.shares += 1 - request.propensity
            sums["n_requests"] += 1
            if run.spent is not None:
                sums["n_runs"] += 1
                sums["tokens"] += run.spent
                sums["squares"] += run.spent * run.spent
            if run.correct is not None:
                sums["n_labelled"] += 1
                sums["n_right"] += run.correct

    def strata(self) -> list[Stratum]:
        largest = sorted(self.classes, key=lambda name: -self.classes[name]["n_requests"])[:MOST_CLASSES]
        return [Stratum(query_class=name, **self.classes[name]) for name in largest]


@dataclass(kw_only=True)
class SamplingJob(ProposalJob[LiveSums]):
    name = "sampling"
    is_shared = False  # it is cheap, and a look needs the sums of the looks before
    failing = "rates left as they are"
    rests_s = 30.0

    def concerns(self, route: Route) -> bool:
        return self.settings.monitoring.adapt and route.mode == "enforce" and self.settings.sample_rate_on(route) < 1

    def propose(self, name: str, held: RouteDeployment, here: JobPass) -> str | None:  # noqa: ARG002 - one signature for all
        """Read new runs, and set the rates that have changed; None: there are too few new runs."""
        log, seen = here.log, self._memory.get(name)
        if seen is None:
            seen = self._memory[name] = LiveSums(views.place_before(log, name, FIRST_REQUESTS), here.until)
        elif views.requests_since(log, name, seen.looked_to) < STEP_REQUESTS:
            return None
        since, to = seen.read_to, seen.looked_to
        seen.read_to, seen.looked_to = to, here.until
        seen.fade(FADING)
        seen.add(views.drawn_runs(log, name, since, to), self.match(name))
        for cell in views.counted_cells(log, name, since_seq=since, until_seq=to):
            if not cell.ungoverned:
                seen.of_class(cell.query_class)["n_requests"] += cell.n
        if not seen.n_live:
            return None
        share, sample_rate = seen.shares / seen.n_live, self.settings.sample_rate_of(name)
        before, even = views.newest_event(log, RowRates, route=name), live_rate(sample_rate, share)
        rates, was = allocate(seen.strata(), rate=even), Rates(other=even)
        if before is not None and before.sample_rate == sample_rate:
            was = Rates(other=before.other, by_class=before.after)
        if not moved(was, rates, by=MOVED):
            return ""
        kept = f"{sample_rate:.1%} of requests have rows, audits ({share:.1%}) among them"
        row = RowRates(
            route=name,
            number=1 if before is None else before.number + 1,
            sample_rate=sample_rate,
            read_to_seq=here.until,
            other=rates.other,
            after=rates.by_class,
            before=was.by_class,
            author=self.author,
            reason=f"{kept}; classes by what is uncertain in the latest {seen.n_live:,.0f} live runs",
        )
        here.writer.write([row])
        return f"rates of {len(rates.by_class)} classes set: {kept}"


# ---- The job `experiments` reports arms that are proved worse than their control, and ends experiments if it may

DAY_S: Final = 86_400.0
RESTS_S: Final = 60.0  # between two looks, at least


class ExperimentWatch(LogJob):
    name = "experiments"

    def run(self, writer: JobWriter) -> Sequence[JobReport]:
        if not self.is_due() or not self.path.exists():
            return ()
        began_s, reports = self.monotonic_s(), list[JobReport]()
        with open_reader(self.path) as log:
            for held in read_experiments(log):
                if not held.runs:
                    continue
                name, ok = held.experiment.name, True
                try:
                    sentence = self._look(held, log, writer)
                except ConfigError as error:  # such as a route that the settings no longer have
                    sentence, ok = str(error), False
                if sentence:
                    LOG.warning("experiments.%s: %s", name, sentence)
                    summary, at = f"experiment {name}: {sentence}", last_place(log)
                    reports.append(JobReport(summary=summary, ok=ok, read_to_seq=at))
        self.rest(max(RESTS_S, LEAST_REST * (self.monotonic_s() - began_s)))
        return reports

    def _look(self, held: ExperimentRun, log: LogReader, writer: JobWriter) -> str:
        experiment = held.experiment
        result, written = read_experiment(log, held, self.settings), self.settings.experiments.get(experiment.name)
        ends_when_worse = experiment.end_when_worse or (written is not None and written.end_when_worse)
        known = {key_of(stored.event) for stored in read_kinds(log, "arm_worse")}
        worse = [
            WorseArm(
                experiment=experiment.name,
                run=experiment.run,
                arm=arm.arm,
                verdict=arm.verdict,
                summary=summarize_arm(result, arm),
                author=self.author,
            )
            for arm in result.arms
            if arm.verdict in ("worse", "mixed")
        ]
        new: list[Event] = [one for one in worse if key_of(one) not in known]
        sentences = [one.summary[0] for one in worse if key_of(one) not in known]
        proved = [repr(one.arm) for one in worse if one.verdict == "worse"]
        reason = ""
        if proved and ends_when_worse:
            reason = f"arm {', '.join(proved)} is proved worse than {result.control!r}, and end_when_worse is set"
        elif experiment.days is not None and self.now() >= held.started_at_s + DAY_S * experiment.days:
            reason = f"it ran for {experiment.days:g} days, as its author set"
        if reason:
            last = replace(result, ended=True)
            summary = tuple(sentence for arm in last.arms for sentence in summarize_arm(last, arm))
            new.append(
                ExperimentEnd(
                    experiment=experiment.name, run=experiment.run, author=self.author, reason=reason, summary=summary
                )
            )
            sentences.append(f"ended: {reason}")
        writer.write(new)
        return "; ".join(sentences)
