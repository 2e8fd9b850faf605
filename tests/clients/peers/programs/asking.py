"""What every program of this folder shares: cases come in on stdin, what the client saw goes out on stdout.

Runs in the client's own environment, so it imports the standard library alone. It refuses to know
gateways, modes and expectations: it asks, and writes down what a user of the client would have seen.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import signal
import sys
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any

QUESTION = "What is 17 * 24? Answer with the number."
TOOL = {
    "name": "keep",
    "description": "Keep a number.",
    "parameters": {
        "type": "object",
        "properties": {"value": {"type": "integer"}},
        "required": ["value"],
    },
}
KEY = "unused"


@dataclass(frozen=True)
class Case:
    """One question to one address."""

    base_url: str  # with /v1
    model: str
    stream: bool
    tool: bool  # offer the tool, and expect a call of it
    timeout_s: float


@dataclass
class Seen:
    """What a user of the client saw; filled while the answer arrives, so that a broken one is kept."""

    text: str = ""
    reasoning: str | None = None  # None: the client does not show it
    finish: str | None = None  # None: the client does not show it, or none came
    usage: dict[str, Any] | None = None  # prompt, completion, total, reasoning; null: not told
    tools: list[dict[str, Any]] = field(default_factory=list)  # name and arguments
    parts: list[str] = field(default_factory=list)  # kinds of events in order, repeats left out; []: it has none
    error: dict[str, Any] | None = None

    def thinks(self, text: str | None) -> None:
        """Add a piece of the thought."""
        if text:
            self.reasoning = (self.reasoning or "") + text

    def counts(self, usage: Any) -> None:
        """Take usage in OpenAI's shape: an object or a table."""
        if usage is None:
            return
        report = usage if isinstance(usage, dict) else usage.model_dump()
        inner = report.get("completion_tokens_details") or {}
        self.usage = {
            "prompt": report.get("prompt_tokens"),
            "completion": report.get("completion_tokens"),
            "total": report.get("total_tokens"),
            "reasoning": inner.get("reasoning_tokens"),
        }

    def calls(self, name: str, arguments: Any) -> None:
        """Note a tool call; arguments as an object, or as the JSON that the model wrote."""
        report = json.loads(arguments) if isinstance(arguments, str) else arguments
        self.tools.append({"name": name, "arguments": report})


Ask = Callable[[Case, Seen], Awaitable[None] | None]


def error_fields(error: BaseException, base_url: str) -> dict[str, Any]:
    """An exception as its user sees it: type, HTTP status, words without the address."""
    status = getattr(error, "status_code", None)
    root: BaseException | None = error
    while status is None and root is not None:  # a wrapper that hides the status still chains its cause
        root = root.__cause__ or root.__context__
        status = getattr(root, "status_code", None)
    return {"type": type(error).__name__, "status": status, "message": str(error).replace(base_url, "URL")[:600]}


class TooLong(BaseException):
    """The client did not come back; no client's own `except Exception` may swallow it."""


def _too_long(_signal: int, _frame: Any) -> None:
    raise TooLong("the client did not come back in time")


def answer(ask: Ask, case: Case) -> Seen:
    """Ask once; whatever the client raises becomes part of what was seen."""
    seen = Seen()
    signal.setitimer(signal.ITIMER_REAL, case.timeout_s)
    try:
        if inspect.iscoroutinefunction(ask):
            asyncio.run(ask(case, seen))
        else:
            ask(case, seen)
    except (Exception, TooLong) as error:  # noqa: BLE001 - what it raises is what is compared
        seen.error = error_fields(error, case.base_url)
        if os.environ.get("SUFFICE_PEERS_TRACEBACK"):
            traceback.print_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return seen


def run(ask: Ask) -> None:
    """Answer the cases on stdin, one JSON object a line, in order; the marks keep other prints out."""
    signal.signal(signal.SIGALRM, _too_long)
    for line in sys.stdin:
        seen = answer(ask, Case(**json.loads(line)))
        print("\nSEEN " + json.dumps(asdict(seen)), flush=True)
