"""Learned scores as columns of recorded runs, so that a learned policy is searched and combined like any other.

    Score ── CrossFit ──▶ risk of every row ──▶ ScoredPolicy ──▶ guarded, all-of, any-of …     (replay)
                 └─────── fitted on everything ──▶ StopModel ──▶ learned ──▶ the same     (live)

A trial names its model by a word, `{"policy": "learned", "model": "as-good", "threshold": 0.01}`; in replay the
word stands for a column whose rows come from models that have not seen their question, live it is replaced by
the model itself (`replay.tune.proposal`). Knows risks and refuses to know which threshold is a good one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.learn.value_model import PRICES, Values
from suffice.model.stop import StepCost
from suffice.policy.base import build_policy
from suffice.policy.columns import CONTINUE, HOPELESS, SUFFICES, AskedColumns, Columns, Stops, known_column
from suffice.policy.protocol import Policy, go_on
from suffice.replay.study.runs import Bools, Floats, Runs
from suffice.replay.study.scores import CrossFit, Key, Model, Score, features_for, make_table
from suffice.replay.study.sums import N_FOLDS
from suffice.signals.features import FeatureSet
from suffice.types import Decision, Signals

HOPELESS_KEY: Final[Key] = ("hopeless", "linear")
PRICED: Final = " at price "  # in the word for a value model
CLASS_COLUMN: Final = "class"  # number of a run's found class; not a number: it is too small, or there are none
EVEN: Final = 0.5  # the threshold of a value model: the sigmoid of no advantage either way


@dataclass(frozen=True, slots=True)
class ScoredPolicy:
    """The policy `learned` over a score that was computed before: see `policy.learned` for what it means."""

    name: ClassVar[str] = "scored"
    score: str  # which columns: the risk, and where the run is thought lost
    threshold: float
    on_hopeless: str = "continue"
    min_steps: int = 0
    classes: tuple[float, ...] = ()  # thresholds of found classes, by number; (): all take `threshold`

    @property
    def needs(self) -> tuple[str, ...]:
        """No fold: its columns are there."""
        return ()

    def decide(self, s: Signals) -> Decision:
        """Continue: a single step knows no columns. Live, the policy `learned` decides."""
        return go_on(f"step {s.step}: the score {self.score!r} stands in columns only")

    def stops(self, columns: Columns) -> Stops:
        """Stop where the risk is at or below the threshold."""
        lost = known_column(columns, lost_column(self.score)) > 0
        answered = ~np.isnan(known_column(columns, "answer"))
        may = np.where(lost, self.on_hopeless == "stop", answered) & (columns["step"] >= self.min_steps)
        passed = may & (known_column(columns, risk_column(self.score)) <= self._thresholds(columns))
        return np.where(passed, np.where(lost, np.int8(HOPELESS), np.int8(SUFFICES)), np.int8(CONTINUE))

    def _thresholds(self, columns: Columns) -> Floats | float:
        if not self.classes:
            return self.threshold
        of_class = known_column(columns, CLASS_COLUMN)
        place = np.where(np.isnan(of_class), len(self.classes), of_class).astype(np.int64)
        found: Floats = np.array([*self.classes, self.threshold])[place]
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChoice:
    """A score that a trial may name."""

    score: Score
    price: int = -1  # target "value": number of the price; -1 otherwise


def names_of(scores: Sequence[Score]) -> dict[str, ScoreChoice]:
    """What trials may write for a model: each score, and the value model once for each of its prices."""
    found: dict[str, ScoreChoice] = {}
    for score in scores:
        if score.target == "value":
            named = {f"{score.name}{PRICED}{price:.3g}": at for at, price in enumerate(PRICES.tolist())}
            found.update({name: ScoreChoice(score=score, price=at) for name, at in named.items()})
        else:
            found[score.name] = ScoreChoice(score=score)
    return found


def risk_column(score: str) -> str:
    """The column that holds a score's risk; not a number: never a stop."""
    return f"risk: {score}"


def lost_column(score: str) -> str:
    """The column that is 1 where the run is thought lost."""
    return f"lost: {score}"


class ScoreTable:
    """The learned scores of some runs, cross-fitted, as one outer fold or the whole set may know them.

    Raises ConfigError when scikit-learn is not installed.
    """

    def __init__(
        self,
        runs: Runs,
        fold: NDArray[np.int64],
        scores: Sequence[Score],
        *,
        seed: int,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.runs, self.seed = runs, seed
        self.names: Mapping[str, ScoreChoice] = names_of(scores)
        self.chosen = features_for(runs, query_signals=True)
        self._table = make_table(runs, self.chosen, fold)
        self._fits = CrossFit(runs, self._table, seed=seed, tick=tick)
        self._row_fold = fold[runs.run_of_row]
        readable = runs.readable()
        self.readable: AskedColumns = readable
        self._informed: Bools = FeatureSet(self.chosen.names).informed_rows(readable, runs.queries, readable.run)
        self._per_step = np.maximum(runs.columns.values["tokens_used"] / runs.columns.values["step"], 1.0)

    def cost(self, score: Score) -> StepCost:
        """What the risk is divided by: 1 at the median run, whatever the exponent."""
        if not score.cost:
            return StepCost()
        return StepCost(score.cost, float(np.median(self._per_step[self.runs.last])) ** score.cost)

    def model(self, key: Key, left_out: Sequence[int] = ()) -> Model:
        """The model fitted without some folds; of everything without any."""
        return self._fits.model(key, left_out)

    def kept(self, left_out: Sequence[int]) -> Bools:
        """The runs outside some folds, shape (E,)."""
        return ~np.isin(self._table.run_fold, list(left_out))

    def columns(self, name: str, v: int | None) -> dict[str, Floats]:
        """A score's two columns as outer fold `v` may know them, or cross-fitted for all rows."""
        named = self.names[name]
        risk = self._advantage_risk(named, v) if named.price >= 0 else self._risk(named.score, v)
        risk[~self._informed] = np.nan
        lost = np.zeros(len(risk))
        if named.score.target != "suffices":
            lost = (self._p(HOPELESS_KEY, v) >= 0.5).astype(np.float64)
        return {risk_column(name): risk, lost_column(name): lost}

    def _risk(self, score: Score, v: int | None) -> Floats:
        risk: Floats = (1.0 - self._p((score.target, score.parts), v)) / self.cost(score).of_many(self._per_step)
        return risk

    def _p(self, key: Key, v: int | None) -> Floats:
        return self._fits.out_of_fold(key) if v is None else self._fits.without(v, key)

    def _advantage_risk(self, named: ScoreChoice, v: int | None) -> Floats:
        """1 minus the sigmoid of Q(stop) - Q(continue): one half where both are worth the same."""
        key: Key = (named.score.target, named.score.parts)
        risk = np.empty(len(self._row_fold))
        for u in range(N_FOLDS):
            rows = np.flatnonzero(self._row_fold == u)
            if len(rows):
                values = self.model(key, (u,) if v is None else (u, v))
                assert isinstance(values, Values)
                risk[rows] = advantage_risk(values, self._table.x[rows], named.price)
        return risk


def advantage_risk(values: Values, x: Floats, price: int) -> Floats:
    """1 minus the sigmoid of the advantage of stopping at one price, shape (R,)."""
    gain = values.stop[:, 0] - values.go_on[:, price]
    weights = gain[:-1] / values.scale
    risk: Floats = 1.0 / (1.0 + np.exp(np.clip(x @ weights + (gain[-1] - weights @ values.mean), -700, 700)))
    return risk


def build_scored(spec: Mapping[str, Any], names: Mapping[str, ScoreChoice], classes: Sequence[str] = ()) -> Policy:
    """A policy of a spec in which `learned` names its model by a word. Any: parameters differ in type.

    classes  names of the found classes, by number

    Raises ConfigError as `build_policy` does, and for a word that is no score.
    """
    found = spec if model_named(spec) is None else with_model(spec, lambda one: _scored(one, names, classes))
    return found if isinstance(found, ScoredPolicy) else build_policy(found)


def model_named(spec: Mapping[str, Any]) -> str | None:
    """The word for a model in a spec, at any depth; None: nothing in it is learned."""
    learned = learned_in(spec)
    return str(learned["model"]) if learned else None


def learned_in(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `learned` of a spec, at whatever depth; empty: nothing in it is learned. Any: parameters differ in type."""
    if spec.get("policy") == "learned":
        return spec
    inside = [spec["inner"]] if "inner" in spec else spec.get("policies", ())
    return next((found for found in map(learned_in, inside) if found), {})


def with_model(spec: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> Any:
    """The spec with each `learned` in it made anew, at any depth. Any: `make` says what that is."""
    if spec.get("policy") == "learned":
        return make(spec)
    found = dict(spec)
    if "inner" in found:
        found["inner"] = with_model(found["inner"], make)
    if "policies" in found:
        found["policies"] = [with_model(one, make) for one in found["policies"]]
    return found


def uses_classes(spec: Mapping[str, Any]) -> bool:
    """Has the learned policy in a spec a level for each class?"""
    return "classes" in learned_in(spec)


def _scored(spec: Mapping[str, Any], names: Mapping[str, ScoreChoice], classes: Sequence[str]) -> ScoredPolicy:
    given = {key: value for key, value in spec.items() if key not in ("policy", "model", "classes")}
    if own := spec.get("classes"):  # a class that another search had found has no level here
        given["classes"] = tuple(own.get(name, spec["threshold"]) for name in classes)
    if spec["model"] not in names:
        raise ConfigError(f"policy.learned.model: got {spec['model']!r:.60}; known: {', '.join(names)}")
    return ScoredPolicy(score=str(spec["model"]), **given)
