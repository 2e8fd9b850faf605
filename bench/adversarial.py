"""How long does a hostile request keep everybody else waiting?

    python bench/adversarial.py                  # about five minutes; nothing else should compute meanwhile
    python bench/adversarial.py --only escapes

Three processes beside the gateway: one sends hostile bodies to every endpoint that takes one, to an open gateway and to
one with keys, with its key and without; one asks `/healthz` all the time over one connection and takes the time; one is
the model server. A row is one kind of body at one size, on all endpoints: the slowest answer to `/healthz` while it was
sent, and the slowest in rest before. What is slow in rest is the machine. Exits with 1 when an answer took over 100 ms
twice in a row of tries, or failed.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import multiprocessing as mp
import socket
import socketserver
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from suffice.gateway.app import API

KIB, MIB = 2**10, 2**20
SIZES = (64 * KIB, MIB, 5 * MIB, 18 * MIB, 20 * MIB - KIB)
HELD_S = 0.1
KEY = "sk-of-this-bench"
REST_S = 0.4
TRIES = 3
MIDDLE = b'"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}]'
ANSWER = (
    b'{"id":"c","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"finish_reason":"stop",'
    b'"message":{"role":"assistant","content":"4"}}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


def filled(piece: bytes, n_bytes: int) -> bytes:
    """A chat request with a list of as many pieces as fit."""
    return b'{"x": [' + piece * max(1, (n_bytes - 100) // len(piece)) + b"1], " + MIDDLE + b"}"


def text(piece: bytes, n_bytes: int) -> bytes:
    """A chat request with one long text."""
    return b'{"x": "' + piece * max(1, (n_bytes - 100) // len(piece)) + b'", ' + MIDDLE + b"}"


BODIES: dict[str, Callable[[int], bytes]] = {
    "repeated last name": lambda n: (
        b"{" + b", ".join(b'"%07x": 1' % k for k in range(n // 14)) + b', "0000000": 1, ' + MIDDLE + b"}"
    ),
    "small objects": lambda n: filled(b'{"a":1},', n),
    "empty lists": lambda n: filled(b"[],", n),
    "small numbers": lambda n: filled(b"1,", n),
    "slow numbers": lambda n: filled(b"1.7976931348623157e308,", n),
    "long numbers": lambda n: filled(b"9" * 300 + b",", n),
    "less long numbers": lambda n: filled(b"9" * 64 + b",", n),
    "escapes": lambda n: text(b"\\n", n),
    "half characters": lambda n: text(b"\\ud800", n),
    "a picture in base64": lambda n: text(b"QUJD", n),
    "spaces": lambda n: b'{"x":' + b" " * (n - 100) + b"1, " + MIDDLE + b"}",
    "open lists": lambda n: b"[" * n,
    "a torn text": lambda n: b'{"x": "' + b"a" * (n - 8),
    "many messages": lambda n: (
        b'{"model": "m", "messages": [' + b'{"role":"user","content":"a"},' * (n // 31) + b'{"role":"user"}]}'
    ),
    "a question of accents": lambda n: (
        b'{"model": "m", "messages": [{"role": "user", "content": "a' + b"\xcc\x81" * ((n - 80) // 2) + b'"}]}'
    ),
    "no JSON": lambda n: b"\xff" * n,
}


class Model(socketserver.StreamRequestHandler):
    """A model server that reads whatever comes, and answers four."""

    def handle(self) -> None:
        """Serve one connection."""
        while self.rfile.readline():
            length = 0
            while header := self.rfile.readline().strip():
                name, _, value = header.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            while length > 0 and (part := self.rfile.read(min(length, MIB))):
                length -= len(part)
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self.wfile.write(head % len(ANSWER) + ANSWER)


def serve_model(told: Connection) -> None:
    """Run the model server."""
    socketserver.ThreadingTCPServer.daemon_threads = True
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Model) as server:
        told.send(server.server_address[1])
        server.serve_forever()


def send_all(orders: Connection) -> None:
    """Send what is ordered, and say when it is answered."""
    paths = sorted({endpoint.path.replace("{id}", "r1") for endpoint in API if endpoint.method == "POST"})
    while (order := orders.recv()) is not None:
        port, body, key = order
        for path in paths:
            headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            with contextlib.suppress(OSError, http.client.HTTPException):  # refused by its head, the rest unread
                connection.request("POST", f"/v1{path}", body=body, headers=headers)
                connection.getresponse().read()
            connection.close()
        orders.send("sent")


def slowest(client: socket.socket, busy: Callable[[], bool]) -> float:
    """The slowest answer to `/healthz` while something goes on, in seconds."""
    worst = 0.0
    while busy():
        begin = time.perf_counter()
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert client.recv(65_536).startswith(b"HTTP/1.1 200"), "another client was not served"
        worst = max(worst, time.perf_counter() - begin)
        time.sleep(0.002)
    return worst


def held(gateway: GatewayProcess, orders: Connection, body: bytes, key: str) -> tuple[float, float]:
    """(slowest in rest, slowest under attack), seconds."""
    port = int(gateway.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        until = time.perf_counter() + REST_S
        rest = slowest(client, lambda: time.perf_counter() < until)
        orders.send((port, body, key))
        worst = slowest(client, lambda: not orders.poll())
        orders.recv()
    return rest, worst


@contextlib.contextmanager
def gateways(folder: Path, model_port: int) -> Iterator[dict[str, tuple[GatewayProcess, str]]]:
    """The situations: who is attacked, and with which key."""
    settings: dict[str, Any] = {
        "upstreams": {"up": {"url": f"http://127.0.0.1:{model_port}"}},
        "routes": {"r": {"upstream": "up", "mode": "observe"}},
    }
    keyed = {**settings, "server": {"api_keys_env": "BENCH_KEYS"}}
    (folder / "open").mkdir()
    (folder / "keyed").mkdir()
    with (
        GatewayProcess.serving(folder / "open", settings) as opened,
        GatewayProcess.serving(folder / "keyed", keyed, environment={"BENCH_KEYS": KEY}) as closed,
    ):
        yield {"open": (opened, ""), "with the key": (closed, KEY), "without it": (closed, "")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="kinds of bodies whose name holds this")
    only = parser.parse_args().only
    context = mp.get_context("spawn")
    told, tell = context.Pipe()
    orders, taken = context.Pipe()
    helpers = [context.Process(target=serve_model, args=(tell,)), context.Process(target=send_all, args=(taken,))]
    for helper in helpers:
        helper.daemon = True
        helper.start()
    failed = False
    print("| body | size | in rest, ms | open, ms | with the key, ms | without it, ms |\n| --- " + "| --- " * 5 + "|")
    with tempfile.TemporaryDirectory() as folder, gateways(Path(folder), told.recv()) as situations:
        for name, make in BODIES.items():
            for size in SIZES if only in name else ():
                body, row, rests = make(size), list[str](), list[float]()
                for gateway, key in situations.values():
                    for _ in range(TRIES):  # what the machine did once it does not do again
                        rest, worst = held(gateway, orders, body, key)
                        rests.append(rest)
                        if worst <= HELD_S:
                            break
                    else:
                        failed = True
                    row.append(f"{1e3 * worst:.0f}")
                cells = (name, f"{size / MIB:.2g} MiB", f"{1e3 * max(rests):.0f}", *row)
                print(f"| {' | '.join(cells)} |", flush=True)
    orders.send(None)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
