"""What reading and comparing one answer costs, scorer by scorer: microseconds of CPU, median of rounds.

    python bench/scoring.py            # a table of extract + match
    python bench/scoring.py --judge    # also what a judgement by math-verify costs, in its process

Peers: the usual way to write SQuAD's normal form (a set of punctuation walked character by character),
and math-verify called directly, without a process of its own.
"""

from __future__ import annotations

import logging
import re
import statistics
import string
import sys
import time
from collections.abc import Callable
from contextlib import closing

from suffice.scoring.base import Spec, build_scorer

ROUNDS, REPEATS = 15, 300
THOUGHT = "First we look at what is given, and then we add it up, step by step, with care. " * 25  # 2,000 characters
CASES: tuple[tuple[str, Spec, str, str], ...] = (
    ("text", "text", "The answer is Paris.", "Paris"),
    ("squad", "squad", "The answer is the Eiffel Tower.", "Eiffel Tower"),
    ("number", "number", "The answer is 1,234.50 dollars.", "1234.5"),
    ("quantity", "quantity", "The answer is 1.5 km.", "1500 metres"),
    ("choice", "choice", "The answer is (C).", "C"),
    ("yes-no", "yes-no", "Yes, it is.", "yes"),
    ("date", "date", "The answer is March 5, 2024.", "2024-03-05"),
    ("list", "list", "The answer is red, green and blue.", "blue, red, green"),
    ("math, equal strings", "math", r"So \boxed{\dfrac{\pi}{2}}.", r"\frac{\pi}{2}"),
    ("math, numbers", "math", r"So \boxed{\frac{1}{2}}.", "0.5"),
    ("json", {"scorer": "json", "path": "$.answer"}, '{"answer": "Paris"}', '"Paris"'),
    ("regex", {"scorer": "regex", "pattern": r"#### (-?[\d.,]+)", "compare": "number"}, "So it is.\n#### 42", "42"),
    ("whole", "whole", "x = 1\nprint(x)\n", "x = 1\nprint(x)"),
)


def micros(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """CPU time of one call, in microseconds: the median of rounds."""
    seen = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        for _ in range(repeats):
            work()
        seen.append((time.process_time() - begin) / repeats * 1e6)
    return statistics.median(seen)


def usual_squad(text: str) -> str:
    marks = set(string.punctuation)
    bare = "".join(character for character in text.lower() if character not in marks)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def scorers() -> None:
    print("| scorer | short answer | behind 2,000 characters | match of two normal forms |")
    print("| --- | --- | --- | --- |")
    for title, spec, text, gold in CASES:
        scorer = build_scorer(spec)
        answer = scorer.extract(text)
        assert scorer.match(answer, gold), title
        long = THOUGHT + "\n" + text
        short_us = micros(lambda s=scorer, t=text: s.extract(t))
        long_us = micros(lambda s=scorer, t=long: s.extract(t), REPEATS // 5)
        match_us = micros(lambda s=scorer, a=answer: s.match(a, a))
        print(f"| `{title}` | {short_us:.1f} | {long_us:.0f} | {match_us:.1f} |")
    ours, usual = build_scorer("squad"), "The Eiffel Tower, in Paris!"
    print(
        f"\nSQuAD's normal form of {usual!r}: {micros(lambda: ours.normalise(usual)):.1f} us,"
        f" the usual way {micros(lambda: usual_squad(usual)):.1f} us"
    )


def judgements() -> None:
    try:
        from math_verify import parse, verify
    except ImportError:
        print("math-verify is not installed: install the extra math", file=sys.stderr)
        raise SystemExit(2) from None
    from suffice.edge.math import MathProcess

    logging.disable(logging.WARNING)  # it warns at every call that its own limits are off

    pairs = [(f"{n}x+{n}", f"{n}(x+1)") for n in range(2, 202)]
    with closing(MathProcess()) as judge:
        begin = time.monotonic()
        judge.equivalent("1", "x")
        started_s = time.monotonic() - begin
        begin, own_begin = time.monotonic(), time.process_time()
        assert all(judge.equivalent(*pair) for pair in pairs)
        wall_us = (time.monotonic() - begin) / len(pairs) * 1e6
        own_us = (time.process_time() - own_begin) / len(pairs) * 1e6
        begin = time.monotonic()
        assert judge.equivalent("9^{9^{9^{9}}}", "1") is None
        hung_s = time.monotonic() - begin
    begin = time.process_time()
    for one, other in pairs:
        assert verify(
            parse(f"${one}$", parsing_timeout=None), parse(f"${other}$", parsing_timeout=None), timeout_seconds=None
        )
    direct_us = (time.process_time() - begin) / len(pairs) * 1e6
    print(
        f"\none judgement: {wall_us:.0f} us wall, {own_us:.0f} us of it CPU of the asking process;"
        f" math-verify called directly: {direct_us:.0f} us"
    )
    print(f"start of a worker: {started_s:.1f} s; a formula that hangs: {hung_s:.1f} s, then a new worker")


if __name__ == "__main__":
    scorers()
    if "--judge" in sys.argv:
        judgements()
