"""F31: canaries in headers, bodies, addresses and upstream errors; a real gateway, killed, keeps none of them."""

from __future__ import annotations

import json
import signal
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from suffice_testing import FakeRequest, FakeUpstream, Fault, Reply
from tests.gateway_process import GatewayProcess

KEYS = {"client": "sk-canary-client-51", "gateway": "sk-canary-gateway-52", "upstream": "sk-canary-upstream-53"}
CANARIES = (*KEYS.values(), "canary.mail@example.org", "canary-prompt-54", "canary-address-55", "canary-thought-56")
MAIL, PROMPT, ADDRESS, THOUGHT = CANARIES[3:]
QUOTES = json.dumps({"error": {"message": f"no such key {KEYS['upstream']}, {PROMPT} of {MAIL}"}}).encode()
SAYS = {
    "ok": Reply(reasoning=(f"{THOUGHT}\n",) * 40, answer=("4",)),
    "401": Reply(faults=(Fault(status=401, status_body=QUOTES),)),
    "500": Reply(faults=(Fault(status=500, status_body=QUOTES),)),
    "302": Reply(
        faults=(Fault(status=302, status_body=QUOTES, status_headers={"location": f"http://127.0.0.1/{ADDRESS}"}),)
    ),
    "dies": Reply(reasoning=(f"{THOUGHT}\n",) * 9, faults=(Fault(die_after=4, die_how="error_frame"),)),
    "html": Reply(faults=(Fault(html=True),)),
}
ROUTES: dict[str, Any] = {
    "off": {"mode": "off"},
    "observe": {},
    "votes": {"kind": "samples", "samples": 2, "scorer": "number"},
    "enforce": {
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "scorer": "number",
        "policy": {"policy": "fixed-budget", "max_tokens": 10},
    },
}


def says(seen: FakeRequest) -> Reply:
    return SAYS.get(str(seen.body.get("model")), SAYS["ok"])


def ask(url: str, path: str, body: bytes, key: str, route: str = "observe") -> bytes:
    headers = {
        "authorization": f"Bearer {key}",
        "x-suffice-route": route,
        "content-type": "application/json",
        "x-api-key": KEYS["client"],
        "cookie": f"session={KEYS['client']}",
        "x-conversation-id": PROMPT,
        "idempotency-key": MAIL,
        "user-agent": ADDRESS,
        "referer": f"http://{ADDRESS}/",
    }
    request = urllib.request.Request(f"{url}{path}?api_key={KEYS['client']}&q={ADDRESS}", body, headers)
    try:
        with urllib.request.urlopen(request, timeout=20) as reply:
            answer: bytes = reply.read()
    except urllib.error.HTTPError as error:
        with error:
            answer = error.read()
    except OSError:
        answer = b""  # torn
    return answer


def assert_clean(where: str, data: bytes) -> None:
    result = [canary for canary in CANARIES if canary.encode() in data]
    assert not result, f"{where} holds {result}"


def test_a_killed_gateway_leaves_no_canary_in_files_terminal_or_metrics(tmp_path: Path) -> None:
    environment = {"GATEWAY_KEYS": KEYS["gateway"], "UPSTREAM_KEY": KEYS["upstream"], "SUFFICE_SALT": "salt"}
    routes = {name: {"upstream": "up", "match": {"header": name}, **more} for name, more in ROUTES.items()}
    upstream = {"driver": "vllm", "finish": ["prefill"], "slots": 4, "api_key_env": "UPSTREAM_KEY"}
    with FakeUpstream.in_thread(says) as fake:
        upstreams = {"up": upstream | {"url": fake.url}}
        settings = {"server": {"api_keys_env": "GATEWAY_KEYS"}, "routes": routes, "upstreams": upstreams}
        with GatewayProcess.serving(tmp_path, settings, environment=environment) as gateway:
            for route in ROUTES:
                for model in SAYS:
                    for stream in (True, False):
                        body = {
                            "model": model,
                            "stream": stream,
                            "user": MAIL,
                            "api_base": ADDRESS,
                            "messages": [{"role": "user", "content": f"{PROMPT} of {MAIL}"}],
                        }
                        sent = json.dumps(body).encode()
                        answer = ask(gateway.url, "/v1/chat/completions", sent, KEYS["gateway"], route)
                        assert KEYS["gateway"].encode() not in answer
                        if model not in ("401", "500"):  # the upstream's own words are relayed to its caller
                            assert KEYS["upstream"].encode() not in answer
            bad = [b'{"' + PROMPT.encode(), b"\xff" + PROMPT.encode(), b'{"model":"%s","model":1}' % PROMPT.encode()]
            for sent in bad:
                assert_clean("a refusal", ask(gateway.url, "/v1/chat/completions", sent, KEYS["gateway"]))
            assert_clean("a refusal", ask(gateway.url, "/v1/chat/completions", b"{}", KEYS["client"]))
            assert_clean("an odd path", ask(gateway.url, "/v1/nothing", b"{}", KEYS["gateway"]))
            host, _, port = gateway.url.removeprefix("http://").partition(":")
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(f"GET {PROMPT} {KEYS['client']} HTTP/9.9\r\n{MAIL}\r\n\r\n".encode())
                assert_clean("a refusal of no HTTP", raw.recv(65536))
            request = urllib.request.Request(
                gateway.url + "/metrics", headers={"authorization": f"Bearer {KEYS['gateway']}"}
            )
            with urllib.request.urlopen(request) as reply:
                metrics = reply.read()
            assert b"suffice_requests_total" in metrics
            assert_clean("the metrics", metrics)
            gateway.signal(signal.SIGKILL)
            gateway.process.wait(10)
    assert_clean("the terminal", gateway.stderr())
    kept = [path for path in tmp_path.iterdir() if path.is_file()]
    assert any(path.name.endswith("-wal") for path in kept), "killed: its write-ahead log must be there"
    for path in kept:
        assert_clean(path.name, path.read_bytes())
    assert sum(path.stat().st_size for path in kept) > 10_000
