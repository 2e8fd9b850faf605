"""Tells another server something: one POST with a JSON body, no redirects, no second attempt.

An address of a webhook is as good as a key, so it is in no error and in no log. Knows HTTP and TLS of the standard
library; refuses to know what is told and why.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

MOST_REPLY_BYTES = 4_096  # of an answer are read, and thrown away


def post_json(url: str, body: bytes, *, timeout_s: float, headers: Mapping[str, str] | None = None) -> str | None:
    """Send a JSON body; None: the server took it (2xx), else why not, in a sentence without the address.

    Blocks for at most about `timeout_s` for each of connecting, sending and reading.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "the webhook's address is none; it needs http://host/path or https://host/path"
    try:
        connection = _connection(parts.scheme, parts.hostname, parts.port, timeout_s)
    except ValueError:
        return "the webhook's address has no such port"
    target = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
    try:
        connection.request("POST", target, body, {"content-type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        reply.read(MOST_REPLY_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return f"the webhook could not be reached ({type(error).__name__})"
    finally:
        connection.close()
    return None if 200 <= reply.status < 300 else f"the webhook answered {reply.status}"


def _connection(scheme: str, host: str, port: int | None, timeout_s: float) -> http.client.HTTPConnection:
    if scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s, context=ssl.create_default_context())
    return http.client.HTTPConnection(host, port, timeout=timeout_s)
