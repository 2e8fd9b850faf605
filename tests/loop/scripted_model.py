"""A model server that plays the turns of decision scripts: all but the last turn of a script call the tool `search`.

The path says which: POST /NAME/v1/chat/completions is the next turn of the script NAME.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

from tests.threaded_server import serving

TOOL = "search"


@contextmanager
def scripted_model(scripts: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Counter[str]]]:
    """Yield its URL, and the turns taken so far by script."""
    taken: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            name = self.path.split("/")[1]
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            turns = scripts[name]["turns"]
            if _is_extraction(body):  # DSPy's last call, which is no turn
                reply = _reply(turns[taken[name] - 1], {"content": _fields(reasoning="", answer="x")})
            else:
                turn, is_last = turns[taken[name]], taken[name] + 1 == len(turns)
                taken[name] += 1
                reply = _reply(turn, _message(turn["text"], body, n=taken[name], is_last=is_last))
            raw = json.dumps(reply).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with serving(Handler) as url:
        yield url, taken


def _message(text: str, body: Mapping[str, Any], *, n: int, is_last: bool) -> dict[str, Any]:
    if not body.get("tools"):
        tool = "finish" if is_last else TOOL
        return {"content": _fields(next_thought=text, next_tool_name=tool, next_tool_args="{}")}
    if is_last:
        return {"content": text}
    call = {"id": f"call_{n}", "type": "function", "function": {"name": TOOL, "arguments": "{}"}}
    return {"content": text, "tool_calls": [call]}


def _reply(turn: Mapping[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    read, wrote = turn["ctx_tokens"], turn["tokens"]
    finish = "tool_calls" if "tool_calls" in message else "stop"
    choice = {"index": 0, "message": {"role": "assistant"} | message, "finish_reason": finish}
    usage = {"prompt_tokens": read, "completion_tokens": wrote, "total_tokens": read + wrote}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "scripted",
        "choices": [choice],
        "usage": usage,
    }


def _is_extraction(body: Mapping[str, Any]) -> bool:
    return not body.get("tools") and "next_tool_name" not in json.dumps(body["messages"][0])


def _fields(**fields: str) -> str:
    """DSPy's form of an answer."""
    return "".join(f"[[ ## {name} ## ]]\n{text}\n\n" for name, text in {**fields, "completed": ""}.items())
