"""Attacks at the start: what must keep a gateway from starting, what it says then, and which port serves what."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice_testing import FakeUpstream
from tests.attacks.raw_http import port_of, statuses, talk
from tests.fake_models import EchoNonce
from tests.gateway_process import GatewayProcess


def refused(folder: Path, settings: str, *arguments: str, command: str = "serve") -> str:
    """What a command says that refuses to do what it should; no secret is among it, and nobody is made."""
    (folder / "suffice.toml").write_text(settings)
    done = CliRunner().invoke(main, [*command.split(), "--config", str(folder / "suffice.toml"), *arguments])
    assert done.exit_code == 2, done.output
    assert isinstance(done.exception, SystemExit), done.exception
    assert "sfc_" not in done.output
    assert not (folder / "log.people").exists()
    return done.output


def toml(folder: Path, more: str = "", upstream: str = "") -> str:
    store = f'[store]\nurl = "sqlite:///{folder}/log.db"\n'
    return f'{store}[upstreams.up]\nurl = "http://127.0.0.1:9"\n{upstream}\n{more}\n'


OPEN = ["0.0.0.0", "::", "", "::ffff:0.0.0.0", "0", "192.0.2.1", "no-such-name.invalid"]


@pytest.mark.parametrize("host", OPEN)
def test_an_open_gateway_does_not_start_where_others_reach_it(tmp_path: Path, host: str) -> None:
    report = refused(tmp_path, toml(tmp_path, f'[server]\nhost = "{host}"'))
    assert "server.host" in report
    assert "--insecure-open" in report
    assert "api_keys_env" in report
    by_option = refused(tmp_path, toml(tmp_path), "--host", host)
    assert "--insecure-open" in by_option


REFUSALS: dict[str, tuple[str, str, str]] = {
    "no key for the upstream": ("", 'api_key_env = "NO_SUCH_KEY"', "upstreams.up.api_key_env: the environment has no"),
    "no keys for clients": ('[server]\napi_keys_env = "NO_SUCH_KEYS"', "", "server.api_keys_env: the environ"),
    "no keys for labels": ('[server]\nfeedback_keys_env = "NO_SUCH_KEYS"', "", "server.feedback_keys_env: the environ"),
    "no webhook": ('[audit]\nwebhook_env = "NO_SUCH_HOOK"', "", "audit.webhook_env: the environment has no"),
    "no alerts": ('[alerts]\nwebhook_url_env = "NO_SUCH_HOOK"', "", "alerts.webhook_url_env: the environment has no"),
    "no signature": ('[feedback.langfuse]\nsecret_env = "NO_SUCH"', "", "feedback.langfuse.secret_env: the"),
    "others reach it": ('[server]\nhost = "0.0.0.0"', "", "server.host: '0.0.0.0'"),
    "a path of ours is relayed": ('[server]\nrelay = ["GET /healthz"]', "", "server.relay"),
    "one port for two": ("[console]\nport = 8400", "", "console.port"),
    "a host without a port": ('[console]\nhost = "127.0.0.1"', "", "console.host"),
    "a limit that is none": ("[server]\nhead_timeout_s = -1.0", "", "server.head_timeout_s"),
    "no connections": ("[server]\nmax_connections = 0", "", "server.max_connections"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_config_check_refuses_what_serve_refuses_and_no_secret_is_shown(tmp_path: Path, name: str) -> None:
    more, upstream, expected = REFUSALS[name]
    report = refused(tmp_path, toml(tmp_path, more, upstream))
    checked = refused(tmp_path, toml(tmp_path, more, upstream), command="config check")
    assert expected in report
    assert expected in checked


def test_config_check_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    settings = toml(tmp_path).replace(f"{tmp_path}/log.db", f"{tmp_path}/no/such/log.db")
    for command in ("serve", "config check"):
        assert "does not exist; create it first" in refused(tmp_path, settings, command=command)


@pytest.mark.parametrize("port", ["taken", "70000"])
def test_an_address_that_cannot_be_had_is_named_and_no_secret_is_shown(tmp_path: Path, port: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = str(taken.getsockname()[1]) if port == "taken" else port
        report = refused(tmp_path, toml(tmp_path), "--port", number)
    assert f"suffice serve: cannot listen on 127.0.0.1:{number}: " in report


def test_a_console_whose_port_is_taken_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        report = refused(tmp_path, toml(tmp_path, f"[console]\nport = {number}"), "--port", "0")
    assert f"cannot listen on 127.0.0.1:{number}: " in report


# --------------------------------------------------------------------------- the console's own port


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of a gateway and of its console."""
    with FakeUpstream.in_thread(EchoNonce(n_reasoning=2, n_answer=1)) as fake:
        yield from _apart(tmp_path_factory.mktemp("apart"), fake.url)


def _apart(folder: Path, upstream: str) -> Iterator[tuple[int, int]]:
    settings = {
        "upstreams": {"up": {"url": upstream}},
        "control": {"enabled": False},
        "console": {"port": 0, "host": "127.0.0.1"},
    }
    with GatewayProcess.serving(folder, settings) as process:
        result = re.search(rb"console on http://127.0.0.1:(\d+)/console", process.stderr())
        assert result is not None
        yield port_of(process.url), int(result[1])


def get(port: int, path: str, host: str | None = None, *headers: str) -> int:
    given = "".join(f"{one}\r\n" for one in (f"host: {host or f'127.0.0.1:{port}'}", "connection: close", *headers))
    return statuses(talk(port, f"GET {path} HTTP/1.1\r\n{given}\r\n".encode()))[0]


MAIN = ["/console", "/console/login", "/console/static/console.js", "/api/overview", "/api", "/api/openapi.json"]


@pytest.mark.parametrize("path", MAIN)
def test_where_the_console_has_a_port_of_its_own_the_gateways_has_none(apart: tuple[int, int], path: str) -> None:
    main, console = apart
    assert get(main, path) == 404
    assert get(main, path, f"127.0.0.1:{console}") == 404, "the port that it came in by counts, not the Host header"
    assert get(main, f"http://127.0.0.1:{console}{path}") == 404, "nor an absolute address"
    assert get(main, path, None, f"x-forwarded-port: {console}", f"forwarded: host=127.0.0.1:{console}") == 404


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/healthz", "/readyz", "/metrics", "/v1/responses/a"])
def test_the_consoles_port_serves_no_model(apart: tuple[int, int], path: str) -> None:
    assert get(apart[1], path) == 404
    assert get(apart[1], path, f"127.0.0.1:{apart[0]}") == 404


def test_the_consoles_port_has_the_console(apart: tuple[int, int]) -> None:
    assert get(apart[1], "/console/login") == 200
    assert get(apart[1], "/api/overview") == 401
    assert get(apart[0], "/healthz") == 200
