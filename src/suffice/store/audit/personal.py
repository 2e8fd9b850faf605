"""What a row of the log says in people's words, and the same row without them.

    body ──▶ split ──▶ kept       what stays for good: names, counts, tokens, decisions
                       answers    what was answered, and what is right: trial and final answers, gold, votes
                       comments   what a person wrote: comments, reasons of a label
                       questions  the text of a question and of its run's sources, where its owner had them kept
                       metadata   what a caller declared of a question

A part goes as a whole. Of a run's answers the letters stay: equal answers get equal names within their run, so that
streaks, votes and disagreement are what they were, and nobody can tell what was said. Steps are no words, but most of
the log's bytes; they can go, too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec

from suffice.store.rows.events import Row

Part: TypeAlias = Literal["answers", "comments", "questions", "metadata", "steps"]
PARTS: Final[tuple[Part, ...]] = get_args(Part)
NAME: Final = "erased:q"  # begins what stands for an erased answer; the letters behind it are the answer's name


@dataclass(frozen=True, slots=True)
class PersonalField:
    path: tuple[str, ...]  # the record, then its fields; a list on the way stands for each of its items
    part: Part
    blank: str | None  # what stands there without them


def _fields(record: str, **fields: tuple[Part, str | None]) -> tuple[PersonalField, ...]:
    """Fields of one record, or behind dots of a record in it, each with its part and what stands there without it."""
    return tuple(PersonalField((record, *name.split("__")), part, blank) for name, (part, blank) in fields.items())


# Every field that may hold a person's words, by kind. Of a chained kind no released line is edited: a row in the chain
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
}


@dataclass(frozen=True, slots=True)
class BodySplit:
    kept: bytes
    words: Mapping[Part, bytes]  # parts that hold any; () of the others


_ENCODE: Final = msgspec.json.Encoder().encode
_DECODE: Final = msgspec.json.Decoder().decode


def split(kind: str, body: str) -> BodySplit:
    """Take a body apart. What was split once is split into the same again.

    A body that is not written as we write it stays whole: a field that stands there twice means two things.
    """
    whole = body.encode()
    if kind not in WORDS:
        return BodySplit(whole, {})
    plain, said = _DECODE(body), dict[Part, list[object]]()
    if _ENCODE(plain) != whole:
        return BodySplit(whole, {})
    for words, value in _take_words(kind, plain, PARTS):
        said.setdefault(words.part, []).append((*words.path, value))
    if not said:
        return BodySplit(whole, {})
    return BodySplit(_ENCODE(plain), {part: _ENCODE(values) for part, values in said.items()})


def _take_words(kind: str, plain: Any, parts: Collection[Part]) -> Iterator[tuple[PersonalField, Any]]:
    """Take the words of these parts out of a body, and give each with its field. Any: JSON."""
    for words in WORDS.get(kind, ()):
        for table in _tables(plain, words.path[:-1]) if words.part in parts else ():
            value = table.get(words.path[-1])
            if value is not None and value != words.blank:
                table[words.path[-1]] = words.blank
                yield words, value


def without(kind: str, body: str, parts: Iterable[Part]) -> str:
    """The same body without some of its parts; the same string where it has none of them."""
    gone = frozenset(parts)
    if not holds(kind, gone):
        return body
    plain = _DECODE(body)
    changed = bool([*_take_words(kind, plain, gone)])
    for part, take in _TAKEN.get(kind, {}).items():
        if part in gone:
            changed = take(plain) or changed
    return _ENCODE(plain).decode() if changed else body


def redact_row(row: Row, parts: Iterable[Part]) -> Row:
    """The row as it is written where its owner wants none of these parts in the log."""
    body = without(row.kind, row.body, parts)
    return row if body is row.body else Row(row.kind, row.key, row.episode_id, row.route, body)


def holds(kind: str, parts: Iterable[Part]) -> bool:
    return not _HELD.get(kind, frozenset()).isdisjoint(parts)


def _tables(value: Any, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """The tables at the end of a path. Any: JSON, whose missing fields are no error."""
    if isinstance(value, list):
        for item in value:
            yield from _tables(item, path)
    elif isinstance(value, dict):
        if path:
            yield from _tables(value.get(path[0]), path[1:])
        else:
            yield value


# ---- rows that are not chained: a request's metadata, an outcome's answers and steps -----------------------------


def _name_answers(plain: Any) -> bool:
    """Give each answer of a run a name instead of its text; was there any to name?"""
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
    """0 is a, 25 is z, 26 is aa."""
    found, number = "", number + 1
    while number:
        number, digit = divmod(number - 1, 26)
        found = chr(ord("a") + digit) + found
    return found


def _drop_steps(plain: Any) -> bool:
    outcome = plain.get("outcome", {})
    had = bool(outcome.get("steps"))
    outcome["steps"] = []
    return had


def _drop_metadata(plain: Any) -> bool:
    query = plain.get("request", {}).get("query")
    if not isinstance(query, dict) or not query.get("metadata"):
        return False
    query["metadata"] = []
    return True


_TAKEN: Mapping[str, Mapping[Part, Callable[[Any], bool]]] = {
    "outcome": {"answers": _name_answers, "steps": _drop_steps},
    "request": {"metadata": _drop_metadata},
}
_HELD: Final[Mapping[str, frozenset[Part]]] = {
    kind: frozenset(words.part for words in WORDS.get(kind, ())) | _TAKEN.get(kind, {}).keys()
    for kind in WORDS.keys() | _TAKEN.keys()
}
