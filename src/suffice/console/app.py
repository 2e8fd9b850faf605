"""The console and the control API as one ASGI application: route, authenticate, handle, respond.

Every failure is a response (OpenAI's error shape, or a page) and never affects the gateway's requests.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from suffice.asgi import Receive, Scope, Send
from suffice.console import exchange, site
from suffice.console.context import ConsoleContext, ConsoleEndpoint, ConsoleVisit
from suffice.console.exchange import JSON, ConsoleRequest, ConsoleResponse
from suffice.errors import BadRequest, SufficeError
from suffice.telemetry import LOG
from suffice.upstream.wire import error_body

MOUNTS: Final = ("/console", "/api")  # paths that this application serves
_FAILED: Final = "server_error"
_KINDS: Final[Mapping[int, str]] = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ConsoleApp:
    def __init__(self, context: ConsoleContext, endpoints: Iterable[ConsoleEndpoint] = site.ENDPOINTS) -> None:
        self.context = context
        self.endpoints = tuple(endpoints)
        paths: dict[str, dict[str, ConsoleEndpoint]] = {}
        for endpoint in self.endpoints:
            paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
        self._paths = {
            re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[A-Za-z0-9._:-]{1,200})", re.escape(path))): by_method
            for path, by_method in paths.items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        await answer.send(send, head_only=scope["method"] == "HEAD")

    async def _answer(self, scope: Scope, receive: Receive) -> ConsoleResponse:
        visit = ConsoleVisit(self.context, ConsoleRequest(method=scope["method"], path=scope["path"]))
        auth = self.context.auth
        try:
            visit = replace(visit, request=exchange.read_head(scope))
            by_method, fields = self._find(visit.request.path)
            endpoint = by_method.get("GET" if visit.request.method == "HEAD" else visit.request.method)
            # Unauthenticated clients do not learn which paths exist.
            needs = "reviewer" if endpoint is None else endpoint.needs
            visit = replace(visit, principal=auth.admit(visit.request, needs))
            if endpoint is None:
                raise _no_such_path(visit.request, by_method)
            visit = replace(visit, request=replace(visit.request, fields=fields))
            if endpoint.method == "POST":  # no body is read before authorisation
                visit = replace(visit, request=await exchange.read_form(visit.request, receive))
                if endpoint.needs != "nobody":  # a change without a login carries a token of its own
                    auth.check_change(visit.request, visit.principal)
            return await endpoint.run(visit)
        except BadRequest as error:
            refusal = error
        except SufficeError as error:
            LOG.warning("console: %s", error)
            refusal = BadRequest(str(error), status=503, code=_FAILED)
        except Exception as error:  # noqa: BLE001 - a failing page must not affect the gateway
            LOG.error("console: %s failed (%s)", visit.request.path[:200], type(error).__name__)
            LOG.debug("the same, with its traceback", exc_info=True)
            refusal = BadRequest("this page failed; the log of the process says where", status=500, code=_FAILED)
        return _refusal(visit, refusal)

    def _find(self, path: str) -> tuple[Mapping[str, ConsoleEndpoint], Mapping[str, str]]:
        for pattern, by_method in self._paths.items():
            if matched := pattern.fullmatch(path):
                return by_method, matched.groupdict()
        return {}, {}


def _refusal(visit: ConsoleVisit, error: BadRequest) -> ConsoleResponse:
    status, headers = error.status, [("retry-after", "12")] if error.status == 429 else []
    if visit.request.is_api:
        kind = _FAILED if error.code == _FAILED else _KINDS.get(status, "invalid_request_error")
        headers += [("www-authenticate", "Bearer")] if status == 401 else []
        body = error_body(str(error), kind, error.param, error.code)
        return ConsoleResponse(status=status, kind=JSON, body=body, headers=tuple(headers))
    if status == 401 and error.code == "not_logged_in":
        return site.redirect_to_login(visit.request)
    return site.error_page(visit, status, str(error)).with_headers(*headers)


def _no_such_path(request: ConsoleRequest, by_method: Mapping[str, ConsoleEndpoint]) -> BadRequest:
    if by_method:
        message = f"this path answers {', '.join(sorted(by_method))} only"
        return BadRequest(message, status=405, code="method_not_allowed")
    return BadRequest(f"no such path: {request.path[:200]}", status=404, code="not_found")
