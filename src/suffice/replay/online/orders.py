"""In which order recorded runs come as requests, and whose audits are evidence: a permutation, halves, draws. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from suffice.learn.audits import Bools, Ints
from suffice.replay.online.drift import Drift, order_requests
from suffice.replay.online.traffic import RecordedTraffic


class StreamOrder(NamedTuple):
    """One stream as it will come."""

    which: Ints  # (n,): numbers of recorded runs
    drift_at: int | None  # first request of the world after a drift; None: there is none
    learns: Bools | None  # (n,): requests whose audits are evidence; None: all


def draw_order(
    traffic: RecordedTraffic,
    rng: np.random.Generator,
    *,
    drift: Drift | None = None,
    worlds: tuple[Bools, Bools] | None = None,
    disjoint: bool = False,
    resample: int | None = None,
) -> StreamOrder:
    """Draw a stream: each run once in a random order, unless one of the harder questions is asked.

    worlds    which runs belong before a drift and which after it, see `drift.worlds`
    disjoint  the runs of one half of the questions first, and they alone are evidence
    resample  so many requests by question-level bootstrap
    """
    if drift is not None and worlds is not None:
        which, at = order_requests(traffic, drift, *worlds, rng)
        return StreamOrder(which, at, None)
    if disjoint:
        questions = rng.permutation(sorted(set(traffic.question)))
        first = set(questions[: len(questions) // 2].tolist())
        early = np.array([question in first for question in traffic.question])
        which = np.concatenate([rng.permutation(np.flatnonzero(early)), rng.permutation(np.flatnonzero(~early))])
        return StreamOrder(which, None, np.arange(len(which)) < int(early.sum()))
    if resample is not None:
        return StreamOrder(_bootstrap(traffic.question, resample, rng), None, None)
    return StreamOrder(rng.permutation(len(traffic)), None, None)


def _bootstrap(question: Sequence[str], n: int, rng: np.random.Generator) -> Ints:
    """n requests: whole questions drawn with replacement, then shuffled."""
    names, number = np.unique(np.array(question, dtype=object).astype(str), return_inverse=True)
    rows = [np.flatnonzero(number == q) for q in range(len(names))]
    drawn, total = [], 0
    while total < n:
        drawn.append(rows[int(rng.integers(len(rows)))])
        total += len(drawn[-1])
    return np.asarray(rng.permutation(np.concatenate(drawn))[:n], dtype=np.int64)
