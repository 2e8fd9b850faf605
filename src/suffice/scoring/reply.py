"""Reads whole replies, tool calls and JSON among them, and compares each kind by its value.

A scorer's input and output are texts, so a reply that is no plain text is written as one behind a mark: its calls as
``tool_calls: [{"arguments":{…},"name":"…"}]``, an object or array that a schema asked for as ``json: {…}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from suffice.scoring.composite import canonical_json, parse_json
from suffice.scoring.scorer import Scorer
from suffice.scoring.text import MAX_ANSWER_CHARS, TextScorer, digest_text, is_digest
from suffice.types import ReplyForm

CALLS, JSON = "tool_calls: ", "json: "
_MARKS = (CALLS, JSON)


def written_reply(text: str, calls: Sequence[Mapping[str, Any]], form: ReplyForm) -> str | None:
    """Return a reply as scorers read it, its `calls` as in a message's `tool_calls`.

    None: a call is incomplete, or the JSON that the request's `form` asks for.
    """
    try:
        if calls:
            return CALLS + canonical_json([_call(call) for call in calls])
        value = None if form == "text" else parse_json(text)
    except ValueError:
        return None if calls or (form == "json" and text.lstrip()[:1] in ("{", "[")) else text
    return JSON + canonical_json(value) if isinstance(value, dict | list) else text


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """Raise ValueError for a call without a name, or whose arguments are not JSON."""
    function, custom = call.get("function"), call.get("custom")
    table = function if isinstance(function, Mapping) else custom if isinstance(custom, Mapping) else call
    name, written = table.get("name"), table.get("input" if table is custom else "arguments")
    if not isinstance(name, str) or not name:
        raise ValueError("a call without a name")
    if table is custom:
        return {"name": name, "arguments": str(written or "")}
    return {"name": name, "arguments": parse_json(written) if isinstance(written, str) and written.strip() else {}}


@dataclass(frozen=True)  # no slots: `name` is a default of the class and a field
class ToolCallScorer:
    """Compares tool calls by name and arguments, replies under a schema as JSON, and other texts by `compare`.

    Numbers in arguments are compared by value, strings in NFC, keys in any order. The calls of one reply are compared
    in their order, or in any if they are not `ordered`; a text beside them is not compared. A reply under a schema or
    grammar that is a JSON object or array is compared as a whole, unless `compare` reads JSON itself. Every scorer of a
    route reads replies like this; write it out to change the order.
    """

    name: str = field(init=False, default="tool-call")
    ordered: bool = True
    compare: Scorer = field(default_factory=TextScorer)

    def extract(self, text: str) -> str | None:
        if text.startswith(JSON) and getattr(self.compare, "reads_json", False):
            return self.compare.extract(text.removeprefix(JSON))
        return self._marked(text) or _unmarked(self.compare.extract(text))

    def normalise(self, answer: str) -> str | None:
        return self._marked(answer) or _unmarked(self.compare.normalise(answer))

    def match(self, answer: str | None, gold: str) -> bool:
        if answer is None:
            return False
        normal, reference = self._marked(answer), self._marked(gold)
        if normal is None and reference is None:
            return _unmarked(self.compare.normalise(answer)) is not None and self.compare.match(answer, gold)
        return normal == reference

    def _marked(self, text: str) -> str | None:
        """Return the normal form of a reply behind a mark; None for any other text."""
        mark = next((one for one in _MARKS if text.startswith(one)), None)
        if mark is None:
            return None
        written = text.removeprefix(mark)
        if is_digest(written):
            return text
        try:
            value = parse_json(written)
        except ValueError:
            return None
        if not isinstance(value, list if mark == CALLS else dict | list):
            return None
        if mark == CALLS and not self.ordered:
            value = sorted(value, key=canonical_json)
        normal = canonical_json(value)
        return mark + (normal if len(normal) <= MAX_ANSWER_CHARS - len(mark) else digest_text(normal))


def _unmarked(normal: str | None) -> str | None:
    """Return a text's normal form, unless it could be taken for a marked one."""
    return None if normal is not None and normal.startswith(_MARKS) else normal


def with_calls(scorer: Scorer) -> Scorer:
    """Return the scorer, under its own name, made to read calls and JSON."""
    if isinstance(scorer, ToolCallScorer):
        return scorer
    reading = ToolCallScorer(compare=scorer)
    object.__setattr__(reading, "name", scorer.name)
    return reading
