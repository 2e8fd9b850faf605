"""ASGI types, the reader of request bodies, and the protection against DNS rebinding and cross-site requests."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final

from suffice.errors import BadRequest, TooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClientGone(Exception):
    pass


async def read_body(receive: Receive, limit_bytes: int) -> bytes:
    """Raise TooLarge beyond the limit and ClientGone if the client disconnects."""
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        part = message.get("body", b"")
        size += len(part)
        if size > limit_bytes:
            raise TooLarge(f"body: longer than {limit_bytes} bytes")
        parts.append(part)
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)


NAME: Final = r"[a-z0-9_.-]{1,253}"
MOST_HOST_CHARS: Final = 260  # of a name with its port
_HOST: Final = re.compile(rf"(\[[0-9a-f:.]{{2,45}}\]|{NAME})(?::\d{{1,5}})?")


def host_name(header: str) -> str | None:
    """Return the name or address in a Host header, without its port, or None if the header is malformed."""
    return _matched(header) if len(header) <= MOST_HOST_CHARS else None


@lru_cache(maxsize=1024)
def _matched(header: str) -> str | None:
    matched = _HOST.fullmatch(header.lower())
    return matched.group(1).rstrip(".") if matched is not None else None


class BrowserPolicy:
    """Checks the host names that browsers may use for this server, and the sites whose pages may call it.

    hosts    names besides localhost and IP addresses
    origins  other sites whose pages may call it, such as "https://playground.example.com"
    """

    def __init__(self, *, hosts: Iterable[str], origins: Iterable[str] = ()) -> None:
        self._hosts = frozenset(name.lower().rstrip(".") for name in hosts)
        self.origins = frozenset(origins)

    def check_host(self, header: str) -> None:
        """Raise BadRequest for a name that is not this server's. IP addresses cannot be made to point elsewhere."""
        host = host_name(header)
        if host is None or not (host in self._hosts or _is_fixed(host)):
            raise BadRequest(
                f"Host header: got {(host or '')[:80]!r}, which is not a name of this server; allowed: localhost,"
                " IP addresses, [server] host and [server] allowed_hosts",
                status=421,
                code="unknown_host",
            )

    def check_page(self, headers: Mapping[str, str]) -> None:
        """Raise BadRequest for a request from another site's page, unless the settings allow its origin.

        Pages cannot set these headers, and browsers send at least one with every request that changes something.
        """
        origin, site, host = (headers.get(name, "") for name in ("origin", "sec-fetch-site", "host"))
        if origin in self.origins:
            return
        if site:
            is_ours = site == "same-origin" or (site == "none" and not origin)
        else:  # old browsers, and plain HTTP addresses, for which browsers leave it out
            is_ours = not origin or (host != "" and origin.partition("://")[2].lower() == host.lower())
        if not is_ours:
            raise BadRequest(
                f"origin: got {origin[:80]!r}, a page of another site; allowed: this server's own pages, programs, and"
                " pages named in [server] allowed_origins",
                status=403,
                code="cross_site",
            )


@lru_cache(maxsize=1024)
def _is_fixed(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True
