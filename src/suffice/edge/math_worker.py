"""The process that knows algebra. It is meant to be killed: it holds no state and opens nothing.

    python -m suffice.edge.math_worker MEMORY_BYTES

One JSON list a line comes in, `[one, other, limit_s]`; one JSON value a line goes out: true, false or null,
which is "cannot tell". The first line out is true, once the libraries are loaded. The process ends with its
standard input, and at the latest a second after a limit, even when nobody is left to kill it.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

SPARE_S = 1.0  # after the limit: the one who asked kills first, and knows why


def judge_formulas(one: str, other: str) -> bool | None:
    """Have two formulas the same value, by math-verify? None: one of them is no formula to it."""
    from math_verify import verify

    left, right = _read(one), _read(other)
    if not left or not right:
        return None
    # Its answer depends on the order (an equation against a value, say); ours must not.
    return any(verify(*pair, timeout_seconds=None) for pair in ((left, right), (right, left)))


def _read(formula: str) -> list[Any]:
    from math_verify import parse

    # Its own limits are signals, which need the main thread and cannot end a hung parser.
    return list(parse(f"${formula}$", parsing_timeout=None, fallback_mode="no_fallback"))


def answer_requests(requests: TextIO, answers: TextIO) -> None:
    judge_formulas("1", "2")  # loads the grammar, which takes longer than any judgement
    answers.write("true\n")
    answers.flush()
    for line in requests:
        one, other, limit_s = json.loads(line)
        verdict: bool | None = None
        with _alarm(limit_s + SPARE_S), contextlib.suppress(Exception, RecursionError, MemoryError):
            verdict = judge_formulas(one, other)
        answers.write(json.dumps(verdict) + "\n")
        answers.flush()


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """End this process after so long. The signal's default action needs no turn of the interpreter."""
    try:
        from signal import ITIMER_REAL, setitimer
    except ImportError:  # no such timers here: the one who asked kills
        yield
        return
    setitimer(ITIMER_REAL, seconds)
    try:
        yield
    finally:
        setitimer(ITIMER_REAL, 0.0)


def _limit_memory(n_bytes: int) -> None:
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def run_worker() -> None:
    _limit_memory(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints must not look like a verdict
    answer_requests(sys.stdin, answers)


if __name__ == "__main__":
    run_worker()
