"""A study judged at many targets at once: every rung is laid once for each fold, and a target only picks anew.

Fitting is what a study costs; a pick costs next to nothing. So tables over many targets, and comparisons of variants
question by question, are made from the same five layings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from suffice.arrays import Floats
from suffice.learn.features import DENSE
from suffice.replay.study.policies import Rung, build_ladders, list_ladder_folds
from suffice.replay.study.runs import never_halt, read_runs
from suffice.replay.study.scores import Score
from suffice.replay.study.study import LadderPool, ReplayOptions, RungSums, Study
from suffice.replay.study.sums import (
    FIELDS,
    MARGIN,
    N_FOLDS,
    NONE,
    QuestionSums,
    sum_halts,
)
from suffice.replay.traces.read import Survey
from suffice.signals.features import FeatureSet


def open_study(data: Survey, *, scores: Sequence[Score], probe_tokens: int | None = None, seed: int = 0) -> Study:
    """The study that `suffice replay` makes of a set with every published rule; a set too long for memory is thinned.

    Raises TraceError as reading does, and ConfigError for a missing package.
    """
    ladders = build_ladders(data.kind, longest=data.longest)
    needs = tuple(dict.fromkeys([*list_ladder_folds(ladders), *(FeatureSet(DENSE[data.kind]).needs if scores else ())]))
    runs = read_runs(data, needs, probe_tokens=probe_tokens, longest=data.longest)
    return Study(runs, ladders, ReplayOptions(scores=tuple(scores), seed=seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedRungs:
    by_fold: tuple[RungSums, ...]  # place v: learned rungs as outer fold v may use them
    all: RungSums  # learned rungs out of fold
    never: QuestionSums  # no policy: every run to its end, a vote until it is decided

    @property
    def base(self) -> Floats:
        """Runs, right in full, tokens in full: sums over all questions, shape (3,)."""
        total: Floats = self.all.sums.base.sum(axis=0)
        return total

    def frozen(self, pool: LadderPool, target: float, *, margin: float = MARGIN) -> QuestionSums:
        """Each question under the point that was picked without its fold; one policy."""
        values = self.never.values.copy()
        for v, laid in enumerate(self.by_fold):
            choice, sums, _ = _pick(laid, v, pool, target, margin)
            if choice != NONE:
                values[sums.fold == v, 0] = sums.values[sums.fold == v, choice]
        return QuestionSums(fold=self.all.sums.fold, base=self.all.sums.base, values=values)

    def chosen(self, pool: LadderPool, target: float, *, margin: float = MARGIN) -> list[Rung | None]:
        """The point of each fold; None: never stop."""
        picks = [_pick(laid, v, pool, target, margin) for v, laid in enumerate(self.by_fold)]
        return [None if choice == NONE else rungs[choice] for choice, _, rungs in picks]

    def hindsight(self, pool: LadderPool, target: float) -> tuple[str, QuestionSums]:
        sums, rungs, _ = self.all.of(pool.ladders)
        choice = int(sums.measure(sums.weights(None)).pick_plainly(target)[0])
        if choice == NONE:
            return "never", self.never
        return rungs[choice].label, sums.columns([choice])

    def miss_share(self, pool: LadderPool, target: float, *, seed: int = 0, margin: float | None = MARGIN) -> float:
        """Share of 200 halvings in which a point picked on one half misses on the other; margin None: plain tuning."""
        sums, _, slices = self.all.of(pool.ladders)
        return sums.miss_share(slices, target, np.random.default_rng(seed), margin=margin)


def _pick(
    laid: RungSums, v: int, pool: LadderPool, target: float, margin: float
) -> tuple[int, QuestionSums, tuple[Rung, ...]]:
    sums, rungs, slices = laid.of(pool.ladders)
    return int(sums.measure(sums.weights(v)).pick(slices, target, margin)[0]), sums, rungs


def nest(study: Study, *, probes_charged: bool = True) -> NestedRungs:
    made = [study.sum_rungs(v) for v in (*range(N_FOLDS), None)]
    if not probes_charged:
        made = [replace(laid, sums=without_probes(laid.sums)) for laid in made]
    never = sum_halts(study.runs, [never_halt(study.runs)])
    return NestedRungs(by_fold=tuple(made[:-1]), all=made[-1], never=never)


def share_of(sums: QuestionSums, field: str) -> Floats:
    share: Floats = sums.of(field).sum(axis=0) / sums.n.sum()
    return share


def without_probes(sums: QuestionSums) -> QuestionSums:
    values = sums.values.copy()
    values[:, :, FIELDS.index("tokens")] -= sums.of("probes")
    values[:, :, [FIELDS.index("probes"), FIELDS.index("resent")]] = 0.0
    return QuestionSums(fold=sums.fold, base=sums.base, values=values)
