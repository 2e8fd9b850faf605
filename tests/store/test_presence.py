"""Running gateways are known by a lock that dies with them; what they have taken in stands in the locked file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from suffice.store.database.presence import ENDING, Announcement, read_presences, switch_reason

CHILD = """
import sys, time
from pathlib import Path
from suffice.store.database.presence import Announcement
held = Announcement((Path(sys.argv[1]),), process="serve")
held.update(decided=7, killed=True, kill_stamp=5)
print("ready", flush=True)
time.sleep(600)
"""


def test_what_a_process_says_is_read_until_it_ends(tmp_path: Path) -> None:
    switch = tmp_path / "a.kill"
    held = Announcement((switch,), process="serve")
    assert [(one.pid, one.decided, one.killed) for one in read_presences((switch,))] == [(os.getpid(), 0, False)]
    held.update(decided=12, kill_stamp=3, killed=True, damage="x" * 300)
    (one,) = read_presences((switch, switch))
    assert (one.decided, one.kill_stamp, one.killed, len(one.damage)) == (12, 3, True, 300)
    held.update(damage="")
    assert read_presences((switch,))[0].damage == "", "a shorter text leaves nothing of the longer one"
    held.release()
    held.update(decided=13)
    assert (read_presences((switch,)), list(tmp_path.iterdir())) == ((), [])


def test_a_process_that_was_killed_is_gone_and_its_file_is_removed_by_the_next(tmp_path: Path) -> None:
    switch = tmp_path / "a.kill"
    with subprocess.Popen([sys.executable, "-c", CHILD, str(switch)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        (one,) = read_presences((switch,))
        assert (one.pid, one.decided, one.killed, one.name) == (child.pid, 7, True, f"gateway PID {child.pid}")
        child.send_signal(signal.SIGKILL)
    assert read_presences((switch,)) == ()
    assert len(list(tmp_path.glob(f"*{ENDING}"))) == 1
    held = Announcement((switch,), process="serve")
    assert len(list(tmp_path.glob(f"*{ENDING}"))) == 1
    held.release()


def test_two_processes_and_other_switches_are_told_apart(tmp_path: Path) -> None:
    mine, other = tmp_path / "a.kill", tmp_path / "a.kill2"
    held = [Announcement((mine,), process="serve"), Announcement((mine,), process="library")]
    theirs = Announcement((other,), process="serve")
    assert sorted(one.process for one in read_presences((mine,))) == ["library", "serve"]
    assert len(read_presences((mine, other))) == 3
    for one in (*held, theirs):
        one.release()


def test_a_file_that_was_deleted_is_made_again(tmp_path: Path) -> None:
    switch = tmp_path / "a.kill"
    held = Announcement((switch,), process="serve")
    next(tmp_path.glob(f"*{ENDING}")).unlink()
    held.update()
    assert len(read_presences((switch,))) == 1
    held.release()


def test_where_the_first_folder_takes_no_file_the_next_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    away, beside = tmp_path / "gone" / "a.kill", tmp_path / "a.kill"
    held = Announcement((away, beside), process="serve")
    assert len(read_presences((away, beside))) == 1
    held.release()
    nowhere = Announcement((away,), process="serve")
    nowhere.update(decided=3)
    assert caplog.text.count("commands work, and cannot confirm it") == 1
    away.parent.mkdir()
    nowhere.update()
    assert read_presences((away,))[0].decided == 3, "the folder came later"
    nowhere.release()


def test_files_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        held = Announcement((tmp_path / "a.kill",), process="serve")
    finally:
        os.umask(before)
    assert [one.stat().st_mode & 0o777 for one in tmp_path.glob(f"*{ENDING}")] == [0o600]
    held.release()


def test_a_switch_pulls_whatever_it_is(tmp_path: Path) -> None:
    switch = tmp_path / "a.kill"
    assert switch_reason(switch) is None
    switch.touch()
    assert switch_reason(switch) == "no reason is given"
    switch.write_bytes(b"\xff" + b"x" * 9_000)
    assert len(switch_reason(switch) or "") == 2_000
    switch.unlink()
    switch.mkdir()
    assert switch_reason(switch) == "no reason is given"
