"""The judge of formulas, with real processes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from suffice.edge import math
from suffice.edge.math import MathProcess, open_scorer
from suffice.scoring.scorer import Scorer

HANGS = "9^{9^{9^{9}}}"  # sympy would compute it


@pytest.fixture(scope="module")
def judge() -> Iterator[MathProcess]:
    with closing(MathProcess()) as process:
        yield process


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with open_scorer("math") as built:
        yield built


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac{\sqrt{4}}{4}", r"\frac{1}{2}"),
        ("2x+2", "2(x+1)"),
        (r"\{1,2\}", r"\{2,1\}"),
        ("2^{10}", "1024"),
        (r"\frac{\pi}{4}", r"\frac{2\pi}{8}"),
        ("x=1, x=2", "1,2"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
    ],
)
def test_formulas_of_the_same_value_are_one_answer(scorer: Scorer, one: str, other: str) -> None:
    assert scorer.match(one, other)
    assert scorer.match(other, one)


@pytest.mark.parametrize(
    ("one", "other"), [("x^2", "x^3"), ("(1,2)", "(2,1)"), (r"\pi", "3.1416"), (r"\sqrt{2}", "1.414"), ("x+1", "}{")]
)
def test_formulas_of_different_values_are_two(scorer: Scorer, one: str, other: str) -> None:
    assert not scorer.match(one, other)
    assert not scorer.match(other, one)


def test_a_question_that_hangs_costs_its_limit_and_the_next_one_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(math, "LIMIT_S", 1.0)
    with closing(MathProcess()) as judge:
        assert judge.equivalent("x+1", "1+x") is True
        begin = time.monotonic()
        assert judge.equivalent(HANGS, "1") is None
        assert time.monotonic() - begin < 60.0, "it would take for ever"
        assert judge.n_killed == 1
        assert judge.equivalent(HANGS, "1") is None
        assert judge.n_killed == 1, "the verdict is kept"
        assert judge.equivalent("x+2", "2+x") is True


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize(
    "hostile",
    [
        r"\frac{" * 500,
        r"\sqrt{" * 200 + "1" + "}" * 200,
        "(" * 1_000,
        "x^" * 500 + "1",
        "\ud800",
        "1" * 2_000,
        "NaN",
        r"\begin{matrix}" * 50,
        "x\ny",
        r"\input{/etc/passwd}",
        "__import__('os').getpid()",
    ],
)
def test_hostile_formulas_are_no_match_and_do_not_raise(judge: MathProcess, hostile: str) -> None:
    assert judge.equivalent(hostile, "17") is not True


async def test_on_an_event_loop_it_refuses_to_block_it(judge: MathProcess) -> None:
    assert judge.equivalent("x+3", "3+x") is None
    assert await asyncio.to_thread(judge.equivalent, "x+3", "3+x") is True


async def test_a_waiting_event_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "LIMIT_S", 0.5)
    with closing(MathProcess()) as judge:
        await asyncio.to_thread(judge.equivalent, "1", "x")  # started
        request = asyncio.create_task(asyncio.to_thread(judge.equivalent, HANGS, "2"))
        n_turns = 0
        while not request.done():
            await asyncio.sleep(0.01)
            n_turns += 1
        assert request.result() is None
        assert n_turns > 10


def test_threads_share_the_process() -> None:
    async def ask_all(judge: MathProcess) -> list[bool | None]:
        return await asyncio.gather(
            *(asyncio.to_thread(judge.equivalent, f"{n}x+{n}", f"{n}(x+1)") for n in range(2, 22))
        )

    with closing(MathProcess()) as judge:
        assert asyncio.run(ask_all(judge)) == [True] * 20
        assert judge.n_killed == 0


def test_nothing_is_left_running_and_a_closed_judge_says_nothing() -> None:
    judge = MathProcess()
    assert judge.equivalent("x+1", "1+x") is True
    judge.close()
    assert judge.equivalent("x+5", "5+x") is None


def test_closing_does_not_wait_for_a_formula_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "LIMIT_S", 60.0)
    judge, begin = MathProcess(), time.monotonic()
    judge.equivalent("1", "x")  # started
    asking = threading.Thread(target=judge.equivalent, args=(HANGS, "3"))
    asking.start()
    time.sleep(0.2)
    judge.close()
    asking.join(20)
    assert not asking.is_alive()
    assert time.monotonic() - begin < 50.0


def test_a_worker_whose_owner_was_killed_ends_by_itself() -> None:
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "suffice.edge.math_worker", str(2 * 2**30)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline() == "true\n"
    worker.stdin.write(f'["{HANGS}", "1", 0.1]\n')
    worker.stdin.close()  # nobody is there any more, and it computes
    assert worker.wait(timeout=20) != 0
    worker.stdout.close()
