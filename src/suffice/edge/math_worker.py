"""The worker process of the judge of formulas. It may be killed at any time.

    python -m suffice.edge.math_worker MEMORY_BYTES

It reads JSON lists `[one, other, limit_s]` and writes true, false or null ("cannot tell"), one per line, and first
true once it is ready. It ends with its standard input, and at the latest a second after a limit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
from typing import Any

SPARE_S = 1.0  # after the limit, so that the parent kills first and can report it


def judge_formulas(one: str, other: str) -> bool | None:
    """Return whether math-verify finds two formulas of equal value, or None if one of them is not a formula."""
    from math_verify import verify

    left, right = _read(one), _read(other)
    if not left or not right:
        return None
    # math-verify's verdict depends on the order (an equation against a value, say); ours must not.
    return any(verify(*pair, timeout_seconds=None) for pair in ((left, right), (right, left)))


def _read(formula: str) -> list[Any]:
    from math_verify import parse

    # math-verify's own limits are signals, which need the main thread and cannot end a hung parser.
    return list(parse(f"${formula}$", parsing_timeout=None, fallback_mode="no_fallback"))


def _limit_memory(n_bytes: int) -> None:
    try:
        import resource
    except ImportError:
        return
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (n_bytes, n_bytes))


def run_worker() -> None:
    _limit_memory(int(sys.argv[1]))
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # output of libraries must not look like a verdict
    judge_formulas("1", "2")  # loads the grammar, which is slow
    answers.write("true\n")
    for line in sys.stdin:
        one, other, limit_s = json.loads(line)
        verdict: bool | None = None
        faulthandler.dump_traceback_later(limit_s + SPARE_S, exit=True)  # ends even an interpreter that hangs
        with contextlib.suppress(Exception, RecursionError, MemoryError):
            verdict = judge_formulas(one, other)
        faulthandler.cancel_dump_traceback_later()
        answers.write(json.dumps(verdict) + "\n")


if __name__ == "__main__":
    run_worker()
