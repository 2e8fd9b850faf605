"""Attacks on the kill switch: whatever lies at its place pulls it at once, and nothing there stalls a gateway."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from suffice.gateway.kill import KillSwitch, clear_switch, set_switch
from suffice.store.database.presence import MOST_REASON_BYTES as MOST_BYTES
from suffice.store.rows.events import KillSwitchState, key_of, to_row


def _socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(file))


def _held_pipe(file: Path) -> None:
    """Somebody has it open and writes nothing."""
    os.mkfifo(file)
    os.open(file, os.O_RDWR | os.O_NONBLOCK)


def _stamped(stamp_ns: int) -> Callable[[Path], None]:
    def make(file: Path) -> None:
        file.touch()
        os.utime(file, ns=(stamp_ns, stamp_ns))

    return make


def _huge(file: Path) -> None:
    file.touch()
    os.truncate(file, 2**30)


def _unreadable(file: Path) -> None:
    file.write_text("because")
    file.chmod(0)


THINGS: dict[str, Callable[[Path], object]] = {
    "an empty file": lambda file: file.touch(),
    "a folder": lambda file: file.mkdir(),
    "a pipe that nobody writes to": os.mkfifo,
    "a pipe that somebody holds open": _held_pipe,
    "a socket": _socket,
    "a device without end": lambda file: file.symlink_to("/dev/zero"),
    "a device that holds nothing": lambda file: file.symlink_to("/dev/null"),
    "a link to nothing": lambda file: file.symlink_to(file.with_name("nothing")),
    "a link to itself": lambda file: file.symlink_to(file),
    "a link to a folder": lambda file: file.symlink_to(file.parent),
    "a gigabyte of nothing": _huge,
    "no UTF-8": lambda file: file.write_bytes(b"\xff\xfe" * 1_000),
    "null bytes": lambda file: file.write_bytes(bytes(1_000)),
    "a file from before 1970": _stamped(-(10**18)),
    "a file from the year 2200": _stamped(7_258_118_400 * 10**9),
    "a file that may not be read": _unreadable,
    "the word no": lambda file: file.write_text("0"),
}


@pytest.mark.parametrize("thing", THINGS)
def test_whatever_lies_there_pulls_the_switch_at_once(tmp_path: Path, thing: str) -> None:
    file, report = tmp_path / "suffice.kill", list[KillSwitchState]()
    switch = KillSwitch(file, notify=report.append)
    THINGS[thing](file)
    looker = threading.Thread(target=switch.check, daemon=True)
    looker.start()
    looker.join(20)
    assert not looker.is_alive(), "whoever looks waits for ever, and with him the whole gateway"
    assert switch.on
    assert switch.reason
    assert switch.reason.isprintable()
    assert len(to_row(report[0]).body) < 10 * MOST_BYTES


@pytest.mark.parametrize("thing", ["an empty file", "a link to nothing", "a pipe that nobody writes to"])
def test_what_was_taken_away_releases_it(tmp_path: Path, thing: str) -> None:
    file = tmp_path / "suffice.kill"
    THINGS[thing](file)
    switch = KillSwitch(file)
    assert switch.on
    assert clear_switch(file)
    switch.check()
    assert not switch.on


@pytest.mark.parametrize(
    "reason",
    [
        "x\nWARNING suffice kill switch: released",
        "\x1b[2Jall is well",
        "\u202ellew si lla",
        "a\rb",
        "x" * 10**6,
        "\0",
    ],
    ids=lambda reason: repr(reason[:16]),
)
def test_a_reason_stays_in_its_line(tmp_path: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "suffice.kill"
    set_switch(file, reason, "ann")
    with caplog.at_level("WARNING", logger="suffice"):
        switch = KillSwitch(file)
    assert switch.on
    assert switch.reason.isprintable()
    assert all("\n" not in one.getMessage() and "\x1b" not in one.getMessage() for one in caplog.records)


def test_many_looks_at_a_huge_file_cost_nothing(tmp_path: Path) -> None:
    file = tmp_path / "suffice.kill"
    _huge(file)
    switch, began_s = KillSwitch(file), time.process_time()
    for number in range(200):
        os.utime(file, ns=(number, number))  # every look finds another file
        switch.check()
    assert time.process_time() - began_s < 2.0


def test_a_file_that_comes_and_goes_leaves_a_row_for_each_change_and_no_other(tmp_path: Path) -> None:
    file, report = tmp_path / "suffice.kill", list[KillSwitchState]()
    switch = KillSwitch(file, notify=report.append)
    for number in range(1, 51):
        file.touch()
        os.utime(file, ns=(number, number))
        switch.check()
        switch.check()
        file.unlink()
        switch.check()
        switch.check()
    assert [one.on for one in report] == [True, False] * 50
    assert len({key_of(one) for one in report}) == 100


def test_a_reason_that_changes_every_time_writes_no_row(tmp_path: Path) -> None:
    """Who may write the file can change it twice a second: that must not fill the log."""
    file, report = tmp_path / "suffice.kill", list[KillSwitchState]()
    switch = KillSwitch(file, notify=report.append)
    for number in range(1, 51):
        file.write_text(f"reason {number}")
        os.utime(file, ns=(number, number))
        switch.check()
    assert len(report) == 1
