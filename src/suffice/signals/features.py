"""The numbers that a learned model reads: named in its artefact, computed from Signals or from columns of them.

One parser (`signals.terms`) and two evaluators that agree: `row` for one step of a live run, `matrix` for
all steps of recorded ones. A number that is unknown, or is none, gives 0 behind its transform; a model that
wants to know asks for `unknown(field)`. This file knows fields and refuses to know models and thresholds.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import log, log1p, sqrt
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError
from suffice.signals.base import FOLDS, check_need
from suffice.signals.columns import SignalColumns
from suffice.signals.terms import DERIVED, Factor, Mark, Number, Transform, found, mark, parse_terms, product
from suffice.types import Query, Signals

__all__ = ["DERIVED", "HAS_ANSWER", "MOST_FEATURES", "QUERY_FIELDS", "FeatureSet", "found", "mark", "product"]

Column: TypeAlias = NDArray[np.float64]
Known: TypeAlias = float | None

MOST_FEATURES: Final = 20_000
QUERY_FIELDS: Final = ("n_chars", "n_words", "n_numbers", "n_operators", "planned_steps")
HAS_ANSWER: Final = "has_answer"  # 1 where there is an answer to deliver, else 0; never unknown
_COUNTED: Final = ("step", "tokens_used")
_BEFORE: Final = ("query", "step_share")  # known before the first token: no evidence of how the run went
_LEAST_P: Final = 1e-4  # logit is cut here …
_MOST_P: Final = 1.0 - _LEAST_P  # … and here
_LOGIT_LEAST: Final = log(_LEAST_P / _MOST_P)
_LOGIT_MOST: Final = log(_MOST_P / (1.0 - _MOST_P))
_MOST_QUERIES: Final = 256  # whose part of a row is remembered
_BUCKET: Final = re.compile("0|[1-9][0-9]{0,8}")


class FeatureSet:
    """Some features, in order.

    names  as `signals.terms` reads them, each once
    where  they stand, for errors

    Raises ConfigError with the place of the first feature that is unknown, badly written or given twice.
    """

    def __init__(self, names: Sequence[str], *, where: str = "features") -> None:
        if not 0 < len(names) <= MOST_FEATURES:
            raise ConfigError(f"{where}: got {len(names):,} features; 1 to {MOST_FEATURES:,}")
        folds = _folds()
        parsed, first = list[tuple[Factor, ...]](), dict[str, int]()
        for at, name in enumerate(names):
            parsed.append(parse_terms(f"{where}[{at}]", name))
            _check(f"{where}[{at}]", parsed[-1], folds)
            if first.setdefault(name, at) != at:
                raise ConfigError(f"{where}[{at}]: got {name!r:.80} again; each feature once")
        self.names: tuple[str, ...] = tuple(names)
        flat = list(dict.fromkeys(factor for factors in parsed for factor in factors))
        asked = [f for f in flat if isinstance(f, Mark) or f.field in QUERY_FIELDS]
        numbers = [f for f in flat if isinstance(f, Number) and f.field not in QUERY_FIELDS]
        transforms = list(dict.fromkeys(number.transform for number in numbers))
        self._numbers = [number for transform in transforms for number in numbers if number.transform == transform]
        self._plan = _plan_of(parsed, [*self._numbers, *asked])
        self._asked = _Asked(asked, len(self._numbers), self._plan[0])
        self._fields = _fields_of(self._numbers)
        fields = [*self._fields, *(("query",) if asked else ())]
        self.needs: tuple[str, ...] = tuple(dict.fromkeys(folds[field] for field in fields if field in folds))
        evidence = [field for field in self._fields if field in folds and field not in _BEFORE]
        self._evidence = evidence or [field for field in fields if field in folds]
        self._compile(transforms)

    def __reduce__(self) -> tuple[type[FeatureSet], tuple[tuple[str, ...]]]:
        return FeatureSet, (self.names,)

    def __len__(self) -> int:
        return len(self.names)

    def row(self, signals: Signals) -> tuple[float, ...]:
        """The features of one step. Some microseconds."""
        known: list[Known] = [signals.step, signals.tokens_used, *map(signals.values.get, self._own)]
        if self._has_answer:
            known.append(0.0 if signals.answer is None else 1.0)
        for derive in self._derive:
            known.append(derive(known))
        factors: list[float] = []
        for transform, pick in self._groups:
            factors += transform(pick(known))
        if not self._asked.factors:
            for a, b in self._plan[0]:
                factors.append(factors[a] * factors[b])
            return self._pick(factors)
        tail, live = self._asked.of(signals.query)
        factors += tail
        for at, a, b in live:
            factors[at] = factors[a] * factors[b]
        return self._pick(factors)

    def matrix(self, columns: SignalColumns, queries: Sequence[Query | None]) -> Column:
        """The features of every step of some runs, shape (n rows, n features).

        queries  one for each run
        """
        lengths = np.diff(columns.starts)
        if len(queries) != len(lengths):
            raise ValueError(f"queries: got {len(queries)} for {len(lengths)} runs; one for each run")
        run = np.repeat(np.arange(len(lengths)), lengths)
        return self.table({**columns.values, "answer": columns.answer}, queries, run)

    def table(self, values: Mapping[str, Column], queries: Sequence[Query | None], run: NDArray[np.int64]) -> Column:
        """The features of any rows, shape (n rows, n features).

        values   columns named as fields of Signals, each of shape (n rows,); not a number, or not there: unknown
        queries  what was known before the first token, one for each run
        run      which of `queries` a row belongs to, shape (n rows,)
        """
        n_rows = len(values["step"])
        unknown = np.full(n_rows, np.nan)
        known = {field: values.get(field, unknown) for field in (*_COUNTED, *self._fields)}
        for field in _made(self._numbers):
            if field == HAS_ANSWER:
                known[field] = (~np.isnan(known["answer"])).astype(np.float64)
            else:
                known[field] = DERIVED[field].many(*(_finite(known[name]) for name in DERIVED[field].reads))
        factors = [_read_many(factor.transform, known[factor.field]) for factor in self._numbers]
        factors += self._asked.many(queries, run)
        pairs, picked = self._plan
        for a, b in pairs:
            factors.append(factors[a] * factors[b])
        table = np.empty((n_rows, len(picked)), order="F")
        for at, factor in enumerate(picked):
            table[:, at] = factors[factor]
        return table

    def informed(self, signals: Signals) -> bool:
        """Is anything known of what they read of the run, beyond its length and whether it has an answer?

        What was known before the first token counts only where they read nothing else.
        """
        seen = [signals.query if field == "query" else signals.values.get(field) for field in self._evidence]
        return any(x is not None and not (isinstance(x, float) and x - x) for x in seen)

    def informed_rows(
        self, values: Mapping[str, Column], queries: Sequence[Query | None], run: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """The same of the rows of `table`, shape (n rows,)."""
        informed = np.zeros(len(values["step"]), np.bool_)
        for field in self._evidence:
            if field == "query":
                informed |= np.array([query is not None for query in queries], np.bool_)[run]
            elif field in values:
                informed |= np.isfinite(values[field])
        return informed

    def _compile(self, transforms: Sequence[Transform]) -> None:
        self._own = [field for field in self._fields if field != "answer"]
        self._has_answer = "answer" in self._fields
        names = [*_COUNTED, *self._own, *([HAS_ANSWER] if self._has_answer else [])]
        derived = [field for field in _made(self._numbers) if field != HAS_ANSWER]
        index = {name: at for at, name in enumerate([*names, *derived])}
        self._derive = [_deriving(DERIVED[name].one, [index[read] for read in DERIVED[name].reads]) for name in derived]
        self._groups = [
            (_TRANSFORMED[transform], _picker([index[n.field] for n in self._numbers if n.transform == transform]))
            for transform in transforms
        ]
        self._pick = _picker(self._plan[1])


class _Prepared(NamedTuple):
    """What of a row is settled by its query."""

    tail: list[float]  # its factors, and a 0 for each product
    live: list[tuple[int, int, int]]  # products that are not 0 for it: place in the row, and what is multiplied


class _Asked:
    """The factors that look at the query: the same at every step of a run, so worked out once for each query.

    before  factors that stand before these in a row
    pairs   products, as `_plan_of` gives them: most are 0 for a given query, whatever the step
    """

    def __init__(self, factors: Sequence[Factor], before: int, pairs: Sequence[tuple[int, int]]) -> None:
        self.factors, self._before, self._pairs = factors, before, pairs
        self._remembered: dict[int, tuple[Query, _Prepared]] = {}
        self._declared: dict[tuple[str, str], int] = {}
        self._found: dict[tuple[str, str], int] = {}
        self._ngrams: dict[int, int] = {}
        self._numbers: list[tuple[int, Number]] = []
        for at, factor in enumerate(factors):
            if isinstance(factor, Number):
                self._numbers.append((at, factor))
            elif factor.declared:
                self._declared[factor.key, factor.word] = at
            elif factor.key == "ngram":
                self._ngrams[int(factor.word)] = at
            else:
                self._found[factor.key, factor.word] = at
        self._nobody = self._prepare(Query())

    def of(self, query: Query | None) -> _Prepared:
        """What of a row this query settles; not to be changed. A query met lately costs next to nothing."""
        if query is None:
            return self._nobody
        seen = self._remembered.get(id(query))
        if seen is None or seen[0] is not query:
            if len(self._remembered) >= _MOST_QUERIES:
                self._remembered.clear()
            seen = self._remembered[id(query)] = (query, self._prepare(query))
        return seen[1]

    def many(self, queries: Sequence[Query | None], run: NDArray[np.int64]) -> list[Column]:
        """One column for each factor, row by row the query of its run."""
        if not self.factors:
            return []
        table = np.array([self._work_out(query or Query()) for query in queries], dtype=np.float64)
        table = table.reshape(len(queries), len(self.factors))
        return [np.ascontiguousarray(column)[run] for column in table.T]

    def _prepare(self, query: Query) -> _Prepared:
        part = self._work_out(query)
        zero = {self._before + at for at, factor in enumerate(part) if factor == 0.0}
        live = []
        for at, (a, b) in enumerate(self._pairs, self._before + len(part)):
            if a in zero or b in zero:
                zero.add(at)
            else:
                live.append((at, a, b))
        return _Prepared([*part, *[0.0] * len(self._pairs)], live)

    def _work_out(self, query: Query) -> list[float]:
        part = [0.0] * len(self.factors)
        marks = [self._declared.get(pair) for pair in query.metadata]
        marks += [self._found.get(("class", query.query_class))]
        marks += [self._found.get(("question_type", query.question_type or ""))]
        marks += [self._found.get(("script", query.script or ""))]
        if self._ngrams:
            marks += [self._ngrams.get(bucket) for bucket in query.ngrams]
        for at in marks:
            if at is not None:
                part[at] = 1.0
        for at, number in self._numbers:
            part[at] = _TRANSFORMED[number.transform]((getattr(query, number.field),))[0]
        return part


# ---- one step -----------------------------------------------------------------------------------
# `x is None or x - x` is true of None, not-a-number and infinities: of all that is unknown.


def _plain(given: Iterable[Known]) -> list[float]:
    return [0.0 if x is None or x - x else x for x in given]


def _log1p(given: Iterable[Known]) -> list[float]:
    return [0.0 if x is None or x - x or x < 0.0 else log1p(x) for x in given]


def _sqrt(given: Iterable[Known]) -> list[float]:
    return [0.0 if x is None or x - x or x < 0.0 else sqrt(x) for x in given]


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


def _unknown(given: Iterable[Known]) -> list[float]:
    return [1.0 if x is None or x - x else 0.0 for x in given]


_TRANSFORMED: Final[Mapping[Transform, Callable[[Iterable[Known]], list[float]]]] = {
    "": _plain,
    "log1p": _log1p,
    "sqrt": _sqrt,
    "logit": _logit,
    "unknown": _unknown,
}


def _picker(places: Sequence[int]) -> Callable[[Sequence[Any]], tuple[Any, ...]]:
    """What stands at these places, as a tuple. Any: numbers, known or not."""
    if len(places) == 1:
        return lambda items: (items[places[0]],)
    return itemgetter(*places) if places else lambda items: ()  # noqa: ARG005 - all three have one form


def _deriving(one: Callable[..., Known], reads: Sequence[int]) -> Callable[[Sequence[Known]], Known]:
    """Ask for the number of what stands at some places, unless something there is unknown."""
    if len(reads) == 2:  # most are: spelled out, they cost two thirds
        first, second = reads

        def derive_of_two(known: Sequence[Known]) -> Known:
            a, b = known[first], known[second]
            return None if a is None or b is None or a - a or b - b else one(a, b)

        return derive_of_two

    def derive(known: Sequence[Known]) -> Known:
        given = [known[at] for at in reads]
        for x in given:
            if x is None or x - x:
                return None
        return one(*given)

    return derive


# ---- columns of steps ---------------------------------------------------------------------------


def _finite(column: Column) -> Column:
    return np.where(np.isfinite(column), column, np.nan)


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


# ---- what a name stands for ---------------------------------------------------------------------


def _folds() -> dict[str, str]:
    """Which fold fills which field; folds that cannot be asked for by their name alone are left out."""
    filled: dict[str, str] = {}
    for name in FOLDS:
        try:
            fields = check_need(name).fields
        except ConfigError:
            continue
        filled.update(dict.fromkeys(fields, name))
    return filled


def _check(where: str, factors: Iterable[Factor], folds: Mapping[str, str]) -> None:
    """Refuse what is written well and means nothing."""
    fields = {*_COUNTED, HAS_ANSWER, *QUERY_FIELDS, *DERIVED, *folds} - {"query"}
    for factor in factors:
        if isinstance(factor, Mark):
            if factor.key == "ngram" and not factor.declared and not _BUCKET.fullmatch(factor.word):
                raise ConfigError(f"{where}: got ngram {factor.word!r:.40}; a whole number, at least 0")
        elif factor.field not in fields:
            near = difflib.get_close_matches(factor.field[:100], sorted(fields), n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(
                f"{where}: unknown field {factor.field!r:.60}; {hint}a number of Signals or Query, or a derived one"
            )


def _made(numbers: Iterable[Number]) -> list[str]:
    """The fields among them that are made here of others, each once."""
    return list(dict.fromkeys(n.field for n in numbers if n.field == HAS_ANSWER or n.field in DERIVED))


def _fields_of(numbers: Iterable[Number]) -> list[str]:
    """What must be looked up in Signals for them, beside what is counted always; each once."""
    fields: dict[str, None] = {}
    for number in numbers:
        if number.field == HAS_ANSWER:
            fields["answer"] = None
        else:
            fields.update(dict.fromkeys(DERIVED[number.field].reads if number.field in DERIVED else (number.field,)))
    return [field for field in fields if field not in _COUNTED]


def _plan_of(
    parsed: Iterable[tuple[Factor, ...]], factors: Sequence[Factor]
) -> tuple[list[tuple[int, int]], list[int]]:
    """How features are made of factors: pairs to multiply, each appended to the factors; then which to pick."""
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
