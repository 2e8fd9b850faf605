"""Every file name in a settings file is relative to that file, whatever the current folder is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from suffice.settings import Settings
from suffice.wiring.files import load_settings, questions_file
from suffice.wiring.keys import good_file, kill_file, presence_files

UPSTREAM = '[upstreams.u]\nurl = "http://127.0.0.1:9"\n'
NAMES_A_FILE = re.compile(r"(^|_)(file|path|folder|dir|directory|questions|certificate|cert|key_file|ca)s?$")
WORDS = {"metrics.NAME.question"}  # of a survey: the words themselves


def fields(table: type[msgspec.Struct] = Settings, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting that is no table, with its type."""
    for name, hint in get_type_hints(table, include_extras=True).items():
        here = f"{path}.{name}" if path else name
        inner = [one for one in (hint, *get_args(hint)) if isinstance(one, type) and issubclass(one, msgspec.Struct)]
        if not inner:
            yield here, hint
        for one in inner:
            yield from fields(one, f"{here}.NAME" if str(hint).startswith("dict") else here)


def marked() -> list[str]:
    return [
        path
        for path, hint in fields()
        if any(isinstance(one, msgspec.Meta) and one.extra for one in getattr(hint, "__metadata__", ()))
    ]


def test_every_setting_that_names_a_file_is_marked_as_one() -> None:
    named = {path for path, hint in fields() if NAMES_A_FILE.search(path.rpartition(".")[2]) and "str" in str(hint)}
    assert named - WORDS <= set(marked()), "give it the type FileName"
    assert set(marked()) == {
        "server.kill_file",
        "store.url",
        "store.local_files",
        "store.password_file",
        "store.ca_file",
        "store.last_good_file",
        "archive.address",
        "audit.file",
        "upstreams.NAME.api_key_file",
        "routes.NAME.judge.questions",
        "routes.NAME.review.questions",
    }, "add the new one to the cases below, and to docs/reference/settings.md"


VALUES = {
    "server.kill_file": '[server]\nkill_file = "VALUE"\n',
    "store.url": '[store]\nurl = "sqlite:///VALUE"\n',
    "store.local_files": '[store]\nlocal_files = "VALUE"\n',
    "store.password_file": '[store]\npassword_file = "VALUE"\n',
    "store.ca_file": '[store]\nca_file = "VALUE"\n',
    "store.last_good_file": '[store]\nlast_good_file = "VALUE"\n',
    "archive.address": '[archive]\naddress = "VALUE"\n',
    "audit.file": '[audit]\nfile = "VALUE"\n',
    "upstreams.NAME.api_key_file": '[upstreams.r]\nurl = "http://127.0.0.1:9"\napi_key_file = "VALUE"\n',
    "routes.NAME.judge.questions": (
        '[routes.r]\nupstream = "u"\n[routes.r.judge]\nurl = "http://127.0.0.1:9"\nmodel = "m"\nquestions = "VALUE"\n'
    ),
    "routes.NAME.review.questions": '[routes.r]\nupstream = "u"\n[routes.r.review]\nquestions = "VALUE"\n',
}


def read(settings: Settings, path: str) -> str:
    value: Any = settings
    for name in path.split("."):
        value = value["r"] if name == "NAME" else getattr(value, name)
    return str(value).removeprefix("sqlite:///")


@pytest.mark.parametrize("path", sorted(VALUES))
@pytest.mark.parametrize("name", ["a.db", "sub/a.db", "../a.db", "./a b/ü.db"])
def test_a_relative_name_is_relative_to_the_settings_file(
    path: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    (home / "suffice.toml").write_text(UPSTREAM + VALUES[path].replace("VALUE", name), encoding="utf-8")
    result = set()
    absolute = home / "suffice.toml"
    for folder, file in ((home, "suffice.toml"), (elsewhere, "../home/suffice.toml"), (elsewhere, absolute)):
        monkeypatch.chdir(folder)
        result.add(read(load_settings(file), path))
    assert result == {str(home / name)}


@pytest.mark.parametrize("path", sorted(VALUES))
def test_an_absolute_name_stays_as_it_is(path: str, tmp_path: Path) -> None:
    (tmp_path / "suffice.toml").write_text(UPSTREAM + VALUES[path].replace("VALUE", "/srv/a.db"), encoding="utf-8")
    assert read(load_settings(tmp_path / "suffice.toml"), path) == "/srv/a.db"


def test_an_address_of_an_object_store_stays_as_it_is(tmp_path: Path) -> None:
    text = UPSTREAM + VALUES["archive.address"].replace("VALUE", "s3://bucket/suffice")
    (tmp_path / "suffice.toml").write_text(text, encoding="utf-8")
    assert load_settings(tmp_path / "suffice.toml").archive.address == "s3://bucket/suffice"


def test_what_lies_beside_the_log_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    file = tmp_path / "home" / "suffice.toml"
    file.write_text(UPSTREAM + '[routes.r]\nupstream = "u"\n', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    settings = load_settings("home/suffice.toml")
    assert kill_file(settings) == tmp_path / "home" / "suffice.kill"
    assert good_file(settings) == tmp_path / "home" / "suffice.db.good"
    assert presence_files(settings) == (kill_file(settings),)
    assert questions_file(settings, "r") is None


def test_a_settings_file_that_is_a_link_lies_where_the_link_lies(tmp_path: Path) -> None:
    """A mounted ConfigMap is a link into a folder with another name at each update."""
    (tmp_path / "..data").mkdir()
    (tmp_path / "..data" / "suffice.toml").write_text(UPSTREAM, encoding="utf-8")
    (tmp_path / "suffice.toml").symlink_to("..data/suffice.toml")
    assert read(load_settings(tmp_path / "suffice.toml"), "store.url") == str(tmp_path / "suffice.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "postgres://x/y", "", "a.db"])
def test_a_url_that_names_no_file_is_left_to_its_own_error(url: str, tmp_path: Path) -> None:
    (tmp_path / "suffice.toml").write_text(f'{UPSTREAM}[store]\nurl = "{url}"\n', encoding="utf-8")
    assert load_settings(tmp_path / "suffice.toml").store.url == url
