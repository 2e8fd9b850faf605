"""From a file to running objects: every mistake is named with its place before anything is served."""

from __future__ import annotations

import logging
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from suffice.cli.main import main
from suffice.errors import ConfigError, StoreError
from suffice.settings import Settings, Store, parse_settings
from suffice.types import Findings
from suffice.wiring.files import load_settings
from suffice.wiring.gateway import build_gateway
from suffice.wiring.keys import deployment_salt
from suffice.wiring.routes import StartupEvidence, build_route, check_routes, route_notes
from suffice.wiring.startup import preflight
from suffice_testing import Reply, ScriptedThought
from tests.gateway.served import chat, served

GOOD = """
[upstreams.up]
url = "http://127.0.0.1:1"

[routes.math]
upstream = "up"
scorer = "number"
"""


def write(folder: Path, text: str | bytes, name: str = "suffice.toml") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def check(path: Path | str) -> Result:
    """Run `suffice config check`."""
    return CliRunner().invoke(main, ["config", "check", str(path)])


def settings(**changes: Any) -> Settings:
    raw: dict[str, Any] = {"upstreams": {"up": {"url": "http://127.0.0.1:1"}}, "routes": {}}
    return parse_settings(raw | changes)


# file text: what the message must hold
BROKEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "unknown table": (GOOD + "[route.x]\n", ("route: unknown key", "'routes'")),
    "unknown key in a route": (GOOD + 'scorrer = "text"\n', ("routes.math.scorrer: unknown key", "'scorer'")),
    "unknown key in an upstream": ('[upstreams.up]\nulr = "http://h"\n', ("upstreams.up.ulr: unknown key", "'url'")),
    "unknown key deep inside": (
        GOOD + "[routes.math.probe]\nmax_token = 3\n",
        ("routes.math.probe.max_token", "'max_tokens'"),
    ),
    "unknown key in server": (GOOD + "[server]\nping = 1.0\n", ("server.ping: unknown key", "'ping_s'")),
    "wrong type": (GOOD + "samples = 'four'\n", ("routes.math.samples", "must be a whole number, got a text")),
    "no url": ("[upstreams.up]\n", ("upstreams", "url")),
    "unknown upstream": (
        '[routes.math]\nupstream = "up"\n',
        ("routes.math.upstream: unknown upstream 'up'", "none is configured"),
    ),
    "unknown scorer": (
        GOOD.replace('"number"', '"numbre"'),
        ("routes.math.scorer: unknown name 'numbre'", "did you mean 'number'?"),
    ),
    "unknown policy": (
        GOOD + 'policy = { policy = "stable" }\n',
        ("routes.math.policy: unknown name 'stable'", "'stable-answer'"),
    ),
    "unknown policy parameter": (
        GOOD + 'policy = { policy = "beta", treshold = 0.9 }\n',
        ("routes.math.policy.beta", "'treshold'", "'threshold'"),
    ),
    "policy parameter out of range": (
        GOOD + 'policy = { policy = "beta", threshold = 2.0 }\n',
        ("routes.math.policy.beta.threshold",),
    ),
    "percent for fraction": (GOOD + "max_em_drop = 2\n", ("routes.math.max_em_drop", "fraction")),
    "no TOML": ("[upstreams\n", ("suffice.toml", "line 1")),
    "a key twice": (GOOD + GOOD, ("suffice.toml",)),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_mistake_is_named_with_its_place_and_the_way_out(tmp_path: Path, name: str) -> None:
    text, reported = BROKEN[name]
    result = check(write(tmp_path, text))
    assert result.exit_code == 2
    assert result.stderr.startswith("suffice config check: ")
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for part in reported:
        assert part in result.stderr


def test_a_good_file_is_good(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    result = check(file)
    assert (result.exit_code, result.stdout.splitlines()[-1], result.stderr) == (0, f"{file}: ok", "")
    assert "warning" not in result.stdout
    assert load_settings(file).routes["math"].scorer == "number"


def test_a_warning_does_not_fail_the_check(tmp_path: Path) -> None:
    result = check(write(tmp_path, GOOD + 'mode = "enforce"\nkind = "samples"\npolicy = {policy = "beta"}\n'))
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["warning", "warning"]
    assert "routes.math: runs in full until its own audits have proved its policy" in lines[0]
    assert "samples = 1" in lines[1]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    result = check(tmp_path / "nowhere.toml")
    assert result.exit_code == 2
    assert "nowhere.toml: cannot be read (No such file or directory)" in result.stderr


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    assert "cannot be read" in check(tmp_path).stderr
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, GOOD)
    file.chmod(0)
    assert "cannot be read (Permission denied)" in check(file).stderr


def test_a_file_in_another_encoding_is_named_with_the_byte(tmp_path: Path) -> None:
    result = check(write(tmp_path, b"# \xe9t\xe9\n" + GOOD.encode()))
    assert result.exit_code == 2
    assert "is not UTF-8 at byte 2" in result.stderr


def test_yaml_without_its_package_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)  # an import of it fails, as where it is not installed
    result = check(write(tmp_path, "upstreams: {}\n", "suffice.yaml"))
    assert result.exit_code == 2
    assert "pip install" in result.stderr
    assert "pyyaml" in result.stderr
    assert "TOML" in result.stderr


def test_an_empty_file_checks_but_cannot_be_served(tmp_path: Path) -> None:
    (warning,) = check_routes(load_settings(write(tmp_path, "")))
    assert warning.startswith("upstreams: none is configured")


def test_the_owner_is_warned_of_a_route_that_can_never_be_certified() -> None:
    route = {"upstream": "up", "kind": "reasoning", "mode": "enforce"}
    upstream = {"up": {"url": "http://127.0.0.1:8080", "slots": 4}}
    (warning,) = check_routes(parse_settings({"upstreams": upstream, "routes": {"math": route}}))
    assert "routes.math: is never certified without a [routes.math.probe] table" in warning
    assert check_routes(parse_settings({"upstreams": upstream, "routes": {"math": {**route, "probe": {}}}})) == []


async def test_nothing_is_served_without_an_upstream(tmp_path: Path) -> None:
    nothing = parse_settings({"store": {"url": f"sqlite:///{tmp_path}/log.db"}})
    with pytest.raises(ConfigError, match="upstreams: none is configured"):
        async with build_gateway(nothing):
            pass
    assert not (tmp_path / "log.db").exists()


async def test_a_log_that_cannot_be_opened_stops_the_start(tmp_path: Path) -> None:
    lost = settings(store={"url": f"sqlite:///{tmp_path}/no/such/folder/log.db"})
    with pytest.raises(StoreError, match="does not exist"):
        async with build_gateway(lost):
            pass


# ---------------------------------------------------------------- keys in the environment


@pytest.mark.parametrize("value", [None, "", " , "])
async def test_keys_that_are_asked_for_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("CLIENT_KEYS", raising=False)
    if value is not None:
        monkeypatch.setenv("CLIENT_KEYS", value)
    closed = settings(server={"api_keys_env": "CLIENT_KEYS"}, store={"url": f"sqlite:///{tmp_path}/log.db"})
    with pytest.raises(ConfigError, match=r"server\.api_keys_env: .*CLIENT_KEYS"):
        async with build_gateway(closed):
            pass
    with pytest.raises(ConfigError, match=r"server\.api_keys_env: .*CLIENT_KEYS"):
        preflight(closed)


async def test_the_upstreams_key_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UP_KEY", raising=False)
    keyed = settings(
        upstreams={"up": {"url": "http://127.0.0.1:1", "api_key_env": "UP_KEY"}},
        store={"url": f"sqlite:///{tmp_path}/log.db"},
    )
    with pytest.raises(ConfigError, match=r"upstreams\.up\.api_key_env: .*UP_KEY"):
        async with build_gateway(keyed):
            pass
    with pytest.raises(ConfigError, match=r"upstreams\.up\.api_key_env: the environment has no UP_KEY"):
        preflight(keyed)
    monkeypatch.setenv("UP_KEY", "x")
    assert preflight(keyed).upstream_keys == {"up": "x"}


async def test_keys_are_split_at_commas_and_trimmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIENT_KEYS", " a , b,,")
    closed = settings(server={"api_keys_env": "CLIENT_KEYS"}, store={"url": f"sqlite:///{tmp_path}/log.db"})
    assert check_routes(closed) == []
    async with build_gateway(closed) as app:
        results = [app.gateway.clients.keys.find([("authorization", f"Bearer {key}")]) for key in ("a", "b", "a , b")]
        assert [one is not None for one in results] == [True, True, False]
        assert app.gateway.process.ready
    assert not app.gateway.process.ready


# ---------------------------------------------------------------- what may act

CHAIN = ScriptedThought([("two\n", "4"), ("make four\n", "4"), ("so four\n", "4"), ("yes\n", "4")], "it is 5")


@pytest.mark.parametrize("uncertified", [False, True])
async def test_enforce_without_a_certificate_observes_and_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, uncertified: bool
) -> None:
    route = {
        "mode": "enforce",
        "uncertified": uncertified,
        "scorer": "number",
        "audit_share": 0.0,
        "probe": {},
        "policy": {"policy": "stable-answer", "streak": 2},
        "steps": {"min_tokens": 1, "growth": 1.0},
    }
    slow = ScriptedThought(CHAIN.steps, "it is 5", reply=Reply(delay_s=0.01))
    with caplog.at_level(logging.WARNING, logger="suffice"):
        async with served(tmp_path, slow, upstream={"finish": ["raw"], "slots": 2}, route=route) as g:
            answer = await g.ask(chat(suffice={}))
            outcome = await g.outcome()
    warned = any("runs in full until" in record.getMessage() for record in caplog.records)
    assert answer.report["certified"] is False
    assert answer.headers["x-suffice-mode"] == "enforce"
    assert warned is not uncertified
    assert outcome.stopped is uncertified
    assert answer.text == ("4" if uncertified else "it is 5")


def test_a_route_records_its_kinds_signals_and_those_its_policy_needs() -> None:
    route = parse_settings(
        {
            "upstreams": {"up": {"url": "http://h"}},
            "routes": {"r": {"upstream": "up", "kind": "samples", "samples": 4, "policy": {"policy": "stable-answer"}}},
        }
    ).routes["r"]
    built = build_route("r", route)
    assert built.serving.needs == ("votes", "stability")
    assert built.certified is False
    assert built.acts is False


def test_the_version_of_a_policy_is_its_content() -> None:
    def version(**policy: Any) -> str:
        route = settings(routes={"r": {"upstream": "up", "policy": policy}}).routes["r"]
        return build_route("r", route).serving.version

    assert version(policy="beta") == version(policy="beta", threshold=0.95, min_samples=2)
    assert version(policy="beta") != version(policy="beta", threshold=0.96)
    assert version() == version(policy="never")


# ---------------------------------------------------------------- the salt


def salted(folder: Path, name: str = "log") -> Settings:
    return Settings(store=Store(url=f"sqlite:///{folder}/{name}.db"))


@pytest.fixture(autouse=True)
def no_salt_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUFFICE_SALT", raising=False)


def test_the_salt_is_kept_beside_the_log_for_its_owner_alone(tmp_path: Path) -> None:
    salt = deployment_salt(salted(tmp_path))
    file = tmp_path / "log.salt"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert len(salt) == 32
    assert file.read_text() == salt
    assert [f.name for f in tmp_path.iterdir()] == ["log.salt"]


def test_the_salt_is_stable_and_each_log_has_its_own(tmp_path: Path) -> None:
    salt = deployment_salt(salted(tmp_path))
    assert deployment_salt(salted(tmp_path)) == salt
    assert deployment_salt(salted(tmp_path, "other")) != salt


def test_processes_that_start_at_once_agree_on_the_salt(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        for n in range(20):
            one = salted(tmp_path, f"log-{n}")
            results = set(pool.map(deployment_salt, [one] * 16))
            assert len(results) == 1
            assert len(results.pop()) == 32


def test_an_empty_salt_is_refused_rather_than_used(tmp_path: Path) -> None:
    (tmp_path / "log.salt").write_text("\n")
    with pytest.raises(ConfigError, match=r"log\.salt: needs one line with the secret"):
        deployment_salt(salted(tmp_path))


def test_a_salt_in_the_environment_wins_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUFFICE_SALT", "pepper")
    assert deployment_salt(salted(tmp_path)) == "pepper"
    assert list(tmp_path.iterdir()) == []


EXAMINED = Findings(examination_id="e", upstream="up", url_key="k", model="m", at_s=0.0)


@pytest.mark.parametrize(
    ("route", "control", "examined", "expected"),
    [
        (
            {"kind": "samples", "samples": 16},
            {},
            False,
            ["about 16 times the tokens of a direct call", "expect a first stop"],
        ),
        ({"kind": "samples"}, {}, False, []),
        ({}, {}, False, ["unverified: nobody has examined upstreams.up", "it needs a [routes.math.probe] table"]),
        ({}, {}, True, ["it needs a [routes.math.probe] table"]),
        ({"probe": {}}, {}, True, ["expect a first stop"]),
        ({"probe": {"verified_by": "owner"}}, {}, True, ["owner's word (probe.verified_by)", "expect a first stop"]),
        ({"probe": {}, "max_em_drop": 0.0}, {}, True, ["can never be certified"]),
        ({"probe": {}, "mode": "enforce"}, {"enabled": False}, True, ["only while suffice worker runs"]),
        ({"mode": "off", "kind": "samples", "samples": 16}, {}, False, []),
    ],
)
def test_what_an_owner_should_know_is_said_when_a_route_is_read(
    route: dict[str, Any], control: dict[str, Any], examined: bool, expected: list[str]
) -> None:
    settings = parse_settings(
        {"upstreams": {"up": {"url": "http://h"}}, "routes": {"math": {"upstream": "up", **route}}, "control": control}
    )
    notes = route_notes(settings, StartupEvidence(upstreams={"up": EXAMINED} if examined else {}))
    assert len(notes) == len(expected) <= 3
    for note, words in zip(notes, expected, strict=True):
        assert note.startswith("routes.math: ")
        assert words in note
    assert route_notes(settings, StartupEvidence(), ["another"]) == []


def test_config_check_says_what_a_vote_costs(tmp_path: Path) -> None:
    done = check(write(tmp_path, GOOD + 'kind = "samples"\nsamples = 16\n'))
    assert done.exit_code == 0, done.output
    assert "note: routes.math: asks up to 16 times a request (samples = 16), which is about 16 times" in done.output
