"""ASGI middleware for vLLM's API server: `vllm serve … --middleware suffice_vllm.control.ControlEndpoint`.

POST /v1/chat/completions/control  {"id": RUN, "action": "reasoning_end", "within_s": SECONDS}  → {"success": true}
POST /v1/chat/completions/control  {"id": RUN, "action": "signals", "after": TOKENS}
→ {"success": true, "signals": [[tokens, end_margin, logprob], …]}
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from suffice_vllm.channel import ask_workers

CONTROL_PATH = "/v1/chat/completions/control"
MOST_BYTES = 4_096
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class ControlEndpoint:
    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        is_ours = scope["type"] == "http" and scope["method"] == "POST"
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path") or "")
        if not is_ours or path != CONTROL_PATH:
            await self._app(scope, receive, send)
            return
        if await self._is_admitted(scope, receive, send):
            status, answer = await _answer(receive)
            await _send_json(send, status, answer)

    async def _is_admitted(self, scope: Message, receive: Receive, send: Send) -> bool:
        """Ask vLLM itself, which knows its keys: it does not have this path, so 404 means that the caller may pass."""
        is_unknown = False

        async def watch(message: Message) -> None:
            nonlocal is_unknown
            if message["type"] == "http.response.start":
                is_unknown = message["status"] == 404
            if not is_unknown:
                await send(message)

        await self._app(scope, receive, watch)
        return is_unknown


async def _answer(receive: Receive) -> tuple[int, dict[str, Any]]:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > MOST_BYTES:
            return 413, {"success": False, "message": f"at most {MOST_BYTES} bytes"}
        if not message.get("more_body"):
            break
    try:
        asked = json.loads(body)
    except ValueError:
        asked = None
    if not isinstance(asked, dict) or not isinstance(asked.get("id"), str):
        return 400, {"success": False, "message": 'needs {"id": RUN, "action": "reasoning_end"}'}
    return 200, await ask_workers(asked)


async def _send_json(send: Send, status: int, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
