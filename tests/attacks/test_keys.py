"""Attacks by those who hold a key: on routes, labels, objects and runs that are not theirs, each in one request."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

from suffice_testing import FakeUpstream
from tests.attacks.tenants import (
    CHAT,
    DECIDE,
    FEEDBACK,
    RESPONSES,
    Target,
    chat,
    fill,
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


SCOPE = (403, "scope")


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
