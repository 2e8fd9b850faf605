"""A gateway with tenants: keys of every kind, what each may do, and what some of them have made there."""

from __future__ import annotations

import http.client
import json
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from suffice.store.database.views import read_events
from suffice.store.rows.events import FeedbackEvent
from suffice_testing import FakeUpstream, Reply, Script, ServerBehaviour
from tests.gateway_process import GatewayProcess

RESPONSES, CHAT, FEEDBACK, DECIDE = "/v1/responses", "/v1/chat/completions", "/v1/feedback", "/v1/decide"
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
RESULTS = {
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

    def labels(self) -> list[FeedbackEvent]:
        return [one.event for one in read_events(self.process.database) if isinstance(one.event, FeedbackEvent)]


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


@contextmanager
def upstream() -> Iterator[FakeUpstream]:
    """A model server that keeps objects."""
    with FakeUpstream.in_thread(Reply(answer=("four",)), ServerBehaviour(paths={**RESULTS, **MADE})) as fake:
        yield fake


def fill(target: Target) -> None:
    """Have one tenant make one of everything."""
    assert target.ask("POST", "/v1/responses", "sk-alice", {"model": "m", "input": "a"}).status == 200
    assert target.ask("POST", "/v1/files", "sk-alice", {"purpose": "batch"}).status == 200
    assert target.ask("POST", "/v1/batches", "sk-alice", {"input_file_id": "file-1"}).status == 200
    assert target.ask("POST", "/v1/fine_tuning/jobs", "sk-alice", {"training_file": "file-1"}).status == 200
    requested = target.ask("POST", "/v1/chat/completions", "sk-alice", chat())
    opened = target.ask("POST", "/v1/decide", "sk-alice", {"route": "loop", "question": "q"})
    target.named = {
        "episode": requested.headers["x-suffice-episode-id"],
        "response": requested.json["id"],
        "token": requested.headers["x-suffice-feedback-token"],
        "run": opened.json["episode_id"],
    }
    rated = {"feedback_id": "known", "episode_id": target.named["episode"], "source": "user", "thumbs": "up"}
    assert target.ask("POST", "/v1/feedback", "sk-alice", rated).json["joined"] is True


def word(source: str, **fields: Any) -> dict[str, Any]:
    return {"feedback_id": f"a-{source}", "episode_id": "{episode}", "source": source, "correct": True, **fields}
