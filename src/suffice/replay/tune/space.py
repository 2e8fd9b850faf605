"""What a search may try: each policy that makes sense for a kind of run, with the parameters it may take.

A table, and how one line of it is drawn. Ranges are those of the policies' own parameters, narrowed to where
recorded runs can tell settings apart; a probability near 1 is drawn by its distance from 1, counts by their
logarithm. A policy without a narrowed range is searched in the ranges that it declares, unless `LEFT_OUT` has a reason
against it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeAlias

from suffice.model.stop import StopModel
from suffice.policy.base import POLICIES, build_policy
from suffice.policy.parameters import parameters_of
from suffice.policy.protocol import Policy
from suffice.replay.tune.scored import EVEN, PRICED
from suffice.types import Kind

ALL: Final[tuple[Kind, ...]] = ("reasoning", "samples", "rounds")
PROBED: Final[tuple[Kind, ...]] = ("reasoning", "rounds")

LEFT_OUT: Final[Mapping[str, str]] = {
    "never": "what remains where nothing else will do",
    "bayes": "needs a prior learned from the votes themselves, see `learn.prior`",
}
# Parameters that keep their default. One that is a parameter of a signal would need columns of its own.
FIXED: Final[Mapping[str, Mapping[str, str]]] = {
    "stable-answer": {"min_tokens": "guarded draws it", "min_steps": "guarded draws it"},
    "eat": {"alpha": "of the signal"},
    "code-stop": {"give_up": "of the signal", "delta": "of the signal"},
    "momentum": {"dial": "of the signal"},
    "tasr": {"calibration": "a curve of its own, fitted elsewhere"},
    "semantic-distance": {"epsilon": "of the signal"},
    "guarded": {"returns": "tuned rounds return their last answer", "inner": "", "max_steps": "any-of draws it"},
    "learned": {"min_steps": "guarded draws it"},
}


class ParameterSource(Protocol):
    """What draws: a trial of Optuna, or anything that answers alike."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""
        ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number from low to high."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """A whole number from low to high."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What the runs are like, so that nothing is tried beyond them."""

    kind: Kind
    longest: int  # steps of the longest run
    few_tokens: int  # of a short run …
    many_tokens: int  # … and of a long one
    models: tuple[str, ...] = ()  # words for learned models, see `replay.tune.scored`
    # The risk at or below which a share of a model's steps is: of all runs, or of those of one of `classes`.
    level: Callable[[str, float, str | None], float] | None = None
    classes: tuple[str, ...] = ()  # found ones that are large enough for a level of their own


Draw: TypeAlias = Callable[[ParameterSource, str, Size], Any]  # with the name under which the value is drawn


def _whole(low: int, high: int | None = None) -> Draw:
    """A whole number by its logarithm, no larger than the longest run."""

    def draw(trial: ParameterSource, name: str, size: Size) -> int:
        most = size.longest if high is None else min(high, size.longest)
        return trial.suggest_int(name, min(low, max(1, most)), max(1, most), log=True)

    return draw


def _near_1(least: float) -> Draw:
    """A probability from `least` to 0.9999 by its distance from 1."""

    def draw(trial: ParameterSource, name: str, _: Size) -> float:
        return _short(1.0 - trial.suggest_float(f"1 - {name}", 1e-4, 1.0 - least, log=True))

    return draw


def _between(low: float, high: float, *, log: bool = False) -> Draw:
    return lambda trial, name, _: _short(trial.suggest_float(name, low, high, log=log))


def _one_of(*choices: Any) -> Draw:
    return lambda trial, name, _: trial.suggest_categorical(name, choices)


def _tokens(trial: ParameterSource, name: str, size: Size) -> int:
    """A number of tokens between a short run's and a long one's."""
    return trial.suggest_int(name, size.few_tokens, size.many_tokens, log=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One policy with what is drawn for its parameters."""

    kinds: tuple[Kind, ...] = ALL
    draws: Mapping[str, Draw] = field(default_factory=dict)
    fullest: Mapping[str, Any] = field(default_factory=dict)  # parameters with which it reads all that it ever reads


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
    "deer": Family(
        kinds=("reasoning",),
        draws={"threshold": _near_1(0.4), "mean": _one_of("arithmetic", "geometric")},
    ),
    "code-stop": Family(
        kinds=("reasoning",),
        draws={"start": _near_1(0.3), "top": _near_1(0.4), "ramp_steps": _whole(1)},
    ),
    "eat": Family(kinds=("reasoning",), draws={"delta": _between(1e-6, 1.0, log=True), "warm_up_steps": _whole(1)}),
    "halt-cot": Family(kinds=PROBED, draws={"theta": _between(1e-3, 2.0, log=True)}),
    "beta": Family(draws={"threshold": _near_1(0.6), "min_samples": _whole(1, 8)}),
    "vote-entropy": Family(kinds=("samples",), draws={"threshold": _between(0.0, 1.0)}),
    "vote-share": Family(kinds=("samples",), draws={"threshold": _between(0.5, 1.0), "min_samples": _whole(2)}),
    "esc": Family(kinds=("samples",), draws={"window": _whole(2), "sliding": _one_of(False, True)}),
    "sprt": Family(
        kinds=("samples",),
        draws={
            "p1": _between(0.5001, 0.9),
            "alpha": _between(1e-4, 0.3, log=True),
            "beta": _between(1e-4, 0.6, log=True),
        },
    ),
    "msprt": Family(
        kinds=("samples",),
        draws={
            "prior_top": _between(0.5, 1e6, log=True),
            "prior_second": _between(0.5, 1e6, log=True),
            "alpha": _between(1e-4, 0.3, log=True),
            "beta": _between(1e-4, 0.6, log=True),
        },
    ),
    "momentum": Family(kinds=("samples",)),
    "tasr": Family(kinds=("rounds",), draws={"streak": _whole(1), "margin": _between(-0.5, 0.9)}),
    "semantic-distance": Family(kinds=("rounds",), draws={"patience": _whole(1, 8)}),
}


def _declared(policy: type) -> Family:
    """The space of a policy that `_NARROWED` does not name: its numbers, switches and words, in their own ranges."""
    draws: dict[str, Draw] = {}
    for one in parameters_of(policy):
        if one.length is not None:
            continue
        if one.words or one.type is bool:
            draws[one.name] = _one_of(*(one.words or (False, True)))
        elif one.range is not None:
            low, high = one.range.low, one.range.high
            draws[one.name] = _whole(int(low), int(high)) if one.type is int else _between(low, high)
    required = {one.name: one.range.high for one in parameters_of(policy) if one.required and one.range is not None}
    return Family(draws=draws, fullest=required)


# Composed policies are shapes of the search, and a learned one needs a model.
SPACE: Final[Mapping[str, Family]] = {
    **_NARROWED,
    **{
        name: _declared(policy)
        for name, policy in POLICIES.items()
        if name not in {*_NARROWED, *LEFT_OUT}
        and not any(parameter.type in (Policy, StopModel) for parameter in parameters_of(policy))
    },
}

SHAPES: Final = ("one", "guarded", "all-of", "any-of")
LEARNED: Final = "learned"
VALUE: Final = "value"  # the learned models that differ in their price alone, as one choice
# Shares of the steps whose risk is at or below a level; the first and the last bound what is drawn.
_SHARES: Final = (3e-4, 0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.999)


def families(size: Size) -> tuple[str, ...]:
    """The policies that may be tried on runs of this size, the learned one first."""
    published = tuple(name for name, family in SPACE.items() if size.kind in family.kinds)
    return (LEARNED, *published) if size.models else published


def searched_folds(names: Sequence[str]) -> tuple[str, ...]:
    """All folds that the published policies among these may read, whatever is drawn."""
    policies = [build_policy({"policy": name, **SPACE[name].fullest}) for name in names if name in SPACE]
    return tuple(dict.fromkeys(need for policy in policies for need in policy.needs))


def first_tries(size: Size, names: Sequence[str]) -> list[dict[str, Any]]:
    """Where a search begins: each policy alone, and the learned scores at levels all over their range.

    What is left open is drawn. Any: parameters differ in type.
    """
    alone = {"shape": "one"}
    tries: list[dict[str, Any]] = [{**alone, "first": name} for name in names if name != LEARNED]
    if LEARNED not in names:
        return tries
    learned = {**alone, "first": LEARNED, "first.on_hopeless": "stop"}
    words, prices = _words(size)
    scattered = [{**learned, "first.model": word, f"first.{word}.share": share} for share in _SHARES for word in words]
    if size.classes:
        scattered += [_by_class(learned, word, share, len(size.classes)) for share in _SHARES[::2] for word in words]
    if prices:
        spread = [round(at * (len(prices) - 1) / (len(_SHARES) - 1)) for at in range(len(_SHARES))]
        scattered += [{**learned, "first.model": VALUE, "first.price": at} for at in spread]
    return tries + scattered


def _by_class(learned: Mapping[str, Any], word: str, share: float, n_classes: int) -> dict[str, Any]:
    """A try in which each class stops at that share of its own steps. Any: parameters differ in type."""
    shares = {f"first.{word}.class {at}.share": share for at in range(1, n_classes + 1)}
    return {**learned, "first.model": word, f"first.{word}.share": share, "first.by_class": True, **shares}


def draw_spec(trial: ParameterSource, size: Size, names: Sequence[str] = ()) -> dict[str, Any]:
    """Draw one policy, alone or made of two.

    names  the policies to draw from; (): all that may be tried. Only one part of a policy is learned: a route
           carries one model

    Any: parameters differ in type.
    """
    known = tuple(names) or families(size)
    shape = trial.suggest_categorical("shape", SHAPES)
    first = _draw_family(trial, "first", trial.suggest_categorical("first", known), size)
    if shape == "one":
        return first
    if shape == "guarded":
        guards = {name: draw(trial, f"guarded.{name}", size) for name, draw in _GUARDS.items()}
        return {"policy": "guarded", "inner": first, **guards}
    second = trial.suggest_categorical("second", tuple(name for name in known if name != LEARNED) or known)
    return {"policy": shape, "policies": [first, _draw_family(trial, "second", second, size)]}


def _maybe(draw: Draw) -> Draw:
    """0, which asks for nothing, or what is drawn."""

    def drawn(trial: ParameterSource, name: str, size: Size) -> Any:
        return draw(trial, name, size) if trial.suggest_categorical(f"{name}?", (False, True)) else 0

    return drawn


_GUARDS: Final[Mapping[str, Draw]] = {
    "min_steps": _whole(1),
    "min_tokens": _maybe(_tokens),
    "max_tokens": _maybe(_tokens),
}


def _draw_family(trial: ParameterSource, place: str, name: str, size: Size) -> dict[str, Any]:
    if name == LEARNED:
        return _draw_learned(trial, place, size)
    draws = SPACE[name].draws
    return {"policy": name, **{key: draw(trial, f"{place}.{name}.{key}", size) for key, draw in draws.items()}}


def _draw_learned(trial: ParameterSource, place: str, size: Size) -> dict[str, Any]:
    """A learned policy: which model, at which level, and whether it gives up runs that will fail anyway."""
    assert size.level is not None, "a size that names models says their levels"
    words, prices = _words(size)
    word = trial.suggest_categorical(f"{place}.model", (*words, *((VALUE,) if prices else ())))
    if word == VALUE:
        model, threshold = prices[trial.suggest_int(f"{place}.price", 0, len(prices) - 1)], EVEN
    else:
        share = trial.suggest_float(f"{place}.{word}.share", _SHARES[0], _SHARES[-1], log=True)
        model, threshold = word, size.level(word, share, None)
    give_up = trial.suggest_categorical(f"{place}.on_hopeless", ("stop", "continue"))
    spec = {"policy": LEARNED, "model": model, "threshold": threshold, "on_hopeless": give_up}
    if word == VALUE or not size.classes or not trial.suggest_categorical(f"{place}.by_class", (False, True)):
        return spec
    return {**spec, "classes": {name: _own_level(trial, f"{place}.{word}", size, name) for name in size.classes}}


def _own_level(trial: ParameterSource, place: str, size: Size, name: str) -> float:
    """A class's level, by the share of its own steps that are at or below it."""
    assert size.level is not None, "a size that names models says their levels"
    at = size.classes.index(name) + 1
    share = trial.suggest_float(f"{place}.class {at}.share", _SHARES[0], _SHARES[-1], log=True)
    return size.level(place.rpartition(".")[2], share, name)


def _words(size: Size) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The models that are cut at a level, and those of the value model, one for each price."""
    prices = tuple(name for name in size.models if PRICED in name)
    return tuple(name for name in size.models if name not in prices), prices


def _short(value: float) -> float:
    """Six digits: nobody can tell more apart, and settings stay readable."""
    return float(f"{value:.6g}") if math.isfinite(value) else value
