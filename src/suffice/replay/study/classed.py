"""A level of its own for each class of queries that was found in the data, where the class is large enough.

    training questions ──▶ classes (learn.classes) ──▶ a level for each ──▶ judged on the questions left out

The classes, the score and the levels come from the training questions alone. A class with too few runs or too few
questions takes the level that was picked on all of them together, so nothing rests on ten examples; a large one in
which no level keeps the target is never stopped. Knows a study; refuses to know reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from suffice.learn.classes import MIN_RUNS, find_classes
from suffice.replay.study.ladders import ClassedRung
from suffice.replay.study.points import NONE, PolicyPoints, pick_policies, seen
from suffice.replay.study.runs import Bools, Floats, Halts, Runs, select_runs
from suffice.replay.study.scores import Score, good_rows
from suffice.replay.study.study import ScoreLevels, Study, lay
from suffice.replay.study.sums import SumsFold
from suffice.signals.classes import Classes

MIN_QUESTIONS: Final = 20  # of a class: runs of one question are not independent
NEVER: Final = 0.0  # a level that no risk reaches


@dataclass(frozen=True, slots=True)
class Target:
    """What a pick has to keep."""

    max_em_drop: float
    margin: float  # standard errors

    def keeps(self, at: PolicyPoints) -> bool:
        """Does a single policy, seen on one set of questions, keep it?"""
        return bool(at.drop[0, 0] + self.margin * at.error[0, 0] <= self.max_em_drop)


def classes_in(runs: Runs, keep: Bools, most: int) -> Classes:
    """Classes found in the runs where `keep` holds, shape (E,): at most so many."""
    good = good_rows(runs, "as-good")[runs.starts[:-1]]
    queries = [query for query, kept in zip(runs.queries, keep, strict=True) if kept]
    return find_classes(queries, good[keep], max_classes=most)


def large_classes(runs: Runs, classes: Classes) -> dict[str, Bools]:
    """The runs of each class that has enough of them, and enough questions, by name; shape (E,) each."""
    names = np.array([classes.of(query) for query in runs.queries])
    questions = np.array(runs.question)
    found = {name: names == name for name in dict.fromkeys(names.tolist())}
    return {
        name: mine
        for name, mine in found.items()
        if mine.sum() >= MIN_RUNS and len(set(questions[mine].tolist())) >= MIN_QUESTIONS
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundClasses:
    """The found classes that are large enough, with what says a query's class."""

    classes: Classes | None  # None: there are none
    names: tuple[str, ...]  # of the large ones
    number: Floats  # E: place of each run's class in `names`; not a number: a small class, or none


def found_classes(runs: Runs, keep: Bools, most: int) -> FoundClasses:
    """Classes found in the runs where `keep` holds, shape (E,); the others get theirs by the same rules.

    most  classes, at most; below 2 none are looked for. Fewer than two large ones are none, too
    """
    none = FoundClasses(classes=None, names=(), number=np.full(len(runs), np.nan))
    if most < 2:
        return none
    classes = classes_in(runs, keep, most)
    names = tuple(large_classes(select_runs(runs, keep), classes))
    if len(names) < 2:
        return none
    place = {name: float(at) for at, name in enumerate(names)}
    number = np.array([place.get(classes.of(query), np.nan) for query in runs.queries])
    return FoundClasses(classes=classes, names=names, number=number)


def pick_classed(
    study: Study, v: int | None, most: int, target: Target, *, scores: Sequence[Score] = ()
) -> tuple[ClassedRung, float] | None:
    """Of some scores the rung by class that saves most on the questions outside fold `v`, or on all, and how much.

    most    classes, at most
    scores  to pick from; (): all of the study

    None: nothing divides the runs into two classes that are large enough, or no rung keeps the target.
    """
    runs = study.runs
    train = np.ones(len(runs), dtype=bool) if v is None else study.fold != v
    classes, training = classes_in(runs, train, most), select_runs(runs, train)
    large = large_classes(training, classes)
    if len(large) < 2:
        return None
    tried = scores or study.options.scores
    found = [_by_class(study, score, v, train, classes, large, training, target) for score in tried]
    kept = [one for one in found if one is not None and one[1] > 0]
    return max(kept, key=lambda one: one[1], default=None)


def _by_class(
    study: Study,
    score: Score,
    v: int | None,
    train: Bools,
    classes: Classes,
    large: Mapping[str, Bools],
    training: Runs,
    target: Target,
) -> tuple[ClassedRung, float] | None:
    """One score's level on all training runs and on those of each large class, and what they save there together."""
    if score.target == "value":
        return None  # each of its levels is a model of its own, and a route carries one
    risk, codes = study.risk(score, v)
    rows = train[study.runs.run_of_row]
    laid = ScoreLevels(risk[rows], codes[rows], study.levels(risk[rows]))
    pooled = _level(training, laid, target)
    if pooled is None:
        return None
    levels: dict[str, float] = {}
    for name, mine in large.items():
        own_rows = mine[training.run_of_row]
        own = _level(
            select_runs(training, mine), laid._replace(risk=laid.risk[own_rows], codes=laid.codes[own_rows]), target
        )
        levels[name] = NEVER if own is None else own
    rung = ClassedRung(score=score.name, level=pooled, classes=classes, levels=levels, label=f"{score.name}, by class")
    at = _seen(training, rung.halts(laid.risk, laid.codes, training))
    return (rung, float(at.saved[0, 0])) if target.keeps(at) else None


def _level(runs: Runs, laid: ScoreLevels, target: Target) -> float | None:
    """The level picked on these runs; None: none keeps the target."""
    sums = lay(runs, [], {"": laid}).sums
    at = seen(sums, _whole(len(sums.n)))
    choice = int(pick_policies(at, [slice(0, len(laid.levels))], target.max_em_drop, target.margin)[0])
    return None if choice == NONE else float(laid.levels[choice])


def _seen(runs: Runs, halts: Halts) -> PolicyPoints:
    summing = SumsFold(1)
    summing.add(runs, [halts], [True])
    sums = summing.sums()
    return seen(sums, _whole(len(sums.n)))


def _whole(n_groups: int) -> Floats:
    return np.ones((1, n_groups))
