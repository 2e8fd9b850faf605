"""Attacks by a settings file: what cannot be meant is refused in a sentence, in bounded time, and repeats no secret."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.errors import ConfigError
from suffice.settings import parse_settings
from suffice.wiring.files import load_settings
from suffice.wiring.routes import policy_table
from tests.house.levels import LEVELS, RAW

CANARY = "sk-canary 77\u00e9"
UP = '[upstreams.u]\nurl = "http://127.0.0.1:9"\n'
LEARNED = f'{UP}[routes.r]\nupstream = "u"\npolicy = {{policy = "learned", '
CPU_S = 5.0  # of one file, however busy the machine is; each takes a few milliseconds, and took minutes or for ever

FILES = {
    "a list inside a list, 100,000 times": "a = " + "[" * 100_000,
    "closed as often": "a = " + "[" * 100_000 + "]" * 100_000,
    "a table inside a table": "a = " + "{a = " * 20_000,
    "a key of 100,000 parts": ".".join(["a"] * 100_000) + " = 1",
    "a table's name of 100,000 parts": "[" + ".".join(["a"] * 100_000) + "]",
    "quoted parts": ".".join(["'a'"] * 100_000) + " = 1",
    "parts with spaces around": " . ".join(["a"] * 100_000) + " = 1",
    "deeper with each line": "\n".join(f"[a{'.b' * i}]" for i in range(1, 1_200)),
    "a number of 5,000 digits": "[server]\nport = " + "9" * 5_000,
    "a number of 20,000 bits": "[server]\nport = 0x" + "f" * 5_000,
    "200,000 keys": "\n".join(f"k{i} = 1" for i in range(200_000)),
    "a megabyte of quotes": "a = " + '"' * 2**20,
    "a megabyte of letters": "a" * (2**20 - 1),
    "a null byte": "[server]\nhost = 'a\0b'",
    "an escaped null byte": '[store]\nurl = "sqlite:////tmp/\\u0000x"',
    "a control character": "a = '\x01'",
    "a day for a number": "[server]\nport = 1979-05-27",
    "a day that there is not": "[server]\nport = 1979-02-31",
    "half a surrogate pair": '[server]\nhost = "\\ud800"',
    "a key twice": "[server]\nport = 1\nport = 2",
    "a table twice": "[server]\n[server]",
    "a byte-order mark": "\ufeff[server]\nport = 1",
    "a look-alike key": "[sеrver]\nport = 1",
    "a key of the class": "[__class__]\n__init__ = 1",
    "no table": "routes = 5",
    "a list of tables": "[[routes]]\nupstream = 'u'",
    "experiments of no table": "experiments = [1]",
    "arms of no table": "[experiments.x]\narms = 5",
    "rollout of no table": "rollout = 'fast'",
    "an empty name": f'{UP}[routes.""]\nupstream = "u"',
    "a name that clears the screen": f'{UP}[routes."\\u001b[2J"]\nupstream = "u"',
    "a name in two lines": f'{UP}[routes."a\\nlevel=INFO all is well"]\nupstream = "u"',
    "a name that is turned round": f'{UP}[routes."\\u202ehtam"]\nupstream = "u"',
    "a name without end": f'{UP}[routes.{"x" * 101}]\nupstream = "u"',
    "an upstream's name in two lines": '[upstreams."a\\nb"]\nurl = "http://127.0.0.1:9"',
    "an unknown key in two lines": '"a\\nb" = 1',
    "a file for an upstream": '[upstreams.u]\nurl = "file:///etc/passwd"',
    "a header in an address": '[upstreams.u]\nurl = "http://h\\r\\nX-Admin: 1"',
    "a space in an address": '[upstreams.u]\nurl = "http://h /v1"',
    "a look-alike host": '[upstreams.u]\nurl = "http://exаmple.org"',
    "two hosts by an @": '[upstreams.u]\nurl = "http://api.openai.com@evil.example"',
    "a back slash": '[upstreams.u]\nurl = "http:\\\\evil"',
    "endless model": f'{LEARNED}model = "/dev/zero", threshold = 0.1}}',
    "model by a null byte": f'{LEARNED}model = "\\u0000", threshold = 0.1}}',
}


def _refused(file: Path) -> str:
    began_s = time.process_time()
    with pytest.raises(ConfigError) as refused:
        load_settings(file)
    assert time.process_time() - began_s < CPU_S
    return str(refused.value)


@pytest.mark.parametrize("attack", FILES)
def test_a_hostile_file_is_refused_in_one_short_line(tmp_path: Path, attack: str) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(FILES[attack], encoding="utf-8")
    message = _refused(file)
    assert message.startswith(str(file))
    assert message.isprintable() or "\x00" in FILES[attack] or "u0000" in FILES[attack]
    assert len(message) < len(str(file)) + 500


@pytest.mark.parametrize("attack", ["endless", "a folder", "a link to itself", "a name with a null byte", "UTF-16"])
def test_what_is_no_text_file_is_refused(tmp_path: Path, attack: str) -> None:
    file = tmp_path / "suffice.toml"
    if attack == "endless":
        file = Path("/dev/zero")
    elif attack == "a folder":
        file.mkdir()
    elif attack == "a link to itself":
        file.symlink_to(file)
    elif attack == "UTF-16":
        file.write_text(UP, encoding="utf-16")
    else:
        file = Path("suffice\0.toml")
    _refused(file)


@pytest.mark.parametrize("attack", ["nested", "aliases", "python object", "a number of 5,000 digits", "a list"])
def test_a_hostile_yaml_file_is_refused(tmp_path: Path, attack: str) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "suffice.yaml"
    file.write_text(
        {
            "nested": "[" * 10_000,
            "aliases": "a: &a [x, x, x, x, x, x, x, x, x]\n"
            + "\n".join(
                f"{new}: &{new} [{', '.join(['*' + old] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
            ),
            "python object": "server: !!python/object/apply:os.system ['true']",
            "a number of 5,000 digits": "server: {port: " + "9" * 5_000 + "}",
            "a list": "- server",
        }[attack]
    )
    _refused(file)


def _numbers() -> Iterator[tuple[tuple[str, ...], str]]:
    for level, model in LEVELS.items():
        for name, hint in get_type_hints(model).items():
            if set(get_args(hint) or [hint]) <= {int, float, type(None)}:
                yield level, name


def _with(level: tuple[str, ...], key: str, value: object) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    table = raw
    for part in level:
        table = table[part]
    table[key] = value
    return raw


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1, -0.5, 10**30, 10**5_000, 1e300],
    ids=["nan", "inf", "-inf", "-1", "-0.5", "10**30", "10**5000", "1e300"],
)
def test_no_number_of_any_setting_is_infinite_negative_or_immense(value: float) -> None:
    accepted = list[str]()
    for level, name in _numbers():
        try:
            parse_settings(_with(level, name, value))
        except ConfigError as refused:
            assert len(str(refused)) < 400  # noqa: PT017 - every one of some hundred is refused, each with its own words
        else:
            accepted.append(".".join((*level, name)))
    assert not accepted


@pytest.mark.parametrize("port", [-1, 65_536, 2**31])
@pytest.mark.parametrize(("table", "name"), [("server", "port"), ("alerts", "smtp_port")])
def test_a_port_is_one(table: str, name: str, port: int) -> None:
    with pytest.raises(ConfigError, match=name):
        parse_settings(_with((table,), name, port))


@pytest.mark.parametrize(
    "host", ["mail\r\nRCPT TO:<x@evil.example>", "mail\n", "user@mail", "smtp://mail", "a b", "m" * 254]
)
def test_a_mail_server_is_a_host(host: str) -> None:
    with pytest.raises(ConfigError, match="smtp_host"):
        parse_settings(_with(("alerts",), "smtp_host", host))


@pytest.mark.parametrize(
    "address",
    [
        "http://169.254.169.254/latest",
        "https://10.0.0.1/x",
        "s3://169.254.169.254/x",
        "s3://10.0.0.1:9000/x",
        "s3://bucket/x?endpoint=http://10.0.0.1",
        "s3://user:word@bucket/x",
        "simplecache::http://10.0.0.1/",
        "memory://x",
        "ftp://host/x",
        "file://host/etc",
        "s3://bucket/a b",
        "s3://bucket/a\r\nb",
    ],
)
def test_an_archive_is_a_folder_or_a_bucket(address: str) -> None:
    with pytest.raises(ConfigError, match=r"archive\.address: needs a folder, or s3://") as refused:
        parse_settings(_with(("archive",), "address", address))
    assert "word" not in str(refused.value)


@pytest.mark.parametrize("address", ["", "folder", "s3://logs", "s3://logs/suffice", "gs://b/x", "az://b", "file:///x"])
def test_a_folder_and_a_bucket_are_one(address: str) -> None:
    assert parse_settings(_with(("archive",), "address", address)).archive.address == address


def _secrets() -> Iterator[tuple[tuple[str, ...], str]]:
    """Where people paste what belongs into the environment, or into nothing at all."""
    for level, model in LEVELS.items():
        for name in get_type_hints(model):
            if name.endswith("_env") or (name == "url" and level != ("store",)):
                yield level, name


@pytest.mark.parametrize(("level", "name"), list(_secrets()), ids=str)
def test_a_secret_in_the_place_of_its_variables_name_is_not_repeated(level: tuple[str, ...], name: str) -> None:
    for value in (CANARY, f"https://user:{CANARY}@host", f"ftp://user:{CANARY}@host"):
        with pytest.raises(ConfigError) as refused:
            parse_settings(_with(level, name, value))
        assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgres://user:sk-canary@host/suffice",
        "mysql+aiomysql://user:sk-canary@host:3306/x",
        "//user:sk-canary@host",
    ],
)
def test_the_password_of_another_database_is_not_repeated(tmp_path: Path, url: str) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(f'{UP}[store]\nurl = "{url}"\n', encoding="utf-8")
    done = CliRunner().invoke(main, ["audit", "verify", "--config", str(file)])
    assert done.exit_code == 2
    assert "store.url" in done.output
    assert "canary" not in done.output


@pytest.mark.parametrize("name", ["api_key", "apikey", "api_keys", "password", "openai_key"])
def test_a_secret_under_a_key_that_there_is_not_is_not_repeated(tmp_path: Path, name: str) -> None:
    file = tmp_path / "suffice.toml"
    file.write_text(f'[upstreams.u]\nurl = "http://127.0.0.1:9"\n{name} = "{CANARY}"\n', encoding="utf-8")
    done = CliRunner().invoke(main, ["config", "check", "--config", str(file)])
    assert done.exit_code != 0
    assert name in done.output
    assert "canary" not in done.output


@pytest.mark.parametrize(
    "policy",
    [
        "{" + '"a":{' * 20_000,
        '{"policy":"never","a":' + "[" * 20_000,
        '{"policy":' + "9" * 5_000 + "}",
        "{policy = {}}",
        "{policy = 'never', policy = 'beta'}",
        "{}",
        "[]",
        "/dev/null",
        "{\0}",
        "{" + ".".join(["a"] * 50_000) + " = 1}",
    ],
    ids=lambda policy: repr(policy[:24]),
)
def test_a_hostile_policy_on_the_command_line_is_refused(policy: str) -> None:
    began_s = time.process_time()
    with pytest.raises(ConfigError):
        policy_table(policy)
    assert time.process_time() - began_s < CPU_S


def test_policies_inside_policies_end_somewhere(tmp_path: Path) -> None:
    inner: Any = {"policy": "never"}
    for _ in range(60):
        inner = {"policy": "any", "policies": [inner, inner]}
    file = tmp_path / "policy.json"
    shallow = {"policy": "any", "policies": [{"policy": "never"}] * 2}
    file.write_text(json.dumps(shallow))
    raw = copy.deepcopy(RAW)
    raw["routes"]["math"]["policy"] = inner
    began_s = time.process_time()
    parse_settings(raw)  # the same object twice on each of sixty floors: whoever walked it all would walk 2**60 tables
    assert time.process_time() - began_s < CPU_S
