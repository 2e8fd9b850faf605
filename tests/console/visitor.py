"""A visitor of the console without a socket: keeps cookies as a browser does, and asks the application itself."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec

from suffice.console.app import ConsoleApp
from suffice.settings import Settings, parse_settings
from suffice.wiring.console import console
from suffice.wiring.people import People
from suffice.wiring.worker import open_decisions

HOST = "127.0.0.1:8400"
TOKEN = re.compile(r'name="csrf" value="([0-9a-f]{64})"')


@dataclass(frozen=True, kw_only=True)
class Got:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    cookies: tuple[str, ...]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def code(self) -> str:
        """Of an error of the API."""
        return str(self.json["error"]["code"])


@dataclass
class Visitor:
    """Asks one application."""

    app: ConsoleApp
    cookies: dict[str, str] = field(default_factory=dict)
    host: str = HOST
    address: str = "127.0.0.1"

    def get(self, place: str, **headers: str) -> Got:
        return asyncio.run(self._exchange("GET", place, b"", headers))

    def post(self, place: str, form: Mapping[str, str], **headers: str) -> Got:
        headers.setdefault("content_type", "application/x-www-form-urlencoded")
        return asyncio.run(self._exchange("POST", place, urlencode(form).encode(), headers))

    def ask(self, method: str, place: str, body: bytes = b"", **headers: str) -> Got:
        return asyncio.run(self._exchange(method, place, body, headers))

    async def _exchange(self, method: str, place: str, body: bytes, headers: Mapping[str, str]) -> Got:
        parts = urlsplit(place)
        named = {"host": self.host, **{name.replace("_", "-"): value for name, value in headers.items()}}
        if self.cookies:
            named.setdefault("cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()))
        scope = {
            "type": "http",
            "method": method,
            "path": parts.path,
            "query_string": parts.query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in named.items()],
            "client": (self.address, 1),
        }
        sent: list[Any] = []
        requests = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return requests.pop(0) if requests else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return self._got(sent)

    def _got(self, sent: list[Any]) -> Got:
        pairs = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
        cookies = tuple(value for name, value in pairs if name == "set-cookie")
        for one in cookies:
            name, _, rest = one.partition("=")
            value = rest.partition(";")[0]
            if "Max-Age=0" in one:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Got(status=sent[0]["status"], headers=dict(pairs), cookies=cookies, body=body)

    def login(self, secret: str) -> Got:
        """As a person does it: open the login, send its form."""
        token = TOKEN.search(self.get("/console/login").text)
        assert token is not None
        return self.post("/console/login", {"secret": secret, "csrf": token.group(1), "back": "/console"})

    def token(self) -> str:
        """That a page of this session shows."""
        match = TOKEN.search(self.get("/console").text)
        assert match is not None
        return match.group(1)


def settings_in(folder: Path, **tables: Any) -> Settings:
    """A gateway of two routes with its log in that folder."""
    return parse_settings(
        {
            "upstreams": {"local": {"url": "http://127.0.0.1:1"}},
            "routes": {
                "math": {"upstream": "local", "kind": "samples", "samples": 8, "scorer": "number", "mode": "enforce"},
                "chat": {"upstream": "local", "mode": "off"},
            },
            "store": {"url": f"sqlite:///{folder / 'log.db'}"},
            **tables,
        }
    )


@contextlib.contextmanager
def site(settings: Settings) -> Iterator[ConsoleApp]:
    """The console on the settings' log, which is made if there is none."""
    with (
        open_decisions(settings) as writer,
        console(settings, writer.path, decisions=lambda: open_decisions(settings)) as app,
    ):
        yield app


def people_of(settings: Settings) -> People:
    """The people beside the settings' log."""
    return People.of(settings)
