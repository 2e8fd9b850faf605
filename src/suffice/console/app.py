"""The console and the control API as one ASGI application: route, authenticate, handle, answer.

Every failure is an answer: programs get OpenAI's error shape, people get a page with a link. An error in here costs a
page and never a request of the gateway beside it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from suffice.console import exchange, site
from suffice.console.auth import NOBODY, Principal
from suffice.console.context import ConsoleContext, ConsoleEndpoint
from suffice.console.exchange import JSON, Answer, ConsoleRequest, Receive, Scope, Send
from suffice.errors import BadRequest, SufficeError
from suffice.telemetry import LOG
from suffice.upstream.wire import error_body

MOUNTS: Final = ("/console", "/api")  # what this application answers
_KINDS: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ConsoleApp:
    def __init__(self, desk: ConsoleContext, doors: Iterable[ConsoleEndpoint]) -> None:
        self.desk = desk
        self.doors = tuple(doors)
        self._exact: dict[str, dict[str, ConsoleEndpoint]] = {}
        self._with_fields: dict[re.Pattern[str], dict[str, ConsoleEndpoint]] = {}
        for door in self.doors:
            if "{" in door.path:
                pattern = re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[A-Za-z0-9._:-]{1,200})", re.escape(door.path)))
                self._with_fields.setdefault(pattern, {})[door.method] = door
            else:
                self._exact.setdefault(door.path, {})[door.method] = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head_only = scope["method"] == "HEAD"
        answer = await self._answer(scope, receive)
        if answer.stream is None or head_only:
            await exchange.send_answer(answer, send, head_only=head_only)
            return
        await _until_either(exchange.send_answer(answer, send), receive)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        asked, visitor = _unread(scope), NOBODY
        try:
            asked = exchange.read_head(scope)
            by_method, fields = self._find(asked.path)
            door = by_method.get("GET" if asked.method == "HEAD" else asked.method)
            if door is None:
                # Who has not come in learns nothing of which paths there are.
                visitor = self.desk.doors.admit(asked, "reviewer")
                raise _no_such(asked, by_method)
            asked = exchange.with_path_fields(asked, fields)
            visitor = self.desk.doors.admit(asked, door.needs)
            if door.method == "POST":  # nothing of a body is read for who may not come in
                asked = await exchange.read_form(asked, receive)
                if door.needs != "nobody":  # a change that needs no login brings a token of its own
                    self.desk.doors.check_change(asked, visitor)
            return await door.run(self.desk, asked, visitor)
        except BadRequest as error:
            return self._refusal(asked, visitor, error)
        except SufficeError as error:
            LOG.warning("console: %s", error)
            return self._failure(asked, visitor, 503, str(error))
        except Exception as error:  # noqa: BLE001 - a page that breaks must not break anything else
            LOG.error("console: %s failed (%s)", asked.path[:200], type(error).__name__)
            LOG.debug("the same, with its traceback", exc_info=True)
            return self._failure(asked, visitor, 500, "this page failed; the log of the process says where")

    def _find(self, path: str) -> tuple[Mapping[str, ConsoleEndpoint], Mapping[str, str]]:
        if (result := self._exact.get(path)) is not None:
            return result, {}
        for pattern, by_method in self._with_fields.items():
            if matched := pattern.fullmatch(path):
                return by_method, matched.groupdict()
        return {}, {}

    def _refusal(self, asked: ConsoleRequest, visitor: Principal, error: BadRequest) -> Answer:
        headers = (("retry-after", "12"),) if error.status == 429 else ()
        if asked.is_api:
            kind = _KINDS.get(error.status, "invalid_request_error")
            if error.status == 401:
                headers = (*headers, ("www-authenticate", "Bearer"))
            body = error_body(str(error), kind, error.param, error.code)
            return Answer(status=error.status, kind=JSON, body=body, headers=headers)
        if error.status == 401 and error.code == "not_logged_in":
            return site.to_login(asked)
        return site.sorry(self.desk, asked, visitor, error.status, str(error)).with_headers(*headers)

    def _failure(self, asked: ConsoleRequest, visitor: Principal, status: int, message: str) -> Answer:
        if asked.is_api:
            return Answer(status=status, kind=JSON, body=error_body(message, "server_error", None, "server_error"))
        return site.sorry(self.desk, asked, visitor, status, message)


def _unread(scope: Scope) -> ConsoleRequest:
    return ConsoleRequest(method=scope["method"], path=scope["path"], headers={}, query={}, form={}, address="")


def _no_such(asked: ConsoleRequest, by_method: Mapping[str, ConsoleEndpoint]) -> BadRequest:
    if by_method:
        message = f"this path answers {', '.join(sorted(by_method))} only"
        return BadRequest(message, status=405, code="method_not_allowed")
    return BadRequest(f"no such path: {asked.path[:200]}", status=404, code="not_found")


async def _until_either(sending: Any, receive: Receive) -> None:
    async def left() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(sending), asyncio.ensure_future(left())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
