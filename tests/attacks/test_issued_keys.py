"""Keys that live in the log: made, rotated and revoked while a gateway runs, with scopes, tenants and budgets."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.gateway.auth import Caller
from suffice.gateway.clients import KeyLimitError, KeyLimits, days_of_month
from suffice.settings import Key, parse_settings
from suffice.store.people.keys import valid_keys
from suffice.wiring.keys import key_ring
from tests.attacks.tenants import CHAT, FEEDBACK, RESPONSES, Answer, Target, chat, upstream
from tests.gateway_process import GatewayProcess

FOLLOWS_S = 2.0  # in which a running gateway knows of a change, as promised
PRICES = {"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 10.0}


@dataclass
class Office:
    """A gateway that requires keys, and the commands on its log."""

    target: Target

    def run(self, *words: str) -> str:
        command = ["key", *words, "--config", str(self.target.process.folder / "suffice.toml"), "--reason", "a test"]
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
        return result.stdout

    def listed(self) -> str:
        result = CliRunner().invoke(main, ["key", "list", "--config", str(self.target.process.folder / "suffice.toml")])
        assert result.exit_code == 0, result.output
        return result.stdout

    def create(self, name: str, *options: str) -> str:
        return self.run("create", name, *options).strip()

    def until(self, status: int, key: str) -> float:
        """How long it takes until a request with this key gets this status."""
        began_s = time.monotonic()
        while self.chat(key).status != status:
            assert time.monotonic() - began_s < 30
            time.sleep(0.05)
        return time.monotonic() - began_s

    def chat(self, key: str) -> Answer:
        return self.target.ask("POST", CHAT, key, chat())


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    with upstream() as fake:
        settings = {
            "server": {"require_keys": True},
            "upstreams": {"up": {"url": fake.url, "prices": PRICES}},
            "routes": {"r": {"upstream": "up"}},
            "control": {"enabled": False},
        }
        with GatewayProcess.serving(tmp_path_factory.mktemp("issued"), settings) as process:
            yield Office(Target(process, fake))


def test_a_key_is_made_rotated_and_revoked_while_the_gateway_runs(office: Office) -> None:
    assert office.chat("").status == 401, "a gateway that requires keys is closed while there is none"
    first = office.create("shop")
    assert office.until(200, first) < FOLLOWS_S
    second = office.run("rotate", "shop", "--overlap-hours", "1").strip()
    assert office.until(200, second) < FOLLOWS_S
    assert office.chat(first).status == 200, "both are accepted while they overlap"
    office.run("revoke", "shop")
    assert office.until(401, second) < FOLLOWS_S
    assert office.chat(first).status == 401


def test_the_log_keeps_no_key(office: Office) -> None:
    key = office.create("secretive")
    with contextlib.closing(sqlite3.connect(office.target.process.database)) as connection:
        text = "\n".join(connection.iterdump())
    assert key not in text
    assert key.rpartition("-")[2] not in text
    assert key not in office.listed()
    assert key.encode() not in office.target.process.stderr()


def test_who_changed_a_key_stands_in_the_audit_log(office: Office) -> None:
    office.create("audited")
    command = ["audit", "show", "--config", str(office.target.process.folder / "suffice.toml"), "--json"]
    result = CliRunner().invoke(main, [*command, "--kind", "key_issued"])
    assert result.exit_code == 0, result.output
    entries = [json.loads(line) for line in result.stdout.splitlines()]
    assert any("audited" in json.dumps(one) and "a test" in json.dumps(one) for one in entries)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("complete",), {CHAT, "/metrics"}),
        (("feedback",), {FEEDBACK}),
        (("read",), {"/metrics"}),
        ((), {CHAT, FEEDBACK, "/metrics"}),
    ],
)
def test_a_key_does_what_its_scopes_say_and_nothing_else(
    office: Office, scopes: tuple[str, ...], allowed: set[str]
) -> None:
    key = office.create("-".join(("scoped", *scopes)), *(word for one in scopes for word in ("--scope", one)))
    office.until(200 if CHAT in allowed else 403, key)
    label = {"feedback_id": "f", "response_id": "unknown", "source": "user", "thumbs": "up"}
    request = {
        CHAT: office.chat(key).status,
        FEEDBACK: office.target.ask("POST", FEEDBACK, key, label).status,
        "/metrics": office.target.ask("GET", "/metrics", key).status,
    }
    assert {path for path, status in request.items() if status == 200} == allowed
    assert {status for path, status in request.items() if path not in allowed} <= {403}


def test_a_tenant_sees_its_own_objects_and_no_other_tenants(office: Office) -> None:
    keys = {
        name: office.create(name, "--tenant", tenant, *more)
        for name, tenant, more in (
            ("acme-app", "acme", ()),
            ("acme-root", "acme", ("--all-objects",)),
            ("other-root", "other", ("--all-objects",)),
        )
    }
    root = office.create("root", "--all-objects")
    for key in (*keys.values(), root):
        office.until(200, key)
    assert office.target.ask("POST", RESPONSES, keys["acme-app"], {"model": "m", "input": "a"}).status == 200
    made = office.target.ask("POST", CHAT, keys["acme-app"], chat()).headers["x-suffice-episode-id"]
    statuses = {
        name: office.target.ask("GET", f"{RESPONSES}/resp_1", key).status
        for name, key in (*keys.items(), ("root", root))
    }
    assert statuses == {"acme-app": 200, "acme-root": 200, "other-root": 404, "root": 200}

    def rated(name: str, key: str) -> int:
        label = {"feedback_id": f"by-{name}", "episode_id": made, "source": "user", "thumbs": "up"}
        return office.target.ask("POST", FEEDBACK, key, label).status

    assert {name: rated(name, key) for name, key in keys.items()} == {
        "acme-app": 200,
        "acme-root": 200,
        "other-root": 404,
    }
    assert office.target.ask("GET", "/metrics", keys["acme-root"]).status == 403, "metrics are of all tenants"


def test_a_budget_in_dollars_ends_calls_until_the_next_day(office: Office) -> None:
    key = office.create("poor", "--usd-per-day", "0.0000001")
    office.until(200, key)
    office.until(429, key)  # what a call cost is charged behind it
    refused = office.chat(key)
    assert (refused.status, refused.code) == (429, "insufficient_quota")
    assert "US dollars of today" in refused.raw.decode()


def test_a_budget_of_a_month_outlives_days_and_restarts() -> None:
    who = Caller(id="c", name="team", permits=Key(key_env="", usd_per_month=1.0))
    first_s, day_s = 1_764_547_200.0, 86_400.0  # 2025-12-01
    limits = KeyLimits([who])
    limits.spend("c", 10, usd=0.6, wall_s=first_s)
    limits.spend("c", 10, usd=0.6, wall_s=first_s + 3 * day_s)
    fresh = KeyLimits([who])
    fresh.restore(reversed(limits.take_unwritten()))
    for one in (limits, fresh):
        with pytest.raises(KeyLimitError, match="of this month") as report:
            one.enter(who, spends=True, now_s=0.0, wall_s=first_s + 4 * day_s)
        assert report.value.retry_after_s == 27 * day_s
        one.enter(who, spends=True, now_s=0.0, wall_s=first_s + 31 * day_s)
    assert days_of_month(first_s + 2 * day_s) == ["2025-12-01", "2025-12-02", "2025-12-03"]


def test_a_budget_needs_prices() -> None:
    with pytest.raises(Exception, match=r"keys\.a\.usd_per_day: needs \[upstreams\.up\.prices\]"):
        parse_settings(
            {
                "keys": {"a": {"key_env": "A", "usd_per_day": 1}},
                "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
                "routes": {"r": {"upstream": "up"}},
            }
        )


def test_a_key_of_a_newer_version_is_refused_and_not_given_more(office: Office) -> None:
    office.create("later")
    (issue,) = [one for one in valid_keys(office.target.process.database) if one.name == "later"]
    newer = {**issue.permits, "only_on_sundays": True}
    settings = parse_settings({"server": {"require_keys": True}})
    assert len(key_ring(settings, "s", [issue]).callers) == 1
    ring = key_ring(settings, "s", [replace(issue, permits=newer)])
    assert ring.callers == ()
    assert ring.asks_for_keys


def test_without_the_setting_no_key_of_the_log_opens_or_closes_a_gateway(office: Office) -> None:
    ring = key_ring(parse_settings({}), "s", valid_keys(office.target.process.database))
    assert ring.callers == ()
    assert not ring.asks_for_keys


def test_a_key_acts_in_the_control_api_by_its_scopes(office: Office) -> None:
    keys = {
        scope: office.create(f"for-{scope}", "--scope", scope) for scope in ("complete", "read", "operate", "admin")
    }
    keys["tenant"] = office.create("reader-of-acme", "--scope", "read", "--tenant", "acme")
    office.until(200, office.create("made-last"))

    def ask(method: str, path: str, **body: str) -> dict[str, int]:
        return {
            name: office.target.ask(method, path, key, body if method == "POST" else None).status
            for name, key in keys.items()
        }

    assert ask("GET", "/api/overview") == {"complete": 401, "read": 200, "operate": 200, "admin": 200, "tenant": 403}
    assert ask("GET", "/api/episodes") == {"complete": 401, "read": 200, "operate": 200, "admin": 200, "tenant": 200}
    assert ask("GET", "/api/settings") == {"complete": 401, "read": 403, "operate": 403, "admin": 200, "tenant": 403}
    paused = ask("POST", "/api/routes/pause", route="r", reason="why")
    assert paused == {"complete": 401, "read": 403, "operate": 200, "admin": 409, "tenant": 403}
    assert ask("GET", "/v1/admin/kill") == {"complete": 403, "read": 200, "operate": 200, "admin": 200, "tenant": 403}


def test_a_key_opens_no_page_of_a_browser(office: Office) -> None:
    admin = office.create("page-admin", "--scope", "admin")
    assert office.target.ask("GET", "/console/settings", admin).status == 303, "to the login"


def test_a_gateway_that_starts_without_its_log_still_knows_its_keys(
    tmp_path_factory: pytest.TempPathFactory, office: Office
) -> None:
    folder = tmp_path_factory.mktemp("lost")
    settings = {
        "server": {"require_keys": True},
        "upstreams": {"up": {"url": office.target.fake.url}},
        "routes": {"r": {"upstream": "up"}},
        "control": {"enabled": False},
    }
    with GatewayProcess.serving(folder, settings) as process:
        there = Office(Target(process, office.target.fake))
        key, ended = there.create("kept"), there.create("ended")
        assert there.until(200, ended) < FOLLOWS_S
        there.run("revoke", "ended")
        assert there.until(401, ended) < FOLLOWS_S
        assert there.chat(key).status == 200
        time.sleep(1.5)  # the last-good file is written after the change
    (folder / "log.db").write_bytes(b"not a database")
    (folder / "log.db-wal").unlink(missing_ok=True)
    with GatewayProcess.serving(folder, settings) as process:
        there = Office(Target(process, office.target.fake))
        end_s = time.monotonic() + 10.0  # log lines are written by a thread
        while b"the last-good file is served" not in process.stderr():
            assert time.monotonic() < end_s, process.stderr()
            time.sleep(0.05)
        assert there.chat(key).status == 200
        assert there.chat(ended).status == 401
        assert there.chat("").status == 401
