"""What a tuning found, as records, and its optimism: what a search sees of its winner against what it is worth.

Pure: sums by question in, numbers out. Rates are fractions. It refuses to know how policies are searched.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np

from suffice.assurance.bounds import Interval
from suffice.replay.study.nested import Difference
from suffice.replay.study.points import seen
from suffice.replay.study.runs import Floats
from suffice.replay.study.sums import QuestionSums
from suffice.replay.tune.scored import PRICED, model_named
from suffice.types import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFigures:
    """What a policy does on some questions."""

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
    """In-search figures of the folds' winners, theirs on unseen questions, and the difference.

    In search is the mean over the folds, each on the questions that its search looked at; unseen are all
    questions, each under the winner of the search that did not. The bootstrap resamples questions, not searches.
    """

    token_reduction_in_search: IntervalValue
    token_reduction_unseen: IntervalValue
    token_reduction: IntervalValue  # in search - unseen: above 0, the search promised too much
    em_drop_in_search: IntervalValue
    em_drop_unseen: IntervalValue
    em_drop: IntervalValue  # unseen - in search: likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class OuterFold:
    """One outer fold: the winner of the search without it, and what that does on it."""

    fold: int
    n_questions: int  # unseen ones
    spec: Mapping[str, Any] | None  # a model named by a word; None: never stop
    in_search: PolicyFigures
    unseen: PolicyFigures
    n_trials: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TunedSet:
    """One set, tuned."""

    set: str
    kind: Kind
    n_episodes: int
    n_questions: int
    share: float  # of the set's questions: 1, or what of a set too long for memory was searched on
    full_em: float
    max_em_drop: float  # the target
    margin: float
    seed: int
    folds: tuple[OuterFold, ...]
    optimism: Optimism
    proposal: Mapping[str, Any] | None  # the winner on all questions, a model named by a word; None: never stop
    proposal_in_search: PolicyFigures
    n_trials: int  # of that search
    n_trials_in_all: int
    n_searches: int
    by_class: Difference | None = None  # unseen: less what as many trials without levels by class find; None: no level

    @property
    def winners(self) -> dict[str, int]:
        """Which policies won, by name, and in how many folds; the most frequent first."""
        return dict(Counter(title_of(fold.spec) for fold in self.folds).most_common())


def optimism_of(nested: Sequence[tuple[int, QuestionSums]], *, n_draws: int, rng: np.random.Generator) -> Optimism:
    """The optimism of some searches: for each the fold that it left out, and the sums of its winner.

    Percentile intervals (Davison and Hinkley 1997, section 3.8); with fewer than about 20 questions a sketch.
    """
    fold = nested[0][1].fold
    n_groups = len(fold)
    drawn = rng.multinomial(n_groups, np.full(n_groups, 1 / n_groups), size=n_draws).astype(np.float64)
    weights = np.concatenate([np.ones((1, n_groups)), drawn])  # the first row is what was seen
    looks = [_looked_at(sums, weights * (fold != v)) for v, sums in nested]
    in_search = np.nanmean(looks, axis=0)
    unseen = _looked_at(unseen_of(nested), weights)
    return Optimism(
        token_reduction_in_search=_ranged(in_search[:, 0]),
        token_reduction_unseen=_ranged(unseen[:, 0]),
        token_reduction=_ranged(in_search[:, 0] - unseen[:, 0]),
        em_drop_in_search=_ranged(in_search[:, 1]),
        em_drop_unseen=_ranged(unseen[:, 1]),
        em_drop=_ranged(unseen[:, 1] - in_search[:, 1]),
    )


def unseen_of(nested: Sequence[tuple[int, QuestionSums]]) -> QuestionSums:
    """All questions, each under the policy of the search that left its fold out."""
    first = nested[0][1]
    values = first.values.copy()
    for v, sums in nested:
        values[first.fold == v] = sums.values[first.fold == v]
    return QuestionSums(fold=first.fold, base=first.base, values=values)


def title_of(spec: Mapping[str, Any] | None) -> str:
    """A policy's name without its parameters: "beta", "any-of(learned (as-good), esc)"."""
    if spec is None:
        return "never"
    name = str(spec["policy"])
    if name == "learned":
        by_class = ", by class" if "classes" in spec else ""
        return f"learned ({str(model_named(spec)).partition(PRICED)[0]}{by_class})"
    inner = _inside(spec)
    return f"{name}({', '.join(title_of(one) for one in inner)})" if inner else name


def n_parts(spec: Mapping[str, Any]) -> int:
    """How many rules a policy is made of, what combines them and levels by class included."""
    return 1 + ("classes" in spec) + sum(map(n_parts, _inside(spec)))


def _inside(spec: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    inside: Sequence[Mapping[str, Any]] = [spec["inner"]] if "inner" in spec else spec.get("policies", ())
    return inside


def tuned_object(tuned: TunedSet) -> dict[str, Any]:
    """Everything as JSON has it: intervals are [low, high], what is not a number is null, `winners` is added."""
    plain: dict[str, Any] = _plain(tuned)
    return plain | {"winners": tuned.winners}


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return [_plain(value.low), _plain(value.high)]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _looked_at(sums: QuestionSums, weights: Floats) -> Floats:
    """Token reduction and EM drop on some sets of questions, shape (R, 2); not a number on an empty set."""
    with np.errstate(invalid="ignore", divide="ignore"):
        at = seen(sums, weights)
    return np.concatenate([at.saved, at.drop], axis=1)


def _ranged(values: Floats) -> IntervalValue:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return IntervalValue(value=float(values[0]), interval=Interval(float(low), float(high)))
