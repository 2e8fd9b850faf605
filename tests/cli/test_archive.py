"""`suffice archive` and the commands that read what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner, Result
from tests.replay.archive.made import observed, write

from suffice.cli.main import main
from suffice.errors import StoreError
from suffice.replay.archive.layout import Archive
from suffice.wiring.files import load_settings
from suffice.wiring.worker import LEASE, open_decisions, open_worker

SETTINGS = """
[upstreams.u]
url = "http://127.0.0.1:9"

[routes.r]
upstream = "u"
kind = "reasoning"
scorer = "number"

[store]
url = "sqlite:///log.db"

[archive]
address = "archive"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, observed(120))
    (tmp_path / "suffice.toml").write_text(SETTINGS)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_days_are_written_once_verified_and_replayed(folder: Path) -> None:
    assert [line.split(",")[0] for line in run("archive").output.splitlines()] == [
        f"2026-01-0{day}: 40 requests in 1 files" for day in (1, 2, 3)
    ]
    assert run("archive").output == "the log has no requests that are not archived\n"
    displayed = [json.loads(line) for line in run("archive", "--verify", "--json").output.splitlines()]
    assert [one["n_requests"] for one in displayed] == [40, 40, 40]
    output = run("replay", "archive", "--policies", "stable-answer", "--json", "--workers", "2").output
    lines = [json.loads(line) for line in output.splitlines()]
    assert {line["set"] for line in lines} == {"r"}
    assert {line["n_episodes"] for line in lines} == {120}
    archived_days = run("audit", "show", "--kind", "day_archived").output
    assert archived_days.count("2026-01-0") >= 3


def test_a_poisoned_archive_is_one_sentence_and_exit_code_2(folder: Path) -> None:
    run("archive")
    part = next((folder / "archive").rglob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-3])
    for command in (("replay", "archive"), ("tune", "archive"), ("archive", "--verify")):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 2
        assert "bytes; its manifest says" in result.output


def test_without_an_address_or_with_one_that_is_none_it_says_what_is_missing(folder: Path) -> None:
    (folder / "suffice.toml").write_text(SETTINGS.replace('address = "archive"', ""))
    assert "names no archive; set address under [archive], or use --to" in run("archive", code=2).output
    assert "cannot be used as an archive" in run("archive", "--to", "ftp://x/y", code=2).output


# ---- the worker's job ------------------------------------------------------------------------------


def archived_by(folder: Path, *, rounds: int, **archive: object) -> list[str]:
    """What the job said in these rounds of a worker of its own."""
    settings = load_settings(folder / "suffice.toml")
    settings = msgspec.structs.replace(settings, archive=msgspec.structs.replace(settings.archive, **archive))
    with open_worker(settings, learning=False, create=False) as here:
        return [one.summary for _ in range(rounds) for one in here.once("archive") or ()]


def test_the_worker_writes_a_day_in_each_round_and_what_the_command_would(folder: Path) -> None:
    displayed = archived_by(folder, rounds=2)
    assert [one.split(" written")[0] for one in displayed] == [f"2026-01-0{day}: 40 requests" for day in (1, 2)]
    assert [one.split(",")[0] for one in run("archive").output.splitlines()] == ["2026-01-03: 40 requests in 1 files"]
    assert archived_by(folder, rounds=3) == [], "every day has been written"
    manifests = run("archive", "--verify", "--json").output
    run("archive", "--to", "elsewhere")
    assert run("archive", "--to", "elsewhere", "--verify", "--json").output == manifests


def test_the_worker_writes_no_day_when_it_shall_not(folder: Path) -> None:
    assert archived_by(folder, rounds=2, daily=False) == []
    assert archived_by(folder, rounds=2, address="") == []
    assert archived_by(folder, rounds=2, after_days=10_000.0) == []
    assert not list(folder.glob("archive/manifests/*"))


def test_one_process_at_a_time_writes_days(folder: Path) -> None:
    settings = load_settings(folder / "suffice.toml")
    with open_decisions(settings, create=False) as other:
        assert other.acquire(LEASE) is not None
        assert "another process writes days" in run("archive", code=2).output
        (summary,) = archived_by(folder, rounds=2)
        assert "another process writes days" in summary
    assert run("archive").output.startswith("2026-01-01")


def test_a_day_that_was_cut_off_is_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = list[str]()

    def fails(self: Archive, name: str, *rest: object) -> None:
        written.append(name)
        if name.startswith("manifests"):
            raise StoreError("the power is gone")
        return whole(self, name, *rest)  # type: ignore[arg-type]

    whole = Archive.write
    monkeypatch.setattr(Archive, "write", fails)
    assert archived_by(folder, rounds=1) == ["the power is gone"]
    assert written == ["route=r/day=2026-01-01/part-0000.parquet", "manifests/2026-01-01.json"]
    monkeypatch.setattr(Archive, "write", whole)
    assert len(archived_by(folder, rounds=3)) == 3
    assert len(run("archive", "--verify", "--json").output.splitlines()) == 3
