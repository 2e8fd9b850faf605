"""The ladders of policies that points are picked on, and the search space that trials draw from.

A *ladder* is a policy with its settings, or a learned score with its risk levels, from safe to aggressive.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan
from typing import Any, ClassVar, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.arrays import Floats
from suffice.learn.audits import find_first_passages
from suffice.learn.models import PRICES
from suffice.model.artefact import StopModel
from suffice.policy.base import POLICIES, build_policy, stops_of
from suffice.policy.parameters import parameters_of
from suffice.policy.protocol import Policy, return_step, returns_of
from suffice.replay.study.runs import Halts, RowScores, Runs, find_first_bits, find_first_stops
from suffice.replay.study.scores import EVEN, PRICED, Spec
from suffice.signals.base import reads_answers
from suffice.types import Kind

ALL: Final[tuple[Kind, ...]] = ("reasoning", "samples", "rounds")
PROBED: Final[tuple[Kind, ...]] = ("reasoning", "rounds")

LEFT_OUT: Final[Mapping[str, str]] = {
    "never": "what remains where nothing else will do",
    "bayes": "needs a prior learned from the votes themselves, see `learn.models`",
    "text-rule": "its pattern is the owner's",
    "turn-cap": "its cap follows from the turns of full runs; the grid has it, and the search has fixed-rounds",
}


ParameterSource: TypeAlias = Any  # a trial of Optuna, which is optional


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    kind: Kind
    longest: int  # steps of the longest run
    few_tokens: int  # of a short run
    many_tokens: int  # of a long run
    models: tuple[str, ...] = ()  # names of learned models, see `replay.study.scores`
    # (model, share, class or None) → the risk at or below which that share of the steps is.
    level: Callable[[str, float, str | None], float] | None = None
    classes: tuple[str, ...] = ()  # those large enough for a level of their own


Draw: TypeAlias = Callable[[ParameterSource, str, Size], Any]  # (source, name of the drawn value, size) → value


def _whole(low: int, high: int | None = None) -> Draw:
    def draw(trial: ParameterSource, name: str, size: Size) -> Any:
        most = max(1, size.longest if high is None else min(high, size.longest))
        return trial.suggest_int(name, min(low, most), most, log=True)

    return draw


def _near_1(least: float) -> Draw:
    """A probability from `least` to 0.9999, log-uniform in its distance from 1."""
    return lambda trial, name, _: _round(1.0 - trial.suggest_float(f"1 - {name}", 1e-4, 1.0 - least, log=True))


def _between(low: float, high: float, *, log: bool = False) -> Draw:
    return lambda trial, name, _: _round(trial.suggest_float(name, low, high, log=log))


def _one_of(*choices: Any) -> Draw:
    return lambda trial, name, _: trial.suggest_categorical(name, choices)


def _tokens(trial: ParameterSource, name: str, size: Size) -> Any:
    return trial.suggest_int(name, size.few_tokens, size.many_tokens, log=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    kinds: tuple[Kind, ...] = ALL
    draws: Mapping[str, Draw] = field(default_factory=dict)
    fullest: Mapping[str, Any] = field(default_factory=dict)  # parameters with which it needs all of its signals


_ERRORS: Final = {"alpha": _between(1e-4, 0.3, log=True), "beta": _between(1e-4, 0.6, log=True)}
_PRIOR: Final = _between(0.5, 1e6, log=True)
_NARROWED: Final[Mapping[str, Family]] = {
    "fixed-budget": Family(draws={"max_tokens": _tokens}, fullest={"max_tokens": 1}),
    "fixed-rounds": Family(draws={"max_steps": _whole(1)}, fullest={"max_steps": 1}),
    "stable-answer": Family(
        draws={"streak": _whole(2), "min_share": _between(0.0, 0.8), "no_hedges": _one_of(False, True)},
        fullest={"min_share": 0.1, "no_hedges": True},
    ),
    "confidence-threshold": Family(
        kinds=PROBED,
        draws={"threshold": _near_1(0.4), "patience": _whole(1, 8), "min_mass": _one_of(0.0, 0.3, 0.5, 0.7, 0.9)},
        fullest={"patience": 2, "min_mass": 0.5},
    ),
    "stated-confidence": Family(kinds=("rounds",), draws={"threshold": _near_1(0.4), "patience": _whole(1, 8)}),
    "dynasor": Family(kinds=("reasoning",), draws={"effort": _one_of("mild", "low", "mid", "high", "crazy")}),
    "deer": Family(kinds=("reasoning",), draws={"threshold": _near_1(0.4), "mean": _one_of("arithmetic", "geometric")}),
    "code-stop": Family(
        kinds=("reasoning",), draws={"start": _near_1(0.3), "top": _near_1(0.4), "ramp_steps": _whole(1)}
    ),
    "eat": Family(kinds=("reasoning",), draws={"delta": _between(1e-6, 1.0, log=True), "warm_up_steps": _whole(1)}),
    "cusum": Family(kinds=PROBED, draws={"threshold": _between(0.05, 20.0, log=True)}),
    "halt-cot": Family(kinds=PROBED, draws={"theta": _between(1e-3, 2.0, log=True)}),
    "beta": Family(draws={"threshold": _near_1(0.6), "min_samples": _whole(1, 8)}),
    "vote-entropy": Family(kinds=("samples",), draws={"threshold": _between(0.0, 1.0)}),
    "vote-share": Family(kinds=("samples",), draws={"threshold": _between(0.5, 1.0), "min_samples": _whole(2)}),
    "esc": Family(kinds=("samples",), draws={"window": _whole(2), "sliding": _one_of(False, True)}),
    "sprt": Family(kinds=("samples",), draws={"p1": _between(0.5001, 0.9), **_ERRORS}),
    "msprt": Family(kinds=("samples",), draws={"prior_top": _PRIOR, "prior_second": _PRIOR, **_ERRORS}),
    "momentum": Family(kinds=("samples",)),
    "cisc": Family(kinds=("samples",), draws={"threshold": _between(0.51, 1.0), "min_samples": _whole(2)}),
    "cges": Family(kinds=("samples",), draws={"threshold": _near_1(0.5)}),
    "think-brake": Family(kinds=("reasoning",), draws={"threshold": _between(0.01, 8.0, log=True)}),
    "redundant": Family(kinds=("reasoning",), draws={"threshold": _between(0.4, 0.95)}),
    "confident-sample": Family(kinds=("samples",), draws={"threshold": _near_1(0.4)}),
    "tasr": Family(kinds=("rounds",), draws={"streak": _whole(1), "margin": _between(-0.5, 0.9)}),
    "semantic-distance": Family(kinds=("rounds",), draws={"patience": _whole(1, 8)}),
}


class GridRow(NamedTuple):
    name: str  # the policy, then a comma and its fixed parameters
    parameter: str
    values: Sequence[int | float]  # safe first
    fixed: Mapping[str, Any] = {}  # constant parameters
    kinds: tuple[Kind, ...] = ALL


_STREAKS: Final = (20, 16, 12, 10, 8, 6, 5, 4, 3, 2)
_SURE: Final = (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5)
# One grid for every replay, so that "the best published rule in hindsight" means the same everywhere. Points are
# picked on a ladder, never between two.
GRID: Final = (
    GridRow("fixed-rounds", "max_steps", range(100, 0, -1)),
    GridRow("stable-answer", "streak", _STREAKS),
    *(GridRow(f"stable-answer, share {s}", "streak", _STREAKS, {"min_share": s}) for s in (0.1, 0.2, 0.4)),
    GridRow(
        "beta", "threshold", (0.999, 0.995, 0.99, 0.98, 0.97, 0.95, 0.93, 0.9, 0.85, 0.8, 0.75, 0.7), {"min_samples": 1}
    ),
    GridRow("esc", "window", range(12, 1, -1)),
    GridRow("confidence-threshold", "threshold", _SURE, {}, PROBED),
    GridRow("confidence-threshold, mass", "threshold", _SURE, {"min_mass": 0.5}, PROBED),
    *(GridRow(f"confidence-threshold, patience {n}", "threshold", _SURE, {"patience": n}, PROBED) for n in (2, 3)),
    GridRow("stated-confidence", "threshold", _SURE, {"patience": 1}, ("rounds",)),
    GridRow("think-brake", "threshold", (0.01, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0), {}, ("reasoning",)),
    GridRow("redundant", "threshold", (0.95, 0.9, 0.8, 0.7, 0.6, 0.5), {}, ("reasoning",)),
    GridRow("confident-sample", "threshold", _SURE, {}, ("samples",)),
    GridRow("turn-cap", "max_steps", range(100, 0, -1), {}, ("rounds",)),
    *(GridRow(f"stated-confidence, patience {n}", "threshold", _SURE, {"patience": n}, ("rounds",)) for n in (2, 3)),
)


def _declared_family(policy: type) -> Family:
    draws: dict[str, Draw] = {}
    for one in parameters_of(policy):
        if one.lengths:
            continue
        if one.words or one.type is bool:
            draws[one.name] = _one_of(*(one.words or (False, True)))
        elif one.range is not None:
            low, high = one.range.low, one.range.high
            draws[one.name] = _whole(int(low), int(high)) if one.type is int else _between(low, high)
    required = {one.name: one.range.high for one in parameters_of(policy) if one.required and one.range is not None}
    return Family(draws=draws, fullest=required)


# The search composes policies itself, and a learned policy needs a model.
SPACE: Final[Mapping[str, Family]] = {
    **_NARROWED,
    **{
        name: _declared_family(policy)
        for name, policy in POLICIES.items()
        if name not in {*_NARROWED, *LEFT_OUT}
        and not any(
            one.type in (Policy, StopModel) or (one.type is str and not one.words) for one in parameters_of(policy)
        )
    },
}

SHAPES: Final = ("one", "guarded", "all-of", "any-of")
LEARNED: Final = "learned"
VALUE: Final = "value"  # the learned models that differ only in their price, as one choice
# Shares of the steps whose risk is at or below a level; the first and the last bound the draws.
_SHARES: Final = (3e-4, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.999)


def list_policies(size: Size) -> tuple[str, ...]:
    published = tuple(name for name, family in SPACE.items() if size.kind in family.kinds)
    return (LEARNED, *published) if size.models else published


def list_searched_folds(names: Sequence[str]) -> tuple[str, ...]:
    policies = [build_policy({"policy": name, **SPACE[name].fullest}) for name in names if name in SPACE]
    return tuple(dict.fromkeys(need for policy in policies for need in policy.needs))


def list_first_tries(size: Size, names: Sequence[str]) -> list[dict[str, Any]]:
    """The first trials: each policy alone, and the learned scores at levels over their range; the rest is drawn."""
    tries: list[dict[str, Any]] = [{"shape": "one", "first": name} for name in names if name != LEARNED]
    if LEARNED not in names:
        return tries
    learned = {"shape": "one", "first": LEARNED, "first.on_hopeless": "stop"}
    words, prices = _words(size)
    at_share = {
        (s, word): {**learned, "first.model": word, f"first.{word}.share": s} for s in _SHARES for word in words
    }
    tries += at_share.values()
    if size.classes:  # the same share of each class's own steps
        for share, word in ((s, word) for s in _SHARES[::2] for word in words):
            own = {f"first.{word}.class {at}.share": share for at in range(1, len(size.classes) + 1)}
            tries.append({**at_share[share, word], "first.by_class": True, **own})
    if prices:
        spread = [round(at * (len(prices) - 1) / (len(_SHARES) - 1)) for at in range(len(_SHARES))]
        tries += [{**learned, "first.model": VALUE, "first.price": at} for at in spread]
    return tries


def draw_spec(trial: ParameterSource, size: Size, names: Sequence[str] = ()) -> dict[str, Any]:
    """Draw one policy, alone or composed of two with at most one learned part. `names` (): all that may be tried."""
    known = tuple(names) or list_policies(size)
    shape = trial.suggest_categorical("shape", SHAPES)
    first = _draw_family(trial, "first", trial.suggest_categorical("first", known), size)
    if shape == "one":
        return first
    if shape == "guarded":
        guards = {name: draw(trial, f"guarded.{name}", size) for name, draw in _GUARDS.items()}
        return {"policy": "guarded", "inner": first, **guards}
    second = trial.suggest_categorical("second", tuple(name for name in known if name != LEARNED) or known)
    return {"policy": shape, "policies": [first, _draw_family(trial, "second", second, size)]}


def _tokens_or_none(trial: ParameterSource, name: str, size: Size) -> Any:
    return _tokens(trial, name, size) if trial.suggest_categorical(f"{name}?", (False, True)) else 0


_GUARDS: Final[Mapping[str, Draw]] = {
    "min_steps": _whole(1),
    "min_tokens": _tokens_or_none,
    "max_tokens": _tokens_or_none,
}


def _draw_family(trial: ParameterSource, place: str, name: str, size: Size) -> dict[str, Any]:
    if name == LEARNED:
        return _draw_learned(trial, place, size)
    draws = SPACE[name].draws
    return {"policy": name, **{key: draw(trial, f"{place}.{name}.{key}", size) for key, draw in draws.items()}}


def _draw_learned(trial: ParameterSource, place: str, size: Size) -> dict[str, Any]:
    words, prices = _words(size)
    word = trial.suggest_categorical(f"{place}.model", (*words, *((VALUE,) if prices else ())))

    def draw_level(name: str, of_class: str | None = None) -> float:
        assert size.level is not None, "a size that names models says their levels"
        return size.level(word, trial.suggest_float(name, _SHARES[0], _SHARES[-1], log=True), of_class)

    if word == VALUE:
        model, threshold = prices[trial.suggest_int(f"{place}.price", 0, len(prices) - 1)], EVEN
    else:
        model, threshold = word, draw_level(f"{place}.{word}.share")
    give_up = trial.suggest_categorical(f"{place}.on_hopeless", ("stop", "continue"))
    spec = {"policy": LEARNED, "model": model, "threshold": threshold, "on_hopeless": give_up}
    if word == VALUE or not size.classes or not trial.suggest_categorical(f"{place}.by_class", (False, True)):
        return spec
    levels = {name: draw_level(f"{place}.{word}.class {at}.share", name) for at, name in enumerate(size.classes, 1)}
    return {**spec, "classes": levels}


def _words(size: Size) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of models that are cut at a level, and of the value model's variants, one per price."""
    prices = tuple(name for name in size.models if PRICED in name)
    return tuple(name for name in size.models if name not in prices), prices


def _round(value: float) -> float:
    return float(f"{value:.6g}") if math.isfinite(value) else value


# ---- ladders


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyRung:
    policy: Policy
    spec: Spec
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRung:
    """A learned score at one level: the largest risk that stops, or for the value model a price of tokens."""

    score: str  # name of a score of the study
    level: float
    label: str
    spec: ClassVar[None] = None

    def halts(self, risk: RowScores, code: NDArray[np.int8], runs: Runs) -> Halts:
        return halts_at(risk, np.array([self.level]), runs, code)[0]


Rung: TypeAlias = PolicyRung | ScoreRung


@dataclass(frozen=True, slots=True, kw_only=True)
class Ladder:
    name: str
    origin: Literal["published", "given"]
    rungs: tuple[PolicyRung, ...]


def build_ladders(kind: Kind, *, longest: int) -> tuple[Ladder, ...]:
    ladders = []
    for row in GRID:
        if kind not in row.kinds:
            continue
        values = [value for value in row.values if not isinstance(value, int) or value <= longest]
        named = {"policy": row.name.partition(",")[0], **row.fixed}
        rungs = tuple(_rung({**named, row.parameter: value}, f"{row.name} {value:g}") for value in values)
        ladders.append(Ladder(name=row.name, origin="published", rungs=rungs))
    return tuple(ladders)


def build_given_ladder(spec: Spec, label: str) -> Ladder:
    return Ladder(name=label, origin="given", rungs=(_rung(spec, label),))


def _rung(spec: Spec, label: str) -> PolicyRung:
    return PolicyRung(policy=build_policy(spec), spec=spec, label=label)


def list_ladder_folds(ladders: Sequence[Ladder]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(need for ladder in ladders for rung in ladder.rungs for need in rung.policy.needs))


def halts_of(rung: PolicyRung, runs: Runs) -> Halts:
    halts = find_first_stops(stops_of(rung.policy, runs.readable()), runs, asks=reads_answers(rung.policy.needs))
    returns = returns_of(rung.policy)
    if runs.kind != "rounds" or returns == "last":
        return halts
    confidence = runs.columns.values.get("confidence", np.full(len(runs.cost), np.nan))
    returned = halts.row.copy()
    for run in np.flatnonzero(halts.row < runs.last).tolist():
        rows = slice(int(runs.starts[run]), int(halts.row[run]) + 1)
        answers = [None if isnan(code) else str(code) for code in runs.columns.answer[rows].tolist()]
        sure = [None if isnan(p) else p for p in confidence[rows].tolist()]
        returned[run] = rows.start + return_step(returns, answers, sure) - 1
    return halts._replace(returned=returned)


def halts_at(risk: RowScores, levels: Floats, runs: Runs, code: NDArray[np.int8]) -> list[Halts]:
    """Where a learned score ends each run, one result per level.

    risk  of each row, shape (T,); or bits of `PRICES` at which it stops, with some of these bits as levels
    code  the reason of a stop at each row, shape (T,)
    """
    if risk.dtype == np.uint64:
        passages = find_first_bits(risk, runs, np.searchsorted(PRICES, levels))
    else:
        passages = find_first_passages(risk, runs.starts, levels)
    return [Halts.at(row, code, runs, asks=True) for row in passages]  # a learned score needs probes


def levels_of(risk: RowScores, n_levels: int) -> Floats:
    """Levels of a ladder, safe first: quantiles of the observed risks, or the prices where the rows hold bits.

    The shares of steps at or below a level are geometric from 0.0003 to 0.999, because the first rungs determine how
    well a small budget is used.
    """
    if risk.dtype == np.uint64:
        return PRICES
    known = risk[np.isfinite(risk)]
    if not len(known):
        return np.empty(0)
    return np.unique(np.quantile(known, np.geomspace(3e-4, 0.999, n_levels)))
