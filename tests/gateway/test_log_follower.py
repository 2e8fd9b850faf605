"""A gateway follows what is decided: the next request is served by it, the running one keeps what it has."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from suffice import Governor
from suffice.errors import StoreError
from suffice.gateway.log_follower import Follower
from suffice.model.artefact import StopModel, TrainingRecord, canonical
from suffice.model.ensemble import Ensemble, Linear
from suffice.policy.folded_version import FoldedVersion
from suffice.settings import Settings
from suffice.store.database.location import log_location
from suffice.store.database.views import open_reader, read_news
from suffice.store.database.writer import EventQueue
from suffice.store.rows.events import Event
from suffice.types import Epoch, EvidenceSummary, Pause, Publication, Resumption
from suffice.wiring.routes import build_route
from suffice.wiring.worker import open_decisions, open_worker
from suffice_testing import Reply, Samples, cut
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, post, settings_for
from tests.postgres import empty_log
from tests.stalls import StallMeter

# P(as good) rises with the streak: level 1 stops after five equal answers, level 2 after three.
STREAKS = StopModel(
    features=("answer_streak",),
    suffices=Ensemble((Linear((1.0,), -4.0),)),
    trained=TrainingRecord(n_episodes=1, n_questions=1, digest="by hand", target="as-good", seed=0),
)
VERSION = FoldedVersion(models=(STREAKS,), levels=((0.27, 0.74),))
ROUTE = {"kind": "samples", "samples": 15, "wave": 1, "scorer": "number", "mode": "enforce", "audit_share": 0.0}
FOUR = Samples(["it is 4"])


def began(number: int = 1, name: str = "r") -> Epoch:
    return Epoch(route=name, number=number, at=0, since_seq=0, reason="because", author="w", burst=10)


def published(
    settings: Settings, level: int, *, number: int = 1, epoch: int = 1, name: str = "r", **changes: Any
) -> Publication:
    route = settings.routes[name]
    setup = build_route(name, route, upstream=settings.upstreams.get(route.upstream)).setup
    known: dict[str, Any] = {
        "route": name,
        "number": number,
        "epoch": epoch,
        "at": 10,
        "version": f"{VERSION.address}@{level}",
        "fit": VERSION.address,
        "level": level,
        "n_levels": 3,
        "certified": level > 0,
        "share": 0.0,
        "reason": "x",
        "author": "w",
        "evidence": EvidenceSummary(max_em_drop=0.02, confidence=0.95),
        "setup": setup,
        "upstream": (("" if route.kind == "rounds" else "m", "m", "fake-1"),),
    }
    return Publication(**(known | changes))


def write(settings: Settings, *events: Event) -> None:
    with open_decisions(settings) as writer:
        assert writer.write(None, events, {VERSION.address: canonical(VERSION.plain()).decode()}) is not None


async def decide(g: Served, *events: Event) -> None:
    """Write decisions, tell the gateway, and wait until it has seen them."""
    before = g.gateway.deployment.routes
    await asyncio.to_thread(write, g.gateway.settings, *events)
    g.gateway.deployment.notify()
    async with asyncio.timeout(30):
        while g.gateway.deployment.routes is before:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)


async def drawn(g: Served, **fields: Any) -> int:
    """How many samples one request takes."""
    before = len(g.fake.completions)
    assert (await g.ask(chat(f"question {before}", **fields))).status == 200
    await g.quiet()
    return len(g.fake.completions) - before


async def test_each_level_stops_as_it_was_certified_and_a_pause_and_a_new_epoch_stop_nothing(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        report = g.gateway.settings
        assert await drawn(g) == 8
        await decide(g, began(), published(report, 1))
        assert await drawn(g) == 5
        await decide(g, published(report, 2, number=2))
        assert await drawn(g) == 3
        await decide(g, Pause(route="r", number=1, cause="person", reason="x", author="ann"))
        assert await drawn(g) == 8
        await decide(g, Resumption(route="r", number=1, reason="x", author="ann"))
        assert await drawn(g) == 3
        await decide(g, began(2))
        assert await drawn(g) == 8
        await decide(g, published(report, 2, number=3, epoch=1))
        assert await drawn(g) == 8, "of an ended epoch"
        await decide(g, published(report, 1, number=4, epoch=2))
        assert await drawn(g) == 5
        requests = [item.episode.request for item in await g.episodes(8)]
    assert [request.certified for request in requests] == [False, True, True, False, True, False, False, True]
    base = requests[0].policy_version
    assert [request.policy_version for request in requests] == [
        base,
        *(f"{VERSION.address}@{level}" for level in (1, 2)),
        base,
        f"{VERSION.address}@2",
        base,
        base,
        f"{VERSION.address}@1",
    ]
    assert [request.audit for request in requests] == [False, False, False, False, False, True, True, False]


async def test_what_is_decided_already_is_in_force_from_the_first_request(serve: Serve, tmp_path: Path) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        report, url = g.gateway.settings, g.fake.url
        await decide(g, began(), published(report, 2))
    port = int(url.rpartition(":")[2])
    async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
        assert g.gateway.deployment.routes[0].certified
        assert await drawn(g) == 3


async def test_another_process_is_followed_within_two_seconds(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        write(g.gateway.settings, began(), published(g.gateway.settings, 2))
        written_s = time.monotonic()
        async with StallMeter() as stalls, asyncio.timeout(60):
            while not g.gateway.deployment.routes[0].certified:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.02)
        assert time.monotonic() - written_s < 2.5 + stalls.total_s


async def test_observing_shows_the_certified_stop_and_makes_none(serve: Serve) -> None:
    async with serve(FOUR, route={**ROUTE, "mode": "observe"}) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 8
        episode = await g.episode()
    assert (episode.request.certified, episode.outcome.stopped) == (True, False)
    assert (episode.outcome.stop_step, episode.outcome.would_answer) == (3, "4")


async def test_a_model_that_no_evidence_speaks_of_runs_in_full(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g, model="another") == 8
        assert await drawn(g) == 3
        stranger, known = [item.episode.request for item in await g.episodes(2)]
    assert (stranger.certified, known.certified) == (False, True)


@pytest.mark.parametrize("extra", [{"model": "m-2"}, {"system_fingerprint": "fake-2"}])
async def test_the_first_answer_of_another_model_suspends_the_route(serve: Serve, extra: dict[str, str]) -> None:
    says = Reply(answer=cut("it is 4"))
    replies = {"now": says}
    async with serve(lambda _: replies["now"], route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 3
        replies["now"] = Reply(answer=cut("it is 4"), extra=extra)
        assert await drawn(g) == 3
        assert await drawn(g) == 8
        assert not g.gateway.deployment.routes[0].certified
        assert (await g.episodes(3))[-1].episode.request.audit is True
        await decide(
            g,
            began(2),
            published(
                g.gateway.settings,
                1,
                number=2,
                epoch=2,
                upstream=(("m", extra.get("model", "m"), extra.get("system_fingerprint", "fake-1")),),
            ),
        )
        assert await drawn(g) == 5


async def test_a_running_request_keeps_its_version(serve: Serve) -> None:
    slow = Samples(["it is 4"], reply=Reply(delay_s=0.02))
    async with serve(slow, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 1))
        running = asyncio.create_task(g.ask(chat(suffice={})))
        async with asyncio.timeout(30):
            while not g.fake.in_flight:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.001)
        await decide(g, published(g.gateway.settings, 2, number=2))
        answer = await running
        assert answer.report["policy_version"] == answer.headers["x-suffice-policy-version"] == f"{VERSION.address}@1"
        assert len(g.fake.completions) == 5


async def test_where_availability_comes_first_a_safer_level_acts_and_is_called_uncertified(serve: Serve) -> None:
    async with serve(FOUR, route={**ROUTE, "on_fallback": "availability_first"}) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 3
        await decide(g, began(2))
        assert await drawn(g) == 5
        request = (await g.episodes(2))[-1].episode.request
    assert (request.certified, request.audit, request.policy_version) == (False, False, f"{VERSION.address}@1")


async def test_a_level_that_proves_too_little_or_cannot_be_served_is_not_acted_on(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        report = g.gateway.settings
        await decide(g, began())
        changes: tuple[dict[str, Any], ...] = (
            {"certified": False},
            {"setup": "else"},
            {"evidence": EvidenceSummary(max_em_drop=0.03, confidence=0.95)},
            {"evidence": EvidenceSummary(max_em_drop=0.02, confidence=0.9)},
            {"evidence": EvidenceSummary()},
            {"level": 9},
            {"fit": "v-gone"},
        )
        for number, change in enumerate(changes, 1):
            await decide(g, published(report, number=number, **{"level": 2, **change}))
            assert not g.gateway.deployment.routes[0].certified, change
        assert await drawn(g) == 8
        assert "v-gone: cannot be read" in caplog.text
        await decide(g, published(report, 2, number=8))
        assert await drawn(g) == 3


async def test_a_decision_that_cannot_be_read_leaves_everything_as_it_is(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        with closing(sqlite3.connect(g.database)) as connection:
            connection.execute(
                "INSERT INTO events (kind, key, route, at_s, owner, body) VALUES"
                " ('policy_published', 'r:2', 'r', 0, 1, '{\"publication\": 7}')"
            )
            connection.commit()
        g.gateway.deployment.notify()
        async with asyncio.timeout(30):
            while not g.failed_open("follow"):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        assert g.gateway.deployment.routes[0].certified
        assert await drawn(g) == 3


@pytest.mark.parametrize("on_a_server", [False, True], ids=["sqlite", "postgresql"])
async def test_a_promotion_is_seen_within_two_seconds_and_a_pause_within_one(serve: Serve, on_a_server: bool) -> None:
    """Though nobody tells the gateway; its own requests are not read again, those of others are."""
    with empty_log() if on_a_server else contextlib.nullcontext() as made:
        async with serve(FOUR, route=ROUTE, on=made) as g:
            report, took_s = g.gateway.settings, list[float]()
            for events in (
                (began(), published(report, 2)),
                (Pause(route="r", number=1, cause="person", reason="x", author="ann"),),
            ):
                before = g.gateway.deployment.routes
                await asyncio.to_thread(write, report, *events)
                began_s = time.monotonic()
                async with asyncio.timeout(30):
                    while g.gateway.deployment.routes is before:  # noqa: ASYNC110 - there is no event
                        await asyncio.sleep(0.005)
                took_s.append(time.monotonic() - began_s)
            assert took_s[0] < 2.0
            assert took_s[1] < 1.0
            assert await drawn(g) == 8
            await asyncio.to_thread(g.gateway.log.drain)
            owner = g.gateway.log.owner if isinstance(g.gateway.log, EventQueue) else 0
            with open_reader(log_location(report.store)) as reader:
                units = [len(read_news(reader, 0, most=99, owner=one).deliveries) for one in (owner, 0)]
            assert owner
            assert units == [0, 1]


LOOP = {"kind": "rounds", "scorer": "number", "mode": "enforce", "audit_share": 0.0}


async def test_a_read_that_failed_is_repeated_though_nothing_was_written(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        follower = Follower(g.gateway, log_location(g.gateway.settings.store))
        async with asyncio.timeout(10):
            while follower.read_changes() is not None:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.1)
        g.gateway.deployment.log_problem = "it cannot be read"
        with pytest.raises(StoreError, match="it cannot be read"):
            follower.read_changes()
        g.gateway.deployment.log_problem = None
        assert follower.read_changes() is not None
        assert follower.read_changes() is None, "nothing was written"


def test_a_loop_in_this_process_is_served_by_what_is_certified(tmp_path: Path) -> None:
    report = settings_for("http://127.0.0.1:1", tmp_path, routes={"loop": LOOP})

    def rounds(governor: Governor) -> int:
        with governor.episode("how many?", model="m") as ep:
            for n in range(1, 9):
                if ep.step(answer="4", tokens=10).stop:
                    return n
        return 8

    with Governor.open(report, route="loop") as governor:
        assert rounds(governor) == 8
        write(report, began(name="loop"), published(report, 2, name="loop"))
        end_s = time.monotonic() + 30
        while rounds(governor) != 3 and time.monotonic() < end_s:
            time.sleep(0.1)
        assert rounds(governor) == 3
        write(report, began(2, name="loop"))
        while rounds(governor) == 3 and time.monotonic() < end_s:
            time.sleep(0.1)
        assert rounds(governor) == 8
    with Governor.open(report, route="loop") as again:
        assert rounds(again) == 8, "the epoch is known from the first loop on"


async def test_a_loop_over_http_is_served_by_what_is_certified(serve: Serve) -> None:
    async with serve(FOUR, routes={"loop": LOOP}) as g:
        await decide(g, began(name="loop"), published(g.gateway.settings, 1, name="loop"))
        output: dict[str, Any] = {"route": "loop", "question": "how many?", "model": "m"}
        for index in range(1, 9):
            body = {**output, "step": {"index": index, "answer": "4", "tokens": 10}}
            answer = await post(g.session, g.url + "/v1/decide", body, {})
            assert (answer.status, answer.json["certified"]) == (200, True)
            if answer.json["action"] == "stop":
                break
            output = {"route": "loop", "episode_id": answer.json["episode_id"]}
        assert index == 5
        assert answer.json["policy_version"] == f"{VERSION.address}@1"


async def test_a_gateway_says_how_far_the_sums_are_behind_the_log(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        for _ in range(3):
            assert (await g.ask(chat("1 + 3"))).status == 200
        async with asyncio.timeout(30):
            while g.gateway.metrics.value("suffice_sums_lag_rows") < 6:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.05)
        await asyncio.to_thread(sum_up, g.gateway.settings)
        async with asyncio.timeout(30):  # the worker's own row comes behind the sums
            while g.gateway.metrics.value("suffice_sums_lag_rows") > 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)


def sum_up(settings: Settings) -> None:
    with open_worker(settings, learning=False) as here:
        here.once("rollup")
