"""Full runs as evidence, in one columnar record for live audits, recorded traces and simulations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.assurance.certify import is_order_refuted
from suffice.assurance.clusters import own_clusters
from suffice.assurance.labels import count_losses
from suffice.episode.vote import count_votes, deciding_sample
from suffice.policy.folded_version import place_of


class RaggedRuns:
    """N runs in T rows: run i has the rows starts[i] … starts[i + 1] - 1."""

    __slots__ = ()
    starts: Ints  # (N + 1,)

    @property
    def n_steps(self) -> Ints:
        return np.diff(self.starts)

    @property
    def last(self) -> Ints:
        return self.starts[1:] - 1

    @property
    def run_of_row(self) -> Ints:
        return np.repeat(np.arange(len(self.starts) - 1), self.n_steps)

    @property
    def inner(self) -> Bools:
        """Rows that are not the last of their run, shape (T,): only there may a policy stop."""
        inner = np.ones(int(self.starts[-1]), dtype=bool)
        inner[self.last] = False
        return inner

    def rows_of(self, which: Ints) -> tuple[Ints, Ints]:
        """The starts of the selected runs, shape (n + 1,), and their rows here; runs may repeat."""
        return select_groups(self.starts, which)


def select_groups(starts: Ints, which: Ints) -> tuple[Ints, Ints]:
    """The starts of the selected groups, shape (n + 1,), and the places of their members; groups may repeat."""
    sizes = starts[which + 1] - starts[which]
    begin = np.concatenate([[0], np.cumsum(sizes)])
    return begin, np.repeat(starts[which] - begin[:-1], sizes) + np.arange(begin[-1])


def find_first_passages(risk: Floats, starts: Ints, levels: Floats) -> Ints:
    """Row where each run's risk, shape (T,), first is at or below each level, else its last row, shape (M, N).

    A nan never stops. The running minimum falls, so counting its values above a level finds the row.
    """
    sizes, n_runs = np.diff(starts), len(starts) - 1
    padded = np.full((int(sizes.max(initial=1)), n_runs), np.inf)  # (steps, N)
    step = np.arange(len(risk)) - np.repeat(starts[:-1], sizes)
    padded[step, np.repeat(np.arange(n_runs), sizes)] = np.where(np.isnan(risk), np.inf, risk)
    lowest = np.minimum.accumulate(padded, axis=0)
    passed = np.empty((len(levels), n_runs), dtype=np.int64)
    for at, level in enumerate(levels):
        np.sum(lowest > level, axis=0, out=passed[at])
    return np.asarray(starts[:-1] + np.minimum(passed, sizes - 1))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AuditRuns(RaggedRuns):
    x: Floats  # (T, P): features, see `signals.features`
    starts: Ints  # (N + 1,)
    z: Small  # (T,): EM drop of a stop after the row, -1, 0 or +1; valid once labelled
    d: Bools  # (T,): the answer after the row differs from the full run's; a missing checkpoint disagrees
    may_stop: Bools  # (T,): there is an answer to deliver
    cost: Floats  # (T,): tokens if stopped after the row, including probes and the written answer
    per_step: Floats  # (T,): mean tokens per step so far, at least 1
    full: Floats  # (N,): tokens of the full run alone
    fold: Small  # (N,): 0 … N_FOLDS - 1, by hash of the unit; selects the model that serves and judges the run
    at: Floats  # (N,): start: number of the request, or seconds; runs are ordered by their ends
    share: Floats  # (N,): P(audit) at the draw, in (0, 1]
    label_at: Floats  # (N,): time of its label, in the unit of `at`; infinite: none yet
    query_class: Ints  # (N,): index of its class
    clusters: Ints  # (N, units): keys of its conversation, prompt and caller, see `assurance.clusters`
    abandoned: Bools  # (N,): its client left, or we failed: a loss at every level
    orders: SampleOrders | None = None  # of votes, see `learn.audits`; None: none are known

    def __len__(self) -> int:
        return len(self.full)

    def losses(
        self, rows: Ints, which: Ints | slice = slice(None), *, now: float = np.inf, label_free: bool = False
    ) -> Small:
        """EM drop of the selected runs as it counts at `now`, shape (n, M), if their levels end them at these rows."""
        labelled = np.isfinite(self.label_at[which]) & (self.label_at[which] <= now)
        abandoned = self.abandoned[which]
        return count_losses(self.z[rows], self.d[rows], labelled=labelled, abandoned=abandoned, label_free=label_free)

    def mean_losses(self, ends: LevelEnds, which: Ints, *, now: float = np.inf, label_free: bool = False) -> Floats:
        """As `losses`, each the mean over the orders that the samples of a vote could have had, shape (n, M)."""
        z = self.losses(ends.rows[which], which, now=now, label_free=label_free).astype(np.float64)
        if self.orders is None:
            return z
        starts, others = select_groups(self.orders.starts, which)
        n_others = np.diff(starts)
        runs = self.orders.runs
        rows = ends.order_rows[others]
        of = np.repeat(which, n_others)
        labelled = np.isfinite(self.label_at[of]) & (self.label_at[of] <= now)
        lost = count_losses(
            runs.z[rows], runs.d[rows], labelled=labelled, abandoned=self.abandoned[of], label_free=label_free
        )
        several = np.flatnonzero(n_others)
        if len(several):
            z[several] += np.add.reduceat(lost.astype(np.float64), starts[several], axis=0)
        return np.asarray(z / (1 + n_others)[:, np.newaxis])

    def any_other_order(self, holds: Bools, which: Ints) -> Bools:
        """Whether something holds in another order of each selected run, shape (n,), given whether in each, (W,)."""
        if self.orders is None:
            return np.zeros(len(which), dtype=np.bool_)
        starts, others = select_groups(self.orders.starts, which)
        n_orders = np.concatenate([[0], np.cumsum(holds[others])])
        return np.asarray(n_orders[starts[1:]] > n_orders[starts[:-1]])

    def take(self, which: Ints) -> AuditRuns:
        starts, rows = self.rows_of(which)
        return AuditRuns(
            starts=starts,
            orders=None if self.orders is None else self.orders.take(which),
            **{name: getattr(self, name)[rows] for name in _BY_ROW},
            **{name: getattr(self, name)[which] for name in _BY_RUN},
        )

    def without_orders(self) -> AuditRuns:
        return self if self.orders is None else replace(self, orders=None)


@dataclass(frozen=True, slots=True, eq=False)
class SampleOrders:
    """Other orders of the samples of N votes. A vote whose samples agree needs none."""

    runs: AuditRuns  # (W,): one for each order; what their votes have in common is not read
    starts: Ints  # (N + 1,): vote i has the orders starts[i] … starts[i + 1] - 1

    def take(self, which: Ints) -> SampleOrders:
        starts, orders = select_groups(self.starts, which)
        return SampleOrders(self.runs.take(orders), starts)


class LevelEnds(NamedTuple):
    """The row where each level ends each run, shape (N, M), and each other order of its samples, shape (W, M)."""

    rows: Ints
    order_rows: Ints


_BY_ROW = ("x", "z", "d", "may_stop", "cost", "per_step")
_BY_RUN = ("full", "fold", "at", "share", "label_at", "query_class", "clusters", "abandoned")


def concatenate_audits(parts: Sequence[AuditRuns]) -> AuditRuns:
    """All runs, in their order; empty parts may have other features. Raise ValueError without a part."""
    if not parts:
        raise ValueError("audits: needs at least one batch")
    filled = [part for part in parts if len(part)] or parts[:1]
    if len(filled) == 1:
        return filled[0]
    shift = np.cumsum([0, *(part.starts[-1] for part in filled)])
    starts = np.concatenate([part.starts[:-1] + at for part, at in zip(filled, shift, strict=False)] + [shift[-1:]])
    return AuditRuns(
        starts=starts,
        orders=_concatenate_orders(filled),
        **{name: np.concatenate([getattr(part, name) for part in filled]) for name in (*_BY_ROW, *_BY_RUN)},
    )


def _concatenate_orders(parts: Sequence[AuditRuns]) -> SampleOrders | None:
    known = [(part, part.orders) for part in parts]
    if all(orders is None for _, orders in known):
        return None
    counts = [np.zeros(len(part), np.int64) if orders is None else np.diff(orders.starts) for part, orders in known]
    runs = concatenate_audits([NO_AUDITS if orders is None else orders.runs for _, orders in known])
    return SampleOrders(runs, np.concatenate([[0], np.cumsum(np.concatenate(counts))]))


NO_AUDITS: Final = AuditRuns(
    x=np.zeros((0, 0)),
    starts=np.zeros(1, dtype=np.int64),
    z=np.zeros(0, dtype=np.int8),
    d=np.zeros(0, dtype=np.bool_),
    may_stop=np.zeros(0, dtype=np.bool_),
    cost=np.zeros(0),
    per_step=np.zeros(0),
    full=np.zeros(0),
    fold=np.zeros(0, dtype=np.int8),
    at=np.zeros(0),
    share=np.zeros(0),
    label_at=np.zeros(0),
    query_class=np.zeros(0, dtype=np.int64),
    clusters=own_clusters(0),
    abandoned=np.zeros(0, dtype=np.bool_),
)


# ---- the other orders that the samples of a vote could have had
#
# The samples of one request are independent draws. So given the samples of an audit, and that the last of them decided
# the vote for its winner, every order of which that is true was equally likely, and an audit's drop may be replaced by
# its mean over some of these orders: the same expectation with less variance (Blackwell 1947, Annals of Mathematical
# Statistics 18(1)).

MOST_ORDERS: Final = 12  # other orders of one vote
MOST_STEPS: Final = 144  # in all of them together, which limits memory
MOST_TRIES: Final = 96
LABELLED: Final = 0.9  # of audits that disagree only in other orders of their samples, for these orders to count


def draw_orders(answers: Sequence[str | None], n_samples: int, *, key: str) -> list[list[int]]:
    """Draw other orders of a full vote's samples, each a permutation of 0 … n - 1, uniformly and with repeats.

    None where every order has the same drop, because all samples agree, and where the vote was not decided by its last
    sample. The draw follows from `key`.

    answers    of all samples that were drawn, in the order of their launch
    n_samples  that the vote may draw
    """
    n, orders = len(answers), list[list[int]]()
    if len(set(answers)) < 2 or deciding_sample(answers, n_samples) != n:
        return orders
    winner, most = count_votes(answers).answer, min(MOST_ORDERS, max(1, MOST_STEPS // n))
    for attempt in range(MOST_TRIES):
        places = [place_of(f"{key}/{attempt}/{sample}", purpose="sample-order") for sample in range(n)]
        order = sorted(range(n), key=places.__getitem__)
        moved = [answers[sample] for sample in order]
        if deciding_sample(moved, n_samples) == n and count_votes(moved).answer == winner:
            orders.append(order)
            if len(orders) == most:
                break
    return orders


def mean_over_orders(
    runs: AuditRuns, ends: LevelEnds, which: Ints, weight: Floats, *, now: float, label_free: bool, delta: float
) -> Floats | None:
    """The drops of audits, each its mean over orders, shape (n, M); None: they count in their own order.

    That is so where own order loses more than others do, and where drops are not as well known in others. Labels that
    are given on request are there where the own order disagrees, and in other orders the rest would count as lost. What
    labels say does not matter.
    """
    if runs.orders is None:
        return None
    labelled = (runs.label_at[which] <= now) & (not label_free)
    if labelled.any():
        own = runs.d[ends.rows[which]].any(axis=1) | runs.abandoned[which]
        others = np.asarray(runs.orders.runs.d[ends.order_rows].any(axis=1))
        only_others = runs.any_other_order(others, which) & ~own
        if labelled[only_others].sum() < LABELLED * only_others.sum():
            return None
    mean = runs.mean_losses(ends, which, now=now, label_free=label_free)
    z = runs.losses(ends.rows[which], which, now=now, label_free=label_free)
    return None if is_order_refuted(z, mean, weight, delta=delta) else mean
