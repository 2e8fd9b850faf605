"""Processes of the benchmark: started, waited for, asked for their CPU time, ended by their own handle."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENTS = Path(os.environ.get("SUFFICE_BENCH_ENVS", ROOT / "build" / "bench-envs"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cpu_s(pid: int) -> float:
    """User and system time of all threads of a process, ended ones included. Seconds, to the nanosecond.

    Linux gives every process a CPU clock; its number is made from the process id (see clock_getcpuclockid(3)).
    /proc/PID/stat counts the same in steps of 10 ms, which is too coarse for one short stream.
    """
    if sys.platform == "linux":
        return time.clock_gettime((~pid << 3) | 2)
    done = subprocess.run(["ps", "-o", "cputime=", "-p", str(pid)], capture_output=True, text=True, check=True)
    parts = [float(part) for part in done.stdout.strip().replace("-", ":").split(":")]
    return sum(part * scale for part, scale in zip(reversed(parts), (1, 60, 3600, 86400), strict=False))


@contextlib.contextmanager
def process(
    command: Sequence[str | Path], log: Path, *, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """Run a command for the length of the block; its standard error goes into `log`."""
    with log.open("w", encoding="utf-8") as errors:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(env or {})},
        )
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait(10)
        if child.stdout is not None:
            child.stdout.close()


def wait_for_port(port: int, child: subprocess.Popen[str], log: Path, within_s: float = 30.0) -> None:
    """Return when something listens. Raises RuntimeError with the end of the log otherwise."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and child.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    said = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["nothing"]
    raise RuntimeError(f"did not listen within {within_s:g} s; its log says: {said[0][:200]}")


def environment(name: str) -> Path:
    """The Python of a peer's own environment, made when it is not there. Raises RuntimeError with a sentence."""
    ENVIRONMENTS.mkdir(parents=True, exist_ok=True)
    with (ENVIRONMENTS / f"{name}.lock").open("w") as lock:  # several workers of the tests ask for it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(name)


def _made(name: str) -> Path:
    pins = HERE / f"{name}.txt"
    folder = ENVIRONMENTS / name
    python = folder / "bin" / "python"
    mark = folder / ".pins"
    if mark.exists() and mark.read_bytes() == pins.read_bytes():
        return python
    print(f"{name}: making its environment in {folder}", file=sys.stderr)
    try:
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run(
            [
                python,
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                "--no-input",
                "--require-hashes",
                "--no-deps",
                "--only-binary",
                ":all:",
                "-r",
                pins,
            ],
            check=True,
            timeout=600,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()[-1:] or ["no reason given"]
        raise RuntimeError(f"could not be installed: {said[0][:160]}") from None
    mark.write_bytes(pins.read_bytes())
    return python
