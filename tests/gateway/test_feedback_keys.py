"""Keys for feedback alone: they label as anybody and ask the model nothing; keys that ask label as users do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from suffice.errors import ConfigError
from suffice.settings import Settings
from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from suffice.wiring.keys import key_ring
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post

BOTH = {"api_keys_env": "KEYS_OF_THIS_TEST", "feedback_keys_env": "LABELLERS_OF_THIS_TEST"}
ASKS = {"authorization": "Bearer sk-asks"}
LABELS = {"authorization": "Bearer sk-labels"}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "sk-asks")
    monkeypatch.setenv("LABELLERS_OF_THIS_TEST", "sk-labels, sk-labels-too")


async def say(g: Served, body: Any, headers: dict[str, str], path: str = "/v1/feedback") -> Answer:
    return await post(g.session, g.url + path, body, headers)


def word(source: str, number: int = 0) -> dict[str, Any]:
    return {"feedback_id": f"{source}-{number}", "episode_id": "ep_1", "correct": True, "source": source}


def kept(g: Served) -> list[Feedback]:
    return [one.event.feedback for one in read_events(g.database) if isinstance(one.event, FeedbackEvent)]


@pytest.mark.parametrize("server", [BOTH, {"api_keys_env": "KEYS_OF_THIS_TEST"}], ids=["both", "one kind"])
async def test_a_key_that_asks_may_not_label_as_a_reviewer(serve: Serve, server: dict[str, str]) -> None:
    async with serve(server=server) as g:
        for source in ("reviewer", "gold", "judge"):
            refused = await say(g, word(source), ASKS)
            assert (refused.status, refused.json["error"]["code"]) == (403, "scope")
            assert "feedback_keys_env" in refused.json["error"]["message"]
            rows = {"feedback": [word(source), word("user"), word("exact-match")]}
            report = (await say(g, rows, ASKS, "/v1/feedback/batch")).json
            assert [one.get("error", {}).get("code") for one in report["results"]] == ["scope", None, None]
        assert {(one.source, one.door) for one in kept(g)} == {("user", "key"), ("exact-match", "key")}


async def test_a_key_for_feedback_labels_as_anybody_and_opens_nothing_else(serve: Serve) -> None:
    async with serve(server=BOTH) as g:
        for path in ("/v1/chat/completions", "/v1/embeddings", "/v1/decide"):
            assert (await say(g, chat(), LABELS, path)).status == 401, path
        for path in ("/v1/models", "/metrics"):
            async with g.session.get(g.url + path, headers=LABELS) as got:
                assert got.status == 401, path
        for source in ("reviewer", "gold", "user"):
            assert (await say(g, word(source), LABELS)).status == 200
        report = await say(g, {"feedback": [word("reviewer", 1)]}, LABELS, "/v1/feedback/batch")
        assert report.json["accepted"] == 1
        assert {one.door for one in kept(g)} == {"feedback-key"}
        assert len({one.sender for one in kept(g)}) == 1
        await say(g, word("reviewer", 2), {"authorization": "Bearer sk-labels-too"})
        assert len({one.sender for one in kept(g)}) == 2, "each key has a name of its own"
        for headers in ({}, {"authorization": "Bearer sk-other"}):
            for path in ("", "/batch", "/label-studio", "/langfuse"):
                assert (await say(g, word("user"), headers, "/v1/feedback" + path)).status == 401
        assert g.fake.calls == []


async def test_where_only_feedback_asks_for_a_key_the_model_is_open(serve: Serve) -> None:
    async with serve(server={"feedback_keys_env": "LABELLERS_OF_THIS_TEST"}) as g:
        answer = await g.ask(chat())
        assert answer.status == 200
        assert (await say(g, word("user"), {})).status == 401
        assert (await say(g, {"thumbs": "up", "token": answer.headers["x-suffice-feedback-token"]}, {})).status == 200
        assert (await say(g, word("reviewer"), LABELS)).status == 200


def test_a_list_that_is_missing_or_shares_a_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = msgspec.convert({"server": BOTH, "upstreams": {"up": {"url": "http://127.0.0.1:1"}}}, Settings)
    assert [one.only_feedback for one in key_ring(settings, "salt").callers] == [False, True, True]
    monkeypatch.setenv("LABELLERS_OF_THIS_TEST", "sk-labels,sk-asks")
    with pytest.raises(ConfigError, match=r"is also a key of server\.api_keys_env; keys cannot be shared"):
        key_ring(settings, "salt")
    monkeypatch.setenv("LABELLERS_OF_THIS_TEST", " , ")
    with pytest.raises(ConfigError, match=r"server.feedback_keys_env: the environment has no keys in LABELLERS"):
        key_ring(settings, "salt")
    assert key_ring(Settings(), "salt").callers == ()
