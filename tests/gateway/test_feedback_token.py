"""The token of an answer: rates that answer, for its user, without a key, and opens nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from suffice.errors import ConfigError
from suffice.gateway.auth import read_token, sign_token
from suffice.gateway.feedback import MOST_WORDS
from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice.types import Feedback
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post

HEADER = "x-suffice-feedback-token"
KEYS = {"api_keys_env": "KEYS_OF_THIS_TEST"}
KEY = {"authorization": "Bearer sk-one"}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", "sk-one")


async def say(g: Served, body: Any, path: str = "/v1/feedback", **headers: str) -> Answer:
    return await post(g.session, g.url + path, body, {k.replace("_", "-"): v for k, v in headers.items()})


def kept(g: Served) -> list[Feedback]:
    return [one.event.feedback for one in read_events(g.database) if isinstance(one.event, FeedbackEvent)]


def rated(g: Served, token: str, **body: Any) -> Any:
    return say(g, {"rating": 4, **body}, x_suffice_feedback_token=token)


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("mode", ["off", "observe", "enforce"])
async def test_every_reply_carries_it_in_a_header_and_where_the_object_is_sent_in_that(
    serve: Serve, mode: str, stream: bool
) -> None:
    async with serve(server=KEYS, route={"mode": mode}) as g:
        plain = await g.ask(chat(stream=stream), headers=KEY)
        assert (
            read_token(plain.headers[HEADER], now_s=g.gateway.wall_s(), salt=g.gateway.salt)
            == plain.headers["x-suffice-episode-id"]
        )
        assert b"feedback_token" not in plain.raw
        request = await g.ask(chat(stream=stream, suffice={}), headers=KEY)
        if request.report is not None:
            assert request.report["feedback_token"] == request.headers[HEADER] != plain.headers[HEADER]


async def test_with_it_a_vote_needs_no_key_and_binds_to_its_answer(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        answer = await g.ask(chat(), headers=KEY)
        episode, token = answer.headers["x-suffice-episode-id"], answer.headers[HEADER]
        await g.episodes(1)
        assert (await say(g, {"rating": 4})).status == 401
        by_header = await rated(g, token)
        assert by_header.json == {"accepted": True, "duplicate": False, "joined": True}
        by_body = await say(g, {"thumbs": "down", "token": token})
        assert by_body.json["joined"] is True
        named = await rated(g, token, episode_id=episode, source="user", feedback_id="mine")
        assert named.status == 200
        assert [(one.episode_id, one.source, one.door) for one in kept(g)] == [(episode, "user", "token")] * 3
        assert kept(g)[2].feedback_id == f"token:{episode}:mine"
        (result,) = await g.episodes(1)
        assert len(result.labels) == 3


async def test_a_page_of_another_origin_can_send_it_as_plain_text(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        answer = await g.ask(chat(), headers=KEY)
        await g.episodes(1)
        vote, plain = {"thumbs": "up", "token": answer.headers[HEADER]}, "text/plain;charset=UTF-8"
        assert (await say(g, vote, content_type=plain)).json["joined"] is True
        for other in ("application/x-www-form-urlencoded", "multipart/form-data"):
            assert (await say(g, vote, content_type=other)).status == 401, "no form of a page gets in"
        label = {"feedback_id": "1", "episode_id": "ep_1", "correct": True, "source": "user"}
        refused = await say(g, label, content_type=plain, **KEY)
        assert refused.status == 415, "whoever has a key can say what he sends"
        assert (await say(g, label, content_type=plain)).status == 401
        assert len(kept(g)) == 1


async def test_the_same_vote_again_is_one_vote(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        token = (await g.ask(chat(), headers=KEY)).headers[HEADER]
        answers = await asyncio.gather(*(rated(g, token) for _ in range(10)))
        assert sorted(one.json["duplicate"] for one in answers) == [False] + [True] * 9
        assert (await rated(g, token, rating=2)).json["duplicate"] is False, "a changed mind is another word"
        assert [one.rating for one in kept(g)] == [4, 2]


async def test_it_speaks_of_no_other_answer_and_for_nobody_but_its_user(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        first, second = [await g.ask(chat(text), headers=KEY) for text in ("one?", "two?")]
        token, other = first.headers[HEADER], second.headers["x-suffice-episode-id"]
        wrong = await rated(g, token, episode_id=other)
        assert (wrong.status, wrong.json["error"]["code"]) == (403, "wrong_episode")
        for source in ("reviewer", "exact-match", "gold", "behaviour", "judge"):
            answer = await rated(g, token, source=source)
            assert (answer.status, answer.json["error"]["code"]) == (403, "wrong_source"), source
        with_key = await say(g, {"rating": 1, "source": "reviewer", "episode_id": other, "token": token}, **KEY)
        assert with_key.status == 403, "a key beside it widens nothing"
        assert kept(g) == []
        assert (await say(g, {"event": "regenerate", "token": token})).status == 200
        assert [(one.event, one.source) for one in kept(g)] == [("regenerate", "behaviour")]


@pytest.mark.parametrize("keyed", [True, False], ids=["keys", "open"])
async def test_a_forged_or_old_one_is_refused_in_plain_words_wherever_it_stands(serve: Serve, keyed: bool) -> None:
    async with serve(server=KEYS if keyed else {}) as g:
        answer = await g.ask(chat(), headers=KEY)
        episode, token, now_s = answer.headers["x-suffice-episode-id"], answer.headers[HEADER], int(g.gateway.wall_s())
        old = sign_token(episode, until_s=now_s - 10, salt=g.gateway.salt)
        foreign = sign_token(episode, until_s=now_s + 1_000, salt="another deployment")
        wrong = dict.fromkeys((foreign, token[:-1], "x", ""), "invalid")
        for bad, code in {old: "expired", **wrong}.items():
            for answer in (await rated(g, bad), await say(g, {"rating": 4, "token": bad})):
                assert (answer.status, answer.json["error"]["code"]) == (401, f"{code}_feedback_token"), bad
                assert answer.json["error"]["type"] == "authentication_error"
                assert len(answer.json["error"]["message"]) > 40
        assert (await say(g, {"rating": 4, "token": 7}, **KEY)).status == 400
        assert kept(g) == []


async def test_it_opens_no_other_door(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        token = (await g.ask(chat(), headers=KEY)).headers[HEADER]
        others = ("/feedback/batch", "/feedback/label-studio", "/feedback/langfuse", "/chat/completions")
        for path in (f"/v1{other}" for other in others):
            assert (await say(g, {"feedback": []}, path, x_suffice_feedback_token=token)).status == 401, path
            assert (await say(g, {"feedback": []}, path, authorization=f"Bearer {token}")).status == 401, path


async def test_without_key_and_token_nothing_is_told_of_what_was_sent(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        answers = [await say(g, body) for body in ({"rating": 99}, b"{", b"x" * 300_000, {"colour": 1}, b"[]")]
        answers.append(await say(g, {"rating": 1}, content_type="text/csv"))
        assert {(one.status, one.raw) for one in answers} == {(401, answers[0].raw)}


async def test_one_token_has_only_so_many_words(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        token = (await g.ask(chat(), headers=KEY)).headers[HEADER]
        for n in range(MOST_WORDS):
            assert (await rated(g, token, comment=f"{n}")).status == 200
        more = await rated(g, token, comment="more")
        assert (more.status, more.json["error"]["code"]) == (429, "too_much_feedback")
        assert len(kept(g)) == MOST_WORDS
        other = (await g.ask(chat("another"), headers=KEY)).headers[HEADER]
        assert (await rated(g, other)).status == 200


async def test_counts_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suffice.gateway.feedback.MOST_TOKENS_COUNTED", 3)
    async with serve(server=KEYS) as g:
        tokens = {name: (await g.ask(chat(name), headers=KEY)).headers[HEADER] for name in "abcd"}
        for n, name in enumerate(("a", "b", "c", "a", "d")):
            assert (await rated(g, tokens[name], comment=f"{n}")).status == 200
        assert list(g.gateway.clients.by_token.values()) == [1, 2, 1], "b, rated longest ago, is forgotten"


async def test_all_tokens_together_weigh_no_more_than_one_key(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        for text in ("one?", "two?", "three?"):
            await rated(g, (await g.ask(chat(text), headers=KEY)).headers[HEADER], correct=True)
        senders = {one.sender for one in kept(g)}
        assert len(senders) == 1
        assert senders != {""}


async def test_none_is_given_out_where_the_owner_says_so(serve: Serve) -> None:
    import msgspec

    def off(gw: Any) -> None:
        rules = msgspec.structs.replace(gw.settings.feedback, token_hours=0)
        gw.settings = msgspec.structs.replace(gw.settings, feedback=rules)

    async with serve(change=off) as g:
        answer = await g.ask(chat(suffice={}))
        assert HEADER not in answer.headers
        assert answer.report["feedback_token"] is None


async def test_a_loop_of_the_callers_own_gets_one_too(serve: Serve) -> None:
    routes = {"loop": {"kind": "rounds", "mode": "observe"}}
    async with serve(routes=routes, server=KEYS) as g:
        opened = await say(g, {"route": "loop", "question": "?"}, "/v1/decide", **KEY)
        token = opened.json["feedback_token"]
        assert token == opened.headers[HEADER]
        assert (await rated(g, token)).json["joined"] is True


async def test_a_refused_request_has_one_as_well_and_a_relayed_one_keeps_its_bytes(serve: Serve) -> None:
    async with serve(route={"mode": "off"}) as g:
        through, direct = await g.ask(chat()), await g.direct(chat())
        through_json, direct_json = json.loads(through.raw), json.loads(direct.raw)
        assert {**through_json, "id": 0, "created": 0} == {**direct_json, "id": 0, "created": 0}
        assert HEADER in through.headers
        assert HEADER in (await g.ask(b"{")).headers


def test_a_token_cannot_last_for_less_than_nothing() -> None:
    from suffice.settings import parse_settings

    with pytest.raises(ConfigError, match="token_hours"):
        parse_settings({"feedback": {"token_hours": -1}})
