"""Recorded runs as one stream from cold start to end: each request is audited or stopped at the active level.

A vote ends at its deciding sample, in audits too; `runs.full` is the cost of all samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.clusters import own_clusters
from suffice.assurance.drift import BATCH
from suffice.certification.certificate import PendingAudits
from suffice.certification.evidence import CertifierDecision, Change, Evidence, RunDurations
from suffice.episode.vote import deciding_sample
from suffice.learn.audits import AuditRuns, SampleOrders, draw_orders
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.models import Examples, Parts, fit
from suffice.learn.version import FoldedModels, Learner, PGood
from suffice.replay.study.runs import Runs, concatenate, make_runs, read_runs
from suffice.replay.study.scores import features_of
from suffice.replay.study.sums import folds_of
from suffice.replay.traces.columns import Batch
from suffice.replay.traces.read import Survey
from suffice.replay.traces.rows import StepRow

V = TypeVar("V")
N_EARLY = 4  # features of the first checkpoint that drift detectors see for every request


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedTraffic:
    runs: AuditRuns
    probes: Floats  # (T,): the part of `runs.cost` spent on probes
    early: Floats  # (N, F): early signals of every request
    question: tuple[str, ...]  # (N,)
    chosen: FeatureSelection  # the columns of `runs.x`
    duration: Floats  # (N,): requests that begin while it runs, itself included; 0: ends at once
    # Attributes that a drift may select by, (N,) each; (): unknown.
    query_class: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    full_ok: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def take(self, which: Ints) -> RecordedTraffic:
        """The given requests, in this order and renumbered from 0; repeats are allowed."""
        runs, (_, rows) = self.runs.take(which), self.runs.rows_of(which)
        at = np.arange(len(which), dtype=np.float64)
        delay = self.runs.label_at[which] - self.runs.at[which]
        return replace(
            self,
            runs=replace(runs, at=at, label_at=at + delay),
            probes=self.probes[rows],
            early=self.early[which],
            duration=self.duration[which],
            question=_take(self.question, which),
            query_class=_take(self.query_class, which),
            model=_take(self.model, which),
            full_ok=_take(self.full_ok, which),
        )


def make_traffic(runs: Runs, chosen: FeatureSelection | None = None) -> RecordedTraffic:
    """Traffic from recorded runs. A hash of the question selects the model that serves it, so repeats stay together."""
    chosen = chosen or choose_features(runs.kind, runs.queries)
    x = features_of(runs, chosen)
    run, at = runs.run_of_row, np.arange(len(runs), dtype=np.float64)
    z = runs.full_ok[run].astype(np.int8) - runs.ok.astype(np.int8)
    d = ~runs.same
    z[runs.last], d[runs.last] = 0, False
    finish = runs.finish[run]
    finish[runs.last] = 0.0  # the full run includes its answer
    classes = {name: i for i, name in enumerate(sorted({query.query_class for query in runs.queries}))}
    return RecordedTraffic(
        runs=AuditRuns(
            x=x,
            starts=runs.starts,
            z=z,
            d=d,
            may_stop=~np.isnan(runs.columns.answer),
            cost=runs.cost + runs.probes + finish,
            per_step=runs.per_step,
            full=runs.full_tokens,
            fold=folds_of(runs).astype(np.int8),
            at=at,
            share=np.ones(len(runs)),
            label_at=at.copy(),
            query_class=np.array([classes[q.query_class] for q in runs.queries], np.int64),
            clusters=own_clusters(len(runs)),
            abandoned=np.zeros(len(runs), dtype=bool),
        ),
        probes=runs.probes,
        early=select_early_signals(x, runs.starts, len(chosen.dense)),
        duration=np.zeros(len(runs)),
        question=runs.question,
        query_class=tuple(query.query_class for query in runs.queries),
        model=tuple(dict(query.metadata).get("model", "") for query in runs.queries),
        full_ok=tuple(runs.full_ok.tolist()),
        chosen=chosen,
    )


def add_times(
    traffic: RecordedTraffic, *, run_time: float, label_delay: tuple[int, int], rng: np.random.Generator
) -> RecordedTraffic:
    """The same requests with durations proportional to their tokens, and delayed labels.

    run_time     mean duration in arriving requests; 0: each run ends at once
    label_delay  least and most arriving requests between the end of a run and its label, uniform
    """
    runs, (least, most) = traffic.runs, label_delay
    tokens = runs.cost[runs.last]
    duration = run_time * tokens / max(1.0, float(tokens.mean()))
    delay = rng.integers(least, most, len(traffic), endpoint=True) if least < most else np.full(len(traffic), least)
    return replace(traffic, duration=duration, runs=replace(runs, label_at=runs.at + duration + delay))


def select_early_signals(x: Floats, starts: Ints, n_dense: int) -> Floats:
    """The most varied features of the first checkpoint, before any level can stop, (N, F)."""
    first = x[starts[:-1], :n_dense]
    spread = first.std(axis=0)
    most = np.argsort(-spread / (np.abs(first).mean(axis=0) + 1e-9), kind="stable")[:N_EARLY]
    return first[:, np.sort(most)]


def learner_of(chosen: FeatureSelection, *, parts: Parts = "ensemble", seed: int = 0) -> Learner:
    return partial(_learn, chosen, parts, seed)


def _learn(chosen: FeatureSelection, parts: Parts, seed: int, x: Floats, good: Bools, weight: Floats) -> PGood:
    return fit(Examples(x, good, weight), chosen, parts=parts, seed=seed).scores


def _take(names: Sequence[V], which: Ints) -> tuple[V, ...]:
    return tuple(names[i] for i in which.tolist()) if names else ()


PERIOD: Final = 100  # requests between two evaluations of the control loop


class Design(Protocol):
    """The decision maker of a stream: `certification.certifier.Certifier`, or a design to compare it with."""

    @property
    def now(self) -> float:
        """The request of the last look."""
        ...

    @property
    def level(self) -> int: ...

    @property
    def served(self) -> FoldedModels | None: ...

    @property
    def share(self) -> float: ...

    @property
    def in_burst(self) -> bool: ...

    def add_audits(self, runs: AuditRuns) -> None: ...

    def look(self, evidence: Evidence) -> CertifierDecision: ...


D = TypeVar("D", bound=Design)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stream:
    audit: Bools  # (N,): ran in full, by assignment or in a burst
    burst: Bools  # (N,): inside a period in which every request ran in full
    level: Ints  # (N,): active when the request arrived
    z: Small  # (N,): EM drop; 0 for audits
    tokens: Floats  # (N,): total
    probes: Floats  # (N,): part of `tokens` spent on probes
    full: Floats  # (N,): tokens of the full run without probes
    changes: tuple[Change, ...]

    def reduction(self, part: slice, *, probes: bool = True) -> float:
        spent = self.tokens[part].sum() - (0.0 if probes else self.probes[part].sum())
        return float(1 - spent / max(1.0, self.full[part].sum()))

    def drop(self, part: slice) -> float:
        return float(self.z[part].mean()) if len(self.z[part]) else 0.0


@dataclass(slots=True, eq=False)
class _OpenAudits:
    traffic: RecordedTraffic
    which: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    share: Floats = field(default_factory=lambda: np.zeros(0))
    durations: RunDurations = field(default_factory=RunDurations)

    def add(self, which: Ints, share: float) -> None:
        self.which = np.concatenate([self.which, which])
        self.share = np.concatenate([self.share, np.full(len(which), share)])

    def clear(self) -> None:
        self.which, self.share = self.which[:0], self.share[:0]

    def take_returned(self, now: float) -> AuditRuns:
        duration = self.traffic.duration[self.which]
        back = self.which + duration < now if duration.any() else np.ones(len(self.which), dtype=bool)
        order = np.argsort(self.which[back] + duration[back], kind="stable")
        returned = self.traffic.runs.take(self.which[back][order])
        returned = replace(returned, share=self.share[back][order])
        self.durations.add(duration[back])
        self.which, self.share = self.which[~back], self.share[~back]
        return returned

    @property
    def pending(self) -> PendingAudits:
        return PendingAudits(at=self.which.astype(np.float64), share=self.share)


def run_stream(
    traffic: RecordedTraffic,
    design: D,
    rng: np.random.Generator,
    *,
    period: int = PERIOD,
    learns: Bools | None = None,
    watch: Callable[[D], None] = lambda _: None,
) -> Stream:
    """Serve the requests of `traffic` in order.

    design  makes the decisions, from a cold start
    rng     draws the audit assignment
    period  requests between two evaluations; signals come in batches of 100 for any period
    learns  requests whose audits are evidence, shape (N,); None: all
    watch   called with the design after each evaluation
    """
    runs, n = traffic.runs, len(traffic)
    audit = np.zeros(n, dtype=bool)
    burst = np.zeros(n, dtype=bool)
    level = np.zeros(n, dtype=np.int64)
    row = runs.last.copy()
    changes: list[Change] = []
    n_noticed, waiting = 0, _OpenAudits(traffic)
    for begin in range(0, n, period):
        block = np.arange(begin, min(begin + period, n))
        now = begin + len(block)
        share = design.share
        audit[block] = rng.random(len(block)) < share
        level[block], burst[block] = design.level, design.in_burst
        if design.level and design.served is not None:
            served = block[~audit[block]]
            part = runs.take(served)
            row[served] = design.served.rows_at(part, design.level) - part.starts[:-1] + runs.starts[served]
        waiting.add(block[audit[block] if learns is None else audit[block] & learns[block]], share)
        design.add_audits(waiting.take_returned(now))
        n_batches = (now - n_noticed) // BATCH
        batches = [traffic.early[at : at + BATCH] for at in range(n_noticed, n_noticed + n_batches * BATCH, BATCH)]
        n_noticed += n_batches * BATCH
        timeout = waiting.durations.timeout
        seen = Evidence(at=float(now), signals=batches, pending=waiting.pending, run_timeout=timeout)
        decision = design.look(seen)
        changes += decision.changes
        if any(change.kind == "epoch" for change in decision.changes):
            waiting.clear()
        watch(design)
    probes = np.where(audit | (level > 0), traffic.probes[row], 0.0)  # where no stop is possible, only audits probe
    return Stream(
        audit=audit,
        burst=burst,
        level=level,
        z=runs.z[row],
        tokens=runs.cost[row] - traffic.probes[row] + probes,
        probes=probes,
        full=runs.full,
        changes=tuple(changes),
    )


# ---------------------------------------------------------------------------
#
# Reads recorded runs as traffic, with the other orders that the samples of a recorded vote could have had.

_BY_STEP: Final = {*StepRow.__struct_fields__, "answer_code"}
_OF_ALL: Final = {"set", "kind", "file", "vote", "stated", "offset", "answers"}


def read_traffic(
    sets: Sequence[Survey], needs: Sequence[str], *, probe_tokens: int | None, longest: int
) -> tuple[RecordedTraffic, int]:
    """The runs of some sets as traffic, and the number of runs of the first. Raise TraceError as reading does.

    A set that memory does not hold as a whole comes in the recorded order of samples only.
    """
    parts = [read_runs(one, needs, probe_tokens=probe_tokens, longest=longest) for one in sets]
    traffic = make_traffic(concatenate(parts))
    if sets[0].kind != "samples" or any(one.share < 1 for one in sets):
        return traffic, len(parts[0])
    orders, counts = list[Runs](), [np.zeros(1, dtype=np.int64)]
    for one in sets:
        for batch in one.batches(share=one.share):
            which, steps = _other_orders(batch)
            counts.append(np.bincount(which, minlength=len(batch)))
            if len(which):
                reordered = _select(batch, which, steps)
                orders.append(make_runs(reordered, needs, probe_tokens=probe_tokens, planned_steps=longest))
    if not orders:
        return traffic, len(parts[0])
    known = SampleOrders(make_traffic(concatenate(orders), traffic.chosen).runs, np.cumsum(np.concatenate(counts)))
    return replace(traffic, runs=replace(traffic.runs, orders=known)), len(parts[0])


def _other_orders(batch: Batch) -> tuple[Ints, Ints]:
    """Runs of a batch, each once for every other order of its samples, and the steps of all of these."""
    which, steps = list[int](), [np.zeros(0, dtype=np.int64)]
    for i in np.flatnonzero(~batch.differs).tolist() if batch.vote else ():
        start, end = int(batch.offset[i]), int(batch.offset[i + 1])
        answers = batch.answer[start:end]
        n_decided = deciding_sample(answers, end - start) or end - start
        name = "\n".join((batch.dataset[i], batch.model[i], batch.run[i], batch.question_id[i]))
        for order in draw_orders(answers[:n_decided], end - start, key=name):
            which.append(i)
            steps += [start + np.array(order), np.arange(start + n_decided, end)]
    return np.array(which, dtype=np.int64), np.concatenate(steps)


def _select(batch: Batch, which: Ints, steps: Ints) -> Batch:
    chosen: dict[str, Any] = {}
    for column in fields(Batch):
        if column.name not in _OF_ALL:
            values, places = getattr(batch, column.name), steps if column.name in _BY_STEP else which
            taken = values[places] if isinstance(values, np.ndarray) else [values[at] for at in places.tolist()]
            chosen[column.name] = taken
    return replace(batch, offset=np.concatenate([[0], np.cumsum(np.diff(batch.offset)[which])]), **chosen)
