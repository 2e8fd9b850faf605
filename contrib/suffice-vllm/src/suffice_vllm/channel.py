"""One line of JSON each way over a Unix socket: from the API server to every worker on this machine."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import socket
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from suffice_vllm.runs import RunTable

FOLDER_VARIABLE = "SUFFICE_VLLM_FOLDER"  # of the sockets; the same for the API server and its workers
TIMEOUT_S = 1.0
MOST_S = 60.0  # that a caller may wait instead
LINE_BYTES = 64 * 1024


def socket_folder() -> Path:
    """Return the folder of the sockets, which only this user can enter. Raise PermissionError for anybody else's."""
    given = os.environ.get(FOLDER_VARIABLE)
    folder = Path(given) if given else Path(tempfile.gettempdir()) / f"suffice-vllm-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder}: must belong to this user and be closed to others (mode 700)")
    return folder


def respond(table: RunTable, line: bytes) -> dict[str, Any]:
    try:
        asked = json.loads(line)
        name, action = str(asked["id"]), asked["action"]
    except (ValueError, KeyError, TypeError):
        return {"success": False, "message": "not a request of this channel"}
    if action == "reasoning_end":
        # Its caller has given up by then and finishes the run in another way.
        is_late = time.monotonic() > float(asked.get("until") or float("inf"))
        return {"success": not is_late and table.end(name)}
    if action == "signals":
        readings = table.readings(name, int(asked.get("after") or 0))
        rows = None if readings is None else [[one.n_tokens, one.end_margin, one.logprob] for one in readings]
        return {"success": rows is not None, "signals": rows or []}
    return {"success": False, "message": f"unknown action {str(action)[:40]!r}"}


class Listener:
    """Answers for one worker, in a thread that sleeps until it is asked."""

    def __init__(self, table: RunTable, folder: Path | None = None) -> None:
        self._table = table
        self.path = (folder or socket_folder()) / f"{os.getpid()}-{id(self):x}.sock"
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(self.path))
        self._server.listen(16)
        atexit.register(self.close)
        threading.Thread(target=self._serve, name="suffice-vllm", daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return  # closed
            # A caller that is gone loses its answer, and nobody else's.
            with contextlib.suppress(OSError), connection:
                connection.settimeout(TIMEOUT_S)
                line = connection.makefile("rb").readline(LINE_BYTES)
                connection.sendall(json.dumps(respond(self._table, line)).encode() + b"\n")


async def ask_workers(request: dict[str, Any], folder: Path | None = None) -> dict[str, Any]:
    """Ask every worker on this machine, and return the answer of the one that has the run.

    The request's `within_s` says how long its caller waits.
    """
    asked_s = request.get("within_s")
    timeout_s = min(asked_s, MOST_S) if isinstance(asked_s, int | float) else TIMEOUT_S
    request = request | {"until": time.monotonic() + timeout_s}
    paths = sorted((folder or socket_folder()).glob("*.sock"))
    for asking in asyncio.as_completed([_ask(path, request, timeout_s) for path in paths]):
        answer = await asking
        if answer.get("success"):
            return answer
    return {"success": False, "message": f"none of {len(paths)} workers has this run in its thought"}


async def _ask(path: Path, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(str(path), limit=2**20)
            try:
                writer.write(json.dumps(request).encode() + b"\n")
                answer = json.loads(await reader.readline())
                return answer if isinstance(answer, dict) else {}
            finally:
                writer.close()
    except ConnectionRefusedError:
        with contextlib.suppress(OSError):
            os.unlink(path)  # noqa: PTH108 - of a worker that was killed; a single call of the system
        return {}
    except (OSError, TimeoutError, ValueError):
        return {}
