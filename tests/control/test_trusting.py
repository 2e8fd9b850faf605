"""A source is a claim: whoever also asks the model with the same key is a user, whatever he calls himself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from suffice.control.evidence.audits import verdicts
from suffice.store.database.views import read_episodes
from suffice.store.rows.events import Event, FeedbackEvent
from suffice.types import Request
from tests.control.made import label, rows, story, traffic
from tests.control.test_armed import armed, pairs
from tests.gateway.served import chat, post, served

APPS, REVIEWERS = "a" * 16, "b" * 16


def sent_by(sender: str, log: list[Event]) -> list[Event]:
    """The same requests, sent with a key."""
    return [replace(event, sender=sender) if isinstance(event, Request) else event for event in log]


def heard(*, sender: str, source: str, asks: str = APPS, door: str = "", users: bool = False) -> int:
    """How many of forty labels count, on runs that gave another answer on the way."""
    log = sent_by(asks, traffic(40, seed=5, sure=False, p_right=0.3))
    who = {n: f"user {n}" if users else "" for n in range(40)}
    labels = [label(n, gold="1000", source=source, sender=sender, door=door, user=who[n]) for n in range(40)]
    loop = story().feed(rows([*log, *labels])).loop
    counts = verdicts(loop.state.audits, loop.context.match, callers=loop.state.traffic.callers)
    return len(counts)


def test_a_key_that_asks_the_model_is_a_users_whatever_it_claims() -> None:
    assert heard(sender=REVIEWERS, source="reviewer") == 40, "a key of their own is believed"
    assert heard(sender=APPS, source="reviewer") == heard(sender=APPS, source="user") == 2, "one in twenty"


@pytest.mark.parametrize("source", ["exact-match", "reviewer", "user"])
def test_a_key_that_may_ask_the_model_is_a_users_before_it_has_asked_and_by_many_names(source: str) -> None:
    assert heard(sender=REVIEWERS, source=source, door="key") == 2
    assert heard(sender=REVIEWERS, source=source, door="key", users=True) == 2, "one key, whoever it speaks for"


def test_a_key_for_feedback_alone_is_believed() -> None:
    assert heard(sender=REVIEWERS, source="exact-match", door="feedback-key") == 40


def test_without_keys_everybody_is_believed() -> None:
    assert heard(sender="", source="reviewer", asks="") == 40


@pytest.mark.parametrize(("sender", "proved"), [(APPS, False), (REVIEWERS, True)])
def test_the_same_holds_for_pairs(sender: str, proved: bool) -> None:
    log = [
        replace(event, feedback=replace(event.feedback, sender=sender)) if isinstance(event, FeedbackEvent) else event
        for event in sent_by(APPS, pairs(400, lost_each=10))
    ]
    assert bool(armed().feed(rows(log)).settle().published) is proved


async def test_requests_and_feedback_carry_the_same_name_for_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEYS", "app")
    monkeypatch.setenv("TEST_LABELLERS", "people")
    server = {"api_keys_env": "TEST_KEYS", "feedback_keys_env": "TEST_LABELLERS"}
    route = {"kind": "reasoning", "scorer": "number"}
    async with served(tmp_path, server=server, route=route) as g:
        answer = await g.ask(chat(), headers={"authorization": "Bearer app"})
        plain = {"model": "m", "prompt": "2 + 2 ="}
        passed = await post(g.session, g.url + "/v1/completions", plain, {"authorization": "Bearer app"})
        assert passed.status == 200
        episode = answer.headers["x-suffice-episode-id"]
        for key, source in (("app", "exact-match"), ("people", "reviewer")):
            given = {"feedback_id": key, "episode_id": episode, "correct": True, "source": source}
            reply = await post(g.session, g.url + "/v1/feedback", given, {"authorization": f"Bearer {key}"})
            assert reply.status == 200
        await g.episodes(2)
        item, other = read_episodes(g.database)
    assert other.episode.request.sender == item.episode.request.sender, "whatever was asked, and where"
    request, words = item.episode.request, [one.feedback for one in item.labels]
    senders = {word.feedback_id: word.sender for word in words}
    assert request.sender == senders["app"] != senders["people"]
    assert "app" not in request.sender
