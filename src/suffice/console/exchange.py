"""Console requests and responses on bare ASGI: headers, cookies, forms, security headers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, quote

import msgspec

from suffice.asgi import ClientGone, Receive, Scope, Send, read_body
from suffice.errors import BadRequest
from suffice.upstream.wire import count_items, finite

MOST_BODY_BYTES: Final = 256 * 1024
MOST_FIELDS: Final = 100
HTML: Final = "text/html; charset=utf-8"
JSON: Final = "application/json"

# Nothing inline, nothing from other origins, no framing, and no referrer to other sites.
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'none';"
    " form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
ALWAYS: Final = (
    ("content-security-policy", POLICY),
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("permissions-policy", "camera=(), geolocation=(), microphone=()"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleRequest:
    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case; repeated ones joined by ", "
    query: Mapping[str, str] = field(default_factory=dict)  # the last value of a name counts
    form: Mapping[str, str] = field(default_factory=dict)  # of a form or a flat JSON object
    address: str = ""  # of the client's socket
    fields: Mapping[str, str] = field(default_factory=dict)  # path parameters, by name

    @property
    def is_api(self) -> bool:
        return self.path == "/api" or self.path.startswith("/api/")

    @property
    def is_partial(self) -> bool:
        return self.headers.get("hx-request", "") == "true"

    @property
    def cookies(self) -> Mapping[str, str]:
        pairs = (part.strip().partition("=") for part in self.headers.get("cookie", "").split(";"))
        return {name: value for name, mark, value in pairs if mark}

    @property
    def behind_tls(self) -> bool:
        """Whether a proxy reports TLS. A false report only makes cookies stricter."""
        return self.headers.get("x-forwarded-proto", "").split(",")[0].strip().lower() == "https"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleResponse:
    status: int = 200
    kind: str = HTML
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    stream: AsyncIterator[bytes] | None = None  # follows the body; its length is not known

    def with_headers(self, *headers: tuple[str, str]) -> ConsoleResponse:
        return replace(self, headers=(*self.headers, *headers))

    async def send(self, send: Send, *, head_only: bool) -> None:
        headers = {"content-type": self.kind, "cache-control": "no-store"}
        if self.stream is None:
            headers["content-length"] = str(len(self.body))
        pairs = [*(headers | dict(ALWAYS)).items(), *self.headers]
        raw = [(name.encode("latin-1"), value.encode("latin-1", "replace")) for name, value in pairs]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        body = b"" if head_only else self.body
        if self.stream is None or head_only:
            await send({"type": "http.response.body", "body": body, "more_body": False})
            return
        await send({"type": "http.response.body", "body": body, "more_body": True})
        async for part in self.stream:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def json_response(value: Any) -> ConsoleResponse:
    return ConsoleResponse(kind=JSON, body=msgspec.json.encode(value))


def redirect(place: str, *, status: Literal[303, 308] = 303) -> ConsoleResponse:
    return ConsoleResponse(status=status, headers=(("location", quote(place, safe="/?=&%#:")),))


def cookie(
    name: str, value: str, *, age_s: int, secure: bool, same_site: Literal["Strict", "Lax"] = "Strict"
) -> tuple[str, str]:
    """A cookie header, hidden from scripts and other sites; "Lax": sent with a link to us. Age 0 deletes the cookie."""
    header = f"{name}={value}; Path=/; Max-Age={age_s}; HttpOnly; SameSite={same_site}"
    return "set-cookie", f"{header}; Secure" if secure else header


def read_head(scope: Scope) -> ConsoleRequest:
    """Parse a request without its body. Raises BadRequest for too many query fields, and for a NUL character."""
    headers = dict[str, str]()
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        headers[name] = f"{headers[name]}, {text}" if name in headers else text
    query = _pairs(scope.get("query_string", b"").decode("latin-1"))
    return ConsoleRequest(
        method=scope["method"],
        path=scope["path"],
        headers=headers,
        address=str((scope.get("client") or ("", 0))[0]),
        query={refuse_nul(name): refuse_nul(value, name) for name, value in query.items()},
    )


async def read_form(request: ConsoleRequest, receive: Receive) -> ConsoleRequest:
    """Read the request's body. Raises BadRequest for one that is no form, too long, or incomplete."""
    try:
        body = await read_body(receive, MOST_BODY_BYTES)
    except ClientGone:
        raise BadRequest("body: the client left before it was complete", code="disconnected") from None
    return replace(request, form=_form(request.headers, body))


def _form(headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    if not body:
        return {}
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded":
        return _pairs(body.decode("utf-8", "replace"))
    if kind == JSON:
        return _flat(body)
    raise BadRequest(
        f"content-type: must be {JSON} or application/x-www-form-urlencoded", status=415, code="unsupported_media_type"
    )


_decode: Callable[[bytes], Any] = msgspec.json.Decoder(float_hook=finite).decode


def _flat(body: bytes) -> dict[str, str]:
    """A flat JSON object as form fields, so that programs and pages send the same fields."""
    try:
        if count_items(body, 2 * MOST_FIELDS)[0] > 2 * MOST_FIELDS + 1:
            raise BadRequest(f"at most {MOST_FIELDS} fields are accepted", code="too_many_fields")
        result = _decode(body)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise BadRequest("body: is no JSON", code="bad_json") from None
    if not isinstance(result, dict):
        raise BadRequest("body: must be a JSON object", code="not_an_object")
    entries = dict[str, str]()
    for key, value in result.items():
        if isinstance(value, dict | list):
            raise BadRequest(f"{key[:80]}: must be plain text, a number, true, false or null", param=key[:80])
        if value is not None:
            entries[key] = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return entries


def _pairs(text: str) -> dict[str, str]:
    try:
        return dict(parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS))
    except ValueError:
        raise BadRequest(f"at most {MOST_FIELDS} fields are accepted", code="too_many_fields") from None


def refuse_nul(text: str, field: str = "") -> str:
    """Raise BadRequest for a NUL character, which PostgreSQL neither stores nor compares."""
    if "\x00" in text:
        field = (field or text.replace("\x00", ""))[:80]
        raise BadRequest(f"{field}: must not hold NUL characters", param=field)
    return text
