"""Runs independent shards of work on processes of this machine or on a Ray cluster, with the same results.

Results come in the order of the shards, and each follows from the work and its shard alone, so neither the executor nor
the number of workers changes a result. Shards of a worker that died are run again.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, Generic, Protocol, TypeVar

from suffice.errors import ConfigError, ExecutorError, SufficeError
from suffice.extras import how_to_install

S = TypeVar("S")
R = TypeVar("R")

TRIES: Final = 3  # of a shard whose worker dies; in the last one it is alone in its worker
AHEAD: Final = 2  # shards per worker that are sent early, so that neither workers nor results wait long


class Executor(Protocol):
    def map(self, work: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        """Yield the results in the order of the shards.

        Work, shards and results must be picklable; randomness comes from the shard. Raise what `work` raises, and
        ExecutorError for a shard whose worker dies each time.
        """
        ...


@dataclass(frozen=True, slots=True)
class SerialExecutor(Executor):
    """Runs everything in this process."""

    def map(self, work: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        return map(work, shards)


# --------------------------------------------------------------------------- processes of this machine


@dataclass(slots=True)
class _Task(Generic[S, R]):
    shard: S
    future: Future[R | _Failure] | None = None  # None: not sent to the present pool
    n_deaths: int = 0  # of workers while it was first in line

    def died(self) -> bool:
        return self.future is not None and self.future.done() and self.future.exception() is not None


@dataclass(frozen=True, slots=True)
class PoolExecutor(Executor):
    """A pool of processes, each of which gets the work once."""

    n_workers: int  # at least 1

    def map(self, work: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        tasks, remaining = deque[_Task[S, R]](), iter(shards)
        pool = self._open(work, self.n_workers)
        try:
            while True:
                tasks.extend(map(_Task, islice(remaining, AHEAD * self.n_workers - len(tasks))))
                if not tasks:
                    return
                first = tasks[0]
                alone = first.n_deaths == TRIES - 1
                try:
                    for task in [first] if alone else tasks:
                        task.future = task.future or pool.submit(_do, task.shard)
                    assert first.future is not None
                    result = first.future.result()
                except BrokenProcessPool:
                    if alone:
                        raise _worker_died(first.shard) from None
                    pool.shutdown()
                    first.n_deaths += 1
                    for task in tasks:
                        task.future = None if task.died() else task.future
                    pool = self._open(work, 1 if first.n_deaths == TRIES - 1 else self.n_workers)
                    continue
                tasks.popleft()
                yield _value_of(result)
                if alone:
                    pool.shutdown()
                    pool = self._open(work, self.n_workers)
        finally:
            # Waits for what runs: a process that is forked while a thread ends a pool may never end.
            pool.shutdown(cancel_futures=True)

    @staticmethod
    def _open(work: Callable[[Any], Any], n_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(n_workers, initializer=_take_work, initargs=(work,))


def limit_memory(n_bytes: int) -> None:
    """Let a process of a pool, and no other, use so many more bytes than now; where the system cannot, any number."""
    if multiprocessing.parent_process() is None or not sys.platform.startswith("linux"):
        return
    import resource

    n_used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    limit = n_used + n_bytes if most == resource.RLIM_INFINITY else min(most, n_used + n_bytes)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


_work: Callable[[Any], Any]  # of this worker process


def _take_work(work: Callable[[Any], Any]) -> None:
    global _work  # noqa: PLW0603 - a process has one piece of work, sent once instead of with every shard
    _work = work


def _do(shard: Any) -> Any:
    return _attempt(_work, shard)


@dataclass(frozen=True, slots=True)
class _Failure:
    """An error of ours, whose constructor pickle would call with other arguments."""

    kind: type[SufficeError]
    arguments: tuple[object, ...]
    fields: dict[str, object]


def _attempt(work: Callable[[S], R], shard: S) -> R | _Failure:
    try:
        return work(shard)
    except SufficeError as error:
        return _Failure(type(error), error.args, error.__dict__)
    except MemoryError:
        return _Failure(ExecutorError, (f"{shard!s:.200}: needs more memory than its worker has",), {})


def _value_of(result: R | _Failure) -> R:
    if not isinstance(result, _Failure):
        return result
    error = result.kind.__new__(result.kind)
    error.args, error.__dict__ = result.arguments, result.fields
    raise error


def _worker_died(shard: object) -> ExecutorError:
    return ExecutorError(f"{shard!s:.200}: its worker process died {TRIES} times; the shard is damaged or too large")


# --------------------------------------------------------------------------- Ray


@dataclass(frozen=True, slots=True)
class RayExecutor(Executor):
    """Tasks of Ray, on a cluster or on a Ray of this process that ends with it. Raise ConfigError without Ray.

    address    of the cluster, as `ray.init` takes it; None: this machine alone
    n_workers  tasks at a time, at least 1; of a Ray of this process, also its processors
    """

    n_workers: int
    address: str | None = None

    def map(self, work: Callable[[S], R], shards: Iterable[S]) -> Iterator[R]:
        ray = self._connect()
        remote = ray.remote(_attempt).options(max_retries=TRIES - 1, num_cpus=1)
        shared, remaining = ray.put(work), iter(shards)
        running = deque[tuple[S, Any]]()
        while True:
            for shard in islice(remaining, AHEAD * self.n_workers - len(running)):
                running.append((shard, remote.remote(shared, shard)))
            if not running:
                return
            shard, reference = running.popleft()
            try:
                result = ray.get(reference)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                raise _worker_died(shard) from None
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            yield _value_of(result)

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError:
            raise ConfigError(f"Ray is not installed: {how_to_install('ray')}") from None
        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report its use to its makers
            own: dict[str, Any] = {} if self.address else {"num_cpus": self.n_workers, "include_dashboard": False}
            ray.init(self.address, log_to_driver=False, logging_level=logging.ERROR, **own)
        return ray


def build_executor(n_workers: int | None = None, ray: str | None = None) -> Executor:
    """Return the executor for a command.

    n_workers  None: as many as processors; 1: still a process of its own, which a damaged file may end
    ray        address of a cluster; "local": a Ray of this process; None: a pool of processes
    """
    n_workers = n_workers or os.cpu_count() or 1
    if ray is not None:
        return RayExecutor(n_workers, None if ray == "local" else ray)
    return PoolExecutor(n_workers)
