"""Learned scores over recorded runs: fitted on some questions, computed for others, never for their own.

Knows which rows are examples, which folds may train for which rows, and how a probability becomes the risk
that a ladder of levels is cut from; refuses to know levels and policies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from suffice.errors import TraceError
from suffice.learn.features import FeatureSelection, choose_features
from suffice.learn.stop_model import Examples, FitResult, Parts, Target, fit
from suffice.learn.value_model import MAX_ROWS, Trajectories, Values, fit_values
from suffice.policy.columns import HOPELESS, SUFFICES
from suffice.replay.study.runs import Bools, Floats, Runs, Says, select_runs
from suffice.replay.study.sums import N_FOLDS
from suffice.signals.features import FeatureSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A learned score, as a study names and uses it."""

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
    """Which rows are good by a target, see `learn.stop_model`, shape (T,)."""
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
    thin[places[:: max(1, -(-n_rows // MAX_ROWS))]] = True
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
        per_step = np.maximum(runs.columns.values["tokens_used"] / runs.columns.values["step"], 1.0)
        risk = risk / per_step**cost
    risk[np.isnan(runs.columns.answer) & ~may_lack_answer] = np.nan
    return risk


class CrossFit:
    """Scores whose every row is computed by models that have not seen its question.

    `without(v)` gives the scores that an outer fold v may use: rows of fold v come from the model fitted on all
    other folds, rows of another fold u from the model fitted without u and v. A point picked on the rows
    outside v was thus picked on honest scores, and is judged on questions that neither the model nor the
    pick has seen. `out_of_fold` takes each row from the model fitted without its own fold.
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

    def without(self, v: int, key: Key) -> Says:
        """What outer fold v may know of every row, shape (T,)."""
        return self._join(key, {u: (u, v) for u in range(N_FOLDS)})

    def out_of_fold(self, key: Key) -> Says:
        """Every row by the model fitted without its own fold, shape (T,)."""
        return self._join(key, {u: (u,) for u in range(N_FOLDS)})

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
    """The default features for these runs."""
    return choose_features(runs.kind, runs.queries, query_signals=query_signals)
