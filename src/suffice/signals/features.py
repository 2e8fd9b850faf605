"""The numbers that a learned model reads: named in its artefact, computed from Signals or from columns of them.

    feature   = factor { "*" factor }
    factor    = field | transform "(" field ")" | key "=" word
    transform = "log1p" | "logit" | "sqrt" | "unknown"
    word      = letters, digits and _ . : / + - @   or a JSON string, for every other text

A factor `key=word` is 1 where it holds and 0 elsewhere. The keys `class`, `question_type` and `script` refer to
the query; every other key, and every quoted key, to its declared metadata.

One parser serves two evaluators that agree: `row` for one step of a live run, `matrix` for all steps of recorded runs.
An unknown or non-finite number gives 0 after its transform; `unknown(field)` lets a model tell it from 0.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, log1p, sqrt
from operator import itemgetter, sub
from typing import Any, Final, Generic, Literal, NamedTuple, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.signals.base import FOLDS, check_need
from suffice.signals.fold import Fold
from suffice.signals.observe import SignalColumns
from suffice.types import Query, Signals

Column: TypeAlias = NDArray[np.float64]
Known: TypeAlias = float | None
Transform: TypeAlias = Literal["", "log1p", "logit", "sqrt", "unknown"]

MOST_FEATURES: Final = 20_000
MOST_FACTORS: Final = 4
MOST_CHARS: Final = 2_000  # of one feature's name
QUERY_FIELDS: Final = ("n_chars", "n_words", "n_numbers", "n_operators", "planned_steps")
OF_THE_QUERY: Final = ("class", "question_type", "script")
HAS_ANSWER: Final = "has_answer"  # 1 if there is an answer to deliver, else 0; never unknown
_COUNTED: Final = ("step", "tokens_used", HAS_ANSWER)  # known of every step
_BEFORE: Final = ("query", "step_share")  # known before the first token: no evidence of how the run went
_LEAST_P: Final = 1e-4  # logit is clipped here …
_MOST_P: Final = 1.0 - _LEAST_P  # … and here
_LOGIT_LEAST: Final = log(_LEAST_P / _MOST_P)
_LOGIT_MOST: Final = log(_MOST_P / (1.0 - _MOST_P))
_MOST_QUERIES: Final = 256  # in the cache
_MOST_LEAD: Final = 3.0

_WORD = r"[A-Za-z0-9_.:/+@-]+"
_STRING = r'"(?:[^"\\]|\\.)*"'
_BARE = re.compile(_WORD)
_FACTOR = re.compile(
    rf"(?P<key>{_WORD}|{_STRING})=(?P<word>{_WORD}|{_STRING})"
    r"|(?P<transform>[a-z0-9]+)\((?P<inner>[A-Za-z0-9_]+)\)"
    r"|(?P<field>[A-Za-z0-9_]+)",
    re.DOTALL,
)
_FORM = 'write field, log1p(field), logit(field), sqrt(field), unknown(field), key=word or key="any text", joined by *'


# ---- how a feature is written


@dataclass(frozen=True, slots=True)
class Number:
    field: str
    transform: Transform = ""

    def __str__(self) -> str:
        return f"{self.transform}({self.field})" if self.transform else self.field


@dataclass(frozen=True, slots=True)
class Mark:
    """A factor that is 1 where something was declared or derived before the first token, else 0."""

    key: str  # one of OF_THE_QUERY, or a key of the metadata
    word: str
    declared: bool  # the key belongs to the metadata

    def __str__(self) -> str:
        quoted = self.declared and self.key in OF_THE_QUERY
        return f"{json.dumps(self.key) if quoted else _write(self.key)}={_write(self.word)}"


Factor: TypeAlias = Number | Mark


def mark(key: str, word: str) -> str:
    """Return the name of the feature that is 1 where the metadata's `key` is `word`, with any characters."""
    return str(Mark(key, word, declared=True))


def match_feature(key: Literal["class", "question_type", "script"], word: str) -> str:
    """Return the name of the feature that is 1 if the query's class, type or script is `word`."""
    return str(Mark(key, word, declared=False))


def product(*names: str) -> str:
    return "*".join(names)


def parse_terms(where: str, name: object) -> tuple[Factor, ...]:
    """Parse a feature's name into its factors. Raise ConfigError that names `where` it is and what was wrong."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_CHARS:
        got = f"{len(name):,} characters" if isinstance(name, str) else f"a {type(name).__name__}"
        raise ConfigError(f"{where}: got {got}; a text of 1 to {MOST_CHARS:,} characters")
    factors: list[Factor] = []
    at = 0
    while at <= len(name):
        match = _FACTOR.match(name, at)
        end = at if match is None else match.end()
        if match is None or name[end : end + 1] not in ("", "*"):
            raise ConfigError(f"{where}: got {name!r:.80}, not understood at character {end + 1}; {_FORM}")
        factors.append(_parse_factor(where, match))
        at = end + 1
    if len(factors) > MOST_FACTORS:
        raise ConfigError(f"{where}: got a product of {len(factors)}; at most {MOST_FACTORS} factors")
    return tuple(factors)


def _parse_factor(where: str, match: re.Match[str]) -> Factor:
    key, word = match["key"], match["word"]
    if key is not None:
        declared = key.startswith('"') or key not in OF_THE_QUERY
        return Mark(_unquote(where, key), _unquote(where, word), declared)
    if match["transform"] is None:
        return Number(match["field"])
    transform = next((name for name in _TRANSFORMED if name and name == match["transform"]), None)
    if transform is None:
        known = ", ".join(filter(None, _TRANSFORMED))
        raise ConfigError(f"{where}: unknown transform {match['transform']!r:.40}; known: {known}")
    return Number(match["inner"], transform)


def _write(text: str) -> str:
    return text if _BARE.fullmatch(text) else json.dumps(text)  # in ASCII, so that lone surrogates survive every file


def _unquote(where: str, text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        read = json.loads(text)
    except ValueError:
        raise ConfigError(f"{where}: got {text!r:.80}; a text in quotes is a JSON string") from None
    assert isinstance(read, str)
    return read


# ---- derived fields


@dataclass(frozen=True, slots=True)
class DerivedField:
    """A number computed from two others, for a step and for columns of steps; unknown if one of them is."""

    says: str  # a plain sentence that describes it
    reads: tuple[str, str]  # fields of Signals, or derived fields that stand before it
    one: Callable[[float, float], float | None]  # from their known numbers to its own; None: unknown after all
    many: Callable[[Column, Column], Column]  # the same for columns; NaN: unknown


def _over_step(count: float, step: float) -> float:
    return count / step if step > 1 else count


def _over_steps(count: Column, step: Column) -> Column:
    return count / np.maximum(step, 1.0)


DERIVED: Final[Mapping[str, DerivedField]] = {
    "tokens_per_step": DerivedField(
        "Tokens generated so far over the steps so far.", ("tokens_used", "step"), _over_step, _over_steps
    ),
    "streak_share": DerivedField(
        "Steps in a row with the same trial answer over the steps so far.",
        ("answer_streak", "step"),
        _over_step,
        _over_steps,
    ),
    "vote_share": DerivedField(
        "Steps that gave an answer over the steps so far.", ("n_votes", "step"), _over_step, _over_steps
    ),
    "lead": DerivedField(
        "Votes of the leading answer minus those of the runner-up.", ("top_votes", "second_votes"), sub, sub
    ),
    "remaining_steps": DerivedField(
        "Planned steps that are still to come; unknown without a plan.",
        ("step", "step_share"),
        lambda step, share: round(step / share) - step if 0.0 < share <= 1.0 else None,
        lambda step, share: np.round(step / np.where((share > 0.0) & (share <= 1.0), share, np.nan)) - step,
    ),
    "lead_share": DerivedField(
        "The lead over the planned steps that remain, at most 3, and 3 where none remain; unknown without a plan.",
        ("lead", "remaining_steps"),
        lambda lead, left: min(_MOST_LEAD, lead / left) if left > 0 else _MOST_LEAD,
        lambda lead, left: np.where(left > 0, np.minimum(_MOST_LEAD, lead / np.maximum(left, 1.0)), _MOST_LEAD),
    ),
    "settled": DerivedField(
        "1 where the runner-up cannot draw level in the planned steps that remain, else 0; unknown without a plan.",
        ("lead", "remaining_steps"),
        lambda lead, left: 1.0 if left == 0 or lead > left else 0.0,
        lambda lead, left: np.asarray((left == 0) | (lead > left), dtype=np.float64),
    ),
}


class FeatureSet:
    """An ordered set of features. Raises ConfigError, naming the place, for an unknown, invalid or repeated one."""

    def __init__(self, names: Sequence[str], *, where: str = "features") -> None:
        if not 0 < len(names) <= MOST_FEATURES:
            raise ConfigError(f"{where}: got {len(names):,} features; 1 to {MOST_FEATURES:,}")
        folds = _folds(tuple(FOLDS.items()))
        fields = {*_COUNTED, *QUERY_FIELDS, *DERIVED, *folds} - {"query"}
        parsed, first = list[tuple[Factor, ...]](), dict[str, int]()
        for at, name in enumerate(names):
            parsed.append(parse_terms(f"{where}[{at}]", name))
            for factor in parsed[-1]:
                _check(f"{where}[{at}]", factor, fields)
            if first.setdefault(name, at) != at:
                raise ConfigError(f"{where}[{at}]: got {name!r:.80} again; each feature once")
        self.names: tuple[str, ...] = tuple(names)
        flat = list(dict.fromkeys(factor for factors in parsed for factor in factors))
        of_query = [f for f in flat if isinstance(f, Mark) or f.field in QUERY_FIELDS]
        numbers = [f for f in flat if isinstance(f, Number) and f.field not in QUERY_FIELDS]
        transforms = list(dict.fromkeys(number.transform for number in numbers))
        self._numbers = [number for transform in transforms for number in numbers if number.transform == transform]
        self._plan = _plan_of(parsed, [*self._numbers, *of_query])
        self._of_query = _QueryFactors(of_query, len(self._numbers), self._plan[0])
        self._derived, self._own = _inputs_of(self._numbers)
        self._reads_query = bool(of_query)
        read = [*self._own, *(("query",) if of_query else ())]
        self.needs: tuple[str, ...] = tuple(dict.fromkeys(folds[field] for field in read if field in folds))
        evidence = [field for field in self._own if field in folds and field not in _BEFORE]
        self._evidence = evidence or [field for field in read if field in folds]
        self._compile(transforms)

    def __reduce__(self) -> tuple[type[FeatureSet], tuple[tuple[str, ...]]]:
        return FeatureSet, (self.names,)

    def __len__(self) -> int:
        return len(self.names)

    def row(self, signals: Signals) -> tuple[float, ...]:
        has_answer = 0.0 if signals.answer is None else 1.0
        known: list[Known] = [signals.step, signals.tokens_used, has_answer, *map(signals.values.get, self._own)]
        for derive in self._derive:
            known.append(derive(known))
        factors: list[float] = []
        for transform, pick in self._groups:
            factors += transform(pick(known))
        tail, live = self._of_query.of(signals.query if self._reads_query else None)
        factors += tail
        for at, a, b in live:
            factors[at] = factors[a] * factors[b]
        return self._pick(factors)

    def matrix(self, columns: SignalColumns, queries: Sequence[Query | None]) -> Column:
        """Return the features of every step of some runs, one query per run, shape (n rows, n features)."""
        lengths = np.diff(columns.starts)
        if len(queries) != len(lengths):
            raise ValueError(f"queries: got {len(queries)} for {len(lengths)} runs; one for each run")
        run = np.repeat(np.arange(len(lengths)), lengths)
        return self.table({**columns.values, "answer": columns.answer}, queries, run)

    def table(self, values: Mapping[str, Column], queries: Sequence[Query | None], run: NDArray[np.int64]) -> Column:
        """Return the features of any rows, shape (n rows, n features).

        values   columns named as fields of Signals; NaN or missing: unknown
        queries  of the runs; `run` is the index of each row's run
        """
        n_rows = len(values["step"])
        unknown = np.full(n_rows, np.nan)
        known = {field: values.get(field, unknown) for field in ("step", "tokens_used", *self._own)}
        known[HAS_ANSWER] = (~np.isnan(values.get("answer", unknown))).astype(np.float64)
        for field in self._derived:
            given = [known[name] for name in DERIVED[field].reads]
            usable = np.isfinite(given).all(axis=0)
            known[field] = np.where(usable, DERIVED[field].many(*(np.where(usable, x, 1.0) for x in given)), np.nan)
        factors = [_read_many(factor.transform, known[factor.field]) for factor in self._numbers]
        factors += self._of_query.many(queries, run)
        pairs, picked = self._plan
        for a, b in pairs:
            factors.append(factors[a] * factors[b])
        table = np.empty((n_rows, len(picked)), order="F")
        for at, factor in enumerate(picked):
            table[:, at] = factors[factor]
        return table

    def informed(self, signals: Signals) -> bool:
        """Return whether any field of the run that they read is known, beyond its length and having an answer."""
        seen = [signals.query if field == "query" else signals.values.get(field) for field in self._evidence]
        return any(x is not None and not (isinstance(x, float) and x - x) for x in seen)

    def informed_rows(
        self, values: Mapping[str, Column], queries: Sequence[Query | None], run: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Return `informed` for the rows of `table`, shape (n rows,)."""
        informed = np.zeros(len(values["step"]), np.bool_)
        for field in self._evidence:
            if field == "query":
                informed |= np.array([query is not None for query in queries], np.bool_)[run]
            elif field in values:
                informed |= np.isfinite(values[field])
        return informed

    def _compile(self, transforms: Sequence[Transform]) -> None:
        index = {name: at for at, name in enumerate([*_COUNTED, *self._own, *self._derived])}
        self._derive = [_derivation(DERIVED[field], index) for field in self._derived]
        self._groups = [
            (_TRANSFORMED[transform], _picker([index[n.field] for n in self._numbers if n.transform == transform]))
            for transform in transforms
        ]
        self._pick = _picker(self._plan[1])


T = TypeVar("T")
_NO_QUERY: Final = Query()


class QueryMemory(Generic[T]):
    """Remembers a function's results for recent queries, by identity: to hash a query would cost more."""

    def __init__(self, compute: Callable[[Query], T]) -> None:
        self._compute = compute
        self._results: dict[int, tuple[Query, T]] = {}

    def of(self, query: Query | None) -> T:
        query = _NO_QUERY if query is None else query
        known = self._results.get(id(query))
        if known is None or known[0] is not query:
            if len(self._results) >= _MOST_QUERIES:
                self._results.clear()
            known = self._results[id(query)] = (query, self._compute(query))
        return known[1]


class _QueryPart(NamedTuple):
    tail: list[float]  # its factors, and a 0 for each product
    live: list[tuple[int, int, int]]  # products that are not 0 for it: place in the row, and its two factors


class _QueryFactors:
    """The factors of the query, computed once per query, not once per step.

    before  number of factors that come before these in a row
    pairs   products, as `_plan_of` returns them: most are 0 for a given query
    """

    def __init__(self, factors: Sequence[Factor], before: int, pairs: Sequence[tuple[int, int]]) -> None:
        self._n_factors = len(factors)
        self._before = before
        self._pairs = pairs
        self._marks = {(f.declared, f.key, f.word): at for at, f in enumerate(factors) if isinstance(f, Mark)}
        self._numbers = [(at, factor) for at, factor in enumerate(factors) if isinstance(factor, Number)]
        self.of = QueryMemory(self._prepare).of  # do not modify the part of a row that it returns

    def many(self, queries: Sequence[Query | None], run: NDArray[np.int64]) -> list[Column]:
        table = np.array([self._compute(query or _NO_QUERY) for query in queries], dtype=np.float64)
        table = table.reshape(len(queries), self._n_factors)
        return [np.ascontiguousarray(column)[run] for column in table.T]

    def _prepare(self, query: Query) -> _QueryPart:
        part = self._compute(query)
        zero = {self._before + at for at, factor in enumerate(part) if factor == 0.0}
        live = []
        for at, (a, b) in enumerate(self._pairs, self._before + len(part)):
            if a in zero or b in zero:
                zero.add(at)
            else:
                live.append((at, a, b))
        return _QueryPart([*part, *[0.0] * len(self._pairs)], live)

    def _compute(self, query: Query) -> list[float]:
        part = [0.0] * self._n_factors
        held = [(True, key, word) for key, word in query.metadata]
        for key, derived in (
            ("class", query.query_class),
            ("question_type", query.question_type),
            ("script", query.script),
        ):
            held.append((False, key, derived or ""))
        for mark in held:
            if mark in self._marks:
                part[self._marks[mark]] = 1.0
        for at, number in self._numbers:
            part[at] = _TRANSFORMED[number.transform]((getattr(query, number.field),))[0]
        return part


# ---- one step
# `x is None or x - x` is true for None, NaN and infinities: everything unknown.


def _logit(given: Iterable[Known]) -> list[float]:
    return [
        0.0
        if p is None or p - p
        else log(p / (1.0 - p))
        if _LEAST_P < p < _MOST_P
        else _LOGIT_MOST
        if p > 0.5
        else _LOGIT_LEAST
        for p in given
    ]


_TRANSFORMED: Final[Mapping[Transform, Callable[[Iterable[Known]], list[float]]]] = {
    "": lambda given: [0.0 if x is None or x - x else x for x in given],
    "log1p": lambda given: [0.0 if x is None or x - x or x < 0.0 else log1p(x) for x in given],
    "logit": _logit,
    "sqrt": lambda given: [0.0 if x is None or x - x or x < 0.0 else sqrt(x) for x in given],
    "unknown": lambda given: [1.0 if x is None or x - x else 0.0 for x in given],
}


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    if len(places) == 1:
        return lambda items: (items[places[0]],)
    return itemgetter(*places) if places else lambda items: ()  # noqa: ARG005 - all three have one form


def _derivation(field: DerivedField, index: Mapping[str, int]) -> Callable[[Sequence[Known]], Known]:
    one = field.one
    first = index[field.reads[0]]
    second = index[field.reads[1]]

    def derive(known: Sequence[Known]) -> Known:
        a, b = known[first], known[second]
        return None if a is None or b is None or a - a or b - b else one(a, b)

    return derive


# ---- columns of steps


def _read_many(transform: Transform, column: Column) -> Column:
    known = np.isfinite(column)
    if transform == "unknown":
        return (~known).astype(np.float64)
    x = np.where(known, column, 0.0)
    if transform == "log1p":
        return np.asarray(np.log1p(np.maximum(x, 0.0)))
    if transform == "sqrt":
        return np.asarray(np.sqrt(np.maximum(x, 0.0)))
    if transform == "logit":
        p = np.clip(x, _LEAST_P, _MOST_P)
        return np.where(known, np.log(p / (1.0 - p)), 0.0)
    return x


# ---- what a name refers to


@lru_cache(maxsize=8)
def _folds(known: tuple[tuple[str, Callable[..., Fold]], ...]) -> Mapping[str, str]:
    """Each field of Signals with the name of the fold that fills it without parameters."""
    filled: dict[str, str] = {}
    for name, _ in known:
        try:
            fields = check_need(name).fields
        except ConfigError:
            continue
        filled.update(dict.fromkeys(fields, name))
    return filled


def _check(where: str, factor: Factor, fields: Collection[str]) -> None:
    if isinstance(factor, Number) and factor.field not in fields:
        near = difflib.get_close_matches(factor.field[:100], sorted(fields), n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        allowed = f"{hint}a number of Signals or Query, or a derived one"
        raise ConfigError(f"{where}: unknown field {factor.field!r:.60}; {allowed}")


def _inputs_of(numbers: Iterable[Number]) -> tuple[list[str], list[str]]:
    """The derived fields behind these numbers, each after those that it reads, and the fields that folds fill."""
    read = dict.fromkeys(number.field for number in numbers)
    for field in reversed(tuple(DERIVED)):
        if field in read:
            read |= dict.fromkeys(DERIVED[field].reads)
    derived = [field for field in DERIVED if field in read]
    return derived, [field for field in read if field not in DERIVED and field not in _COUNTED]


def _plan_of(
    parsed: Iterable[tuple[Factor, ...]], factors: Sequence[Factor]
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return (pairs of factors to multiply, each appended to the factors; the places of the features)."""
    index = {factor: at for at, factor in enumerate(factors)}
    pairs: list[tuple[int, int]] = []
    picked = []
    for several in parsed:
        at = index[several[0]]
        for factor in several[1:]:
            pairs.append((at, index[factor]))
            at = len(factors) + len(pairs) - 1
        picked.append(at)
    return pairs, picked


# ---- query classes learned from data: readable rules on the query; the first match counts


class FeatureTest(NamedTuple):
    feature: str  # of the query only, as `signals.features` names it
    above: bool  # False: at most the value
    value: float

    def __str__(self) -> str:
        if "=" in self.feature:  # a mark is 0 or 1
            return self.feature if self.above else f"not {self.feature}"
        return f"{self.feature} {'>' if self.above else '≤'} {self.value:g}"


Rule: TypeAlias = tuple[FeatureTest, ...]


class Classes:
    """Assigns queries to classes. Raises ConfigError for an unknown feature or one that is not of a query."""

    def __init__(self, rules: Iterable[Iterable[tuple[str, bool, float]]]) -> None:
        self.rules: tuple[Rule, ...] = tuple(tuple(FeatureTest(*test) for test in rule) for rule in rules)
        self.names = tuple(" and ".join(map(str, rule)) or "every query" for rule in self.rules)
        features = tuple(dict.fromkeys(test.feature for rule in self.rules for test in rule))
        self._features = FeatureSet(features, where="classes") if features else None
        if self._features is not None and set(self._features.needs) - {"query"}:
            raise ConfigError(f"classes: {', '.join(self._features.needs)} are known after the first token only")
        self._place = {name: at for at, name in enumerate(features)}
        self._recent = QueryMemory(self._classify)

    def of(self, query: Query | None) -> str:
        """Return the name of the first rule that matches; "" if none does. Recent queries are cached."""
        return self._recent.of(query)

    def _classify(self, query: Query) -> str:
        row = () if self._features is None else self._features.row(Signals(step=0, tokens_used=0, query=query))
        for name, rule in zip(self.names, self.rules, strict=True):
            if all((row[self._place[test.feature]] > test.value) == test.above for test in rule):
                return name
        return ""
