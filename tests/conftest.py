"""What holds for every test: the tree that is tested, how property tests draw, and whose runs count as coverage."""

from __future__ import annotations

import gc
import os
import signal
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

import suffice

settings.register_profile("house", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("quick", settings.get_profile("house"), max_examples=25)
settings.load_profile("house")

# The core's own tests. Only they count for its coverage: a simulation or a gateway that runs through the core on its
# way says nothing about it, and takes two or three times as long while its lines are counted. Long simulations among
# them, and tests that measure time, are marked no_cover themselves.
CORE = (
    "agent/",
    "assurance/",
    "contracts/test_policies.py",
    "contracts/test_reloading.py",
    "contracts/test_scorers.py",
    "contracts/test_signals.py",
    "house/test_settings.py",
    "model/",
    "policy/",
    "review/",
    "rollout/",
    "scoring/",
    "settings/",
    "signals/",
    "upstream/",
)

LEFT = pytest.StashKey[int]()  # how many slow cases a run leaves out
MOST_S = 400.0  # of one test: what waits for ever fails here, with the place where it waits …
MOST_SLOW_S = 1_200.0  # … later for a slow one, which takes minutes where a machine is shared

MEMORY = Path("/dev/shm")
MEMORY_BYTES = 2 * 2**30  # more than the logs of all workers take at one time


def _write_to_memory() -> None:
    """Keep temporary files in memory where there is room: most tests would wait for a disk, which each commit syncs."""
    if "TMPDIR" in os.environ or not os.access(MEMORY, os.W_OK | os.X_OK):
        return
    result = os.statvfs(MEMORY)
    if not result.f_flag & os.ST_NOEXEC and result.f_bavail * result.f_frsize >= MEMORY_BYTES:
        os.environ["TMPDIR"] = tempfile.tempdir = str(MEMORY)  # programs and workers that are started inherit it


_write_to_memory()


def pytest_configure() -> None:
    """Refuse to test another tree than this one: a copied environment points at the old place."""
    here = Path(__file__).resolve().parent.parent / "src"
    loaded = Path(suffice.__file__).resolve()
    if here not in loaded.parents:
        raise pytest.UsageError(f"suffice is imported from {loaded}, not from {here}; run `make clean test`")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # programs that tests start and interrupt inherit it


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by marker
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Pause coverage outside of the core's own tests; of slow tests keep as many cases as they ask for.

    Tests of whole clusters begin first: one of twenty seconds that comes last keeps the other workers waiting.
    """
    items.sort(key=lambda item: not item.nodeid.startswith("tests/replicas/"))
    cases = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        if not item.nodeid.removeprefix("tests/").startswith(CORE):
            item.add_marker("no_cover")
        if any("keep" in marker.kwargs for marker in item.own_markers):
            cases[item.nodeid.partition("[")[0]].append(item)
    for group in cases.values():
        keep = next(m.kwargs["keep"] for m in group[0].own_markers if "keep" in m.kwargs)
        for i in range(min(keep, len(group))):
            chosen = group[i * len(group) // keep if keep < len(group) else i]
            chosen.own_markers[:] = [marker for marker in chosen.own_markers if "keep" not in marker.kwargs]


def pytest_collection_finish() -> None:
    """What is collected stays for the whole run: a garbage collection need not walk through it."""
    gc.collect()
    gc.freeze()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Count what is left to `make test-full`; each worker of pytest-xdist deselects the same."""
    if items:
        slow = sum(item.get_closest_marker("slow") is not None for item in items)
        items[0].config.stash[LEFT] = items[0].config.stash.get(LEFT, 0) + slow


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs is a failure of its own, and not the end of the whole run."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        return (yield)

    most_s = MOST_S if item.get_closest_marker("slow") is None else MOST_SLOW_S

    def late(*_: object) -> None:
        raise TimeoutError(f"{item.nodeid} took longer than {most_s:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, most_s)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the count of a worker to the process that reports."""
    sent: dict[str, int] | None = getattr(session.config, "workeroutput", None)
    if sent is not None:
        sent["left"] = session.config.stash.get(LEFT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take the count of a worker."""
    node.config.stash[LEFT] = max(node.config.stash.get(LEFT, 0), getattr(node, "workeroutput", {}).get("left", 0))


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much this run did not test."""
    left = terminalreporter.config.stash.get(LEFT, 0)
    if left:
        terminalreporter.write_line(f"{left} slow cases were left to `make test-full`")


@pytest.fixture(autouse=True)
def no_log_outlives_its_folder() -> Generator[None]:
    """A log that a test leaves open in a folder that is gone writes complaints for the rest of the run."""
    yield
    for thread in threading.enumerate():
        log = getattr(getattr(thread, "_target", None), "__self__", None)
        path = getattr(log, "path", None)
        if thread.name == "suffice-store" and log is not None and isinstance(path, Path) and not path.parent.exists():
            log.close(timeout_s=0.0)
            pytest.fail(f"{log.path}: close the log before its folder goes")


def _uncovered(item: pytest.Item) -> Generator[None, object, object]:
    """Coverage really rests: a worker of pytest-xdist has two tracers, and to pause one wakes the other."""
    tracer, of_threads = sys.gettrace(), threading.gettrace()
    if item.get_closest_marker("no_cover") is None or not type(tracer).__module__.startswith("coverage"):
        return (yield)
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        sys.settrace(tracer)
        threading.settrace(of_threads)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, object, object]:
    """A fixture belongs to the test that asks for it first; simulations are fixtures of modules."""
    return (yield from _uncovered(item))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """The test itself."""
    return (yield from _uncovered(item))


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Two workers for each core: a test over sockets waits half of its time."""
    return 2 * (yield)
