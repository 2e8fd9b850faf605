"""Searches policies and their parameters, and estimates how far the winner's own figures can be trusted.

The search runs once on all questions and once outside each fold, scores included. How much the in-search figures of the
folds' winners exceed their figures on the unseen fold is the *optimism*. Trials come from Optuna's TPE (Bergstra,
Bardenet, Bengio, Kégl 2011, NeurIPS), seeded.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Bools, Floats, Ints
from suffice.assurance.bounds import Interval
from suffice.errors import ConfigError, TraceError
from suffice.extras import how_to_install
from suffice.learn.features import DENSE
from suffice.policy.base import build_policy
from suffice.policy.columns import CONTINUE, QueryColumns, stops_of
from suffice.replay.study.policies import LEARNED, Size, draw_spec, list_first_tries, list_policies, list_searched_folds
from suffice.replay.study.runs import Runs, find_first_stops, read_runs
from suffice.replay.study.scores import (
    CLASS_COLUMN,
    ScoreTable,
    Spec,
    build_scored,
    find_learned,
    find_model_name,
    n_parts,
    title_of,
)
from suffice.replay.study.study import ClassPartition, StudyOptions, Tick, number_classes
from suffice.replay.study.sums import (
    N_FOLDS,
    Difference,
    QuestionSums,
    base_columns,
    columns_of,
    compare_nested,
    draw_questions,
    groups_of,
    sum_by_group,
)
from suffice.replay.traces.read import Survey
from suffice.signals.base import reads_answers
from suffice.signals.features import FeatureSet
from suffice.types import Kind

_NEGLIGIBLE = 0.001  # token reduction that is not worth a second policy
_INFEASIBLE = 2.0  # below every saving; misses rank by their distance from the target


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    token_reduction: float
    em_drop: float
    error: float  # standard error of the drop, clustered by question


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalValue:
    """A number with its 95 % interval, by resampling whole questions."""

    value: float
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimism:
    """In-search figures of the folds' winners, their figures on unseen questions, and the difference.

    In-search figures are means over the folds. The bootstrap resamples questions, not searches.
    """

    token_reduction_in_search: IntervalValue
    token_reduction_unseen: IntervalValue
    token_reduction: IntervalValue  # in search - unseen; above 0: the search overstates
    em_drop_in_search: IntervalValue
    em_drop_unseen: IntervalValue
    em_drop: IntervalValue  # unseen - in search


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterFold:
    fold: int
    n_questions: int  # in the fold
    spec: Spec | None  # None: never stop
    in_search: PolicyFigures
    unseen: PolicyFigures
    n_trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSet:
    set: str
    kind: Kind
    n_episodes: int
    n_questions: int
    share: float  # share of the set's questions that fit in memory
    full_em: float
    max_em_drop: float  # the target
    margin: float
    seed: int
    folds: tuple[OuterFold, ...]
    optimism: Optimism
    proposal: Spec | None  # the winner on all questions; None: never stop
    proposal_in_search: PolicyFigures
    n_trials: int  # in that search
    n_trials_in_all: int
    n_searches: int
    by_class: Difference | None = None  # on unseen questions, over as many trials without levels by class

    @property
    def winners(self) -> dict[str, int]:
        return dict(Counter(title_of(fold.spec) for fold in self.folds).most_common())


@dataclass(frozen=True, slots=True, kw_only=True)
class TuneOptions(StudyOptions):
    classes: int = 0  # most classes with levels of their own; 0: none
    trials: int = 200  # per search; one search per fold and one on all questions
    time_limit_s: float | None = None  # for all searches together; None: no limit
    policies: tuple[str, ...] = ()  # names to search, "learned" for the learned scores; (): all that apply


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    spec: Spec | None  # None: no trial met the target and saved tokens
    sums: QuestionSums  # of this policy only
    n_trials: int


@dataclass(slots=True)
class Bench:
    runs: Runs
    options: TuneOptions
    scores: ScoreTable | None
    names: tuple[str, ...]  # policies to try
    share: float = 1.0  # share of the set's questions
    fold: Ints = field(init=False)  # of each question
    _group: Ints = field(init=False)  # question of each run
    _no_policies: QuestionSums = field(init=False)  # with no policies
    _readable: QueryColumns = field(init=False)
    _sorted_risks: dict[tuple[str, int | None, str | None], Floats] = field(default_factory=dict)
    _judged: dict[tuple[str, int | None], QuestionSums] = field(default_factory=dict)
    _classes: dict[int | None, ClassPartition] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._group, self.fold = groups_of(self.runs)
        base = sum_by_group(self._group, base_columns(self.runs), len(self.fold))
        self._no_policies = QuestionSums(fold=self.fold, base=base, values=np.empty(0))
        self._readable = self.runs.readable()

    def judge(self, spec: Spec | None, v: int | None) -> QuestionSums:
        """Return the sums of a policy; None never stops, and a vote still ends where it is decided."""
        model = None if spec is None else find_model_name(spec)
        place = (json.dumps(spec, sort_keys=True), v if model is not None else None)
        if place not in self._judged:
            self._judged[place] = self._judge(spec, model, v)
        return self._judged[place]

    def _judge(self, spec: Spec | None, model: str | None, v: int | None) -> QuestionSums:
        if spec is None:
            return self._sum(np.full(len(self.runs.run_of_row), CONTINUE, np.int8), asks=False)
        columns = self._readable
        if model is None:
            policy = build_policy(spec)
        else:
            assert self.scores is not None, "a spec names a model where there are scores"
            classes = self.classes(v)
            policy = build_scored(spec, self.scores.names, classes.names)
            own = {**columns, **self.scores.columns(model, v), CLASS_COLUMN: classes.number[self.runs.run_of_row]}
            columns = QueryColumns(own, queries=columns.queries, run=columns.run)
        asks = model is not None or reads_answers(policy.needs)
        return self._sum(stops_of(policy, columns), asks=asks)

    def _sum(self, codes: NDArray[np.int8], *, asks: bool) -> QuestionSums:
        columns_of_runs = columns_of(self.runs, find_first_stops(codes, self.runs, asks=asks))
        summed = sum_by_group(self._group, columns_of_runs, len(self.fold))
        return replace(self._no_policies, values=summed[:, None, :])

    def figures(self, spec: Spec | None, v: int | None) -> PolicyFigures:
        sums = self.judge(spec, v)
        return figures_of(sums, sums.weights(v))

    def taken(self, v: int | None) -> Bools:
        return np.ones(len(self.runs), dtype=bool) if v is None else self.fold[self._group] != v

    def classes(self, v: int | None) -> ClassPartition:
        if v not in self._classes:
            self._classes[v] = number_classes(self.runs, self.taken(v), self.options.classes if self.scores else 0)
        return self._classes[v]

    def level(self, model: str, share: float, v: int | None, name: str | None = None) -> float:
        """The risk at or below which this share of the steps, of class `name` if given, is outside fold `v`."""
        place = (model, v, name)
        if place not in self._sorted_risks:
            assert self.scores is not None, "a level belongs to a score"
            risk, mine = next(iter(self.scores.columns(model, v).values())), self.taken(v)
            if name is not None:
                classes = self.classes(v)
                mine = mine & (classes.number == classes.names.index(name))
            known = risk[mine[self.runs.run_of_row] & np.isfinite(risk)]
            self._sorted_risks[place] = np.sort(known) if len(known) else np.zeros(1)
        risks = self._sorted_risks[place]
        return float(f"{risks[min(len(risks) - 1, int(share * len(risks)))]:.6g}")

    def size(self, v: int | None, *, by_class: bool = False) -> Size:
        runs = self.taken(v)
        few, many = np.quantile(self.runs.full_tokens[runs], [0.02, 0.98])
        return Size(
            kind=self.runs.kind,
            longest=int(self.runs.n_steps[runs].max()),
            few_tokens=max(1, int(few / 4)),
            many_tokens=max(2, int(many) + 1),
            models=tuple(self.scores.names) if self.scores is not None else (),
            level=lambda model, share, name: self.level(model, share, v, name),
            classes=self.classes(v).names if by_class else (),
        )


def make_bench(data: Survey, options: TuneOptions, tick: Tick = lambda _: None) -> Bench:
    """Read a set and compute its columns. Raise TraceError for data, ConfigError for policies or a missing package."""
    models = ("some",) if options.scores else ()
    known = list_policies(Size(kind=data.kind, longest=data.longest, few_tokens=1, many_tokens=2, models=models))
    for name in options.policies:
        if name not in known:
            raise ConfigError(f"policies: got {name!r:.80}; for {data.kind}: {', '.join(known)}")
    names = tuple(name for name in known if not options.policies or name in options.policies)
    learned = FeatureSet(DENSE[data.kind]).needs if LEARNED in names else ()
    needs = tuple(dict.fromkeys((*list_searched_folds(names), *learned)))
    tick("reading")
    runs = read_runs(data, needs, probe_tokens=options.probe_tokens, longest=data.longest)
    scores = None
    if LEARNED in names:
        scores = ScoreTable(runs, options.scores, seed=options.seed, tick=lambda: tick("fitting"))
    return Bench(runs, options, scores, names, data.share)


def tune_runs(bench: Bench, *, clock: Callable[[], float], tick: Tick = lambda _: None) -> TunedSet:
    """Run all searches. Raise TraceError for too few questions, and ConfigError for a missing package.

    clock  monotonic seconds; called only with a time limit
    """
    options, runs = bench.options, bench.runs
    folds = [v for v in range(N_FOLDS) if (bench.fold == v).any()]
    if len(folds) < 2:
        raise TraceError(f"contains {len(bench.fold)} questions, too few to hold some out", file=runs.set)
    classed = options.classes > 0
    both = (False, True) if classed else (False,)
    plans: list[tuple[int | None, bool]] = [(v, by_class) for v in folds for by_class in both]
    plans.append((None, classed))
    searches: dict[tuple[int | None, bool], SearchResult] = {}
    end_s = None if options.time_limit_s is None else clock() + options.time_limit_s
    for at, (v, by_class) in enumerate(plans):
        place = "on all questions" if v is None else f"without fold {folds.index(v) + 1} of {len(folds)}"
        searches[v, by_class] = search(
            bench,
            v,
            by_class=by_class,
            until=None if end_s is None else (now := clock()) + max(0.0, end_s - now) / (len(plans) - at),
            clock=clock,
            tick=partial(tick, f"searching {place}"),
            also=[one.spec for one in searches.values() if one.spec is not None] if v is None else [],
        )
    nested, final = [(v, searches[v, classed]) for v in folds], searches[None, classed]
    by_class_worth = None
    if any(one.spec is not None and "classes" in find_learned(one.spec) for _, one in nested):
        plain = [(v, searches[v, False].sums) for v in folds]
        within = unseen_of([(v, one.sums) for v, one in nested])
        rng = np.random.default_rng(options.seed)
        by_class_worth = compare_nested(unseen_of(plain), within, n_draws=options.n_draws, rng=rng)
    return TunedSet(
        set=runs.set,
        kind=runs.kind,
        n_episodes=len(runs),
        n_questions=len(set(runs.question)),
        share=bench.share,
        full_em=float(runs.full_ok.mean()),
        max_em_drop=options.max_em_drop,
        margin=options.margin,
        seed=options.seed,
        folds=tuple(_outer_fold(v, one) for v, one in nested),
        optimism=optimism_of(
            [(v, one.sums) for v, one in nested], n_draws=options.n_draws, rng=np.random.default_rng(options.seed)
        ),
        proposal=final.spec,
        proposal_in_search=bench.figures(final.spec, None),
        n_trials=final.n_trials,
        n_trials_in_all=sum(one.n_trials for one in searches.values()),
        n_searches=len(searches),
        by_class=by_class_worth,
    )


def _outer_fold(v: int, winner: SearchResult) -> OuterFold:
    seen = winner.sums.weights(v)
    return OuterFold(
        fold=v,
        n_questions=int((1.0 - seen).sum()),
        spec=winner.spec,
        in_search=figures_of(winner.sums, seen),
        unseen=figures_of(winner.sums, 1.0 - seen),
        n_trials=winner.n_trials,
    )


def figures_of(sums: QuestionSums, weights: Floats) -> PolicyFigures:
    drop, error, saved = (float(value[0, 0]) for value in sums.measure(weights))
    return PolicyFigures(token_reduction=saved, em_drop=drop, error=error)


# ---- one search


def search(
    bench: Bench,
    v: int | None,
    *,
    until: float | None,
    clock: Callable[[], float],
    tick: Callable[[], None],
    by_class: bool = False,
    also: Sequence[Spec] = (),
) -> SearchResult:
    """Search on the questions outside fold `v`, or on all, for the largest saving within the target.

    by_class  allow one level per class for learned scores
    also      additional policies to try
    """
    options, size = bench.options, bench.size(v, by_class=by_class)
    study = _study(options, size, bench.names)
    seen = [(bench.figures(spec, v), spec) for spec in also]
    n_trials = 0
    while n_trials < options.trials and (until is None or not n_trials or clock() < until):
        trial = study.ask()
        n_trials += 1
        try:
            spec = draw_spec(trial, size, bench.names)
            seen.append((figure := bench.figures(spec, v), spec))
        except ConfigError:  # each parameter is valid, but not their combination
            study.tell(trial, -_INFEASIBLE - 1.0)
        else:
            excess = options.excess(figure.em_drop, figure.error)
            study.tell(trial, figure.token_reduction if excess <= 0 else -_INFEASIBLE - excess)
        tick()
    good = [(one.token_reduction, spec) for one, spec in seen if options.excess(one.em_drop, one.error) <= 0]
    winner = winner_of(good, least=bench.figures(None, v).token_reduction)
    return SearchResult(spec=winner, sums=bench.judge(winner, v), n_trials=n_trials)


def winner_of(good: Sequence[tuple[float, Spec]], *, least: float = 0.0) -> Spec | None:
    """The spec that saves most; within a tenth of a point, the first with the fewest parts.

    least  what full runs save, as votes that end when they are decided; a winner saves more
    """
    most = max((saved for saved, _ in good), default=least)
    if most <= least:
        return None
    enough = max(most - _NEGLIGIBLE, (most + least) / 2)
    nearly = [(n_parts(spec), -saved, spec) for saved, spec in good if saved >= enough]
    return min(nearly, key=lambda one: one[:2])[2]


def _study(options: TuneOptions, size: Size, names: Sequence[str]) -> Any:  # Any: Optuna is optional
    try:
        import optuna
    except ImportError:
        raise ConfigError(f"tune: needs Optuna: {how_to_install('train')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    tries = list_first_tries(size, names)
    sampler = optuna.samplers.TPESampler(seed=options.seed, n_startup_trials=min(len(tries), options.trials // 2))
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for tried in tries:
        study.enqueue_trial(tried)
    return study


# ---- optimism


def optimism_of(nested: Sequence[tuple[int, QuestionSums]], *, n_draws: int, rng: np.random.Generator) -> Optimism:
    """The optimism of searches, given for each the fold that it left out and the sums of its winner.

    Percentile intervals (Davison and Hinkley 1997, section 3.8); rough with fewer than about 20 questions.
    """
    fold = nested[0][1].fold
    draws = draw_questions(len(fold), n_draws, rng)
    weights = np.concatenate([np.ones((1, len(fold))), draws])  # the first row is the observed data
    measured = [_measure(sums, weights * (fold != v)) for v, sums in nested]
    (saved, drop), (saved_unseen, drop_unseen) = np.nanmean(measured, axis=0), _measure(unseen_of(nested), weights)
    return Optimism(
        token_reduction_in_search=_with_interval(saved),
        token_reduction_unseen=_with_interval(saved_unseen),
        token_reduction=_with_interval(saved - saved_unseen),
        em_drop_in_search=_with_interval(drop),
        em_drop_unseen=_with_interval(drop_unseen),
        em_drop=_with_interval(drop_unseen - drop),
    )


def unseen_of(nested: Sequence[tuple[int, QuestionSums]]) -> QuestionSums:
    first = nested[0][1]
    values = first.values.copy()
    for v, sums in nested:
        values[first.fold == v] = sums.values[first.fold == v]
    return replace(first, values=values)


def _measure(sums: QuestionSums, weights: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        at = sums.measure(weights)
    return np.stack([at.saved[:, 0], at.drop[:, 0]])


def _with_interval(values: Floats) -> IntervalValue:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return IntervalValue(value=float(values[0]), interval=Interval(float(low), float(high)))
