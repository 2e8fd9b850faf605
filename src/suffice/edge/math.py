"""The judge of formulas: math-verify in a process of its own, because a LaTeX parser can hang or take all memory."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

from suffice.assurance.runs import Match
from suffice.errors import ConfigError
from suffice.extras import how_to_install
from suffice.scoring.base import Spec, asks_judge, build_scorer
from suffice.scoring.scorer import Scorer
from suffice.settings import Route
from suffice.telemetry import LOG

LIMIT_S = 2.0  # for one verdict
START_LIMIT_S = 60.0  # for loading the libraries, which takes about two seconds
MEMORY_BYTES = 2 * 2**30  # of the process, where the system can limit it
MAX_KEPT = 100_000  # cached verdicts; the oldest are dropped first


@contextlib.contextmanager
def open_scorer(spec: Spec) -> Iterator[Scorer]:
    """Yield the scorer of a spec, for labels. Raise ConfigError, also if math-verify is needed and missing."""
    if not asks_judge(spec):
        yield build_scorer(spec)
        return
    with contextlib.closing(MathProcess()) as judge:
        yield build_scorer(spec, math_judge=judge)


@contextlib.contextmanager
def open_match(route: Route) -> Iterator[Match]:
    """Open the route's match of an answer with a reference. Raises ConfigError for a scorer that cannot be built."""
    with open_scorer(route.scorer) as scorer:
        yield match_by(scorer)


def match_by(scorer: Scorer) -> Match:
    def match(answer: str | None, gold: str) -> bool:
        reference = scorer.normalise(gold)  # labels contain references as people write them
        return reference is not None and scorer.match(answer, reference)

    return match


Matches: TypeAlias = Callable[[Route], AbstractContextManager[Match]]


class MathProcess:
    """A thread-safe `MathJudge` in one worker process, started on first use; cached verdicts never change later."""

    def __init__(self) -> None:
        """Raise ConfigError if math-verify is not installed."""
        if importlib.util.find_spec("math_verify") is None:
            raise ConfigError(f"scorer math: the package math-verify is missing: {how_to_install('math')}")
        self._kept: dict[tuple[str, str], bool | None] = {}
        self._process: subprocess.Popen[str] | None = None
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self.n_killed = 0  # processes that timed out or died

    def equivalent(self, one: str, other: str) -> bool | None:
        """Return whether two formulas have the same value, or None if unknown or too slow. Never raises.

        Blocks for up to the limits; on a thread with a running event loop it returns None at once.
        """
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop()
            LOG.warning("math judge: called on an event loop, which it would block; nothing was judged")
            return None
        pair = (one, other)
        with contextlib.suppress(KeyError):
            return self._kept[pair]  # without waiting for a verdict that another thread asked for
        with self._lock:
            if pair not in self._kept and not self._closed.is_set():
                verdict = self._judge(pair)
                if self._closed.is_set():
                    return None
                while len(self._kept) >= MAX_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[pair] = verdict
            return self._kept.get(pair)

    def close(self) -> None:
        """End the process. A pending call of `equivalent` returns None."""
        self._closed.set()
        if (process := self._process) is not None:
            process.kill()
        with self._lock:
            self._end()

    def _judge(self, pair: tuple[str, str]) -> bool | None:
        try:
            if self._process is None:
                self._process = _start()
                _ask(self._process, "", START_LIMIT_S)
            verdict = json.loads(_ask(self._process, json.dumps([*pair, LIMIT_S]) + "\n", LIMIT_S))
        except (OSError, ValueError, RecursionError) as error:
            self.n_killed += 1
            LOG.info("math judge: the process was ended: %s", error)
            self._end()
            return None
        return verdict if isinstance(verdict, bool) else None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with contextlib.suppress(OSError), process:  # closes its pipes and waits for its end
                pass


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "suffice.edge.math_worker", str(MEMORY_BYTES)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )


def _ask(process: subprocess.Popen[str], request: str, limit_s: float) -> str:
    """Return the next line after a request. Raise OSError if there is none: the process died, or took too long."""
    assert process.stdin is not None
    assert process.stdout is not None
    # Not every system can wait for a pipe with a timeout, but everywhere a killed process closes it.
    watchdog = threading.Timer(limit_s, process.kill)
    watchdog.daemon = True
    watchdog.start()
    try:
        process.stdin.write(request)
        process.stdin.flush()
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
    if not line:
        raise ConnectionError(f"it died, or had no verdict in {limit_s:g} s")
    return line
