"""Learned scores over recorded runs: fitted on some questions, computed for others, never for their own.

    Score ── CrossFit ──▶ risk of every row ──▶ ladders; or ScoredPolicy ──▶ guarded, all-of, any-of …   (replay)
                 └─────── fitted on everything ──▶ StopModel ──▶ learned ──▶ the same                    (live)

A trial of a search names its model by a word, `{"policy": "learned", "model": "as-good", "threshold": 0.01}`. In replay
the word stands for a column whose rows come from models that have not seen their question; live it is replaced by
the model itself (`study.proposal`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError, TraceError
from suffice.learn.audits import Bools, Floats
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.models import (
    MAX_VALUE_ROWS,
    PRICES,
    Examples,
    FitResult,
    Parts,
    Target,
    Trajectories,
    Values,
    fit,
    fit_values,
)
from suffice.model.artefact import StepCost
from suffice.policy.base import build_policy
from suffice.policy.columns import CONTINUE, HOPELESS, SUFFICES, AskedColumns, Columns, Stops, known_column
from suffice.policy.protocol import Policy, go_on
from suffice.replay.study.runs import Runs, Says, select_runs
from suffice.replay.study.sums import N_FOLDS
from suffice.signals.features import FeatureSet
from suffice.types import Decision, Signals


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    name: str
    target: Target | Literal["value"]
    cost: float = 0.0  # exponent of the tokens a step costs: risk is taken where it saves much
    parts: Parts = "ensemble"
    query_signals: bool = True


# What is proposed as ours. Stopping a costly run saves more than stopping a cheap one, so the risk that is
# compared with a level is divided by a power of what a step of this run costs; 0 is the plain probability.
SCORES: tuple[Score, ...] = (
    Score(name="as-good", target="as-good"),
    Score(name="as-good, by cost", target="as-good", cost=0.5),
    Score(name="value", target="value"),
)

WITHOUT_SCORES: Final = "fixed-rounds,stable-answer"  # rules for every kind of run, which learn nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleTable:
    """The runs' features with the rows that are examples: computed once for all scores of one feature choice."""

    chosen: FeatureSelection
    x: Floats  # (T, P)
    example: NDArray[np.int64]  # rows that are no last step
    fold: NDArray[np.int64]  # of each example
    run_fold: NDArray[np.int64]  # of each run


def make_table(runs: Runs, chosen: FeatureSelection, fold: NDArray[np.int64]) -> ExampleTable:
    """Features of all rows. `fold` is that of each run, shape (E,)."""
    last = np.zeros(len(runs.cost), dtype=bool)
    last[runs.last] = True
    example = np.flatnonzero(~last)
    x = features_of(runs, chosen)
    return ExampleTable(chosen=chosen, x=x, example=example, fold=fold[runs.run_of_row[example]], run_fold=fold)


def features_of(runs: Runs, chosen: FeatureSelection) -> Floats:
    """Features of all rows to ten digits, shape (T, P).

    What is equal but for rounding must be equal here: a tree would split between two of its last digits, and live,
    where numbers are computed one by one, the same step would come down on the other side.
    """
    return np.round(FeatureSet(chosen.names).matrix(runs.columns, runs.queries), 10)


def good_rows(runs: Runs, target: Target) -> Bools:
    """Which rows are good by a target, see `learn.models`, shape (T,)."""
    if target == "suffices":
        return runs.same | runs.ok
    full_failed = ~runs.full_ok[runs.run_of_row]
    return full_failed if target == "hopeless" else full_failed | runs.ok


Key = tuple[Target | Literal["value"], Parts]
Model = FitResult | Values


def fit_on(runs: Runs, table: ExampleTable, key: Key, left_out: Sequence[int], seed: int) -> Model:
    """Fit on the runs outside some folds. Raises TraceError where none of them has two steps."""
    target, parts = key
    if not (~np.isin(table.fold, list(left_out))).any():
        n = int((runs.n_steps > 1).sum())
        raise TraceError(
            f"runs of two steps or more: {n}, on too few questions to learn a score on some and judge it on others;"
            f" record more, or leave learned scores out: --policies {WITHOUT_SCORES}",
            file=runs.set,
        )
    if target == "value":
        kept = _thinned(~np.isin(table.run_fold, list(left_out)), runs)
        those = select_runs(runs, kept)
        x = table.x[kept[runs.run_of_row]]
        return fit_values(Trajectories(x=x, starts=those.starts, ok=those.ok, tokens=those.cost))
    rows = table.example[~np.isin(table.fold, list(left_out))]
    examples = Examples(x=table.x[rows], good={target: good_rows(runs, target)[rows]})
    return fit(examples, table.chosen, target, parts=parts, seed=seed)


def _thinned(kept: Bools, runs: Runs) -> Bools:
    """Of these runs as many as the value model takes, evenly: whole runs, for it learns from their ends."""
    places = np.flatnonzero(kept)
    n_rows = int(runs.n_steps[places].sum())
    thin = np.zeros_like(kept)
    thin[places[:: max(1, -(-n_rows // MAX_VALUE_ROWS))]] = True
    return thin


def score_rows(model: Model, x: Floats) -> Says:
    """What a model says of rows, shape (R,): P(good), or for the value model the prices at which it would stop."""
    return model.stopping_prices(x) if isinstance(model, Values) else model.scores(x)


def stopping_risk(p: Floats, runs: Runs, cost: float, may_lack_answer: Bools) -> Floats:
    """The risk of stopping: P(not good) over a power of the tokens that a step of this run costs, shape (T,).

    Not a number, which never stops, where there is no answer to deliver, unless `may_lack_answer`: a run
    that will fail anyway may end without one.
    """
    risk: Floats = 1 - p
    if cost:
        risk = risk / runs.per_step**cost
    risk[np.isnan(runs.columns.answer) & ~may_lack_answer] = np.nan
    return risk


class CrossFit:
    """Scores whose every row is computed by models that have not seen its question.

    `scores(key, v)` gives the scores that an outer fold v may use: rows of fold v come from the model fitted on all
    other folds, rows of another fold u from the model fitted without u and v. A point picked on the rows
    outside v was thus picked on honest scores, and is judged on questions that neither the model nor the
    pick has seen. Without v each row comes from the model fitted without its own fold.
    """

    def __init__(self, runs: Runs, table: ExampleTable, *, seed: int, tick: Callable[[], None] = lambda: None) -> None:
        self._runs, self._table, self._seed, self._tick = runs, table, seed, tick
        self._row_fold = table.run_fold[runs.run_of_row]
        self._models: dict[tuple[Key, frozenset[int]], Model] = {}
        self._scores: dict[tuple[Key, frozenset[int], int], Says] = {}

    def model(self, key: Key, left_out: Sequence[int]) -> Model:
        """The model fitted without some folds; fitted once."""
        place = (key, frozenset(left_out))
        if place not in self._models:
            self._models[place] = fit_on(self._runs, self._table, key, left_out, self._seed)
            self._tick()
        return self._models[place]

    def scores(self, key: Key, v: int | None) -> Says:
        """What outer fold `v` may know of every row, shape (T,); None: each row as its own fold may know it."""
        return self._join(key, {u: (u,) if v is None else (u, v) for u in range(N_FOLDS)})

    def _join(self, key: Key, left_out: Mapping[int, Sequence[int]]) -> Says:
        joined = np.empty(len(self._row_fold), dtype=np.uint64 if key[0] == "value" else np.float64)
        for u, folds in left_out.items():
            joined[self._row_fold == u] = self._of(key, folds, u)
        return joined

    def _of(self, key: Key, left_out: Sequence[int], u: int) -> Says:
        place = (key, frozenset(left_out), u)
        if place not in self._scores:
            rows = np.flatnonzero(self._row_fold == u)
            self._scores[place] = (
                score_rows(self.model(key, left_out), self._table.x[rows]) if len(rows) else np.empty(0)
            )
        return self._scores[place]


def stop_codes(p_hopeless: Floats) -> NDArray[np.int8]:
    """What a stop of a learned score is called: hopeless where the full run more likely fails, else it suffices."""
    return np.where(p_hopeless >= 0.5, np.int8(HOPELESS), np.int8(SUFFICES))


def features_for(runs: Runs, *, query_signals: bool) -> FeatureSelection:
    return choose_features(runs.kind, runs.queries, query_signals=query_signals)


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
        thresholds: Floats = np.array([*self.classes, self.threshold])[place]
        return thresholds


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreChoice:
    score: Score
    price: int = -1  # target "value": number of the price; -1 otherwise


def names_of(scores: Sequence[Score]) -> dict[str, ScoreChoice]:
    """What trials may write for a model: each score, and the value model once for each of its prices."""
    choices: dict[str, ScoreChoice] = {}
    for score in scores:
        if score.target == "value":
            named = {f"{score.name}{PRICED}{price:.3g}": at for at, price in enumerate(PRICES.tolist())}
            choices.update({name: ScoreChoice(score=score, price=at) for name, at in named.items()})
        else:
            choices[score.name] = ScoreChoice(score=score)
    return choices


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
        self._per_step = runs.per_step

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
        named = self.names[name]
        if named.price >= 0:
            risk = self._advantage_risk(named, v)
        else:
            p = self._fits.scores((named.score.target, named.score.parts), v)
            risk = (1.0 - p) / self.cost(named.score).of_many(self._per_step)
        risk[~self._informed] = np.nan
        lost = np.zeros(len(risk))
        if named.score.target != "suffices":
            lost = (self._fits.scores(HOPELESS_KEY, v) >= 0.5).astype(np.float64)
        return {risk_column(name): risk, lost_column(name): lost}

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
    built = spec if find_model_name(spec) is None else replace_model(spec, lambda one: _scored(one, names, classes))
    return built if isinstance(built, ScoredPolicy) else build_policy(built)


def find_model_name(spec: Mapping[str, Any]) -> str | None:
    """The word for a model in a spec, at any depth; None: nothing in it is learned."""
    learned = find_learned(spec)
    return str(learned["model"]) if learned else None


def find_learned(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `learned` of a spec, at whatever depth; empty: nothing in it is learned. Any: parameters differ in type."""
    if spec.get("policy") == "learned":
        return spec
    inside = [spec["inner"]] if "inner" in spec else spec.get("policies", ())
    return next((learned for learned in map(find_learned, inside) if learned), {})


def replace_model(spec: Mapping[str, Any], make: Callable[[Mapping[str, Any]], Any]) -> Any:
    """The spec with each `learned` in it made anew, at any depth. Any: `make` says what that is."""
    if spec.get("policy") == "learned":
        return make(spec)
    remade = dict(spec)
    if "inner" in remade:
        remade["inner"] = replace_model(remade["inner"], make)
    if "policies" in remade:
        remade["policies"] = [replace_model(one, make) for one in remade["policies"]]
    return remade


def uses_classes(spec: Mapping[str, Any]) -> bool:
    return "classes" in find_learned(spec)


def _scored(spec: Mapping[str, Any], names: Mapping[str, ScoreChoice], classes: Sequence[str]) -> ScoredPolicy:
    given = {key: value for key, value in spec.items() if key not in ("policy", "model", "classes")}
    if own := spec.get("classes"):  # a class that another search had found has no level here
        given["classes"] = tuple(own.get(name, spec["threshold"]) for name in classes)
    if spec["model"] not in names:
        raise ConfigError(f"policy.learned.model: got {spec['model']!r:.60}; known: {', '.join(names)}")
    return ScoredPolicy(score=str(spec["model"]), **given)
