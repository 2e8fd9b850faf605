"""Models that serve and judge by fold: how they are fitted on audits, which score they give, how levels are cut.

A version has one score: P(a stop is as good as the full run) over a power of the cost of a step, or the value of
stopping, Q(stop) - Q(continue) at a price of tokens. The first is kept unless runs that no model was fitted on show
that the second saves more within the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.learn.audits import NO_AUDITS, AuditRuns, LevelEnds, find_first_passages
from suffice.learn.features import FeatureSelection
from suffice.learn.models import FitResult, Trajectories, export_advantage, export_stop_model, fit_values
from suffice.model.artefact import StepCost, StopModel, TrainingRecord
from suffice.model.ensemble import Ensemble
from suffice.policy.folded_version import FoldedVersion

N_FOLDS: Final = 5
N_LEVELS: Final = 41
LEAST_AUDITS: Final = 40  # for a fit
N_CANDIDATES: Final = 400  # thresholds from which levels are picked
HALF_LIFE: Final = 800.0  # of a row's weight, in audits
MOST_AUDITS: Final = 3_000  # of a fit
_LOST: Final = 0.5  # P(fails) from which a run is hopeless and a stop needs no answer (`policy.learned`)

VALUE_PRICES: Final[Floats] = np.geomspace(0.03, 3.0, 5)  # EM that the tokens of a mean full run are worth
_LEAST_GAIN: Final = 0.005  # of all tokens, by which the value of stopping must save more …
_BEYOND: Final = 3.0  # … and by this many standard errors; luck alone passed in 1 of 200 simulated fits

PGood: TypeAlias = Callable[[Floats], Floats]  # features (R, P) → the score of a stop, [0, 1], (R,)
Learner: TypeAlias = Callable[[Floats, Bools, Floats], PGood]  # rows, good, weights → the fitted model
Split: TypeAlias = Literal["folds", "half"]
ScoreTarget: TypeAlias = Literal["as-good", "value"]


@dataclass(frozen=True, slots=True, eq=False)
class EnsembleScore:
    """A score as plain data."""

    ensemble: Ensemble

    def __call__(self, x: Floats) -> Floats:
        return self.ensemble.scores(x)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldedModels:
    models: tuple[PGood, ...]  # K
    levels: Floats  # (K, M): risk at or below which a run of the fold stops; level 0 is below all
    cost_exponent: float  # the risk is 1 - score over the tokens of a step to this power
    target: ScoreTarget = "as-good"

    @property
    def n_levels(self) -> int:
        return int(self.levels.shape[1])

    def risk(self, runs: AuditRuns) -> Floats:
        """Risk of a stop after each row, shape (T,)."""
        one_minus_p = self._one_minus_p(runs.x, runs.fold[runs.run_of_row])
        return level_risk(one_minus_p, runs, self.cost_exponent)

    def rows(self, runs: AuditRuns) -> Ints:
        """Row where each level ends each run, shape (N, M)."""
        return self._passages(runs, self.levels)

    def ends(self, runs: AuditRuns) -> LevelEnds:
        """As `rows`, with the other orders of votes."""
        return LevelEnds(self.rows(runs), self.rows(NO_AUDITS if runs.orders is None else runs.orders.runs))

    def rows_at(self, runs: AuditRuns, level: int) -> Ints:
        """Row where one level ends each run, shape (N,)."""
        if level == 0 or not len(runs):
            return runs.last
        return self._passages(runs, self.levels[:, level : level + 1])[:, 0]

    def expected(self, runs: AuditRuns, stops: Ints) -> Floats | None:
        """Expected loss of each run stopped at a row, shape (N,); None: the score is no probability."""
        if self.target != "as-good":
            return None
        lost, stopped = np.zeros(len(runs)), np.flatnonzero(stops < runs.last)
        lost[stopped] = self._one_minus_p(runs.x[stops[stopped]], runs.fold[stopped])
        return lost

    def _one_minus_p(self, x: Floats, fold: Small) -> Floats:
        missing = np.empty(len(fold))
        for f, model in enumerate(self.models):
            rows = np.flatnonzero(fold == f)
            if len(rows):
                missing[rows] = 1.0 - model(x[rows])
        return missing

    def _passages(self, runs: AuditRuns, levels: Floats) -> Ints:
        """All folds share ranks of levels, so one pass serves them all."""
        risk, rank = self.risk(runs), np.empty(len(runs.x))
        fold = runs.fold[runs.run_of_row]
        for f in range(len(self.models)):
            rows = np.flatnonzero(fold == f)
            # The rank of the first level that would stop here.
            rank[rows] = np.searchsorted(levels[f], np.where(np.isnan(risk[rows]), np.inf, risk[rows]), side="left")
        return find_first_passages(rank, runs.starts, np.arange(levels.shape[1], dtype=np.float64)).T


def level_risk(one_minus_p: Floats, runs: AuditRuns, exponent: float) -> Floats:
    """1 - P(as good) over a power of the step's cost: a stop that saves more may risk more; nan: may not stop."""
    risk = one_minus_p / runs.per_step**exponent if exponent else one_minus_p
    return np.where(runs.may_stop, risk, np.nan)


def fit_served(
    runs: AuditRuns,
    learner: Learner,
    *,
    now: float,
    max_em_drop: float | None = None,
    label_free: bool = False,
    split: Split = "folds",
    n_levels: int = N_LEVELS,
    cost_exponent: float = 0.5,
    weight: Floats | None = None,
) -> FoldedModels | None:
    """Fit the models and cut their levels; None: too little data.

    The target is "stopping here is as good as the full run": by label where there is one, else by agreement. Levels of
    a model are cut on the runs that it was fitted on, never on those that will judge it.

    now          in the unit of `runs.at`; later labels are not read
    max_em_drop  budget at which the value of stopping is tried, too; None: it is not
    split        "folds": a model for each fold, and every audit certifies; "half": one model, fitted on the even folds,
                 and only odd folds certify, which is exact; then no run is left to choose between scores
    weight       of each run; None: the last `MOST_AUDITS`, which fade in fits
    """
    runs = runs.without_orders()
    if weight is None:
        runs = runs.take(np.arange(max(0, len(runs) - MOST_AUDITS), len(runs)))
        weight, judging = 0.5 ** (np.arange(len(runs) - 1, -1, -1.0) / HALF_LIFE), np.ones(len(runs))
    else:
        judging = weight
    kept_out = [runs.fold % 2 == 1] if split == "half" else [runs.fold == f for f in range(N_FOLDS)]
    learn_from = [np.flatnonzero(~out) for out in kept_out]
    if min(map(len, learn_from)) < LEAST_AUDITS:
        return None
    parts = [_Part.of(runs.take(which), weight[which], now, label_free) for which in learn_from]
    learned = _with_levels([learner(*part.examples()) for part in parts], parts, n_levels, cost_exponent)
    if max_em_drop is None or split == "half":
        return learned
    return _better_score(learned, parts, _Part.of(runs, judging, now, label_free), max_em_drop)


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Runs with what counts of them: the loss after each row, shape (T,), by label or else by disagreement."""

    runs: AuditRuns
    loss: Floats
    weight: Floats  # (N,)

    @classmethod
    def of(cls, runs: AuditRuns, weight: Floats, now: float, label_free: bool) -> _Part:
        labelled = (runs.label_at <= now)[runs.run_of_row] & (not label_free)
        return cls(runs, np.where(labelled, runs.z, runs.d).astype(np.float64), weight)

    def examples(self) -> tuple[Floats, Bools, Floats]:
        weight = self.weight[self.runs.run_of_row]
        example = self.runs.inner & (weight > 0)
        return self.runs.x[example], (self.loss <= 0)[example], weight[example]

    def trajectories(self) -> Trajectories | None:
        """The runs with a known end; None: none of them has two steps."""
        runs, of_row = self.runs, (self.weight * ~self.runs.abandoned)[self.runs.run_of_row]
        if not (of_row * runs.inner).any():
            return None
        return Trajectories(x=runs.x, starts=runs.starts, ok=-self.loss, tokens=runs.cost, weight=of_row)


def _with_levels(
    models: Sequence[PGood], parts: Sequence[_Part], n_levels: int, exponent: float, target: ScoreTarget = "as-good"
) -> FoldedModels:
    levels = []
    for model, part in zip(models, parts, strict=True):
        levels.append(cut_levels(level_risk(1.0 - model(part.runs.x), part.runs, exponent), part.runs, n_levels))
    each = N_FOLDS // len(models)
    return FoldedModels(
        models=tuple(models) * each, levels=np.stack(levels * each), cost_exponent=exponent, target=target
    )


def _better_score(learned: FoldedModels, parts: Sequence[_Part], whole: _Part, max_em_drop: float) -> FoldedModels:
    """The learned score, or the value of stopping where that saves more within the budget beyond its standard error.

    Each run is judged by models that were not fitted on it. The error is a jackknife over folds, because the runs of a
    question share one (Efron and Stein 1981, Annals of Statistics 9(3)).
    """
    known = [one for part in parts if (one := part.trajectories()) is not None]
    if len(known) < len(parts):
        return learned
    fitted = [fit_values(one, prices=VALUE_PRICES) for one in known]
    ours = _saved_within(learned, whole, max_em_drop)
    best = learned
    most = _LEAST_GAIN
    for at in range(len(VALUE_PRICES)):
        scores = [EnsembleScore(export_advantage(values, at)) for values in fitted]
        tried = _with_levels(scores, parts, learned.n_levels, 0.0, "value")
        gain = _saved_within(tried, whole, max_em_drop) - ours
        error = np.sqrt((N_FOLDS - 1) * gain[1:].var())
        if gain[0] > max(most, _BEYOND * error):
            best, most = tried, float(gain[0])
    return best


def _saved_within(served: FoldedModels, whole: _Part, max_em_drop: float) -> Floats:
    """`saving_within` on all runs, then without each fold in turn, shape (1 + N_FOLDS,)."""
    runs = whole.runs
    weight = whole.weight
    rows = served.rows(whole.runs)
    counted = (np.arange(N_FOLDS)[:, None] != runs.fold) * weight
    counted = np.concatenate([weight[None, :], counted])
    drop = counted @ whole.loss[rows] / counted.sum(axis=1, keepdims=True)
    return saving_within(drop, 1 - counted @ runs.cost[rows] / (counted @ runs.full)[:, None], max_em_drop)


def saving_within(drop: Floats, saving: Floats, max_em_drop: float) -> Floats:
    """What the best level within a drop saves, in hindsight, as the mean over drops up to the budget.

    drop, saving  of each level in each sample of the runs, (samples, M)
    """
    budgets = np.linspace(0.1, 1.0, 10) * max_em_drop
    within = [np.where(drop <= budget, saving, saving[:, :1]).max(axis=1) for budget in budgets]
    return np.asarray(np.mean(within, axis=0))


def cut_levels(risk: Floats, runs: AuditRuns, n_levels: int) -> Floats:
    """Thresholds of M levels, evenly spaced in the tokens that they save on these runs; level 0 is -infinity."""
    known = risk[np.isfinite(risk)]
    if not len(known):
        return np.full(n_levels, -np.inf)
    shares = np.geomspace(max(3e-4, 1 / len(known)), 1.0, N_CANDIDATES)
    candidates = np.unique(np.quantile(known, shares))
    saved = np.maximum.accumulate(np.maximum(_saved(risk, runs, candidates), 0.0))
    wanted = saved[-1] * np.arange(1, n_levels) / (n_levels - 1)
    at = np.minimum(np.searchsorted(saved, wanted - 1e-9), len(candidates) - 1)
    return np.concatenate([[-np.inf], candidates[at]])


def _saved(risk: Floats, runs: AuditRuns, thresholds: Floats) -> Floats:
    """Tokens that each threshold saves, shape (thresholds,). Once below a record low, a run stops at the next one."""
    run, sizes = runs.run_of_row, np.diff(runs.starts)
    padded = np.full((len(runs), int(sizes.max(initial=1)) + 1), np.inf)
    step = np.arange(len(risk)) - runs.starts[run]
    padded[run, step + 1] = np.where(np.isnan(risk), np.inf, risk)
    records = np.flatnonzero(risk < np.minimum.accumulate(padded, axis=1)[run, step])
    ends = np.append(run[records[1:]] != run[records[:-1]], True)[: len(records)]
    following = np.where(ends, runs.last[run[records]], np.append(records[1:], 0)[: len(records)])
    order = np.argsort(risk[records], kind="stable")
    gained = np.concatenate([[0.0], np.cumsum((runs.cost[following] - runs.cost[records])[order])])
    reached = np.searchsorted(risk[records][order], thresholds, side="right")
    return np.asarray(runs.full.sum() - runs.cost[runs.last].sum() + gained[reached])


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedVersion(FoldedModels):
    version: FoldedVersion

    @property
    def features(self) -> FeatureSelection:
        return FeatureSelection(tuple(self.version.models[0].features), ())


@dataclass(frozen=True, slots=True, eq=False)
class _Among:
    """A score of some of the features of a row."""

    ensemble: Ensemble
    places: Ints

    def __call__(self, x: Floats) -> Floats:
        return self.ensemble.scores(x[:, self.places])


def fold_version(version: FoldedVersion, *, among: Sequence[str] = ()) -> ServedVersion:
    """The version as it serves and is certified.

    among  the features of the rows, in order; (): those of its models. Raise ValueError where one of these is missing.
    """
    levels = np.array(version.levels, dtype=np.float64)
    cost = version.models[0].cost
    scores: list[PGood] = [model.suffices.scores for model in version.models]
    if among:
        places = np.array([among.index(name) for name in version.models[0].features], dtype=np.int64)
        scores = [_Among(model.suffices, places) for model in version.models]
    levels = np.concatenate([np.full((len(levels), 1), -np.inf), levels / cost.scale], axis=1)
    each = N_FOLDS if len(levels) == 1 else 1  # a rule was fitted on no fold, and serves all
    return ServedVersion(
        version=version,
        models=tuple(scores) * each,
        levels=np.repeat(levels, each, axis=0),
        cost_exponent=cost.exponent,
        target="value" if version.target == "value" else "as-good",
    )


def export_version(
    fitted: FoldedModels,
    chosen: FeatureSelection,
    trained: Sequence[TrainingRecord],
    hopeless: Sequence[FitResult | None] = (None,) * N_FOLDS,
) -> FoldedVersion | None:
    """The fitted models as plain data, with a record for each; None: their runs have no level that stops."""
    if not np.isfinite(fitted.levels[:, 1:]).all():
        return None
    cost, models = StepCost(fitted.cost_exponent), list[StopModel]()
    for score, facts, failing in zip(fitted.models, trained, hopeless, strict=True):
        assert isinstance(score, EnsembleScore), "only plain data is exported"
        models.append(export_stop_model(chosen, score.ensemble, failing, trained=facts, cost=cost))
    return FoldedVersion(models=tuple(models), levels=tuple(map(tuple, fitted.levels[:, 1:].tolist())))


def as_served(runs: AuditRuns, version: FoldedVersion) -> AuditRuns:
    """The runs with `may_stop` extended to rows that the version calls hopeless, which need no answer."""
    lost = np.zeros(len(runs.x), dtype=bool)
    fold = runs.fold[runs.run_of_row]
    for f, model in enumerate(version.models):
        if model.hopeless is not None:
            rows = np.flatnonzero((fold == f) & ~runs.may_stop)
            lost[rows] = model.hopeless.scores(runs.x[rows]) >= _LOST
    return replace(runs, may_stop=runs.may_stop | lost)
