"""How a feature of a learned model is written: a product of factors, read into plain records.

    feature   = factor { "*" factor }
    factor    = field | transform "(" field ")" | key "=" word
    transform = "log1p" | "logit" | "sqrt" | "unknown"
    word      = letters, digits and _ . : / + - @   or a JSON string, for every other text

A factor `key=word` is 1 where it holds and 0 elsewhere. The keys `class`, `ngram`, `question_type` and `script`
look at the query; every other key, and every key in quotes, at its declared metadata.

A derived field is a number made of fields of Signals. It is written twice, for one step and for columns of steps; an
input that is unknown makes it unknown, which in a column is not a number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from suffice.errors import ConfigError

Transform: TypeAlias = Literal["", "log1p", "logit", "sqrt", "unknown"]

_TRANSFORMS: Final[tuple[Transform, ...]] = ("log1p", "logit", "sqrt", "unknown")
MOST_FACTORS: Final = 4
MOST_CHARS: Final = 2_000  # of one feature's name
OF_THE_QUERY: Final = ("class", "ngram", "question_type", "script")

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


@dataclass(frozen=True, slots=True)
class Number:
    """A factor that is a number: a field behind a transform."""

    field: str
    transform: Transform = ""

    def __str__(self) -> str:
        return f"{self.transform}({self.field})" if self.transform else self.field


@dataclass(frozen=True, slots=True)
class Mark:
    """A factor that is 1 where something was declared or found before the first token, else 0."""

    key: str  # one of OF_THE_QUERY, or a key of the metadata
    word: str
    declared: bool  # the key is one of the metadata

    def __str__(self) -> str:
        quoted = self.declared and self.key in OF_THE_QUERY
        return f"{_quote(self.key) if quoted else _write(self.key)}={_write(self.word)}"


Factor: TypeAlias = Number | Mark


def mark(key: str, word: str) -> str:
    """The name of the feature that is 1 where the metadata's `key` is `word`, whatever characters they hold."""
    return str(Mark(key, word, declared=True))


def found(key: Literal["class", "ngram", "question_type", "script"], word: str | int) -> str:
    """The name of the feature that is 1 where the query's class, type or script is `word`, or has that n-gram."""
    return str(Mark(key, str(word), declared=False))


def product(*names: str) -> str:
    return "*".join(names)


def parse_terms(where: str, name: object) -> tuple[Factor, ...]:
    """The factors of a feature's name. Raises ConfigError that names `where` it stood and what was wrong."""
    if not isinstance(name, str) or not 0 < len(name) <= MOST_CHARS:
        got = f"{len(name):,} characters" if isinstance(name, str) else f"a {type(name).__name__}"
        raise ConfigError(f"{where}: got {got}; a text of 1 to {MOST_CHARS:,} characters")
    factors: list[Factor] = []
    at = 0
    while True:
        match = _FACTOR.match(name, at)
        if match is None:
            raise ConfigError(f"{where}: got {name!r:.80}, not understood at character {at + 1}; {_FORM}")
        factors.append(_read(where, match))
        at = match.end()
        if at == len(name):
            break
        if name[at] != "*":
            raise ConfigError(f"{where}: got {name!r:.80}, not understood at character {at + 1}; {_FORM}")
        at += 1
    if len(factors) > MOST_FACTORS:
        raise ConfigError(f"{where}: got a product of {len(factors)}; at most {MOST_FACTORS} factors")
    return tuple(factors)


def _read(where: str, match: re.Match[str]) -> Factor:
    key, word = match["key"], match["word"]
    if key is not None:
        declared = key.startswith('"') or key not in OF_THE_QUERY
        return Mark(_unquote(where, key), _unquote(where, word), declared)
    if match["transform"] is None:
        return Number(match["field"])
    transform = next((name for name in _TRANSFORMS if name == match["transform"]), None)
    if transform is None:
        raise ConfigError(f"{where}: unknown transform {match['transform']!r:.40}; known: {', '.join(_TRANSFORMS)}")
    return Number(match["inner"], transform)


def _write(text: str) -> str:
    return text if _BARE.fullmatch(text) else _quote(text)


def _quote(text: str) -> str:
    return json.dumps(text)  # in ASCII: any text, lone surrogates too, survives every file


def _unquote(where: str, text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        read = json.loads(text)
    except ValueError:
        raise ConfigError(f"{where}: got {text!r:.80}; a text in quotes is a JSON string") from None
    assert isinstance(read, str)
    return read


Column: TypeAlias = NDArray[np.float64]

_MOST_LEAD = 3.0


@dataclass(frozen=True, slots=True)
class DerivedField:
    """One derived field.

    says   what it is, in one plain sentence
    reads  the fields of Signals that it is made of
    one    from their known numbers to its own; None: unknown after all
    many   the same of columns
    """

    says: str
    reads: tuple[str, ...]
    one: Callable[..., float | None]
    many: Callable[..., Column]


def _over_step(count: float, step: float) -> float:
    return count / step if step > 1 else count


def _over_steps(count: Column, step: Column) -> Column:
    return count / np.maximum(step, 1.0)


def _remaining(step: float, share: float) -> float | None:
    if not 0.0 < share <= 1.0:
        return None
    return round(step / share) - step


def _remaining_many(step: Column, share: Column) -> Column:
    usable = np.where((share > 0.0) & (share <= 1.0), share, np.nan)
    return np.round(step / usable) - step


def _lead_share(top: float, second: float, step: float, share: float) -> float | None:
    remaining = _remaining(step, share)
    if remaining is None:
        return None
    return min(_MOST_LEAD, (top - second) / remaining) if remaining > 0 else _MOST_LEAD


def _lead_share_many(top: Column, second: Column, step: Column, share: Column) -> Column:
    remaining = _remaining_many(step, share)
    lead = top - second
    ratio = np.minimum(_MOST_LEAD, lead / np.maximum(remaining, 1.0))
    return np.where(remaining > 0, ratio, np.where(np.isnan(remaining + lead), np.nan, _MOST_LEAD))


def _settled(top: float, second: float, step: float, share: float) -> float | None:
    remaining = _remaining(step, share)
    if remaining is None:
        return None
    return 1.0 if remaining == 0 or top - second > remaining else 0.0


def _settled_many(top: Column, second: Column, step: Column, share: Column) -> Column:
    remaining = _remaining_many(step, share)
    lead = top - second
    settled = ((remaining == 0) | (lead > remaining)).astype(np.float64)
    return np.where(np.isnan(remaining + lead), np.nan, settled)


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
        "Votes of the leading answer minus those of the runner-up.",
        ("top_votes", "second_votes"),
        lambda top, second: top - second,
        lambda top, second: top - second,
    ),
    "remaining_steps": DerivedField(
        "Planned steps that are still to come; unknown without a plan.",
        ("step", "step_share"),
        _remaining,
        _remaining_many,
    ),
    "lead_share": DerivedField(
        "The lead over the planned steps that remain, at most 3, and 3 where none remain; unknown without a plan.",
        ("top_votes", "second_votes", "step", "step_share"),
        _lead_share,
        _lead_share_many,
    ),
    "settled": DerivedField(
        "1 where the runner-up cannot draw level in the planned steps that remain, else 0; unknown without a plan.",
        ("top_votes", "second_votes", "step", "step_share"),
        _settled,
        _settled_many,
    ),
}
