"""Runs the control loop over recorded runs as traffic, once per seed, and reports the results: a table and figures."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.assurance.bounds import Interval, exact_binomial
from suffice.assurance.certify import window_audits
from suffice.assurance.exposure import LOOK_PERIOD
from suffice.certification.certifier import Certifier
from suffice.certification.plan import Plan, full_runs
from suffice.errors import ConfigError
from suffice.executor import Executor, SerialExecutor
from suffice.learn.features import DENSE
from suffice.learn.version import FoldedModels, fold_version
from suffice.policy.starting_version import starting_version
from suffice.replay.online.drift import Drift, draw_order, losing_share, relabel
from suffice.replay.online.stream import (
    PERIOD,
    RecordedTraffic,
    Stream,
    add_times,
    learner_of,
    read_traffic,
    run_stream,
)
from suffice.replay.report.page import COLOURS, FAINT, INK, PlotFiles, open_figure, render_figure
from suffice.replay.report.text import build_table, describe_percent
from suffice.replay.study.sets import TOO_SMALL_QUESTIONS, TOO_SMALL_RUNS
from suffice.replay.traces.read import Survey
from suffice.sanitize import plural, printable
from suffice.signals.features import FeatureSet
from suffice.types import Promise

if TYPE_CHECKING:
    from rich.console import Console

N_BLOCKS: Final = 60  # in a course
SMOOTH: Final = 5  # blocks in the moving average of the course
MOST_JUDGED: Final = 2_000  # requests after a drift that measure the loss of a level


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineOptions:
    max_em_drop: float = 0.02
    confidence: float = 0.95
    n_seeds: int = 20
    warm_up: int | None = None
    run_time: int = 0  # mean duration of a full run, in arriving requests
    label_delay: tuple[int, int] = (0, 0)  # least and most arriving requests between the end of a run and its label
    audit_share: float = 0.05  # after the warm-up
    resample: int | None = None  # requests to draw by question-level bootstrap
    disjoint: bool = False  # evidence from one half of the questions, results from the other
    drift: Drift | None = None
    probe_tokens: int | None = None
    label_free: bool = False
    promise: Promise = "certified"
    ramps: bool = False  # version 0 acts on a share of the requests as soon as it is proved, see `assurance.exposure`
    period: int = PERIOD
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One stream over time, in blocks of requests; each tuple has one number per block."""

    requests: tuple[int, ...]  # cumulative, at the end of the block
    level: tuple[float, ...]  # mean active level, as a fraction of the most aggressive one
    reduction: tuple[float, ...]  # of tokens
    drop: tuple[float, ...]  # mean EM drop
    audits: tuple[float, ...]  # audited share
    alarms: tuple[int, ...]  # requests
    bursts: tuple[tuple[int, int], ...]  # first request, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    n: int
    drift_at: int | None  # request; None: no drift
    reduction: float
    reduction_late: float  # second half; with `disjoint` the other half of the questions
    reduction_late_free: float  # … without probes
    drop_late: float  # mean EM drop of the second half; audits count as 0
    audits: int
    alarms: int
    alarm_delay: int | None  # requests from the drift to the first alarm; None: no alarm or no drift
    false_alarms: int | None  # before the drift; None: no drift
    recovery: int | None  # requests from the drift until the active level keeps the budget to the end
    loss_above_budget: float | None  # after the drift, over unaudited requests; points x requests
    course: Course


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineReport:
    set: str
    options: OnlineOptions
    n_rows: int
    n_questions: int
    seeds: tuple[Seed, ...]
    warm_up: int = 0

    @property
    def drift_at(self) -> int | None:
        return self.seeds[0].drift_at

    @property
    def too_small(self) -> bool:
        return self.n_rows < TOO_SMALL_RUNS or self.n_questions < TOO_SMALL_QUESTIONS

    @property
    def n_violations(self) -> int:
        return sum(one.drop_late > self.options.max_em_drop for one in self.seeds)

    @property
    def violations_interval(self) -> Interval:
        """Exact 95 % interval of the share of violations; only a guide, because all seeds reorder the same runs."""
        return exact_binomial(self.n_violations, len(self.seeds), 0.95)

    def known(self, field: str) -> Floats:
        values = (getattr(one, field) for one in self.seeds)
        return np.array([value for value in values if value is not None], dtype=np.float64)

    def mean(self, field: str) -> float:
        return float(self.known(field).mean())

    @property
    def alarm_delay(self) -> float | None:
        """Median requests from a drift to the first alarm, of the seeds with an alarm."""
        known = self.known("alarm_delay")
        return float(np.median(known)) if len(known) else None

    @property
    def recovery(self) -> float | None:
        """Median requests from a drift until the budget is kept for good; None if half of the seeds never recover."""
        middle = float(np.median([np.inf if one.recovery is None else one.recovery for one in self.seeds]))
        return middle if np.isfinite(middle) else None

    def plain(self) -> dict[str, object]:
        options = self.options
        n_seeds = len(self.seeds)
        ends = self.violations_interval
        fields: dict[str, object] = {
            "set": self.set,
            "max_em_drop": options.max_em_drop,
            "confidence": options.confidence,
            "seeds": n_seeds,
            "token_reduction": self.mean("reduction"),
            "token_reduction_second_half": self.mean("reduction_late"),
            "em_drop_second_half": self.mean("drop_late"),
            "violations": self.n_violations / n_seeds,
            "violations_interval": [ends.low, ends.high],
            "token_reduction_second_half_without_probes": self.mean("reduction_late_free"),
            "n_requests": self.seeds[0].n,
            "n_rows": self.n_rows,
            "n_questions": self.n_questions,
            "too_small": self.too_small,
            "resampled": options.resample is not None,
            "disjoint": options.disjoint,
            "warm_up": self.warm_up,
            "promise": options.promise,
            "audits": self.mean("audits"),
            "alarms": self.mean("alarms"),
        }
        if options.drift is not None:
            fields |= {
                "drift": options.drift.text,
                "drift_at": self.drift_at,
                "recovery_requests": self.recovery,
                "recovered": len(self.known("recovery")) / n_seeds,
                "alarm_delay_requests": self.alarm_delay,
                "alarmed": len(self.known("alarm_delay")) / n_seeds,
                "false_alarms": self.mean("false_alarms"),
                "loss_above_budget": self.mean("loss_above_budget"),
            }
        return fields


def replay_online(
    data: Survey,
    options: OnlineOptions,
    *,
    later: Survey | None = None,
    executor: Executor | None = None,
    tick: Callable[[], None] = lambda: None,
) -> OnlineReport:
    """Replay one set, or for a drift two. Raise TraceError for invalid data and ConfigError for invalid options."""
    longest = max(data.longest, later.longest if later else 0)
    if options.ramps and (options.warm_up is not None or options.promise != "certified"):
        raise ConfigError(
            "--by-share: begins without full runs and certifies; not with --warm-up or --promise budgeted"
        )
    if later is not None and later.kind != data.kind:
        kinds = f"{later.set} contains {later.kind}, {data.set} contains {data.kind}"
        raise ConfigError(f"--drift: {kinds}; both must be of one kind")
    needs, probe_tokens = FeatureSet(DENSE[data.kind]).needs, options.probe_tokens
    sets = [one for one in (data, later) if one is not None]
    traffic, n_own = read_traffic(sets, needs, probe_tokens=probe_tokens, longest=longest)
    rule = fold_version(starting_version(data.kind), among=traffic.chosen.names) if options.ramps else None
    run = partial(run_seed, options, traffic, n_own=n_own, starting=rule)
    numbers = range(options.seed, options.seed + options.n_seeds)
    seeds = list[Seed]()
    for seed in (executor or SerialExecutor()).map(run, numbers):
        seeds.append(seed)
        tick()
    return OnlineReport(
        set=data.set,
        options=options,
        n_rows=len(traffic),
        n_questions=len(set(traffic.question)),
        seeds=tuple(seeds),
        warm_up=int(stream_plan(options, traffic).warm_up),
    )


def stream_plan(options: OnlineOptions, traffic: RecordedTraffic) -> Plan:
    """The plan of a live route, with the burst that `serve` begins with."""
    burst = full_runs(options.max_em_drop)
    return Plan(
        max_em_drop=options.max_em_drop,
        confidence=options.confidence,
        label_free=options.label_free,
        label_timeout=options.label_delay[1],
        promise=options.promise,
        warm_up=0 if options.ramps else burst if options.warm_up is None else options.warm_up,
        burst=burst,
        window=window_audits(options.max_em_drop),
        share=options.audit_share,
        free_audits=not traffic.probes.any(),
        ramps=options.ramps,
    )


def run_seed(
    options: OnlineOptions,
    traffic: RecordedTraffic,
    number: int,
    *,
    n_own: int | None = None,
    starting: FoldedModels | None = None,
) -> Seed:
    rng = np.random.default_rng(number)
    drift = options.drift
    which, drift_at, learns = draw_order(
        traffic, rng, drift=drift, n_own=n_own, disjoint=options.disjoint, resample=options.resample
    )
    stream_traffic = add_times(traffic.take(which), run_time=options.run_time, label_delay=options.label_delay, rng=rng)
    truth = None
    if drift is not None and drift_at is not None:
        truth = TrueDrop(stream_traffic, drift, drift_at)
        stream_traffic = relabel(stream_traffic, drift, drift_at)
    n = len(stream_traffic)
    n_evidence = n if learns is None else int(learns.sum())
    plan = stream_plan(options, traffic)
    stream = run_stream(
        stream_traffic,
        Certifier(plan, learner_of(traffic.chosen, seed=number), starting=starting),
        rng,
        period=LOOK_PERIOD if plan.ramps else options.period,
        learns=learns,
        watch=truth.observe if truth else lambda _: None,
    )
    late = slice(n // 2 if learns is None else n_evidence, None)  # the halves of the questions differ in length
    alarms = [int(change.at) for change in stream.changes if change.kind == "alarm"]
    after = [at - drift_at for at in alarms if drift_at is not None and at >= drift_at]
    return Seed(
        n=n,
        drift_at=drift_at,
        reduction=stream.reduction(slice(None)),
        reduction_late=stream.reduction(late),
        reduction_late_free=stream.reduction(late, probes=False),
        drop_late=stream.drop(late),
        audits=int(stream.audit.sum()),
        alarms=len(alarms),
        alarm_delay=after[0] if after else None,
        false_alarms=None if drift_at is None else len(alarms) - len(after),
        recovery=truth.recovery(options.max_em_drop) if truth else None,
        loss_above_budget=truth.loss_above_budget(~stream.audit, options.max_em_drop) if truth else None,
        course=_measure_course(stream, alarms, max(1, plan.n_levels - 1)),
    )


def _measure_course(stream: Stream, alarms: list[int], top: int) -> Course:
    n = len(stream.z)
    edges = np.unique(np.linspace(0, n, min(N_BLOCKS, n) + 1).astype(int)).tolist()
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    turns = np.flatnonzero(np.diff(stream.burst.astype(np.int8), prepend=0, append=0)).tolist()
    return Course(
        requests=tuple(part.stop for part in parts),
        level=tuple(float(stream.level[part].mean()) / top for part in parts),
        reduction=tuple(stream.reduction(part) for part in parts),
        drop=tuple(stream.drop(part) for part in parts),
        audits=tuple(float(stream.audit[part].mean()) for part in parts),
        alarms=tuple(alarms),
        bursts=tuple(zip(turns[::2], turns[1::2], strict=True)),
    )


class TrueDrop:
    """The expected EM drop of each request after a drift at its active level; the loop cannot see it."""

    def __init__(self, traffic: RecordedTraffic, drift: Drift, drift_at: int) -> None:
        losing = losing_share(drift, drift_at, len(traffic))
        if drift.kind == "turns":  # a conversation has all turns, so use their mean
            losing = np.full(len(traffic), losing.mean())
        if drift.kind == "relabel":
            traffic = relabel(traffic, drift, drift_at)
        late = np.arange(drift_at, len(traffic))
        self._runs = traffic.runs.take(late[:: max(1, len(late) // MOST_JUDGED)])
        self._losing = losing
        self._served: FoldedModels | None = None  # until the next evaluation, at `_level`
        self._level = 0
        self._drops: tuple[float, float] | None = 0.0, 0.0  # of this level: recorded, and if all stops lose
        self._at = self._until = drift_at
        self.drop = np.zeros(len(traffic))  # (N,): 0 before the drift

    def observe(self, certifier: Certifier) -> None:
        now = int(certifier.now)
        if now > self._until:
            self.drop[self._until : now] = self._measure_drop(self._losing[self._until : now])
            self._until = now
        if certifier.served is not self._served or certifier.level != self._level:
            self._served = certifier.served
            self._level = certifier.level
            self._drops = None

    def _measure_drop(self, losing: Floats) -> Floats:
        if self._drops is None:
            self._drops = 0.0, 0.0
            if self._served is not None and self._level:
                rows = self._served.rows_at(self._runs, self._level)
                self._drops = float(self._runs.z[rows].mean()), float((rows < self._runs.last).mean())
        clean, lost = self._drops
        return clean + losing * (lost - clean)

    def recovery(self, max_em_drop: float) -> int | None:
        """Requests until the active level keeps the budget to the end; None: never."""
        if self._measure_drop(self._losing[-1:]).max(initial=0.0) > max_em_drop:
            return None
        broken = np.flatnonzero(self.drop > max_em_drop)
        return int(broken[-1]) + 1 - self._at if len(broken) else 0

    def loss_above_budget(self, served: Bools, max_em_drop: float) -> float:
        return float(100 * np.maximum(0.0, self.drop[served] - max_em_drop).sum())


# ---- the report

_HEADS: Final = ("set", "requests", "saved %", "late %", "no probes", "late drop", "over budget", "audits", "alarms")


def print_online(reports: Sequence[OnlineReport], console: Console) -> None:
    from rich.text import Text

    first = reports[0]
    table = build_table(_HEADS)
    for one in reports:
        ends = one.violations_interval
        low, high = describe_percent(ends.low, 0), describe_percent(ends.high, 0)
        table.add_row(
            Text(printable(one.set)),
            f"{one.seeds[0].n:,}",
            describe_percent(one.mean("reduction")),
            describe_percent(one.mean("reduction_late")),
            describe_percent(one.mean("reduction_late_free")),
            f"{100 * one.mean('drop_late'):+.2f}".replace("-", "\u2212"),
            f"{one.n_violations}/{len(one.seeds)} ({low}\u2013{high} %)",
            f"{one.mean('audits'):,.0f}",
            f"{one.mean('alarms'):.2f}",
        )
    budget = f"{format_budget(first)} of EM, {describe_confidence(first)}"
    console.print(Text(f"As traffic, from a cold start: {budget}, {plural(len(first.seeds), 'seed')}", style="bold"))
    console.print(table)
    for one in reports:
        for note in describe_notes(one):
            console.print(Text(note, style="yellow"))
    console.print(
        Text(
            "late: the second half of the stream, audits and probes paid. late drop: points of EM, audits as 0."
            " over budget: seeds whose late drop exceeds the budget, with the exact 95 % interval of that share.",
            style="dim",
        )
    )


def format_budget(report: OnlineReport) -> str:
    points = f"{100 * report.options.max_em_drop:g}"
    return f"at most {points} point{'' if points == '1' else 's'}"


def describe_confidence(report: OnlineReport) -> str:
    if report.options.promise == "budgeted":
        return "on average, without a confidence (budgeted mode)"
    return f"{100 * report.options.confidence:g} % sure"


def describe_notes(report: OnlineReport) -> list[str]:
    options, notes = report.options, []
    if report.too_small:
        size = f"{report.n_rows:,} runs of {report.n_questions} questions"
        notes.append(f"too small to certify: {size}; certificates begin at 1,000 runs and 50 questions")
    if options.resample is not None:
        notes.append(f"resampled: requests were drawn with replacement from {report.n_rows:,} runs")
    if options.disjoint:
        notes.append("disjoint: fitted and certified on one half of the questions, the late half is the other")
    if options.drift is not None:
        notes.append(_describe_drift(report, options.drift))
    return [f"{printable(report.set)}: {note}" for note in notes]


def _describe_drift(report: OnlineReport, drift: Drift) -> str:
    delay, recovery = report.alarm_delay, report.recovery
    alarms = f"alarm in {len(report.known('alarm_delay'))} of {len(report.seeds)} seeds"
    alarms += "" if delay is None else f", {delay:,.0f} requests after it (median)"
    back = f"{len(report.known('recovery'))} returned to the budget permanently"
    back += "" if recovery is None else f", after {recovery:,.0f} requests (median)"
    return (
        f"drift {printable(drift.text)} at request {report.drift_at or 0:,}: {alarms}; {back};"
        f" {report.mean('loss_above_budget'):,.0f} points x requests lost above the budget,"
        f" {report.mean('false_alarms'):.2f} false alarms before it (means)"
    )


def write_courses(reports: Sequence[OnlineReport], folder: Path) -> list[Path]:
    """Draw the course of each set into `SET.online.png` and `.svg`. Raise ConfigError without matplotlib."""
    written = []
    for report in reports:
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in report.set)
        written += _draw_course(report).write(folder, f"{name}.online")
    return written


def _draw_course(report: OnlineReport) -> PlotFiles:
    courses, target = [seed.course for seed in report.seeds], 100 * report.options.max_em_drop
    n_blocks = min(len(course.requests) for course in courses)  # short streams of a mixed drift differ in length
    x = np.array(courses[0].requests[:n_blocks])
    with open_figure(f"course {report.set}", (9, 7.6)) as figure:
        panels = figure.subplots(3, 1, sharex=True)
        for axes, name, title, scale in (
            (panels[0], "level", "active level, as a fraction of the most aggressive", 1.0),
            (panels[1], "reduction", "tokens saved, %", 100.0),
            (panels[2], "drop", "EM drop, points (mean of seeds)", 100.0),
        ):
            values = scale * np.array([getattr(course, name)[:n_blocks] for course in courses])
            smooth = np.array([_smooth(row) for row in values])
            if name != "drop":
                low, high = np.quantile(smooth, [0.1, 0.9], axis=0)
                axes.fill_between(x, low, high, color=COLOURS["ours"], alpha=0.15, linewidth=0)
            axes.plot(x, smooth.mean(axis=0), color=COLOURS["ours"])
            axes.set_title(title, loc="left", fontsize=10)
            axes.grid(visible=True)
            _draw_marks(axes, courses[0], report.drift_at)
        panels[2].axhline(target, color=INK, linestyle="--", linewidth=1)
        panels[2].margins(y=0.15)  # room for the label
        panels[2].annotate("budget", (x[-1], target), ha="right", va="bottom", fontsize=9)
        panels[2].set_xlabel(
            f"requests; band: 10 to 90 % of {len(courses)} seeds; first seed: grey full runs, dotted alarms, line drift"
        )
        drift = report.options.drift
        drifted = "" if drift is None else f"\n{fill(_describe_drift(report, drift), 120)}"
        title = f"{printable(report.set)}: {format_budget(report)}, {describe_confidence(report)}{drifted}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10 if drifted else None)
        return render_figure(figure)


def _draw_marks(axes: Any, course: Course, drift_at: int | None) -> None:
    for begin, end in course.bursts:
        axes.axvspan(begin, end, color=FAINT, alpha=0.25, linewidth=0)
    for at in course.alarms:
        axes.axvline(at, color=COLOURS["oracle"], linestyle=":", linewidth=1.4)
    if drift_at is not None:
        axes.axvline(drift_at, color=INK, linewidth=1)


def _smooth(values: Floats) -> Floats:
    weights = np.ones(min(SMOOTH, len(values)))
    return np.asarray(np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same"))
