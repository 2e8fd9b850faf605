"""A reload: what changes, what says that it needs a restart, and what a broken file leaves as it was."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.store.database.views import newest_event
from suffice.store.rows.events import ConfigChange
from suffice_testing import FakeUpstream, Reply
from tests.attacks.tenants import CHAT, Answer, Target, chat
from tests.gateway_process import GatewayProcess, nested_toml

TAKES_S = 20.0  # at most, on a busy machine
KEYS = {"ROOT": "sk-root", "PLAIN": "sk-plain", "NEW": "sk-new"}


@dataclass
class Served:
    process: GatewayProcess
    fake: FakeUpstream
    raw: dict[str, Any]
    n_reloads: int = field(default=0)

    def ask(self, method: str, path: str, body: Any = None, key: str = "sk-root") -> Answer:
        return Target(self.process, self.fake).ask(method, path, key, body)

    def write(self, **tables: Any) -> None:
        self.raw = merged(self.raw, tables)
        stored = {"store": {"url": f"sqlite:///{self.process.folder / 'log.db'}"}}
        text = nested_toml(merged(stored, self.raw))
        (self.process.folder / "suffice.toml").write_text(text, encoding="utf-8")

    def reload(self) -> Answer:
        return self.ask("POST", "/v1/admin/reload")


def merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(before)
    for name, value in changes.items():
        old = result.get(name)
        result[name] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def waits_for(what: Callable[[], bool]) -> None:
    end_s = time.monotonic() + TAKES_S
    while not what():
        assert time.monotonic() < end_s
        time.sleep(0.05)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with FakeUpstream.in_thread(Reply(answer=("four",))) as fake:
        raw = {
            "keys": {
                "root": {"key_env": "ROOT", "scopes": ["complete", "feedback", "admin"]},
                "plain": {"key_env": "PLAIN"},
            },
            "upstreams": {"up": {"url": fake.url}},
            "routes": {"r": {"upstream": "up"}},
            "control": {"enabled": False},
        }
        with GatewayProcess.serving(tmp_path_factory.mktemp("reload"), raw, environment=KEYS) as process:
            yield Served(process, fake, raw)


def test_routes_keys_upstreams_and_limits_change_without_a_restart(served: Served) -> None:
    pid = served.process.process.pid
    with FakeUpstream.in_thread(Reply(answer=("five",))) as other:
        served.write(
            upstreams={"other": {"url": other.url}},
            routes={"second": {"upstream": "other", "match": {"model": "second"}}},
            keys={"new": {"key_env": "NEW", "requests_per_minute": 1}},
            server={"max_body_bytes": 2_000},
        )
        # The routes' order is that of the file, and the first that matches serves.
        served.raw["routes"] = {"second": served.raw["routes"]["second"], "r": served.raw["routes"]["r"]}
        served.write()
        assert served.ask("POST", CHAT, chat(), key="sk-new").status == 401
        result = served.reload()
        assert result.status == 200, result.raw
        assert set(result.json["applied"]) == {"keys.new", "upstreams.other", "routes.second", "server.max_body_bytes"}
        assert result.json["need_restart"] == []
        answer = served.ask("POST", CHAT, chat(model="second"), key="sk-new")
        assert answer.headers["x-suffice-route"] == "second"
        assert answer.json["choices"][0]["message"]["content"] == "five"
        assert served.ask("POST", CHAT, chat(), key="sk-new").status == 429, "its limit holds"
        assert served.ask("POST", CHAT, chat(user="x" * 3_000)).status == 413
        assert served.ask("POST", CHAT, chat()).headers["x-suffice-route"] == "r"
        del served.raw["routes"]["second"], served.raw["upstreams"]["other"], served.raw["keys"]["new"]
        served.write()
        assert set(served.reload().json["applied"]) == {"keys.new", "upstreams.other", "routes.second"}
    assert served.ask("POST", CHAT, chat(model="second")).headers["x-suffice-route"] == "r"
    assert served.ask("POST", CHAT, chat(), key="sk-new").status == 401
    assert served.process.process.pid == pid
    assert served.process.process.poll() is None


def test_a_setting_that_needs_a_restart_is_named_and_the_others_apply(served: Served) -> None:
    served.write(server={"port": 1, "max_depth": 77}, store={"queue_rows": 7})
    result = served.reload().json
    assert set(result["need_restart"]) == {"server.port", "store.queue_rows"}
    assert result["applied"] == ["server.max_depth"]
    assert "server.port" in result["message"]
    del served.raw["server"]["port"], served.raw["store"]


BROKEN: dict[str, dict[str, Any]] = {
    "an unknown setting": {"server": {"max_dept": 3}},
    "a value out of range": {"routes": {"r": {"max_em_drop": 7}}},
    "a route without its upstream": {"routes": {"r": {"upstream": "nowhere"}}},
    "a key that the environment lacks": {"keys": {"more": {"key_env": "NOT_THERE"}}},
    "a policy that nobody knows": {"routes": {"r": {"policy": {"policy": "unknown"}}}},
    "a path that Suffice answers itself": {"experiments": {"e": {"routes": ["nope"], "arms": {}}}},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_changes_nothing_at_all(served: Served, name: str) -> None:
    before = served.raw
    served.write(**merged({"server": {"max_body_bytes": 900}}, BROKEN[name]))
    result = served.reload()
    assert (result.status, result.code) == (409, "conflict")
    assert "nothing was reloaded" in result.raw.decode()
    assert served.ask("POST", CHAT, chat(user="x" * 950)).status == 200, "the limit beside the mistake does not apply"
    served.raw = before
    served.write()


def test_who_reloaded_what_and_when_stands_in_the_audit_log(served: Served) -> None:
    served.write(server={"max_items": 1_234})
    assert served.reload().status == 200
    row = newest_event(served.process.database, ConfigChange)
    assert row is not None
    assert row.author == "key root"
    assert [(one.path, one.after) for one in row.changes] == [("server.max_items", "1234")]
    assert "reloaded" in row.reason


@pytest.mark.parametrize("key", ["sk-plain", "sk-unknown", ""])
def test_only_a_key_with_the_scope_admin_reloads(served: Served, key: str) -> None:
    before = newest_event(served.process.database, ConfigChange)
    served.write(server={"max_items": 4_321})
    assert served.ask("POST", "/v1/admin/reload", key=key).status == (403 if key == "sk-plain" else 401)
    assert newest_event(served.process.database, ConfigChange) == before


def test_sighup_reloads_and_requests_in_flight_go_on(served: Served, tmp_path: Path) -> None:
    says = Reply(reasoning=("so\n",) * 20, answer=("4",), delay_s=0.05)
    answers = list[Answer]()
    with FakeUpstream.in_thread(says) as slow:
        served.write(upstreams={"slow": {"url": slow.url}}, routes={"r": {"upstream": "slow"}})
        served.process.process.send_signal(signal.SIGHUP)
        waits_for(lambda: newest_settings(served)["routes.r.upstream"] == '"slow"')
        assert newest_author(served) == ("SIGHUP", "by signal")
        thread = threading.Thread(target=lambda: answers.append(served.ask("POST", CHAT, chat())))
        thread.start()
        waits_for(lambda: slow.in_flight > 0)
        del served.raw["upstreams"]["slow"]
        served.write(routes={"r": {"upstream": "up"}})
        served.process.process.send_signal(signal.SIGHUP)
        waits_for(lambda: newest_settings(served)["routes.r.upstream"] == '"up"')
        thread.join(TAKES_S)
    assert [one.status for one in answers] == [200]
    assert answers[0].json["choices"][0]["message"]["content"] == "4", "from the upstream that it began with"
    assert served.ask("POST", CHAT, chat()).json["choices"][0]["message"]["content"] == "four"


def newest_settings(served: Served) -> Mapping[str, str]:
    row = newest_event(served.process.database, ConfigChange)
    return {} if row is None else row.settings


def newest_author(served: Served) -> tuple[str, str]:
    row = newest_event(served.process.database, ConfigChange)
    assert row is not None
    return row.author, row.reason


def test_the_command_says_what_each_gateway_did_and_the_log_who_asked_for_it_and_why(served: Served) -> None:
    served.write(server={"max_items": 5_555, "keepalive_s": 3.0})
    command = ["reload", "--config", str(served.process.folder / "suffice.toml"), "--author", "Ann", "--reason"]
    result = CliRunner().invoke(main, [*command, "more items"], env=KEYS)
    assert result.exit_code == 0, result.output
    assert newest_author(served) == ("Ann", "more items")
    served.write(server={"max_items": 5_554})
    served.process.process.send_signal(signal.SIGHUP)
    waits_for(lambda: newest_settings(served)["server.max_items"] == "5554")
    assert newest_author(served) == ("SIGHUP", "by signal"), "a reason is for one reload"
    served.write(server={"max_items": 5_555})
    assert CliRunner().invoke(main, [*command, "back"], env=KEYS).exit_code == 0
    assert "server.max_items" in result.stdout
    assert "need a restart and stay as they were: server.keepalive_s" in result.stdout
    served.write(server={"max_items": 0.5})
    refused = CliRunner().invoke(main, [*command, "broken"], env=KEYS)
    assert refused.exit_code == 2
    assert "--reason" in CliRunner().invoke(main, ["reload"]).stderr
    assert json.dumps(5_555) == newest_settings(served)["server.max_items"]
