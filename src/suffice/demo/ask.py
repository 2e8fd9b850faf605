"""Asks questions over HTTP, as any client would, and sends the right answers back as feedback."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec

from suffice.local.tasks import TaskQuestion


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    question: TaskQuestion
    episode_id: str
    text: str
    finish_reason: str | None
    completion_tokens: int
    stopped: bool
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
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
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:

        async def one(question: TaskQuestion) -> DemoAnswer:
            async with gate:
                answered = await _ask(session, url, question, how)
            await _label(session, url, answered)
            done(answered)
            return answered

        return list(await asyncio.gather(*(one(q) for q in questions)))


def request_body(question: TaskQuestion, how: Pass) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": how.model,
        "messages": [dict(m) for m in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question_seed(question.id),
        "stream": how.stream,
    }
    return body | dict(how.extra)


async def _ask(session: aiohttp.ClientSession, url: str, question: TaskQuestion, how: Pass) -> DemoAnswer:
    headers = {"x-suffice-route": how.route, "idempotency-key": f"{how.route}:{question.id}"}
    async with session.post(f"{url}/v1/chat/completions", json=request_body(question, how), headers=headers) as reply:
        episode_id = reply.headers.get("x-suffice-episode-id", "")
        if reply.status != 200:
            return _failed(question, episode_id, f"HTTP {reply.status}: {(await reply.text())[:200]}")
        if how.stream:
            return await _read_stream(reply, question, episode_id)
        body = await reply.json()
    choice = body["choices"][0]
    return DemoAnswer(
        question=question,
        episode_id=episode_id,
        text=choice["message"].get("content") or "",
        finish_reason=choice.get("finish_reason"),
        completion_tokens=body["usage"]["completion_tokens"],
        stopped=bool(body.get("suffice", {}).get("stopped")),
    )


async def _read_stream(reply: aiohttp.ClientResponse, question: TaskQuestion, episode_id: str) -> DemoAnswer:
    text, finish, tokens, stopped = "", None, 0, False
    async for line in reply.content:
        data = line.strip().removeprefix(b"data: ")
        if not data or data == b"[DONE]" or data.startswith(b":"):
            continue
        chunk = msgspec.json.decode(data)
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


async def _label(session: aiohttp.ClientSession, url: str, answered: DemoAnswer) -> None:
    body = {
        "feedback_id": f"gold:{answered.episode_id}",
        "episode_id": answered.episode_id,
        "gold": answered.question.gold,
        "source": "exact-match",
    }
    async with session.post(f"{url}/v1/feedback", json=body) as reply:
        await reply.read()
