"""Arms of experiments and candidates of rollouts, over real sockets: who gets which, and what goes on record."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from suffice.gateway.log_follower import Follower
from suffice.rollout import stages
from suffice.rollout.evidence import Rules
from suffice.rollout.versions import Version, VersionLineage
from suffice.serving.variants import RolloutTrial, RunningVariants
from suffice.settings import Experiment, parse_settings
from suffice.store.database.views import read_events
from suffice.store.routes import experiments, rollouts
from suffice.store.rows.events import RolloutMove, VersionRefusal
from suffice.types import Request
from suffice.wiring.worker import open_decisions
from suffice_testing import Samples
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_log_follower import drawn

OWN = {"policy": "stable-answer", "streak": 5}
BOLDER = {"policy": "stable-answer", "streak": 2}
ROUTE = {
    "kind": "samples",
    "samples": 15,
    "wave": 1,
    "scorer": "number",
    "mode": "enforce",
    "uncertified": True,
    "audit_share": 0.0,
    "policy": OWN,
}
FOUR = Samples(["it is 4"])
RULES = Rules(audit_share=0.0)  # so that all runs are live


def written(**changes: Any) -> Experiment:
    report_of = {
        "routes": ["r"],
        "unit": "user",
        "primary": "tokens",
        "warmup_units": 20,
        "arms": {"as-it-is": {}, "bolder": {"policy": BOLDER}, "everything": {"full": True}},
        **changes,
    }
    raw: dict[str, Any] = {
        "upstreams": {"up": {"url": "http://127.0.0.1:1"}},
        "routes": {"r": {**ROUTE, "upstream": "up"}},
        "experiments": {"e": report_of},
    }
    return parse_settings(raw).experiments["e"]


async def report_of(g: Served, until: Any) -> None:
    """Tell the gateway to look, and wait until it has seen what it should."""
    g.gateway.deployment.notify()
    async with asyncio.timeout(30):
        while not until(g.gateway.deployment.variants):  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)


def begin(g: Served, policy: dict[str, Any], rules: Rules = RULES, name: str = "r-1") -> rollouts.RolloutRun:
    route = g.gateway.settings.routes["r"]
    lineage = VersionLineage(parent=None, proposed_by="person:ann", why="saves more")
    version = Version(form="policy", body=policy, kind="samples", scorer="number", model_family=None, lineage=lineage)
    with open_decisions(g.gateway.settings) as writer:
        one = rollouts.own_candidate(
            rollouts.read_rollouts(writer.path), version, route="r", own=rollouts.own_version(route)
        )
        assert not isinstance(one, str), one
        result = rollouts.start_candidate(
            writer, one, author="ann", reason="x", name=name, rules=rules, secret=g.gateway.salt
        )
    assert not isinstance(result, str), result
    return result


def step(g: Served, *, back: bool = False) -> stages.Transition:
    order = stages.StepOrder(by="person:ann", reason="enough" if back else "go", at=0, now_s=time.time())

    def moved(held: rollouts.RolloutRun) -> stages.Transition:
        return stages.roll_back(held.state, order) if back else stages.promote_rollout(held.state, held.rules, order)

    with open_decisions(g.gateway.settings) as writer:
        made = rollouts.move(writer, "r", moved)
    assert not isinstance(made, str), made
    return made


async def requests(g: Served, n: int) -> list[Request]:
    return [item.episode.request for item in await g.episodes(n)]


async def test_users_keep_their_arm_and_the_record_has_its_odds(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        with open_decisions(g.gateway.settings) as writer:
            assert not isinstance(experiments.start_experiment(writer, "e", written(), author="ann", reason="x"), str)
        await report_of(g, lambda variants: variants.running.experiments)
        for n in range(2):
            await asyncio.gather(*(g.ask(chat(f"q{n}", user=f"user {user}")) for user in range(24)))
        assert (await g.ask(chat("nobody"))).status == 200
        await g.quiet()
        items = await g.episodes(49)
    by_arm = Counter[str]()
    seen: dict[str, set[str]] = {}
    for item in items:
        request, outcome = item.episode.request, item.episode.outcome
        if not request.arms:
            assert len(outcome.steps) == 5, "who names no user takes no part"
            continue
        (arm,) = request.arms
        by_arm[arm.arm] += 1
        seen.setdefault(arm.unit, set()).add(arm.arm)
        assert arm.propensity == 1 / 3
        assert len(outcome.steps) == {"as-it-is": 5, "bolder": 2, "everything": 8}[arm.arm]
        assert outcome.stopped is (arm.arm != "everything")
    assert len(seen) == 24
    assert all(len(arms) == 1 for arms in seen.values())
    assert set(by_arm) == {"as-it-is", "bolder", "everything"}


async def test_a_candidate_serves_nobody_then_its_share_then_all_and_goes_back(serve: Serve) -> None:
    async with serve(FOUR, route={**ROUTE, "audit_share": 0.0}) as g:
        held = begin(g, BOLDER)
        await report_of(g, lambda variants: variants.running.trials)
        counts = []
        for at in range(6):
            if at in (1, 2, 3, 4):
                await asyncio.to_thread(step, g)
            if at == 5:
                with open_decisions(g.gateway.settings) as writer:
                    now = held.state.candidate
                    assert not isinstance(rollouts.undo(writer, "r", now, author="ann", reason="x"), str)
            if at:
                await report_of(g, lambda v, at=at: at > 3 or v.running.trials["r"].state.step == at)
                await report_of(g, lambda v, at=at: bool(v.running.standing) == (at == 4))
            await asyncio.gather(*(g.ask(chat(f"{at} {n}")) for n in range(40)))
            await g.quiet()
            runs = [item.episode for item in (await g.episodes(40 * (at + 1)))[-40:]]
            live = [run for run in runs if not run.request.audit]
            counts.append(sum(len(run.outcome.steps) == 2 for run in live) / max(1, len(live)))
            arms = Counter(arm.arm for run in live for arm in run.request.arms)
            if at in (1, 2, 3):
                assert {arm.experiment for run in live for arm in run.request.arms} == {f"rollout {held.state.rollout}"}
                assert arms["candidate"] / max(1, len(live)) == counts[-1]
    assert counts[0] == 0
    assert counts[1] < 0.3
    assert counts[1] <= counts[2] + 0.1
    assert 0.25 < counts[3] < 0.75
    assert counts[4:] == [1, 0]


async def bring(g: Served, policy: dict[str, Any], name: str) -> str:
    """Have a rollout bring a policy to everybody, and the last-good file say so; its address."""
    made = (await asyncio.to_thread(begin, g, policy, name=name)).state.candidate
    for _ in range(4):
        await asyncio.to_thread(step, g)
    await report_of(g, lambda variants: variants.running.standing.get("r") == policy)
    await g.kept(made)
    return made


async def test_without_the_log_what_a_rollout_brought_serves_unless_the_owner_has_written_another_policy(
    serve: Serve, tmp_path: Path
) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await bring(g, BOLDER, "r-1")
        port = int(g.fake.url.rpartition(":")[2])
    (tmp_path / "log.db").write_bytes(b"no database" * 1_000)
    for policy, n_drawn in ((OWN, 2), ({**OWN, "streak": 6}, 6)):
        async with serve(FOUR, route={**ROUTE, "policy": policy}, fake={"port": port}) as g:
            assert g.gateway.deployment.serves == "last good"
            assert await drawn(g) == n_drawn


async def test_a_version_that_a_rollout_brought_and_that_cannot_be_read_leaves_the_last_good_one_in_force(
    serve: Serve, tmp_path: Path
) -> None:
    addresses = list[str]()

    def spoil(address: str) -> None:
        with closing(sqlite3.connect(tmp_path / "log.db")) as connection:
            connection.execute("UPDATE artefacts SET body = 'x' WHERE address = ?", (address,))
            connection.commit()

    async with serve(FOUR, route=ROUTE) as g:
        for policy in (BOLDER, {**OWN, "streak": 3}):
            addresses.append(await bring(g, policy, name=f"r-{len(addresses)}"))
        assert await drawn(g) == 3
        await asyncio.to_thread(begin, g, {**OWN, "streak": 4}, name="r-2")
        port = int(g.fake.url.rpartition(":")[2])
    spoil(addresses[1])
    before, own = f"version {addresses[0]} stays active", "the settings' own policy serves"
    for serves, n_drawn in (("", 3), (before, 2), (own, 5)):
        async with serve(FOUR, route=ROUTE, fake={"port": port}) as g:
            assert await drawn(g) == n_drawn, serves or "the last-good file has it still"
            assert g.gateway.metrics.value("suffice_versions_refused_total", route="r") == bool(serves)
            assert bool(g.gateway.deployment.variants.running.trials) is not bool(serves), (
                "nothing is compared with what does not serve"
            )
            file = await g.kept()
        file.unlink()
        if serves:
            spoil(addresses[0])
    rows = [one.event for one in read_events(tmp_path / "log.db") if isinstance(one.event, VersionRefusal)]
    assert [(one.number, one.fit, one.serves) for one in rows] == [(0, addresses[1], before)]


async def test_a_rollout_asks_for_more_audits_while_em_is_not_proved(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        assert g.gateway.share(g.gateway.deployment.routes[0], "") == 0
        begin(g, BOLDER, Rules(audit_share=0.8))
        await report_of(g, lambda variants: variants.running.trials)
        assert g.gateway.share(g.gateway.deployment.routes[0], "") == 0.8


async def test_a_policy_that_cannot_be_built_serves_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        begin(g, BOLDER)
        await asyncio.to_thread(step, g)
        await report_of(g, lambda variants: variants.running.trials)
        monkeypatch.setattr(Follower, "apply", lambda *_: None)  # the next read would bring the real one back
        state = replace(g.gateway.deployment.variants.running.trials["r"].state, share=1.0)
        g.gateway.deployment.variants.running = RunningVariants(
            trials={"r": RolloutTrial(state=state, policy={"policy": "gone"})}
        )
        assert (await g.ask(chat())).status == 200
        episode = await g.episode()
    assert (len(episode.outcome.steps), episode.request.arms) == (5, ())


async def test_a_version_that_was_changed_beside_the_log_serves_nobody(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        begin(g, BOLDER)
        step(g)  # without an await: a gateway that has read the whole version goes on with it
        with open_decisions(g.gateway.settings) as writer, writer.transaction() as connection:
            connection.execute("UPDATE artefacts SET body = replace(body, '2', '1')")
        await report_of(g, lambda variants: variants.running.trials == {})
        assert (await g.ask(chat())).status == 200
        assert len((await g.episode()).outcome.steps) == 5


async def test_of_many_who_move_a_rollout_at_once_one_has_moved_it(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        held = begin(g, BOLDER)
        move = stages.promote_rollout(
            held.state, Rules(), stages.StepOrder(by="person:ann", reason="go", at=0, now_s=time.time())
        )

        def write() -> bool:
            with open_decisions(g.gateway.settings) as writer:
                row = RolloutMove(route="r", author="ann", reason="go", transition=move)
                return writer.write(None, [row], all_new=True) == [True]

        done = await asyncio.gather(*(asyncio.to_thread(write) for _ in range(20)))
        assert sum(done) == 1
        assert rollouts.read_rollouts(g.database)[0].state.stage == "canary"
        assert step(g, back=True).stage == "rolled_back"
        assert "was rolled back before" in refused(g)


def refused(g: Served) -> str:
    """What a machine is told that tries a version again which was rolled back; a person may."""
    lineage = VersionLineage(parent=None, proposed_by="person:ann", why="saves more")
    version = Version(form="policy", body=BOLDER, kind="samples", scorer="number", model_family=None, lineage=lineage)
    own = rollouts.own_version(g.gateway.settings.routes["r"])
    with open_decisions(g.gateway.settings) as writer:
        held = rollouts.read_rollouts(writer.path)
    one = rollouts.own_candidate(held, version, route="r", own=own)
    assert not isinstance(one, str), one
    result = rollouts.beginning(
        held, one, author="job", reason="x", name="r-2", rules=Rules(), now_s=time.time(), by_person=False
    )
    assert isinstance(result, str)
    return result
