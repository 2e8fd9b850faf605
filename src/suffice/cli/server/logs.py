"""Log lines that are written by a thread of their own: standard error may be a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from typing import Final

MOST_LINES: Final = 10_000  # that wait to be written; beyond it the newest are left out, and counted
PAUSE_S: Final = 0.02  # lines that come within it are written together
STDERR: Final = 2
FLUSH_S: Final = 2.0  # at the end of the process: how long what waits may take


class BackgroundHandler(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[str] = deque()
        self._n_dropped = 0
        self._some, self._idle, self._guard = threading.Event(), threading.Event(), threading.Lock()
        self._idle.set()
        self._thread: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Take one line; logging holds this handler's lock."""
        if len(self._lines) >= MOST_LINES:
            self._n_dropped += 1
            return
        try:
            self._lines.append(self.format(record))
        except Exception:  # noqa: BLE001 - as logging has it: a line that cannot be made costs nobody an answer
            self.handleError(record)
            return
        with self._guard:
            self._idle.clear()
            self._some.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._write, name="log", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        self._idle.wait(FLUSH_S)

    def _write(self) -> None:
        while True:
            self._some.wait()
            time.sleep(PAUSE_S)
            self._some.clear()
            written = []
            while self._lines:
                written.append(self._lines.popleft())
            if self._n_dropped:
                n, self._n_dropped = self._n_dropped, 0
                written.append(f"{n} lines of the log were left out: they came faster than they could be written")
            left = "".join(f"{line}\n" for line in written).encode("utf-8", "replace")
            with contextlib.suppress(OSError):  # standard error is closed, or its reader has left
                while left:
                    left = left[os.write(STDERR, left) :]  # a stream of Python's could hold up the end of the process
            with self._guard:
                if not self._some.is_set():
                    self._idle.set()
