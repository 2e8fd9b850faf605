"""What a log that keeps a tenth of its requests still estimates, and what it costs: simulated traffic with known truth.

    python -m bench.claims.sampling [--seeds 200] [--requests 10000] [--cost-requests 20000] [--jobs 2]

Each cell is one log, written and read by the live code: the gateway's log and sampling of rows, SQLite, the jobs
`sampling` and `rollup`, `assurance.estimate`, and the console's bands. The route acts and audits 5 % of its requests.
Five classes of unequal size differ in length, saving and EM, and stopping costs EM in some. Steps are those of bundled
runs, so rows have a realistic size. Every audit and a fifth of the live runs are labelled; costs are also reported for
a twentieth, because labels are never sampled out. Class rates change after every thousand requests.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import exp
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from tests.assurance.reports import estimate_route

from suffice.assurance.bounds import exact_binomial, wilson
from suffice.assurance.estimate import IntervalEstimate, RouteReport
from suffice.control.jobs.base import Worker
from suffice.control.jobs.proposals import SamplingJob
from suffice.control.jobs.upkeep import Rollup
from suffice.edge.math import open_match
from suffice.episode.ledger import Ledger
from suffice.executor import build_executor
from suffice.gateway import lifecycle
from suffice.gateway.clients import KeyLimits
from suffice.gateway.context import GatewayState, LogSampler
from suffice.gateway.load_control import LoadControl
from suffice.replay.traces.read import own_traces
from suffice.rollout.assign import AuditAssignment, assign_audit
from suffice.settings import Route, SamplingSettings, Settings, Store
from suffice.store.database.decisions import Decisions
from suffice.store.database.views import EpisodeWithLabels, counted_cells, newest_event, open_reader, read_episodes
from suffice.store.database.writer import LogWriter
from suffice.store.routes import rollups
from suffice.store.rows.events import FeedbackEvent, RowRates
from suffice.store.rows.sums import NO_SUMS
from suffice.telemetry import Metrics
from suffice.types import Feedback, Outcome, Query, Request, StepRecord, Usage

STEP = 1_000  # requests between two rounds of the jobs
AUDITS = 0.05
RATE = 0.10
LABELLED = 0.2  # of live runs; of audits all
STOPS = 0.9  # of live runs, in every class
ROUTE = "r"


@dataclass(frozen=True, slots=True)
class Kind:
    """What questions of one class are like."""

    name: str
    share: float
    tokens: float  # mean of a full run
    spread: float  # sd of its logarithm
    kept: float  # part of a run's tokens that a stop leaves
    em_full: float
    lost: float  # EM that a stop costs


KINDS = (
    Kind("arithmetic", 0.50, 400, 0.3, 0.50, 0.95, 0.00),
    Kind("reading", 0.25, 700, 0.4, 0.60, 0.85, 0.01),
    Kind("law", 0.15, 1_500, 0.5, 0.70, 0.70, 0.02),
    Kind("proofs", 0.07, 3_000, 0.6, 0.45, 0.50, 0.05),
    Kind("planning", 0.03, 5_000, 0.6, 0.80, 0.35, 0.00),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What the estimates are after, of all traffic."""

    em_full: float = sum(one.share * one.em_full for one in KINDS)
    em_live: float = sum(one.share * (one.em_full - STOPS * one.lost) for one in KINDS)
    em_stopped: float = sum(one.share * (one.em_full - one.lost) for one in KINDS)
    saving: float = 1 - (
        sum(one.share * one.tokens * (1 - STOPS + STOPS * one.kept) for one in KINDS)
        / sum(one.share * one.tokens for one in KINDS)
    )

    @property
    def overall(self) -> float:
        """The saving with audits paid."""
        return (1 - AUDITS) * self.saving


TRUTH = Truth()
Asked = tuple[Request, Outcome, FeedbackEvent | None]
Read = tuple[float, float, float, float]  # value, low, high, truth


@lru_cache(maxsize=1)
def recorded() -> list[tuple[StepRecord, ...]]:
    """The steps of the runs that the package brings, as the log keeps them."""
    with gzip.open(own_traces("reasoning"), "rt", encoding="utf-8") as file:
        return [tuple(_as_kept(at, step) for at, step in enumerate(json.loads(line)["steps"], 1)) for line in file]


def _as_kept(index: int, step: Mapping[str, Any]) -> StepRecord:
    return StepRecord(
        index=index,
        tokens=step["tokens"],
        answer=step["answer"],
        answer_source="probe",
        confidence=0.9731,
        entropy=step.get("entropy"),
        probe_tokens=step.get("probe_tokens", 0),
        action="continue",
        reason=f"answer stable for {index} steps",
        logprobs=tuple(step.get("logprobs", ())),
        hedges=step.get("hedges"),
        logprob=step.get("logprob"),
        margin=step.get("margin"),
        closed_entropy=step.get("closed_entropy"),
    )


def traffic(n: int, seed: int, *, labelled: float = LABELLED) -> Iterator[Asked]:
    """Requests in their order, as a gateway has them, with how they end and what is said of them."""
    rng = np.random.default_rng(seed)
    of = rng.choice(len(KINDS), size=n, p=[one.share for one in KINDS])
    normal, stop, right, said = rng.normal(size=n), rng.random(n), rng.random(n), rng.random(n)
    runs = recorded()
    for number in range(n):
        kind, name = KINDS[of[number]], f"ep_{seed:05}{number:018}"
        lot = assign_audit(name, share=AUDITS, salt="bench", at_s=0.0)
        full = kind.tokens * exp(kind.spread * normal[number] - kind.spread**2 / 2)
        stopped = bool(not lot.audit and stop[number] < STOPS)
        is_right = bool(right[number] < kind.em_full - (kind.lost if stopped else 0.0))
        label = Feedback(feedback_id=f"fb_{name}", episode_id=name, correct=is_right, source="exact-match")
        yield (
            _request(name, number, kind, lot),
            _outcome(name, kind, runs[number % len(runs)], full=full, stopped=stopped),
            FeedbackEvent(label) if lot.audit or said[number] < labelled else None,
        )


def _request(name: str, number: int, kind: Kind, lot: AuditAssignment) -> Request:
    return Request(
        episode_id=name,
        route=ROUTE,
        kind="reasoning",
        mode="enforce",
        model="qwen3-8b",
        stream=True,
        n_samples=1,
        audit=lot.audit,
        propensity=lot.propensity,
        policy_version="confidence-threshold-1a2b3c4d5e6f@12",
        certified=True,
        question_key=f"{number:016x}",
        ungoverned=None,
        received_at_s=1.7e9 + number / 10,
        query=Query(
            query_class=kind.name,
            n_chars=412,
            n_words=77,
            n_numbers=4,
            n_operators=1,
            question_type="number",
            script="latin",
        ),
        unit=lot.unit,
        setup="5f2d9c31",
    )


def _outcome(name: str, kind: Kind, steps: tuple[StepRecord, ...], *, full: float, stopped: bool) -> Outcome:
    """How a run ends whose full length is so many tokens and whose steps are these."""
    spent = max(1, round(full * (kind.kept if stopped else 1.0)))
    steps = steps[: len(steps) // 2 + 1] if stopped else steps
    return Outcome(
        episode_id=name,
        end_reason="stopped" if stopped else "done",
        status=200,
        answer="34",
        response_id=f"chatcmpl-{name}",
        stopped=stopped,
        stop_reason="suffices" if stopped else None,
        usage=Usage(prompt_tokens=269, completion_tokens=spent, reasoning_tokens=spent),
        stop_step=len(steps) if stopped else None,
        would_answer="34" if stopped else None,
        decision="p_correct 0.972 reached 0.95",
        tokens_saved_estimate=round(full) - spent if stopped else None,
        estimate_method="mean of 412 full runs of this route that thought longer" if stopped else None,
        steps=steps,
        duration_s=spent / 90,
        ttft_s=0.31,
        model="qwen3-8b",
        system_fingerprint="fp_44709d6fcb",
    )


@dataclass(slots=True, kw_only=True)
class Cost:
    """CPU seconds of all threads, and the log's bytes."""

    record_s: float = 0.0
    labels_s: float = 0.0
    sums_s: float = 0.0
    estimate_s: float = 0.0
    n_bytes: int = 0
    n_rows: int = 0

    @contextmanager
    def spent_on(self, part: str) -> Iterator[None]:
        """Add what the block takes to one of the fields above."""
        before = time.process_time()
        yield
        setattr(self, part, getattr(self, part) + time.process_time() - before)

    @property
    def cpu_s(self) -> float:
        """All of it."""
        return self.record_s + self.labels_s + self.sums_s + self.estimate_s


@dataclass(slots=True)
class Measured:
    """What one log says, and what it cost."""

    seed: int
    report: RouteReport
    blind: RouteReport  # the same rows, as if each stood for itself
    bands: dict[str, Read]  # of the console
    cost: Cost = field(default_factory=Cost)
    rates: dict[str, float] = field(default_factory=dict)

    def reads(self, report: RouteReport) -> dict[str, Read]:
        """Each estimate beside the truth."""
        told = report.measured
        pairs: tuple[tuple[str, IntervalEstimate | None, float], ...] = (
            ("EM, full runs", told.em_full, TRUTH.em_full),
            ("EM, live runs", told.em_live, TRUTH.em_live),
            ("EM, stopped runs", told.em_stopped, TRUTH.em_stopped),
            ("saving", told.saving, TRUTH.overall),
        )
        return {
            name: (one.value, one.low, one.high, truth)
            for name, one, truth in pairs
            if one is not None and one.low is not None and one.high is not None
        }


def log_of(
    seed: int,
    n: int,
    rate: float,
    folder: Path,
    *,
    blind: bool = True,
    labelled: float = LABELLED,
) -> Measured:
    """Write a log and read it."""
    database, clock = folder / "log.db", SimpleNamespace(now_s=1.7e9)
    settings = _settings(database, rate)
    now: Callable[[], float] = lambda: clock.now_s
    log, cost = LogWriter(settings.store, now=now), Cost()
    sampling = LogSampler(settings=settings, salt="bench")
    gw = _gateway(log, sampling, now)
    with closing(log), Decisions(database, now=now, monotonic_s=now) as writer:
        common: dict[str, Any] = {"settings": settings, "path": database, "matches": open_match, "monotonic_s": now}
        jobs = (Rollup(now=now, **common), SamplingJob(author="bench", **common))
        worker = Worker(
            decisions=writer, jobs=jobs, author="bench", now=now, monotonic_s=now, new_id=lambda: f"jr_{clock.now_s}"
        )
        requests = traffic(n, seed, labelled=labelled)
        for _ in range(0, n, STEP):
            chunk = [one for _, one in zip(range(STEP), requests, strict=False)]
            with cost.spent_on("record_s"):
                _write(gw, chunk, clock)
            with cost.spent_on("labels_s"):
                _label(gw, chunk)
            with cost.spent_on("sums_s"):
                worker.round()
            found = newest_event(database, RowRates, route=ROUTE)
            sampling.rates = {} if found is None else {ROUTE: found}
        lifecycle.write_counts(gw, all_of_them=True)
        assert log.drain(30)
        clock.now_s += 60
        worker.round()
        for job in jobs:
            job.close()
    with cost.spent_on("estimate_s"):
        report = _report(database, read_episodes(database, ROUTE))
    cost.n_bytes = sum(path.stat().st_size for path in folder.glob("log.db*"))
    with open_reader(database) as connection:
        cost.n_rows = int(connection.execute("SELECT count(*) FROM events").fetchone()[0])
        sums = rollups.read_rollups(connection, ()).get((), NO_SUMS)
    assert sums.n_requests == n == report.n_requests, "counts are exact"
    right, marked = sums.stopped_marks
    between = wilson(right, marked, 0.95)
    return Measured(
        seed=seed,
        report=report,
        cost=cost,
        blind=_report(database, map(_alone, read_episodes(database, ROUTE))) if blind else report,
        bands={"EM, stopped runs (the console's band)": (right / marked, between.low, between.high, TRUTH.em_stopped)},
        rates={} if found is None else dict(found.after),
    )


def _settings(database: Path, rate: float) -> Settings:
    route = Route(mode="enforce", audit_share=AUDITS, policy={"policy": "confidence-threshold"}, uncertified=True)
    return Settings(
        routes={ROUTE: route},
        monitoring=SamplingSettings(sample_rate=rate),
        store=Store(url=f"sqlite:///{database}"),
    )


def _gateway(log: LogWriter, sampling: LogSampler, now: Callable[[], float]) -> GatewayState:
    """As much of a gateway as keeps books."""
    parts = {"log": log, "metrics": Metrics(), "sampling": sampling, "clients": SimpleNamespace(limits=KeyLimits())}
    parts["deployment"] = SimpleNamespace(load=LoadControl())
    return cast(GatewayState, SimpleNamespace(**parts, monotonic_s=now, wall_s=now))


def _write(gw: GatewayState, chunk: Sequence[Asked], clock: SimpleNamespace) -> None:
    """What a gateway does with requests, ten a second."""
    for request, outcome, _ in chunk:
        clock.now_s += 0.1
        ledger = Ledger(request, clock.now_s)
        lifecycle.write_request(gw, ledger)
        lifecycle.write_outcome(gw, ledger, outcome)
    assert isinstance(gw.log, LogWriter)
    assert gw.log.drain(60)
    assert not gw.log.n_dropped


def _label(gw: GatewayState, chunk: Sequence[Asked]) -> None:
    """What it does with labels: each has its row, whatever became of its request."""
    assert isinstance(gw.log, LogWriter)
    for _, _, said in chunk:
        if said is not None:
            gw.log.append(said)
    assert gw.log.drain(60)


def _report(database: Path, items: Iterator[EpisodeWithLabels]) -> RouteReport:
    return estimate_route(
        items,
        route=ROUTE,
        match=lambda answer, gold: answer == gold,
        unkept=counted_cells(database, ROUTE),
    )


def _alone(item: EpisodeWithLabels) -> EpisodeWithLabels:
    """A run that stands for itself, whatever its row says."""
    request = replace(item.episode.request, keep_rate=1.0)
    return replace(item, episode=replace(item.episode, request=request))


def cell(seed: int, n: int, rate: float = RATE, **options: Any) -> Measured:
    """One log in a folder of its own; options are those of `log_of`."""
    with tempfile.TemporaryDirectory() as folder:
        return log_of(seed, n, rate, Path(folder), **options)


def _cell(arguments: tuple[int, int]) -> Measured:
    return cell(*arguments)


# --------------------------------------------------------------------------- tables


def row(name: str, reads: Sequence[Read]) -> str:
    """How often an estimate's interval held the truth, and how wide it was."""
    held = sum(low <= truth <= high for _, low, high, truth in reads)
    exact = exact_binomial(held, len(reads), 0.95)
    bias = float(np.mean([value - truth for value, _, _, truth in reads]))
    width = float(np.mean([(high - low) / 2 for _, low, high, _ in reads]))
    return (
        f"| {name} | {reads[0][3]:.1%} | {100 * bias:+.2f} | {held} of {len(reads)} = {held / len(reads):.1%}"
        f" ({exact.low:.1%} to {exact.high:.1%}) | ±{100 * width:.1f} |"
    )


def coverage(found: Sequence[Measured]) -> str:
    """The table of coverage."""
    lines = [
        "| estimate | truth | mean error, points | 95 % interval held the truth (exact 95 %) | half-width, points |",
        "| --- | --- | --- | --- | --- |",
    ]
    reads, blind = (
        [one.reads(report) for one, report in zip(found, told, strict=True)]
        for told in (
            [one.report for one in found],
            [one.blind for one in found],
        )
    )
    lines += [row(name, [one[name] for one in reads]) for name in reads[0]]
    lines += [row(name, [one.bands[name] for one in found]) for name in found[0].bands]
    lines += [row(f"{name}, without weights", [one[name] for one in blind]) for name in ("EM, live runs", "saving")]
    return "\n".join(lines)


def cost_table(kept: Cost, sampled: Cost) -> str:
    """What a log costs that keeps a part, beside one that keeps all."""
    rows = (
        ("bytes of the log", kept.n_bytes, sampled.n_bytes, "{:,.0f}"),
        ("rows", kept.n_rows, sampled.n_rows, "{:,.0f}"),
        ("CPU of recording runs, s", kept.record_s, sampled.record_s, "{:.2f}"),
        ("CPU of recording labels, s", kept.labels_s, sampled.labels_s, "{:.2f}"),
        ("CPU of the jobs rollup and sampling, s", kept.sums_s, sampled.sums_s, "{:.2f}"),
        ("CPU of estimating, s", kept.estimate_s, sampled.estimate_s, "{:.2f}"),
        ("CPU, all of it, s", kept.cpu_s, sampled.cpu_s, "{:.2f}"),
    )
    lines = ["| | keeps all | keeps 10 % | part |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {how.format(a)} | {how.format(b)} | {b / a:.1%} |" for name, a, b, how in rows]
    return "\n".join(lines)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--cost-requests", type=int, default=20_000)
    parser.add_argument("--jobs", type=int, default=2)
    given = parser.parse_args()
    spent_s = 0.0
    for labelled in (0.05, LABELLED):
        kept, sampled = (cell(0, given.cost_requests, rate, blind=False, labelled=labelled) for rate in (1.0, RATE))
        told = f"{given.cost_requests:,} requests, {labelled:.0%} of the live runs labelled"
        print(f"{told}\n\n{cost_table(kept.cost, sampled.cost)}\n")
        print("rates in the end: " + ", ".join(f"{name} {rate:g}" for name, rate in sampled.rates.items()) + "\n")
        spent_s += kept.cost.cpu_s + sampled.cost.cpu_s
    pool = build_executor(given.jobs)
    found = list(pool.map(_cell, [(seed, given.requests) for seed in range(given.seeds)]))
    print(f"{given.seeds} logs of {given.requests:,} requests, {RATE:.0%} with rows\n\n{coverage(found)}\n")
    n_rows = np.mean([one.report.n_audits for one in found])
    spent_s += sum(one.cost.cpu_s for one in found)
    print(f"{n_rows:,.0f} audits a log; CPU time without making traffic: {spent_s / 60:.1f} minutes")


if __name__ == "__main__":
    main()
