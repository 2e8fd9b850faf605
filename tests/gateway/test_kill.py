"""The kill switch: a file, and within a second nothing is stopped any more, whatever else is broken."""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from suffice import Governor
from suffice.cli.main import main
from suffice.gateway import kill
from suffice.gateway.kill import KillSwitch, clear_switch, set_switch
from suffice.store.database.presence import MOST_REASON_BYTES
from suffice.store.database.views import read_events
from suffice.store.rows.events import KillSwitchState, key_of
from suffice.types import Outcome
from suffice.wiring.keys import kill_file
from suffice_testing import Reply, Samples
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, settings_for
from tests.gateway.test_stop import chain, enforcing
from tests.stalls import StallMeter

VOTES = {
    "kind": "samples",
    "samples": 15,
    "wave": 1,
    "scorer": "number",
    "mode": "enforce",
    "uncertified": True,
    "audit_share": 0.0,
    "policy": {"policy": "stable-answer", "streak": 3},
}


async def seen(g: Served, *, on: bool) -> float:
    """Pull or release the switch of a gateway; seconds until it acts on it."""
    file, began_s = kill_file(g.gateway.settings), time.monotonic()
    assert set_switch(file, "something is wrong", "ann") if on else clear_switch(file)
    async with asyncio.timeout(30):
        while g.gateway.deployment.kill.on is not on:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)
    return time.monotonic() - began_s


async def test_a_thought_passes_through_untouched_until_the_switch_is_released(serve: Serve) -> None:
    async with serve(chain(delay_s=0.02), route=enforcing(), upstream={"finish": ["raw"], "slots": 3}) as g:
        assert (await g.ask(chat(stream=True))).finish == "stop"
        assert (await g.episode()).outcome.stopped
        assert await seen(g, on=True) < 1
        direct, through = await g.direct(chat(stream=True)), await g.ask(chat(stream=True))
        assert (through.text, through.thought) == (direct.text, direct.thought)
        assert await seen(g, on=False) < 1
        assert (await g.ask(chat(stream=True))).status == 200
        episodes = [one.episode for one in await g.episodes(3)]
        changes = [one.event for one in read_events(g.database) if isinstance(one.event, KillSwitchState)]
    assert [one.outcome.stopped for one in episodes] == [True, False, True]
    assert [one.request.ungoverned for one in episodes] == [None, kill.REASON, None]
    assert [one.on for one in changes] == [True, False]
    assert {one.reason for one in changes} == {"something is wrong (ann)"}


async def test_samples_are_all_drawn_and_voted_on(serve: Serve) -> None:
    async with serve(Samples(["it is 4"]), route=VOTES) as g:
        drawn = []
        for on in (None, True, False):
            if on is not None:
                await seen(g, on=on)
            before = len(g.fake.completions)
            assert "4" in (await g.ask(chat(f"question {on}"))).text
            drawn.append(len(g.fake.completions) - before)
    assert drawn == [3, 8, 3]


async def test_a_run_that_is_under_way_is_not_stopped_any_more(serve: Serve) -> None:
    slow = Samples(["it is 4"], reply=Reply(delay_s=0.05))
    async with serve(slow, route=VOTES) as g:
        requested = asyncio.create_task(g.ask(chat()))
        while not g.fake.completions:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)
        await seen(g, on=True)
        assert (await requested).status == 200
        assert len(g.fake.completions) == 8
        assert not (await g.outcome()).stopped


async def test_under_load_nothing_is_stopped_a_second_after_the_pull(serve: Serve) -> None:
    async with serve(Samples(["it is 4"]), route=VOTES) as g, StallMeter() as stalls:
        n_done, done = 0, False

        async def client(name: int) -> None:
            nonlocal n_done
            n = 0
            while not done:
                n += 1
                await g.ask(chat(f"question {name} {n}"))
                n_done += 1

        async def answered(n: int) -> None:
            until = n_done + n
            async with asyncio.timeout(60):
                while n_done < until:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(0.01)

        clients = [asyncio.create_task(client(name)) for name in range(16)]
        await answered(2 * len(clients))
        set_switch(kill_file(g.gateway.settings), "too many wrong answers", "ann")
        pulled_s = time.time()
        await asyncio.sleep(1.5)
        await answered(2 * len(clients))
        done = True
        await asyncio.gather(*clients)
        await g.quiet()
        ends = [(one.at_s, one.event) for one in read_events(g.database) if isinstance(one.event, Outcome)]
    stops = [at_s for at_s, outcome in ends if outcome.stopped]
    assert sum(at_s > pulled_s + 1 for at_s, _ in ends) >= len(clients)  # all of them still ask
    assert min(stops) < pulled_s  # and were stopped until then
    assert max(stops) - pulled_s < 1.0 + stalls.total_s


def test_a_loop_of_the_callers_own_is_never_told_to_stop(tmp_path: Path) -> None:
    route = {
        "kind": "rounds",
        "scorer": "number",
        "mode": "enforce",
        "uncertified": True,
        "audit_share": 0.0,
        "policy": {"policy": "stable-answer", "streak": 2},
    }
    settings = settings_for("http://127.0.0.1:1", tmp_path, route=route)
    file = kill_file(settings)

    def rounds(gov: Governor, pull_at: int | None) -> int:
        with gov.episode("what is it") as run:
            for at in range(1, 7):
                if at == pull_at:
                    set_switch(file, "enough", "ann")
                    with gov.episode("another"):
                        pass  # whoever opens a run looks
                if run.step(answer="4", tokens=1).stop:
                    return at
        return 0

    with Governor.open(settings, route="r") as gov:
        assert rounds(gov, None) == 2
        assert rounds(gov, 2) == 0, "a run that is under way"
        assert rounds(gov, None) == 0
        clear_switch(file)
        assert rounds(gov, None) == 2


def test_the_environment_pulls_it_for_a_life_and_two_gateways_write_one_row(tmp_path: Path) -> None:
    report: list[KillSwitchState] = []
    for environment, on in (("", False), ("0", False), ("1", True), ("yes", True)):
        assert KillSwitch(environment=environment).on is on
    file = tmp_path / "suffice.kill"
    both = [KillSwitch(file, notify=report.append) for _ in range(2)]
    file.touch()
    for one in both:
        one.check()
        one.check()
    assert all(one.on for one in both)
    assert both[0].reason == "no reason is given"
    assert len(report) == 2
    assert len({key_of(one) for one in report}) == 1
    forced = KillSwitch(file, environment="1")
    clear_switch(file)
    for one in (*both, forced):
        one.check()
    assert [one.on for one in (*both, forced)] == [False, False, True]


def test_a_disk_that_does_not_answer_neither_pulls_nor_releases(tmp_path: Path, monkeypatch: Any) -> None:
    file = tmp_path / "suffice.kill"
    switches = [KillSwitch(file)]
    file.touch()
    switches.append(KillSwitch(file))

    def fails(*_: object, **__: object) -> os.stat_result:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "stat", fails)
    for one in switches:
        one.check()
    assert [one.on for one in switches] == [False, True]


def test_the_commands_need_neither_settings_nor_a_database(tmp_path: Path) -> None:
    run, file = CliRunner(), tmp_path / "the.switch"
    pulled = run.invoke(main, ["kill", "--file", str(file), "--reason", "wrong answers", "--author", "ann"])
    assert (pulled.exit_code, file.read_text()) == (3, "wrong answers (ann)\n"), "no gateway is there to confirm"
    assert "no gateway confirmed" in pulled.stderr
    again = run.invoke(main, ["kill", "--file", str(file), "--reason", "still", "--author", "bob"])
    assert "was pulled already" in again.output
    assert KillSwitch(file).reason == "still (bob)"
    assert run.invoke(main, ["unkill", "--file", str(file), "--wait", "0"]).exit_code == 0
    assert not file.exists()
    assert run.invoke(main, ["unkill", "--file", str(file)]).exit_code == 1
    lost = run.invoke(main, ["kill", "--file", str(tmp_path / "no" / "file"), "--reason", "x"])
    assert lost.exit_code == 2
    assert kill.VARIABLE in lost.output
    unread = run.invoke(main, ["kill", "--config", str(tmp_path / "none.toml"), "--reason", "x"])
    assert unread.exit_code == 2
    assert "--file" in unread.output


def test_a_pull_is_seen_whole(tmp_path: Path) -> None:
    file = tmp_path / "suffice.kill"
    with suppress(FileNotFoundError):
        file.unlink()
    set_switch(file, "x" * 5_000, "ann")
    assert len(KillSwitch(file).reason) == MOST_REASON_BYTES
    assert [one.name for one in tmp_path.iterdir()] == ["suffice.kill"]
    with pytest.raises(FileNotFoundError):
        set_switch(tmp_path / "no" / "file", "x", "ann")
