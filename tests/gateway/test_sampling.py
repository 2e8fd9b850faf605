"""A route that keeps rows of a part of its requests, over real sockets: which have them, and all are counted."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from suffice import Governor
from suffice.assurance.sampling import is_certain, weight_of
from suffice.store.database.views import counted_cells, open_reader, read_episodes, read_events
from suffice.store.people.feedback import read_all_feedback as said_of
from suffice.store.people.feedback import read_unmatched
from suffice.store.routes.rollups import RouteScorer, tallies_now
from suffice.store.rows.events import FeedbackEvent, RequestCount, RowRates
from suffice.types import Episode, Request
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, settings_for
from tests.gateway.test_audit_propensity import CHAIN, ENFORCE, RAW
from tests.gateway.test_log_follower import write

SAMPLED: dict[str, Any] = ENFORCE | {"sample_rate": 0.3, "audit_share": 0.1}


async def send_requests(g: Served, n: int, **headers: str) -> None:
    for number in range(n):
        assert (await g.ask(chat(f"question {number}"), headers=headers)).status == 200


def kept(database: Path) -> list[Episode]:
    return [item.episode for item in read_episodes(database)]


async def test_every_request_has_rows_or_is_counted_and_every_audit_has_rows(serve: Serve) -> None:
    async with serve(CHAIN, route=SAMPLED, upstream=RAW) as g:
        await send_requests(g, 60)
        n_audits = g.gateway.metrics.value("suffice_audits_total", route="r")
        database = g.database
    rows, cells = kept(database), list(counted_cells(database, "r"))
    assert len(rows) + sum(cell.n for cell in cells) == 60, "the counts of the last minute are written at the end"
    assert 5 <= len(rows) <= 40  # 18 are expected; the salt is fresh each time
    assert sum(one.request.audit for one in rows) == n_audits
    assert all(sum(dict(cell.ends).values()) == cell.n_counted == cell.n for cell in cells)
    spent = {one.outcome.usage.completion_tokens for one in rows if one.outcome.usage and not one.request.audit}
    assert {cell.completion_tokens / cell.n for cell in cells} <= spent, "all live runs are alike here, counted or not"
    for one in rows:
        is_sure = one.request.audit or one.request.kept_by == "end"  # a pause of the machine may cost a probe its slot
        assert weight_of(one.request, one.outcome) == (1 if is_sure else pytest.approx(1 / one.request.keep_rate)), one
        assert one.request.keep_rate == pytest.approx((0.3 - 0.1) / 0.9)
    with open_reader(database) as connection:
        report = tallies_now(connection, lambda _route: RouteScorer("", lambda answer, gold: answer == gold))["r"]
    assert (report.n_begun, sum(report.ends.values())) == (60, 60)


async def test_a_retry_is_kept_with_its_first_delivery_and_each_turn_of_a_conversation_has_its_own_draw(
    serve: Serve,
) -> None:
    server = {"retry_window_s": 600.0}
    async with serve(CHAIN, route=SAMPLED | {"audit_share": 0.0}, upstream=RAW, server=server) as g:
        for _ in range(3):
            await send_requests(g, 12)
        for turn in range(40):
            await g.ask(chat(f"turn {turn}"), headers={"x-conversation-id": "talk"})
        database = g.database
    drawn = [one.request for one in kept(database) if one.request.kept_by == "lot"]
    turns = [one for one in drawn if one.conversation]
    units = Counter(one.unit for one in drawn if not one.conversation)
    assert set(units.values()) <= {3}
    assert 0 < len(turns) < 40  # but for one run in a million: all or none, were they kept together


async def test_what_fails_has_rows_though_it_was_not_drawn(serve: Serve) -> None:
    nobody = {"url": "http://127.0.0.1:1", "retries": 0}
    async with serve(route=SAMPLED | {"sample_rate": 0.01, "audit_share": 0.0}, upstream=nobody) as g:
        for number in range(10):
            assert (await g.ask(chat(f"question {number}"))).status >= 500
        database = g.database
    rows = kept(database)
    assert len(rows) == 10
    assert {weight_of(one.request, one.outcome) for one in rows} == {1}
    assert not list(counted_cells(database, "r"))


async def test_what_observes_keeps_everything_and_what_passes_through_is_sampled(serve: Serve) -> None:
    async with serve(route={"mode": "observe", "sample_rate": 0.02}) as g:
        await send_requests(g, 12)
        assert len(await g.episodes(12)) == 12
    async with serve(route={"mode": "off", "sample_rate": 0.02}) as g:
        await send_requests(g, 12)
        database = g.database
    passed = [one for one in kept(database) if one.request.mode == "off"]
    assert len(passed) + sum(cell.n for cell in counted_cells(database, "r")) == 12
    assert {cell.ungoverned for cell in counted_cells(database, "r")} <= {"off"}


async def test_a_word_on_an_answer_without_rows_finds_it_while_its_gateway_knows_it(serve: Serve) -> None:
    async with serve(CHAIN, route=SAMPLED | {"sample_rate": 0.001, "audit_share": 0.0}, upstream=RAW) as g:
        answer = await g.ask(chat("what is it"))
        name = answer.headers["x-suffice-episode-id"]
        receipts = []
        for key, named in (
            ("f1", {"episode_id": name}),
            ("f2", {"response_id": answer.json["id"]}),
            ("f1", {"episode_id": name}),
            ("f3", {"episode_id": "ep_nobody"}),
        ):
            output = {"feedback_id": key, "thumbs": "up", "source": "user", **named}
            async with g.session.post(f"{g.url}/v1/feedback", json=output) as report:
                receipts.append((report.status, await report.json()))
        database = g.database
    assert [(status, one["duplicate"], one["joined"]) for status, one in receipts] == [
        (200, False, True),
        (200, False, True),
        (200, True, True),
        (200, False, False),
    ]
    events = [one.event for one in read_events(database) if isinstance(one.event, FeedbackEvent)]
    assert [one.about is not None and one.about.episode_id == name for one in events] == [True, True, False]
    assert [one.episode_id for one in read_unmatched(database)] == ["ep_nobody"]
    assert [(one.route, one.joined) for one in said_of(database)] == [("r", True), ("r", True), (None, False)]


async def test_of_a_run_that_was_drawn_the_log_says_as_well_that_its_gateway_knew_it(serve: Serve) -> None:
    """Whether a label finds its run must not depend on the lottery, or the weights would be wrong."""
    async with serve(CHAIN, route=SAMPLED | {"sample_rate": 0.5, "audit_share": 0.0}, upstream=RAW) as g:
        names = [(await g.ask(chat(f"question {n}"))).headers["x-suffice-episode-id"] for n in range(24)]
        for name in names:
            output = {"feedback_id": name, "episode_id": name, "correct": True, "source": "gold"}
            async with g.session.post(f"{g.url}/v1/feedback", json=output) as report:
                assert (await report.json())["joined"]
        database = g.database
    events = [one.event for one in read_events(database) if isinstance(one.event, FeedbackEvent)]
    assert all(one.about is not None for one in events)
    assert 0 < len(kept(database)) < 24


async def test_rates_that_the_control_loop_sets_reach_a_gateway_that_runs(serve: Serve) -> None:
    async with serve(CHAIN, route=SAMPLED | {"audit_share": 0.0}, upstream=RAW) as g:
        rates = RowRates(
            route="r",
            number=1,
            sample_rate=0.3,
            read_to_seq=0,
            other=1.0,
            after=(("law", 0.5),),
            before=(),
            reason="x",
            author="w",
        )
        await asyncio.to_thread(write, g.gateway.settings, rates)
        g.gateway.deployment.notify()
        async with asyncio.timeout(30):
            while not g.gateway.sampling.rates:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        await send_requests(g, 8)
        assert len(await g.episodes(8)) == 8, "of classes that are not named all are kept now"
        assert {item.episode.request.keep_rate for item in await g.episodes(8)} == {1.0}


async def test_rates_for_another_rate_of_the_owners_are_void(serve: Serve) -> None:
    async with serve(CHAIN, route=SAMPLED | {"audit_share": 0.0}, upstream=RAW) as g:
        g.gateway.sampling.rates = {
            "r": RowRates(
                route="r",
                number=1,
                sample_rate=0.9,
                read_to_seq=0,
                other=1.0,
                after=(),
                before=(),
                reason="x",
                author="w",
            )
        }
        await send_requests(g, 30)
        database = g.database
    assert len(kept(database)) < 30


def test_a_loop_in_this_process_is_sampled_and_counted_too(tmp_path: Path) -> None:
    settings = settings_for(
        "http://127.0.0.1:1",
        tmp_path,
        route={
            "kind": "rounds",
            "upstream": "",
            "mode": "enforce",
            "uncertified": True,
            "audit_share": 0.2,
            "sample_rate": 0.4,
            "policy": {"policy": "stable-answer", "streak": 2},
        },
    )
    rng = random.Random(0)
    with Governor.open(settings, route="r") as governor:
        for number in range(40):
            with governor.episode(f"question {number}") as episode:
                for _ in range(4):
                    if episode.step(answer=str(rng.randrange(2)), tokens=10).stop:
                        break
    database = tmp_path / "log.db"
    rows, counts = (
        kept(database),
        [one.event for one in read_events(database) if isinstance(one.event, RequestCount)],
    )
    assert len(rows) + sum(one.n_requests for one in counts) == 40
    assert 4 <= len(rows) <= 34
    assert all(is_certain(one.request) or one.request.kept_by == "lot" for one in rows)
    seen = [one.event for one in read_events(database) if isinstance(one.event, Request)]
    assert len(seen) == len(rows), "what has a beginning has an end"
