"""The whole loop over recorded runs as if they were traffic: seeds, halves and what they came to (CONTRACT.md §6).

survey ──▶ traffic ──▶ an order for each seed ──▶ run_stream ──▶ Seed ──▶ OnlineReport
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from suffice.errors import ConfigError
from suffice.learn.audits import Bools
from suffice.learn.features import DENSE
from suffice.learn.keeper import Keeper, Plan
from suffice.learn.served import Served
from suffice.replay.online.drift import Drift, relabelled, worlds
from suffice.replay.online.loop import PERIOD, Stream, run_stream
from suffice.replay.online.orders import draw_order
from suffice.replay.online.result import Course, OnlineReport, Seed
from suffice.replay.online.traffic import Traffic, learner_of, make_traffic
from suffice.replay.study.runs import Runs, concatenate, make_runs
from suffice.replay.traces.survey import Survey
from suffice.signals.features import FeatureSet
from suffice.types import Promise

WARM_UP: Final = 500          # full runs at the start …
WARM_UP_PART: Final = 0.25    # … or this part of the stream, if that is less
WINDOW_LAW: Final = 16.0      # audits of the window, times the budget: 800 at two points
SPAN: Final = 8_000           # requests within which all audits count; recorded runs are one world …
RAMP_LAW: Final = 24.0        # … in which evidence is not forgotten, so more of it pays than live
REFITS: Final = 10            # in a short stream at least so many; a long one refits every 1,000 requests
N_BLOCKS: Final = 60          # of the course that is drawn
MOST_JUDGED: Final = 2_000    # requests of the world after a drift that say what a level loses there


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineAsked:
    """What the user asked for; None: as the contract says."""

    max_em_drop: float = 0.02
    confidence: float = 0.95
    n_seeds: int = 20
    warm_up: int | None = None
    label_delay: int = 0            # requests between a run and its label
    audit_share: float = 0.05       # once there is evidence
    resample: int | None = None     # requests drawn by question-level bootstrap
    disjoint: bool = False          # evidence from one half of the questions, figures from the other
    drift: Drift | None = None
    probe_tokens: int | None = None
    label_free: bool = False
    promise: Promise = "certified"
    period: int = PERIOD
    seed: int = 0
    n_processes: int = field(default_factory=lambda: os.cpu_count() or 1)


def replay_online(
    data: Survey, asked: OnlineAsked, *, later: Survey | None = None, tick: Callable[[], None] = lambda: None
) -> OnlineReport:
    """Replay one set as traffic. Raises TraceError for data and ConfigError for what cannot be asked.

    later  the file of a drift to another set
    tick   is called after each seed
    """
    longest = max(data.longest, later.longest if later else 0)
    if later is not None and later.kind != data.kind:
        raise ConfigError(f"--drift: {later.set} holds {later.kind}, {data.set} holds {data.kind}; need the same kind")
    parts = [_runs(one, asked, longest) for one in (data, later) if one is not None]
    traffic = make_traffic(concatenate(parts))
    from_file = np.arange(len(traffic)) >= len(parts[0])
    job = _Job(asked, traffic, None if asked.drift is None else worlds(traffic, asked.drift, from_file))
    seeds = range(asked.seed, asked.seed + asked.n_seeds)
    found = []
    if min(asked.n_processes, asked.n_seeds) == 1:
        for seed in seeds:
            found.append(job.run(seed))
            tick()
    else:
        with ProcessPoolExecutor(min(asked.n_processes, asked.n_seeds), initializer=_begin, initargs=(job,)) as pool:
            for one in pool.map(_run, seeds):
                found.append(one)
                tick()
    return OnlineReport(
        set=data.set, max_em_drop=asked.max_em_drop, confidence=asked.confidence, n_rows=len(traffic),
        n_questions=len(set(traffic.question)), seeds=tuple(seed for seed, _ in found),
        resampled=asked.resample is not None, disjoint=asked.disjoint,
        drift=asked.drift.text if asked.drift else None, drift_at=found[0][1],
        warm_up=int(job.plan(found[0][0].n).warm_up), promise=asked.promise,
    )  # fmt: skip


_job: _Job | None = None  # of this worker process


def _begin(job: _Job) -> None:
    global _job  # noqa: PLW0603 - a worker is told once what all its seeds share
    _job = job


def _run(seed: int) -> tuple[Seed, int | None]:
    assert _job is not None, "a worker begins with its job"
    return _job.run(seed)


def _runs(data: Survey, asked: OnlineAsked, longest: int) -> Runs:
    needs = FeatureSet(DENSE[data.kind]).needs
    batches = data.batches(share=data.share)
    return concatenate([
        make_runs([batch], needs, probe_tokens=asked.probe_tokens, planned_steps=longest) for batch in batches
    ])


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """What all seeds of a set share."""

    asked: OnlineAsked
    traffic: Traffic
    worlds: tuple[Bools, Bools] | None

    def plan(self, n: int, n_evidence: int | None = None) -> Plan:
        """The numbers of the control loop for a stream of n requests.

        n_evidence  of them, those whose audits count: no more of it comes behind them; None: all
        """
        asked = self.asked
        warm_up = min(WARM_UP, int(WARM_UP_PART * n)) if asked.warm_up is None else asked.warm_up
        return Plan(
            max_em_drop=asked.max_em_drop, confidence=asked.confidence, label_free=asked.label_free, warm_up=warm_up,
            promise=asked.promise,
            burst=min(1_000, max(1, n // 4)), window=round(WINDOW_LAW / asked.max_em_drop),
            span=0.0 if asked.drift else SPAN, ramp_law=WINDOW_LAW if asked.drift else RAMP_LAW,
            share=asked.audit_share, ramp_share=max(0.5, asked.audit_share),
            horizon=n if n_evidence is None else n_evidence, refit_every=min(1_000, max(PERIOD, n // REFITS)),
            label_timeout=asked.label_delay,
        )  # fmt: skip

    def run(self, seed: int) -> tuple[Seed, int | None]:
        """One stream from cold start to end, and where its drift lies."""
        rng = np.random.default_rng(seed)
        asked = self.asked
        which, drift_at, learns = draw_order(
            self.traffic, rng, drift=asked.drift, worlds=self.worlds, disjoint=asked.disjoint, resample=asked.resample
        )
        traffic = self.traffic.take(which)
        runs = traffic.runs
        traffic = replace(traffic, runs=replace(runs, label_at=runs.at + asked.label_delay))
        if asked.drift is not None and drift_at is not None:
            traffic = relabelled(traffic, asked.drift, drift_at)
        truth = _Truth(traffic, drift_at) if drift_at is not None else None
        n_evidence = None if learns is None else int(learns.sum())
        plan = self.plan(len(traffic), n_evidence)
        stream = run_stream(
            traffic, Keeper(plan, learner_of(traffic.chosen, seed=seed)), rng, period=asked.period, learns=learns,
            watch=truth.look if truth else lambda _: None,
        )  # fmt: skip
        late = len(traffic) // 2 if n_evidence is None else n_evidence  # halves of the questions are not of one length
        return _summed(seed, stream, late, drift_at, truth, plan), drift_at


class _Truth:
    """What the level in force loses in the world after a drift; nothing in the loop sees it."""

    def __init__(self, traffic: Traffic, drift_at: int) -> None:
        late = np.arange(drift_at, len(traffic))
        self._runs = traffic.runs.take(late[:: max(1, len(late) // MOST_JUDGED)])
        self._at = drift_at
        self._known: tuple[int, int] | None = None
        self._drop = 0.0
        self._before: tuple[Served | None, int] = (None, 0)  # in force until the next look
        self.seen: list[tuple[int, float]] = []  # requests after the drift, drop of the level from there on

    def look(self, keeper: Keeper) -> None:
        """Note what is in force now."""
        if keeper.now < self._at:
            self._before = (keeper.served, keeper.level)
            return
        if not self.seen and keeper.now > self._at:  # it came between two looks, and met the level of the one before
            self.seen.append((0, self._lost(*self._before)))
        what = (keeper.version, keeper.level)
        if what != self._known:
            self._drop, self._known = self._lost(keeper.served, keeper.level), what
        self.seen.append((int(keeper.now) - self._at, self._drop))

    def _lost(self, served: Served | None, level: int) -> float:
        """EM drop of a level."""
        if served is None or not level:
            return 0.0
        return float(self._runs.z[served.rows_at(self._runs, level)].mean())

    def recovery(self, max_em_drop: float) -> int | None:
        """Requests until the level in force keeps the budget from there to the end; None: it never does."""
        broken = [at for at, drop in self.seen if drop > max_em_drop]
        if not broken:
            return 0
        after = [at for at, _ in self.seen if at > broken[-1]]
        return after[0] if after else None


def _summed(
    seed: int, stream: Stream, late_from: int, drift_at: int | None, truth: _Truth | None, plan: Plan
) -> Seed:
    n, late = len(stream.z), slice(late_from, None)
    alarms = [(int(change.at), change.reason) for change in stream.changes if change.kind == "alarm"]
    after = [at - drift_at for at, _ in alarms if drift_at is not None and at >= drift_at]
    return Seed(
        seed=seed, n=n, reduction=stream.reduction(slice(None)), reduction_late=stream.reduction(late),
        reduction_late_free=stream.reduction(late, probes=False), drop_late=stream.drop(late),
        audits=int(stream.audit.sum()), alarms=len(alarms), alarm_delay=after[0] if after else None,
        recovery=truth.recovery(plan.max_em_drop) if truth else None,
        course=_course(stream, alarms, max(1, plan.n_levels - 1)),
    )  # fmt: skip


def _course(stream: Stream, alarms: list[tuple[int, str]], top: int) -> Course:
    """The stream in blocks; `top` is the most aggressive level."""
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
