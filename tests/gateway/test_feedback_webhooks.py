"""Webhooks in: what Label Studio and Langfuse send is stored as feedback, once, behind a key or a signature."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post

SHAPES = Path(__file__).parents[1] / "review" / "shapes"
CREATED = json.loads((SHAPES / "label_studio_annotation_created.json").read_text())
PAGE = json.loads((SHAPES / "langfuse_scores_v3.json").read_text())
STUDIO, FUSE = "/v1/feedback/label-studio", "/v1/feedback/langfuse"
KEYS = {"api_keys_env": "KEYS_OF_THIS_TEST", "feedback_keys_env": "LABELLERS_OF_THIS_TEST"}
ASKS = {"authorization": "Bearer sk-app"}
KEY = {"authorization": "Bearer sk-one"}
SECRET = "lf-whsec_1"


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "sk-app")
    monkeypatch.setenv("LABELLERS_OF_THIS_TEST", "sk-one")


async def say(g: Served, path: str, body: Any, headers: dict[str, str] | None = None) -> Answer:
    return await post(g.session, g.url + path, body, headers or {})


def kept(g: Served) -> list[Feedback]:
    return [one.event.feedback for one in read_events(g.database) if isinstance(one.event, FeedbackEvent)]


async def test_an_annotation_is_a_reviewers_word_and_counts_once(serve: Serve) -> None:
    async with serve(server=KEYS, change=lambda gw: setattr(gw, "new_id", lambda: "ep_known")) as g:
        await g.ask(chat(), headers=ASKS)
        await g.episodes(1)
        assert (await say(g, STUDIO, CREATED)).status == 401
        refused = await say(g, STUDIO, CREATED, ASKS)
        assert (refused.status, refused.json["error"]["code"]) == (403, "scope"), "an application annotates nothing"
        first = (await say(g, STUDIO, CREATED, KEY)).json
        assert (first["accepted"], first["duplicates"], first["results"][0]["joined"]) == (1, 0, True)
        assert (await say(g, STUDIO, CREATED, KEY)).json["duplicates"] == 1
        (one,) = kept(g)
        assert (one.source, one.door, one.comment) == ("reviewer", "label-studio", "checked by hand")
        assert len(one.user) == 16, "a hash of the annotator"


async def test_two_annotators_are_two_voices(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        for who in (1, 2):
            event = {**CREATED, "annotation": {**CREATED["annotation"], "id": who, "completed_by": who}}
            assert (await say(g, STUDIO, event, KEY)).json["accepted"] == 1
        one, two = kept(g)
        assert one.sender == two.sender
        assert one.user != two.user


async def test_events_that_are_no_annotation_are_acknowledged(serve: Serve) -> None:
    async with serve() as g:
        answer = await say(g, STUDIO, {"action": "TASKS_CREATED", "tasks": [], "project": {"id": 2}})
        assert (answer.status, answer.json) == (
            200,
            {"accepted": 0, "duplicates": 0, "refused": 0, "ignored": 1, "results": []},
        )
        assert (await say(g, STUDIO, {"hello": 1})).status == 400
        assert kept(g) == []


def declared(gw: Any) -> None:
    import msgspec

    from suffice.settings import parse_settings

    report = parse_settings(
        {
            "metrics": {"tone": {"type": "category", "values": ["warm", "cold"]}},
            "feedback": {"langfuse": {"scores": {"helpful": "thumbs"}}},
        }
    )
    gw.settings = msgspec.structs.replace(gw.settings, metrics=report.metrics, feedback=report.feedback)
    gw.clients.langfuse_secret = SECRET


def signed(raw: bytes, secret: str = SECRET) -> dict[str, str]:
    report = hmac.new(secret.encode(), b"17." + raw, hashlib.sha256).hexdigest()
    return {"x-langfuse-signature": f"t=17,v1={report}"}


async def test_scores_are_taken_with_a_signature_or_a_key_and_with_nothing_else(serve: Serve) -> None:
    raw = json.dumps(PAGE).encode()
    async with serve(server=KEYS, change=declared) as g:
        for headers in ({}, signed(raw, "other"), {**signed(raw, "other"), **KEY}, {"x-langfuse-signature": ""}):
            assert (await say(g, FUSE, raw, headers)).status == 401, headers
        report = (await say(g, FUSE, raw, signed(raw))).json
        assert (report["accepted"], report["refused"]) == (4, 1)
        assert report["results"][4]["error"]["param"] == "name"
        scoped = (await say(g, FUSE, raw, ASKS)).json
        assert (scoped["accepted"], scoped["duplicates"], scoped["refused"]) == (1, 0, 4), "nor as a reviewer or judge"
        signed_again = (await say(g, FUSE, raw, signed(raw))).json
        assert (signed_again["accepted"], signed_again["duplicates"]) == (4, 4)
        other = (await say(g, FUSE, raw, KEY)).json
        assert (other["accepted"], other["duplicates"]) == (4, 0), "another sender's ids are ids of its own"
        words = [("user", "langfuse"), ("reviewer", "langfuse"), ("reviewer", "langfuse"), ("judge", "langfuse")]
        assert [(one.source, one.door) for one in kept(g)] == [*words, ("user", "key"), *words]
        assert kept(g)[0].thumbs == "up"


async def test_without_a_secret_a_signature_proves_nothing(serve: Serve) -> None:
    raw = json.dumps(PAGE).encode()
    async with serve(server=KEYS) as g:
        assert (await say(g, FUSE, raw, signed(raw))).status == 401
        assert (await say(g, FUSE, raw, KEY)).status == 200


async def test_its_other_events_are_acknowledged_and_nonsense_is_not(serve: Serve) -> None:
    raw = (SHAPES / "langfuse_prompt_version.json").read_bytes()
    async with serve(change=declared) as g:
        assert (await say(g, FUSE, raw, signed(raw))).json["ignored"] == 1
        for bad in (b"{", b"[]", b"{}", b'{"a": 1}'):
            assert (await say(g, FUSE, bad, signed(bad))).status == 400
        assert kept(g) == []


async def test_the_secret_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from suffice.errors import ConfigError
    from suffice.settings import parse_settings
    from suffice.wiring.gateway import build_gateway

    raw = {
        "upstreams": {"up": {"url": "http://127.0.0.1:9"}},
        "store": {"url": f"sqlite:///{tmp_path}/g.db"},
        "feedback": {"langfuse": {"secret_env": "LANGFUSE_SECRET"}},
    }
    monkeypatch.delenv("LANGFUSE_SECRET", raising=False)
    with pytest.raises(ConfigError, match=r"feedback\.langfuse\.secret_env: the environment has no LANGFUSE_SECRET"):
        async with build_gateway(parse_settings(raw)):
            pass
    monkeypatch.setenv("LANGFUSE_SECRET", SECRET)
    async with build_gateway(parse_settings(raw)) as app:
        assert app.gateway.clients.langfuse_secret == SECRET
