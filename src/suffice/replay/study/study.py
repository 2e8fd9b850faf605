"""A study of one set: published policies and learned scores, tuned on some questions and judged on others.

Each of five folds, by question hash, is judged by scores and points from the other four, or all from the `fit` runs.
*Frozen* points were picked on other questions than the reported ones, *hindsight* points on the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.learn.audits import Bools, Floats
from suffice.learn.features import MIN_CLASS_RUNS, find_classes
from suffice.replay.study.policies import Ladder, PolicyRung, Rung, ScoreRung, halts_at, halts_of, levels_of
from suffice.replay.study.runs import Halts, RowScores, Runs, never_halt, select_runs
from suffice.replay.study.scores import (
    HOPELESS_KEY,
    SCORES,
    CrossFit,
    Model,
    Score,
    features_of,
    good_rows,
    risk_and_codes,
    score_rows,
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
N_DRAWS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    max_em_drop: float = 0.01  # target, a fraction
    probe_tokens: int | None = None  # per probe; None: as recorded, else 15 for `reasoning`
    margin: float = MARGIN  # in standard errors, between a frozen point and the target
    families: tuple[str, ...] = ()  # published policies and "learned"; (): all
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # given policies, by label
    scores: tuple[Score, ...] = SCORES  # (): no learned scores
    classes: int = 0  # most classes with levels of their own; 0: none
    seed: int = 0
    n_draws: int = N_DRAWS  # of the bootstrap


class LadderPool(NamedTuple):
    name: str
    ladders: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldChoice:
    """The choice of one fold, or of the `fit` runs: a rung for each pool, and the models it needs."""

    rungs: Mapping[str, Rung | None]  # by pool; None: never stop
    saved: Mapping[str, float] = field(default_factory=dict)  # by pool: token reduction on the training questions
    models: Mapping[str, Model] = field(default_factory=dict)  # by score, and "hopeless"


@dataclass(frozen=True, slots=True, kw_only=True)
class RungSums:
    sums: QuestionSums
    rungs: tuple[Rung, ...]
    slices: Mapping[str, slice]  # by ladder

    def of(self, ladders: Iterable[str]) -> tuple[QuestionSums, tuple[Rung, ...], list[slice]]:
        keep: list[int] = []
        slices = []
        for name in ladders:
            places = range(len(self.rungs))[self.slices[name]]
            slices.append(slice(len(keep), len(keep) + len(places)))
            keep += places
        return self.sums.columns(keep), tuple(self.rungs[at] for at in keep), slices


class ScoreLevels(NamedTuple):
    risk: RowScores
    codes: NDArray[np.int8]
    levels: Floats

    def rows(self, keep: Bools) -> ScoreLevels:
        return self._replace(risk=self.risk[keep], codes=self.codes[keep])


def find_halts(ladders: Sequence[Ladder], runs: Runs) -> list[tuple[Ladder, list[Halts]]]:
    return [(ladder, [halts_of(rung, runs) for rung in ladder.rungs]) for ladder in ladders]


def sum_rungs(
    runs: Runs, fixed: Sequence[tuple[Ladder, Sequence[Halts]]], learned: Mapping[str, ScoreLevels]
) -> RungSums:
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
    return RungSums(sums=sum_halts(runs, halts, [rung.asks for rung in rungs]), rungs=tuple(rungs), slices=slices)


def sum_halts(runs: Runs, halts: Sequence[Halts], asks: Sequence[bool]) -> QuestionSums:
    summing = SumsFold(len(halts))
    summing.add(runs, halts, asks)
    return summing.sums()


class Study:
    def __init__(
        self, runs: Runs, ladders: Sequence[Ladder], options: ReplayOptions, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.runs, self.ladders, self.options = runs, tuple(ladders), options
        self.fold = folds_of(runs)
        self._fixed = find_halts(ladders, runs)
        read = sorted({score.query_signals for score in options.scores} | {True}) if options.scores else []
        self._fits = {key: CrossFit(runs, seed=options.seed, query_signals=key, tick=tick) for key in read}

    def risk(self, score: Score, v: int | None) -> tuple[RowScores, NDArray[np.int8]]:
        p = self._fits[score.query_signals].scores(score.key, v)
        return risk_and_codes(score, p, self._fits[True].scores(HOPELESS_KEY, v), self.runs)

    def sum_rungs(self, v: int | None) -> RungSums:
        train = np.ones(len(self.runs.cost), dtype=bool) if v is None else self.fold[self.runs.run_of_row] != v
        learned = {}
        for score in self.options.scores:
            risk, codes = self.risk(score, v)
            learned[score.name] = ScoreLevels(risk, codes, levels_of(risk[train], N_LEVELS))
        return sum_rungs(self.runs, self._fixed, learned)

    def freeze(self, pools: Sequence[LadderPool], v: int | None) -> FoldChoice:
        """Pick each pool's point on the questions outside fold `v`, or on all; keep the models that it needs."""
        rung_sums = self.sum_rungs(v)
        rungs: dict[str, Rung | None] = {}
        saved: dict[str, float] = {}
        for pool in pools:
            sums, of_pool, slices = rung_sums.of(pool.ladders)
            at = measure_policies(sums, sums.weights(v))
            choice = int(pick_policies(at, slices, self.options.max_em_drop, self.options.margin)[0])
            rungs[pool.name] = None if choice == NONE else of_pool[choice]
            saved[pool.name] = 0.0 if choice == NONE else float(at.saved[0, choice])
        left_out = () if v is None else (v,)
        models = {s.name: self._fits[s.query_signals].model(s.key, left_out) for s in self.options.scores}
        if models:
            models["hopeless"] = self._fits[True].model(HOPELESS_KEY, left_out)
        return FoldChoice(rungs=rungs, saved=saved, models=models)

    def halts(self, frozen: FoldChoice, runs: Runs) -> dict[str, Halts]:
        halts: dict[str, Halts] = {}
        scored: dict[str, tuple[RowScores, NDArray[np.int8]]] = {}
        for name, rung in frozen.rungs.items():
            if rung is None:
                halts[name] = never_halt(runs)
            elif isinstance(rung, PolicyRung):
                halts[name] = halts_of(rung, runs)
            else:
                if rung.score not in scored:
                    scored[rung.score] = self.score_others(rung.score, frozen, runs)
                halts[name] = rung.halts(*scored[rung.score], runs)
        return halts

    def score_others(self, name: str, frozen: FoldChoice, runs: Runs) -> tuple[RowScores, NDArray[np.int8]]:
        score = next(score for score in self.options.scores if score.name == name)
        x = {key: features_of(runs, self._fits[key].chosen) for key in {True, score.query_signals}}
        hopeless = score_rows(frozen.models["hopeless"], x[True])
        return risk_and_codes(score, score_rows(frozen.models[name], x[score.query_signals]), hopeless, runs)


# ---- classes found in the data

MIN_QUESTIONS: Final = 20  # per class
NEVER: Final = 0.0  # a level below every risk


class Target(NamedTuple):
    max_em_drop: float
    margin: float  # in standard errors

    def keeps(self, at: PolicyPoints) -> bool:
        return bool(at.drop[0, 0] + self.margin * at.error[0, 0] <= self.max_em_drop)


def learn_classes(runs: Runs, keep: Bools, most: int) -> Classes:
    good = good_rows(runs, "as-good")[runs.starts[:-1]]
    return find_classes([runs.queries[i] for i in np.flatnonzero(keep).tolist()], good[keep], max_classes=most)


def select_large_classes(runs: Runs, classes: Classes) -> dict[str, Bools]:
    """The runs of each class with enough runs and questions, by name, shape (E,) each."""
    names = np.array([classes.of(query) for query in runs.queries])
    questions = np.array(runs.question)
    members = {name: names == name for name in dict.fromkeys(names.tolist())}
    return {
        name: mine
        for name, mine in members.items()
        if mine.sum() >= MIN_CLASS_RUNS and len(set(questions[mine].tolist())) >= MIN_QUESTIONS
    }


class ClassPartition(NamedTuple):
    classes: Classes | None  # None: no classes
    names: tuple[str, ...]  # of the large classes
    number: Floats  # E: index into `names`; NaN: a small class, or none


def number_classes(runs: Runs, keep: Bools, most: int) -> ClassPartition:
    """Find up to `most` classes in the runs where `keep` holds, and classify all runs; none below two large ones."""
    classes = learn_classes(runs, keep, most) if most >= 2 else None
    names = () if classes is None else tuple(select_large_classes(select_runs(runs, keep), classes))
    if classes is None or len(names) < 2:
        return ClassPartition(None, (), np.full(len(runs), np.nan))
    place = {name: float(at) for at, name in enumerate(names)}
    return ClassPartition(classes, names, np.array([place.get(classes.of(query), np.nan) for query in runs.queries]))


def pick_by_class(
    study: Study, v: int | None, most: int, target: Target, *, scores: Sequence[Score] = ()
) -> tuple[ScoreRung, float] | None:
    """The rung by class that saves most on the questions outside fold `v`, or on all, and its saving.

    None if the runs do not divide into two large classes, or no rung keeps the target. `scores` (): all of the study.
    """
    train = np.ones(len(study.runs), dtype=bool) if v is None else study.fold != v
    classes, training = learn_classes(study.runs, train, most), select_runs(study.runs, train)
    large = select_large_classes(training, classes)
    best: tuple[ScoreRung, float] | None = None
    for score in scores or study.options.scores:
        if score.target == "value" or len(large) < 2:
            continue  # each level of the value model is a separate model, and a route has one
        risk, codes = (column[train[study.runs.run_of_row]] for column in study.risk(score, v))
        scored = ScoreLevels(risk, codes, levels_of(risk, N_LEVELS))
        pooled = _pick_level(training, scored, target)
        if pooled is None:
            continue
        levels = {
            name: _pick_level(select_runs(training, mine), scored.rows(mine[training.run_of_row]), target) or NEVER
            for name, mine in large.items()
        }
        label = f"{score.name}, by class"
        rung = ScoreRung(score=score.name, level=pooled, classes=classes, levels=levels, label=label)
        sums = sum_halts(training, [rung.halts(risk, codes, training)], [True])
        at = measure_policies(sums, sums.weights(None))
        if target.keeps(at) and at.saved[0, 0] > (best[1] if best else 0):
            best = rung, float(at.saved[0, 0])
    return best


def _pick_level(runs: Runs, scored: ScoreLevels, target: Target) -> float | None:
    sums = sum_rungs(runs, [], {"": scored}).sums
    at = measure_policies(sums, sums.weights(None))
    choice = int(pick_policies(at, [slice(0, len(scored.levels))], target.max_em_drop, target.margin)[0])
    return None if choice == NONE else float(scored.levels[choice])
