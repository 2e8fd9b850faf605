"""Scorer `json`: an answer that stands in JSON, or is JSON.

Knows values, paths and where models put JSON in their text; refuses to repair: what a parser must
guess at is no answer.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from suffice.errors import ConfigError
from suffice.scoring.answer import last_announced, last_part
from suffice.scoring.normal import (
    MAX_ANSWER_CHARS,
    ByNormalForm,
    Comparer,
    check_text,
    digest_text,
    is_digest,
    says_something,
    strip_control_characters,
)
from suffice.scoring.number import exact_number

MAX_DEPTH = 64
Value: TypeAlias = Any  # what json.loads gives: bytes come in here
_FENCE = re.compile(r"```[ \t]{0,4}[\w-]{0,20}[ \t]{0,4}\r?\n")
_PATH_STEP = re.compile(r"""\.([A-Za-z_][\w-]{0,100})|\[(-?\d{1,6})\]|\["([^"\\]{1,100})"\]|\['([^'\\]{1,100})'\]""")


class _Numeral(str):
    """A number as it was written: no float rounds it, and a million digits are not converted."""

    __slots__ = ()


class _Unclear(ValueError):
    """Two parsers would read different values."""


@dataclass(frozen=True, slots=True)
class JsonScorer(ByNormalForm):
    r"""Compare JSON values, or one value inside of them by another scorer.

    Normal form: compact, keys sorted, numbers by value (``1.0`` is ``1``), strings in Unicode's form NFC. With
    `compare`, the value at `path` is handed to that scorer instead: a string as it is, anything else as JSON.
    A bare text that is no JSON, such as a reference ``Paris``, stands for the string that it would be.

    No answer: null, NaN and Infinity, a key that occurs twice in one object, more than 64 levels, no value at `path`.

    path     where the answer stands: ``$`` the whole value, ``$.answer``, ``$.steps[-1].answer``, ``$["final answer"]``
    compare  a scorer's name or table; None: JSON equality
    """

    name: ClassVar[str] = "json"

    path: str = "$"
    compare: Comparer | None = None
    _steps: tuple[str | int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_steps", _read_path(check_text("scorer.path", self.path)))

    def extract(self, text: str) -> str | None:
        """The answer in the JSON that stands in a text.

        The last fenced block counts, else what is announced, else the whole text, else what lies between the
        first opening and the last closing bracket, else the last line; of these the first that is JSON.
        """
        for candidate in _candidates(last_part(text)):
            read = _parse(candidate)
            matched = None if read is None else _at(read[0], self._steps)
            answer = None if matched is None else self._normal(matched[0])
            if answer is not None:
                return answer
        return None

    def normalise(self, answer: str) -> str | None:
        """The normal form of a bare answer: of what stands at `path`, not of the whole."""
        if self.compare is not None:
            return self.compare.normalise(answer)
        if is_digest(answer):
            return answer
        read = _parse(answer)
        return self._normal(answer.strip() if read is None else read[0])

    def match(self, answer: str | None, gold: str) -> bool:
        if self.compare is not None:
            return self.compare.match(answer, gold)
        return ByNormalForm.match(self, answer, gold)

    def _normal(self, value: Value) -> str | None:
        if value is None or (type(value) is str and not says_something(value)):
            return None
        if self.compare is not None:
            return self.compare.normalise(value if type(value) is str else _canonical(value))
        normal = _canonical(value)
        return normal if len(normal) <= MAX_ANSWER_CHARS else digest_text(normal)


def _read_path(path: str) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        matched = _PATH_STEP.match(path, at)
        if matched is None:
            break
        name, index, *quoted = matched.groups()
        steps.append(int(index) if index is not None else _composed(name or quoted[0] or quoted[1]))
        at = matched.end()
    if not path.startswith("$") or at < len(path):
        raise ConfigError(
            f"scorer.path: got {path!r:.100}, unreadable at character {at + 1 if path.startswith('$') else 1};"
            """ need $ and then steps such as .answer, [0], [-1], ["final answer"]"""
        )
    return tuple(steps)


def _candidates(text: str) -> Iterator[str]:
    """Where JSON may stand in a text, best first; each is read in linear time, and they are few."""
    fences = [(matched.start(), matched.end()) for matched in _FENCE.finditer(text)]
    for begin, end in reversed(fences[-2:]):
        closing = text.find("```", end)
        if closing >= 0:
            yield text[end:closing]
        elif begin == fences[-1][0]:
            yield text[end:]  # the model was cut, or forgot the fence
    announced = last_announced(text)
    if announced is not None:
        yield announced.strip(" *`$.")
    yield text
    for opening, closing_mark in ("{}", "[]"):
        first, last = text.find(opening), text.rfind(closing_mark)
        if 0 <= first < last:
            yield text[first : last + 1]
    yield text.rstrip().rpartition("\n")[2]


def _parse(text: str) -> tuple[Value] | None:
    """The value of a JSON text, in a tuple because null is a value; None: it is no JSON, or not clear."""
    try:
        value = json.loads(
            text, parse_int=_Numeral, parse_float=_Numeral, parse_constant=_refuse, object_pairs_hook=_object
        )
    except (ValueError, RecursionError):
        return None
    return (value,) if _is_shallow(value) else None


def _object(pairs: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    read = {_composed(strip_control_characters(key)): value for key, value in pairs}
    if len(read) != len(pairs):
        raise _Unclear
    return read


def _refuse(constant: str) -> Value:
    raise _Unclear(constant)


def _is_shallow(value: Value) -> bool:
    """Is nothing nested deeper than 64 levels?"""
    level: list[Value] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return True
    return False


def _at(value: Value, steps: Sequence[str | int]) -> tuple[Value] | None:
    for step in steps:
        if isinstance(step, str):
            if not isinstance(value, dict) or step not in value:
                return None
            value = value[step]
        elif isinstance(value, list) and -len(value) <= step < len(value):
            value = value[step]
        else:
            return None
    return (value,)


def _canonical(value: Value) -> str:
    if isinstance(value, _Numeral):
        return exact_number(value) or str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(key)}:{_canonical(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_canonical, value)) + "]"
    if isinstance(value, str):
        return _quoted(value)
    return "null" if value is None else "true" if value else "false"


def _quoted(text: str) -> str:
    return json.dumps(_composed(strip_control_characters(text)), ensure_ascii=False)


def _composed(text: str) -> str:
    # Long runs of combining marks make it quadratic; a text so long is compared as it is written.
    return text if len(text) > MAX_ANSWER_CHARS else unicodedata.normalize("NFC", text)
