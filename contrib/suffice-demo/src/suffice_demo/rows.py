"""Asks the demonstration's questions over HTTP, and reads tokens and right answers off the runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from email.message import Message
from typing import Any, Final

import msgspec

from suffice.scoring.scorer import Scorer
from suffice.types import Episode, Outcome
from suffice_demo.local.tasks import TaskQuestion

SEED: Final = 0  # of the bootstrap
TIMEOUT_S: Final = 600.0  # of one answer


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoAnswer:
    question: TaskQuestion
    episode_id: str
    text: str = ""
    completion_tokens: int = 0
    stopped: bool = False
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    route: str
    model: str
    extra: Mapping[str, Any]  # fields added to every request
    n_at_once: int = 2


def question_seed(question_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(question_id.encode(), digest_size=3).digest(), "big")


async def ask_all(
    url: str, questions: Sequence[TaskQuestion], how: Pass, done: Callable[[DemoAnswer], None]
) -> list[DemoAnswer]:
    """Call `done` for each answer. Return the answers in the order of the questions."""
    gate = asyncio.Semaphore(how.n_at_once)

    async def one(question: TaskQuestion) -> DemoAnswer:
        async with gate:
            answered = await asyncio.to_thread(_ask, url, question, how)
        label = {
            "feedback_id": f"gold:{answered.episode_id}",
            "episode_id": answered.episode_id,
            "gold": question.gold,
            "source": "exact-match",
        }
        await asyncio.to_thread(_post, f"{url}/v1/feedback", label, {})
        done(answered)
        return answered

    return list(await asyncio.gather(*map(one, questions)))


def _post(url: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, Message, bytes]:
    request = urllib.request.Request(  # noqa: S310 - our own gateway
        url, json.dumps(body).encode(), {"content-type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as reply:  # noqa: S310 - as above
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def _ask(url: str, question: TaskQuestion, how: Pass) -> DemoAnswer:
    payload = {
        "model": how.model,
        "messages": [dict(m) for m in question.messages],
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
        "seed": question_seed(question.id),
        **how.extra,
    }
    route = {"x-suffice-route": how.route, "idempotency-key": f"{how.route}:{question.id}"}
    status, headers, body = _post(f"{url}/v1/chat/completions", payload, route)
    answer = DemoAnswer(question=question, episode_id=headers.get("x-suffice-episode-id", ""))
    if status != 200:
        return replace(answer, error=f"HTTP {status}: {body.decode(errors='replace')[:200]}")
    reply = msgspec.json.decode(body)
    return replace(
        answer,
        text=reply["choices"][0]["message"].get("content") or "",
        completion_tokens=reply["usage"]["completion_tokens"],
        stopped=bool(reply.get("suffice", {}).get("stopped")),
    )


def correct(answered: DemoAnswer, scorer: Scorer) -> bool:
    return matches(scorer, scorer.extract(answered.text), answered.question.gold)


def matches(scorer: Scorer, answer: str | None, gold: str) -> bool:
    return scorer.match(answer, scorer.normalise(gold) or gold)


def total_tokens(episode: Episode) -> int:
    over = episode.outcome.overhead
    return _generated(episode.outcome) + over.probe_tokens + over.discarded_tokens


def _generated(outcome: Outcome) -> int:
    return outcome.usage.completion_tokens if outcome.usage is not None else 0


def reconciled(episode: Episode) -> bool:
    outcome = episode.outcome
    if outcome.usage is None:
        return not outcome.calls
    usage, over = outcome.usage, outcome.overhead
    prompts = sum(c.prompt_tokens or 0 for c in outcome.calls)
    generated = sum(c.completion_tokens for c in outcome.calls)
    return (
        prompts == usage.prompt_tokens + over.extra_prompt_tokens
        and generated == usage.completion_tokens + over.probe_tokens + over.discarded_tokens
    )
