"""A reload says beforehand what it would change: in the console, the API and on the command line alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.store.database.views import newest_event
from suffice.store.rows.events import ConfigChange
from suffice_testing import FakeUpstream, Reply
from tests.gateway.test_reload import KEYS, Served, waits_for
from tests.gateway_process import GatewayProcess


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A gateway whose settings file has changed since."""
    with FakeUpstream.in_thread(Reply(answer=("four",))) as fake:
        raw = {
            "keys": {"root": {"key_env": "ROOT", "scopes": ["complete", "feedback", "admin"]}},
            "upstreams": {"up": {"url": fake.url}},
            "routes": {"r": {"upstream": "up"}, "old": {"upstream": "up"}},
            "control": {"enabled": False},
        }
        with GatewayProcess.serving(tmp_path_factory.mktemp("preview"), raw, environment=KEYS) as process:
            served = Served(process, fake, raw)
            waits_for(lambda: newest_event(process.database, ConfigChange) is not None)
            del served.raw["routes"]["old"]
            served.write(
                routes={"r": {"max_em_drop": 0.03}, "new": {"upstream": "up"}},
                server={"keepalive_s": 3.0},
                upstreams={"more": {"url": "http://127.0.0.1:1/v1"}},
            )
            yield served


def settings_of(served: Served) -> Any:
    row = newest_event(served.process.database, ConfigChange)
    assert row is not None
    return row.settings


PATHS = ["routes.new", "routes.old", "routes.r.max_em_drop", "server.keepalive_s", "upstreams.more"]


def test_the_api_lists_each_setting_before_and_after_and_changes_nothing(changed: Served) -> None:
    before = settings_of(changed)
    report = changed.ask("POST", "/v1/admin/reload", {"preview": True}).json
    by_path = {one["path"]: one for one in report["changes"]}
    assert (report["done"], sorted(by_path)) == (False, PATHS)
    assert (by_path["routes.r.max_em_drop"]["before"], by_path["routes.r.max_em_drop"]["after"]) == ("0.02", "0.03")
    assert (by_path["routes.new"]["before"], by_path["routes.old"]["after"]) == (None, None)
    waiting = {path: one["waits"] for path, one in by_path.items() if one["waits"]}
    assert waiting.keys() == {"server.keepalive_s"} == set(report["need_restart"])
    assert "would change" in report["message"]
    assert settings_of(changed) == before


def test_the_console_shows_the_same_in_its_form_and_the_command_on_its_lines(changed: Served) -> None:
    report = changed.ask("POST", "/v1/admin/reload", {"preview": True}).json
    rows = changed.ask("POST", "/api/settings/reload", {"preview": "true"}).json["preview"]["rows"]
    assert [one["kind"] for one in rows] == [one["path"] for one in report["changes"]]
    assert [bool(one["note"]) for one in rows] == [bool(one["waits"]) for one in report["changes"]]
    config = str(changed.process.folder / "suffice.toml")
    lines = CliRunner().invoke(main, ["reload", "--preview", "--config", config], env=KEYS).stdout.splitlines()
    assert [one.partition(": ")[0] for one in lines[:-1]] == PATHS
    assert "routes.r.max_em_drop: 0.02 → 0.03" in lines
    assert "needs a restart: sockets" in next(one for one in lines if one.startswith("server.keepalive_s"))
    assert "serve" in lines[-1]


def test_a_preview_refuses_what_the_reload_would(changed: Served) -> None:
    right = changed.raw
    changed.write(routes={"r": {"max_em_drop": 7}})
    for path, body in (("/v1/admin/reload", {"preview": True}), ("/api/settings/reload", {"preview": "true"})):
        refused = changed.ask("POST", path, body)
        assert (refused.status, "nothing was reloaded" in refused.raw.decode()) == (409, True)
    changed.raw = right
    changed.write()


def test_a_reload_asks_in_the_console_why_and_writes_one_row(changed: Served) -> None:
    for path, body in (
        ("/api/settings/reload", {}),
        ("/v1/admin/reload", {"reason": 7}),
        ("/v1/admin/reload", {"no": 1}),
    ):
        assert changed.ask("POST", path, body).status == 400, path
    first = newest_event(changed.process.database, ConfigChange)
    done = changed.ask("POST", "/api/settings/reload", {"reason": "a larger budget"})
    assert (done.status, "3 settings" in done.json["message"] or "4 settings" in done.json["message"]) == (200, True)
    row = newest_event(changed.process.database, ConfigChange)
    assert first is not None
    assert row is not None
    assert (row.number, row.reason) == (first.number + 1, "a larger budget")
    again = changed.ask("POST", "/v1/admin/reload", {"preview": True}).json
    assert [one["path"] for one in again["changes"]] == ["server.keepalive_s"], (
        "what waits for a restart goes on waiting"
    )
