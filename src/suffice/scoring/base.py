"""The table of scorers, the only measure of Exact Match: a scorer compares answers, it never decides who is right."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args, get_origin, get_type_hints

from suffice.errors import ConfigError, name_hint, shorten
from suffice.scoring.choice import ChoiceScorer, YesNoScorer
from suffice.scoring.composite import JsonScorer, ListScorer
from suffice.scoring.date import DateScorer
from suffice.scoring.math import MathJudge, MathScorer
from suffice.scoring.number import NumberScorer, QuantityScorer
from suffice.scoring.reply import ToolCallScorer, with_calls
from suffice.scoring.scorer import Scorer
from suffice.scoring.text import RegexScorer, SquadScorer, TextScorer, WholeScorer

Spec: TypeAlias = str | Mapping[str, Any]  # a name, or a table from the settings

_MAX_CHARS = 1_000  # of a parameter
_OURS: tuple[Any, ...] = (
    *(ChoiceScorer, DateScorer, JsonScorer, ListScorer, MathScorer, NumberScorer),
    *(QuantityScorer, RegexScorer, SquadScorer, TextScorer, ToolCallScorer, WholeScorer, YesNoScorer),
)
SCORERS: dict[str, Callable[..., Scorer]] = {scorer.name: scorer for scorer in _OURS}  # plugins add theirs


def build_scorer(spec: Spec, *, math_judge: MathJudge | None = None) -> Scorer:
    """Build a scorer from a name or a table, with `math_judge` for a `math` scorer in it. Raise only ConfigError.

    It reads whole replies, with tool calls and JSON.
    """
    return with_calls(_build("scorer", spec, math_judge, depth=0))


def asks_judge(spec: Spec) -> bool:
    if isinstance(spec, str):
        return spec == MathScorer.name
    return spec.get("scorer") == MathScorer.name or (
        isinstance(spec.get("compare"), (str, Mapping)) and asks_judge(spec["compare"])
    )


def scorer_label(spec: Spec) -> str:
    """Return a scorer's label in logs and reports: `number`, or with parameters `json {"path":"$.answer"}`."""
    if isinstance(spec, str):
        return spec
    parameters = {key: value for key, value in spec.items() if key != "scorer"}
    written = json.dumps(parameters, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return f"{spec.get('scorer')} {written}" if parameters else str(spec.get("scorer"))


def _build(where: str, spec: object, math_judge: MathJudge | None, depth: int) -> Scorer:
    if isinstance(spec, str):
        spec = {"scorer": spec}
    if not isinstance(spec, Mapping):
        raise ConfigError(f'{where}: got {shorten(spec)}; need a name, or a table such as {{ scorer = "number" }}')
    given = dict(spec)
    name = given.pop("scorer", None)
    if not isinstance(name, str) or name not in SCORERS:
        raise ConfigError(f"{where}: unknown name {shorten(name)}; {name_hint(name, SCORERS)}")
    _check_parameters(where, name, given)
    if given.get("compare") is not None:
        if depth > 1:
            raise ConfigError(f"{where}.compare: scorers nested three deep; at most two levels")
        given["compare"] = _build(f"{where}.compare", given["compare"], math_judge, depth + 1)
    if SCORERS[name] is MathScorer:
        given["judge"] = math_judge
    try:
        return SCORERS[name](**given)
    except ConfigError as error:
        raise ConfigError(f"{where}{str(error).removeprefix('scorer')}") from None


def _check_parameters(where: str, name: str, given: Mapping[str, Any]) -> None:
    known = {key: p for key, p in inspect.signature(SCORERS[name]).parameters.items() if key != "judge"}
    hints = get_type_hints(SCORERS[name], localns={"Scorer": Scorer}) if SCORERS[name] in _OURS else {}
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"{where}: {name} has no parameter {shorten(key)}; {name_hint(key, known)}")
        if (need := _unmet(value, hints.get(key))) is not None:
            raise ConfigError(f"{where}.{key}: got {shorten(value)}; {need}")
    for key, parameter in known.items():
        if parameter.default is parameter.empty and key not in given:
            raise ConfigError(f"{where}.{key}: missing; {name} needs it")


def _unmet(value: object, kind: object) -> str | None:
    """Return what a parameter of this type needs; None: the value fits."""
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"allowed: {', '.join(get_args(kind))}"
    if kind is bool:
        return None if isinstance(value, bool) else "allowed: true, false"
    if kind is str and not (isinstance(value, str) and 0 < len(value) <= _MAX_CHARS):
        return f"need a text of 1 to {_MAX_CHARS:,} characters"
    return None
