"""The first hour as written: README's start and both tutorials, typed into an empty environment."""

from __future__ import annotations

import argparse
import contextlib
import getpass
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from tests.house.tree import ROOT, Block, blocks
from tests.replicas.postgres import PostgresServer, binaries

README, TUTORIALS = ROOT / "README.md", ROOT / "docs" / "tutorial"
PRETEND = ".venv/bin/python -m suffice_testing"  # README names it in a sentence
GOAL_S = 90.0  # from the end of the installation to the answer
LINE_S = 600.0  # for a line, which may install
PORTS = {"suffice_testing": 8080, "serve": 8400}  # of the commands that go on, by a word in them
REPLICAS = (8401, 8402, 8403)
POSTGRES = 5432


@dataclass
class Typist:
    """Types lines into a shell in one folder, each as it is written."""

    folder: Path
    python: str
    activated: bool = False
    variables: dict[str, str] = field(default_factory=dict)  # that the reader has, beside this process's own
    printed: str = ""  # by the last block
    deviations: list[str] = field(default_factory=list)
    installed_s: float = 0.0  # that installing took
    _begun_s: float = field(default_factory=time.monotonic)
    _open: ExitStack = field(default_factory=ExitStack)

    @property
    def environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("SUFFICE", "PYTHON", "VIRTUAL"))
        }
        kept |= self.variables
        if self.activated:
            kept["PATH"] = f"{self.folder / '.venv' / 'bin'}{os.pathsep}{kept['PATH']}"
        return kept | {"XDG_DATA_HOME": str(self.folder.parent / "data"), "PYTHON": self.python}

    def read(self, block: Block) -> None:
        """Type a block of commands; compare one of output with what the last commands printed."""
        if block.language == "text":
            printed = " ".join(self.printed.split())
            missing = [line for line in block.text.splitlines() if " ".join(line.split()) not in printed]
            self.deviations += [f"line {block.line}: not printed: {line.strip()}" for line in missing]
            if missing:
                print(self.printed, file=sys.stderr)
        elif block.language == "sh":
            self.type_block(block)

    def type_block(self, block: Block) -> None:
        self.printed = ""
        for line in block.text.splitlines():
            self.type(line)

    def type(self, written: str) -> None:
        line = written.partition("  #")[0].strip()
        if not line or line.startswith("#"):
            return
        if line == ". .venv/bin/activate":
            self.activated = True
            return
        began_s = time.monotonic()
        port = next((port for word, port in PORTS.items() if word in line.replace("-", " ").split()), None)
        if named := re.search(r"--port (\d+)", line):
            port = int(named[1])
        if port is None and not line.endswith("&"):
            done = self.run(["bash", "-c", line])
            print(f"  {time.monotonic() - began_s:6.1f} s  $ {line}", flush=True)
            if done is None:
                self.deviations.append(f"failed: {line}")
            self.printed += done or ""
        elif port is not None and is_listening(port):
            print(f"            $ {line}   (it listens already)", flush=True)
        else:
            line = line.removesuffix("&").strip()
            self._open.enter_context(going_on(line, port, self))
            print(f"  {time.monotonic() - began_s:6.1f} s  $ {line} &", flush=True)
        if "install" in line:
            self.installed_s += time.monotonic() - began_s

    def run(self, command: Sequence[str]) -> str | None:
        """Return what a command printed; None, and all that it said, if it failed."""
        done = subprocess.run(
            command,
            check=False,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LINE_S,
        )
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:], sep="\n", file=sys.stderr)
            return None
        return done.stdout

    def expect(self, command: Sequence[str], words: str) -> None:
        printed = self.run(command)
        if printed is None or words not in printed:
            self.deviations.append(f"{' '.join(command)}: {words!r} is missing in {printed!r}")

    def close(self) -> None:
        self._open.close()

    @property
    def waited_s(self) -> float:
        """Seconds since the first line, without those that installed."""
        return time.monotonic() - self._begun_s - self.installed_s


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def going_on(line: str, port: int | None, typist: Typist) -> Iterator[None]:
    """Run a command that goes on beside the others, and return when its port, if it has one, listens."""
    process = subprocess.Popen(
        ["bash", "-c", f"exec {line}"],
        cwd=typist.folder,
        env=typist.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until_s = time.monotonic() + LINE_S
        while port is not None and not is_listening(port):
            if process.poll() is not None or time.monotonic() > until_s:
                typist.deviations.append(f"nothing listens on port {port} after: {line}")
                break
            time.sleep(0.1)
        yield
        if process.poll() is not None:
            typist.deviations.append(f"ended by itself: {line}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def type_readme(typist: Typist) -> None:
    """Type everything from `make install` to the first answer of the client."""
    page = list(blocks(README))
    first = next(at for at, block in enumerate(page) if "make install" in block.text)
    client = next(at for at in range(first, len(page)) if page[at].language == "python")
    install, *rest = (line for block in page[first:client] for line in block.text.splitlines())
    typist.type(install)
    typist.type(PRETEND)
    for line in rest:
        typist.type(line)
    (typist.folder / "client.py").write_text(page[client].text, encoding="utf-8")
    typist.expect([".venv/bin/python", "client.py"], "'mode': 'observe'")
    print(f"  an answer {typist.waited_s:.1f} s after the installation")
    if typist.waited_s > GOAL_S:
        typist.deviations.append(f"the answer came after {typist.waited_s:.0f} s; the goal is {GOAL_S:.0f}")
    typist.expect([".venv/bin/suffice", "status", "--all"], "requests               11")


def type_tutorial(typist: Typist, *, demo: bool) -> None:
    typist.type("make install")
    program = ""
    for block in blocks(TUTORIALS / "first-steps.md"):
        if block.language == "python":
            program += block.text
            (typist.folder / "ask.py").write_text(program, encoding="utf-8")
            if typist.run(["python", "ask.py"]) is None:
                typist.deviations.append(f"failed: python ask.py, line {block.line}")
        elif demo or "make demo" not in block.text:
            typist.read(block)


def type_replicas(typist: Typist) -> None:
    """Type the second tutorial as the owner of a PostgreSQL whose authentication is that of its packages."""
    files = {"toml": "suffice.toml", "python": "traffic.py"}
    with PostgresServer(port=POSTGRES, owner=getpass.getuser(), host_auth="scram-sha-256") as server:
        path = os.pathsep.join((os.environ["PATH"], str(binaries())))
        typist.variables = {"PGHOST": str(server.folder), "PATH": path}
        for block in blocks(TUTORIALS / "three-replicas.md"):
            if block.language in files:
                (typist.folder / files[block.language]).write_text(block.text, encoding="utf-8")
            typist.read(block)
        typist.close()


PAGES = ("README", "tutorial", "replicas")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pythons", nargs="+", default=["python3.11", "python3.13"])
    parser.add_argument("--pages", nargs="+", default=PAGES, choices=PAGES)
    parser.add_argument("--demo", action="store_true", help="type the tutorial's make demo as well (2 to 6 minutes)")
    options, failed = parser.parse_args(), False
    busy = [port for port in (*PORTS.values(), *REPLICAS, POSTGRES) if is_listening(port)]
    if busy:
        print(f"ports {busy} are in use here; the pages name them", file=sys.stderr)
        return 2
    types: dict[str, Callable[[Typist], None]] = {
        "README": type_readme,
        "tutorial": partial(type_tutorial, demo=options.demo),
        "replicas": type_replicas,
    }
    for python in options.pythons:
        for page in options.pages:
            print(f"{page}, {python}", flush=True)
            with tempfile.TemporaryDirectory() as scratch:
                clone = Path(scratch) / "suffice"
                subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
                typist = Typist(clone, python)
                try:
                    types[page](typist)
                finally:
                    typist.close()
            for deviation in typist.deviations:
                print(f"  deviation: {deviation}")
            print(f"  {len(typist.deviations)} deviations")
            failed |= bool(typist.deviations)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
