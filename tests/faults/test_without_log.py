"""A gateway without its log: it serves what it served last, for a while, and a person can take everything back."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import sqlite3
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice.cli.main import main
from suffice.gateway.context import GatewayState
from suffice.gateway.last_good import write_last_good as write_good
from suffice.settings import Settings
from suffice.store.database.views import read_events
from suffice.store.database.writer import LogWriter
from suffice.store.people.alerts import Notice
from suffice.store.rows.events import Event, LogOutage, VersionRefusal
from suffice.types import Pause
from suffice.wiring import startup
from suffice.wiring.worker import open_decisions
from suffice_testing import FakeUpstream
from tests import gateway_process as process
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, settings_for
from tests.gateway.test_last_good import GOOD
from tests.gateway.test_log_follower import FOUR, ROUTE, began, decide, drawn, published, write
from tests.gateway_process import GatewayProcess
from tests.stalls import StallMeter

OWN = {**ROUTE, "uncertified": True, "policy": {"policy": "stable-answer", "streak": 3}}  # its owner's word is enough
PAUSED = Pause(route="r", number=1, cause="person", reason="wrong answers", author="ann")


async def until(g: Served, done: Callable[[GatewayState], bool], *, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not done(g.gateway):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)


async def served_before(serve: Serve, *events: Event, route: dict[str, Any] = ROUTE) -> int:
    """Have a gateway serve level 2, and what else is decided; the port of its upstream, for the next one."""
    async with serve(FOUR, route=route) as g:
        if route is ROUTE:
            await decide(g, began(), published(g.gateway.settings, 2))
        for event in events:
            await decide(g, event)
        await unchanged(await g.kept('"number":1'))
        return int(g.fake.url.rpartition(":")[2])


async def unchanged(file: Path) -> None:
    """Wait until the file has not been written for a while: a gateway writes it after a change is in force."""
    before_ns = -1
    while before_ns != (now_ns := file.stat().st_mtime_ns):  # noqa: ASYNC240 - a look at a local file
        before_ns = now_ns
        await asyncio.sleep(0.3)


def spoil(database: Path) -> None:
    """Damage the log in the middle of its pages."""
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(database.read_bytes())
    for at in range(8_192, len(content), 4_096):
        content[at : at + 64] = b"\xff" * 64
    database.write_bytes(content)


def lose(database: Path) -> None:
    """Take the log away, as a volume that is not mounted."""
    for name in ("log.db", "log.db-wal", "log.db-shm"):
        database.with_name(name).unlink(missing_ok=True)


@contextmanager
def stuck(database: Path) -> Iterator[None]:
    """Hold the log as a program does that hangs in the middle of a write."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


# --------------------------------------------------------------------------- a gateway that starts


@pytest.mark.parametrize("damage", [spoil, lose])
async def test_a_gateway_that_starts_without_its_log_serves_what_it_served_and_says_so(
    serve: Serve, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    port = await served_before(serve)
    damage(tmp_path / "log.db")
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
        assert await drawn(g) == 3, "as before"
        assert g.gateway.deployment.routes[0].certified
        assert await drawn(g, model="another") == 8, "what no evidence speaks of runs in full"
        async with g.session.get(g.url + "/readyz") as response:
            assert (response.status, await response.json()) == (200, {"status": "ready", "without_log": "last good"})
        async with g.session.post(
            g.url + "/v1/feedback", json={"feedback_id": "f", "episode_id": "e", "correct": True, "source": "user"}
        ) as response:
            assert response.status == 503, "its sender keeps it"
        assert g.gateway.metrics.value("suffice_log_unread_seconds") > 0
    assert (tmp_path / "log.db").exists() is (damage is spoil), "nothing is made in the place of what may come back"
    assert "the last-good file is served until it can be opened" in caplog.text
    assert ("is missing" if damage is lose else "restore a backup") in caplog.text


async def test_people_are_told_by_the_gateway_itself_as_the_job_that_does_it_reads_the_log(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notices = list[Notice]()

    class Kept:
        name = "kept"

        def send(self, notice: Notice, *, at_s: float, link: str | None) -> str | None:
            assert (at_s > 0, link) == (True, None)
            notices.append(notice)
            return None

    port = await served_before(serve)
    spoil(tmp_path / "log.db")
    monkeypatch.setattr(startup, "sinks_of", lambda _: (Kept(),))
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
        await until(g, lambda _: bool(notices))
    assert [one.kind for one in notices] == ["log_missed"]
    assert notices[0].sentence.endswith("the last-good file is served")


async def test_a_folder_that_is_gone_with_the_log_is_survived_by_a_file_on_another_disk(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SUFFICE_SALT", "the deployment's secret")
    volume, disk = tmp_path / "volume", tmp_path / "disk"
    store = {"url": f"sqlite:///{volume}/log.db", "last_good_file": f"{disk}/suffice.good"}
    volume.mkdir()
    async with serve(FOUR, route=ROUTE, store=store) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        async with asyncio.timeout(60):
            while not (good := disk / "suffice.good").exists() or '"number":1' not in good.read_text("utf-8"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        port = int(g.fake.url.rpartition(":")[2])
    shutil.rmtree(volume)
    async with serve(FOUR, route=ROUTE, store=store, fake={"port": port}) as g:
        assert await drawn(g) == 3
    assert not volume.exists()


async def test_a_log_that_is_held_at_the_start_is_used_when_it_is_let_go_and_rows_that_waited_are_written(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("suffice.store.database.sqlite.OPEN_BUSY_S", 0.1)
    monkeypatch.setattr(startup, "RETRY_S", (0.1, 0.2))
    port = await served_before(serve)
    with stuck(tmp_path / "log.db"):
        ours = serve(FOUR, route=ROUTE, fake={"port": port})
        g = await ours.__aenter__()
        assert await drawn(g) == 3
        await asyncio.sleep(0.5)
        assert g.gateway.deployment.log_problem is not None, "it is tried again and again"
    try:
        await until(g, lambda gw: gw.deployment.log_problem is None and not gw.deployment.serves)
        assert g.gateway.deployment.routes[0].certified
        assert await drawn(g) == 3
        requests = [item.episode.request for item in await g.episodes(2)]
        missed = [one.event for one in read_events(g.database) if isinstance(one.event, LogOutage)]
        async with g.session.get(g.url + "/console/login") as response:
            assert response.status == 200, "the console is there again"
    finally:
        await ours.__aexit__(None, None, None)
    assert [request.certified for request in requests] == [True, True]
    assert [(one.after, one.n_dropped) for one in missed] == [("the last-good file", 0)]
    assert missed[0].n_rows >= 2
    assert missed[0].until_s - missed[0].since_s >= 0.5


def test_a_real_gateway_starts_on_a_full_disk_and_serves_what_it_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = {"routes": {"r": {"upstream": "up", **ROUTE}}, "console": {"enabled": False}, "control": {"enabled": False}}

    def n_drawn(gateway: GatewayProcess, fake: FakeUpstream) -> int:
        before = len(fake.completions)
        body = json.dumps(chat("how many?")).encode()
        requested = urllib.request.Request(
            gateway.url + "/v1/chat/completions", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(requested) as reply:
            assert reply.status == 200
        return len(fake.completions) - before

    with FakeUpstream.in_thread(FOUR) as fake:
        raw |= {"upstreams": {"up": {"url": fake.url, "driver": "llama.cpp"}}}
        settings = settings_for(fake.url, tmp_path, routes=raw["routes"])
        with open_decisions(settings):
            pass
        write(settings, began(), published(settings, 2))
        with GatewayProcess.serving(tmp_path, raw) as gateway:
            end_s = time.monotonic() + 30
            while not (tmp_path / "log.db.good").exists() and time.monotonic() < end_s:
                time.sleep(0.05)
            assert n_drawn(gateway, fake) == 3
        limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, {resource.RLIM_INFINITY})); "
        monkeypatch.setattr(process, "_ENTRY", limit + process._ENTRY)
        with GatewayProcess.serving(tmp_path, raw, log_level="error") as gateway:
            assert n_drawn(gateway, fake) == 3
            with urllib.request.urlopen(gateway.url + "/readyz") as reply:
                assert json.load(reply)["without_log"] == "last good"


@pytest.mark.slow(keep=3)
@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (spoil, "no file"),
        (spoil, "another secret"),
        (spoil, "a changed byte"),
        (spoil, "too old"),
        (lose, "too old"),
    ],
)
async def test_with_neither_everything_runs_in_full_a_policy_of_its_owners_too(
    serve: Serve, tmp_path: Path, damage: Callable[[Path], None], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = await served_before(serve)
    file = tmp_path / "log.db.good"
    damage(tmp_path / "log.db")
    if what == "no file":
        file.unlink()
    elif what == "another secret":
        monkeypatch.setenv("SUFFICE_SALT", "somebody else's")
    elif what == "too old":
        await asyncio.sleep(0.5)
    else:
        file.write_bytes(file.read_bytes().replace(b'"level":2', b'"level":1'))
    store = {"last_good_s": 0.1} if what == "too old" else {}
    routes = {"r": {"upstream": "up", **ROUTE}, "own": {"upstream": "up", "match": {"model": "own"}, **OWN}}
    async with serve(FOUR, routes=dict(reversed(routes.items())), store=store, fake={"port": port}) as g:
        assert await drawn(g) == 8
        assert await drawn(g, model="own") == 8
        async with g.session.get(g.url + "/readyz") as response:
            assert await response.json() == {"status": "ready", "without_log": "full"}


async def test_at_zero_seconds_no_file_is_written_and_none_is_served(serve: Serve, tmp_path: Path) -> None:
    port, file = await served_before(serve), tmp_path / "log.db.good"
    before_ns = file.stat().st_mtime_ns
    async with serve(FOUR, route=ROUTE, store={"last_good_s": 0}, fake={"port": port}) as g:
        assert await drawn(g) == 3
        await asyncio.sleep(0.3)
    assert file.stat().st_mtime_ns == before_ns
    spoil(tmp_path / "log.db")
    async with serve(FOUR, route=ROUTE, store={"last_good_s": 0}, fake={"port": port}) as g:
        assert g.gateway.deployment.serves == "full"
        assert await drawn(g) == 8


async def test_what_a_person_has_paused_stays_paused_without_the_log_with_a_certificate_or_a_policy_of_its_owners(
    serve: Serve, tmp_path: Path
) -> None:
    for route in (ROUTE, OWN):
        port = await served_before(serve, PAUSED, route=route)
        spoil(tmp_path / "log.db")
        async with serve(FOUR, route=route, fake={"port": port}) as g:
            assert g.gateway.deployment.serves == "last good"
            assert await drawn(g) == 8
        for name in list(tmp_path.glob("log.db*")):  # noqa: ASYNC240 - a handful
            name.unlink()


async def test_a_route_that_the_file_does_not_know_runs_in_full(serve: Serve, tmp_path: Path) -> None:
    port = await served_before(serve)
    spoil(tmp_path / "log.db")
    routes = {"own": {"upstream": "up", "match": {"model": "own"}, **OWN}, "r": {"upstream": "up", **ROUTE}}
    async with serve(FOUR, routes=routes, fake={"port": port}) as g:
        assert await drawn(g) == 3
        assert await drawn(g, model="own") == 8


# --------------------------------------------------------------------------- a gateway that runs


async def test_what_is_in_force_goes_on_for_so_long_and_then_all_runs_in_full_until_the_log_is_back(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(FOUR, route=ROUTE, store={"last_good_s": 2.0}) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        away = g.database.with_name("away.db")
        g.database.rename(away)
        await until(g, lambda gw: gw.deployment.serves == "last good")
        assert await drawn(g) == 3
        await until(g, lambda gw: gw.deployment.serves == "full")
        assert await drawn(g) == 8
        away.rename(g.database)
        g.gateway.deployment.notify()
        await until(g, lambda gw: not gw.deployment.serves)
        assert await drawn(g) == 3
        assert g.gateway.metrics.value("suffice_log_unread_seconds") == 0


async def test_a_version_that_cannot_be_loaded_leaves_the_last_good_one_in_force_and_everybody_is_told(
    serve: Serve, tmp_path: Path
) -> None:
    routes = {name: {"upstream": "up", "match": {"model": name}, **ROUTE} for name in ("m", "n")}
    crashes, broken = "v-crashes", "v-broken"

    def refused(gw: GatewayState) -> float:
        return gw.metrics.value("suffice_versions_refused_total", route="m")

    def bad(settings: Settings, fit: str, number: int, *more: Event) -> None:
        with open_decisions(settings) as writer:
            events = [published(settings, 2, number=number, name="m", fit=fit), *more]
            writer.write(None, events, {crashes: "[" * 200_000, broken: '{"schema": 1}'})

    async with serve(FOUR, routes=routes) as g:
        settings = g.gateway.settings
        known = (("n", "m", "fake-1"),)
        await decide(
            g,
            began(name="m"),
            published(settings, 1, name="m"),
            began(name="n"),
            published(settings, 1, name="n", upstream=known),
        )
        assert (await drawn(g), await drawn(g, model="n")) == (5, 5)
        for number, fit in enumerate((broken, crashes), 2):
            bad(settings, fit, number, began(number, name="n"))
            g.gateway.deployment.notify()
            while refused(g.gateway) < number - 1:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
            assert await drawn(g) == 5, "as it was certified"
            assert await drawn(g, model="n") == 8, "a brake on another route is not held up"
        log = g.gateway.log
        assert isinstance(log, LogWriter)
        assert log.drain(60)
        rows = [one.event for one in read_events(g.database) if isinstance(one.event, VersionRefusal)]
        assert [(one.number, one.fit) for one in rows] == [(2, broken), (3, crashes)]
        assert {one.serves for one in rows} == {"publication 1 stays active"}
        assert rows[1].reason.startswith(f"version {crashes}: cannot be read as JSON: maximum recursion depth exceeded")
        port = int(g.fake.url.rpartition(":")[2])
        await unchanged(g.good_file)
    async with serve(FOUR, routes=routes, fake={"port": port}) as g:
        assert await drawn(g) == 5, "the last-good file knows it after a restart, too"
        await decide(g, published(settings, 0, number=4, name="m"))
        assert await drawn(g) == 8, "what is taken back is taken back"
        bad(settings, broken, 5)
        g.gateway.deployment.notify()
        await until(g, lambda gw: refused(gw) == 2)
        assert await drawn(g) == 8, "and does not come back for a version that is broken"


def test_the_file_holds_no_secret_and_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written by a real gateway whose upstream's key and address, and whose own keys, are canaries."""
    monkeypatch.setenv("UP_KEY", "sk-canary-upstream")
    monkeypatch.setenv("OUR_KEYS", "sk-canary-ours")
    raw = {
        "upstreams": {"up": {"url": "http://127.0.0.1:9/canary?password", "api_key_env": "UP_KEY"}},
        "server": {"api_keys_env": "OUR_KEYS"},
        "routes": {"r": {"upstream": "up", **ROUTE}},
        "console": {"enabled": False},
        "control": {"enabled": False},
    }
    with GatewayProcess.serving(tmp_path, raw):
        end_s = time.monotonic() + 30
        while not (tmp_path / "log.db.good").exists() and time.monotonic() < end_s:
            time.sleep(0.05)
    content = (tmp_path / "log.db.good").read_text(encoding="utf-8")
    secret = (tmp_path / "log.salt").read_text(encoding="utf-8").strip()
    assert '"routes":{"r":' in content
    assert not [word for word in ("canary", "password", "127.0.0.1", secret) if word in content]


# --------------------------------------------------------------------------- the drill


def configured(config: Path, url: str) -> None:
    config.write_text(
        process.nested_toml(
            {
                "upstreams": {"up": {"url": url}},
                "routes": {"r": {"upstream": "up", **ROUTE}},
                "store": {"url": f"sqlite:///{config.with_name('log.db')}"},
            }
        )
    )


async def test_a_rollback_without_the_log_is_refused_with_the_way_out_which_works_within_a_second_under_load(
    serve: Serve, tmp_path: Path
) -> None:
    port = await served_before(serve)
    spoil(tmp_path / "log.db")
    config = tmp_path / "suffice.toml"
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g, StallMeter() as stalls:
        configured(config, g.fake.url)
        stops, n, done = list[float](), 0, False

        async def client(name: int) -> None:
            nonlocal n
            while not done:
                n += 1
                answer = await g.ask(chat(f"question {name} {n}", suffice={}))
                assert answer.status == 200
                if (answer.report or {}).get("stopped"):
                    stops.append(time.monotonic())

        async def command(*words: str) -> Any:
            return await asyncio.to_thread(CliRunner().invoke, main, [*words, "--config", str(config)])

        clients = [asyncio.create_task(client(name)) for name in range(16)]
        await until(g, lambda _: len(stops) > 20)
        for words in (("policy", "rollback"), ("pause",)):
            refused = await command(*words, "r", "--reason", "wrong answers")
            assert refused.exit_code == 2
            assert "Nothing was written. `suffice kill` needs no database." in refused.output
        pulled = await command("kill", "--reason", "wrong answers")
        assert pulled.exit_code == 0
        pulled_s = time.monotonic()
        n_before = n
        await asyncio.sleep(1.5)
        async with asyncio.timeout(60):  # it goes on serving
            while n < n_before + 2 * len(clients):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        done = True
        await asyncio.gather(*clients)
        assert await drawn(g) == 8
    assert max(stops) - pulled_s < 1.0 + stalls.total_s
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
        assert g.gateway.deployment.kill.on, "a gateway that starts looks for it, too"
        assert await drawn(g) == 8


def test_no_command_makes_a_log_in_the_place_of_one_that_is_gone(tmp_path: Path) -> None:
    config = tmp_path / "suffice.toml"
    configured(config, "http://127.0.0.1:9")
    (tmp_path / "log.salt").write_text("ours")
    write_good(tmp_path / "log.db.good", GOOD, secret="ours")
    for words in (["pause", "r", "--reason", "x"], ["policy", "rollback", "r", "--reason", "x"]):
        done = CliRunner().invoke(main, [*words, "--config", str(config)])
        assert done.exit_code == 2
        assert "restore it, or delete that file as well to start over" in done.output
    assert not (tmp_path / "log.db").exists()
    (tmp_path / "log.db.good").unlink()
    done = CliRunner().invoke(main, ["pause", "r", "--reason", "x", "--config", str(config)])
    assert (done.exit_code, "names this log" in done.output) == (2, True)
    assert not (tmp_path / "log.db").exists()
