"""Files of a log are for their owner alone, whatever the umask, and whoever made them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from suffice.files import create_private, make_folder, tighten, whole_file, write_whole
from suffice.gateway import kill
from suffice.settings import Store
from suffice.store.audit.chain import append_line
from suffice.store.database.writer import LogWriter
from tests.store.test_sqlite import seen


@pytest.fixture(params=[0o000, 0o022], ids=oct, autouse=True)
def _umask(request: pytest.FixtureRequest) -> Iterator[None]:
    before = os.umask(request.param)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_log_and_its_companions(tmp_path: Path) -> None:
    log = LogWriter(Store(url=f"sqlite:///{tmp_path}/log.db"), now=lambda: 1.0)
    log.append(seen("e"))
    assert log.drain()
    result = {one.name: oct(mode(one)) for one in tmp_path.iterdir()}
    log.close()
    assert {"log.db", "log.db-wal", "log.db-shm"} <= set(result)
    assert any(name.endswith(".lock") for name in result)
    assert set(result.values()) == {"0o600"}


def test_a_log_that_others_could_read_is_tightened_and_its_owner_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Store(url=f"sqlite:///{tmp_path}/log.db")
    LogWriter(settings, now=lambda: 1.0).close()
    (tmp_path / "log.db").chmod(0o664)
    LogWriter(settings, now=lambda: 1.0).close()
    assert mode(tmp_path / "log.db") == 0o600
    assert "could be read by others (mode 0664); its mode is 0600 now" in caplog.text
    caplog.clear()
    LogWriter(settings, now=lambda: 1.0).close()
    assert caplog.text == ""


def test_what_is_written_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "whole.json", "{}")
    with whole_file(tmp_path / "a" / "b" / "made.bin") as part:
        assert mode(part) == 0o600
        part.write_bytes(b"x")
    append_line(tmp_path / "heads.jsonl", b"{}\n")
    kill.set_switch(tmp_path / "log.kill", "a drill", "ann")
    assert {oct(mode(one)) for one in tmp_path.rglob("*") if one.is_file()} == {"0o600"}
    assert {oct(mode(one)) for one in (tmp_path / "a", tmp_path / "a" / "b")} == {"0o700"}


def test_a_file_is_made_once_and_a_folder_stays_as_it_is(tmp_path: Path) -> None:
    create_private(tmp_path / "x")
    with pytest.raises(FileExistsError):
        create_private(tmp_path / "x")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o755)
    make_folder(tmp_path / "shared" / "mine")
    assert (mode(tmp_path / "shared"), mode(tmp_path / "shared" / "mine")) == (0o755, 0o700)
    assert tighten(tmp_path / "nothing") is None
    assert tighten(tmp_path / "x") is None
