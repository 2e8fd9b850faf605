"""Gateways and workers on one log, each a process of its own that a supervisor starts again, as an init system would.

It knows processes. It refuses to know requests.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from tests.gateway_process import nested_toml
from tests.replicas.postgres import PostgresServer, free_port

ENTRY = """
import asyncio, pathlib, threading, time
shift_s, count_s, real = {shift_s}, {count_tasks_s}, time.time
if shift_s:
    time.time = lambda: real() + shift_s
loops = []
class Runner(asyncio.Runner):
    def run(self, *args, **settings):
        loops.append(self.get_loop())
        return super().run(*args, **settings)
def count():
    while True:
        time.sleep(count_s)
        n = sum(len(asyncio.all_tasks(loop)) for loop in loops)
        pathlib.Path({tasks_file!r}).write_text(str(n))
if count_s:
    asyncio.Runner = asyncio.runners.Runner = Runner
    threading.Thread(target=count, daemon=True).start()
{prelude}
from suffice.cli.main import main
main()
"""
RESTART_S = 0.3  # between a death and the next start
START_S = 90.0
SECRET = "one secret for all replicas"


def environment(source: Path | None = None) -> dict[str, str]:
    """Return the environment of a program of a cluster. source: the tree that it is imported from; None: this one."""
    own = [] if source is None else [str(source)]
    paths = os.pathsep.join([*own, *(path for path in sys.path if path)])
    return {**os.environ, "PYTHONPATH": paths, "SUFFICE_SALT": SECRET}


class Process(Protocol):
    def kill(self) -> None: ...

    def start(self) -> None: ...

    @property
    def is_dead(self) -> bool: ...


@dataclass
class Member:
    """One `suffice` process. `deaths` are times, monotonic, of this member's ends by SIGKILL.

    count_tasks_s  how often it writes its number of asyncio tasks to `tasks_file`; 0: never
    prelude        Python that it runs first
    source         the tree that it is imported from; None: this one
    """

    name: str
    arguments: tuple[str, ...]
    folder: Path
    url: str = ""  # of a gateway
    shift_s: float = 0.0  # its clock, ahead of ours
    count_tasks_s: float = 0.0
    prelude: str = ""
    source: Path | None = None
    n_starts: int = 0
    process: subprocess.Popen[bytes] | None = None
    deaths: list[float] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.txt"

    @property
    def tasks_file(self) -> Path:
        return self.folder / f"{self.name}.tasks"

    @property
    def is_dead(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def start(self) -> None:
        entry = ENTRY.format(
            shift_s=self.shift_s,
            count_tasks_s=self.count_tasks_s,
            tasks_file=str(self.tasks_file),
            prelude=self.prelude,
        )
        command = [sys.executable, "-c", entry, *self.arguments]
        self.n_starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(self.source))

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.deaths.append(time.monotonic())

    def end(self, within_s: float = 60.0) -> int:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(within_s)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False


class Cluster:
    """`with Cluster(folder, settings, n_gateways=4, n_workers=2, server=PostgresServer()) as cluster:`.

    settings  of every gateway; `store.url`, `server.port` and the files of each replica are set here
    server    the database that is supervised too; None: a SQLite file in the folder
    shift_s   how far the clock of the last gateway is ahead

    Logs of members that died by themselves are copied to `kept_logs`, which outlives the folder.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        n_gateways: int,
        n_workers: int,
        server: PostgresServer | None = None,
        shift_s: float = 0.0,
        count_tasks_s: float = 0.0,
    ) -> None:
        self.folder, self.server = folder, server
        self.store_url = f"sqlite:///{folder / 'log.db'}" if server is None else server.url
        self.gateways = [self._gateway(n, settings) for n in range(n_gateways)]
        self.gateways[-1].shift_s = shift_s
        self.workers = [
            Member(f"worker{n}", ("worker", "--config", str(folder / "g0.toml")), folder) for n in range(n_workers)
        ]
        for member in self.members:
            member.count_tasks_s = count_tasks_s
        self.database_deaths: list[tuple[float, float]] = []  # from, to: when it could be reached again
        self.died = set[str]()  # members whose process ended by itself
        self.kept_logs = folder.parent / f"{folder.name}-logs"
        self._stays_down = set[str]()
        self._is_over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    def _gateway(self, n: int, settings: Mapping[str, Any]) -> Member:
        port, name = free_port(), f"g{n}"
        own = {"port": port, "replica": name, "kill_file": str(self.folder / f"{name}.kill")}
        store = {"url": self.store_url, "last_good_file": str(self.folder / f"{name}.good")}
        raw = {
            **settings,
            "server": {**settings.get("server", {}), **own},
            "store": {**settings.get("store", {}), **store},
            "control": {"enabled": False, "period_s": 0.5, **settings.get("control", {})},
        }
        file = self.folder / f"{name}.toml"
        file.write_text(nested_toml(raw), encoding="utf-8")
        arguments = ("serve", "--config", str(file), "--log-level", "warning", "--no-access-log")
        return Member(name, arguments, self.folder, url=f"http://127.0.0.1:{port}")

    @property
    def members(self) -> list[Member]:
        return [*self.gateways, *self.workers]

    def config(self, n: int = 0) -> str:
        return str(self.folder / f"g{n}.toml")

    def __enter__(self) -> Self:
        try:
            self.gateways[0].start()  # makes the log
            self.wait_ready(self.gateways[:1])
            for gateway in self.gateways[1:]:
                gateway.start()
            self.wait_ready()  # a worker refuses a log that is still to be migrated
            for worker in self.workers:
                worker.start()
        except BaseException:
            self._stop()
            raise
        self._supervisor.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._supervisor.join()
        self._stop()

    def _stop(self) -> None:
        running = [member for member in self.members if not member.is_dead]
        for member in running:
            assert member.process is not None
            member.process.terminate()
        for member in running:
            assert member.process is not None
            try:
                member.process.wait(30)
            except subprocess.TimeoutExpired:
                member.kill()
        for name in sorted(self.died):
            self.kept_logs.mkdir(exist_ok=True)
            kept = shutil.copy(self.folder / f"{name}.txt", self.kept_logs)
            print(f"{name} died by itself; its log: {kept}", file=sys.stderr)

    def wait_ready(self, gateways: list[Member] | None = None) -> None:
        end_s = time.monotonic() + START_S
        for gateway in self.gateways if gateways is None else gateways:
            while not gateway.is_ready():
                is_hopeless = gateway.is_dead and not self._supervisor.is_alive()
                if is_hopeless or time.monotonic() > end_s:
                    self.died |= {gateway.name} if gateway.is_dead else set()
                    raise RuntimeError(f"{gateway.name} is not ready: {gateway.log.read_text()[-3000:]}")
                time.sleep(0.1)

    def wait_for_half(self) -> None:
        """Wait until at least half of the gateways are ready."""
        end_s = time.monotonic() + START_S
        while 2 * sum(one.is_ready() for one in self.gateways) < len(self.gateways) and time.monotonic() < end_s:
            time.sleep(0.2)

    def _supervise(self) -> None:
        while not self._is_over.wait(0.05):
            for member in self.members:
                if member.is_dead and member.name not in self._stays_down and not self._is_over.wait(RESTART_S):
                    if member.process is not None and member.process.returncode != -signal.SIGKILL:
                        self.died.add(member.name)
                    member.start()
            server = self.server
            if server is not None and server.is_dead and "database" not in self._stays_down:
                time.sleep(RESTART_S)
                server.start()

    def kill_one(self, rng: random.Random) -> str:
        """Kill a process with SIGKILL, each with the same chance; return its name."""
        names = [*(one.name for one in self.members), *([] if self.server is None else ["database"])]
        name = rng.choice(names)
        if name == "database":
            assert self.server is not None
            self.kill_database()
        else:
            member = next(one for one in self.members if one.name == name)
            if not member.is_dead:
                member.kill()
        return name

    def kill_database(self) -> None:
        assert self.server is not None
        from_s = time.monotonic()
        if not self.server.is_dead:
            self.server.kill()
        self.server.wait_ready()
        self.database_deaths.append((from_s, time.monotonic()))

    def hold_down(self, name: str) -> None:
        """Keep a process from being started again."""
        self._stays_down.add(name)

    def let_up(self, name: str) -> None:
        self._stays_down.discard(name)
