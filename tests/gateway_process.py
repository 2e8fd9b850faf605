"""A gateway as its users run it: `suffice serve` in a process of its own, to be measured, signalled and killed.

It knows processes and files. It refuses to know requests: talk to `url` with any client.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

START_S = 60.0  # a busy machine takes its time to import
_ENTRY = "from suffice.cli.main import main; main()"


class GatewayProcess:
    """One running `suffice serve`. Make it with `GatewayProcess.serving`.

    >>> import tempfile, urllib.request
    >>> from suffice_testing import FakeUpstream
    >>> with tempfile.TemporaryDirectory() as folder, FakeUpstream.in_thread() as fake:
    ...     with GatewayProcess.serving(folder, {"upstreams": {"up": {"url": fake.url}}}) as gateway:
    ...         with urllib.request.urlopen(gateway.url + "/readyz") as reply:
    ...             print(reply.status, gateway.rss_bytes() > 0)
    ...     gateway.process.returncode
    200 True
    0

    folder    holds the settings, the log's file `log.db` and `stderr.txt`
    url       base address without /v1
    process   the running process
    """

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], environment: Mapping[str, str]) -> None:
        self.folder, self.process, self._environment = folder, process, environment
        self.url = ""
        self._was_told = False

    @classmethod
    @contextlib.contextmanager
    def serving(
        cls,
        folder: str | Path,
        settings: Mapping[str, Any],
        *,
        port: int = 0,
        log_level: str = "info",
        environment: Mapping[str, str] | None = None,
    ) -> Iterator[GatewayProcess]:
        """Start a gateway, wait until it is ready, and end it with SIGTERM; kill it when it does not end.

        settings     as in the settings file; `store.url` is set to `log.db` in the folder
        port         to listen on; 0: a free one
        environment  variables added to this process's own

        Raises RuntimeError, with what the process wrote, when it does not start.
        """
        place = Path(folder)
        raw = {**settings, "store": {"url": f"sqlite:///{place / 'log.db'}", **settings.get("store", {})}}
        (place / "suffice.toml").write_text(nested_toml(raw), encoding="utf-8")
        command = [sys.executable, "-c", _ENTRY, "serve", "--config", str(place / "suffice.toml")]
        command += ["--port", str(port), "--log-level", log_level]
        paths = os.pathsep.join(path for path in sys.path if path)
        variables = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
        with (place / "stderr.txt").open("ab") as log:
            at = log.tell()
            process = subprocess.Popen(command, stdout=log, stderr=log, env=variables)
        gateway = cls(place, process, variables)
        try:
            gateway.url = gateway._address(at)
            yield gateway
            gateway.end()
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _address(self, at: int) -> str:
        end_s = time.monotonic() + START_S
        while time.monotonic() < end_s and self.process.poll() is None:
            matched = re.search(rb"listening on (\S+)/v1", self.stderr()[at:])
            if matched:
                return matched[1].decode()
            time.sleep(0.02)
        raise RuntimeError(f"the gateway did not start: {self.stderr()[at:].decode(errors='replace')[-2000:]}")

    @property
    def database(self) -> Path:
        return self.folder / "log.db"

    def stderr(self) -> bytes:
        """What it wrote so far, to both outputs."""
        return (self.folder / "stderr.txt").read_bytes()

    @cached_property
    def admin_secret(self) -> str:
        """The first admin's secret, by the command that gives one: no log shows it."""
        command = [sys.executable, "-c", _ENTRY, "admin", "reset-secret", "--config", str(self.folder / "suffice.toml")]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=dict(self._environment))
        matched = re.search(r"sfc_[0-9a-f]{12}_[0-9a-f]{64}", done.stdout + done.stderr)
        assert matched is not None
        return matched[0]

    def signal(self, number: int = signal.SIGTERM) -> None:
        self._was_told = True
        self.process.send_signal(number)

    def end(self, within_s: float = 60.0) -> int:
        """Ask it to end, if nobody did, and wait; its exit status. Raises subprocess.TimeoutExpired.

        A second signal would mean "at once", and one that falls on a process behind its last line kills it.
        """
        if self.process.poll() is None and not self._was_told:
            self.signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def rss_bytes(self) -> int:
        """Resident memory now. Linux only."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        matched = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert matched is not None
        return int(matched[1]) * 1024

    def n_descriptors(self) -> int:
        """Open files and sockets now. Linux only."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())


def nested_toml(tables: Mapping[str, Any], path: str = "") -> str:
    """Nested mappings as TOML; scalars first, then the tables.

    >>> print(nested_toml({"a": 1, "b": {"c": ["x"], "d e": {"f": True}}}))
    "a" = 1
    ["b"]
    "c" = ["x"]
    ["b"."d e"]
    "f" = true
    """
    lines = [f"{json.dumps(k)} = {json.dumps(v)}" for k, v in tables.items() if not isinstance(v, Mapping)]
    for key, value in tables.items():
        if isinstance(value, Mapping):
            here = f"{path}.{json.dumps(key)}" if path else json.dumps(key)
            lines += [f"[{here}]", nested_toml(value, here)]
    return "\n".join(line for line in lines if line)
