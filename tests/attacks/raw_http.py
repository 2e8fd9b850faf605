"""Bytes on a connection: what attacks on connections send, and how they read what comes back."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import urllib.request
from typing import Any

CHAT = "/v1/chat/completions"
SECRET = "sk-never-told"
PROMPT = "what nobody may read"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": PROMPT}]}).encode()
STREAM = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}).encode()
N = len(BODY)
LENGTH = f"content-length: {N}"
CHUNKED = "transfer-encoding: chunked"
WHOLE = b"%x\r\n%b\r\n0\r\n\r\n" % (N, BODY)
WAIT_S = 60.0  # beyond it a machine is not busy, but something hangs
GET = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n"


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    client = socket.create_connection((host, port), timeout=WAIT_S)
    client.settimeout(WAIT_S)
    return client


def read_to_end(client: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is an end, too."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while data := client.recv(65_536):
            got += data
    return got


def talk(port: int, sent: bytes) -> bytes:
    with connect(port) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(sent)
        return read_to_end(client)


def statuses(answer: bytes) -> list[int]:
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", answer)]


def request(
    *headers: str, line: str = f"POST {CHAT} HTTP/1.1", host: str = "host: 127.0.0.1", body: bytes = BODY
) -> bytes:
    """A request that is whole, but for what a case changes."""
    given = [line, *([host] if host else []), "content-type: application/json", f"x-canary: {SECRET}", *headers]
    return "\r\n".join(given).encode("latin-1") + b"\r\n\r\n" + body


def closing(*headers: str, **more: Any) -> bytes:
    return request("connection: close", *headers, **more)


def healthz(url: str, within_s: float = WAIT_S) -> int:
    with urllib.request.urlopen(url + "/healthz", timeout=within_s) as reply:
        return int(reply.status)
