"""Runs the control loop over recorded runs as traffic, once per seed, and reports the results."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import fill
from typing import Any, Final

import numpy as np
from rich.console import Console
from rich.text import Text

from suffice.assurance.bounds import Interval, exact_binomial
from suffice.assurance.windows import window_audits
from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.files import whole_file
from suffice.learn.audits import Bools, Floats
from suffice.learn.certifier import Certifier, Plan, full_runs
from suffice.learn.features import DENSE
from suffice.learn.version import FoldedModels
from suffice.replay.online.drift import Drift, draw_order, losing_share, relabel, split_regimes
from suffice.replay.online.stream import (
    PERIOD,
    RecordedTraffic,
    Stream,
    add_times,
    learner_of,
    make_traffic,
    run_stream,
)
from suffice.replay.report.plot import COLOURS, FAINT, INK
from suffice.replay.report.text import build_table, describe_percent
from suffice.replay.study.runs import concatenate, read_runs
from suffice.replay.study.sets import TOO_SMALL_QUESTIONS, TOO_SMALL_RUNS
from suffice.replay.traces.read import Survey
from suffice.sanitize import plural, printable
from suffice.signals.features import FeatureSet
from suffice.types import Promise


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """One stream over time, in blocks of requests; each tuple has one number per block."""

    requests: tuple[int, ...]  # cumulative, at the end of the block
    level: tuple[float, ...]  # mean active level, as a fraction of the most aggressive one
    reduction: tuple[float, ...]  # of tokens
    drop: tuple[float, ...]  # mean EM drop
    audits: tuple[float, ...]  # audited share
    alarms: tuple[tuple[int, str], ...]  # request, reason
    bursts: tuple[tuple[int, int], ...]  # first request, end


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    seed: int
    n: int
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
    max_em_drop: float
    confidence: float
    n_rows: int
    n_questions: int
    seeds: tuple[Seed, ...]
    resampled: bool = False
    disjoint: bool = False
    drift: str | None = None
    drift_at: int | None = None  # request
    warm_up: int = 0
    promise: Promise = "certified"

    @property
    def too_small(self) -> bool:
        return self.n_rows < TOO_SMALL_RUNS or self.n_questions < TOO_SMALL_QUESTIONS

    @property
    def n_violations(self) -> int:
        return sum(one.drop_late > self.max_em_drop for one in self.seeds)

    @property
    def violations_interval(self) -> Interval:
        """Exact 95 % interval of the share of violations; only a guide, because all seeds reorder the same runs."""
        return exact_binomial(self.n_violations, len(self.seeds), 0.95)

    def mean(self, field: str) -> float:
        return float(self.values(field).mean())

    def values(self, field: str) -> Floats:
        known = [getattr(one, field) for one in self.seeds if getattr(one, field) is not None]
        return np.array(known, dtype=np.float64)

    def median(self, field: str) -> float | None:
        known = self.values(field)
        return float(np.median(known)) if len(known) else None

    @property
    def recovery(self) -> float | None:
        """Median requests from a drift until the budget is kept for good; None if half of the seeds never recover."""
        middle = float(np.median([np.inf if one.recovery is None else one.recovery for one in self.seeds]))
        return middle if np.isfinite(middle) else None

    def mean_known(self, field: str) -> float | None:
        known = self.values(field)
        return float(known.mean()) if len(known) else None

    def plain(self) -> dict[str, object]:
        ends = self.violations_interval
        fields: dict[str, object] = {
            "set": self.set,
            "max_em_drop": self.max_em_drop,
            "confidence": self.confidence,
            "seeds": len(self.seeds),
            "token_reduction": self.mean("reduction"),
            "token_reduction_second_half": self.mean("reduction_late"),
            "em_drop_second_half": self.mean("drop_late"),
            "violations": self.n_violations / len(self.seeds),
            "violations_interval": [ends.low, ends.high],
            "token_reduction_second_half_without_probes": self.mean("reduction_late_free"),
            "n_requests": self.seeds[0].n,
            "n_rows": self.n_rows,
            "n_questions": self.n_questions,
            "too_small": self.too_small,
            "resampled": self.resampled,
            "disjoint": self.disjoint,
            "warm_up": self.warm_up,
            "promise": self.promise,
            "audits": self.mean("audits"),
            "alarms": self.mean("alarms"),
        }
        if self.drift is not None:
            fields |= {
                "drift": self.drift,
                "drift_at": self.drift_at,
                "recovery_requests": self.recovery,
                "recovered": len(self.values("recovery")) / len(self.seeds),
                "alarm_delay_requests": self.median("alarm_delay"),
                "alarmed": len(self.values("alarm_delay")) / len(self.seeds),
                "false_alarms": self.mean_known("false_alarms"),
                "loss_above_budget": self.mean_known("loss_above_budget"),
            }
        return fields


_HEADS: Final = ("set", "requests", "saved %", "late %", "no probes", "late drop", "over budget", "audits", "alarms")
SMOOTH: Final = 5  # blocks in the moving average of the course


def print_online(reports: Sequence[OnlineReport], console: Console) -> None:
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
    points = f"{100 * report.max_em_drop:g}"
    return f"at most {points} point{'' if points == '1' else 's'}"


def describe_confidence(report: OnlineReport) -> str:
    if report.promise == "budgeted":
        return "on average, without a confidence (budgeted mode)"
    return f"{100 * report.confidence:g} % sure"


def describe_notes(report: OnlineReport) -> list[str]:
    size = f"{report.n_rows:,} runs of {report.n_questions} questions"
    notes = (
        (report.too_small, f"too small to certify: {size}; certificates begin at 1,000 runs and 50 questions"),
        (report.resampled, f"resampled: requests were drawn with replacement from {report.n_rows:,} runs"),
        (report.disjoint, "disjoint: fitted and certified on one half of the questions, the late half is the other"),
        (report.drift is not None, _describe_drift(report)),
    )
    return [f"{printable(report.set)}: {note}" for applies, note in notes if applies]


def _describe_drift(report: OnlineReport) -> str:
    n, alarmed = len(report.seeds), len(report.values("alarm_delay"))
    delay, recovery = report.median("alarm_delay"), report.recovery
    alarms = f"alarm in {alarmed} of {n} seeds"
    alarms += "" if delay is None else f", {delay:,.0f} requests after it (median)"
    back = f"{len(report.values('recovery'))} returned to the budget permanently"
    back += "" if recovery is None else f", after {recovery:,.0f} requests (median)"
    return (
        f"drift {printable(report.drift or '')} at request {report.drift_at or 0:,}: {alarms}; {back};"
        f" {report.mean_known('loss_above_budget') or 0:,.0f} points x requests lost above the budget,"
        f" {report.mean_known('false_alarms') or 0:.2f} false alarms before it (means)"
    )


def write_courses(reports: Sequence[OnlineReport], folder: Path) -> list[Path]:
    """Draw the course of each set into `SET.online.png` and `.svg`. Raise ConfigError without matplotlib."""
    try:
        import matplotlib as mpl

        mpl.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise ConfigError(f"replay: figures need matplotlib: {how_to_install('replay')}; or pass --no-report") from None
    written = []
    for report in reports:
        figure = _draw_course(report, pyplot)
        for suffix in ("png", "svg"):
            path = folder / f"{''.join(c if c.isalnum() or c in '-_' else '-' for c in report.set)}.online.{suffix}"
            with whole_file(path) as part:
                figure.savefig(part, format=suffix, dpi=144, metadata={"Date": None} if suffix == "svg" else None)
            written.append(path)
        pyplot.close(figure)
    return written


def _draw_course(report: OnlineReport, pyplot: Any) -> Any:
    figure, panels = pyplot.subplots(3, 1, figsize=(9, 7.6), sharex=True, layout="constrained")
    courses = [seed.course for seed in report.seeds]
    n_blocks = min(len(course.requests) for course in courses)  # short streams of a mixed drift differ in length
    x = np.array(courses[0].requests[:n_blocks])
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
        axes.grid(visible=True, color=FAINT, alpha=0.25)
        _draw_marks(axes, courses[0], report)
    panels[2].axhline(100 * report.max_em_drop, color=INK, linestyle="--", linewidth=1)
    panels[2].margins(y=0.15)  # room for the label
    panels[2].annotate("budget", (x[-1], 100 * report.max_em_drop), ha="right", va="bottom", fontsize=9)
    panels[2].set_xlabel(
        f"requests; band: 10 to 90 % of {len(courses)} seeds; first seed: grey full runs, dotted alarms, line drift"
    )
    budget = f"{format_budget(report)}, {describe_confidence(report)}"
    drifted = "" if report.drift is None else f"\n{fill(_describe_drift(report), 120)}"
    figure.suptitle(f"{report.set}: {budget}{drifted}", x=0.01, ha="left", fontsize=10 if drifted else None)
    return figure


def _draw_marks(axes: Any, course: Course, report: OnlineReport) -> None:
    for begin, end in course.bursts:
        axes.axvspan(begin, end, color=FAINT, alpha=0.25, linewidth=0)
    for at, _ in course.alarms:
        axes.axvline(at, color=COLOURS["oracle"], linestyle=":", linewidth=1.4)
    if report.drift_at is not None:
        axes.axvline(report.drift_at, color=INK, linewidth=1)


def _smooth(values: Floats) -> Floats:
    weights = np.ones(min(SMOOTH, len(values)))
    return np.asarray(np.convolve(values, weights, "same") / np.convolve(np.ones(len(values)), weights, "same"))


N_BLOCKS: Final = 60  # in a course
MOST_JUDGED: Final = 2_000  # requests after a drift that measure the loss of a level


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineOptions:
    max_em_drop: float = 0.02
    confidence: float = 0.95
    n_seeds: int = 20
    warm_up: int | None = None
    run_time: int = 0  # mean duration of a full run, in arriving requests
    label_delay: int = 0  # arriving requests between the end of a run and its label, at least …
    label_delay_most: int | None = None  # … and at most; None: constant
    audit_share: float = 0.05  # after the warm-up
    resample: int | None = None  # requests to draw by question-level bootstrap
    disjoint: bool = False  # evidence from one half of the questions, results from the other
    drift: Drift | None = None
    probe_tokens: int | None = None
    label_free: bool = False
    promise: Promise = "certified"
    period: int = PERIOD
    seed: int = 0
    n_processes: int = field(default_factory=lambda: os.cpu_count() or 1)


def replay_online(
    data: Survey, options: OnlineOptions, *, later: Survey | None = None, tick: Callable[[], None] = lambda: None
) -> OnlineReport:
    """Replay one set, or for a drift two. Raise TraceError for invalid data and ConfigError for invalid options."""
    longest = max(data.longest, later.longest if later else 0)
    if later is not None and later.kind != data.kind:
        kinds = f"{later.set} contains {later.kind}, {data.set} contains {data.kind}"
        raise ConfigError(f"--drift: {kinds}; both must be of one kind")
    needs, probe_tokens = FeatureSet(DENSE[data.kind]).needs, options.probe_tokens
    sets = [one for one in (data, later) if one is not None]
    parts = [read_runs(one, needs, probe_tokens=probe_tokens, longest=longest) for one in sets]
    traffic = make_traffic(concatenate(parts))
    from_file = np.arange(len(traffic)) >= len(parts[0])
    job = _Job(options, traffic, None if options.drift is None else split_regimes(traffic, options.drift, from_file))
    seeds = range(options.seed, options.seed + options.n_seeds)
    outcomes, n_processes = [], min(options.n_processes, options.n_seeds)
    with ProcessPoolExecutor(n_processes) if n_processes > 1 else nullcontext() as pool:
        for outcome in map(job.run, seeds) if pool is None else pool.map(job.run, seeds):
            outcomes.append(outcome)
            tick()
    return OnlineReport(
        set=data.set,
        max_em_drop=options.max_em_drop,
        confidence=options.confidence,
        n_rows=len(traffic),
        n_questions=len(set(traffic.question)),
        seeds=tuple(seed for seed, _ in outcomes),
        resampled=options.resample is not None,
        disjoint=options.disjoint,
        drift=options.drift.text if options.drift else None,
        drift_at=outcomes[0][1],
        warm_up=int(job.plan(outcomes[0][0].n).warm_up),
        promise=options.promise,
    )


def stream_plan(options: OnlineOptions, traffic: RecordedTraffic, n: int) -> Plan:
    burst = full_runs(options.max_em_drop, n)
    return Plan(
        max_em_drop=options.max_em_drop,
        confidence=options.confidence,
        label_free=options.label_free,
        promise=options.promise,
        warm_up=burst if options.warm_up is None else options.warm_up,
        burst=burst,
        window=window_audits(options.max_em_drop),
        share=options.audit_share,
        free_audits=not traffic.probes.any(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    options: OnlineOptions
    traffic: RecordedTraffic
    regimes: tuple[Bools, Bools] | None

    @property
    def label_delay(self) -> tuple[int, int]:
        least, most = self.options.label_delay, self.options.label_delay_most
        return least, least if most is None else most

    def plan(self, n: int, n_evidence: int | None = None) -> Plan:
        """The plan for n requests; only audits of the first `n_evidence` are evidence."""
        plan = stream_plan(self.options, self.traffic, n if n_evidence is None else n_evidence)
        return replace(plan, label_timeout=self.label_delay[1])

    def run(self, seed: int) -> tuple[Seed, int | None]:
        rng = np.random.default_rng(seed)
        options = self.options
        which, drift_at, learns = draw_order(
            self.traffic,
            rng,
            drift=options.drift,
            regimes=self.regimes,
            disjoint=options.disjoint,
            resample=options.resample,
        )
        traffic = add_times(self.traffic.take(which), run_time=options.run_time, label_delay=self.label_delay, rng=rng)
        truth = None
        if options.drift is not None and drift_at is not None:
            truth = _TrueDrop.of(traffic, options.drift, drift_at)
            traffic = relabel(traffic, options.drift, drift_at)
        n_evidence = None if learns is None else int(learns.sum())
        plan = self.plan(len(traffic), n_evidence)
        stream = run_stream(
            traffic,
            Certifier(plan, learner_of(traffic.chosen, seed=seed)),
            rng,
            period=options.period,
            learns=learns,
            watch=truth.observe if truth else lambda _: None,
        )
        late = len(traffic) // 2 if n_evidence is None else n_evidence  # the halves of the questions differ in length
        return _summarise(seed, stream, late, drift_at, truth, plan), drift_at


class _TrueDrop:
    """The expected EM drop of each request after a drift at its active level; the loop cannot see it."""

    def __init__(self, traffic: RecordedTraffic, drift_at: int, losing: Floats | None = None) -> None:
        late = np.arange(drift_at, len(traffic))
        self._runs = traffic.runs.take(late[:: max(1, len(late) // MOST_JUDGED)])
        self._losing = np.zeros(len(traffic)) if losing is None else losing
        self._met: tuple[FoldedModels | None, int] = (None, 0)  # served until the next evaluation
        self._judged: tuple[FoldedModels | None, int] = self._met
        self._drops = 0.0, 0.0  # of `_judged`
        self._at = self._until = drift_at
        self.drop = np.zeros(len(traffic))  # (N,): 0 before the drift

    @classmethod
    def of(cls, traffic: RecordedTraffic, drift: Drift, at: int) -> _TrueDrop:
        losing = losing_share(drift, at, len(traffic))
        if drift.kind == "turns":  # a conversation has all turns, so use their mean
            losing = np.full(len(traffic), losing.mean())
        return cls(relabel(traffic, drift, at) if drift.kind == "relabel" else traffic, at, losing)

    def observe(self, certifier: Certifier) -> None:
        now = int(certifier.now)
        if now > self._until:
            self.drop[self._until : now] = self._measure_drop(self._losing[self._until : now])
            self._until = now
        self._met = certifier.served, certifier.level

    def _measure_drop(self, losing: Floats) -> Floats:
        if self._met != self._judged:
            self._judged, self._drops = self._met, (0.0, 0.0)
            served, level = self._met
            if served is not None and level:
                rows = served.rows_at(self._runs, level)
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


def _summarise(
    seed: int, stream: Stream, late_from: int, drift_at: int | None, truth: _TrueDrop | None, plan: Plan
) -> Seed:
    n, late = len(stream.z), slice(late_from, None)
    alarms = [(int(change.at), change.reason) for change in stream.changes if change.kind == "alarm"]
    after = [at - drift_at for at, _ in alarms if drift_at is not None and at >= drift_at]
    return Seed(
        seed=seed,
        n=n,
        reduction=stream.reduction(slice(None)),
        reduction_late=stream.reduction(late),
        reduction_late_free=stream.reduction(late, probes=False),
        drop_late=stream.drop(late),
        audits=int(stream.audit.sum()),
        alarms=len(alarms),
        alarm_delay=after[0] if after else None,
        false_alarms=None if drift_at is None else len(alarms) - len(after),
        recovery=truth.recovery(plan.max_em_drop) if truth else None,
        loss_above_budget=truth.loss_above_budget(~stream.audit, plan.max_em_drop) if truth else None,
        course=_measure_course(stream, alarms, max(1, plan.n_levels - 1)),
    )


def _measure_course(stream: Stream, alarms: list[tuple[int, str]], top: int) -> Course:
    n = len(stream.z)
    edges = np.unique(np.linspace(0, n, min(N_BLOCKS, n) + 1).astype(int)).tolist()
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    turns = np.flatnonzero(np.diff(np.concatenate([[0], stream.burst.astype(np.int8), [0]])))
    return Course(
        requests=tuple(part.stop for part in parts),
        level=tuple(float(stream.level[part].mean()) / top for part in parts),
        reduction=tuple(stream.reduction(part) for part in parts),
        drop=tuple(stream.drop(part) for part in parts),
        audits=tuple(float(stream.audit[part].mean()) for part in parts),
        alarms=tuple(alarms),
        bursts=tuple((int(a), int(b)) for a, b in zip(turns[::2], turns[1::2], strict=True)),
    )
