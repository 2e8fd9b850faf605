"""With `server.tells_stops = false` no reply says whether its run was stopped, and one of chat cannot be told apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.gateway.conftest import Serve
from tests.gateway.served import CHAT, Answer, Served, chat, post
from tests.gateway.test_stop import chain, enforcing, held

BODIES: dict[str, dict[str, Any]] = {
    CHAT: chat(),
    "/v1/responses": {"model": "m", "input": "How much is 2 + 2?"},
    "/v1/messages": {"model": "m", "max_tokens": 500, "messages": [{"role": "user", "content": "How much is 2 + 2?"}]},
}
RUNS = {
    "live": enforcing(),
    "audit": enforcing(audit_share=1.0),
    "live vote": enforcing(kind="samples", samples=24, policy={"policy": "beta"}),
    "audit vote": enforcing(kind="samples", samples=24, policy={"policy": "beta"}, audit_share=1.0),
}


def paths(value: Any, before: str = "") -> Iterator[str]:
    """The names of everything in a JSON value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield f"{before}.{name}"
            yield from paths(inner, f"{before}.{name}")
    elif isinstance(value, list):
        for inner in value:
            yield from paths(inner, f"{before}[]")


def shape(answer: Answer, *, stream: bool) -> tuple[Any, ...]:
    """All that a reply says but texts, counts, ids and times: names of headers and fields, and the object."""
    values = answer.chunks if stream else [answer.json]
    report = answer.report or {}
    own = {name: value for name, value in report.items() if name not in ("episode_id", "feedback_token")}
    return answer.status, sorted(answer.headers), {name for value in values for name in paths(value)}, own


async def reply(
    serve: Serve, run: str, path: str, *, stream: bool, options: bool, tells: bool, n_before: int
) -> Answer:
    says, upstream = held() if run == "live" else chain(), {"finish": ["raw"], "slots": 8}
    async with serve(says, server={"tells_stops": tells}, upstream=upstream, route=RUNS[run]) as g:
        answer = await ask(g, path, stream=stream, options=options)
        *_, last = await g.episodes(n_before + 1)
        assert last.episode.outcome.stopped is run.startswith("live"), "the two are runs that differ"
        return answer


async def ask(g: Served, path: str, *, stream: bool, options: bool) -> Answer:
    body = {**BODIES[path], "stream": stream} | ({"suffice": {}} if options else {})
    return await post(g.session, g.url + path, body, {})


CASES = [(path, kind, stream) for path in BODIES for kind in ("", " vote") for stream in (True, False)]
CASES = [case for case in CASES if case[0] == CHAT or not case[1]]


@pytest.mark.parametrize("options", [False, True], ids=["plain", "asks"])
@pytest.mark.parametrize(("path", "kind", "stream"), CASES)
@pytest.mark.slow(keep=4)
async def test_a_reply_does_not_tell_an_audit_from_a_stopped_run(
    serve: Serve, path: str, kind: str, stream: bool, options: bool
) -> None:
    live, audit = [
        shape(
            await reply(serve, f"{run}{kind}", path, stream=stream, options=options, tells=False, n_before=n),
            stream=stream,
        )
        for n, run in enumerate(("live", "audit"))
    ]
    assert live[:2] == audit[:2]
    assert live[3] == audit[3]
    if path == CHAT:  # engines' own events of other APIs have fields that the answer after a stop has not
        assert sorted(live[2] ^ audit[2]) == []


async def test_by_default_a_reply_says_so(serve: Serve) -> None:
    payload = [
        (await reply(serve, run, CHAT, stream=False, options=True, tells=True, n_before=n)).report["stopped"]
        for n, run in enumerate(("live", "audit"))
    ]
    assert payload == [True, False]
