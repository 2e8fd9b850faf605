"""Feedback: a 2xx is a label on disk, whenever it comes; and keys, which open nothing when malformed."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from suffice.errors import ConfigError, StoreError, StoreFull
from suffice.gateway.context import GatewayState
from suffice.settings import Store
from suffice.store.database.log import Receipt
from suffice.store.database.views import read_episodes, read_events
from suffice.store.database.writer import LogWriter
from suffice.store.rows.events import Event, FeedbackEvent
from suffice_testing import Reply
from tests.gateway.conftest import Serve
from tests.gateway.served import Answer, Served, chat, post

FEEDBACK = "/v1/feedback"


async def say(g: Served, body: Any, *, headers: dict[str, str] | None = None, path: str = FEEDBACK) -> Answer:
    return await post(g.session, g.url + path, body, headers or {})


def label(episode_id: str | None = None, **fields: Any) -> dict[str, Any]:
    return {"feedback_id": "f-1", "episode_id": episode_id, "correct": True, "source": "user", **fields}


def rows_on_disk(database: Path) -> int:
    """What somebody else sees who opens the file now."""
    with closing(sqlite3.connect(database)) as connection:
        results: int = connection.execute("SELECT count(*) FROM events WHERE kind = 'feedback'").fetchone()[0]
        return results


def fixed_id(gateway: GatewayState) -> None:
    gateway.new_id = lambda: "ep_known"


async def test_after_its_request_it_is_joined_and_on_disk_when_the_answer_comes(serve: Serve) -> None:
    async with serve() as g:
        answer = await g.ask(chat())
        await g.episodes(1)
        given = await say(g, label(answer.headers["x-suffice-episode-id"], gold="4", comment="😀 <script>"))
        assert given.status == 200
        assert rows_on_disk(g.database) == 1
        assert given.json == {"accepted": True, "duplicate": False, "joined": True}
        (results,) = await g.episodes(1)
        assert [x.feedback.comment for x in results.labels] == ["😀 <script>"]
        assert g.gateway.metrics.value("suffice_feedback_total", result="accepted") == 1


async def test_before_its_request_it_waits_and_is_joined_when_that_comes(serve: Serve) -> None:
    async with serve(change=fixed_id) as g:
        given = await say(g, label("ep_known"))
        assert (given.status, given.json["joined"]) == (200, False)
        await g.ask(chat())
        (results,) = await g.episodes(1)
        assert [x.feedback.feedback_id for x in results.labels] == ["f-1"]


async def test_while_its_request_is_running_it_is_joined(serve: Serve) -> None:
    async with serve(Reply(delay_s=0.2), change=fixed_id) as g:
        asking = asyncio.create_task(g.ask(chat()))
        while not g.fake.completions:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.005)
        assert (await say(g, label("ep_known"))).status == 200
        assert (await asking).text == "ok"
        assert len((await g.episodes(1))[0].labels) == 1


async def test_long_after_its_request_in_another_process_life_it_is_joined(serve: Serve) -> None:
    async with serve() as g:
        episode_id = (await g.ask(chat())).headers["x-suffice-episode-id"]
        await g.episodes(1)
    async with serve() as g:
        given = await say(g, label(episode_id, correct=False))
        assert given.json == {"accepted": True, "duplicate": False, "joined": True}
        (results,) = await g.episodes(1)
        assert [x.feedback.correct for x in results.labels] == [False]


async def test_the_same_again_is_a_duplicate_and_changes_nothing(serve: Serve) -> None:
    async with serve(change=fixed_id) as g:
        await g.ask(chat())
        answers = await asyncio.gather(*(say(g, label("ep_known")) for _ in range(20)))
        assert {a.status for a in answers} == {200}
        assert sorted(a.json["duplicate"] for a in answers) == [False] + [True] * 19
        again = await say(g, label("ep_known", correct=False))
        assert (again.status, again.json["error"]["code"]) == (409, "feedback_id_conflict")
        (results,) = await g.episodes(1)
        assert [x.feedback.correct for x in results.labels] == [True]


async def test_a_changed_mind_is_a_second_label_behind_the_first(serve: Serve) -> None:
    async with serve(change=fixed_id) as g:
        await g.ask(chat())
        for n, correct in enumerate([True, False]):
            assert (await say(g, label("ep_known", correct=correct, feedback_id=f"f-{n}"))).status == 200
        (results,) = await g.episodes(1)
        assert [x.feedback.correct for x in results.labels] == [True, False]


async def test_an_unknown_id_is_kept_but_not_joined(serve: Serve) -> None:
    async with serve() as g:
        assert (await say(g, label("ep_never"))).json == {"accepted": True, "duplicate": False, "joined": False}
        assert rows_on_disk(g.database) == 1
        await g.ask(chat())
        assert (await g.episodes(1))[0].labels == ()


async def test_the_id_in_the_answers_body_names_the_request_too(serve: Serve) -> None:
    async with serve() as g:
        answer = await g.ask(chat())
        await g.episodes(1)
        given = await say(g, label(None, response_id=answer.json["id"], thumbs="up"))
        assert (given.status, given.json["joined"]) == (200, True)
        (results,) = await g.episodes(1)
        assert [x.feedback.thumbs for x in results.labels] == ["up"]


async def test_the_prefix_v1_may_be_left_out(serve: Serve) -> None:
    async with serve() as g:
        assert (await say(g, label("ep"), path="/feedback")).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {"rating": 1},
        {"rating": 5},
        {"thumbs": "down"},
        {"gold": ""},
        {"answer": "7"},
        {"comment": "%_\\' --"},
        {"correct": False},
    ],
)
async def test_each_way_to_say_something_is_enough(serve: Serve, fields: dict[str, Any]) -> None:
    async with serve() as g:
        body = {"feedback_id": "f", "episode_id": "e", "source": "user", **fields}
        assert (await say(g, body)).status == 200


BAD: dict[str, tuple[Any, str | None]] = {
    "no feedback_id": ({"episode_id": "e", "correct": True, "source": "user"}, "feedback_id"),
    "empty feedback_id": (label("e", feedback_id=""), "feedback_id"),
    "feedback_id a number": (label("e", feedback_id=7), "feedback_id"),
    "long feedback_id": (label("e", feedback_id="f" * 201), "feedback_id"),
    "feedback_id with NUL": (label("e", feedback_id="f\x00"), "feedback_id"),
    "no source": ({"feedback_id": "f", "episode_id": "e", "correct": True}, "source"),
    "no id": (label(None), "episode_id"),
    "episode_id a list": (label(["e"]), "episode_id"),  # type: ignore[arg-type]
    "correct a number": (label("e", correct=1), "correct"),
    "correct a word": (label("e", correct="true"), "correct"),
    **{f"rating {r!r}": (label("e", rating=r), "rating") for r in (0, 6, -1, 4.5, "5", True, 10**60)},
    "thumbs sideways": (label("e", thumbs="sideways"), "thumbs"),
    "thumbs a list": (label("e", thumbs=["up"]), "thumbs"),
    "gold a number": (label("e", gold=4), "gold"),
    "long comment": (label("e", comment="x" * 10_001), "comment"),
    "unknown field": (label("e", reward=1.0), "reward"),
    "dunder field": (label("e", __class__={}), "__class__"),
    "nothing said": ({"feedback_id": "f", "episode_id": "e", "source": "user"}, None),
    "only a reason": ({"feedback_id": "f", "episode_id": "e", "source": "user", "reason": "r"}, None),
    "rating NaN": (b'{"feedback_id": "f", "episode_id": "e", "source": "u", "rating": NaN}', None),
    "no JSON": (b"correct=true", None),
    "not UTF-8": (b'{"feedback_id": "\xff"}', None),
    "a list": (b"[]", None),
    "empty": (b"", None),
}


async def test_bad_feedback_is_refused_with_the_field_and_nothing_is_written(serve: Serve) -> None:
    async with serve() as g:
        for name, (body, param) in BAD.items():
            answer = await say(g, body)
            assert answer.status == 400, name
            assert set(answer.json["error"]) == {"message", "type", "param", "code"}
            assert answer.json["error"]["param"] == param, name
        assert (await say(g, b"x" * 300_000)).status == 413
        assert (await say(g, label("e"), headers={"content-type": "text/csv"})).status == 415
        assert rows_on_disk(g.database) == 0
        rejected = g.gateway.metrics.value("suffice_feedback_total", result="rejected")
        assert rejected == len(BAD) + 2


async def test_half_a_surrogate_pair_is_no_reason_to_fall_over(serve: Serve) -> None:
    async with serve() as g:
        body = json.dumps(label("e", comment="\ud800")).encode()
        assert (await say(g, body)).status in (200, 400)
        assert (await say(g, label("e", feedback_id="f-2"))).status == 200


@dataclass
class FailingDisk:
    """A log whose durable writes fail while `error` is set; everything else is the real one."""

    real: LogWriter
    error: StoreError | None = None

    def append(self, event: Event) -> bool:
        return self.error is None and self.real.append(event)

    async def append_durable(self, event: Event) -> Receipt:
        if self.error is not None:
            raise self.error
        return await self.real.append_durable(event)

    def close(self, timeout_s: float = 5.0) -> None:
        self.real.close(timeout_s)


@pytest.mark.parametrize(
    ("error", "expected"), [(StoreFull("no space is left"), 507), (StoreError("the disk failed"), 503)]
)
async def test_without_a_row_on_disk_there_is_no_2xx_and_it_recovers_by_itself(
    serve: Serve, tmp_path: Path, error: StoreError, expected: int
) -> None:
    log = FailingDisk(LogWriter(Store(url=f"sqlite:///{tmp_path}/log.db", flush_ms=5), now=time.time))
    try:
        async with serve(log=log) as g:
            log.error = error
            failed = await say(g, label("e"))
            assert failed.status == expected
            assert failed.headers["retry-after"]
            assert set(failed.json["error"]) == {"message", "type", "param", "code"}
            assert rows_on_disk(g.database) == 0
            assert (await g.ask(chat())).text == "ok"  # answers do not depend on the disk
            log.error = None
            assert (await say(g, label("e"))).json["accepted"] is True
            assert rows_on_disk(g.database) == 1
            assert g.gateway.metrics.value("suffice_feedback_total", result="failed") == 1
    finally:
        log.close()


async def test_while_another_program_writes_the_answer_waits_for_its_row(serve: Serve) -> None:
    async with serve() as g:
        await g.ask(chat())
        await g.episodes(1)
        with closing(sqlite3.connect(g.database, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            saying = asyncio.create_task(say(g, label("e")))
            await asyncio.sleep(0.3)
            assert not saying.done()
            other.execute("ROLLBACK")
        assert (await saying).status == 200
        assert rows_on_disk(g.database) == 1


# ---------------------------------------------------------------- keys

KEYS = {"api_keys_env": "KEYS_OF_THIS_TEST"}
KEY = "sk-one-canary"
MALFORMED: dict[str, dict[str, str]] = {
    "absent": {},
    **{
        name: {"authorization": value}
        for name, value in {
            "empty": "",
            "bare scheme": "Bearer",
            "scheme and a space": "Bearer ",
            "no scheme": KEY,
            "unknown": "bearer x",
            "two words": f"Bearer {KEY} y",
            "two spaces": f"Bearer  {KEY}",
            "basic": f"Basic {KEY}",
            "prefix of a key": f"Bearer {KEY[:-1]}",
            "longer than a key": f"Bearer {KEY}x",
            "both keys": f"Bearer {KEY},sk-two",
            "other case": f"Bearer {KEY.upper()}",
            "SQL": "Bearer ' OR 1=1--",
            "long": "Bearer " + "x" * 30_000,
            "none": "Bearer None",
            "non-ASCII": "Bearer sk-öne",
        }.items()
    },
}


REFUSAL = (
    b'{"error":{"message":"authorization: needs \'Bearer KEY\' with a key of this gateway",'
    b'"type":"authentication_error","param":null,"code":"invalid_api_key"}}'
)


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS_OF_THIS_TEST", f" {KEY} , sk-two,,")
    monkeypatch.setenv("KEY_OF_THE_UPSTREAM", "sk-upstream")


@pytest.mark.usefixtures("keys")
async def test_every_malformed_key_is_no_key(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        for name, headers in MALFORMED.items():
            for path in ("/v1/chat/completions", "/chat/completions", FEEDBACK, "/feedback"):
                answer = await say(g, chat(), headers=headers, path=path)
                assert answer.status == 401, (name, path)
                assert answer.raw == REFUSAL  # the same words for everything: they tell nothing
            for path in ("/v1/models", "/models", "/metrics"):
                async with g.session.get(g.url + path, headers=headers) as response:
                    assert response.status == 401, (name, path)
        assert g.fake.calls == []
        assert rows_on_disk(g.database) == 0


@pytest.mark.usefixtures("keys")
async def test_two_authorization_headers_are_none(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        paired = [("authorization", f"Bearer {KEY}"), ("authorization", f"Bearer {KEY}")]
        async with g.session.post(g.url + FEEDBACK, json=label("e"), headers=paired) as response:
            assert response.status == 401


@pytest.mark.usefixtures("keys")
async def test_health_is_open_and_says_nothing(serve: Serve) -> None:
    async with serve(server=KEYS) as g:
        for path in ("/healthz", "/readyz"):
            async with g.session.get(g.url + path) as response:
                assert response.status == 200
                assert len(await response.read()) < 40


@pytest.mark.parametrize("upstream", [{}, {"api_key_env": "KEY_OF_THE_UPSTREAM"}], ids=["no key", "its own key"])
@pytest.mark.usefixtures("keys")
async def test_our_key_opens_and_is_never_forwarded(serve: Serve, upstream: dict[str, str]) -> None:
    routes = {
        "off": {"upstream": "up", "mode": "off"},
        "reasoning": {"upstream": "up", "match": {"header": "reasoning"}},
        "samples": {"upstream": "up", "match": {"header": "samples"}, "kind": "samples", "samples": 2},
    }
    async with serve(server=KEYS, upstream=upstream, routes=routes) as g:
        for written in (f"Bearer {KEY}", f"bearer {KEY}", "BEARER sk-two"):
            for route in routes:
                headers = {"authorization": written, "x-suffice-route": route}
                assert (await g.ask(chat(), headers=headers)).status == (403 if route == "off" else 200)
            async with g.session.get(g.url + "/v1/models", headers={"authorization": written}) as response:
                assert response.status == 200
            assert (await say(g, label("e"), headers={"authorization": written})).status == 200
        expected = "Bearer sk-upstream" if upstream else None
        assert 3 * 3 <= len(g.fake.calls) <= 3 * 4, "a vote may be decided before its second call arrives"
        assert {call.request.header("authorization") for call in g.fake.calls} == {expected}
        assert not any(KEY in value for call in g.fake.calls for _, value in call.headers)


@pytest.mark.parametrize("value", [None, "", " , ,"])
async def test_without_any_key_in_the_environment_nothing_is_served(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("KEYS_OF_THIS_TEST", raising=False)
    if value is not None:
        monkeypatch.setenv("KEYS_OF_THIS_TEST", value)
    with pytest.raises(ConfigError, match="KEYS_OF_THIS_TEST"):
        async with serve(server=KEYS):
            pass


async def test_nothing_of_a_label_is_lost_on_its_way_to_the_log(serve: Serve) -> None:
    everything = label(
        "ep_known",
        response_id="r",
        correct=False,
        gold="4",
        answer="four",
        rating=2,
        thumbs="down",
        comment="no",
        source="reviewer",
        reason="checked",
    )
    async with serve(change=fixed_id) as g:
        await g.ask(chat())
        assert (await say(g, everything)).status == 200
        await g.episodes(1)
        (results,) = list(read_episodes(g.database))
        (kept,) = results.labels
        assert {name: getattr(kept.feedback, name) for name in everything} == everything


async def test_a_label_carries_its_key_under_a_name_and_nobody_writes_that_name(serve: Serve, keys: None) -> None:
    async with serve(server=KEYS) as g:
        for n, key in enumerate((KEY, "sk-two", KEY)):
            given = await say(g, label("ep", feedback_id=f"f-{n}"), headers={"authorization": f"Bearer {key}"})
            assert given.status == 200
        forged = await say(g, label("ep", feedback_id="f-9", sender="x"), headers={"authorization": f"Bearer {KEY}"})
        assert forged.status == 400
        assert "sender: unknown field" in forged.json["error"]["message"]
        senders = [
            stored.event.feedback.sender
            for stored in read_events(g.database)
            if isinstance(stored.event, FeedbackEvent)
        ]
    assert senders[0] == senders[2] != senders[1]
    assert all(len(sender) == 16 and KEY not in sender for sender in senders)


async def test_a_key_that_nobody_checked_names_nobody(serve: Serve) -> None:
    async with serve() as g:
        await say(g, label("ep"), headers={"authorization": "Bearer anything"})
        senders = [
            stored.event.feedback.sender
            for stored in read_events(g.database)
            if isinstance(stored.event, FeedbackEvent)
        ]
    assert senders == [""]
