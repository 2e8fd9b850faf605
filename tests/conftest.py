"""What holds for every test: the tree that is tested, how property tests draw, and whose runs count as coverage."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import settings

import suffice

settings.register_profile("house", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("house")

# The core's own tests. Only they count for its coverage: a simulation or a gateway that runs through the core on its
# way says nothing about it, and takes two or three times as long while its lines are counted. Long simulations among
# them, and tests that measure time, are marked no_cover themselves.
CORE = (
    "assurance/",
    "contracts/test_policies.py",
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

# Tests over sockets, processes and clocks, which wait for things that a busy machine brings late. Beside others, one of
# them that fails is run once more, and the summary says so; more than two such tests are a failure all the same. What
# is computed (claims, policies, scores …) fails at once.
OVER_SOCKETS = (
    "attacks/",
    "cli/",
    "clients/",
    "console/",
    "control/",
    "demo/",
    "edge/",
    "examples/",
    "faults/",
    "gateway/",
    "governor/",
    "local/",
    "plugins/",
    "simulators/test_fault_proxy.py",
    "store/",
    "test_server.py",
    "testing/",
    "upstream/",
    "wiring/",
)
MOST_AGAIN = 2
MOST_S = 400.0  # of one test: what waits for ever fails here, with the place where it waits


def pytest_configure() -> None:
    """Refuse to test another tree than this one: a copied environment points at the old place."""
    here = Path(__file__).resolve().parent.parent / "src"
    loaded = Path(suffice.__file__).resolve()
    if here not in loaded.parents:
        raise pytest.UsageError(f"suffice is imported from {loaded}, not from {here}; run `make clean test`")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what runs in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)  # programs that tests start and interrupt inherit it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Coverage rests outside of the core's own tests; what hangs on the machine's time has a second try."""
    for item in items:
        name = item.nodeid.removeprefix("tests/")
        if not name.startswith(CORE):
            item.add_marker("no_cover")
        if hasattr(item.config, "workerinput") and name.startswith(OVER_SOCKETS):  # one worker of several
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs is a failure of its own, and not the end of the whole run."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        return (yield)

    def late(*_: object) -> None:
        raise TimeoutError(f"{item.nodeid} took longer than {MOST_S:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, MOST_S, MOST_S)  # again for a second try
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A second try is for the odd one: when many need it, something is wrong."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and len(reporter.stats.get("rerun", ())) > MOST_AGAIN:
        reporter.write_line(f"more than {MOST_AGAIN} tests needed a second try", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How a first try failed is shown, whatever became of the second."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"first try of {report.nodeid}")
        terminalreporter.write_line(report.longreprtext)


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
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


@pytest.hookimpl(wrapper=True, optionalhook=True)
def pytest_xdist_auto_num_workers() -> Generator[None, int, int]:
    """Two workers for each core: a test over sockets waits half of its time."""
    return 2 * (yield)
