"""The whole loop over recorded runs as traffic: an order of the requests for each seed, and what came of it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from suffice.assurance.windows import window_audits
from suffice.errors import ConfigError
from suffice.learn.audits import Bools, Floats
from suffice.learn.certifier import Certifier, Plan, full_runs
from suffice.learn.features import DENSE
from suffice.learn.served import FoldedModels
from suffice.replay.online.drift import Drift, draw_order, losing_share, relabel, split_worlds
from suffice.replay.online.stream import (
    PERIOD,
    RecordedTraffic,
    Stream,
    learner_of,
    make_traffic,
    run_stream,
    with_times,
)
from suffice.replay.online.summary import Course, OnlineReport, Seed
from suffice.replay.study.runs import concatenate, read_runs
from suffice.replay.traces.read import Survey
from suffice.signals.features import FeatureSet
from suffice.types import Promise

N_BLOCKS: Final = 60  # of the course that is drawn
MOST_JUDGED: Final = 2_000  # requests of the world after a drift that say what a level loses there


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineOptions:
    max_em_drop: float = 0.02
    confidence: float = 0.95
    n_seeds: int = 20
    warm_up: int | None = None
    run_time: int = 0  # mean of a full run, in requests that begin meanwhile
    label_delay: int = 0  # requests between the end of a run and its label, at least …
    label_delay_most: int | None = None  # … and at most; None: always the same
    audit_share: float = 0.05  # once there is evidence
    resample: int | None = None  # requests drawn by question-level bootstrap
    disjoint: bool = False  # evidence from one half of the questions, figures from the other
    drift: Drift | None = None
    probe_tokens: int | None = None
    label_free: bool = False
    promise: Promise = "certified"
    period: int = PERIOD
    seed: int = 0
    n_processes: int = field(default_factory=lambda: os.cpu_count() or 1)


def replay_online(
    data: Survey, asked: OnlineOptions, *, later: Survey | None = None, tick: Callable[[], None] = lambda: None
) -> OnlineReport:
    """Replay one set as traffic. Raises TraceError for data and ConfigError for what cannot be asked.

    later  the file of a drift to another set
    tick   is called after each seed
    """
    longest = max(data.longest, later.longest if later else 0)
    if later is not None and later.kind != data.kind:
        raise ConfigError(f"--drift: {later.set} holds {later.kind}, {data.set} holds {data.kind}; need the same kind")
    needs, probe_tokens = FeatureSet(DENSE[data.kind]).needs, asked.probe_tokens
    sets = [one for one in (data, later) if one is not None]
    parts = [read_runs(one, needs, probe_tokens=probe_tokens, longest=longest) for one in sets]
    traffic = make_traffic(concatenate(parts))
    from_file = np.arange(len(traffic)) >= len(parts[0])
    job = _Job(asked, traffic, None if asked.drift is None else split_worlds(traffic, asked.drift, from_file))
    seeds = range(asked.seed, asked.seed + asked.n_seeds)
    outcomes, n_processes = [], min(asked.n_processes, asked.n_seeds)
    with ProcessPoolExecutor(n_processes) if n_processes > 1 else nullcontext() as pool:
        for outcome in map(job.run, seeds) if pool is None else pool.map(job.run, seeds):
            outcomes.append(outcome)
            tick()
    return OnlineReport(
        set=data.set,
        max_em_drop=asked.max_em_drop,
        confidence=asked.confidence,
        n_rows=len(traffic),
        n_questions=len(set(traffic.question)),
        seeds=tuple(seed for seed, _ in outcomes),
        resampled=asked.resample is not None,
        disjoint=asked.disjoint,
        drift=asked.drift.text if asked.drift else None,
        drift_at=outcomes[0][1],
        warm_up=int(job.plan(outcomes[0][0].n).warm_up),
        promise=asked.promise,
    )


def stream_plan(asked: OnlineOptions, traffic: RecordedTraffic, n: int) -> Plan:
    burst = full_runs(asked.max_em_drop, n)
    return Plan(
        max_em_drop=asked.max_em_drop,
        confidence=asked.confidence,
        label_free=asked.label_free,
        promise=asked.promise,
        warm_up=burst if asked.warm_up is None else asked.warm_up,
        burst=burst,
        window=window_audits(asked.max_em_drop),
        share=asked.audit_share,
        free_audits=not traffic.probes.any(),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    asked: OnlineOptions
    traffic: RecordedTraffic
    worlds: tuple[Bools, Bools] | None

    @property
    def label_delay(self) -> tuple[int, int]:
        least, most = self.asked.label_delay, self.asked.label_delay_most
        return least, least if most is None else most

    def plan(self, n: int, n_evidence: int | None = None) -> Plan:
        """The numbers of the control loop for a stream of n requests.

        n_evidence  of them, those whose audits count: no more of it comes behind them; None: all
        """
        plan = stream_plan(self.asked, self.traffic, n if n_evidence is None else n_evidence)
        return replace(plan, label_timeout=self.label_delay[1])

    def run(self, seed: int) -> tuple[Seed, int | None]:
        """One stream from cold start to end, and where its drift lies."""
        rng = np.random.default_rng(seed)
        asked = self.asked
        which, drift_at, learns = draw_order(
            self.traffic, rng, drift=asked.drift, worlds=self.worlds, disjoint=asked.disjoint, resample=asked.resample
        )
        traffic = with_times(self.traffic.take(which), run_time=asked.run_time, label_delay=self.label_delay, rng=rng)
        truth = None
        if asked.drift is not None and drift_at is not None:
            truth = _Truth.of(traffic, asked.drift, drift_at)
            traffic = relabel(traffic, asked.drift, drift_at)
        n_evidence = None if learns is None else int(learns.sum())
        plan = self.plan(len(traffic), n_evidence)
        stream = run_stream(
            traffic,
            Certifier(plan, learner_of(traffic.chosen, seed=seed)),
            rng,
            period=asked.period,
            learns=learns,
            watch=truth.look if truth else lambda _: None,
        )
        late = len(traffic) // 2 if n_evidence is None else n_evidence  # halves of the questions are not of one length
        return _summed(seed, stream, late, drift_at, truth, plan), drift_at


class _Truth:
    """The EM drop to expect of each request after a drift at the level that it met; nothing in the loop sees it."""

    def __init__(self, traffic: RecordedTraffic, drift_at: int, losing: Floats | None = None) -> None:
        """Losing: P(a request loses at every early stop), on top of what `traffic` says, (N,); None: none does."""
        late = np.arange(drift_at, len(traffic))
        self._runs = traffic.runs.take(late[:: max(1, len(late) // MOST_JUDGED)])
        self._losing = np.zeros(len(traffic)) if losing is None else losing
        self._met: tuple[FoldedModels | None, int] = (None, 0)  # by the requests until the next look
        self._judged: tuple[FoldedModels | None, int] = self._met
        self._drops = 0.0, 0.0  # of the level that was judged last
        self._at = self._until = drift_at
        self.drop = np.zeros(len(traffic))  # (N,): 0 before the drift

    @classmethod
    def of(cls, traffic: RecordedTraffic, drift: Drift, at: int) -> _Truth:
        losing = losing_share(drift, at, len(traffic))
        if drift.kind == "turns":  # a conversation has all of its turns: what counts is their mean
            losing = np.full(len(traffic), losing.mean())
        return cls(relabel(traffic, drift, at) if drift.kind == "relabel" else traffic, at, losing)

    def look(self, keeper: Certifier) -> None:
        now = int(keeper.now)
        if now > self._until:
            self.drop[self._until : now] = self._in_force(self._losing[self._until : now])
            self._until = now
        self._met = keeper.served, keeper.level

    def _in_force(self, losing: Floats) -> Floats:
        """EM drop of the level in force, for requests that lose at every early stop with these chances, shape (n,)."""
        if self._met != self._judged:
            self._judged, self._drops = self._met, (0.0, 0.0)
            served, level = self._met
            if served is not None and level:
                rows = served.rows_at(self._runs, level)
                self._drops = float(self._runs.z[rows].mean()), float((rows < self._runs.last).mean())
        clean, lost = self._drops
        return clean + losing * (lost - clean)

    def recovery(self, max_em_drop: float) -> int | None:
        """Requests until the level in force keeps the budget from there to the end; None: it never does."""
        if self._in_force(self._losing[-1:]).max(initial=0.0) > max_em_drop:
            return None
        broken = np.flatnonzero(self.drop > max_em_drop)
        return int(broken[-1]) + 1 - self._at if len(broken) else 0

    def loss_above_budget(self, served: Bools, max_em_drop: float) -> float:
        """Points of EM drop above the budget, summed over the requests that were no audits, shape (N,)."""
        return float(100 * np.maximum(0.0, self.drop[served] - max_em_drop).sum())


def _summed(seed: int, stream: Stream, late_from: int, drift_at: int | None, truth: _Truth | None, plan: Plan) -> Seed:
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
        course=_course(stream, alarms, max(1, plan.n_levels - 1)),
    )


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
