"""A version: stop models as plain data with their levels, fitted on folds. Its address is a hash of its content.

models[f], fitted on the other folds, serves and judges fold f. A hash of the unit assigns every request, audit or not,
to a fold, so the certified models are the served ones. Levels run from 0, which never stops, to the most aggressive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from suffice.errors import ConfigError
from suffice.learn.audits import AuditRuns, Bools, Floats, Ints, Small, find_first_passages
from suffice.learn.groups import prompt_fold
from suffice.model.artefact import MOST_RISK, StopModel, canonical, load_model
from suffice.model.reading import describe_value, numbers, parse_json
from suffice.signals.features import FeatureSet

N_FOLDS: Final = 5
N_LEVELS: Final = 41
LEAST_AUDITS: Final = 40  # for a fit
N_CANDIDATES: Final = 400  # thresholds from which levels are picked
HALF_LIFE: Final = 800.0  # of a row's weight, in audits
MOST_AUDITS: Final = 3_000  # of a fit
SCHEMA: Final = 1
MOST_FOLDS: Final = 20
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
    recent = runs.take(np.arange(max(0, len(runs) - MOST_AUDITS), len(runs)))
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
    """Tokens that each threshold saves, shape (thresholds,).

    A run stops at one of its record lows; when the threshold falls below it, the stop moves to the next one.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldedVersion:
    """K models with their levels; models[f] serves fold f of the prompts (`groups.prompt_fold`)."""

    models: tuple[StopModel, ...]  # each fitted on the other folds; all of the same features and cost
    levels: tuple[tuple[float, ...], ...]  # by fold: risks of levels 1, 2 …, rising; level 0 never stops
    values: tuple[StopModel, ...] | None = None  # at one price each, threshold 0.5; None: too few labels
    address: str = field(init=False, compare=False, repr=False)  # `v-` and twelve hexadecimal digits of the content

    def __post_init__(self) -> None:
        n = len(self.models)
        if not 1 <= n <= MOST_FOLDS or len(self.levels) != n or (self.values is not None and len(self.values) != n):
            raise ConfigError(f"version: got {n} models and {len(self.levels)} ladders; one each, 1 to {MOST_FOLDS}")
        if len({(model.features, model.cost) for model in self.models}) != 1:
            raise ConfigError("version.models: must all read the same features and weigh cost alike")
        if len({len(levels) for levels in self.levels}) != 1 or not self.levels[0]:
            raise ConfigError("version.levels: must be as many for each fold, and at least one")
        checked = []
        for f, levels in enumerate(self.levels):
            checked.append(numbers(f"version.levels[{f}]", levels, least=0.0, most=MOST_RISK))
            if list(checked[f]) != sorted(checked[f]):
                raise ConfigError(f"version.levels[{f}]: must rise, safe first")
        object.__setattr__(self, "levels", tuple(checked))
        digest = hashlib.blake2b(canonical(self.plain()), digest_size=6).hexdigest()
        object.__setattr__(self, "address", f"v-{digest}")

    @property
    def n_levels(self) -> int:
        return len(self.levels[0]) + 1

    def plain(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "models": [model.plain() for model in self.models],
            "levels": [list(levels) for levels in self.levels],
            "values": None if self.values is None else [model.plain() for model in self.values],
        }

    def policy(self, key: str, level: int) -> dict[str, Any]:
        """Spec for `build_policy` that serves a `Request.question_key`. Raise IndexError for a level out of range."""
        if not 0 <= level < self.n_levels:
            raise IndexError(f"level: got {level}; 0 to {self.n_levels - 1}")
        if level == 0:
            return {"policy": "never"}
        fold = prompt_fold(key, len(self.models))
        threshold = self.levels[fold][level - 1]
        return {"policy": "learned", "model": self.models[fold], "threshold": threshold, "on_hopeless": "stop"}


def fold_version(version: FoldedVersion) -> FoldedModels:
    """The version as it serves and is certified; feature rows must be in the order of its models' features."""
    levels = np.array(version.levels, dtype=np.float64)
    cost = version.models[0].cost
    return FoldedModels(
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


def load_version(plain: Mapping[str, Any]) -> FoldedVersion:
    """Raise ConfigError with the place of any invalid value."""
    if plain.get("schema") != SCHEMA:
        raise ConfigError(f"version.schema: got {describe_value(plain.get('schema'))}; this one reads {SCHEMA}")
    unknown = set(plain) - {"schema", "models", "levels", "values"}
    if unknown:
        raise ConfigError(f"version.{min(unknown):.60}: unknown; schema, models, levels, values")
    each: dict[str, list[Any]] = {}  # Any: unchecked
    for name in ("models", "levels", "values"):
        value = plain.get(name)
        if name == "values" and value is None:
            continue
        if not isinstance(value, list) or not 1 <= len(value) <= MOST_FOLDS:
            got, allowed = describe_value(value), f"a list of 1 to {MOST_FOLDS}, one for each fold"
            raise ConfigError(f"version.{name}: got {got}; {allowed}")
        each[name] = value
    if not all(isinstance(one, list) for one in each["levels"]):
        raise ConfigError("version.levels: must be lists of numbers, one for each fold")
    models, values = (
        tuple(load_model(one, where=f"version.{name}[{f}]") for f, one in enumerate(each.get(name, ())))
        for name in ("models", "values")
    )
    levels = tuple(tuple(one) for one in each["levels"])
    version = FoldedVersion(models=models, levels=levels, values=values or None)
    FeatureSet(models[0].features, where="version.models[0].features")
    return version


def read_version(address: str, body: str | None) -> FoldedVersion:
    """Raise ConfigError if it is missing, invalid or has another address."""
    if body is None:
        raise ConfigError(f"version {address}: cannot be read, it is not kept in this log")
    try:
        plain = parse_json(f"version {address}", body.encode("utf-8", "surrogatepass"))
    except ConfigError:
        plain = None
    if not isinstance(plain, dict):
        raise ConfigError(f"version {address}: what is kept under it is no version")
    version = load_version(plain)
    if version.address != address:
        raise ConfigError(f"version {address}: what is kept under it is {version.address}")
    return version
