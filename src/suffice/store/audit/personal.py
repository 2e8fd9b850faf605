"""Splits personal text off rows of the log, by part; a part is erased as a whole.

answers    trial and final answers, gold, votes: erased, they become letters, equal for equal answers of a run
comments   comments and reasons that a person wrote
questions  the text of a question and of its run's sources, where the route keeps them
metadata   what a caller declared of a question
steps      no personal text, but most of the log's bytes
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from suffice.store.rows.events import Row

Part: TypeAlias = Literal["answers", "comments", "questions", "metadata", "steps"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
NAME: Final = "erased:q"  # prefix of an erased answer; the letters behind it tell the answers of a run apart


@dataclass(frozen=True, slots=True)
class PersonalField:
    path: tuple[str, ...]  # the record, then its fields; a list on the way means each of its items
    part: Part
    blank: object  # the value that replaces it


def _fields(record: str, **fields: tuple[Part, object]) -> tuple[PersonalField, ...]:
    return tuple(PersonalField((record, *name.split("__")), part, blank) for name, (part, blank) in fields.items())


# Every field that may hold personal text, by kind. Never edit a released line of a chained kind: a row in the chain
# is split as it was when it was written.
_ANSWER: Final[tuple[Part, None]] = ("answers", None)
_COMMENT: Final[tuple[Part, None]] = ("comments", None)
_REASON: Final[tuple[Part, str]] = ("comments", "")
_TEXT: Final[tuple[Part, str]] = ("questions", "")
WORDS: Mapping[str, tuple[PersonalField, ...]] = {
    "feedback": (
        *_fields("feedback", gold=_ANSWER, answer=_ANSWER, comment=_COMMENT, reason=_COMMENT),
        *_fields("about", answer=_ANSWER),
    ),
    "label_wanted": _fields("request", would_answer=_ANSWER, answer=_ANSWER),
    "review_asked": _fields("item", full_answer=_ANSWER, early_answer=_ANSWER),
    "review_verdict": _fields("verdict", corrected=_ANSWER, reason=_REASON),
    "review_returned": _fields("returned", reason=_REASON),
    "question_kept": _fields("question", text=_TEXT),
    "sources_kept": _fields("kept", sources__text=_TEXT),
    # Of kinds that are not chained; an outcome's answers besides, which become letters.
    "request": _fields("request", query__metadata=("metadata", [])),
    "outcome": _fields("outcome", steps=("steps", [])),
}


@dataclass(frozen=True, slots=True)
class BodySplit:
    kept: bytes
    words: Mapping[Part, bytes]  # parts that have any; () for the others


_ENCODE: Final = msgspec.json.Encoder().encode
_DECODE: Final = msgspec.json.Decoder().decode


def split(kind: str, body: str) -> BodySplit:
    """Separate the personal parts from a body; a body that is not our canonical JSON is kept whole."""
    whole = body.encode()
    if kind not in WORDS:
        return BodySplit(whole, {})
    plain, values_by_part = _DECODE(body), dict[Part, list[object]]()
    if _ENCODE(plain) != whole:
        return BodySplit(whole, {})
    for words, value in _take_words(kind, plain, PARTS):
        values_by_part.setdefault(words.part, []).append((*words.path, value))
    if not values_by_part:
        return BodySplit(whole, {})
    return BodySplit(_ENCODE(plain), {part: _ENCODE(values) for part, values in values_by_part.items()})


def _take_words(kind: str, plain: Any, parts: Collection[Part]) -> Iterator[tuple[PersonalField, Any]]:
    for words in WORDS.get(kind, ()):
        for table in _tables(plain, words.path[:-1]) if words.part in parts else ():
            value = table.get(words.path[-1])
            if value is not None and value != words.blank:
                table[words.path[-1]] = words.blank
                yield words, value


def without(kind: str, body: str, parts: Iterable[Part]) -> str:
    gone = frozenset(parts)
    names = kind == "outcome" and "answers" in gone
    if not names and all(words.part not in gone for words in WORDS.get(kind, ())):
        return body
    plain = _DECODE(body)
    changed = bool([*_take_words(kind, plain, gone)])
    if names:
        changed = _name_answers(plain) or changed
    return _ENCODE(plain).decode() if changed else body


def redact_row(row: Row, parts: Iterable[Part]) -> Row:
    body = without(row.kind, row.body, parts)
    return row if body is row.body else replace(row, body=body)


def _tables(value: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _tables(item, path)
    elif isinstance(value, dict):
        if path:
            yield from _tables(value.get(path[0]), path[1:])
        else:
            yield value


def _name_answers(plain: Any) -> bool:
    outcome = plain.get("outcome", {})
    known = dict[str, str]()

    def named(answer: Any) -> Any:
        if not isinstance(answer, str) or answer.startswith(NAME):
            return answer
        return known.setdefault(answer, NAME + _letters(len(known)))

    for field in ("answer", "would_answer", "finish_answer", "pair_answer"):
        if field in outcome:
            outcome[field] = named(outcome[field])
    if outcome.get("vote"):
        outcome["vote"] = [[named(answer), n] for answer, n in outcome["vote"]]
    for step in outcome.get("steps", ()):
        step["answer"] = named(step.get("answer"))
    return bool(known)


def _letters(number: int) -> str:
    letters, number = "", number + 1
    while number:
        number, digit = divmod(number - 1, 26)
        letters = chr(ord("a") + digit) + letters
    return letters
