"""Every variable, option, path and port in the compose file and beside it is one that Suffice has."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from suffice.cli.main import main
from suffice.gateway.app import ENDPOINTS
from suffice.settings import Settings, parse_settings
from suffice.settings.environment import override_settings
from tests.deploy.haproxy import Start
from tests.house.tree import ROOT

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


def test_haproxy_accepts_its_file(tmp_path: Path, haproxy: Start) -> None:
    text = (FOLDER / "haproxy.cfg").read_text(encoding="utf-8")
    (tmp_path / "haproxy.cfg").write_text(re.sub(r"gateway-\d:", "127.0.0.1:", text), encoding="utf-8")
    checking = haproxy("-c", "-f", str(tmp_path / "haproxy.cfg"), stderr=subprocess.PIPE)
    _, said = checking.communicate(timeout=30)
    assert checking.returncode == 0, said.decode()
    assert b"WARNING" not in said
