"""When two results of one client count as the same. Pure: tables in, sentences out.

It knows what each mode may change. It refuses to know clients, servers and how results came about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

Seen = Mapping[str, Any]
Rule = Literal["equal", "heard"]
FIELDS = ("text", "reasoning", "finish", "usage", "tools", "parts", "error")


def differences(direct: Seen, through: Seen, *, rule: Rule, stopped: bool) -> list[str]:
    """What differs between a direct result and one through the gateway; []: nothing that must not.

    rule     "equal": every field is the same. "heard": the upstream broke off, so the text is the same
             and there is an error, be it another one than the direct one or one where there was none
    stopped  the gateway ended the run: the thought may be shorter and its tokens fewer, nothing else
    """
    missing = [name for name in FIELDS if name not in direct or name not in through]
    if missing:
        return [f"not reported: {', '.join(missing)}"]
    if rule == "heard":
        return _heard(direct, through)
    same = [name for name in FIELDS if not (stopped and name in ("reasoning", "usage"))]
    result = [_differs(name, direct[name], through[name]) for name in same if direct[name] != through[name]]
    if stopped:
        result += _shorter_thought(direct["reasoning"], through["reasoning"])
        result += _smaller_usage(direct["usage"], through["usage"])
    return result


def unlike(direct: Seen, *, expected: Literal["answer", "tool", "status", "broken"], says: str) -> list[str]:
    """What is wrong with a direct result already: two equal failures of our own program prove nothing.

    says  the answer's text, the tool's arguments in JSON, or the HTTP status that must come out
    """
    error = direct["error"]
    if expected == "broken":  # some clients do not notice: that the gateway tells them is what is looked at
        return [] if error is None or "came back" not in error["message"] else [f"direct: {error}"]
    if expected == "status":
        report = error and (str(error["status"]) == says or says in error["message"])
        return [] if report else [f"direct: {error!r} does not say {says}"]
    if error is not None:
        return [f"direct: {error!r}"]
    if expected == "tool":
        made = [call["arguments"] for call in direct["tools"]]
        return [] if made == [json.loads(says)] else [f"direct: tool calls {made!r} instead of {says}"]
    return [] if direct["text"] == says else [f"direct: {direct['text']!r} instead of {says!r}"]


def _differs(name: str, direct: Any, through: Any) -> str:
    return f"{name}: {through!r} instead of {direct!r}"


def _heard(direct: Seen, through: Seen) -> list[str]:
    result = []
    if through["error"] is None and direct["error"] != through["error"]:
        result.append(f"error: none, directly there was {direct['error']!r}")
    if through["error"] is None and direct["error"] is None:
        result += [_differs(name, direct[name], through[name]) for name in FIELDS if direct[name] != through[name]]
    elif direct["text"] != through["text"]:
        result.append(_differs("text", direct["text"], through["text"]))
    return result


def _shorter_thought(direct: str | None, through: str | None) -> list[str]:
    if (direct is None) != (through is None):
        return [_differs("reasoning", direct, through)]
    if direct is None or through is None:
        return []  # this client shows no thought
    if not direct.startswith(through):
        return [f"reasoning: {through!r} is no beginning of {direct!r}"]
    return [] if len(through) < len(direct) else ["reasoning: not shorter, although the run was stopped"]


def _smaller_usage(direct: Mapping[str, Any] | None, through: Mapping[str, Any] | None) -> list[str]:
    if direct is None or through is None:
        return [] if direct is through else [_differs("usage", direct, through)]
    result = []
    if set(direct) != set(through):
        result.append(_differs("usage", direct, through))
    if direct.get("prompt") != through.get("prompt"):
        result.append(_differs("usage.prompt", direct.get("prompt"), through.get("prompt")))
    for name in ("completion", "total", "reasoning"):
        before, after = direct.get(name), through.get(name)
        if (before is None) != (after is None):
            result.append(_differs(f"usage.{name}", before, after))
        elif before is not None and after is not None and not after < before:
            result.append(f"usage.{name}: {after} is not below {before}, although the run was stopped")
    return result
