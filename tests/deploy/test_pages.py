"""What the deployment pages tell people to type: secrets cover what is asked for, names and values are accepted."""

from __future__ import annotations

import re
import shlex
import shutil
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from suffice.cli.main import main
from suffice.settings import parse_settings
from tests.deploy.chart import VALUES, rendered
from tests.deploy.shell import run_block, shell_blocks
from tests.deploy.test_compose import COMPOSE, SERVICES
from tests.house.tree import ROOT, blocks

PAGES = ("deploy-compose.md", "deploy-kubernetes.md", "deploy-systemd.md", "back-up.md", "upgrade.md", "release.md")
HOW_TO = ROOT / "docs" / "how-to"


def test_the_secrets_of_the_compose_page_are_all_that_the_file_asks_for(tmp_path: Path) -> None:
    (make, *_) = shell_blocks("deploy-compose.md")
    shutil.copytree(ROOT / "deploy" / "compose", tmp_path / "deploy" / "compose")
    run_block(make, tmp_path)
    folder = tmp_path / "deploy" / "compose"
    given = dict(line.split("=", 1) for line in (folder / ".env").read_text(encoding="utf-8").splitlines())
    text = (folder / "compose.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+):\?", text)) <= set(given)
    assert set(given) <= set(re.findall(r"\$\{(\w+):", text))
    assert all(len(given[name]) >= 24 for name in given if name != "UPSTREAM_URL")
    assert given["SUFFICE_METRICS_KEY"] == (folder / "secrets" / "metrics_key").read_text(encoding="utf-8").strip()
    for secret in COMPOSE["secrets"].values():
        assert (folder / secret["file"]).stat().st_size >= 48
    assert (folder / ".env").stat().st_mode & 0o077 == 0


def test_services_and_commands_on_the_compose_page_exist() -> None:
    lines = [line for text in shell_blocks("deploy-compose.md") for line in text.splitlines()]
    commands = [shlex.split(line) for line in lines if line.startswith("docker compose")]
    assert len(commands) >= 6
    for words in commands:
        rest = [word for word in words[3:] if not word.startswith("--")]
        if words[2] == "exec":
            service, program, name, *_ = rest
            assert program == "suffice"
            assert main.get_command(click.Context(main), name) is not None
            assert service in SERVICES
        elif words[2] == "up":
            assert set(rest) <= set(SERVICES)


def test_the_kubernetes_page_makes_the_secrets_that_the_chart_reads() -> None:
    text = "\n".join(shell_blocks("deploy-kubernetes.md"))
    made = dict(re.findall(r"kubectl create secret generic (\S+)((?:.*\\\n)*.*)", text))
    assert set(made) == {VALUES["secretName"], VALUES["database"]["passwordSecret"]["name"]}
    names = set(re.findall(r"--from-literal=(\w+)=", made[VALUES["secretName"]]))
    assert {VALUES["config"]["server"]["api_keys_env"], VALUES["serviceMonitor"]["keySecret"]["key"]} <= names
    assert "SUFFICE_SALT" in names
    database = made[VALUES["database"]["passwordSecret"]["name"]]
    assert f"--from-literal={VALUES['database']['passwordSecret']['key']}=" in database


def test_the_values_of_the_kubernetes_page_are_accepted() -> None:
    values = next(block.text for block in blocks(HOW_TO / "deploy-kubernetes.md") if block.language == "yaml")
    objects = rendered(yaml.safe_load(values))
    settings = parse_settings(yaml.safe_load(objects["ConfigMap", "x"]["data"]["suffice.yaml"]))
    assert settings.store.sslmode == "require"
    assert settings.keys["metrics"].scopes == ("read",)
    assert settings.server.api_keys_env, "the chart's own settings stay"
    (endpoint,) = objects["ServiceMonitor", "x"]["spec"]["endpoints"]
    assert endpoint["authorization"]["credentials"]["key"] == settings.keys["metrics"].key_env


def test_files_of_the_systemd_page_exist_and_its_settings_need_what_it_makes() -> None:
    text = "\n".join(shell_blocks("deploy-systemd.md"))
    for name in re.findall(r"(?:^|\s)(deploy/\S+)", text):
        assert (ROOT / name).exists(), name
    unit = (ROOT / "deploy" / "systemd" / "suffice.service").read_text(encoding="utf-8")
    assert "/etc/suffice/environment" in text
    assert "EnvironmentFile=-/etc/suffice/environment" in unit
    (settings_text,) = [block.text for block in blocks(HOW_TO / "deploy-systemd.md") if block.language == "toml"]
    settings = parse_settings(tomllib.loads(settings_text))
    assert f"{settings.server.api_keys_env}=" in text


@pytest.mark.parametrize("page", PAGES)
def test_options_of_our_commands_exist(page: str) -> None:
    n_commands = 0
    for text in shell_blocks(page):
        for line in text.replace("\\\n", " ").splitlines():
            called = re.search(r"(?:^|exec [\w-]+ |-- |bin/)suffice ([a-z].*)", line)
            words = called[1].split() if called else []
            if not words:
                continue
            command: click.Command | None = main.get_command(click.Context(main), words[0])
            assert command is not None, line
            if isinstance(command, click.Group):
                command = command.get_command(click.Context(command), words[1])
                assert command is not None, line
            known = {option for one in command.params for option in one.opts}
            assert {word for word in words if word.startswith("--")} <= known, line
            n_commands += 1
    assert n_commands or page in {"release.md", "upgrade.md", "deploy-systemd.md"}
