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

from collections.abc import Callable, Iterable, Iterator, Mapping
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


# Every field that may hold a person's words, by kind. Of a chained kind no released line is edited: a row in the chain
# is split as it was when it was written.
WORDS: Mapping[str, tuple[PersonalField, ...]] = {
    "feedback": (
        PersonalField(("feedback", "gold"), "answers", None),
        PersonalField(("feedback", "answer"), "answers", None),
        PersonalField(("feedback", "comment"), "comments", None),
        PersonalField(("feedback", "reason"), "comments", None),
        PersonalField(("about", "answer"), "answers", None),
    ),
    "label_wanted": (
        PersonalField(("request", "would_answer"), "answers", None),
        PersonalField(("request", "answer"), "answers", None),
    ),
    "review_asked": (
        PersonalField(("item", "full_answer"), "answers", None),
        PersonalField(("item", "early_answer"), "answers", None),
    ),
    "review_verdict": (
        PersonalField(("verdict", "corrected"), "answers", None),
        PersonalField(("verdict", "reason"), "comments", ""),
    ),
    "review_returned": (PersonalField(("returned", "reason"), "comments", ""),),
    "question_kept": (PersonalField(("question", "text"), "questions", ""),),
    "sources_kept": (PersonalField(("kept", "sources", "text"), "questions", ""),),
}


@dataclass(frozen=True, slots=True)
class BodySplit:
    """A body in two: what stays, and the words by their part."""

    kept: bytes
    words: Mapping[Part, bytes]  # parts that hold any; () of the others


_ENCODE: Final = msgspec.json.Encoder().encode
_DECODE: Final = msgspec.json.Decoder().decode
_NONE: Final[Mapping[Part, bytes]] = {}


def split(kind: str, body: str) -> BodySplit:
    """Take a body apart. What was split once is split into the same again.

    A body that is not written as we write it stays whole: a field that stands there twice means two things.
    """
    known, whole = WORDS.get(kind), body.encode()
    if known is None:
        return BodySplit(whole, _NONE)
    plain, said = _DECODE(body), dict[Part, list[object]]()
    if _ENCODE(plain) != whole:
        return BodySplit(whole, _NONE)
    for words in known:
        for table in _tables(plain, words.path[:-1]):
            value = table.get(words.path[-1])
            if value is not None and value != words.blank:
                said.setdefault(words.part, []).append((*words.path, value))
                table[words.path[-1]] = words.blank
    if not said:
        return BodySplit(whole, _NONE)
    return BodySplit(_ENCODE(plain), {part: _ENCODE(values) for part, values in said.items()})


def without(kind: str, body: str, parts: Iterable[Part]) -> str:
    """The same body without some of its parts; the same string where it has none of them."""
    gone, changed = frozenset(parts), False
    if not holds(kind, gone):
        return body
    plain = _DECODE(body)
    for words in WORDS.get(kind, ()):
        for table in _tables(plain, words.path[:-1]) if words.part in gone else ():
            value = table.get(words.path[-1])
            if value is not None and value != words.blank:
                table[words.path[-1]], changed = words.blank, True
    for part, take in _TAKEN.get(kind, {}).items():
        if part in gone:
            changed = take(plain) or changed
    return _ENCODE(plain).decode() if changed else body


def redact_row(row: Row, parts: Iterable[Part]) -> Row:
    """The row as it is written where its owner wants none of these parts in the log."""
    body = without(row.kind, row.body, parts)
    return row if body is row.body else Row(row.kind, row.key, row.episode_id, row.route, body)


def holds(kind: str, parts: Iterable[Part]) -> bool:
    """Can a row of this kind hold any of these parts?"""
    return not _HELD.get(kind, _NO_PART).isdisjoint(parts)


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
_NO_PART: Final = frozenset[Part]()
_HELD: Final[Mapping[str, frozenset[Part]]] = {
    kind: frozenset(words.part for words in WORDS.get(kind, ())) | _TAKEN.get(kind, {}).keys()
    for kind in WORDS.keys() | _TAKEN.keys()
}
