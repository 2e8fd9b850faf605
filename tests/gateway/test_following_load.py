"""A published version under load: its levels are what pressure moves within, and its end is what the brake does.

Nothing is stood in for but the control loop's own work: decisions are written to the log as it writes them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import pytest

from suffice.control.evidence.feedback import Ratings
from suffice.gateway.load_control import RouteOperation
from suffice.store.rows.events import key_of
from suffice.types import Feedback, Pause, Resumption
from suffice_testing import FakeUpstream, Reply, ServerBehaviour, cut
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat
from tests.gateway.test_log_follower import ROUTE, VERSION, began, decide, published
from tests.gateway.test_spikes import arrived, crowd, levels_of, load, scraped

SLOTS = 4
RUN_S = 0.06  # of one sample: 4 slots finish 67 a second
QUIET_PER_S, SPIKE_PER_S = 4, 20
STEPS = {0: 8, 1: 5, 2: 3}  # samples that a request draws, by level
OTHER: Final = {"model": "m-2"}


def operation(g: Served) -> RouteOperation:
    return g.gateway.deployment.load.of("r", g.gateway.deployment.routes[0].settings)


def server(says: dict[str, Reply] | None = None) -> FakeUpstream:
    replies = says or {"now": reply()}
    return FakeUpstream(lambda _: replies["now"], ServerBehaviour(slots=SLOTS))


def reply(**changes: Any) -> Reply:
    return Reply(answer=cut("it is 4"), first_delay_s=RUN_S, **changes)


def level_of(answer: Answer) -> int:
    version, _, level = answer.headers["x-suffice-policy-version"].rpartition("@")
    assert version == VERSION.address
    return int(level)


@pytest.mark.slow
async def test_a_fivefold_load_takes_the_published_level_within_ten_seconds_and_no_request_changes_its_own(
    serve: Serve,
) -> None:
    pressure = {"queue": 1.0, "operating_point": 0.5, "hold_s": 2.0}
    async with serve(server(), upstream={"slots": SLOTS}, route=ROUTE | {"pressure": pressure}) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        here = operation(g)
        assert (here.certified, here.level) == (2, 1)
        quiet = await load(g, QUIET_PER_S, lambda n: n == 4, 4)
        spike = await load(g, SPIKE_PER_S, lambda n: here.operation.stance == "spike", 10)
        thrifty = await load(g, SPIKE_PER_S, lambda n: n == 40, 10)
        assert here.level == 2
        after = await load(g, QUIET_PER_S, lambda n: here.operation.stance == "usual", 20)
        calm = await load(g, QUIET_PER_S, lambda n: n == 12, 10)  # longer than a hold

        assert levels_of(await asyncio.gather(*quiet, *arrived(spike), *calm)) == {"1"}
        assert levels_of(await asyncio.gather(*thrifty)) == {"2"}
        answers = await asyncio.gather(*quiet, *spike, *thrifty, *after, *calm)
        for answer in answers:
            assert (answer.status, answer.report["certified"]) == (200, True)
            assert answer.report["steps"] == STEPS[level_of(answer)], "the level that it began with, to its end"
            assert answer.report["policy_version"] == answer.headers["x-suffice-policy-version"]
        moves = {k: v for k, v in (await scraped(g)).items() if k.startswith("suffice_operating_moves_total{")}
        assert moves == {
            'suffice_operating_moves_total{route="r",stance="spike"}': 1,
            'suffice_operating_moves_total{route="r",stance="usual"}': 1,
        }
        requests = [one.episode.request for one in await g.episodes(len(answers))]
        assert {request.policy_version for request in requests} == {f"{VERSION.address}@{level}" for level in (1, 2)}


async def test_stopped_runs_and_audits_are_written_down_so_that_ratings_can_compare_them(serve: Serve) -> None:
    async with serve(server(), upstream={"slots": SLOTS}, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2, share=0.5))
        await asyncio.gather(*(g.ask(chat(f"question {n}")) for n in range(16)))
        episodes = [one.episode for one in await g.episodes(16)]
    ratings = Ratings(floor=0.9, delta=0.05)
    for number, episode in enumerate(sorted(episodes, key=lambda one: one.request.audit)):  # audits behind all others
        ratings.ended(episode)
        stars = 5 if episode.request.audit else 2
        ratings.note_label(episode.request.episode_id, Feedback(feedback_id=str(number), rating=stars))
    n_audits = sum(episode.request.audit for episode in episodes)
    assert 0 < n_audits < len(episodes)
    output = ratings.test
    assert output is not None
    assert (output.n_pairs, output.drops.mean, output.stopped) == (1, 0.75, 0.25)


# ---- what ends a certificate, and what begins it again


async def epoch(g: Served, _: dict[str, Reply]) -> None:
    await decide(g, began(2))


async def pause(g: Served, _: dict[str, Reply]) -> None:
    await decide(g, Pause(route="r", number=1, cause="person", reason="x", author="ann"))


async def another_model(g: Served, says: dict[str, Reply]) -> None:
    says["now"] = reply(extra=OTHER)
    await g.ask(chat("who are you?"))
    assert not g.gateway.deployment.routes[0].certified


async def epoch_ends(g: Served) -> None:
    await decide(g, published(g.gateway.settings, 2, number=2, epoch=2))


async def resumed(g: Served) -> None:
    await decide(g, Resumption(route="r", number=1, reason="x", author="ann"))


async def known_again(g: Served) -> None:
    named = (("m", OTHER["model"], "fake-1"),)
    await decide(g, began(2), published(g.gateway.settings, 2, number=2, epoch=2, upstream=named))


Fires = Callable[[Served, dict[str, Reply]], Awaitable[None]]
Releases = Callable[[Served], Awaitable[None]]
BRAKES = pytest.mark.parametrize(
    ("fires", "releases"), [(epoch, epoch_ends), (pause, resumed), (another_model, known_again)]
)


async def stopped_runs(g: Served) -> None:
    """Publish, and serve stopped runs for a moment."""
    await decide(g, began(), published(g.gateway.settings, 2))
    answers = await asyncio.gather(*(g.ask(chat(f"warm {n}", suffice={})) for n in range(12)))
    assert {(a.report["certified"], a.report["steps"]) for a in answers} == {(True, STEPS[2])}
    # Against the vote over all 15 samples: how many a full run would draw, a run that was stopped does not tell.
    assert operation(g).ratio(g.gateway.monotonic_s()) == pytest.approx(15 / STEPS[2], rel=0.01)


@asynccontextmanager
async def braked(serve: Serve, fires: Fires, on_fallback: str) -> AsyncIterator[Served]:
    """A route that served stopped runs until its brake fired."""
    says = {"now": reply()}
    route = ROUTE | {"fallback_capacity": 1.2, "on_fallback": on_fallback}
    async with serve(server(says), upstream={"slots": SLOTS}, route=route) as g:
        await stopped_runs(g)
        await fires(g, says)
        yield g


@pytest.mark.slow(keep=1)
@BRAKES
async def test_where_quality_comes_first_the_end_of_a_certificate_sheds_until_the_next_one(
    serve: Serve, fires: Fires, releases: Releases
) -> None:
    async with braked(serve, fires, "quality_first") as g:
        here = operation(g)
        assert here.fallback is not None
        assert (here.fallback.level, here.certified) == (2, 0)
        answers = await crowd(g, 30)
        taken = [answer for answer in answers if answer.status == 200]
        assert {answer.status for answer in answers} == {200, 429}
        assert {(a.report["certified"], a.report["stopped"], a.report["steps"]) for a in taken} == {
            (False, False, STEPS[0])
        }
        assert len(answers) - len(taken) >= 8, "more than half of those that found no slot free"

        await releases(g)
        assert operation(g).fallback is None
        again = await asyncio.gather(*(g.ask(chat(f"again {n}", suffice={})) for n in range(8)))
        assert {(a.status, a.report["certified"], a.report["steps"]) for a in again} == {(200, True, STEPS[2])}


@pytest.mark.slow(keep=1)
@BRAKES
async def test_where_availability_comes_first_the_next_safer_level_serves_and_everything_says_uncertified(
    serve: Serve, fires: Fires, releases: Releases
) -> None:
    async with braked(serve, fires, "availability_first") as g:
        answers = await crowd(g, 10)
        await g.quiet()
        assert {(a.status, level_of(a), a.report["certified"], a.report["steps"]) for a in answers} == {
            (200, 1, False, STEPS[1])
        }
        requested = [one.episode.request for one in (await g.episodes(12 + (fires is another_model) + 20))[-20:]]
        assert {(one.certified, one.policy_version) for one in requested} == {(False, f"{VERSION.address}@1")}

        await releases(g)
        assert level_of(again := await g.ask(chat("again", suffice={}))) == 2
        assert again.report["certified"] is True


async def test_what_the_loop_decides_while_the_brake_holds_does_not_put_it_harder(serve: Serve) -> None:
    says = {"now": reply()}
    async with serve(server(says), upstream={"slots": SLOTS}, route=ROUTE | {"on_fallback": "availability_first"}) as g:
        await stopped_runs(g)
        await another_model(g, says)
        for decision in (began(2), published(g.gateway.settings, 0, number=2, epoch=2)):  # nothing passes yet
            await decide(g, decision)
            answer = await g.ask(chat(f"then {key_of(decision)}", suffice={}))
            assert (level_of(answer), answer.report["certified"], answer.report["steps"]) == (1, False, STEPS[1])
