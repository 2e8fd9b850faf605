"""Scorers of answers with parts: `json`, and `list`, whose items another scorer compares; nothing is repaired."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

from suffice.errors import ConfigError
from suffice.scoring.number import exact_number
from suffice.scoring.scorer import Scorer
from suffice.scoring.text import (
    MAX_ANSWER_CHARS,
    ByComparer,
    ByNormalForm,
    TextScorer,
    cap_answer,
    digest_text,
    is_digest,
    last_announced,
    last_boxed,
    last_part,
    replace_halves,
    says_something,
)

MAX_DEPTH = 64
MAX_ITEMS = 1_000
Value: TypeAlias = Any  # as parsed by json.loads
_FENCE = re.compile(r"```[ \t]{0,4}[\w-]{0,20}[ \t]{0,4}\r?\n")
_PATH_STEP = re.compile(r"""\.([A-Za-z_][\w-]{0,100})|\[(-?\d{1,6})\]|\["([^"\\]{1,100})"\]|\['([^'\\]{1,100})'\]""")
_BULLET = re.compile(r"[ \t]{0,8}(?:[-*•‣▪]|\(?\d{1,3}[.)])[ \t]{1,8}(?=\S)")
_SEPARATOR = re.compile(r"(?<=\d),(?!\d{3}(?!\d))|(?<!\d),|[，、;；\n]")
_AND = re.compile(r"\s{1,4}(?:and|&)\s{1,4}", re.IGNORECASE)
_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(127, 160), 0x2028, 0x2029)}  # JSON's own escapes hold the rest
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True, slots=True)
class JsonScorer(ByComparer):
    """Compares JSON values, or the one at `path` by another scorer.

    Normal form: compact, keys sorted, numbers by value (``1.0`` is ``1``), strings in NFC. `compare` gets a string
    unchanged, anything else as JSON. A bare text that is not JSON counts as a string. Not answers: null, NaN and
    Infinity, a key that occurs twice in one object, more than 64 levels, no value at `path`, which is ``$``,
    ``$.answer``, ``$.steps[-1].answer`` or ``$["final answer"]``.
    """

    name: ClassVar[str] = "json"
    reads_json: ClassVar[bool] = True

    path: str = "$"
    compare: Scorer | None = None
    _steps: tuple[str | int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_steps", _parse_path(self.path))

    def extract(self, text: str) -> str | None:
        """Return the answer in the first of these that is JSON.

        The last fenced block, the announced text, the whole text, the part between its outer brackets, the last line.
        """
        for candidate in _candidates(last_part(text)):
            try:
                answer = self._normal(_value_at(parse_json(candidate), self._steps))
            except ValueError:
                continue
            if answer is not None:
                return answer
        return None

    def normalise(self, answer: str) -> str | None:
        """Return the normal form of a bare answer: the value at `path`, not the whole document."""
        if self.compare is not None:
            return self.compare.normalise(answer)
        if is_digest(answer):
            return answer
        try:
            return self._normal(parse_json(answer))
        except ValueError:
            return self._normal(answer.strip())

    def _normal(self, value: Value) -> str | None:
        if value is None or (type(value) is str and not says_something(value)):
            return None
        if self.compare is not None:
            return self.compare.normalise(value if type(value) is str else canonical_json(value))
        return cap_answer(canonical_json(value))


class _Numeral(str):
    """A number as written: no float rounds it, and a million digits are not converted."""

    __slots__ = ()


def _parse_path(path: str) -> tuple[str | int, ...]:
    steps: list[str | int] = []
    at = 1
    while at < len(path) and (match := _PATH_STEP.match(path, at)) is not None:
        name, index, *quoted = match.groups()
        steps.append(int(index) if index is not None else _composed(name or quoted[0] or quoted[1]))
        at = match.end()
    if not path.startswith("$") or at < len(path):
        raise ConfigError(
            f"scorer.path: got {path!r:.100}, unreadable at character {at + 1 if path.startswith('$') else 1};"
            """ need $ and then steps such as .answer, [0], [-1], ["final answer"]"""
        )
    return tuple(steps)


def _candidates(text: str) -> Iterator[str]:
    fences = [(match.start(), match.end()) for match in _FENCE.finditer(text)]
    for begin, end in reversed(fences[-2:]):
        closing = text.find("```", end)
        if closing >= 0:
            yield text[end:closing]
        elif begin == fences[-1][0]:
            yield text[end:]  # the output was cut, or the closing fence is missing
    announced = last_announced(text)
    if announced is not None:
        yield announced.strip(" *`$.")
    yield text
    for opening, closing_mark in ("{}", "[]"):
        first, last = text.find(opening), text.rfind(closing_mark)
        if 0 <= first < last:
            yield text[first : last + 1]
    yield text.rstrip().rpartition("\n")[2]


def parse_json(text: str) -> Value:
    """Parse a JSON text. Raise ValueError if it is not JSON, or if two parsers could read different values."""
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError("too deep") from None
    level: list[Value] = [value]
    for _ in range(MAX_DEPTH):
        outers = [
            outer.values() if isinstance(outer, dict) else outer for outer in level if type(outer) in (dict, list)
        ]
        level = [inner for outer in outers for inner in outer]
        if not level:
            return value
    raise ValueError("too deep")


def _object(pairs: Sequence[tuple[str, Value]]) -> dict[str, Value]:
    table = {_composed(replace_halves(key)): value for key, value in pairs}
    if len(table) != len(pairs):
        raise ValueError("a key occurs twice")
    return table


def _refuse(constant: str) -> Value:
    raise ValueError(constant)


_DECODER = json.JSONDecoder(parse_int=_Numeral, parse_float=_Numeral, parse_constant=_refuse, object_pairs_hook=_object)


def _value_at(value: Value, steps: Sequence[str | int]) -> Value:
    for step in steps:
        is_key = isinstance(step, str) and isinstance(value, dict) and step in value
        is_place = isinstance(step, int) and isinstance(value, list) and -len(value) <= step < len(value)
        if not is_key and not is_place:
            raise ValueError(step)
        value = value[step]
    return value


def canonical_json(value: Value) -> str:
    if isinstance(value, _Numeral):
        return exact_number(value) or str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_quoted(key)}:{canonical_json(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(canonical_json, value)) + "]"
    return _quoted(value) if isinstance(value, str) else json.dumps(value)


def _quoted(text: str) -> str:
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'  # as below, at a tenth of the time
    written = json.dumps(_composed(replace_halves(text)), ensure_ascii=False)
    return written if written.isascii() and written.isprintable() else written.translate(_ESCAPES)


def _composed(text: str) -> str:
    # Long runs of combining marks make NFC quadratic; so long a text is compared as written.
    return text if len(text) > MAX_ANSWER_CHARS else unicodedata.normalize("NFC", text)


@dataclass(frozen=True, slots=True)
class ListScorer(ByNormalForm):
    """Compares lists item by item.

    Normal form: a JSON array of the items' normal forms, sorted unless they are `ordered`; a repeated item counts each
    time. Line ends, semicolons or commas separate items, "and" also the last two. A comma between digits with three
    digits after it groups thousands: write ``1, 200`` for two numbers. More than 1,000 items, or 2,000 characters, are
    compared by a digest.
    """

    name: ClassVar[str] = "list"

    ordered: bool = False
    compare: Scorer = field(default_factory=TextScorer)

    def extract(self, text: str) -> str | None:
        r"""Return the list of the last ``\boxed{…}``, else in final bullets, else in the announced text, or all."""
        boxed = last_boxed(text)
        if boxed is not None and (answer := self.normalise(boxed)) is not None:
            return answer
        bullets = _last_bullets(last_part(text))
        if bullets:
            return self._normal(bullets)
        announced = last_announced(text)
        return self.normalise(text if announced is None else announced)

    def normalise(self, answer: str) -> str | None:
        return answer if is_digest(answer) else self._normal(_items(last_part(answer)))

    def _normal(self, items: list[str]) -> str | None:
        if len(items) > MAX_ITEMS:
            return digest_text("\n".join(items))
        normals = [normal for item in items if (normal := self.compare.normalise(item)) is not None]
        if not normals:
            return None
        return cap_answer(
            json.dumps(normals if self.ordered else sorted(normals), ensure_ascii=False, separators=(",", ":"))
        )


def _last_bullets(text: str) -> list[str]:
    items: list[str] = []
    for line in reversed(text.rstrip().split("\n")[-MAX_ITEMS - 1 :]):
        bullet = _BULLET.match(line)
        if bullet is None:
            break
        items.append(line[bullet.end() :])
    return items[::-1] if len(items) > 1 else []


def _items(text: str) -> list[str]:
    text = text.strip().replace(r"\{", "{").replace(r"\}", "}").strip("$ \n").rstrip(".")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in value]
    if text[:1] in _BRACKETS and text[-1:] == _BRACKETS[text[:1]]:
        text = text[1:-1]
    bullets = _last_bullets(text)
    if bullets:
        return bullets
    items = [item for item in _SEPARATOR.split(text) if item.strip()]
    if len(items) == 1:
        return _AND.split(items[0])
    if items:
        items[-1:] = _AND.split(" " + items[-1], maxsplit=1)
    return items
