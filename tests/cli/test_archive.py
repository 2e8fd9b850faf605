"""`suffice archive` and the commands that read what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.replay.archive.made import observed, write

from suffice.cli.main import main

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
    shown = [json.loads(line) for line in run("archive", "--verify", "--json").output.splitlines()]
    assert [one["n_requests"] for one in shown] == [40, 40, 40]
    output = run("replay", "archive", "--policies", "stable-answer", "--json", "--workers", "2").output
    lines = [json.loads(line) for line in output.splitlines()]
    assert {line["set"] for line in lines} == {"r"}
    assert {line["n_episodes"] for line in lines} == {120}
    shown_days = run("audit", "show", "--kind", "day_archived").output
    assert shown_days.count("2026-01-0") >= 3


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
