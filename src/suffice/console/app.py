"""The console and the control API as one ASGI application: route, authenticate, handle, respond.

Every failure is a response (OpenAI's error shape, or a page) and never affects the gateway's requests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

from suffice.asgi import Receive, Scope, Send
from suffice.console import exchange, site
from suffice.console.auth import NOBODY, Principal
from suffice.console.context import ConsoleContext, ConsoleEndpoint, Live
from suffice.console.exchange import JSON, ConsoleRequest, ConsoleResponse
from suffice.errors import BadRequest, SufficeError
from suffice.telemetry import LOG
from suffice.upstream.wire import error_body

MOUNTS: Final = ("/console", "/api")  # paths that this application serves
_KINDS: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ConsoleApp:
    def __init__(self, context: ConsoleContext, endpoints: Iterable[ConsoleEndpoint] = site.ENDPOINTS) -> None:
        self.context = context
        self.endpoints = tuple(endpoints)
        self._paths: dict[str, dict[str, ConsoleEndpoint]] = {}
        for endpoint in self.endpoints:
            self._paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._patterns = {
            re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[A-Za-z0-9._:-]{1,200})", re.escape(path))): by_method
            for path, by_method in self._paths.items()
            if "{" in path
        }
        context.live = Live(
            look=lambda window: site.mark_of(context, window),
            part=lambda window: site.live_part(context, window),
            every_s=context.settings.console.live_s,
            closing=context.services.closing,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head_only = scope["method"] == "HEAD"
        answer = await self._answer(scope, receive)
        sending = answer.send(send, head_only=head_only)
        if answer.stream is None or head_only:
            await sending
        else:
            await _send_until_disconnect(sending, receive)

    async def _answer(self, scope: Scope, receive: Receive) -> ConsoleResponse:
        request, principal, auth = ConsoleRequest(method=scope["method"], path=scope["path"]), NOBODY, self.context.auth
        try:
            request = exchange.read_head(scope)
            by_method, fields = self._find(request.path)
            endpoint = by_method.get("GET" if request.method == "HEAD" else request.method)
            if endpoint is None:
                # Unauthenticated clients do not learn which paths exist.
                principal = auth.admit(request, "reviewer")
                raise _no_such_path(request, by_method)
            request = replace(request, fields=fields)
            principal = auth.admit(request, endpoint.needs)
            if endpoint.method == "POST":  # no body is read before authorisation
                request = await exchange.read_form(request, receive)
                if endpoint.needs != "nobody":  # a change without a login carries a token of its own
                    auth.check_change(request, principal)
            return await endpoint.run(self.context, request, principal)
        except BadRequest as error:
            return self._refusal(request, principal, error)
        except SufficeError as error:
            LOG.warning("console: %s", error)
            return self._failure(request, principal, 503, str(error))
        except Exception as error:  # noqa: BLE001 - a failing page must not affect the gateway
            LOG.error("console: %s failed (%s)", request.path[:200], type(error).__name__)
            LOG.debug("the same, with its traceback", exc_info=True)
            return self._failure(request, principal, 500, "this page failed; the log of the process says where")

    def _find(self, path: str) -> tuple[Mapping[str, ConsoleEndpoint], Mapping[str, str]]:
        if "{" not in path and (by_method := self._paths.get(path)) is not None:
            return by_method, {}
        for pattern, by_method in self._patterns.items():
            if matched := pattern.fullmatch(path):
                return by_method, matched.groupdict()
        return {}, {}

    def _refusal(self, request: ConsoleRequest, principal: Principal, error: BadRequest) -> ConsoleResponse:
        headers = (("retry-after", "12"),) if error.status == 429 else ()
        if request.is_api:
            kind = _KINDS.get(error.status, "invalid_request_error")
            if error.status == 401:
                headers = (*headers, ("www-authenticate", "Bearer"))
            body = error_body(str(error), kind, error.param, error.code)
            return ConsoleResponse(status=error.status, kind=JSON, body=body, headers=headers)
        if error.status == 401 and error.code == "not_logged_in":
            return site.redirect_to_login(request)
        return site.error_page(self.context, request, principal, error.status, str(error)).with_headers(*headers)

    def _failure(self, request: ConsoleRequest, principal: Principal, status: int, message: str) -> ConsoleResponse:
        if request.is_api:
            return ConsoleResponse(
                status=status, kind=JSON, body=error_body(message, "server_error", None, "server_error")
            )
        return site.error_page(self.context, request, principal, status, message)


def _no_such_path(request: ConsoleRequest, by_method: Mapping[str, ConsoleEndpoint]) -> BadRequest:
    if by_method:
        message = f"this path answers {', '.join(sorted(by_method))} only"
        return BadRequest(message, status=405, code="method_not_allowed")
    return BadRequest(f"no such path: {request.path[:200]}", status=404, code="not_found")


async def _send_until_disconnect(sending: Coroutine[Any, Any, None], receive: Receive) -> None:
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
