"""A study of one set: published policies and learned scores, tuned on some questions and judged on others.

Each of five folds, by question hash, is judged by scores and points from the other four, or all from the `fit` runs.
*Frozen* points were picked on other questions than the reported ones, *hindsight* points on the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np

from suffice.arrays import Bools, Floats
from suffice.learn.features import MIN_CLASS_RUNS, FeatureSelection, find_classes
from suffice.replay.study.policies import Ladder, PolicyRung, Rung, ScoreRung, halts_at, halts_of, levels_of
from suffice.replay.study.runs import Halts, Runs, never_halt
from suffice.replay.study.scores import (
    HOPELESS_KEY,
    SCORES,
    CrossFit,
    Model,
    Score,
    ScoredRows,
    features_of,
    good_rows,
    risk_and_codes,
    score_rows,
)
from suffice.replay.study.sums import MARGIN, NONE, QuestionSums, folds_of, sum_halts
from suffice.signals.features import Classes

N_LEVELS = 61


Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    max_em_drop: float = 0.01  # target, a fraction
    margin: float = MARGIN  # in standard errors, between the target and the drop where a point is picked
    probe_tokens: int | None = None  # per probe; None: as recorded, else 15 for `reasoning`
    scores: tuple[Score, ...] = SCORES  # (): no learned scores
    seed: int = 0
    n_draws: int = 1_000  # of the bootstrap

    def excess(self, drop: float, error: float) -> float:
        """How far a drop with its margin exceeds the target; at most 0 if it keeps it."""
        return drop + self.margin * error - self.max_em_drop


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions(StudyOptions):
    families: tuple[str, ...] = ()  # published policies and "learned"; (): all
    policies: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # given policies, by label


class LadderPool(NamedTuple):
    name: str
    ladders: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldChoice:
    """The choice of one fold, or of the `fit` runs: a rung for each pool, and the models it needs."""

    rungs: Mapping[str, Rung | None]  # by pool; None: never stop
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


Laid: TypeAlias = tuple[Sequence[Rung], Sequence[Halts]]  # the rungs of a ladder, and where each ends the runs


def lay_ladders(ladders: Sequence[Ladder], runs: Runs) -> dict[str, Laid]:
    return {ladder.name: (ladder.rungs, [halts_of(rung, runs) for rung in ladder.rungs]) for ladder in ladders}


def lay_score(name: str, scored: ScoredRows, levels: Floats, runs: Runs) -> Laid:
    rungs = [ScoreRung(score=name, level=float(level), label=f"{name} {level:.3g}") for level in levels]
    return rungs, halts_at(scored.risk, levels, runs, scored.codes)


def sum_rungs(runs: Runs, laid: Mapping[str, Laid]) -> RungSums:
    rungs, halts = list[Rung](), list[Halts]()
    slices: dict[str, slice] = {}
    for name, (own, ends) in laid.items():
        slices[name] = slice(len(rungs), len(rungs) + len(own))
        rungs += own
        halts += ends
    return RungSums(sums=sum_halts(runs, halts), rungs=tuple(rungs), slices=slices)


class Study:
    def __init__(
        self, runs: Runs, ladders: Sequence[Ladder], options: ReplayOptions, tick: Callable[[], None] = lambda: None
    ) -> None:
        self.runs = runs
        self.ladders = tuple(ladders)
        self.options = options
        self.fold = folds_of(runs)
        self._laid = lay_ladders(ladders, runs)
        read = sorted({score.query_signals for score in options.scores} | {True}) if options.scores else []
        self._fits = {key: CrossFit(runs, seed=options.seed, query_signals=key, tick=tick) for key in read}
        self.applied = FrozenScores(options.scores, {key: fit.chosen for key, fit in self._fits.items()})

    def train(self, v: int | None) -> Bools:
        """The runs on questions outside fold `v`, or all, shape (E,)."""
        return np.ones(len(self.runs), dtype=bool) if v is None else self.fold != v

    def risk(self, score: Score, v: int | None) -> ScoredRows:
        p = self._fits[score.query_signals].scores(score.key, v)
        return risk_and_codes(score, p, self._fits[True].scores(HOPELESS_KEY, v), self.runs)

    def sum_rungs(self, v: int | None) -> RungSums:
        laid, train = dict(self._laid), self.train(v)[self.runs.run_of_row]
        for score in self.options.scores:
            scored = self.risk(score, v)
            laid[score.name] = lay_score(score.name, scored, levels_of(scored.risk[train], N_LEVELS), self.runs)
        return sum_rungs(self.runs, laid)

    def freeze(self, pools: Sequence[LadderPool], v: int | None) -> FoldChoice:
        """Pick each pool's point on the questions outside fold `v`, or on all; keep the models that it needs."""
        rung_sums = self.sum_rungs(v)
        rungs: dict[str, Rung | None] = {}
        for pool in pools:
            sums, of_pool, slices = rung_sums.of(pool.ladders)
            at = sums.measure(sums.weights(v))
            choice = int(at.pick(slices, self.options.max_em_drop, self.options.margin)[0])
            rungs[pool.name] = None if choice == NONE else of_pool[choice]
        left_out = () if v is None else (v,)
        models = {s.name: self._fits[s.query_signals].model(s.key, left_out) for s in self.options.scores}
        if models:
            models["hopeless"] = self._fits[True].model(HOPELESS_KEY, left_out)
        return FoldChoice(rungs=rungs, models=models)


@dataclass(frozen=True, slots=True)
class FrozenScores:
    """What of a study judges other runs, without the runs that it was made of."""

    scores: tuple[Score, ...]
    chosen: Mapping[bool, FeatureSelection]  # with and without signals of the query

    def halts(self, frozen: FoldChoice, runs: Runs) -> dict[str, Halts]:
        halts: dict[str, Halts] = {}
        scored: dict[str, ScoredRows] = {}
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

    def score_others(self, name: str, frozen: FoldChoice, runs: Runs) -> ScoredRows:
        score = next(score for score in self.scores if score.name == name)
        x = {key: features_of(runs, self.chosen[key]) for key in {True, score.query_signals}}
        hopeless = score_rows(frozen.models["hopeless"], x[True])
        return risk_and_codes(score, score_rows(frozen.models[name], x[score.query_signals]), hopeless, runs)


# ---- classes found in the data

MIN_QUESTIONS: Final = 20  # per class


class ClassPartition(NamedTuple):
    classes: Classes | None  # None: no classes
    names: tuple[str, ...]  # of the large classes
    number: Floats  # E: index into `names`; NaN: a small class, or none


def number_classes(runs: Runs, keep: Bools, most: int) -> ClassPartition:
    """Find up to `most` classes in the runs where `keep` holds, and classify all runs; none below two large ones."""
    if most >= 2:
        good = good_rows(runs, "as-good")[runs.starts[:-1]]
        known = [runs.queries[i] for i in np.flatnonzero(keep).tolist()]
        classes = find_classes(known, good[keep], max_classes=most)
        of_run = [classes.of(query) for query in runs.queries]
        names = find_large_classes(of_run, runs.question, keep)
        if len(names) >= 2:
            place = {name: float(at) for at, name in enumerate(names)}
            return ClassPartition(classes, names, np.array([place.get(name, np.nan) for name in of_run]))
    return ClassPartition(None, (), np.full(len(runs), np.nan))


def find_large_classes(of_run: Sequence[str], question: Sequence[str], keep: Bools) -> tuple[str, ...]:
    """The classes with enough runs and questions where `keep` holds, in the order of their first runs."""
    questions = defaultdict[str, list[str]](list)
    for i in np.flatnonzero(keep).tolist():
        questions[of_run[i]].append(question[i])
    return tuple(
        name for name, own in questions.items() if len(own) >= MIN_CLASS_RUNS and len(set(own)) >= MIN_QUESTIONS
    )
