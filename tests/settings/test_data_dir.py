"""Where settings come from (file, environment, neither) and where what Suffice writes is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.errors import ConfigError
from suffice.wiring.files import load_settings, read_settings
from suffice.wiring.keys import good_file, kill_file

SETTINGS = """
[upstreams.u]
url = "http://127.0.0.1:9"
[routes.r]
upstream = "u"
[routes.r.judge]
url = "http://127.0.0.1:9"
model = "m"
questions = "questions.jsonl"
[audit]
file = "heads.jsonl"
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, without settings; nothing of the environment is about Suffice."""
    monkeypatch.delenv("SUFFICE_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def run(*words: str, **variables: str) -> Result:
    return CliRunner().invoke(main, words, env=variables)


def test_written_files_count_from_the_data_directory_and_read_ones_from_the_settings_file(home: Path) -> None:
    (home / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    data = home.parent / "data"
    settings = read_settings("suffice.toml", {"SUFFICE_DATA_DIR": str(data)}).settings
    assert settings.store.url == f"sqlite:///{data / 'suffice.db'}"
    assert settings.audit.file == str(data / "heads.jsonl")
    assert kill_file(settings) == data / "suffice.kill"
    assert good_file(settings) == data / "suffice.db.good"
    judge = settings.routes["r"].judge
    assert judge is not None
    assert judge.questions == str(home / "questions.jsonl")


def test_where_the_log_is_on_a_server_the_files_of_this_machine_are_in_the_data_directory(home: Path) -> None:
    (home / "suffice.toml").write_text(f'{SETTINGS}\n[store]\nurl = "postgresql:///suffice"\n', encoding="utf-8")
    data = home.parent / "data"
    settings = read_settings("suffice.toml", {"SUFFICE_DATA_DIR": str(data)}).settings
    assert settings.store.url == "postgresql:///suffice"
    assert kill_file(settings) == data / "suffice.kill"
    assert good_file(settings) == data / "suffice.db.good"
    assert kill_file(load_settings("suffice.toml")) == home / "suffice.kill"


def test_without_a_data_directory_everything_stays_beside_the_settings_file(home: Path) -> None:
    (home / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    settings = load_settings("suffice.toml")
    assert settings.store.url == f"sqlite:///{home / 'suffice.db'}"
    assert settings.audit.file == str(home / "heads.jsonl")
    assert not (home.parent / "xdg").exists()


def test_a_log_beside_the_settings_file_is_never_left_for_an_empty_one(home: Path) -> None:
    (home / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    (home / "suffice.db").write_bytes(b"")
    data = home.parent / "data"
    data.mkdir()
    with pytest.raises(ConfigError, match=r"store\.url: the data directory .*data has no suffice\.db, but one lies"):
        read_settings("suffice.toml", {"SUFFICE_DATA_DIR": str(data)})
    (home / "suffice.db").rename(data / "suffice.db")
    assert read_settings("suffice.toml", {"SUFFICE_DATA_DIR": str(data)})


def test_the_environment_alone_suffices_and_its_log_is_in_the_users_data_directory(home: Path) -> None:
    environ = {"SUFFICE__UPSTREAMS__U__URL": "http://h", "XDG_DATA_HOME": str(home.parent / "xdg")}
    settings = read_settings("suffice.toml", environ).settings
    assert settings.upstreams["u"].url == "http://h"
    assert settings.store.url == f"sqlite:///{home.parent / 'xdg' / 'suffice' / 'suffice.db'}"
    assert (home.parent / "xdg" / "suffice").is_dir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_settings("named.toml", environ)  # a file that somebody names must be there


def test_a_file_wins_over_defaults_the_environment_over_a_file_and_an_option_over_both(home: Path) -> None:
    (home / "suffice.toml").write_text(f"{SETTINGS}\n[server]\nport = 9001\n", encoding="utf-8")
    displayed = run("config", "show", "--sources", SUFFICE__SERVER__HOST="0.0.0.0").output.splitlines()
    assert 'server.host = "0.0.0.0"  # SUFFICE__SERVER__HOST' in displayed
    assert "server.port = 9001  # file" in displayed
    assert "server.keepalive_s = 75.0  # default" in displayed
    assert 'routes.r.judge.model = "m"  # file' in displayed
    assert len(displayed) > 150
    one, other = home.parent / "one", home.parent / "other"
    url = f'store.url = "sqlite:///{other / "suffice.db"}"  # default'
    assert url in run("config", "show", "--sources", "--data-dir", str(other), SUFFICE_DATA_DIR=str(one)).output


def test_the_directory_of_one_command_is_not_that_of_the_next(home: Path) -> None:
    (home / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    run("config", "show", "--data-dir", str(home.parent))
    assert load_settings("suffice.toml").store.url == f"sqlite:///{home / 'suffice.db'}"


def test_an_error_names_the_variable_that_caused_it(home: Path) -> None:
    (home / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    refused = run("config", "check", SUFFICE__SERVER__PORT="70000")
    assert refused.exit_code == 2
    assert refused.stderr == "suffice config check: SUFFICE__SERVER__PORT: server.port: got 70000; 0 to 65,535\n"
    (home / "suffice.toml").write_text(f"{SETTINGS}\n[server]\nport = 70000\n", encoding="utf-8")
    assert run("config", "check").stderr == "suffice config check: suffice.toml: server.port: got 70000; 0 to 65,535\n"


def test_a_yaml_file_is_found_by_its_usual_name(home: Path) -> None:
    pytest.importorskip("yaml")
    (home / "suffice.yaml").write_text("upstreams: {u: {url: 'http://127.0.0.1:9'}}\nserver: {port: 9002}\n", "utf-8")
    assert "server.port = 9002  # file" in run("config", "show", "--sources").output
    (home / "suffice.toml").write_text(SETTINGS, encoding="utf-8")
    assert "server.port = 8400  # default" in run("config", "show", "--sources").output
