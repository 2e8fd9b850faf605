"""Recorded runs as if they were traffic: what a request would show, cost and lose, whichever way it is served.

A vote ends at the sample that decides it, in audits too (`study.runs`); `runs.full` stays the cost of all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from suffice.learn.audits import AuditRuns, Floats, Ints
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.served import Learner, PGood
from suffice.learn.stop_model import Examples, Parts, fit
from suffice.replay.study.runs import Bools, Runs
from suffice.replay.study.sums import question_fold
from suffice.signals.features import FeatureSet

V = TypeVar("V")
N_EARLY = 4  # features of the first checkpoint that stand for the signals of all traffic


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RecordedTraffic:
    """Requests in the order of their recording; a stream takes them in another."""

    runs: AuditRuns
    probes: Floats  # (T,): the part of `runs.cost` that probes cost
    early: Floats  # (N, F): early signals, seen of every request
    question: tuple[str, ...]  # (N,): requests of one question are not independent
    chosen: FeatureSelection  # the columns of `runs.x`
    duration: Floats  # (N,): requests that begin while it runs, it among them; 0: it ends at once
    # What a drift may tell apart, (N,) each; () where nobody told.
    query_class: tuple[str, ...] = ()
    model: tuple[str, ...] = ()
    full_ok: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.runs)

    def take(self, which: Ints) -> RecordedTraffic:
        """Some requests in the given order, numbered anew from 0; one may come several times."""
        runs, (_, rows) = self.runs.take(which), self.runs.rows_of(which)
        at = np.arange(len(which), dtype=np.float64)
        delay = self.runs.label_at[which] - self.runs.at[which]
        return replace(
            self,
            runs=replace(runs, at=at, label_at=at + delay),
            probes=self.probes[rows],
            early=self.early[which],
            duration=self.duration[which],
            question=_picked(self.question, which),
            query_class=_picked(self.query_class, which),
            model=_picked(self.model, which),
            full_ok=_picked(self.full_ok, which),
        )


def make_traffic(runs: Runs, chosen: FeatureSelection | None = None) -> RecordedTraffic:
    """Traffic from recorded runs. A question's hash decides which model serves it, so that repeats stay together."""
    chosen = chosen or choose_features(runs.kind, runs.queries)
    x = np.round(FeatureSet(chosen.names).matrix(runs.columns, runs.queries), 10)
    answered = ~np.isnan(runs.columns.answer)
    run, at = runs.run_of_row, np.arange(len(runs), dtype=np.float64)
    z = runs.full_ok[run].astype(np.int8) - runs.ok.astype(np.int8)
    d = ~runs.same
    z[runs.last], d[runs.last] = 0, False
    finish = runs.finish[run]
    finish[runs.last] = 0.0  # the full run has written its answer
    per_step = np.maximum(runs.columns.values["tokens_used"] / runs.columns.values["step"], 1.0)
    fold = {question: question_fold(question) for question in set(runs.question)}
    classes = {name: i for i, name in enumerate(sorted({query.query_class for query in runs.queries}))}
    return RecordedTraffic(
        runs=AuditRuns(
            x=x,
            starts=runs.starts,
            z=z,
            d=d,
            may_stop=answered,
            cost=runs.cost + runs.probes + finish,
            per_step=per_step,
            full=runs.full_tokens,
            fold=np.array([fold[q] for q in runs.question], np.int8),
            at=at,
            share=np.ones(len(runs)),
            label_at=at.copy(),
            query_class=np.array([classes[q.query_class] for q in runs.queries], np.int64),
            abandoned=np.zeros(len(runs), dtype=bool),
        ),
        probes=runs.probes,
        early=early_signals(x, runs.starts, len(chosen.dense)),
        duration=np.zeros(len(runs)),
        question=runs.question,
        query_class=tuple(query.query_class for query in runs.queries),
        model=tuple(dict(query.metadata).get("model", "") for query in runs.queries),
        full_ok=tuple(runs.full_ok.tolist()),
        chosen=chosen,
    )


def with_times(
    traffic: RecordedTraffic, *, run_time: float, label_delay: tuple[int, int], rng: np.random.Generator
) -> RecordedTraffic:
    """The same requests, whose runs take time in proportion to their tokens and whose labels come later.

    run_time     mean of the stream, in requests that begin meanwhile; 0: each run ends at once
    label_delay  requests between the end of a run and its label: evenly from the first to the second
    """
    runs, (least, most) = traffic.runs, label_delay
    tokens = runs.cost[runs.last]
    duration = run_time * tokens / max(1.0, float(tokens.mean()))
    delay = rng.integers(least, most, len(traffic), endpoint=True) if least < most else np.full(len(traffic), least)
    return replace(traffic, duration=duration, runs=replace(runs, label_at=runs.at + duration + delay))


def early_signals(x: Floats, starts: Ints, n_dense: int) -> Floats:
    """What every request shows before any level could stop it: the first checkpoint's most varied features, (N, F)."""
    first = x[starts[:-1], :n_dense]
    spread = first.std(axis=0)
    most = np.argsort(-spread / (np.abs(first).mean(axis=0) + 1e-9), kind="stable")[:N_EARLY]
    return first[:, np.sort(most)]


def learner_of(chosen: FeatureSelection, *, parts: Parts = "ensemble", seed: int = 0) -> Learner:
    """The stop model's trainer as the keeper calls it."""
    return partial(_learn, chosen, parts, seed)


def _learn(chosen: FeatureSelection, parts: Parts, seed: int, x: Floats, good: Bools, weight: Floats) -> PGood:
    fitted = fit(Examples(x=x, good={"as-good": good}, weight=weight), chosen, "as-good", parts=parts, seed=seed)
    return fitted.scores


def _picked(names: Sequence[V], which: Ints) -> tuple[V, ...]:
    """Some of them, in that order; () stays ()."""
    return tuple(names[i] for i in which.tolist()) if names else ()
