"""As many requests of a caller in doubt are audits as was published, and nobody else's."""

from __future__ import annotations

import pytest

from suffice.store.database.views import read_episodes
from suffice.types import Request
from suffice_testing import Samples
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat
from tests.gateway.test_audit_assignment import WINDOW_S
from tests.gateway.test_log_follower import ROUTE, began, decide, published

KEYS = {"eve": "one", "bob": "other"}


async def ask(g: Served, who: str, text: str) -> Request:
    n = len(list(read_episodes(g.database)))
    assert (await g.ask(chat(text), headers={"authorization": f"Bearer {KEYS[who]}"})).status == 200
    await g.quiet()
    return (await g.episodes(n + 1))[-1].episode.request


async def test_a_caller_in_doubt_runs_in_full_for_so_many_requests(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", ",".join(KEYS.values()))
    server = {"retry_window_s": WINDOW_S, "api_keys_env": "KEYS_OF_THIS_TEST"}
    async with serve(Samples(["it is 4"]), route=ROUTE, server=server) as g:
        report = g.gateway.settings
        await decide(g, began(), published(report, 2))
        eve = (await ask(g, "eve", "first")).sender
        assert eve
        await decide(g, published(report, 2, number=2, callers=((eve, 2),)))
        bob = await ask(g, "bob", "of bob")
        assert (bob.audit, bob.certified) == (False, True)
        repeats = [await ask(g, "eve", "first") for _ in range(3)]
        assert [(one.delivery, one.audit) for one in repeats] == [(2, False), (3, False), (4, False)]
        result = [await ask(g, "eve", f"question {n}") for n in range(4)]
        assert [one.audit for one in result] == [True, True, False, False], "repeats take none of them"
        assert [one.propensity for one in result] == [1.0] * 4
        await decide(g, published(report, 2, number=3, callers=((eve, 1),)))
        assert [(await ask(g, "eve", f"again {n}")).audit for n in range(2)] == [True, False]
        await decide(g, published(report, 2, number=4))
        assert not (await ask(g, "eve", "at last")).audit
