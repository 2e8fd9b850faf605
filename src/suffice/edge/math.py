"""The judge of formulas: math-verify in worker processes, because a LaTeX parser can hang or take all memory."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self, TypeAlias

from suffice.assurance.runs import Match
from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.scoring.base import Scorer, Spec, asks_judge, build_scorer
from suffice.settings import Route
from suffice.telemetry import LOG

_ENDED = object()  # end of a worker's output


@contextlib.contextmanager
def open_scorer(spec: Spec) -> Iterator[Scorer]:
    """Yield the scorer of a spec, for labels. Raise ConfigError, also if math-verify is needed and missing."""
    if not asks_judge(spec):
        yield build_scorer(spec)
        return
    with MathWorkers() as judge:
        yield build_scorer(spec, math_judge=judge)


@contextlib.contextmanager
def open_match(route: Route) -> Iterator[Match]:
    """Open the route's match of an answer with a reference. Raises ConfigError for a scorer that cannot be built."""
    with open_scorer(route.scorer) as scorer:

        def match(answer: str | None, gold: str) -> bool:
            reference = scorer.normalise(gold)  # labels contain references as people write them
            return reference is not None and scorer.match(answer, reference)

        yield match


Matches: TypeAlias = Callable[[Route], AbstractContextManager[Match]]


class MathWorkers:
    """A `MathJudge` backed by worker processes, started on first use. Thread-safe.

    All verdicts are cached, so that a slow machine cannot change one later.
    """

    def __init__(
        self,
        *,
        n_workers: int = 1,
        limit_s: float = 2.0,
        start_limit_s: float = 60.0,
        memory_bytes: int = 2 * 2**30,
        n_kept: int = 100_000,
    ) -> None:
        """Raise ConfigError if math-verify is not installed.

        n_workers      processes; each takes about 100 MiB and two seconds to start
        limit_s        for one verdict
        start_limit_s  for loading the libraries
        memory_bytes   per process, where the system can limit it
        n_kept         verdicts in the cache; the oldest are dropped first
        """
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(f"scorer math: the package math-verify is missing: {how_to_install('math')}")
        if n_workers < 1 or limit_s <= 0 or start_limit_s <= 0:
            raise ValueError(f"need n_workers >= 1 and limits above 0; got {n_workers=} {limit_s=} {start_limit_s=}")
        self._limit_s, self._start_limit_s, self._memory_bytes = limit_s, start_limit_s, memory_bytes
        self._n_kept = n_kept
        self._kept: dict[tuple[str, str], bool | None] = {}
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()  # None: to be started
        self._lock = threading.Lock()
        self._closed = threading.Event()
        for _ in range(n_workers):
            self._free.put(None)
        self.n_killed = 0  # workers that timed out or died
        self.n_refused = 0  # calls on an event loop, which are not answered

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def equivalent(self, one: str, other: str) -> bool | None:
        """Return whether two formulas have the same value, or None if unknown or too slow. Never raises.

        Blocks for up to the limits; on a thread with a running event loop it returns None at once.
        """
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            self.n_refused += 1
            LOG.warning("math judge: called on an event loop, which it would block; nothing was judged")
            return None
        return self._verdict((one, other))

    def close(self) -> None:
        """End all processes. Pending calls of `equivalent` return None."""
        self._closed.set()
        taken: list[_Worker | None] = []
        with contextlib.suppress(queue.Empty):
            while True:
                taken.append(self._free.get_nowait())
        for worker in taken:
            if worker is not None:
                worker.end()
            self._free.put(None)  # wakes up a waiting call

    def _verdict(self, pair: tuple[str, str]) -> bool | None:
        if pair in self._kept:
            return self._kept[pair]
        worker = self._free.get()
        try:
            if self._closed.is_set():
                return None
            verdict, worker = self._ask(worker, pair)
        finally:
            if self._closed.is_set() and worker is not None:
                worker.end()
                worker = None
            self._free.put(worker)
        with self._lock:
            while len(self._kept) >= self._n_kept:
                del self._kept[next(iter(self._kept))]
            return self._kept.setdefault(pair, verdict)

    def _ask(self, worker: _Worker | None, pair: tuple[str, str]) -> tuple[bool | None, _Worker | None]:
        try:
            if worker is None:
                worker = _Worker(self._memory_bytes)
                worker.answer(self._start_limit_s)
            return worker.ask(pair, self._limit_s), worker
        except (OSError, TimeoutError, ValueError) as error:
            with self._lock:
                self.n_killed += 1
            LOG.info("math judge: a worker was ended: %s", str(error) or type(error).__name__)
            if worker is not None:
                worker.end()
            return None, None


class _Worker:
    """One process, and a thread that reads its output because not every system can wait for pipes with a timeout."""

    def __init__(self, memory_bytes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "suffice.edge.math_worker", str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="math judge", daemon=True)
        self._reader.start()

    def ask(self, pair: tuple[str, str], limit_s: float) -> bool | None:
        """Return a verdict. After OSError, TimeoutError or ValueError the process must be ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([*pair, limit_s]) + "\n")
        self._process.stdin.flush()
        return self.answer(limit_s)

    def answer(self, limit_s: float) -> bool | None:
        """Return its next line. Raises as `ask` does."""
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            raise TimeoutError(f"no verdict in {limit_s:g} s") from None
        if line is _ENDED:
            raise ConnectionError("it died")
        verdict = json.loads(str(line))
        return verdict if isinstance(verdict, bool) else None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(_ENDED)
