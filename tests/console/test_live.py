"""The first page live: it is told what has changed, nothing else, and what it is told is rendered once for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from suffice.console import render
from suffice.console.app import ConsoleApp
from suffice.settings import Settings
from suffice.wiring.worker import open_worker
from tests.console.made import fill, more
from tests.console.visitor import Visitor, people_of, settings_in, site


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[tuple[Settings, ConsoleApp, str]]:
    settings = settings_in(tmp_path)
    secret = people_of(settings).first() or ""
    fill(tmp_path, settings, now_s=time.time())
    with site(settings) as app:
        yield settings, app, secret


def logged_in(app: ConsoleApp, secret: str) -> Visitor:
    visitor = Visitor(app)
    visitor.login(secret)
    return visitor


def test_who_watches_is_told_what_changed_and_it_is_rendered_once_for_all(
    watched: tuple[Settings, ConsoleApp, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, app, secret = watched
    watchers, rendered, page = [logged_in(app, secret) for _ in range(3)], list[str](), render.page

    def noted(name: str, values: Mapping[str, Any]) -> bytes:
        rendered.append(name)
        return page(name, values)

    monkeypatch.setattr(render, "page", noted)
    first = [one.get("/console/live?days=30") for one in watchers]
    (mark,) = {got.headers["x-mark"] for got in first}
    assert {got.body for got in first} == {b""}, "what the page shows already"
    assert watchers[0].get(f"/console/live?days=30&mark={mark}").body == b"", "nothing has changed"
    more(settings, now_s=time.time())
    with open_worker(settings, learning=False) as here:
        here.once("rollup")
    replies = [one.get(f"/console/live?days=30&mark={mark}") for one in watchers]
    (now,) = {got.headers["x-mark"] for got in replies}
    assert now != mark
    assert all("41 requests" in got.text for got in replies)
    assert rendered == ["_overview.html"]
    assert watchers[0].get(f"/console/live?days=30&mark={now}").body == b""
    assert b"41 requests" in watchers[0].get(f"/console/live?days=all&mark={mark}").body, "each time range has its own"


def test_watching_ends_with_the_session(watched: tuple[Settings, ConsoleApp, str]) -> None:
    _, app, secret = watched
    visitor = logged_in(app, secret)
    copy = Visitor(app, cookies=dict(visitor.cookies))
    assert copy.get("/console/live?days=7", hx_request="true").status == 200
    visitor.post("/console/logout", {"csrf": visitor.token()})
    assert copy.get("/console/live?days=7", hx_request="true").status == 401
