"""An audit whose client leaves is read to its end for the record: whoever hangs up takes nothing from the evidence."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from suffice.assurance.runs import is_abandoned, measure_run
from suffice.control.evidence.audits import recorded_audit
from suffice.gateway.context import GatewayState
from suffice.gateway.load_control import UnreadAudits
from suffice.learn.dataset import fate
from suffice.store.database.views import EpisodeWithLabels, read_episodes
from suffice_testing import Fault, Reply, Samples
from tests.faults.test_clients import Client
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_stop import chain, enforcing

PROBED = enforcing(audit_share=1.0)
AUDIT = {name: value for name, value in PROBED.items() if name != "probe"}
OBSERVED = {**AUDIT, "mode": "observe", "uncertified": False, "audit_share": 0.0}  # every run is evidence
VOTE = {**AUDIT, "kind": "samples", "samples": 3, "wave": 1, "policy": {"policy": "beta"}}
SLOW = chain(delay_s=0.01)
OPEN_TO_THE_LAST = Samples(["it is 4", "it is 5", "it is 4"], reply=Reply(delay_s=0.01))  # no sample is cancelled


def limit_to(n: int, *, observed: int = 0) -> Any:
    def change(gateway: GatewayState) -> None:
        control = msgspec.structs.replace(gateway.settings.control, unread_audits=n, unread_observed=observed)
        gateway.settings = msgspec.structs.replace(gateway.settings, control=control)

    return change


async def leave(g: Served, *, mark: bytes = b"", n_calls: int = 1, stream: bool = True, **fields: Any) -> None:
    client = Client(g)
    await client.ask(chat(stream=stream, **fields))
    if mark:
        await client.read_until(mark)
    else:
        async with asyncio.timeout(20):
            while len(g.fake.calls) < n_calls:  # noqa: ASYNC110 - the fake has no event for it
                await asyncio.sleep(0.002)
    client.leave()


async def recorded(g: Served, n: int = 1) -> list[EpisodeWithLabels]:
    result = await g.episodes(n)
    await g.quiet()
    assert g.gateway.process.unread.n_open == 0
    return result


LEAVING: dict[str, tuple[dict[str, Any], bool, bytes]] = {
    "in the stream": (AUDIT, True, b"two"),
    "before the first byte": (AUDIT, True, b""),
    "from a body": (AUDIT, False, b""),
    "with probes": (PROBED, True, b"two"),
    "from a vote": (VOTE, False, b""),
    "from a vote's stream": (VOTE, True, b""),
    "of an observing route": (OBSERVED, True, b"two"),
    "from a body of an observing route": (OBSERVED, False, b""),
    "from an observed vote": ({**VOTE, "mode": "observe", "uncertified": False, "audit_share": 0.0}, True, b""),
}


@pytest.mark.parametrize("name", LEAVING)
async def test_an_audit_whose_client_leaves_has_the_record_of_one_whose_client_stays(serve: Serve, name: str) -> None:
    route, stream, mark = LEAVING[name]
    upstream = {"finish": ["raw"], "slots": 4}
    says = OPEN_TO_THE_LAST if route.get("kind") == "samples" else SLOW
    async with serve(says, route=route, upstream=upstream, change=limit_to(8, observed=8)) as g:
        await g.ask(chat(stream=stream))
        await leave(g, mark=mark, n_calls=len(g.fake.calls) + 1, stream=stream)
        stayed, left = await recorded(g, 2)
    one, other = left.episode.outcome, stayed.episode.outcome
    assert (one.end_reason, one.finished_unread) == ("client_left", True)
    assert (other.end_reason, other.finished_unread) == ("done", False)
    assert one.status == 200 if mark else stream or not one.status
    for field in ("answer", "stop_step", "would_answer", "vote", "usage", "stopped", "finish_step"):
        assert getattr(one, field) == getattr(other, field), field
    assert [(s.tokens, s.answer) for s in one.steps] == [(s.tokens, s.answer) for s in other.steps]
    assert not any(call.cancelled for call in one.calls)
    fates = {fate(left.episode.request, one), fate(stayed.episode.request, other)}
    assert fates == {"unprobed" if route in (AUDIT, OBSERVED) else "full"}
    assert recorded_audit(left).is_lost == recorded_audit(stayed).is_lost
    runs = [measure_run(item, lambda answer, gold: answer == gold) for item in (left, stayed)]
    assert (runs[0].disagrees, runs[0].drop) == (runs[1].disagrees, runs[1].drop)
    assert not runs[0].abandoned_audit


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_the_other_governed_apis_do_the_same_and_keep_nothing_for_a_client_that_left(
    serve: Serve, path: str
) -> None:
    async with serve(SLOW, route=AUDIT, upstream={"finish": ["raw"]}) as g:
        client = Client(g)
        body = {"model": "m", "stream": True, "max_tokens": 500, "input": "2 + 2?"}
        if path == "/v1/messages":
            body = {"model": "m", "stream": True, "max_tokens": 500, "messages": [{"role": "user", "content": "2?"}]}
        await client.ask(body, path=path)
        await client.read_until(b"data:")
        client.leave()
        (item,) = await recorded(g)
        assert (item.episode.request.ungoverned, item.episode.request.endpoint) == (None, path)
        assert (item.episode.outcome.end_reason, item.episode.outcome.finished_unread) == ("client_left", True)
        assert not g.gateway.responses._kept, "GET would tell an audit from a run that was closed"


BROKEN: dict[str, tuple[Any, dict[str, Any], int]] = {
    # what the upstream does, the route, how many unread audits the owner allows
    "the owner refuses": (SLOW, AUDIT, 0),
    "the upstream dies": (chain(delay_s=0.01, faults=(Fault(die_after=8),)), AUDIT, 8),
    "no audit": (SLOW, {**AUDIT, "audit_share": 0.0}, 8),
    "observed, which adds no token unless the owner allows it": (SLOW, OBSERVED, 8),
    "observed with probes, and not drawn": (SLOW, {**OBSERVED, "probe": PROBED["probe"]}, 8),
    "off": (SLOW, {**OBSERVED, "mode": "off", "policy": {"policy": "never"}}, 8),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_not_finished_is_a_loss_as_before(serve: Serve, name: str) -> None:
    says, route, most = BROKEN[name]
    async with serve(says, route=route, change=limit_to(most)) as g:
        await leave(g, mark=b"two")
        (item,) = await recorded(g)
        outcome = item.episode.outcome
        assert (outcome.end_reason, outcome.finished_unread) == ("client_left", False)
        assert is_abandoned(outcome)
        assert not outcome.is_finished
        if name != "the upstream dies":
            assert all(call.cancelled for call in outcome.calls)
            assert all(call.cancelled for call in g.fake.calls)


async def test_no_more_audits_run_on_than_the_owner_allows(serve: Serve) -> None:
    says = Reply(reasoning=("two\n",) * 40, answer=("4",), delay_s=0.02)
    async with serve(says, route=AUDIT, change=limit_to(2)) as g:
        for _ in range(4):
            await leave(g, mark=b"two")
        result = await recorded(g, 4)
        assert sorted(item.episode.outcome.finished_unread for item in result) == [False, False, True, True]
        assert (await g.ask(chat())).status == 200, "a client that stays leaves nothing"
        async with g.session.get(f"{g.url}/metrics") as response:
            scraped = await response.text()
        counts = {line for line in scraped.splitlines() if line.startswith("suffice_audits_left_total{")}
        assert counts == {
            f'suffice_audits_left_total{{counted="{counted}",route="r"}} 2.0' for counted in ("finished", "lost")
        }


def test_one_key_has_a_quarter_of_the_unread_audits_at_most() -> None:
    unread = UnreadAudits()
    assert [unread.enter("a", most=8) for _ in range(3)] == [True, True, False]
    assert [unread.enter(name, most=8) for name in ("b", "b", "c", "c", "d", "d", "e")] == [True] * 6 + [False]
    unread.leave("a")
    assert unread.enter("a", most=8)
    assert not UnreadAudits().enter("a", most=0)


async def test_a_gateway_that_stops_ends_an_unread_audit_as_it_ends_every_run(serve: Serve) -> None:
    says = Reply(reasoning=("two\n",) * 4, answer=("4",), faults=(Fault(stall_after=3, stall_s=30.0),))
    async with serve(says, route=AUDIT) as g:
        await leave(g, mark=b"two")
        async with asyncio.timeout(20):
            while not g.gateway.process.unread.n_open:  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.005)
        database = g.database
    (item,) = read_episodes(database)
    assert (item.episode.outcome.end_reason, item.episode.outcome.finished_unread) == ("shutdown", False)
