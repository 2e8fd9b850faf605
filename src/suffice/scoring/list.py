"""Scorer `list`: the answer is several answers.

Knows how lists are written (JSON, bullets, commas, "and") and refuses to know their items: another
scorer compares them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import ClassVar

from suffice.scoring.answer import last_announced, last_boxed, last_part
from suffice.scoring.normal import MAX_ANSWER_CHARS, ByNormalForm, Comparer, check_flag, digest_text, is_digest
from suffice.scoring.text import TextScorer

MAX_ITEMS = 1_000
_BULLET = re.compile(r"[ \t]{0,8}(?:[-*•‣▪]|\(?\d{1,3}[.)])[ \t]{1,8}(?=\S)")
_SEPARATOR = re.compile(r"(?<=\d),(?!\d{3}(?!\d))|(?<!\d),|[，、;；\n]")
_AND = re.compile(r"\s{1,4}(?:and|&)\s{1,4}", re.IGNORECASE)
_BRACKETS = {"[": "]", "(": ")", "{": "}"}


@dataclass(frozen=True, slots=True)
class ListScorer(ByNormalForm):
    r"""Compare lists item by item.

    Normal form: a JSON array of the items' normal forms, sorted unless the order counts; an item that occurs
    twice counts twice. Items are separated by line ends, semicolons or commas, the last two by "and" too, and by
    "and" alone where nothing else separates. A comma between digits with three digits behind it groups thousands:
    write ``1, 200`` for two numbers. More than 1,000 items, or 2,000 characters, stand as a digest.

    ordered  does the order count?
    compare  a scorer's name or table: normal form of an item
    """

    name: ClassVar[str] = "list"

    ordered: bool = False
    compare: Comparer = field(default_factory=TextScorer)

    def __post_init__(self) -> None:
        check_flag("scorer.ordered", self.ordered)

    def extract(self, text: str) -> str | None:
        r"""The list in the last ``\boxed{…}``, else the bullets that end the text, else what is announced, else all."""
        boxed = last_boxed(text)
        if boxed is not None and (answer := self.normalise(boxed)) is not None:
            return answer
        bullets = _last_bullets(last_part(text))
        if bullets:
            return self._normal(bullets)
        announced = last_announced(text)
        return self.normalise(last_part(text) if announced is None else announced)

    def normalise(self, answer: str) -> str | None:
        return answer if is_digest(answer) else self._normal(_items(last_part(answer)))

    def _normal(self, items: list[str]) -> str | None:
        if len(items) > MAX_ITEMS:
            return digest_text("\n".join(items))
        normals = [normal for item in items if (normal := self.compare.normalise(item)) is not None]
        if not normals:
            return None
        written = json.dumps(normals if self.ordered else sorted(normals), ensure_ascii=False, separators=(",", ":"))
        return written if len(written) <= MAX_ANSWER_CHARS else digest_text(written)


def _last_bullets(text: str) -> list[str]:
    """The items of the bullets that end a text; []: it does not end in at least two."""
    items: list[str] = []
    for line in reversed(text.rstrip().split("\n")[-MAX_ITEMS - 1 :]):
        matched = _BULLET.match(line)
        if matched is None:
            break
        items.append(line[matched.end() :])
    return items[::-1] if len(items) > 1 else []


def _items(text: str) -> list[str]:
    text = text.strip().replace(r"\{", "{").replace(r"\}", "}").strip("$ \n").rstrip(".")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError):
        read = None
    if isinstance(read, list):
        return [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in read]
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
