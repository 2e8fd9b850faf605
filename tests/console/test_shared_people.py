"""Replicas of one log on a server have the same people and sessions: a login, a logout and a reset count at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from suffice.console.app import ConsoleApp
from suffice.errors import ConfigError
from suffice.settings import Settings, Store
from suffice.store.database.location import log_location
from suffice.store.database.postgres import PostgresDatabase
from suffice.wiring.people import NOTE, People
from tests.console.visitor import Visitor, settings_in, site
from tests.postgres import empty_log

WITHIN_S = 2.0  # it is known everywhere


@pytest.fixture
def replicas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Settings]]:
    """Two machines, which share nothing but the database and the secret."""
    monkeypatch.setenv("SUFFICE_SALT", "one secret for all replicas")
    with empty_log() as store:
        made = list[Settings]()
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            here: Store = store
            tables = {"url": here.url, "schema_name": here.schema_name, "local_files": str(tmp_path / name / "suffice")}
            made.append(settings_in(tmp_path, store=tables))
        yield made


@pytest.fixture
def sites(replicas: list[Settings]) -> Iterator[tuple[ConsoleApp, ConsoleApp]]:
    with ExitStack() as stack:
        first, second = (stack.enter_context(site(one)) for one in replicas)
        yield first, second


def within(seconds: float, check: Callable[[], bool]) -> bool:
    ends_s = time.monotonic() + seconds
    while not check():
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.05)
    return True


def test_a_login_at_one_replica_is_one_at_all_and_so_is_its_end(
    replicas: list[Settings], sites: tuple[ConsoleApp, ConsoleApp]
) -> None:
    secret = People.of(replicas[0]).first()
    assert secret is not None
    assert People.of(replicas[1]).first() is None, "the other replica has an admin already"
    first, second = (Visitor(one) for one in sites)
    assert within(WITHIN_S, lambda: 'name="csrf"' in first.get("/console/login").text)
    assert first.login(secret).status == 303
    second.cookies = dict(first.cookies)
    assert within(WITHIN_S, lambda: second.get("/console").status == 200)
    assert first.post("/console/logout", {"csrf": first.token()}).status == 303
    assert within(WITHIN_S, lambda: second.get("/console").status == 303)


def test_a_reset_and_a_removal_end_sessions_everywhere(
    replicas: list[Settings], sites: tuple[ConsoleApp, ConsoleApp]
) -> None:
    people = People.of(replicas[0])
    people.first()
    secrets = {name: people.add(name, "viewer") for name in ("rita", "paul")}
    visitors = {name: Visitor(sites[1]) for name in secrets}
    assert within(WITHIN_S, lambda: 'name="csrf"' in visitors["rita"].get("/console/login").text)
    assert all(visitors[name].login(secrets[name]).status == 303 for name in secrets)
    assert all(one.get("/console").status == 200 for one in visitors.values())
    people.reset("rita")
    people.remove("paul")
    assert within(WITHIN_S, lambda: all(one.get("/console").status == 303 for one in visitors.values()))
    bearer = {"authorization": f"Bearer {secrets['rita']}"}
    assert visitors["rita"].get("/api/overview", **bearer).status == 401


def test_whoever_has_the_database_alone_makes_nobody(
    replicas: list[Settings], sites: tuple[ConsoleApp, ConsoleApp], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert People.of(replicas[0]).first() is not None
    database = log_location(replicas[0].store)
    assert isinstance(database, PostgresDatabase)
    notes = database.notes
    with database.transaction() as connection:
        ((body,),) = connection.execute("SELECT body FROM notes WHERE name = ?", (NOTE,)).fetchall()
        assert "sfc_" not in body
        assert '"key":""' in body, "what signs sessions is not in the database"
        notes.write(connection, NOTE, body.replace('"admin"', '"mallory"', 1))
    with pytest.raises(ConfigError, match="another secret"):
        People.of(replicas[0]).listed()
    monkeypatch.setenv("SUFFICE_SALT", "of somebody else")
    with database.transaction() as connection:
        notes.write(connection, NOTE, body)
    with pytest.raises(ConfigError, match="one SUFFICE_SALT"):
        People.of(replicas[0]).listed()
    monkeypatch.delenv("SUFFICE_SALT")
    with pytest.raises(ConfigError, match="set SUFFICE_SALT"):
        People.of(replicas[0])


def test_people_of_a_file_from_before_are_taken_over_once(
    replicas: list[Settings], sites: tuple[ConsoleApp, ConsoleApp]
) -> None:
    before = People(People.of(replicas[0]).file)
    secret = before.first()
    assert secret is not None
    assert People.of(replicas[0]).first() is None
    assert [one.name for one in People.of(replicas[1]).listed()] == ["admin"]
    visitor = Visitor(sites[1])
    assert within(WITHIN_S, lambda: 'name="csrf"' in visitor.get("/console/login").text)
    assert visitor.login(secret).status == 303
