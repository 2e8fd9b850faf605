"""The compose file's proxy before two real gateways: streams pass unbuffered, and replacing both fails no call."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from suffice_testing import FakeUpstream, Reply
from tests.deploy.haproxy import Start
from tests.gateway_process import GatewayProcess
from tests.house.tree import ROOT

pytestmark = pytest.mark.slow
GAP_S = 0.05
REPLY = Reply(reasoning=("so ",) * 20, answer=("4",), delay_s=GAP_S)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def proxy(start: Start, folder: Path, gateways: list[int]) -> Iterator[str]:
    port = free_port()
    text = (ROOT / "deploy" / "compose" / "haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("bind :8400", f"bind 127.0.0.1:{port}")
    text = re.sub(r" gateway-(\d):8400", lambda m: f" 127.0.0.1:{gateways[int(m[1]) - 1]}", text)
    (folder / "haproxy.cfg").write_text(text, encoding="utf-8")
    process = start("-db", "-f", str(folder / "haproxy.cfg"), stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


def read_stream(url: str) -> list[float]:
    """Ask for one stream; the times of its events. Raises OSError when it fails."""
    body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": str(time.monotonic())}]})
    request = urllib.request.Request(f"{url}/v1/chat/completions", body.encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        times, last = list[float](), b""
        for line in answer:
            if line.startswith(b"data:"):
                times.append(time.monotonic())
                last = line
    if last.strip() != b"data: [DONE]":
        raise ConnectionError("a stream was cut")
    return times


def test_replacing_both_gateways_fails_no_stream(tmp_path: Path, haproxy: Start) -> None:
    ports = [free_port(), free_port()]
    folders = [tmp_path / "one", tmp_path / "two"]
    with FakeUpstream.in_thread(REPLY) as fake, proxy(haproxy, tmp_path, ports) as url, contextlib.ExitStack() as last:
        settings: dict[str, Any] = {
            "store": {"url": f"sqlite:///{tmp_path / 'log.db'}"},
            "upstreams": {"up": {"url": fake.url, "slots": 32}},
            "routes": {"r": {"upstream": "up"}},
        }
        running = [contextlib.ExitStack(), contextlib.ExitStack()]

        def start(which: int) -> None:
            folders[which].mkdir(exist_ok=True)
            running[which].enter_context(GatewayProcess.serving(folders[which], settings, port=ports[which]))
            end_s = time.monotonic() + 30
            while time.monotonic() < end_s:
                with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{ports[which]}/readyz"):
                    return
            raise AssertionError("not ready")

        for which in (0, 1):
            last.enter_context(running[which])
            start(which)
        time.sleep(2.5)  # the proxy has seen both
        failures, n_done, stop = list[str](), [0], threading.Event()

        def client() -> None:
            while not stop.is_set():
                try:
                    times = read_stream(url)
                    assert times[-1] - times[0] > 10 * GAP_S, "the proxy held the stream back"
                    n_done[0] += 1
                except (OSError, AssertionError) as error:
                    failures.append(repr(error))
                    stop.set()

        threads = [threading.Thread(target=client) for _ in range(6)]
        for thread in threads:
            thread.start()
        for which in (0, 1):
            time.sleep(2.0)
            running[which].close()  # SIGTERM; returns when its streams have ended
            start(which)
            time.sleep(2.5)
        stop.set()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert n_done[0] > 20
