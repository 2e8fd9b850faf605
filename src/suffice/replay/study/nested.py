"""A study judged at many targets at once: every rung is laid once for each fold, and a target only picks anew.

Fitting is what a study costs; a pick costs next to nothing. So tables over many targets, and comparisons of
variants question by question, are made from the same five layings. Knows sums by question; refuses to
know files and reports.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from suffice.assurance.bounds import Interval
from suffice.learn.features import DENSE
from suffice.replay.study.ladders import ladder_folds, published
from suffice.replay.study.points import MARGIN, NONE, miss_share, pick_plainly, pick_policies, seen
from suffice.replay.study.runs import Floats, concatenate, make_runs
from suffice.replay.study.scores import Score
from suffice.replay.study.study import LadderPool, Laid, Study, StudyOptions
from suffice.replay.study.sums import FIELDS, N_FOLDS, QuestionSums
from suffice.replay.traces.survey import Survey
from suffice.signals.features import FeatureSet


def open_study(data: Survey, *, scores: Sequence[Score], probe_tokens: int | None = None, seed: int = 0) -> Study:
    """The study that `suffice replay` makes of a set with every published rule; a set too long for memory is thinned.

    Raises TraceError as reading does, and ConfigError for a missing package.
    """
    ladders = published(data.kind, longest=data.longest)
    needs = tuple(dict.fromkeys([*ladder_folds(ladders), *(FeatureSet(DENSE[data.kind]).needs if scores else ())]))
    runs = concatenate(
        [
            make_runs([batch], needs, probe_tokens=probe_tokens, planned_steps=data.longest)
            for batch in data.batches(share=data.share)
        ]
    )
    return Study(runs, ladders, StudyOptions(scores=tuple(scores), seed=seed))


@dataclass(frozen=True, slots=True, kw_only=True)
class NestedRungs:
    """Every rung as each fold may know it, and as all folds together do."""

    by_fold: tuple[Laid, ...]  # place v: learned rungs as outer fold v may use them
    all: Laid  # learned rungs out of fold

    @property
    def base(self) -> Floats:
        """Runs, right in full, tokens in full: sums over all questions, shape (3,)."""
        total: Floats = self.all.sums.base.sum(axis=0)
        return total

    def frozen(self, pool: LadderPool, target: float, *, margin: float = MARGIN) -> QuestionSums:
        """Each question under the point that was picked without its fold; one policy."""
        values = np.zeros((len(self.all.sums.n), 1, len(FIELDS)))
        values[:, 0, FIELDS.index("tokens")] = self.all.sums.full_tokens
        for v, laid in enumerate(self.by_fold):
            sums, _, slices = laid.of(pool.ladders)
            outside = (sums.fold != v).astype(np.float64)[None, :]
            choice = int(pick_policies(seen(sums, outside), slices, target, margin)[0])
            if choice != NONE:
                values[sums.fold == v, 0] = sums.values[sums.fold == v, choice]
        return QuestionSums(fold=self.all.sums.fold, base=self.all.sums.base, values=values)

    def hindsight(self, pool: LadderPool, target: float) -> tuple[str, QuestionSums]:
        """The rung that saves most of all on these very questions with a drop within the target, and its sums."""
        sums, rungs, _ = self.all.of(pool.ladders)
        choice = int(pick_plainly(seen(sums, np.ones((1, len(sums.n)))), target)[0])
        if choice == NONE:
            return "never", never(self.all.sums)
        return rungs[choice].label, sums.columns([choice])

    def miss_share(self, pool: LadderPool, target: float, *, seed: int = 0, margin: float | None = MARGIN) -> float:
        """Share of 200 halvings in which a point picked on one half misses on the other; margin None: plain tuning."""
        sums, _, slices = self.all.of(pool.ladders)
        return miss_share(sums, slices, target, np.random.default_rng(seed), margin=margin)


def nest(study: Study, *, probes_charged: bool = True) -> NestedRungs:
    """Lay every rung for each fold. Fits what has not been fitted."""
    made = [study.lay(v) for v in (*range(N_FOLDS), None)]
    if not probes_charged:
        made = [replace(laid, sums=without_probes(laid.sums)) for laid in made]
    return NestedRungs(by_fold=tuple(made[:-1]), all=made[-1])


def without_probes(sums: QuestionSums) -> QuestionSums:
    """The same runs as if probes cost nothing."""
    values = sums.values.copy()
    values[:, :, FIELDS.index("tokens")] -= sums.of("probes")
    values[:, :, [FIELDS.index("probes"), FIELDS.index("resent")]] = 0.0
    return QuestionSums(fold=sums.fold, base=sums.base, values=values)


def never(sums: QuestionSums) -> QuestionSums:
    """Full runs as one policy over the same questions."""
    values = np.zeros((len(sums.n), 1, len(FIELDS)))
    values[:, 0, FIELDS.index("tokens")] = sums.full_tokens
    return QuestionSums(fold=sums.fold, base=sums.base, values=values)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What another way saves and loses beyond a first one, on the same questions. Fractions."""

    saved: float  # token reduction of the other minus that of the first
    drop: float  # EM drop likewise
    saved_interval: Interval  # 95 %, whole questions drawn, both ways judged on the same draw
    drop_interval: Interval


def compare_nested(first: QuestionSums, other: QuestionSums, *, n_draws: int, rng: np.random.Generator) -> Difference:
    """Compare two ways over the same questions, each of one policy. Raises ValueError for different questions."""
    if not np.array_equal(first.base, other.base):
        raise ValueError("difference: the two ways were not judged on the same questions")
    n_groups = len(first.n)
    weights = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws).astype(np.float64)
    saved, drop = _both(first, other, np.ones((1, n_groups)))
    drawn_saved, drawn_drop = _both(first, other, weights)
    return Difference(
        saved=float(saved[0]),
        drop=float(drop[0]),
        saved_interval=_interval(drawn_saved),
        drop_interval=_interval(drawn_drop),
    )


def _both(first: QuestionSums, other: QuestionSums, weights: Floats) -> tuple[Floats, Floats]:
    a, b = seen(first, weights), seen(other, weights)
    return b.saved[:, 0] - a.saved[:, 0], b.drop[:, 0] - a.drop[:, 0]


def _interval(drawn: Floats) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(low), float(high))
