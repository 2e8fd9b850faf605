"""Serves a model file with llama.cpp's HTTP server, in a child process that ends with its parent."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import select
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Self

from suffice_demo.local import LocalModelError

TEMPLATES = Path(__file__).parent / "templates"
READY_MARK = "listening "
_LOG_TAIL_LINES = 4
_HTTP_THREADS_A_SLOT = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec:
    model_path: Path
    template: str | None = None  # file in templates/ without ".jinja"; None: the model's own
    alias: str = "local"  # the model's name in the API
    n_parallel: int = 4  # slots: concurrent requests
    ctx_tokens_per_slot: int = 2048  # prompt and answer together
    port: int = 0  # 0: any free port
    idle_cache_mib: int = 8192  # most memory for prompts that no slot holds any more; 0: none
    n_threads: int = 1  # one too many is far slower than one too few, because threads wait for each other


def template_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))


def check_spec(spec: ServerSpec) -> None:
    """Raise LocalModelError for a spec that cannot be served."""
    where = f"local server: {spec.model_path}"
    try:
        with spec.model_path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise LocalModelError(f"{where}: cannot be read ({error.strerror}); need a GGUF file") from None
    if magic != b"GGUF":
        raise LocalModelError(f"{where}: is not a GGUF file; it begins with {magic!r}, allowed: b'GGUF'")
    if spec.template is not None and spec.template not in template_names():
        known = ", ".join(template_names())
        raise LocalModelError(f"local server: unknown template {spec.template!r}; known: {known}")
    for field in ("n_parallel", "ctx_tokens_per_slot", "n_threads"):
        if getattr(spec, field) < 1:
            raise LocalModelError(f"local server: {field}: got {getattr(spec, field)}; at least 1")
    if importlib.util.find_spec("xllamacpp") is None:
        raise LocalModelError("local server: the package xllamacpp is not installed: pip install xllamacpp")


class LocalServer:
    """A model server for a `with` block, which begins when the server is healthy.

    Raise LocalModelError with the end of the server's log if that takes longer than `start_timeout_s`.
    """

    def __init__(self, spec: ServerSpec, *, log_path: Path | None = None, start_timeout_s: float = 120.0) -> None:
        check_spec(spec)
        self.spec = spec
        self.log_path = log_path or Path(tempfile.mkdtemp(prefix="suffice-")) / f"{spec.alias}.log"
        self.start_timeout_s = start_timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._url = ""

    @property
    def url(self) -> str:
        """The base address, without /v1. Raise LocalModelError if the server is not running."""
        self._running()
        return self._url

    @property
    def pid(self) -> int:
        """Raise LocalModelError if the server is not running."""
        return self._running().pid

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            raise LocalModelError("local server: it is not running; use it in a `with` block")
        return self._child

    def is_alive(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def __enter__(self) -> Self:
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + self.start_timeout_s
        with self.log_path.open("wb") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", "suffice_demo.local.server", json.dumps(asdict(self.spec), default=str)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=child_environment(os.environ),
                start_new_session=True,  # Ctrl-C must end the parent first
            )
        try:
            assert self._child.stdout is not None
            line = _read_line(self._child.stdout, deadline)
            if not line.startswith(READY_MARK):
                raise self._failure("did not start")
            self._url = line.removeprefix(READY_MARK).strip()
            self._wait_for_health(deadline)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self, *, grace_s: float = 5.0) -> None:
        """End the child: close its input, then terminate, then kill. Idempotent."""
        child, self._child, self._url = self._child, None, ""
        if child is None:
            return
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # the child may have closed its end first
                    pipe.close()
        for ask in (None, child.terminate, child.kill):
            if ask is not None:
                ask()
            try:
                child.wait(timeout=grace_s)
                return
            except subprocess.TimeoutExpired:
                continue

    def _wait_for_health(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            if not self.is_alive():
                raise self._failure("ended while it loaded the model")
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=2.0) as reply:
                    if reply.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass  # 503 while loading, or not listening yet
            time.sleep(0.05)
        raise self._failure("was not healthy in time")

    def _failure(self, what: str) -> LocalModelError:
        code = self._child.poll() if self._child is not None else None
        ended = "" if code is None else f", exit code {code}"
        tail = self.log_path.read_text("utf-8", "replace").splitlines()[-_LOG_TAIL_LINES:]
        text = " | ".join(line.strip() for line in tail if line.strip()) or "nothing"
        return LocalModelError(
            f"local server: {self.spec.model_path.name} {what} (limit {self.start_timeout_s:g} s{ended}); "
            f"its log {self.log_path} says: {text}"
        )


def _read_line(pipe: IO[bytes], deadline: float) -> str:
    collected = b""
    while not collected.endswith(b"\n"):
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
            return ""
        byte = os.read(pipe.fileno(), 1)
        if not byte:
            return ""
        collected += byte
    return collected.decode()


def child_environment(environment: os._Environ[str] | dict[str, str]) -> dict[str, str]:
    """Make compute threads sleep while they wait: spinning ones slowed decoding from 140 to 1 token per second."""
    return {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", **environment}


def predicted_tokens(upstream: str) -> int | None:
    """Return the server's count of generated tokens, or None if it does not report it."""
    try:
        with urllib.request.urlopen(f"{upstream}/metrics", timeout=5) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith("llamacpp:tokens_predicted_total "):
                    return int(float(line.split()[1]))
    except OSError:
        return None
    return None


def main() -> int:
    """Serve the `ServerSpec` given as JSON in the only argument, until the standard input closes."""
    spec = ServerSpec(**json.loads(sys.argv[1]))
    # Native code may write to descriptor 1, so the address gets a descriptor of its own.
    address_pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    import xllamacpp  # optional, and slow to load

    try:
        server = xllamacpp.Server(_parameters(xllamacpp, spec))
    except RuntimeError as error:
        print(f"{spec.model_path}: {error}", file=sys.stderr)
        return 1
    address_pipe.write(f"{READY_MARK}{server.listening_address}\n")
    address_pipe.flush()
    sys.stdin.buffer.read()
    # An orderly shutdown could wait long for native threads.
    os._exit(0)


def _parameters(xllamacpp: object, spec: ServerSpec) -> object:
    parameters = xllamacpp.CommonParams()  # type: ignore[attr-defined]
    parameters.model.path = str(spec.model_path)
    parameters.model_alias = {spec.alias}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = spec.port
    parameters.n_parallel = spec.n_parallel
    # Each open stream, even a waiting one, holds a thread; the call that ends a thought needs one more.
    parameters.n_threads_http = _HTTP_THREADS_A_SLOT * spec.n_parallel
    parameters.cache_ram_mib = spec.idle_cache_mib
    parameters.n_ctx = spec.ctx_tokens_per_slot * spec.n_parallel
    parameters.cpuparams.n_threads = spec.n_threads
    parameters.cpuparams_batch.n_threads = spec.n_threads
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    parameters.ui = False
    parameters.cors_origins = "http://127.0.0.1"  # the default allows any web page
    parameters.verbosity = 2
    parameters.use_jinja = True
    if spec.template:
        parameters.chat_template = (TEMPLATES / f"{spec.template}.jinja").read_text("utf-8")
    return parameters


if __name__ == "__main__":
    sys.exit(main())
