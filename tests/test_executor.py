"""The same results from every executor, whatever dies; Ray alone is slow to start."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from suffice.errors import ExecutorError, TraceError
from suffice.executor import TRIES, Executor, PoolExecutor, RayExecutor, SerialExecutor, build_executor

EXECUTORS = [
    SerialExecutor(),
    PoolExecutor(1),
    PoolExecutor(2),
    PoolExecutor(3),
    pytest.param(RayExecutor(2), marks=pytest.mark.slow),
]
every_executor = pytest.mark.parametrize("executor", EXECUTORS, ids=str)
every_other_process = pytest.mark.parametrize("executor", EXECUTORS[1:], ids=str)


def draw(scale: float, seed: int) -> float:
    return scale * random.Random(seed).random()


def die(deaths: int, folder: Path, shard: int) -> int:
    """Kill the worker of shard 3, the first `deaths` times."""
    if shard == 3:
        n_before = len(list(folder.iterdir()))
        if n_before < deaths:
            (folder / str(n_before)).touch()
            os._exit(9)
    return shard * shard


def refuse(shard: int) -> int:
    if shard == 2:
        raise TraceError("is negative", file="a.jsonl", row=7, column="tokens")
    return shard


def break_off(shard: int) -> float:
    return 1 / (shard - 2)


@every_executor
def test_results_come_in_order_and_are_the_same_to_the_bit(executor: Executor) -> None:
    work = partial(draw, 0.1)
    assert list(executor.map(work, range(40))) == [work(seed) for seed in range(40)]
    assert list(executor.map(work, [])) == []


@every_other_process
@pytest.mark.parametrize("deaths", range(1, TRIES))
def test_shards_of_a_dead_worker_are_run_again(executor: Executor, deaths: int, tmp_path: Path) -> None:
    results = list(executor.map(partial(die, deaths, tmp_path), range(9)))
    assert results == [shard * shard for shard in range(9)]
    assert len(list(tmp_path.iterdir())) == deaths


@every_other_process
def test_a_shard_that_ends_every_worker_is_named_after_the_results_before_it(
    executor: Executor, tmp_path: Path
) -> None:
    results = executor.map(partial(die, 99, tmp_path), range(9))
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    with pytest.raises(ExecutorError, match=rf"^3: its worker process died {TRIES} times"):
        next(results)
    assert len(list(tmp_path.iterdir())) >= TRIES


@every_executor
def test_errors_of_the_work_arrive_as_they_were_raised(executor: Executor) -> None:
    with pytest.raises(TraceError, match=r"^a.jsonl, row 7, tokens: is negative$") as refused:
        list(executor.map(refuse, range(5)))
    assert (refused.value.file, refused.value.row, refused.value.column) == ("a.jsonl", 7, "tokens")
    with pytest.raises(ZeroDivisionError):
        list(executor.map(break_off, range(5)))


def test_results_do_not_pile_up_and_shards_are_taken_as_needed() -> None:
    taken = list[int]()

    def shards() -> Iterator[int]:
        for shard in range(1_000):
            taken.append(shard)
            yield shard

    results = PoolExecutor(2).map(abs, shards())
    assert next(results) == 0
    assert len(taken) <= 4


def test_a_command_chooses_by_workers_and_address() -> None:
    assert build_executor(1) == PoolExecutor(1)
    assert build_executor(3) == PoolExecutor(3)
    assert build_executor(2, "local") == RayExecutor(2)
    assert build_executor(2, "10.0.0.1:6379") == RayExecutor(2, "10.0.0.1:6379")


POOLS = """
from suffice.executor import PoolExecutor

def refuse(shard):
    if shard == 3:
        raise ValueError(shard)
    return shard

if __name__ == "__main__":
    for n in range(500):
        try:
            list(PoolExecutor(2).map(refuse, range(n % 9)))
        except ValueError:
            pass
"""


def test_a_program_that_opens_many_pools_ends(tmp_path: Path) -> None:
    """A process that is forked while a thread of an earlier pool ends it would wait for a lock for ever."""
    program = tmp_path / "pools.py"
    program.write_text(POOLS, encoding="utf-8")
    subprocess.run([sys.executable, program], check=True, timeout=60)
