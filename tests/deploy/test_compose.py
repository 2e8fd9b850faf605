"""Every variable, option, path and port in the compose file and beside it is one that Suffice has."""

from __future__ import annotations

import contextlib
import re
import socketserver
import ssl
import subprocess
import threading
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socket import inet_aton
from typing import Any, Self

import click
import pytest
import yaml

from suffice.cli.main import main
from suffice.gateway.app import ENDPOINTS
from suffice.settings import Settings, parse_settings
from suffice.settings.environment import override_settings
from tests.deploy.haproxy import Start
from tests.house.tree import ROOT
from tests.replicas.postgres import free_port

FOLDER = ROOT / "deploy" / "compose"
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, one in SERVICES.items() if one["image"].startswith("suffice:")]
PATHS = {endpoint.path for endpoint in ENDPOINTS}


def with_defaults(value: str) -> str:
    """A value as compose gives it where the variables that it names are unset, or "given" where it insists on one."""
    return re.sub(r"\$\{\w+:([-?])([^}]*)\}", lambda m: m[2] if m[1] == "-" else "given", value)


def settings_of(service: str) -> Settings:
    raw = tomllib.loads((FOLDER / "settings" / "suffice.toml").read_text(encoding="utf-8"))
    environ = {name: with_defaults(str(value)) for name, value in SERVICES[service]["environment"].items()}
    return parse_settings(override_settings(raw, environ)[0])


def test_the_services_are_there() -> None:
    assert OURS == ["gateway-1", "gateway-2", "worker"]
    assert set(SERVICES) == {*OURS, "proxy", "postgres", "prometheus", "grafana"}


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_nothing_is_privileged(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:v?\d+\.\d+(\.\d+)?(-[a-z]+)?", service["image"])
    assert not service.get("privileged")
    assert service.get("network_mode") is None
    for published in service.get("ports", ()):
        assert published.startswith("127.0.0.1:"), "what is published without TLS stays on this machine"
    for volume in service.get("volumes", ()):
        source, _, _ = volume.partition(":")
        assert source in COMPOSE["volumes"] or (FOLDER / source).exists(), volume
        assert source in COMPOSE["volumes"] or volume.endswith(":ro"), volume


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_read_only_without_rights_and_with_a_place_of_their_own(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["user"] == "10001:10001"
    data = [volume for volume in service["volumes"] if volume.endswith(":/var/lib/suffice")]
    assert len(data) == 1
    assert not [one for other in OURS if other != name for one in SERVICES[other]["volumes"] if one in data]


@pytest.mark.parametrize("name", OURS)
def test_our_settings_are_accepted(name: str) -> None:
    settings = settings_of(name)
    assert not settings.control.enabled
    assert settings.server.replica == ("" if name == "worker" else name)
    named = {settings.server.api_keys_env, *(key.key_env for key in settings.keys.values())}
    named |= {upstream.api_key_env for upstream in settings.upstreams.values()}
    assert named <= set(SERVICES[name]["environment"])
    assert int(re.findall(r"\d+", SERVICES[name]["stop_grace_period"])[0]) > settings.server.grace_s
    command = main.get_command(click.Context(main), (SERVICES[name].get("command") or ["serve"])[0])
    assert command is not None


def test_the_proxy_asks_what_the_gateway_answers_and_waits_as_long() -> None:
    text = (FOLDER / "haproxy.cfg").read_text(encoding="utf-8")
    assert set(re.findall(r"httpchk GET (\S+)", text)) == {"/readyz"}
    assert set(re.findall(r"server \S+ (\S+):8400", text)) == {"gateway-1", "gateway-2"}
    assert "/readyz" in PATHS
    settings = settings_of("gateway-1")
    assert settings.server.port == 8400
    stop_s = int(re.findall(r"hard-stop-after (\d+)s", text)[0])
    assert settings.server.grace_s < stop_s < int(SERVICES["proxy"]["stop_grace_period"].removesuffix("s"))


def test_prometheus_scrapes_every_gateway_with_a_key_that_asks_no_model() -> None:
    scraped = yaml.safe_load((FOLDER / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"][0]
    assert scraped["metrics_path"] in PATHS
    assert scraped["static_configs"][0]["targets"] == ["gateway-1:8400", "gateway-2:8400"]
    assert scraped["authorization"]["credentials_file"] == "/run/secrets/metrics_key"
    assert settings_of("gateway-1").keys["metrics"].scopes == ("read",)


def test_every_secret_is_a_file_that_is_not_in_the_repository() -> None:
    for name, secret in COMPOSE["secrets"].items():
        assert secret["file"] == f"./secrets/{name}"
        ignored = subprocess.run(["git", "check-ignore", "-q", f"deploy/compose/secrets/{name}"], cwd=ROOT, check=False)
        assert ignored.returncode in {0, 128}  # 128: not a clone


# --------------------------------------------------------------------------- the proxy, at work


def test_haproxy_accepts_its_file(haproxy: Start) -> None:
    checking = haproxy("-c", "-f", str(FOLDER / "haproxy.cfg"), stderr=subprocess.PIPE)
    _, answer = checking.communicate(timeout=30)
    assert checking.returncode == 0, answer.decode()
    assert b"WARNING" not in answer


class Answering(ThreadingHTTPServer):
    """Stands for a gateway: answers everything with its name and with how the client is said to have come."""

    def __init__(self, name: str, address: str, port: int = 0) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = f"{name} {self.headers.get('x-forwarded-proto')}".encode()
                self.send_response(200)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        super().__init__((address, port), Handler)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Names(socketserver.UDPServer):
    """Docker's name server: every name has the one address, or none."""

    address: str | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def finish_request(self, request: Any, client: Any) -> None:
        packet, socket = request
        name_end = packet.index(b"\0", 12) + 1
        question = packet[12 : name_end + 4]
        is_known = self.address is not None and packet[name_end : name_end + 2] == b"\0\1"
        flags = b"\x81\x80" if is_known else b"\x81\x83"  # an answer, or no such name
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + inet_aton(self.address or "0") if is_known else b""
        counts = b"\0\1" + (b"\0\1" if is_known else b"\0\0") + b"\0\0\0\0"
        socket.sendto(packet[:2] + flags + counts + question + answer, client)


def until(url: str, answer: str, context: ssl.SSLContext | None = None) -> None:
    end_s = time.monotonic() + 60
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10, context=context) as reply:
            if reply.read().decode() == answer:
                return
        time.sleep(0.05)
    raise AssertionError(f"{url} did not answer {answer!r}")


@contextlib.contextmanager
def running(haproxy: Start, folder: Path, names: Names, port: int, **variables: str) -> Iterator[tuple[int, int]]:
    """The proxy before gateways on `port`; its own two ports. It begins while no gateway has an address."""
    plain, tls = free_port(), free_port()
    text = (FOLDER / "haproxy.cfg").read_text(encoding="utf-8")
    text = text.replace("127.0.0.11:53", f"127.0.0.1:{names.server_address[1]}")
    text = text.replace("bind :8400", f"bind 127.0.0.1:{plain}").replace("bind :8443", f"bind 127.0.0.1:{tls}")
    (folder / "haproxy.cfg").write_text(re.sub(r"(gateway-\d):8400", rf"\1:{port}", text), encoding="utf-8")
    process = haproxy("-db", "-f", str(folder / "haproxy.cfg"), variables=variables, stderr=subprocess.DEVNULL)
    try:
        yield plain, tls
    finally:
        process.kill()
        process.wait()


def test_the_proxy_may_start_first_and_follows_a_gateway_to_another_address(tmp_path: Path, haproxy: Start) -> None:
    with Answering("old", "127.0.0.1") as old, Names(("127.0.0.1", 0), socketserver.BaseRequestHandler) as names:
        port = int(old.server_address[1])
        with running(haproxy, tmp_path, names, port) as (plain, _):
            url = f"http://127.0.0.1:{plain}/v1/models"
            names.address = "127.0.0.1"
            until(url, "old http")
            with Answering("new", "127.0.0.2", port):
                names.address = "127.0.0.2"
                until(url, "new http")


def test_with_a_certificate_the_proxy_answers_https_too(tmp_path: Path, haproxy: Start) -> None:
    text = (FOLDER / "compose.tls.yaml").read_text(encoding="utf-8")
    added = yaml.safe_load(text)
    (variable,) = added["services"]["proxy"]["environment"]
    assert f'"${{{variable}}}"' in (FOLDER / "haproxy.cfg").read_text(encoding="utf-8")
    assert added["services"]["proxy"]["environment"][variable] == f"/run/secrets/{next(iter(added['secrets']))}"
    chain, key, pem = (tmp_path / name for name in ("chain", "key", "tls.pem"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(chain)]
    subprocess.run(command, check=True, capture_output=True)
    pem.write_bytes(chain.read_bytes() + key.read_bytes())
    context = ssl.create_default_context(cafile=str(chain))
    with Answering("one", "127.0.0.1") as one, Names(("127.0.0.1", 0), socketserver.BaseRequestHandler) as names:
        names.address, port = "127.0.0.1", int(one.server_address[1])
        with running(haproxy, tmp_path, names, port, **{variable: str(pem)}) as (plain, tls):
            until(f"https://localhost:{tls}/v1/models", "one https", context)
            until(f"https://localhost:{tls}/console", "one https", context)
            until(f"http://127.0.0.1:{plain}/v1/models", "one http")
