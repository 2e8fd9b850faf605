"""A learned candidate over real sockets: it acts as far as it is certified, for its share of units, and nobody else."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from suffice.model.artefact import canonical
from suffice.policy.folded_version import FoldedVersion
from suffice.rollout import stages
from suffice.rollout.evidence import Rules, rules_of
from suffice.settings import Settings, parse_settings
from suffice.store.database.views import newest_event, open_reader
from suffice.store.routes import rollouts
from suffice.store.routes.rollouts import learned_candidate, lineage_of, read_rollouts
from suffice.store.rows.events import ProposedVersion
from suffice.types import Episode
from suffice.wiring.worker import open_decisions, open_worker
from tests.control.test_story import Model, ask, until
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, served
from tests.gateway.test_log_follower import FOUR, ROUTE, STREAKS, VERSION, began, published, write

BOLDER = FoldedVersion(
    models=(STREAKS,), levels=((0.74, 0.89),)
)  # after three equal answers, after two; in force: five
RULES = Rules(audit_share=0.0)  # so that all runs are live


def begin(g: Served, rules: Rules = RULES) -> rollouts.RolloutRun:
    """A route with level 1 in force, and a rollout of the bolder version on it."""
    proposed = ProposedVersion(
        route="r",
        read_to_seq=1,
        address=BOLDER.address,
        parent=VERSION.address,
        reason="schedule",
        verdict="better",
        why="saves more",
        n_runs=400,
        saving=None,
        drop=None,
        lineage={},
        card=None,
        author="w",
    )
    settings = g.gateway.settings
    write(settings, began(), published(settings, 1), proposed)
    with open_decisions(settings) as writer:
        writer.write(None, [], {BOLDER.address: canonical(BOLDER.plain()).decode()})
        with open_reader(writer.path) as connection:
            one = learned_candidate(
                connection,
                "r",
                settings.routes["r"],
                BOLDER.address,
                lineage_of("person:ann", "x", time.time()),
            )
        assert not isinstance(one, str), one
        result = rollouts.start_candidate(
            writer, one, author="ann", reason="x", name="r-1", rules=rules, secret=g.gateway.salt
        )
    assert not isinstance(result, str), result
    return result


def moved(g: Served, move: Callable[[rollouts.RolloutRun], stages.Transition]) -> None:
    with open_decisions(g.gateway.settings) as writer:
        made = rollouts.move(writer, "r", move)
    assert not isinstance(made, str), made
    g.gateway.deployment.notify()


def promoted(held: rollouts.RolloutRun) -> stages.Transition:
    return stages.promote_rollout(
        held.state, held.rules, stages.StepOrder(by="person:ann", reason="go", at=0, now_s=time.time())
    )


def at_level(level: int) -> Callable[[rollouts.RolloutRun], stages.Transition]:
    return lambda held: stages.certify(held.state, level, reason="because", at=0, now_s=time.time())


async def lengths(g: Served, begin_at: int, n: int = 40) -> tuple[Counter[tuple[str, int]], list[Episode]]:
    """Samples that were drawn for each of n new requests, by arm."""
    before = len(await g.episodes(begin_at))
    await asyncio.gather(*(g.ask(chat(f"{begin_at} {at}")) for at in range(n)))
    await g.quiet()
    runs = [item.episode for item in (await g.episodes(before + n))[before:]]
    arms = [run.request.arms[0].arm if run.request.arms else "" for run in runs]
    return Counter(zip(arms, (len(run.outcome.steps) for run in runs), strict=True)), runs


async def test_it_acts_as_far_as_it_is_certified_for_its_share_and_for_nobody_else(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        begin(g)
        g.gateway.deployment.notify()
        await until(
            lambda: bool(g.gateway.deployment.variants.running.trials) and g.gateway.deployment.routes[0].certified
        )
        shadow, _ = await lengths(g, 0)
        assert shadow == {("", 5): 40}, "in shadow nobody is served by it"
        moved(g, promoted)
        moved(g, promoted)
        moved(g, promoted)
        await until(lambda: g.gateway.deployment.variants.running.trials["r"].state.share == 0.5)
        uncertified, runs = await lengths(g, 40)
        assert set(uncertified) == {("candidate", 8), ("control", 5)}, "uncertified it stops nobody"
        assert not any(run.request.certified for run in runs if run.request.arms[0].arm == "candidate")
        for level, steps in ((1, 3), (2, 2)):
            moved(g, at_level(level))
            await until(lambda level=level: g.gateway.deployment.variants.running.trials["r"].state.level == level)  # type: ignore[misc]
            result, runs = await lengths(g, 40 + 40 * level)
            assert set(result) == {("candidate", steps), ("control", 5)}
            mine = [run.request for run in runs if run.request.arms[0].arm == "candidate"]
            assert {(one.policy_version, one.certified) for one in mine} == {(f"{BOLDER.address}@{level}", True)}
        moved(g, at_level(0))
        await until(lambda: g.gateway.deployment.variants.running.trials["r"].state.level == 0)
        back, _ = await lengths(g, 160)
        assert set(back) == {("candidate", 8), ("control", 5)}, "its certificate is gone, and it stops nobody"


async def test_it_is_served_only_beside_what_it_was_compared_with(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        begin(g)
        for move in (at_level(2), promoted, promoted, promoted):
            moved(g, move)
        await until(
            lambda: bool(g.gateway.deployment.variants.running.trials) and g.gateway.deployment.routes[0].certified
        )
        both, _ = await lengths(g, 0)
        assert set(both) == {("candidate", 2), ("control", 5)}
        write(g.gateway.settings, began(2))
        g.gateway.deployment.notify()
        await until(lambda: g.gateway.deployment.routes[0].in_burst)
        burst, _ = await lengths(g, 40)
        assert set(burst) == {("", 8)}, "a new epoch runs in full, the candidate's part as well"
        write(g.gateway.settings, published(g.gateway.settings, 2, number=2, epoch=2))
        g.gateway.deployment.notify()
        await until(lambda: g.gateway.deployment.routes[0].certified)
        held, _ = await lengths(g, 80)
        assert ("candidate", 2) in held, "the same models are in force again"


async def test_one_that_was_changed_beside_the_log_serves_nobody(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        held = begin(g)
        for move in (at_level(2), promoted, promoted, promoted):
            moved(g, move)
        with open_decisions(g.gateway.settings) as writer, writer.transaction() as connection:
            connection.execute(
                "UPDATE artefacts SET body = replace(body, '0.89', '0.99') WHERE address = ?", (held.state.candidate,)
            )
        await until(lambda: g.gateway.deployment.routes[0].certified)
        await asyncio.sleep(0.3)
        assert g.gateway.deployment.variants.running.trials == {}
        result, _ = await lengths(g, 0)
        assert result == {("", 5): 40}


CONTROL = {"tick_requests": 20, "burst_requests": 120, "refit_requests": 100, "window_audits": 400}
LIVE = {
    "kind": "samples",
    "samples": 11,
    "wave": 2,
    "scorer": "number",
    "mode": "enforce",
    "max_em_drop": 0.12,
    "confidence": 0.8,
    "audit_share": 0.1,
    "rollout": {
        "shares": [0.5],
        "audit_share": 0.9,
        "em_margin": 0.15,
        "class_em_margin": 0.15,
        "confidence": 0.8,
        "least_audits": 40,
        "least_class_audits": 30,
        "least_requests": 10,
        "least_stage_s": 0.0,
        "required": [],
        "warmup_requests": 0,
        "warmup_s": 0.0,
    },
}


def settings_of(g: Served) -> Settings:
    """What a worker beside this gateway reads."""
    return parse_settings(
        {
            "upstreams": {"up": {"url": g.fake.url, "driver": "llama.cpp"}},
            "routes": {"r": {"upstream": "up", **LIVE}},
            "store": {"url": f"sqlite:///{g.database}"},
            "control": CONTROL,
        }
    )


async def work(g: Served, settings: Settings, *names: str) -> list[str]:
    """One run of the worker's jobs, in a thread, as if in a process of its own; the gateway is told at once."""
    log: Any = g.gateway.log
    await asyncio.to_thread(log.drain)

    def run() -> list[str]:
        output = list[str]()
        with open_worker(settings) as here:
            for name in names:
                reports = here.once(name)
                assert reports is not None
                assert all(report.ok for report in reports), reports
                output += [report.summary for report in reports]
        return output

    output = await asyncio.to_thread(run)
    g.gateway.deployment.notify()
    return output


@pytest.mark.slow
async def test_from_a_cold_start_to_a_proposal_that_serves_everybody(tmp_path: Path) -> None:
    async with served(tmp_path, Model(), route=LIVE) as g:
        settings, requested = settings_of(g), 120
        await work(g, settings, "certify")
        await until(lambda: g.gateway.deployment.routes[0].in_burst)
        await ask(g, 0, 120)
        await work(g, settings, "certify", "retrain")
        await until(lambda: g.gateway.deployment.routes[0].certified)
        proposal = newest_event(g.database, ProposedVersion, route="r")
        assert proposal is not None
        with open_decisions(settings) as writer, open_reader(writer.path) as connection:
            one = learned_candidate(
                connection,
                "r",
                settings.routes["r"],
                proposal.address,
                lineage_of("ann", "x", time.time()),
            )
            assert not isinstance(one, str), one
            rules = rules_of(settings.routes["r"])
            assert not isinstance(
                rollouts.start_candidate(
                    writer, one, author="ann", reason="x", name="r-1", rules=rules, secret=g.gateway.salt
                ),
                str,
            )
        g.gateway.deployment.notify()
        await until(lambda: bool(g.gateway.deployment.variants.running.trials))
        for _ in range(12):
            await ask(g, requested, 48)
            requested += 48
            await work(g, settings, "certify", "advance")
            if read_rollouts(g.database)[-1].state.over:
                break
        held = read_rollouts(g.database)[-1]
        payload = [(move.move, move.reason) for move in held.moves]
        assert held.state.stage == "full", payload
        assert [move.by for move in held.moves] == ["evidence"] * len(held.moves)
        served_by_it = [
            item.episode
            for item in await g.episodes(requested)
            if item.episode.request.policy_version.startswith(f"{proposal.address}@") and item.episode.outcome.stopped
        ]
        assert served_by_it
        assert all(episode.request.certified for episode in served_by_it)
        await ask(g, requested, 24)
        await work(g, settings, "certify")
        await until(lambda: g.gateway.deployment.routes[0].serving.version == proposal.address)
        answer = await g.ask(chat("What is three and four?", suffice={}))
        assert answer.report["policy_version"].startswith(f"{proposal.address}@")
        assert answer.report["certified"] is True
