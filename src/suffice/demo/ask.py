"""Asks questions over HTTP, as any client would, and sends the right answers back as feedback."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from suffice.local.tasks import TaskQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    """What came back for one question."""

    question: TaskQuestion
    episode_id: str
    text: str
    finish_reason: str | None
    completion_tokens: int
    stopped: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One way of asking all the questions."""

    route: str
    model: str
    extra: Mapping[str, Any]  # fields added to every request
    stream: bool = False
    n_at_once: int = 2


def question_seed(question_id: str) -> int:
    """The same seed for a question in every pass, so that passes differ in nothing else."""
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=3).digest(), "big")


async def ask_all(
    url: str, questions: Sequence[TaskQuestion], how: Pass, done: Callable[[DemoAnswer], None]
) -> list[DemoAnswer]:
    """Ask every question once; call `done` as each answer arrives. Answers in the questions' order."""
    gate = asyncio.Semaphore(how.n_at_once)

    async def one(question: TaskQuestion) -> DemoAnswer:
        async with gate:
            answered = await asyncio.to_thread(_ask, url, question, how)
        await asyncio.to_thread(_label, url, answered)
        done(answered)
        return answered

    return list(await asyncio.gather(*(one(q) for q in questions)))


def request_body(question: TaskQuestion, how: Pass) -> dict[str, Any]:
    """The chat request for a question."""
    body: dict[str, Any] = {
        "model": how.model,
        "messages": [dict(m) for m in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question_seed(question.id),
        "stream": how.stream,
    }
    return body | dict(how.extra)


@contextmanager
def _post(
    url: str, path: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a POST, while the block lasts."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=600)
    try:
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json", **headers})
        yield connection.getresponse()
    finally:
        connection.close()


def _ask(url: str, question: TaskQuestion, how: Pass) -> DemoAnswer:
    headers = {"x-suffice-route": how.route, "idempotency-key": f"{how.route}:{question.id}"}
    with _post(url, "/v1/chat/completions", request_body(question, how), headers) as reply:
        episode_id = reply.getheader("x-suffice-episode-id", "")
        if reply.status != 200:
            return _failed(
                question, episode_id, f"HTTP {reply.status}: {reply.read().decode('utf-8', 'replace')[:200]}"
            )
        if how.stream:
            return _read_stream(reply, question, episode_id)
        body = json.loads(reply.read())
    choice = body["choices"][0]
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text=choice["message"].get("content") or "",
        finish_reason=choice.get("finish_reason"),
        completion_tokens=body["usage"]["completion_tokens"],
        stopped=bool(body.get("suffice", {}).get("stopped")),
    )


def _read_stream(reply: http.client.HTTPResponse, question: TaskQuestion, episode_id: str) -> DemoAnswer:
    text, finish, tokens, stopped = "", None, 0, False
    for line in reply:
        data = line.strip().removeprefix(b"data: ")
        if not data or data == b"[DONE]" or data.startswith(b":"):
            continue
        chunk = json.loads(data)
        if "error" in chunk:
            return _failed(question, episode_id, str(chunk["error"])[:200])
        stopped = stopped or bool(chunk.get("suffice", {}).get("stopped"))
        tokens = chunk.get("usage", {}).get("completion_tokens", tokens)
        for choice in chunk["choices"]:
            text += choice["delta"].get("content") or ""
            finish = choice.get("finish_reason") or finish
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text=text,
        finish_reason=finish,
        completion_tokens=tokens,
        stopped=stopped,
    )


def _failed(question: TaskQuestion, episode_id: str, error: str) -> DemoAnswer:
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text="",
        finish_reason=None,
        completion_tokens=0,
        stopped=False,
        error=error,
    )


def _label(url: str, answered: DemoAnswer) -> None:
    """Send the right answer as feedback, as a customer with a gold set would."""
    body = {
        "feedback_id": f"gold:{answered.episode_id}",
        "episode_id": answered.episode_id,
        "gold": answered.question.gold,
        "source": "exact-match",
    }
    with _post(url, "/v1/feedback", body, {}) as reply:
        reply.read()
