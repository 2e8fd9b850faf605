"""A real Prometheus, where it is installed: its own process on loopback, asked over its API. Debian has both."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_S = 30.0


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where it is not installed."""
    result = os.environ.get(f"SUFFICE_{name.upper()}") or shutil.which(name)
    if result is None:
        pytest.skip(f"{name} is not installed (apt-get install {name}, or set SUFFICE_{name.upper()})")
    return result


@dataclass(frozen=True, slots=True)
class Prometheus:
    url: str

    def _get(self, path: str, **query: str) -> Any:
        requested = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(requested, timeout=30) as reply:
                return json.load(reply)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {json.load(error)['error']}") from None

    def series(self, query: str) -> list[dict[str, Any]]:
        result: list[dict[str, Any]] = self._get("query", query=query)["result"]
        return result

    def rules(self) -> list[dict[str, Any]]:
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as reply:
                return bool(reply.status == 200)
        return False


@contextlib.contextmanager
def scraping(folder: Path, targets: Mapping[str, str], rules: Path, *, key: str) -> Iterator[Prometheus]:
    """Scrape each target, an address by the name of its job, every half second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    jobs = [
        {"job_name": job, "authorization": {"credentials": key}, "static_configs": [{"targets": [address]}]}
        for job, address in targets.items()
    ]
    times = {"scrape_interval": "500ms", "evaluation_interval": "1s", "scrape_timeout": "400ms"}
    config = {"global": times, "rule_files": [str(rules)], "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    command = [program("prometheus"), f"--config.file={folder / 'prometheus.yml'}"]
    command += [f"--storage.tsdb.path={folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with (folder / "prometheus.log").open("wb") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log)
    made = Prometheus(f"http://127.0.0.1:{port}")
    try:
        end_s = time.monotonic() + START_S
        while not made.is_ready():
            report = (folder / "prometheus.log").read_text("utf-8")
            assert child.poll() is None, report[-2_000:]
            assert time.monotonic() < end_s, report[-2_000:]
            time.sleep(0.05)
        yield made
    finally:
        child.terminate()
        child.wait(20)
