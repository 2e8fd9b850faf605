"""How soon after its client's hang-up is the upstream's connection closed?

Starts `suffice serve` before a fake model server on this machine; a client asks, waits for the moment that the row
names, and closes its connection. Measured from there to the moment at which the fake sees its own connection closed.
"""

from __future__ import annotations

import argparse
import json
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.gateway_process import GatewayProcess

from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply

LIMIT_MS = 50.0
ENDLESS = Reply(reasoning=("so\n", " it\n") * 5_000, answer=("4",), delay_s=0.01)
SILENT = Reply(reasoning=("so\n",) * 3, answer=("4",), faults=(Fault(stall_after=3, stall_s=60.0),))
MUTE = Reply(faults=(Fault(header_delay_s=60.0),))
BY_NAME = {"endless": ENDLESS, "silent": SILENT, "mute": MUTE}
ENFORCE = {"mode": "enforce", "uncertified": True, "audit_share": 0.0}
ROUTES: dict[str, dict[str, Any]] = {
    "off": {"mode": "off"},
    "observe": {},
    "votes": {"kind": "samples", "samples": 4},
    "probe": ENFORCE | {"probe": {}, "policy": {"policy": "stable-answer", "streak": 1_000}},
    "handover": ENFORCE | {"policy": {"policy": "fixed-budget", "max_tokens": 40}, "handover_ms": 60_000},
}
# row: route, what the upstream does, stream or body, upstream calls that must be open first
ROWS: dict[str, tuple[str, str, bool, int]] = {
    "pass-through, mid-stream": ("off", "endless", True, 1),
    "pass-through, upstream silent": ("off", "silent", True, 1),
    "pass-through, before the first byte": ("off", "mute", True, 1),
    "pass-through, body": ("off", "endless", False, 1),
    "reasoning, mid-stream": ("observe", "endless", True, 1),
    "reasoning, upstream silent": ("observe", "silent", True, 1),
    "reasoning, before the first byte": ("observe", "mute", True, 1),
    "reasoning, body": ("observe", "endless", False, 1),
    "samples, body": ("votes", "endless", False, 4),
    "samples, stream": ("votes", "mute", True, 4),
    "during a probe": ("probe", "endless", True, 2),
    "during a hand-over": ("handover", "endless", True, 2),
}


def says(seen: FakeRequest) -> Reply:
    """What the model was asked to be; it never continues a thought."""
    messages = seen.body.get("messages") or [{}]
    return MUTE if seen.prefix else BY_NAME.get(str(messages[0].get("content")), MUTE)


def hung_up(gateway: GatewayProcess, row: tuple[str, str, bool, int], n_open: Callable[[], int]) -> float:
    """Ask, wait until the moment has come, reset the connection; the monotonic time of that."""
    route, text, stream, n_calls = row
    body = json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": text}]}).encode()
    host, _, port = gateway.url.removeprefix("http://").partition(":")
    client = socket.create_connection((host, int(port)))
    head = ["POST /v1/chat/completions HTTP/1.1", "host: 127.0.0.1", "content-type: application/json"]
    head += [f"x-suffice-route: {route}"]
    head.append(f"content-length: {len(body)}")
    client.sendall("\r\n".join([*head, "", ""]).encode() + body)
    end_s = time.monotonic() + 20
    while n_open() < n_calls:
        if time.monotonic() > end_s:
            raise SystemExit(f"{route}: {n_open()} of {n_calls} upstream calls were opened")
        time.sleep(0.002)
    time.sleep(0.03)
    client.close()
    return time.monotonic()


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="10 trials each")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 when a median is over {LIMIT_MS:g} ms")
    options, _ = parser.parse_known_args()
    n_trials, worst = 10 if options.quick else options.trials, 0.0
    routes = {name: {"upstream": "up", "match": {"header": name}, **more} for name, more in ROUTES.items()}
    upstreams = {"up": {"driver": "vllm", "finish": ["prefill"], "slots": 64, "url": ""}}
    with tempfile.TemporaryDirectory() as folder, FakeUpstream.in_thread(says) as fake:
        upstreams["up"]["url"] = fake.url
        with GatewayProcess.serving(folder, {"upstreams": upstreams, "routes": routes}, log_level="warning") as gateway:
            print(f"{'hang-up of the client':<38}{'median':>9}{'p99':>9}{'most':>9}   ms, {n_trials} trials")
            for name, row in ROWS.items():
                took_ms = []
                for _ in range(n_trials):
                    fake.calls.clear()
                    left_s = hung_up(gateway, row, lambda: len(fake.completions))
                    fake.wait_idle(20)
                    took_ms.append(max((c.closed_at_s or 0.0) - left_s for c in fake.completions) * 1e3)
                took_ms.sort()
                p99 = took_ms[min(n_trials - 1, int(0.99 * n_trials))]
                print(f"{name:<38}{median(took_ms):9.1f}{p99:9.1f}{took_ms[-1]:9.1f}")
                worst = max(worst, median(took_ms))
    return int(options.check and worst > LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
