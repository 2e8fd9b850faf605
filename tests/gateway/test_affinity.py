"""All calls of one run carry one mark, if the owner names the header; a run's calls never name a slot."""

from __future__ import annotations

from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.upstream.client import mark_run
from tests.gateway.conftest import Serve
from tests.gateway.served import Served, chat, settings_for
from tests.gateway.test_stop import chain, enforcing

MARKED = {"finish": ["raw"], "slots": 4, "affinity_header": "X-Session-ID"}


def marks(g: Served) -> list[str | None]:
    return [seen.request.header("x-session-id") for seen in g.fake.completions]


async def test_probes_and_continuation_go_where_the_run_went(serve: Serve) -> None:
    async with serve(chain(delay_s=0.003), upstream=MARKED, route=enforcing()) as g:
        await g.ask(chat(stream=True))
        first = marks(g)
        assert len(first) > 2, "the run, at least one probe, and what followed the stop"
        assert len(set(first)) == 1
        assert first[0] is not None
        await g.ask(chat(stream=True))
        assert set(marks(g)[len(first) :]).isdisjoint(first), "another run may go elsewhere"


@pytest.mark.parametrize("where", ["header", "option"])
async def test_the_turns_of_a_conversation_stay_together_and_its_id_stays_here(serve: Serve, where: str) -> None:
    named: dict[str, Any] = {"headers": {"x-conversation-id": "c-1"}} if where == "header" else {}
    body = chat(stream=True) | ({"suffice": {"conversation_id": "c-1"}} if where == "option" else {})
    async with serve(chain(), upstream=MARKED, route=enforcing(probe=None)) as g:
        for _ in range(2):
            await g.ask(body, **named)
        assert len(set(marks(g))) == 1
        assert "c-1" not in str(marks(g))


async def test_the_clients_own_mark_goes_on_and_nothing_is_added_by_default(serve: Serve) -> None:
    async with serve(chain(), upstream=MARKED, route=enforcing(probe=None)) as g:
        await g.ask(chat(stream=True), headers={"x-session-id": "mine"})
        assert marks(g) == ["mine"]
    async with serve(chain(delay_s=0.003), upstream={"finish": ["raw"], "slots": 4}, route=enforcing()) as g:
        await g.ask(chat(stream=True))
        assert set(marks(g)) == {None}
        assert not any("id_slot" in seen.body for seen in g.fake.completions)


def test_a_name_that_is_no_header_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ConfigError, match="affinity_header: got 'x y'; no HTTP header name"):
        settings_for("http://127.0.0.1:9", tmp_path, upstream={"affinity_header": "x y"})
    assert mark_run([("a", "b")], "", "run") == [("a", "b")]
