"""A study of one set: published rules and learned scores, tuned on some questions, judged on others.

    runs ──▶ ladders ──▶ sums by question ──▶ points picked on training questions ──▶ halts of unseen ones
             scores                            (nested: a score, too, has not seen them)

Without other files the questions are cut into five folds by their hash: for each fold, scores are fitted and
points picked on the other four. With `fit` runs, both come from those alone. What is reported as *frozen*
was picked on questions that are not in the figure; *hindsight* was picked on the very questions shown.

Fitting is what a study costs; a pick costs next to nothing. So tables over many targets, and comparisons of variants
question by question, are made from the same five layings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.learn.audits import Bools, Floats
from suffice.learn.features import MIN_CLASS_RUNS, FeatureSelection, find_classes
from suffice.policy.columns import SUFFICES
from suffice.replay.study.policies import Ladder, PolicyRung, Rung, ScoreRung, halts_at, halts_of, levels_of
from suffice.replay.study.runs import Halts, Runs, Says, select_runs
from suffice.replay.study.scores import (
    CrossFit,
    ExampleTable,
    Key,
    Model,
    Score,
    features_for,
    features_of,
    good_rows,
    make_table,
    score_rows,
    stop_codes,
    stopping_risk,
)
from suffice.replay.study.sums import (
    MARGIN,
    NONE,
    PolicyPoints,
    QuestionSums,
    SumsFold,
    folds_of,
    measure_policies,
    pick_policies,
)
from suffice.signals.classes import Classes

N_LEVELS = 61
HOPELESS_KEY: Key = ("hopeless", "linear")

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    max_em_drop: float = 0.01  # fraction: the target
    scores: tuple[Score, ...] = ()  # learned scores; () leaves out everything that needs training
    margin: float = MARGIN
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPool:
    name: str
    ladders: tuple[str, ...]  # by name


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldChoice:
    """What one fold, or the runs of the `fit` files, settled on: a rung for each pool, and the models it needs."""

    rungs: Mapping[str, Rung | None]  # by pool; None: never stop
    saved: Mapping[str, float] = field(default_factory=dict)  # by pool: token reduction where the point was picked
    models: Mapping[str, Model] = field(default_factory=dict)  # by score, and "hopeless"


@dataclass(frozen=True, slots=True, kw_only=True)
class RungSums:
    sums: QuestionSums
    rungs: tuple[Rung, ...]
    slices: Mapping[str, slice]  # by ladder

    def of(self, ladders: Sequence[str]) -> tuple[QuestionSums, tuple[Rung, ...], list[slice]]:
        keep: list[int] = []
        slices = []
        for name in ladders:
            places = range(len(self.rungs))[self.slices[name]]
            slices.append(slice(len(keep), len(keep) + len(places)))
            keep += places
        return self.sums.columns(keep), tuple(self.rungs[at] for at in keep), slices


class ScoreLevels(NamedTuple):
    """A learned score over some runs: risk and stop code of each row, and the levels that make its ladder."""

    risk: Says
    codes: NDArray[np.int8]
    levels: Floats


Fixed = Sequence[tuple[Ladder, Sequence[Halts]]]


def find_halts(ladders: Sequence[Ladder], runs: Runs) -> list[tuple[Ladder, list[Halts]]]:
    """Where each policy of each ladder ends the runs: nothing in it is learned, so it is computed once."""
    return [(ladder, [halts_of(rung, runs) for rung in ladder.rungs]) for ladder in ladders]


def lay_rungs(runs: Runs, fixed: Fixed, learned: Mapping[str, ScoreLevels]) -> RungSums:
    rungs: list[Rung] = []
    halts: list[Halts] = []
    slices: dict[str, slice] = {}
    for ladder, of_ladder in fixed:
        slices[ladder.name] = slice(len(rungs), len(rungs) + len(of_ladder))
        rungs += ladder.rungs
        halts += of_ladder
    for name, (risk, codes, levels) in learned.items():
        slices[name] = slice(len(rungs), len(rungs) + len(levels))
        rungs += [ScoreRung(score=name, level=float(level), label=f"{name} {level:.3g}") for level in levels]
        halts += halts_at(risk, levels, runs, codes)
    summing = SumsFold(len(rungs))
    summing.add(runs, halts, [rung.asks for rung in rungs])
    return RungSums(sums=summing.sums(), rungs=tuple(rungs), slices=slices)


class Study:
    def __init__(self, runs: Runs, ladders: Sequence[Ladder], options: StudyOptions, tick: Tick = lambda: None) -> None:
        self.runs, self.ladders, self.options = runs, tuple(ladders), options
        self.fold = folds_of(runs)
        self._fixed = find_halts(ladders, runs)
        self._tables: dict[bool, ExampleTable] = {}
        self._fits: dict[bool, CrossFit] = {}
        if options.scores:
            for query_signals in sorted({score.query_signals for score in options.scores} | {True}):
                chosen = features_for(runs, query_signals=query_signals)
                table = make_table(runs, chosen, self.fold)
                self._tables[query_signals] = table
                self._fits[query_signals] = CrossFit(runs, table, seed=options.seed, tick=tick)

    def chosen(self, score: Score) -> FeatureSelection:
        return self._tables[score.query_signals].chosen

    # ---- scores -----------------------------------------------------------------------------------

    def risk(self, score: Score, v: int | None) -> tuple[Says, NDArray[np.int8]]:
        """Risk and stop codes of every row: cross-fitted for all rows, or as outer fold `v` may use them."""
        p = self._fits[score.query_signals].scores((score.target, score.parts), v)
        return risk_and_codes(score, p, self._fits[True].scores(HOPELESS_KEY, v), self.runs)

    # ---- every rung -------------------------------------------------------------------------------

    def lay(self, v: int | None) -> RungSums:
        """All rungs of all ladders: published ones, and learned ones at the levels that fold `v` may know."""
        train = np.ones(len(self.runs.cost), dtype=bool) if v is None else self.fold[self.runs.run_of_row] != v
        learned = {}
        for score in self.options.scores:
            risk, codes = self.risk(score, v)
            learned[score.name] = ScoreLevels(risk, codes, self.levels(risk[train]))
        return lay_rungs(self.runs, self._fixed, learned)

    def levels(self, risk: Says) -> Floats:
        return levels_of(risk, N_LEVELS)

    # ---- points -----------------------------------------------------------------------------------

    def freeze(self, pools: Sequence[LadderPool], v: int | None) -> FoldChoice:
        """Pick each pool's point on the questions outside fold `v`, or on all; keep the models that it needs."""
        laid = self.lay(v)
        rungs: dict[str, Rung | None] = {}
        saved: dict[str, float] = {}
        for pool in pools:
            sums, of_pool, slices = laid.of(pool.ladders)
            weights = (np.ones(len(sums.n)) if v is None else (sums.fold != v).astype(np.float64))[None, :]
            at = measure_policies(sums, weights)
            choice = int(pick_policies(at, slices, self.options.max_em_drop, self.options.margin)[0])
            rungs[pool.name] = None if choice == NONE else of_pool[choice]
            saved[pool.name] = 0.0 if choice == NONE else float(at.saved[0, choice])
        models: dict[str, Model] = {}
        if self.options.scores:
            left_out = () if v is None else (v,)
            models["hopeless"] = self._fits[True].model(HOPELESS_KEY, left_out)
            for score in self.options.scores:
                models[score.name] = self._fits[score.query_signals].model((score.target, score.parts), left_out)
        return FoldChoice(rungs=rungs, saved=saved, models=models)

    def halts(self, frozen: FoldChoice, runs: Runs) -> dict[str, Halts]:
        halts: dict[str, Halts] = {}
        scored: dict[str, tuple[Says, NDArray[np.int8]]] = {}
        for name, rung in frozen.rungs.items():
            if rung is None:
                halts[name] = Halts(runs.last, np.zeros(len(runs), dtype=np.int8))
            elif isinstance(rung, PolicyRung):
                halts[name] = halts_of(rung, runs)
            else:
                if rung.score not in scored:
                    scored[rung.score] = self.score_others(rung.score, frozen, runs)
                halts[name] = rung.halts(*scored[rung.score], runs)
        return halts

    def score_others(self, name: str, frozen: FoldChoice, runs: Runs) -> tuple[Says, NDArray[np.int8]]:
        score = next(score for score in self.options.scores if score.name == name)
        x = {
            asked: features_of(runs, table.chosen)
            for asked, table in self._tables.items()
            if asked or asked == score.query_signals
        }
        hopeless = score_rows(frozen.models["hopeless"], x[True])
        return risk_and_codes(score, score_rows(frozen.models[name], x[score.query_signals]), hopeless, runs)


def risk_and_codes(score: Score, p: Says, p_hopeless: Floats, runs: Runs) -> tuple[Says, NDArray[np.int8]]:
    """From what a model says to what levels cut, and what a stop would be called, shape (T,) each."""
    may_lack_answer = p_hopeless >= 0.5
    if p.dtype == np.uint64:  # prices at which it stops: at none where there is nothing to deliver
        return np.where(np.isnan(runs.columns.answer) & ~may_lack_answer, np.uint64(0), p), stop_codes(p_hopeless)
    if score.target == "suffices":
        none = np.zeros(len(p), dtype=bool)
        return stopping_risk(p, runs, score.cost, none), np.full(len(p), SUFFICES, dtype=np.int8)
    return stopping_risk(p, runs, score.cost, may_lack_answer), stop_codes(p_hopeless)


MIN_QUESTIONS: Final = 20  # of a class: runs of one question are not independent
NEVER: Final = 0.0  # a level that no risk reaches


@dataclass(frozen=True, slots=True)
class Target:
    max_em_drop: float
    margin: float  # standard errors

    def keeps(self, at: PolicyPoints) -> bool:
        return bool(at.drop[0, 0] + self.margin * at.error[0, 0] <= self.max_em_drop)


def find_classes_in(runs: Runs, keep: Bools, most: int) -> Classes:
    """Classes found in the runs where `keep` holds, shape (E,): at most so many."""
    good = good_rows(runs, "as-good")[runs.starts[:-1]]
    queries = [query for query, kept in zip(runs.queries, keep, strict=True) if kept]
    return find_classes(queries, good[keep], max_classes=most)


def select_large_classes(runs: Runs, classes: Classes) -> dict[str, Bools]:
    """The runs of each class that has enough of them, and enough questions, by name; shape (E,) each."""
    names = np.array([classes.of(query) for query in runs.queries])
    questions = np.array(runs.question)
    members = {name: names == name for name in dict.fromkeys(names.tolist())}
    return {
        name: mine
        for name, mine in members.items()
        if mine.sum() >= MIN_CLASS_RUNS and len(set(questions[mine].tolist())) >= MIN_QUESTIONS
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundClasses:
    classes: Classes | None  # None: there are none
    names: tuple[str, ...]  # of the large ones
    number: Floats  # E: place of each run's class in `names`; not a number: a small class, or none


def number_classes(runs: Runs, keep: Bools, most: int) -> FoundClasses:
    """Classes found in the runs where `keep` holds, shape (E,); the others get theirs by the same rules.

    most  classes, at most; below 2 none are looked for. Fewer than two large ones are none, too
    """
    none = FoundClasses(classes=None, names=(), number=np.full(len(runs), np.nan))
    if most < 2:
        return none
    classes = find_classes_in(runs, keep, most)
    names = tuple(select_large_classes(select_runs(runs, keep), classes))
    if len(names) < 2:
        return none
    place = {name: float(at) for at, name in enumerate(names)}
    number = np.array([place.get(classes.of(query), np.nan) for query in runs.queries])
    return FoundClasses(classes=classes, names=names, number=number)


def pick_classed(
    study: Study, v: int | None, most: int, target: Target, *, scores: Sequence[Score] = ()
) -> tuple[ScoreRung, float] | None:
    """Of some scores the rung by class that saves most on the questions outside fold `v`, or on all, and how much.

    most    classes, at most
    scores  to pick from; (): all of the study

    None: nothing divides the runs into two classes that are large enough, or no rung keeps the target.
    """
    runs = study.runs
    train = np.ones(len(runs), dtype=bool) if v is None else study.fold != v
    classes, training = find_classes_in(runs, train, most), select_runs(runs, train)
    large = select_large_classes(training, classes)
    if len(large) < 2:
        return None
    tried = scores or study.options.scores
    picks = [_by_class(study, score, v, train, classes, large, training, target) for score in tried]
    kept = [one for one in picks if one is not None and one[1] > 0]
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
) -> tuple[ScoreRung, float] | None:
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
    rung = ScoreRung(score=score.name, level=pooled, classes=classes, levels=levels, label=f"{score.name}, by class")
    at = _seen(training, rung.halts(laid.risk, laid.codes, training))
    return (rung, float(at.saved[0, 0])) if target.keeps(at) else None


def _level(runs: Runs, laid: ScoreLevels, target: Target) -> float | None:
    sums = lay_rungs(runs, [], {"": laid}).sums
    at = measure_policies(sums, _whole(len(sums.n)))
    choice = int(pick_policies(at, [slice(0, len(laid.levels))], target.max_em_drop, target.margin)[0])
    return None if choice == NONE else float(laid.levels[choice])


def _seen(runs: Runs, halts: Halts) -> PolicyPoints:
    summing = SumsFold(1)
    summing.add(runs, [halts], [True])
    sums = summing.sums()
    return measure_policies(sums, _whole(len(sums.n)))


def _whole(n_groups: int) -> Floats:
    return np.ones((1, n_groups))
