"""Common designs without a proof, which break their promise on the traffic on which ours keeps it.

    fixed      a threshold tuned once on 1,500 full runs, as far as the mean drop there allows
    once       the same runs, but with a proper test (Learn then Test, arXiv:2110.01052); never tested again
    feedback   EM of the last labelled answers against that of the calibration: a level up, or two down
    thompson   a constrained, discounted Thompson sampler over nine levels that learns from its own outcomes
    empirical  audits as ours has them, but the level is the last whose mean drop is within the budget

All use the same score and levels. Calibration labels arrive at once, which favours the first four; a fifth of the
served answers get labels, after the setting's delay. If several levels are served at once, the deployed drop is their
share-weighted mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from bench.claims.course import Course
from bench.claims.score import Logistic
from bench.claims.streams import Drawn
from bench.claims.truth import Truth

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import binomial_at_most
from suffice.learn.version import FoldedModels, fit_served
from suffice.replay.online.stream import PERIOD

CALIBRATION: Final = 1_500  # full runs at the start
LABELLED: Final = 0.2  # of served answers
ROLLING: Final = 500  # labelled answers that the feedback rule looks back on
LEAST: Final = 100  # … before it moves
LOOKS_EVERY: Final = 500  # requests between two of its moves
N_ARMS: Final = 9
DISCOUNT: Final = 0.999  # of all evidence, for each label
Choose = Callable[[int, Ints], Ints]  # first request of a period, numbers of its requests → a level for each


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """A score with levels fitted on the first full runs, and what every request would do at each of them."""

    drawn: Drawn
    served: FoldedModels
    rows: Ints  # (N, M): where each level ends each run
    n: int  # calibration runs
    max_em_drop: float

    @property
    def z(self) -> Floats:
        """EM drop of the calibration runs at each level, each run judged by the model that has not seen it."""
        return np.asarray(self.drawn.traffic.runs.z[self.rows[: self.n]], dtype=np.float64)

    @property
    def full_em(self) -> float:
        return float(self.drawn.right[: self.n].mean())

    def right(self, level: int) -> Bools:
        """Is the answer that each request gets at a level right?"""
        return self.drawn.right & (self.drawn.traffic.runs.z[self.rows[:, level]] <= 0) | (
            self.drawn.traffic.runs.z[self.rows[:, level]] < 0
        )

    def unbroken(self, passes: Bools) -> int:
        """The last level of the unbroken run of passes from the safe end."""
        failed = np.flatnonzero(~passes[1:])
        return int(failed[0]) if len(failed) else len(passes) - 1


def calibrate(drawn: Drawn, max_em_drop: float) -> Calibrated:
    """Fit and replay on the first `CALIBRATION` requests, their labels there at once."""
    runs = drawn.traffic.runs
    served = fit_served(runs.take(np.arange(CALIBRATION)), Logistic(), now=np.inf)
    assert served is not None
    return Calibrated(drawn, served, served.rows(runs), CALIBRATION, max_em_drop)


def fixed(known: Calibrated, _rng: np.random.Generator) -> Choose:
    level = known.unbroken(known.z.mean(axis=0) <= known.max_em_drop)
    return lambda _, block: np.full(len(block), level)


def once(known: Calibrated, _rng: np.random.Generator) -> Choose:
    lost = (known.z > 0).sum(axis=0).tolist()
    level = known.unbroken(np.array([binomial_at_most(k, known.n, known.max_em_drop) <= 0.05 for k in lost]))
    return lambda _, block: np.full(len(block), level)


def feedback(known: Calibrated, rng: np.random.Generator) -> Choose:
    level = int(fixed(known, rng)(0, np.zeros(1, dtype=np.int64))[0])
    labels = _Labels(known, rng)

    def choose(begin: int, block: Ints) -> Ints:
        nonlocal level
        labels.arrive(begin)
        recent = labels.right[-ROLLING:]
        if len(recent) >= LEAST and begin % LOOKS_EVERY == 0:
            em = float(np.mean(recent))
            if em < known.full_em - known.max_em_drop:
                level -= 2
            elif em > known.full_em - known.max_em_drop / 2:
                level += 1
        level = min(max(level, 0), known.rows.shape[1] - 1)
        chosen = np.full(len(block), level)
        labels.serve(block, chosen)
        return chosen

    return choose


def thompson(known: Calibrated, rng: np.random.Generator) -> Choose:
    arms = np.linspace(0, known.rows.shape[1] - 1, N_ARMS).round().astype(np.int64)
    first = np.stack([known.right(int(arm))[: known.n] for arm in arms])
    wins, losses = first.sum(axis=1, dtype=np.float64), (~first).sum(axis=1).astype(np.float64)
    labels = _Labels(known, rng)

    def choose(begin: int, block: Ints) -> Ints:
        for arm, right in labels.arrive(begin):
            wins[:] *= DISCOUNT
            losses[:] *= DISCOUNT
            at = int(np.searchsorted(arms, arm))
            wins[at] += right
            losses[at] += 1 - right
        em = rng.beta(1 + wins, 1 + losses, (len(block), N_ARMS))
        kept = em >= em[:, :1] - known.max_em_drop
        chosen = arms[N_ARMS - 1 - kept[:, ::-1].argmax(axis=1)]  # the most aggressive of those that seem to keep it
        labels.serve(block, chosen)
        return np.asarray(chosen)

    return choose


class _Labels:
    """Labels of served answers: for a fifth of them, and only when they are due."""

    def __init__(self, known: Calibrated, rng: np.random.Generator) -> None:
        runs = known.drawn.traffic.runs
        due = runs.label_at.copy()
        due[(rng.random(len(runs)) >= LABELLED) | (np.arange(len(runs)) < known.n)] = np.inf
        self._order = np.argsort(due, kind="stable")
        self._due = due[self._order]
        self._level = np.zeros(len(runs), dtype=np.int64)
        self._known, self._at = known, 0
        self.right: list[int] = []  # answers labelled so far, in the order of their labels

    def serve(self, block: Ints, levels: Ints) -> None:
        """Write down what was served."""
        self._level[block] = levels

    def arrive(self, now: int) -> list[tuple[int, int]]:
        """(level, right) of the labels that have come since the last look."""
        until = int(np.searchsorted(self._due, now, side="right"))
        which = self._order[self._at : until]
        self._at = until
        runs, levels = self._known.drawn.traffic.runs, self._level[which]
        z = runs.z[self._known.rows[which, levels]]
        right = (self._known.drawn.right[which].astype(np.int64) - z).tolist()
        self.right += right
        return list(zip(levels.tolist(), right, strict=True))


NAIVE: Final[dict[str, Callable[[Calibrated, np.random.Generator], Choose]]] = {
    "fixed": fixed,
    "once": once,
    "feedback": feedback,
    "thompson": thompson,
}


def follow(drawn: Drawn, name: str, truth: Truth, rng: np.random.Generator, *, max_em_drop: float) -> Course:
    """Serve all requests under a naive design: the calibration in full, the rest as it chooses, nothing audited."""
    known = calibrate(drawn, max_em_drop)
    choose = NAIVE[name](known, rng)
    runs, n = drawn.traffic.runs, len(drawn.traffic)
    level, true_drop = np.zeros(n, dtype=np.int64), []
    for begin in range(0, n, PERIOD):
        block = np.arange(begin, min(begin + PERIOD, n))
        if begin >= known.n:
            level[block] = choose(begin, block)
        served, counts = np.unique(level[block], return_counts=True)
        drops = [truth.drop(known.served, int(one), float(drawn.ways[block[-1]])) for one in served]
        true_drop.append(float(np.average(drops, weights=counts)))
    row = known.rows[np.arange(n), level]
    row[: known.n] = runs.last[: known.n]
    audit = np.arange(n) < known.n
    return Course(
        audit=audit, level=level, z=runs.z[row], tokens=runs.cost[row], full=runs.full, true_drop=np.array(true_drop)
    )
