"""Fifteen typical mistakes of the first hour: each answer says where, what and what is allowed, and nothing is lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from suffice.cli.main import main

SETTINGS = """\
[upstreams.local]
url = "http://127.0.0.1:8080"

[routes.chat]
upstream = "local"
scorer = "number"
policy = { policy = "stable-answer", streak = 4 }
"""


@dataclass(frozen=True)
class Mistake:
    """What somebody types, or has written into the settings, and the words of the answer."""

    name: str
    command: str
    where: str
    what: str
    allowed: str
    old: str = ""  # of the settings …
    new: str = ""  # … with this in its place


MISTAKES = (
    Mistake(
        "nothing listens there",
        "init --upstream http://127.0.0.1:9",
        "upstream 'local'",
        "no connection",
        "start your model server, or python -m suffice_testing",
    ),
    Mistake(
        "an address without http",
        "init --upstream 127.0.0.1:8080",
        "--upstream",
        "upstreams.local.url",
        "need http://host[:port][/path]",
    ),
    Mistake("no settings yet", "status", "suffice status", "there is no suffice.toml", "suffice init"),
    Mistake(
        "a file that is not there",
        "config check --config other.toml",
        "other.toml",
        "cannot be read",
        "No such file",
    ),
    Mistake("a table that is not closed", "config check", "line 4", "is not valid TOML", "']'", "chat]", "chat"),
    Mistake(
        "an upstream of another name",
        "config check",
        "routes.chat.upstream",
        "'locl'",
        "known: local",
        '"local"',
        '"locl"',
    ),
    Mistake(
        "a policy of another name",
        "config check",
        "routes.chat.policy",
        "'stable-anser'",
        "did you mean 'stable-answer'",
        "stable-answer",
        "stable-anser",
    ),
    Mistake(
        "a parameter of another name",
        "config check",
        "routes.chat.policy.stable-answer",
        "'streek'",
        "did you mean 'streak'",
        "streak",
        "streek",
    ),
    Mistake(
        "a scorer of another name",
        "config check",
        "routes.chat.scorer",
        "'nuber'",
        "did you mean 'number'",
        '"number"',
        '"nuber"',
    ),
    Mistake(
        "a mode of another name",
        "config check",
        "routes.chat.mode",
        "'enforced'",
        "allowed: off, observe, enforce",
        "scorer",
        'mode = "enforced"\nscorer',
    ),
    Mistake(
        "a budget in points",
        "config check",
        "routes.chat.max_em_drop",
        "got 2",
        "a fraction from 0 to 1",
        "scorer",
        "max_em_drop = 2\nscorer",
    ),
    Mistake(
        "a key of another table",
        "config check",
        "routes.chat.api_key_env",
        "unknown key",
        "known: ",
        "scorer",
        'api_key_env = "KEY"\nscorer',
    ),
    Mistake(
        "status before anything was served",
        "status --config suffice.toml",
        "suffice.db",
        "does not exist",
        "creates it on its first run",
        "scorer",
        "scorer",
    ),
    Mistake("a trace of another shape", "replay trace.jsonl", "trace.jsonl, row 1", "question", "Expected `str"),
    Mistake("a command of another name", "stauts", "stauts", "No such command", "Did you mean 'status'"),
)


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda one: one.name)
def test_a_typical_mistake_says_where_what_and_what_is_allowed(
    mistake: Mistake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("SUFFICE_DATA_DIR", raising=False)
    (tmp_path / "trace.jsonl").write_text('{"question": 1}\n', encoding="utf-8")
    if mistake.old:
        assert mistake.old in SETTINGS
        (tmp_path / "suffice.toml").write_text(SETTINGS.replace(mistake.old, mistake.new), encoding="utf-8")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    done = CliRunner().invoke(main, mistake.command.split())
    assert done.exit_code in (1, 2)
    for words in (mistake.where, mistake.what, mistake.allowed):
        assert words in done.output, done.output
    assert "Traceback" not in done.output
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_they_are_fifteen() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == 15


@pytest.mark.parametrize(
    ("folder", "has_settings", "words"),
    [
        ("empty", False, "empty: has no suffice.toml, nor has this folder; suffice init --data-dir"),
        ("missing", False, "missing: does not exist; suffice init --data-dir"),
        ("empty", True, "suffice.db: does not exist; --data-dir or SUFFICE_DATA_DIR names this log"),
        ("missing", True, "does not exist, nor does its folder"),
    ],
)
@pytest.mark.parametrize("by_variable", [False, True])
def test_status_names_the_data_directory_that_was_given(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
    words: str,
    *,
    has_settings: bool,
    by_variable: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUFFICE_DATA_DIR", raising=False)
    Path("empty").mkdir()
    if has_settings:
        Path("suffice.toml").write_text(SETTINGS, "utf-8")
    if by_variable:
        monkeypatch.setenv("SUFFICE_DATA_DIR", folder)
    done = CliRunner().invoke(main, ["status", *([] if by_variable else ["--data-dir", folder])])
    assert (done.exit_code, len(done.output.splitlines())) == (2, 1)
    assert words in done.output
    assert "store.url in" not in done.output
    assert list(tmp_path.rglob("*.db")) == []


@pytest.mark.parametrize(
    ("variables", "has_settings", "words"),
    [
        (
            {"SUFFICE__STORE__URL": "sqlite:///other.db"},
            True,
            "does not exist; SUFFICE__STORE__URL in the env",
        ),
        ({"SUFFICE__UPSTREAMS__A__URL": "http://127.0.0.1:9"}, False, "does not exist; the default of store.url names"),
        ({}, True, "suffice.db: does not exist; store.url in "),
    ],
)
def test_status_names_what_says_where_the_log_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], words: str, *, has_settings: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("SUFFICE_DATA_DIR", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if has_settings:
        (tmp_path / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    done = CliRunner().invoke(main, ["status"])
    assert (done.exit_code, words in done.output) == (2, True), done.output
