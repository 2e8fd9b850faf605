from __future__ import annotations

from suffice.testing import Chain
from tests.gateway.conftest import Serve
from tests.gateway.served import chat

SUM = Chain(
    [("two and two\n", "3"), ("make four\n", "4"), ("so four\n", "4"), ("yes four\n", "4"), ("surely four\n", "4"), ("wait\n", "5")],
    "5",
)


async def test_smoke(serve: Serve) -> None:
    async with serve(SUM) as g:
        print(await g.ask(chat()))
        print(await g.ask(chat(stream=True)))
        for e in await g.episodes(2):
            print(e.episode.outcome)
    async with serve(
        SUM, upstream={"finish": ["raw"]},
        route={"mode": "enforce", "uncertified": True, "scorer": "number", "probe": {}, "audit_share": 0.0,
               "policy": {"policy": "stable-answer", "streak": 2}, "steps": {"min_tokens": 2, "growth": 1.0}}) as g:
        print(await g.ask(chat()))
        print((await g.ask(chat(stream=True))).raw.decode())
        for e in await g.episodes(4):
            print(e.episode.outcome)
        print([(c.path, c.usage, c.n_tokens_sent) for c in g.fake.calls])
    assert 0
