"""A caller's own loop without its log: it goes on by the last-good file or in full, and its rows wait for the log."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from suffice import Governor
from suffice.errors import StoreError
from suffice.gateway.last_good import GoodRoute, LastGood, write_last_good
from suffice.settings import Store
from suffice.store.database.views import read_events
from suffice.store.database.writer import LogWriter
from suffice.store.routes.deployments import RouteDeployment
from suffice.store.rows.events import LogOutage
from suffice.types import Pause
from suffice.wiring import startup
from tests.governor.loops import ROUTE, drive, episodes, local

SAME = ["Danube"] * 5
PAUSED = RouteDeployment(
    pause=Pause(route=ROUTE, number=1, cause="person", reason="wrong answers", author="ann"), n_pauses=1
)


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suffice.store.database.sqlite.OPEN_BUSY_S", 0.1)
    monkeypatch.setattr(startup, "RETRY_S", (0.05, 0.1))
    monkeypatch.setenv("SUFFICE_SALT", "ours")


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """A log that another program hangs in."""
    LogWriter(Store(url=f"sqlite:///{folder}/log.db"), now=lambda: 1.0).close()
    with closing(sqlite3.connect(folder / "log.db", isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


def write_last_state(folder: Path, route: RouteDeployment, *, age_s: float = 60.0) -> None:
    """What a gateway of the same log has left."""
    good = LastGood(at_s=time.time() - age_s, seq=1, routes={ROUTE: GoodRoute(held=route)})
    write_last_good(folder / "log.db.good", good, secret="ours")


def n_steps(gov: Governor) -> int:
    """After how many steps the loop is told to stop; 5: never."""
    with gov.episode("which river?") as ep:
        return len(drive(ep, SAME))


@pytest.mark.parametrize(
    ("left", "age_s", "n", "served"),
    [
        (RouteDeployment(), 60.0, 2, "the last-good file is served"),
        (PAUSED, 60.0, 5, "the last-good file is served"),
        (RouteDeployment(), 7_200.0, 5, "everything runs in full"),
        (None, 0.0, 5, "everything runs in full"),
    ],
)
def test_a_loop_whose_log_cannot_be_opened_goes_on_and_one_warning_says_by_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, left: RouteDeployment | None, age_s: float, n: int, served: str
) -> None:
    if left is not None:
        write_last_state(tmp_path, left, age_s=age_s)
    with held(tmp_path), local(tmp_path) as gov:
        assert [n_steps(gov) for _ in range(3)] == [n] * 3
        with pytest.raises(StoreError, match="send it again with the same id"):
            gov.feedback("ep_1", correct=True, source="user")
        assert not gov.flush(0.1), "rows wait"
        assert gov.failed_open.keys() == {"follow"}
        report = [one for one in caplog.records if "until it can be opened" in one.getMessage()]
        assert [one.levelno for one in report] == [logging.WARNING]
        assert served in report[0].getMessage()
        assert not [one for one in caplog.records if one.levelno > logging.WARNING]
    assert "queued rows are lost" in caplog.text, "what is lost is said"


def test_rows_of_a_loop_that_waited_are_written_when_the_log_is_let_go_and_it_says_again_what_acts(
    tmp_path: Path,
) -> None:
    with held(tmp_path):
        gov = local(tmp_path)
        assert [n_steps(gov) for _ in range(2)] == [5, 5], "in full, as nothing says that it may act"
    end_s = time.monotonic() + 60
    while n_steps(gov) != 2:
        assert time.monotonic() < end_s
        time.sleep(0.02)
    assert gov.flush()
    gov.close()
    missed = [one.event for one in read_events(tmp_path / "log.db") if isinstance(one.event, LogOutage)]
    assert [(one.after, one.n_dropped, one.n_rows >= 4) for one in missed] == [("everything in full", 0, True)]


def test_a_loop_that_ends_before_the_log_was_tried_again_tries_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(startup, "RETRY_S", (60.0, 60.0))
    with held(tmp_path):
        gov = local(tmp_path)
        assert n_steps(gov) == 5
    gov.close()
    episodes(tmp_path, 1)


@pytest.mark.parametrize("is_gone", [True, False])
def test_a_loop_on_a_log_that_is_gone_or_damaged_makes_no_new_one_in_its_place(tmp_path: Path, is_gone: bool) -> None:
    write_last_state(tmp_path, PAUSED)
    if not is_gone:
        (tmp_path / "log.db").write_bytes(b"no database" * 1_000)
    with local(tmp_path) as gov:
        assert n_steps(gov) == 5
    assert (tmp_path / "log.db").exists() is not is_gone
