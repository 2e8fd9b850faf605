"""A reload and what is certified: an unrelated change keeps it, and a changed route acts only on its own evidence."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from suffice.gateway.context import GatewayState
from suffice.settings import Route
from suffice.store.people.keys import KeyOffice
from suffice.store.rows.events import KeyIssue
from suffice.wiring.keys import key_ring
from suffice.wiring.reload import Reloader
from suffice.wiring.worker import open_decisions
from tests.gateway.conftest import Serve
from tests.gateway.served import Served
from tests.gateway.test_log_follower import FOUR, ROUTE, began, decide, drawn, published


def reloader_of(gw: GatewayState) -> Reloader:
    assert gw.process.reload is not None
    made = gw.process.reload.__self__  # type: ignore[attr-defined]
    assert isinstance(made, Reloader)
    return made


async def reload(g: Served, *, server: dict[str, Any] | None = None, **route: Any) -> None:
    """Reload with another value in the route `r`, or in `[server]`."""
    before = g.gateway.settings
    now: Route = msgspec.structs.replace(before.routes["r"], **route)
    changed = msgspec.structs.replace(
        before, routes={"r": now}, server=msgspec.structs.replace(before.server, **(server or {}))
    )
    made = reloader_of(g.gateway)
    made.read = lambda: changed
    await made.reload("a test")


async def settled(g: Served) -> None:
    """Wait for the look at the log behind a reload."""
    follower = reloader_of(g.gateway).follower
    async with asyncio.timeout(30):
        while follower._notified.is_set() or follower.applying.locked():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


async def test_an_unrelated_change_keeps_what_is_certified_without_a_gap(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 3
        await reload(g, server={"max_items": 12_345})
        assert g.gateway.deployment.routes[0].certified, "not even for a moment"
        assert await drawn(g) == 3
        await settled(g)
        assert await drawn(g) == 3


async def test_a_changed_route_acts_only_on_evidence_for_what_it_is_now(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        assert await drawn(g) == 3
        await reload(g, scorer="text")
        assert not g.gateway.deployment.routes[0].certified, "its evidence is about another scorer"
        await settled(g)
        assert not g.gateway.deployment.routes[0].certified
        await reload(g, scorer="number")
        await settled(g)
        assert await drawn(g) == 3, "the evidence holds again for what it was gathered on"


async def test_a_route_that_only_observes_from_now_on_stops_nothing_at_once(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await decide(g, began(), published(g.gateway.settings, 2))
        await reload(g, mode="observe")
        assert await drawn(g) == 8
        await settled(g)
        assert await drawn(g) == 8


async def test_decisions_are_followed_after_a_reload(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        await reload(g, max_extra_calls=20)
        await settled(g)
        await decide(g, began(), published(g.gateway.settings, 1))
        assert await drawn(g) == 5


async def test_a_reload_that_meets_a_new_key_loses_none(serve: Serve) -> None:
    async with serve(FOUR, route=ROUTE) as g:
        made: list[KeyIssue] = []

        def issue() -> None:
            with open_decisions(g.gateway.settings) as writer:
                office = KeyOffice(writer=writer, author="a", reason="b", now_s=0.0, random_bytes=bytes)
                new = office.issue("team", {})
                assert not isinstance(new, str)
                made.append(new.issue)

        g.gateway.clients.build_keys = lambda issued: key_ring(g.gateway.settings, "s", issued)
        await asyncio.to_thread(issue)
        await reload(g, server={"require_keys": True, "max_items": 54_321})
        async with asyncio.timeout(30):
            while g.gateway.clients.issued != tuple(made):  # noqa: ASYNC110 - there is no event
                await asyncio.sleep(0.01)
        assert [one.name for one in g.gateway.clients.keys.callers] == ["team"]
