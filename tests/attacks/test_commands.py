"""Attacks on commands: the wrong folder, the wrong file, a log that is something else, an emergency that goes wrong.

Each case is a state of the disk, a command, and what is expected: an exit status, words, and that nothing was made.
"""

from __future__ import annotations

import os
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.settings import Store
from suffice.store.database import presence
from suffice.store.database.presence import Announcement, read_presences
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice_testing import FakeUpstream
from tests.gateway_process import GatewayProcess

SETTINGS: Final = """
[upstreams.up]
url = "http://127.0.0.1:9"
[routes.r]
upstream = "up"
[store]
url = "sqlite:///log.db"
"""


@dataclass(frozen=True)
class Place:
    """A deployment's folder, and another one in which commands are called."""

    home: Path
    elsewhere: Path

    def write(self, text: str = SETTINGS) -> None:
        (self.home / "suffice.toml").write_text(text, encoding="utf-8")

    def log(self) -> Path:
        LogWriter(Store(url=f"sqlite:///{self.home}/log.db"), now=lambda: 1.0).close()
        return self.home / "log.db"

    def run(self, *words: str, config: str = "") -> Result:
        return CliRunner().invoke(main, [*words, "--config", config or str(self.home / "suffice.toml")])

    def files(self) -> set[str]:
        return {
            str(path.relative_to(self.home.parent))
            for folder in (self.home, self.elsewhere)
            for path in folder.rglob("*")
        }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    result = Place(tmp_path / "home", tmp_path / "elsewhere")
    result.home.mkdir()
    result.elsewhere.mkdir()
    monkeypatch.chdir(result.elsewhere)
    return result


# ---- a log that is not there, or is something else -------------------------------------------------------------------


def no_log(place: Place) -> None:
    place.write()


def a_folder(place: Place) -> None:
    place.write()
    (place.home / "log.db").mkdir()


def an_empty_file(place: Place) -> None:
    place.write()
    (place.home / "log.db").touch()


def text(place: Place) -> None:
    place.write()
    (place.home / "log.db").write_text("this is no database " * 300)


def another_programs(place: Place) -> None:
    place.write()
    with sqlite3.connect(place.home / "log.db") as connection:
        connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()


def a_newer_version(place: Place) -> None:
    place.write()
    with sqlite3.connect(place.log()) as connection:
        connection.execute("PRAGMA user_version = 9999")
    connection.close()


def truncated(place: Place) -> None:
    place.write()
    content = place.log().read_bytes()
    (place.home / "log.db").write_bytes(content[: len(content) // 2])


def a_dead_link(place: Place) -> None:
    place.write()
    (place.home / "log.db").symlink_to(place.home / "gone" / "log.db")


def a_link_to_itself(place: Place) -> None:
    place.write()
    (place.home / "log.db").symlink_to("log.db")


def a_missing_folder(place: Place) -> None:
    place.write(SETTINGS.replace("log.db", "gone/deep/log.db"))


def a_pipe(place: Place) -> None:
    place.write()
    os.mkfifo(place.home / "log.db")


def a_device(place: Place) -> None:
    place.write(SETTINGS.replace("sqlite:///log.db", "sqlite:////dev/null"))


def traversal(place: Place) -> None:
    place.write(SETTINGS.replace("log.db", "../elsewhere/../../log.db"))


def in_memory(place: Place) -> None:
    place.write(SETTINGS.replace("log.db", ":memory:"))


def with_options(place: Place) -> None:
    place.write(SETTINGS.replace("log.db", "log.db?mode=rwc"))


def a_null_byte(place: Place) -> None:
    place.write(SETTINGS.replace("log.db", "log\\u0000.db"))


def a_very_long_name(place: Place) -> None:
    place.write(SETTINGS.replace("log.db", f"{'x' * 5_000}.db"))


LOGS: Final = (
    no_log,
    a_folder,
    an_empty_file,
    text,
    another_programs,
    a_newer_version,
    truncated,
    a_dead_link,
    a_link_to_itself,
    a_missing_folder,
    a_pipe,
    a_device,
    traversal,
    in_memory,
    with_options,
    a_null_byte,
    a_very_long_name,
)
COMMANDS: Final = (
    ("pause", "r", "--reason", "x"),
    ("status",),
    ("audit", "verify"),
    ("admin", "add", "ann"),
    ("erase", "--older-than", "1d", "--reason", "x"),
    ("worker", "--once", "retain"),
)


@pytest.mark.parametrize("log", LOGS, ids=lambda log: log.__name__)
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: words[0])
def test_a_log_that_is_none_is_refused_and_left_alone(
    log: Callable[[Place], None], words: tuple[str, ...], place: Place
) -> None:
    log(place)
    before = place.files()
    done = place.run(*words)
    if words[0] == "admin" and done.exit_code == 0:  # who may come in stands beside the log, whatever its state
        assert "the change was made, but the audit log does not record it" in done.stderr
        return
    assert done.exit_code in ((1, 2) if words[0] == "audit" else (2,)), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.stderr.startswith(f"suffice {words[0]}") or "LOG DAMAGED" in done.output, done.output
    assert "Traceback" not in done.output
    new = {name for name in place.files() - before if not name.endswith((".people.lock", "-wal", "-shm"))}
    assert not new, f"made {new}"


# ---- settings that are none ------------------------------------------------------------------------------------------


BROKEN: Final = {
    "binary": b"\xff\xfe\x00",
    "broken": b"[store\n",
    "an array": b"store = [1]\n",
    "unknown key": b"stroe = 1\n",
}
EMERGENCY: Final = (("kill", "--reason", "x"), ("pause", "r", "--reason", "x"))


@pytest.mark.parametrize("name", ["missing", "a folder", "link to nothing", *BROKEN])
@pytest.mark.parametrize("words", [*EMERGENCY, ("status",)], ids=lambda words: words[0])
def test_settings_that_cannot_be_read_stop_the_command(name: str, words: tuple[str, ...], place: Place) -> None:
    file = place.home / "suffice.toml"
    if name == "a folder":
        file.mkdir()
    elif name == "link to nothing":
        file.symlink_to("nowhere.toml")
    elif name != "missing":
        file.write_bytes(BROKEN[name])
    before = place.files()
    done = place.run(*words)
    assert (done.exit_code, place.files()) == (2, before), done.output
    assert str(file) in done.stderr


# ---- the emergency ---------------------------------------------------------------------------------------------------


def test_kill_in_a_folder_of_nobody_pulls_no_switch(place: Place) -> None:
    place.write()
    done = place.run("kill", "--reason", "x")
    assert done.exit_code == 2
    assert f"store {place.home / 'log.db'}: does not exist" in done.stderr
    assert not (place.home / "log.kill").exists()


def test_kill_without_a_gateway_says_that_nobody_confirmed(place: Place) -> None:
    place.write()
    place.log()
    done = place.run("kill", "--reason", "x")
    assert (done.exit_code, (place.home / "log.kill").exists()) == (3, True)
    assert "no gateway confirmed" in done.stderr


def test_kill_through_a_link_to_the_settings_says_that_nothing_is_there(place: Place) -> None:
    place.write()
    place.log()
    (place.elsewhere / "suffice.toml").symlink_to(place.home / "suffice.toml")
    done = place.run("kill", "--reason", "x", config="suffice.toml")
    assert done.exit_code == 2
    assert f"a link to {place.home / 'suffice.toml'}" in done.stderr
    assert not (place.elsewhere / "log.kill").exists()


@pytest.mark.parametrize("reason", ["\udcff\udcfe", "x" * 1_000_000, "\x1b[2J", "a\nb\r\nc", "", "'; rm -rf /; '"])
def test_any_reason_pulls_the_switch(reason: str, place: Place) -> None:
    place.write()
    place.log()
    done = place.run("kill", "--reason", reason, "--author", "ann")
    assert done.exit_code == 3, done.output
    displayed = place.run("status").stdout
    assert displayed.startswith("KILLED: ")
    assert "\x1b[2J" not in displayed


@pytest.mark.parametrize("name", ["a folder", "a link to a folder", "a link to a file of others"])
def test_a_switch_in_the_way_is_never_written_through(name: str, place: Place) -> None:
    place.write()
    place.log()
    file, other = place.home / "log.kill", place.elsewhere / "theirs"
    if name == "a folder":
        file.mkdir()
    elif name == "a link to a folder":
        other.mkdir()
        file.symlink_to(other)
    else:
        other.write_text("ours")
        file.symlink_to(other)
    place.run("kill", "--reason", "x")
    assert place.run("status").stdout.startswith("KILLED: "), "whatever is there, it pulls the switch"
    assert other.is_dir() or not other.exists() or other.read_text() == "ours"


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "1e9", "soon"])
def test_a_wait_out_of_range_is_refused_before_anything_is_written(seconds: str, place: Place) -> None:
    place.write()
    place.log()
    done = place.run("kill", "--reason", "x", "--wait", seconds)
    assert (done.exit_code, (place.home / "log.kill").exists()) == (2, False)


# ---- who pretends to be a gateway ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["stale", "junk", "a folder", "a pipe", "a link", "held and junk", "held, no object"])
def test_a_file_that_is_no_gateways_confirms_nothing(name: str, place: Place) -> None:
    place.write()
    place.log()
    file = place.home / "log.kill-0123456789ab.gateway"
    says = b'{"pid": 1, "process": "serve", "killed": true, "kill_stamp": 1, "decided": 999999}'
    descriptor = None
    if name == "a folder":
        file.mkdir()
    elif name == "a pipe":
        os.mkfifo(file)
    elif name == "a link":
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes({"stale": says, "junk": b"\x00" * 9_000}.get(name, b"[1, 2"))
    if name.startswith("held"):
        descriptor = os.open(file, os.O_RDWR)
        assert presence.try_lock(descriptor)
    try:
        for words in EMERGENCY:
            done = place.run(*words)
            assert (done.exit_code, "no gateway confirmed" in done.stderr) == (3, True), done.output
        assert "NO GATEWAY" in place.run("status").stdout
    finally:
        if descriptor is not None:
            os.close(descriptor)


def test_a_gateway_that_does_not_move_is_named(place: Place) -> None:
    place.write()
    place.log()
    other = Announcement((place.home / "log.kill",), process="serve")
    try:
        done = place.run("pause", "r", "--reason", "x", "--wait", "0.1")
        assert done.exit_code == 3
        assert f"gateway PID {os.getpid()} has not confirmed within" in done.stderr
        killed = place.run("kill", "--reason", "x", "--wait", "0.1")
        assert (killed.exit_code, "has not confirmed" in killed.stderr) == (3, True)
        assert f"(gateway PID {os.getpid()} has not confirmed)" in place.run("status").stdout
    finally:
        other.release()
    assert read_presences((place.home / "log.kill",)) == ()


# ---- a running gateway -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    folder = tmp_path_factory.mktemp("served")
    with (
        FakeUpstream.in_thread() as fake,
        GatewayProcess.serving(
            folder,
            {
                "upstreams": {"up": {"url": fake.url}},
                "routes": {"r": {"upstream": "up"}},
                "control": {"enabled": False},
                "store": {"url": "sqlite:///log.db"},
            },
        ) as gateway,
    ):
        yield gateway


def call(running: GatewayProcess, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--config", str(running.folder / "suffice.toml"), "--wait", "60"])


@pytest.mark.slow(keep=1)
@pytest.mark.parametrize("config", ["absolute", "relative", "through a link to the folder", "with dots"])
def test_a_running_gateway_confirms_from_any_folder(config: str, running: GatewayProcess, place: Place) -> None:
    home, path = running.folder, str(running.folder / "suffice.toml")
    if config == "relative":
        path = os.path.relpath(path)
    elif config == "through a link to the folder":
        (place.elsewhere / "link").symlink_to(home)
        path = "link/suffice.toml"
    elif config == "with dots":
        path = f"{home}/../{home.name}/./suffice.toml"
    confirmed = f"confirmed by gateway PID {running.process.pid} after"
    for words in (*EMERGENCY, ("unkill",), ("resume", "r", "--reason", "x")):
        done = CliRunner().invoke(main, [*words, "--config", path, "--wait", "60"])
        assert (done.exit_code, confirmed in done.stdout) == (0, True), done.output
    assert [one.name for one in place.elsewhere.iterdir() if one.name != "link"] == []


def test_a_gateway_whose_file_was_deleted_makes_it_again(running: GatewayProcess) -> None:
    for file in running.folder.glob("*.gateway"):
        file.unlink()
    end_s = time.monotonic() + 60
    while not list(running.folder.glob("*.gateway")):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    assert call(running, "pause", "r", "--reason", "x").exit_code == 0
    assert call(running, "resume", "r", "--reason", "x").exit_code == 0


def test_the_switch_needs_no_log(running: GatewayProcess) -> None:
    """Somebody moves the log away under a running gateway: the switch still works, and is still confirmed."""
    log = running.database
    moved = log.rename(log.with_name("moved.db"))
    try:
        done = call(running, "kill", "--reason", "x")
        assert (done.exit_code, "confirmed by gateway PID" in done.stdout) == (0, True), done.output
        assert call(running, "unkill").exit_code == 0
    finally:
        moved.rename(log)


# ---- damage ----------------------------------------------------------------------------------------------------------


def damage(path: Path, *, pages: int) -> None:
    """Overwrite pages in the middle of a log that holds some rows."""
    log = LogWriter(Store(url=f"sqlite:///{path}"), now=lambda: 1.0)
    for number in range(2_000):
        reported = Feedback(feedback_id=f"f{number}", episode_id=f"ep_{number}", source="user", comment="x" * 200)
        log.append(FeedbackEvent(reported))
    assert log.drain(60)
    log.close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        root = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'events'").fetchone()[0]
    connection.close()
    with path.open("r+b") as handle:
        for number in range(pages):
            handle.seek((root - 1 + (number and 40 + number)) * size)
            handle.write(b"\xa5" * size)


@pytest.mark.parametrize("pages", [1, 5])
def test_a_damaged_log_is_said(pages: int, place: Place) -> None:
    place.write()
    damage(place.log(), pages=pages)
    verified = place.run("audit", "verify")
    assert (verified.exit_code, "LOG DAMAGED" in verified.output) == (1, True), verified.output
    assert "LOG DAMAGED" in place.run("status").output
    done = place.run("pause", "r", "--reason", "x")
    assert (done.exit_code, "damaged" in done.stderr) == (2, True)


@pytest.mark.slow
def test_a_large_damaged_log_is_served_on_and_said_at_start(place: Place) -> None:
    """Larger than what is read through before the log is opened: a thread of the gateway finds it."""
    path = place.log()
    with sqlite3.connect(path) as connection:
        connection.executemany(
            "INSERT INTO artefacts (address, body, at_s) VALUES (?, ?, 1.0)",
            ((f"a{number}", "x" * 2**20) for number in range(68)),
        )
        size = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = connection.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'artefacts'").fetchone()
    connection.close()
    with path.open("r+b") as handle:
        handle.seek((root - 1) * size)
        handle.write(b"\xa5" * size)
    with (
        FakeUpstream.in_thread() as fake,
        GatewayProcess.serving(
            place.home,
            {
                "upstreams": {"up": {"url": fake.url}},
                "routes": {"r": {"upstream": "up"}},
                "control": {"enabled": False},
                "store": {"url": "sqlite:///log.db"},
            },
        ) as gateway,
    ):
        end_s = time.monotonic() + 60
        while b"LOG DAMAGED" not in gateway.stderr():
            assert time.monotonic() < end_s
            time.sleep(0.05)
        with urllib.request.urlopen(f"{gateway.url}/v1/models") as answer:
            assert answer.status == 200
        while "LOG DAMAGED" not in place.run("status").stdout:
            assert time.monotonic() < end_s
            time.sleep(0.05)
    verified = place.run("audit", "verify")
    assert (verified.exit_code, "LOG DAMAGED" in verified.output) == (1, True), verified.output
    assert "are what was written" in verified.output, "the chain alone would not have told"


def test_a_gateway_serves_on_a_damaged_log_and_says_so(place: Place) -> None:
    path = place.home / "log.db"
    damage(path, pages=1)
    with (
        FakeUpstream.in_thread() as fake,
        GatewayProcess.serving(
            place.home,
            {
                "upstreams": {"up": {"url": fake.url}},
                "routes": {"r": {"upstream": "up"}},
                "control": {"enabled": False},
                "store": {"url": "sqlite:///log.db"},
            },
        ) as gateway,
    ):
        end_s = time.monotonic() + 30
        while b"damaged" not in gateway.stderr():  # it listens first: a damaged log holds nobody up
            assert time.monotonic() < end_s, gateway.stderr()
            time.sleep(0.02)
        displayed = place.run("status")
        assert "LOG DAMAGED" in displayed.output
        assert "NO GATEWAY" not in displayed.output
