"""Attacks by those who hold a key: on routes, labels, objects, runs, budgets and files that are not theirs."""

from __future__ import annotations

import http.client
import json
import os
import re
import stat
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackGiven, RequestSeen
from suffice.testing import FakeUpstream, Reply, Script
from suffice.testing.process import GatewayProcess

ENVIRONMENT = {
    "PLAIN_KEYS": "sk-alice,sk-bob",
    "LABEL_KEYS": "sk-labels",
    "ROOT_KEY": "sk-root",
    "CAROL_KEYS": "sk-carol,sk-carol-new",
    "SLOW_KEY": "sk-slow",
    "POOR_KEY": "sk-poor",
    "NARROW_KEY": "sk-narrow",
    "MUTE_KEY": "sk-mute",
    "JUDGE_KEY": "sk-judge",
    "VIEW_KEY": "sk-view",
    "OFF_KEY": "sk-off",
}
KEYS: dict[str, Any] = {
    "root": {"key_env": "ROOT_KEY", "all_objects": True},
    "carol": {"key_env": "CAROL_KEYS", "routes": ["own"], "sources": ["user"]},
    "slow": {"key_env": "SLOW_KEY", "requests_per_minute": 3},
    "poor": {"key_env": "POOR_KEY", "tokens_per_day": 1},
    "narrow": {"key_env": "NARROW_KEY", "concurrency": 1},
    "mute": {"key_env": "MUTE_KEY", "sources": []},
    "judge": {"key_env": "JUDGE_KEY", "routes": [], "sources": ["judge"]},
    "view": {"key_env": "VIEW_KEY", "routes": [], "all_objects": True},
    "off": {"key_env": "OFF_KEY", "routes": ["off", "r"]},
}
RELAYED = [
    "POST /v1/files",
    "GET /v1/files",
    "GET /v1/files/file-1",
    "DELETE /v1/files/file-1",
    "GET /v1/files/file-1/content",
    "POST /v1/batches",
    "GET /v1/batches",
    "GET /v1/batches/batch_1",
    "POST /v1/batches/batch_1/cancel",
    "GET /v1/threads/thread_1/messages",
    "POST /v1/fine_tuning/jobs",
    "GET /v1/fine_tuning/jobs",
    "GET /v1/fine_tuning/jobs/ftjob-1",
    "GET /v1/vector_stores",
    "GET /v1/assistants",
    "GET /v1/responses",
    "GET /v1/conversations/conv_1",
    "GET /v1/chat/completions/chatcmpl-1",
    "GET /files/file-1",
    "POST /tokenize",
]


def script(value: Any) -> Script:
    return Script(pieces=(json.dumps(value).encode(),), content_type="application/json")


MADE = {
    "POST /responses": script({"id": "resp_1", "object": "response", "status": "completed", "output": []}),
    "POST /files": script({"id": "file-1", "object": "file"}),
    "POST /batches": script({"id": "batch_1", "object": "batch"}),
    "POST /fine_tuning/jobs": script({"id": "ftjob-1", "object": "fine_tuning.job"}),
}
FOUND = {
    entry.replace(" /v1/", " /"): script({"id": "x", "object": "secret", "data": ["secret"]})
    for entry in [
        *RELAYED,
        "GET /v1/responses/resp_1",
        "DELETE /v1/responses/resp_1",
        "POST /v1/responses/resp_1/cancel",
        "GET /v1/responses/resp_1/input_items",
        "GET /v1/responses/resp_of_nobody",
    ]
}


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def code(self) -> str | None:
        """Of an error in OpenAI's shape."""
        error: Mapping[str, Any] = self.json["error"]
        assert set(error) == {"message", "type", "param", "code"}
        code: str | None = error["code"]
        return code


@dataclass
class Target:
    """A gateway with tenants, and what some of them have made there."""

    process: GatewayProcess
    fake: FakeUpstream
    named: dict[str, str] = field(default_factory=dict)  # ids by what they stand for

    def ask(
        self, method: str, path: str, key: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        address = urllib.parse.urlsplit(self.process.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=60)
        sent = {"authorization": f"Bearer {key}"} if key else {}
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent |= {"content-type": "application/json"} if raw is not None else {}
        try:
            connection.request(method, path, raw, {**sent, **(headers or {})})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def labels(self) -> list[FeedbackGiven]:
        return [one.event for one in read_events(self.process.database) if isinstance(one.event, FeedbackGiven)]


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "2 + 2?"}], **fields}


def settings(url: str) -> dict[str, Any]:
    return {
        "server": {
            "api_keys_env": "PLAIN_KEYS",
            "feedback_keys_env": "LABEL_KEYS",
            "relay": RELAYED,
            "retry_window_s": 600.0,
        },
        "keys": KEYS,
        "upstreams": {"up": {"url": url}},
        "routes": {
            "r": {"upstream": "up"},
            "own": {"upstream": "up", "match": {"model": "own-*"}},
            "off": {"upstream": "up", "mode": "off", "match": {"header": "off"}},
            "risky": {
                "upstream": "up",
                "mode": "enforce",
                "uncertified": True,
                "match": {"header": "fast"},
                "policy": {"policy": "never"},
            },
            "loop": {"kind": "rounds", "scorer": "text", "policy": {"policy": "never"}},
            "loop-off": {"kind": "rounds", "scorer": "text", "mode": "off"},
        },
        "control": {"enabled": False},
    }


@contextmanager
def serving(folder: Path, fake: FakeUpstream) -> Iterator[Target]:
    with GatewayProcess.serving(folder, settings(fake.url), environment=ENVIRONMENT) as process:
        yield Target(process, fake)


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeUpstream]:
    with FakeUpstream.in_thread(Reply(answer=("four",)), paths={**FOUND, **MADE}) as fake:
        yield fake


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, fake: FakeUpstream) -> Iterator[Target]:
    with serving(tmp_path_factory.mktemp("keys"), fake) as target:
        assert target.ask("POST", "/v1/responses", "sk-alice", {"model": "m", "input": "a"}).status == 200
        assert target.ask("POST", "/v1/files", "sk-alice", {"purpose": "batch"}).status == 200
        assert target.ask("POST", "/v1/batches", "sk-alice", {"input_file_id": "file-1"}).status == 200
        assert target.ask("POST", "/v1/fine_tuning/jobs", "sk-alice", {"training_file": "file-1"}).status == 200
        asked = target.ask("POST", "/v1/chat/completions", "sk-alice", chat())
        opened = target.ask("POST", "/v1/decide", "sk-alice", {"route": "loop", "question": "q"})
        target.named = {
            "episode": asked.headers["x-suffice-episode-id"],
            "response": asked.json["id"],
            "token": asked.headers["x-suffice-feedback-token"],
            "run": opened.json["episode_id"],
        }
        rated = {"feedback_id": "known", "episode_id": target.named["episode"], "source": "user", "thumbs": "up"}
        assert target.ask("POST", "/v1/feedback", "sk-alice", rated).json["joined"] is True
        yield target


@dataclass(frozen=True)
class Attack:
    """One request that must be refused, without a call to the upstream."""

    key: str
    method: str
    path: str
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 404
    code: str | None = "not_found"


def post(key: str, path: str, body: Any, status: int = 404, code: str | None = "not_found", **headers: str) -> Attack:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return Attack(key, "POST", path, body, sent, status, code)


def get(key: str, path: str, status: int = 404, code: str | None = "not_found") -> Attack:
    return Attack(key, "GET", path, None, {}, status, code)


RESPONSES, CHAT, FEEDBACK, DECIDE = "/v1/responses", "/v1/chat/completions", "/v1/feedback", "/v1/decide"
SCOPE = (403, "scope")


def word(source: str, **fields: Any) -> dict[str, Any]:
    return {"feedback_id": f"a-{source}", "episode_id": "{episode}", "source": source, "correct": True, **fields}


OBJECTS: dict[str, Attack] = {
    "read another key's response": get("sk-bob", "/v1/responses/resp_1"),
    "read it without /v1": get("sk-bob", "/responses/resp_1"),
    "delete it": Attack("sk-bob", "DELETE", "/v1/responses/resp_1"),
    "cancel it": post("sk-bob", "/v1/responses/resp_1/cancel", None),
    "list its input": get("sk-bob", "/v1/responses/resp_1/input_items"),
    "read it with a query": get("sk-bob", "/v1/responses/resp_1?stream=true&include=x"),
    "read it through a named route": Attack("sk-bob", "GET", "/v1/responses/resp_1", headers={"x-suffice-route": "r"}),
    "read it with a key that has routes": get("sk-carol", "/v1/responses/resp_1"),
    "read it with a feedback key": get("sk-labels", "/v1/responses/resp_1", 401, "invalid_api_key"),
    "read it with a key that asks for nothing": get("sk-view", "/v1/responses/resp_1", *SCOPE),
    "read what nobody made here": get("sk-alice", "/v1/responses/resp_of_nobody"),
    "read it as no id": get("sk-bob", "/v1/responses/resp_1%2F", 404, "not_found"),
    "read another key's file": get("sk-bob", "/v1/files/file-1"),
    "read it under a path without /v1": get("sk-bob", "/files/file-1"),
    "read its content": get("sk-bob", "/v1/files/file-1/content"),
    "delete the file": Attack("sk-bob", "DELETE", "/v1/files/file-1"),
    "read another key's batch": get("sk-bob", "/v1/batches/batch_1"),
    "cancel the batch": post("sk-bob", "/v1/batches/batch_1/cancel", b""),
    "read another key's fine-tuning job": get("sk-bob", "/v1/fine_tuning/jobs/ftjob-1"),
    "read a thread that nobody made here": get("sk-bob", "/v1/threads/thread_1/messages"),
    "read a conversation that nobody made here": get("sk-bob", "/v1/conversations/conv_1"),
    "read a stored completion": get("sk-bob", "/v1/chat/completions/chatcmpl-1"),
    "list responses": get("sk-bob", "/v1/responses", *SCOPE),
    "list files": get("sk-bob", "/v1/files", *SCOPE),
    "list files with a query": get("sk-bob", "/v1/files?limit=100", *SCOPE),
    "list batches": get("sk-alice", "/v1/batches", *SCOPE),
    "list fine-tuning jobs": get("sk-bob", "/v1/fine_tuning/jobs", *SCOPE),
    "list vector stores": get("sk-bob", "/v1/vector_stores", *SCOPE),
    "list assistants": get("sk-bob", "/v1/assistants", *SCOPE),
    "go on from another key's response": post("sk-bob", RESPONSES, {"model": "m", "previous_response_id": "resp_1"}),
    "go on from it, the name escaped": post(
        "sk-bob", RESPONSES, rb'{"model": "m", "previous\u005fresponse\u005fid": "resp_1"}'
    ),
    "go on from it, the id escaped": post(
        "sk-bob", RESPONSES, rb'{"model": "m", "previous_response_id": "resp\u005f1"}'
    ),
    "go on from a conversation": post("sk-bob", RESPONSES, {"model": "m", "conversation": "conv_1"}),
    "go on from a conversation as an object": post("sk-bob", RESPONSES, {"conversation": {"id": "conv_1"}}),
    "refer to an item": post("sk-bob", RESPONSES, {"input": [{"type": "item_reference", "id": "msg_1"}]}),
    "show another key's file to a model": post(
        "sk-bob", RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "file-1"}]}]}
    ),
    "search another key's store": post(
        "sk-bob", RESPONSES, {"tools": [{"type": "file_search", "vector_store_ids": ["vs_1"]}]}
    ),
    "run code in another key's container": post(
        "sk-bob", RESPONSES, {"tools": [{"type": "code_interpreter", "container": "cntr_1"}]}
    ),
    "give a container another key's file": post(
        "sk-bob",
        RESPONSES,
        {"tools": [{"type": "code_interpreter", "container": {"type": "auto", "file_ids": ["file-1"]}}]},
    ),
    "take over an id": post("sk-bob", RESPONSES, {"model": "m", "request_id": "resp_1"}, 409, "taken"),
    "name more objects than can be looked up": post(
        "sk-alice",
        RESPONSES,
        {"file_ids": ["file-1"] * 5_000 + [f"f{n}" for n in range(1_001)]},
        400,
        "too_many_objects",
    ),
    "show a file in a chat": post(
        "sk-bob",
        CHAT,
        {"model": "m", "messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file-1"}}]}]},
    ),
    "show a file to Anthropic's API": Attack(
        "sk-bob",
        "POST",
        "/v1/messages",
        {
            "model": "m",
            "messages": [
                {"role": "user", "content": [{"type": "document", "source": {"type": "file", "file_id": "file-1"}}]}
            ],
        },
        code=None,
    ),
    "run a batch over another key's file": post("sk-bob", "/v1/batches", {"input_file_id": "file-1"}),
    "train on another key's file": post("sk-bob", "/v1/fine_tuning/jobs", {"training_file": "file-1"}),
    "say the file twice": post(
        "sk-bob", "/v1/batches", b'{"input_file_id": "file-1", "input_file_id": "file-2"}', 400, "repeated_key"
    ),
    "say the file behind a space": post("sk-bob", "/v1/batches", b' \n{"input_file_id": "file-1"}'),
    "say the file behind a byte order mark": post(
        "sk-bob", "/v1/batches", '\ufeff{"input_file_id": "file-1"}'.encode(), 400, "bad_encoding"
    ),
    "call JSON a form": post(
        "sk-bob", "/v1/batches", b'{"input_file_id": "file-1"}', content_type="multipart/form-data"
    ),
    "call JSON text": post("sk-bob", "/v1/batches", b'{"input_file_id": "file-1"}', content_type="text/plain"),
    "an endless id": post("sk-bob", RESPONSES, {"model": "m", "previous_response_id": "resp_1" + "x" * 100_000}),
    "a hundred ids": post("sk-bob", RESPONSES, {"file_ids": [f"file-{n}" for n in range(100)]}),
}

ROUTES: dict[str, Attack] = {
    "name a route that is off": post("sk-bob", CHAT, chat(), *SCOPE, x_suffice_route="off"),
    "name a route that acts uncertified": post("sk-bob", CHAT, chat(), *SCOPE, x_suffice_route="risky"),
    "name it by its header": post("sk-bob", CHAT, chat(), *SCOPE, x_suffice_route="fast"),
    "name it for embeddings": post("sk-bob", "/v1/embeddings", {"model": "m"}, *SCOPE, x_suffice_route="off"),
    "name it for messages": post("sk-bob", "/v1/messages", chat(), 403, None, x_suffice_route="risky"),
    "name it for a relayed path": post("sk-bob", "/tokenize", {"content": "a"}, *SCOPE, x_suffice_route="off"),
    "name a route that the key does not list": post("sk-carol", CHAT, chat(), *SCOPE, x_suffice_route="r"),
    "name a listed route with another model": post("sk-carol", CHAT, chat(), *SCOPE, x_suffice_route="own"),
    "come to a route by its model": post("sk-carol", CHAT, chat(), *SCOPE),
    "come to no route": post("sk-carol", CHAT, chat(model=""), *SCOPE),
    "come to no route, plain completions": post("sk-carol", "/v1/completions", {"model": "m", "prompt": "a"}, *SCOPE),
    "come to no route, a relayed path": post("sk-carol", "/tokenize", {"content": "a"}, *SCOPE),
    "tell which routes there are": post("sk-carol", CHAT, chat(), *SCOPE, x_suffice_route="nobody"),
    "a route that does not exist": post("sk-bob", CHAT, chat(), 400, "unknown_route", x_suffice_route="nobody"),
    "begin a loop on a route that is off": post("sk-bob", DECIDE, {"route": "loop-off", "question": "q"}, *SCOPE),
    "begin a loop that the key does not list": post("sk-carol", DECIDE, {"route": "loop", "question": "q"}, *SCOPE),
    "ask with a key that asks for nothing": post("sk-judge", CHAT, chat(), *SCOPE),
    "decide with it": post("sk-judge", DECIDE, {"route": "loop", "question": "q"}, *SCOPE),
    "list models with it": get("sk-view", "/v1/models", *SCOPE),
    "ask with a feedback key": post("sk-labels", CHAT, chat(), 401, "invalid_api_key"),
    "read everybody's metrics": get("sk-carol", "/metrics", *SCOPE),
    "ask without a key": post("", CHAT, chat(), 401, "invalid_api_key"),
    "two keys": post("", CHAT, chat(), 401, "invalid_api_key", authorization="Bearer sk-alice, Bearer sk-root"),
    "half a key": post("sk-roo", CHAT, chat(), 401, "invalid_api_key"),
    "a key and more": post("sk-root ", CHAT, chat(), 401, "invalid_api_key", authorization="Bearer sk-root x"),
    "basic": post("", CHAT, chat(), 401, "invalid_api_key", authorization="Basic sk-root"),
    "two keys in two headers": post("sk-wrong", CHAT, chat(), 401, "invalid_api_key", x_api_key="sk-root"),
}

LABELS: dict[str, Attack] = {
    "speak as a reviewer": post("sk-alice", FEEDBACK, word("reviewer"), *SCOPE),
    "speak as a judge": post("sk-alice", FEEDBACK, word("judge"), *SCOPE),
    "give gold": post("sk-alice", FEEDBACK, word("gold"), *SCOPE),
    "speak as a Reviewer": post("sk-alice", FEEDBACK, word(" Reviewer "), *SCOPE),
    "speak as a reviewer in a webhook": post(
        "sk-alice",
        "/v1/feedback/label-studio",
        {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "task": {"id": 1}, "project": {"id": 1}},
        403,
        None,
    ),
    "speak as what the key does not list": post("sk-carol", FEEDBACK, word("exact-match"), *SCOPE),
    "speak with a key that may not": post("sk-mute", FEEDBACK, word("user"), *SCOPE),
    "tell an event with it": post(
        "sk-mute", FEEDBACK, {"feedback_id": "x", "episode_id": "{episode}", "event": "abandon"}, *SCOPE
    ),
    "speak as a reviewer with a judge's key": post("sk-judge", FEEDBACK, word("reviewer"), *SCOPE),
    "rate another key's answer": post("sk-bob", FEEDBACK, word("user")),
    "rate it by the response": post(
        "sk-bob", FEEDBACK, {"feedback_id": "b", "response_id": "{response}", "source": "user", "thumbs": "down"}
    ),
    "rate another key's loop": post("sk-bob", FEEDBACK, word("user", episode_id="{run}")),
    "say another thing under a known id": post(
        "sk-alice",
        FEEDBACK,
        {"feedback_id": "known", "episode_id": "{episode}", "source": "user", "thumbs": "down"},
        409,
        "feedback_id_conflict",
    ),
    "say it of another answer": post(
        "sk-alice",
        FEEDBACK,
        {"feedback_id": "known", "episode_id": "ep_other", "source": "user", "thumbs": "up"},
        409,
        "feedback_id_conflict",
    ),
    "use a token for a reviewer": post(
        "", FEEDBACK, {"token": "{token}", "source": "reviewer", "correct": True}, 403, "wrong_source"
    ),
    "go on with another key's loop": post(
        "sk-bob",
        DECIDE,
        {"route": "loop", "episode_id": "{run}", "step": {"index": 1, "answer": "a", "tokens": 1}},
        404,
        "unknown_episode",
    ),
    "break another key's loop off": post(
        "sk-bob", DECIDE, {"route": "loop", "episode_id": "{run}", "aborted": True}, 404, "unknown_episode"
    ),
    "go on with it as root": post(
        "sk-root", DECIDE, {"route": "loop", "episode_id": "{run}", "done": True}, 404, "unknown_episode"
    ),
}
ATTACKS = {
    f"{kind}: {name}": attack
    for kind, table in (("objects", OBJECTS), ("routes", ROUTES), ("labels", LABELS))
    for name, attack in table.items()
}


def filled(value: Any, named: Mapping[str, str]) -> Any:
    """A body with ids in the place of their names."""
    if isinstance(value, str) and value.startswith("{") and value.endswith("}"):
        return named.get(value[1:-1], value)
    if isinstance(value, dict):
        return {k: filled(v, named) for k, v in value.items()}
    return value


@pytest.mark.parametrize("name", ATTACKS)
def test_what_a_key_may_not_do_is_refused_before_anything_is_asked_or_kept(target: Target, name: str) -> None:
    attack = ATTACKS[name]
    n_calls, n_labels = len(target.fake.calls), len(target.labels())
    body = filled(attack.body, target.named)
    got = target.ask(attack.method, attack.path, attack.key, body, attack.headers)
    assert got.status == attack.status, got.raw[:300]
    assert b"secret" not in got.raw
    if attack.code is not None:
        assert got.code == attack.code
    assert len(target.fake.calls) == n_calls
    assert len(target.labels()) == n_labels


@pytest.mark.parametrize(
    ("key", "method", "path", "body", "headers"),
    [
        ("sk-alice", "GET", "/v1/responses/resp_1", None, {}),
        ("sk-alice", "GET", "/v1/files/file-1", None, {}),
        (
            "sk-bob",
            "POST",
            "/v1/files",
            b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n{}\r\n--x--',
            {"content-type": "multipart/form-data; boundary=x"},
        ),
        ("sk-bob", "POST", "/tokenize", b"plain text that names file_id", {"content-type": "text/plain"}),
        ("sk-root", "GET", "/v1/responses/resp_1", None, {}),
        ("sk-root", "GET", "/v1/files", None, {}),
        ("sk-root", "GET", "/v1/responses/resp_of_nobody", None, {}),
        ("sk-alice", "POST", RESPONSES, {"model": "m", "previous_response_id": "resp_1"}, {}),
        ("sk-bob", "POST", RESPONSES, {"model": "m", "metadata": {"conversation": "mine"}}, {}),
        (
            "sk-bob",
            "POST",
            CHAT,
            chat(
                tools=[
                    {
                        "type": "function",
                        "function": {
                            "name": "f",
                            "parameters": {"properties": {"file_id": {"type": "string", "id": "x"}}},
                        },
                    }
                ]
            ),
            {},
        ),
        ("sk-carol", "POST", CHAT, chat(model="own-1"), {}),
        ("sk-carol-new", "POST", CHAT, chat(model="own-1"), {"x-suffice-route": "own"}),
        ("sk-off", "POST", CHAT, chat(), {"x-suffice-route": "off"}),
        ("sk-bob", "POST", CHAT, chat(), {"x-suffice-route": "r"}),
        ("sk-view", "GET", "/metrics", None, {}),
        ("sk-carol", "GET", "/v1/models", None, {}),
        ("sk-alice", "POST", FEEDBACK, word("exact-match"), {}),
        ("sk-labels", "POST", FEEDBACK, word("reviewer"), {}),
        ("sk-judge", "POST", FEEDBACK, word("judge"), {}),
        ("sk-root", "POST", FEEDBACK, word("user"), {}),
        ("sk-bob", "POST", FEEDBACK, word("user", episode_id="ep_that_is_not_known_yet"), {}),
    ],
)
def test_what_a_key_may_do_is_served(
    target: Target, key: str, method: str, path: str, body: Any, headers: Mapping[str, str]
) -> None:
    assert target.ask(method, path, key, filled(body, target.named), headers).status == 200


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
    told = target.ask("POST", "/v1/feedback/batch", "sk-alice", {"feedback": rows}).json
    assert [one["accepted"] for one in told["results"]] == [True, False]
    assert told["results"][1]["error"]["code"] == "feedback_id_conflict"


def test_in_a_batch_only_ones_own_answers_are_rated(target: Target) -> None:
    rows = [
        word("user", feedback_id="own?", episode_id=target.named["episode"]),
        word("user", feedback_id="unknown", episode_id="ep_unknown"),
    ]
    told = target.ask("POST", "/v1/feedback/batch", "sk-bob", {"feedback": rows}).json
    assert [one.get("error", {}).get("code") for one in told["results"]] == ["not_found", None]


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "bEARER"])
def test_one_key_is_one_sender_however_its_header_is_written(target: Target, scheme: str) -> None:
    given = {"feedback_id": "spelling", "episode_id": target.named["episode"], "source": "user", "rating": 4}
    first = target.ask("POST", FEEDBACK, "sk-alice", given)
    again = target.ask("POST", FEEDBACK, "", given, {"authorization": f"{scheme} sk-alice"})
    assert (first.status, again.status, again.json["duplicate"]) == (200, 200, True)


def test_two_keys_of_one_name_are_one_caller(target: Target) -> None:
    asked = target.ask("POST", CHAT, "sk-carol", chat(model="own-1"))
    episode = asked.headers["x-suffice-episode-id"]
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
    requests = [seen(target, episode).request for episode in episodes]
    assert [one.delivery for one in requests] == [1, 1, 2]
    assert requests[0].conversation != requests[1].conversation == requests[2].conversation
    assert len({one.sender for one in requests}) == 2


def seen(target: Target, episode: str) -> RequestSeen:
    """The row of a request, once it is written."""
    for _ in range(200):
        for one in read_events(target.process.database):
            if isinstance(one.event, RequestSeen) and one.event.key == episode:
                return one.event
        target.ask("GET", "/healthz", "")
    raise AssertionError(f"no row of {episode}")


def test_a_streamed_response_can_be_cancelled_by_its_maker_before_it_ends(tmp_path: Path) -> None:
    begun = {"type": "response.created", "response": {"id": "resp_live", "status": "in_progress"}}
    live = Script(pieces=(f"event: response.created\ndata: {json.dumps(begun)}\n\n".encode(),), end="hang", hang_s=600)
    cancelled = script({"id": "resp_live", "status": "cancelled"})
    paths = {"POST /responses": live, "POST /responses/resp_live/cancel": cancelled}
    with FakeUpstream.in_thread(paths=paths) as fake, serving(tmp_path, fake) as target:
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
    found = re.search(rb"sfc_[0-9a-f]{12}_[0-9a-f]{64}", target.process.stderr())
    assert found is not None
    right = found[0].decode()
    guess = wrong.replace("{known}", right.rpartition("_")[0])
    told = [target.ask("GET", "/api/overview", guess).status for _ in range(8)]
    assert set(told) <= {401, 429}
    assert told[-1] == 429
    assert target.ask("GET", "/api/overview", right).status == 200
    assert target.ask("GET", "/api/overview", "sk-root").status == 429, "a key is no secret of a person"


def test_objects_and_budgets_outlive_a_restart(tmp_path: Path, fake: FakeUpstream) -> None:
    with serving(tmp_path, fake) as target:
        assert target.ask("POST", RESPONSES, "sk-alice", {"model": "m", "input": "a"}).status == 200
        assert target.ask("POST", RESPONSES, "sk-bob", {"model": "m", "input": "a"}).status == 200, "the same id"
        assert target.ask("GET", "/v1/responses/resp_1", "sk-bob").status == 404, "and it stays the first one's"
        assert target.ask("POST", CHAT, "sk-poor", chat()).status == 200
        spent = target.ask("POST", CHAT, "sk-poor", chat())
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
            found = {one.name: stat.S_IMODE(one.stat().st_mode) for one in tmp_path.iterdir()}
            told = target.process.stderr().decode()
    finally:
        os.umask(before)
    ours = {name: mode for name, mode in found.items() if name.startswith("log")}
    assert {"log.db", "log.db-wal", "log.db-shm", "log.salt"} <= set(ours)
    assert {name: oct(mode) for name, mode in ours.items() if mode & 0o077} == {}
    assert "log.db: could be read by others (mode 0666); its mode is 0600 now" in told
    assert "log.salt: could be read by others" in told
