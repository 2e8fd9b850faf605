"""Attacks by those who hold a key, over several requests: on others' ids, labels, limits, secrets and files."""

from __future__ import annotations

import http.client
import json
import os
import stat
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path

import pytest

from suffice.store.database.views import read_events
from suffice.types import Request
from suffice_testing import FakeUpstream, Script, ServerBehaviour
from tests.attacks.tenants import (
    CHAT,
    DECIDE,
    FEEDBACK,
    RESPONSES,
    Answer,
    Target,
    chat,
    fill,
    script,
    serving,
    upstream,
    word,
)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with upstream() as fake:
        yield fake


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, fake: FakeUpstream) -> Iterator[Target]:
    with serving(tmp_path_factory.mktemp("keys"), fake) as target:
        fill(target)
        yield target


def test_an_id_that_an_application_used_first_does_not_swallow_the_reviewers_label(target: Target) -> None:
    given = {"feedback_id": "same-id", "episode_id": target.named["episode"], "correct": True}
    assert target.ask("POST", FEEDBACK, "sk-alice", {**given, "source": "user"}).json["duplicate"] is False
    assert target.ask("POST", FEEDBACK, "sk-labels", {**given, "source": "reviewer"}).json["duplicate"] is False
    assert target.ask("POST", FEEDBACK, "sk-labels", {**given, "source": "reviewer"}).json["duplicate"] is True
    kept = [one.feedback for one in target.labels() if one.feedback.feedback_id == "same-id"]
    assert [one.source for one in kept] == ["user", "reviewer"]
    assert len({one.sender for one in kept}) == 2


def test_a_reused_id_is_refused_in_a_batch_too(target: Target) -> None:
    rows = [{"feedback_id": "twice", "episode_id": "ep_x", "source": "user", "thumbs": way} for way in ("up", "down")]
    report = target.ask("POST", "/v1/feedback/batch", "sk-alice", {"feedback": rows}).json
    assert [one["accepted"] for one in report["results"]] == [True, False]
    assert report["results"][1]["error"]["code"] == "feedback_id_conflict"


def test_in_a_batch_only_ones_own_answers_are_rated(target: Target) -> None:
    rows = [
        word("user", feedback_id="own?", episode_id=target.named["episode"]),
        word("user", feedback_id="unknown", episode_id="ep_unknown"),
    ]
    report = target.ask("POST", "/v1/feedback/batch", "sk-bob", {"feedback": rows}).json
    assert [one.get("error", {}).get("code") for one in report["results"]] == ["not_found", None]


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEARER"])
def test_one_key_is_one_sender_however_its_header_is_written(target: Target, scheme: str) -> None:
    given = {"feedback_id": "spelling", "episode_id": target.named["episode"], "source": "user", "rating": 4}
    first = target.ask("POST", FEEDBACK, "sk-alice", given)
    again = target.ask("POST", FEEDBACK, "", given, {"authorization": f"{scheme} sk-alice"})
    assert (first.status, again.status, again.json["duplicate"]) == (200, 200, True)


def test_two_keys_of_one_name_are_one_caller(target: Target) -> None:
    requested = target.ask("POST", CHAT, "sk-carol", chat(model="own-1"))
    episode = requested.headers["x-suffice-episode-id"]
    given = {"feedback_id": "new", "episode_id": episode, "source": "user", "thumbs": "up"}
    assert target.ask("POST", FEEDBACK, "sk-carol-new", given).status == 200
    assert target.ask("POST", FEEDBACK, "sk-bob", given).status == 404


def test_the_same_opening_key_of_two_callers_opens_two_loops(target: Target) -> None:
    opened = [
        target.ask("POST", DECIDE, key, {"route": "loop", "question": "q"}, {"idempotency-key": "1"}).json["episode_id"]
        for key in ("sk-alice", "sk-bob", "sk-alice")
    ]
    assert opened[0] == opened[2] != opened[1]


def test_an_id_of_two_callers_is_two_conversations_and_no_retry(target: Target) -> None:
    sent = chat(suffice={"conversation_id": "1"}, user="1")
    episodes = [
        target.ask("POST", CHAT, key, sent, {"idempotency-key": "1"}).headers["x-suffice-episode-id"]
        for key in ("sk-alice", "sk-bob", "sk-bob")
    ]
    requests = [seen(target, episode) for episode in episodes]
    assert [one.delivery for one in requests] == [1, 1, 2]
    assert requests[0].conversation != requests[1].conversation == requests[2].conversation
    assert len({one.sender for one in requests}) == 2


def seen(target: Target, episode: str) -> Request:
    """The row of a request, once it is written."""
    for _ in range(200):
        for one in read_events(target.process.database):
            if isinstance(one.event, Request) and one.event.episode_id == episode:
                return one.event
        target.ask("GET", "/healthz", "")
    raise AssertionError(f"no row of {episode}")


def test_a_streamed_response_can_be_cancelled_by_its_maker_before_it_ends(tmp_path: Path) -> None:
    begun = {"type": "response.created", "response": {"id": "resp_live", "status": "in_progress"}}
    live = Script(pieces=(f"event: response.created\ndata: {json.dumps(begun)}\n\n".encode(),), end="hang", hang_s=600)
    cancelled = script({"id": "resp_live", "status": "cancelled"})
    paths = {"POST /responses": live, "POST /responses/resp_live/cancel": cancelled}
    with FakeUpstream.in_thread(behaviour=ServerBehaviour(paths=paths)) as fake, serving(tmp_path, fake) as target:
        address = urllib.parse.urlsplit(target.process.url)
        first = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        sent = {"authorization": "Bearer sk-alice", "content-type": "application/json"}
        first.request("POST", RESPONSES, json.dumps({"model": "m", "stream": True}), sent)
        response = first.getresponse()
        assert b"response.created" in response.readline()
        assert target.ask("POST", "/v1/responses/resp_live/cancel", "sk-bob").status == 404
        assert target.ask("POST", "/v1/responses/resp_live/cancel", "sk-alice").status == 200
        first.close()


def test_a_key_sends_as_many_requests_a_minute_as_it_may(target: Target) -> None:
    got = [target.ask("GET", "/v1/models", "sk-slow") for _ in range(5)]
    assert [one.status for one in got] == [200, 200, 200, 429, 429]
    assert (got[3].code, got[3].json["error"]["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert 1 <= int(got[3].headers["retry-after"]) <= 60
    assert target.ask("POST", FEEDBACK, "sk-slow", word("user")).status == 429, "whatever it asks for"
    assert target.ask("GET", "/healthz", "sk-slow").status == 200
    assert target.ask("GET", "/v1/models", "sk-bob").status == 200, "and nobody else is held up"


def test_a_key_has_as_many_requests_open_as_it_may(target: Target) -> None:
    address = urllib.parse.urlsplit(target.process.url)
    first = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
    try:  # its body never comes, so it stays open
        first.putrequest("POST", CHAT)
        first.putheader("authorization", "Bearer sk-narrow")
        first.putheader("content-type", "application/json")
        first.putheader("content-length", "100")
        first.endheaders()
        first.send(b"{")
        got = _until(target, 429)
        assert (got.code, got.headers["retry-after"]) == ("rate_limit_exceeded", "1")
    finally:
        first.close()
    assert _until(target, 200).status == 200, "it ended with its client"


def _until(target: Target, status: int) -> Answer:
    """Ask until the gateway has noticed how many requests there are."""
    for _ in range(200):
        got = target.ask("GET", "/v1/models", "sk-narrow")
        if got.status == status:
            return got
        target.ask("GET", "/healthz", "")
    raise AssertionError(f"never {status}, at last {got.status}")


@pytest.mark.parametrize(
    "wrong",
    [f"sfc_{'0' * 12}_{'0' * 64}", "sfc_", "x" * 5_000, "sk-root", "{known}_" + "0" * 64],
    ids=["nobody", "half", "long", "another kind", "somebody"],
)
def test_guesses_never_keep_out_whoever_has_the_right_secret(target: Target, wrong: str) -> None:
    right = target.process.admin_secret
    guess = wrong.replace("{known}", right.rpartition("_")[0])
    report = [target.ask("GET", "/api/overview", guess).status for _ in range(8)]
    assert set(report) <= {401, 429}
    assert report[-1] == 429
    assert target.ask("GET", "/api/overview", right).status == 200
    assert target.ask("GET", "/api/overview", "sk-root").status == 429, "a key is no secret of a person"


def test_objects_and_budgets_outlive_a_restart(tmp_path: Path, fake: FakeUpstream) -> None:
    with serving(tmp_path, fake) as target:
        assert target.ask("POST", RESPONSES, "sk-alice", {"model": "m", "input": "a"}).status == 200
        assert target.ask("POST", RESPONSES, "sk-bob", {"model": "m", "input": "a"}).status == 200, "the same id"
        assert target.ask("GET", "/v1/responses/resp_1", "sk-bob").status == 404, "and it stays the first one's"
        assert target.ask("POST", CHAT, "sk-poor", chat()).status == 200
        requested = (
            target.ask("POST", CHAT, "sk-poor", chat()) for _ in range(20)
        )  # what a call cost is charged behind it
        spent = next(answer for answer in requested if answer.status != 200)
        assert (spent.status, spent.code) == (429, "insufficient_quota")
        assert 1 <= int(spent.headers["retry-after"]) <= 86_400
        assert target.ask("GET", "/v1/models", "sk-poor").status == 200, "what costs no tokens is served"
    with serving(tmp_path, fake) as target:
        assert target.ask("GET", "/v1/responses/resp_1", "sk-alice").status == 200
        assert target.ask("GET", "/v1/responses/resp_1", "sk-bob").status == 404
        assert target.ask("POST", CHAT, "sk-poor", chat()).status == 429


def test_the_log_and_what_lies_beside_it_are_for_their_owner_alone(tmp_path: Path, fake: FakeUpstream) -> None:
    before = os.umask(0o000)
    try:
        for name in ("log.db", "log.salt"):
            (tmp_path / name).touch(mode=0o666)
        (tmp_path / "log.salt").write_text("a secret of this deployment")
        (tmp_path / "log.salt").chmod(0o644)
        with serving(tmp_path, fake) as target:
            assert target.ask("POST", CHAT, "sk-alice", chat()).status == 200
            until_s = time.monotonic() + 30
            while not (tmp_path / "log.db-shm").exists() and time.monotonic() < until_s:
                time.sleep(0.01)  # until the first row is written
            result = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
            report = target.process.stderr().decode()
    finally:
        os.umask(before)
    ours = {name: mode for name, mode in result.items() if name.startswith("log")}
    assert {"log.db", "log.db-wal", "log.db-shm", "log.salt"} <= set(ours)
    assert {name: oct(mode) for name, mode in ours.items() if mode & 0o077} == {}
    assert "log.db: could be read by others (mode 0666); its mode is 0600 now" in report
    assert "log.salt: could be read by others" in report
