"""A whole study of one set: published rules and learned scores, tuned on some questions, judged on others.

    runs ──▶ ladders ──▶ sums by question ──▶ points picked on training questions ──▶ halts of unseen ones
             scores                            (nested: a score, too, has not seen them)

Without other files the questions are cut into five folds by their hash: for each fold, scores are fitted and
points picked on the other four. With `fit` runs, both come from those alone. What is reported as *frozen*
was picked on questions that are not in the figure; *hindsight* was picked on the very questions shown.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from suffice.learn.features import FeatureSelection
from suffice.policy.columns import SUFFICES
from suffice.replay.study.ladders import ClassedRung, Ladder, PolicyRung, RiskRung, halts_at, halts_of, levels_of
from suffice.replay.study.points import MARGIN, NONE, pick_policies, seen
from suffice.replay.study.runs import Floats, Halts, Runs, Says
from suffice.replay.study.scores import (
    CrossFit,
    ExampleTable,
    Key,
    Model,
    Score,
    features_for,
    features_of,
    make_table,
    score_rows,
    stop_codes,
    stopping_risk,
)
from suffice.replay.study.sums import QuestionSums, SumsFold, folds_of

N_LEVELS = 61
HOPELESS_KEY: Key = ("hopeless", "linear")

Tick = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyOptions:
    """What a study is asked for."""

    max_em_drop: float = 0.01  # fraction: the target
    scores: tuple[Score, ...] = ()  # learned scores; () leaves out everything that needs training
    margin: float = MARGIN
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LadderPool:
    """Ladders that one pick chooses from."""

    name: str
    ladders: tuple[str, ...]  # by name


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldChoice:
    """What one fold, or the runs of the `fit` files, settled on: a rung for each pool, and the models it needs."""

    rungs: Mapping[str, PolicyRung | RiskRung | ClassedRung | None]  # by pool; None: never stop
    saved: Mapping[str, float] = field(default_factory=dict)  # by pool: token reduction where the point was picked
    models: Mapping[str, Model] = field(default_factory=dict)  # by score, and "hopeless"


@dataclass(frozen=True, slots=True, kw_only=True)
class Laid:
    """Every rung of every ladder on some runs, summed by question."""

    sums: QuestionSums
    rungs: tuple[PolicyRung | RiskRung, ...]
    slices: Mapping[str, slice]  # by ladder

    def of(self, ladders: Sequence[str]) -> tuple[QuestionSums, tuple[PolicyRung | RiskRung, ...], list[slice]]:
        """The sums, rungs and new slices of some ladders alone."""
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


def fix(ladders: Sequence[Ladder], runs: Runs) -> list[tuple[Ladder, list[Halts]]]:
    """Where each policy of each ladder ends the runs: nothing in it is learned, so it is computed once."""
    return [
        (ladder, [halts_of(rung, runs) for rung in ladder.rungs if isinstance(rung, PolicyRung)]) for ladder in ladders
    ]


def lay(runs: Runs, fixed: Fixed, learned: Mapping[str, ScoreLevels]) -> Laid:
    """Every rung of every ladder on the runs, summed by question."""
    rungs: list[PolicyRung | RiskRung] = []
    halts: list[Halts] = []
    slices: dict[str, slice] = {}
    for ladder, of_ladder in fixed:
        slices[ladder.name] = slice(len(rungs), len(rungs) + len(of_ladder))
        rungs += ladder.rungs
        halts += of_ladder
    for name, (risk, codes, levels) in learned.items():
        slices[name] = slice(len(rungs), len(rungs) + len(levels))
        rungs += [RiskRung(score=name, level=float(level), label=f"{name} {level:.3g}") for level in levels]
        halts += halts_at(risk, levels, runs, codes)
    summing = SumsFold(len(rungs))
    summing.add(runs, halts, [rung.asks for rung in rungs])
    return Laid(sums=summing.sums(), rungs=tuple(rungs), slices=slices)


class Study:
    """The runs of one set with everything that is computed from them once."""

    def __init__(self, runs: Runs, ladders: Sequence[Ladder], options: StudyOptions, tick: Tick = lambda: None) -> None:
        self.runs, self.ladders, self.options = runs, tuple(ladders), options
        self.fold = folds_of(runs)
        self._fixed = fix(ladders, runs)
        self._tables: dict[bool, ExampleTable] = {}
        self._fits: dict[bool, CrossFit] = {}
        if options.scores:
            for query_signals in sorted({score.query_signals for score in options.scores} | {True}):
                chosen = features_for(runs, query_signals=query_signals)
                table = make_table(runs, chosen, self.fold)
                self._tables[query_signals] = table
                self._fits[query_signals] = CrossFit(runs, table, seed=options.seed, tick=tick)

    def chosen(self, score: Score) -> FeatureSelection:
        """The features that a score's model reads."""
        return self._tables[score.query_signals].chosen

    # ---- scores -----------------------------------------------------------------------------------

    def _p(self, score: Score, v: int | None) -> Says:
        fits, key = self._fits[score.query_signals], (score.target, score.parts)
        return fits.out_of_fold(key) if v is None else fits.without(v, key)

    def _hopeless(self, v: int | None) -> Floats:
        fits = self._fits[True]
        return fits.out_of_fold(HOPELESS_KEY) if v is None else fits.without(v, HOPELESS_KEY)

    def risk(self, score: Score, v: int | None) -> tuple[Says, NDArray[np.int8]]:
        """Risk and stop codes of every row: cross-fitted for all rows, or as outer fold `v` may use them."""
        return risk_and_codes(score, self._p(score, v), self._hopeless(v), self.runs)

    # ---- every rung -------------------------------------------------------------------------------

    def lay(self, v: int | None) -> Laid:
        """All rungs of all ladders: published ones, and learned ones at the levels that fold `v` may know."""
        train = np.ones(len(self.runs.cost), dtype=bool) if v is None else self.fold[self.runs.run_of_row] != v
        learned = {}
        for score in self.options.scores:
            risk, codes = self.risk(score, v)
            learned[score.name] = ScoreLevels(risk, codes, self.levels(risk[train]))
        return lay(self.runs, self._fixed, learned)

    def levels(self, risk: Says) -> Floats:
        """The levels of a score's ladder, from what it says of the rows that may be known."""
        return levels_of(risk, N_LEVELS)

    # ---- points -----------------------------------------------------------------------------------

    def freeze(self, pools: Sequence[LadderPool], v: int | None) -> FoldChoice:
        """Pick each pool's point on the questions outside fold `v`, or on all; keep the models that it needs."""
        laid = self.lay(v)
        rungs: dict[str, PolicyRung | RiskRung | ClassedRung | None] = {}
        saved: dict[str, float] = {}
        for pool in pools:
            sums, of_pool, slices = laid.of(pool.ladders)
            weights = (np.ones(len(sums.n)) if v is None else (sums.fold != v).astype(np.float64))[None, :]
            at = seen(sums, weights)
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
        """Where each frozen point ends runs that it has not seen, by its name in `frozen.rungs`."""
        found: dict[str, Halts] = {}
        scored: dict[str, tuple[Says, NDArray[np.int8]]] = {}
        for name, rung in frozen.rungs.items():
            if rung is None:
                found[name] = Halts(runs.last, np.zeros(len(runs), dtype=np.int8))
            elif isinstance(rung, PolicyRung):
                found[name] = halts_of(rung, runs)
            else:
                if rung.score not in scored:
                    scored[rung.score] = self.score_others(rung.score, frozen, runs)
                found[name] = rung.halts(*scored[rung.score], runs)
        return found

    def score_others(self, name: str, frozen: FoldChoice, runs: Runs) -> tuple[Says, NDArray[np.int8]]:
        """Risk and stop codes of other runs by frozen models."""
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
