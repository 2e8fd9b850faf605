"""Models that serve and judge by fold: how they are fitted on audits, and how their levels are cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from suffice.arrays import Bools, Floats, Ints, Small
from suffice.learn.audits import NO_AUDITS, AuditRuns, LevelEnds, find_first_passages
from suffice.learn.features import FeatureSelection
from suffice.policy.folded_version import FoldedVersion

N_FOLDS: Final = 5
N_LEVELS: Final = 41
LEAST_AUDITS: Final = 40  # for a fit
N_CANDIDATES: Final = 400  # thresholds from which levels are picked
HALF_LIFE: Final = 800.0  # of a row's weight, in audits
MOST_AUDITS: Final = 3_000  # of a fit
_LOST: Final = 0.5  # P(fails) from which a run is hopeless and a stop needs no answer (`policy.learned`)

PGood: TypeAlias = Callable[[Floats], Floats]  # features (R, P) → P(stopping is as good), (R,)
Learner: TypeAlias = Callable[[Floats, Bools, Floats], PGood]  # rows, good, weights → the fitted model
Split: TypeAlias = Literal["folds", "half"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldedModels:
    models: tuple[PGood, ...]  # K
    levels: Floats  # (K, M): risk at or below which a run of the fold stops; level 0 is below all
    cost_exponent: float  # the risk is 1 - P over the tokens of a step to this power

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

    def expected(self, runs: AuditRuns, stops: Ints) -> Floats:
        """Expected loss of each run stopped at a row, shape (N,)."""
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
    label_free: bool = False,
    split: Split = "folds",
    n_levels: int = N_LEVELS,
    cost_exponent: float = 0.5,
) -> FoldedModels | None:
    """Fit the models and cut their levels; None: too little data.

    The target is "stopping here is as good as the full run": by label where there is one, else by agreement. Levels of
    a model are cut on the runs that it was fitted on, never on those that will judge it.

    now    in the unit of `runs.at`; later labels are not read
    split  "folds": a model for each fold, and every audit certifies; "half": one model, fitted on the even folds, and
           only odd folds certify, which is exact
    """
    recent = runs.without_orders().take(np.arange(max(0, len(runs) - MOST_AUDITS), len(runs)))
    kept_out = [recent.fold % 2 == 1] if split == "half" else [recent.fold == f for f in range(N_FOLDS)]
    models, levels = [], []
    for out in kept_out:
        learn_from = recent.take(np.flatnonzero(~out))
        if len(learn_from) < LEAST_AUDITS:
            return None
        model = learner(*_examples(learn_from, now, label_free))
        risk = level_risk(1.0 - model(learn_from.x), learn_from, cost_exponent)
        models.append(model)
        levels.append(cut_levels(risk, learn_from, n_levels))
    each = N_FOLDS // len(models)
    return FoldedModels(models=tuple(models * each), levels=np.stack(levels * each), cost_exponent=cost_exponent)


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


def _examples(runs: AuditRuns, now: float, label_free: bool) -> tuple[Floats, Bools, Floats]:
    run, example = runs.run_of_row, runs.inner
    labelled = (runs.label_at <= now)[run] & (not label_free)
    good = np.where(labelled, runs.z <= 0, ~runs.d)
    age = np.arange(len(runs) - 1, -1, -1.0)
    weight = (0.5 ** (age / HALF_LIFE))[run]
    return runs.x[example], good[example], weight[example]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServedVersion(FoldedModels):
    version: FoldedVersion

    @property
    def features(self) -> FeatureSelection:
        return FeatureSelection(tuple(self.version.models[0].features), ())


def fold_version(version: FoldedVersion) -> ServedVersion:
    """The version as it serves and is certified; feature rows must be in the order of its models' features."""
    levels = np.array(version.levels, dtype=np.float64)
    cost = version.models[0].cost
    return ServedVersion(
        version=version,
        models=tuple(model.suffices.scores for model in version.models),
        levels=np.concatenate([np.full((len(levels), 1), -np.inf), levels / cost.scale], axis=1),
        cost_exponent=cost.exponent,
    )


def as_served(runs: AuditRuns, version: FoldedVersion) -> AuditRuns:
    """The runs with `may_stop` extended to rows that the version calls hopeless, which need no answer."""
    lost = np.zeros(len(runs.x), dtype=bool)
    fold = runs.fold[runs.run_of_row]
    for f, model in enumerate(version.models):
        if model.hopeless is not None:
            rows = np.flatnonzero((fold == f) & ~runs.may_stop)
            lost[rows] = model.hopeless.scores(runs.x[rows]) >= _LOST
    return replace(runs, may_stop=runs.may_stop | lost)
